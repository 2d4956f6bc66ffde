# SPDX-License-Identifier: Apache-2.0
"""How often a training flips along each axis: never along one that tells classes apart."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

__all__ = ["axes_between", "flip_probabilities", "flip_probability"]

logger = logging.getLogger(__name__)

OPPOSITES = (
    ({"left", "l", "lt", "sin", "sinistra"}, {"right", "r", "rt", "dex", "dextra"}),
    ({"anterior", "ant", "front", "ventral"}, {"posterior", "post", "back", "dorsal"}),
    ({"superior", "sup", "upper", "cranial", "top"}, {"inferior", "inf", "lower", "caudal", "bottom"}),
)
"""Words for the two directions of each axis of a scan in RAS (or LPS, ...)."""

WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
"""A word of a name: LeftLung, left_lung and L1 have two."""


def flip_probabilities(names: Iterable[str], prob: float = 0.5) -> float | list[float]:
    """Probabilities of flips for classes of these names, none along an axis that classes are told apart by.

    A cube that is flipped from left to right shows the right kidney where the left one was, with the label that it had:
    the network must then tell the two apart by their shape alone.

    Args:
        names: the classes' names. Classes are told apart by an axis when one has a word for one of its directions
            (left, anterior, superior, ...), and another class the same name with the opposite word.
        prob: the probability along the other axes.

    Returns:
        ``prob`` where no axis tells classes apart, else a probability for each axis of a scan in RAS; a line in the log
        says which axes are left out.

    Example:
        >>> flip_probabilities(["Liver", "Tumour"]), flip_probabilities(["Anterior", "Posterior"])
        (0.5, [0.5, 0.0, 0.5])
        >>> flip_probabilities(["lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right"])
        [0.0, 0.5, 0.0]
    """
    told = axes_between(names)
    if not told:
        return prob
    for axis, found in told.items():
        logger.warning("no flips along axis %d in training: it tells %s apart (--flip_prob sets another)", axis, found)
    return [0.0 if axis in told else prob for axis in range(len(OPPOSITES))]


def axes_between(names: Iterable[str]) -> dict[int, str]:
    """Find the axes that tell classes apart, by their names.

    Args:
        names: the classes' names.

    Returns:
        Two classes for each such axis of a scan in RAS.

    Example:
        >>> axes_between(["Anterior", "Posterior"]), axes_between({"liver": [1]})
        ({1: 'Anterior and Posterior'}, {})
    """
    named = {name: tuple(word.lower() for word in WORDS.findall(name)) for name in names}
    told = {}
    for axis, words in enumerate(OPPOSITES):
        if pairs := _opposite_names(set(named.values()), *words):
            told[axis] = " and ".join(sorted(name for name, parts in named.items() if parts in pairs[0]))
    return told


def _opposite_names(
    names: set[tuple[str, ...]], one: set[str], other: set[str]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Find names that are the same but for a word and its opposite."""
    found = []
    for name in names:
        for number, word in enumerate(name):
            if word in one:
                opposites = [(*name[:number], opposite, *name[number + 1 :]) for opposite in other]
                found += [(name, opposite) for opposite in opposites if opposite in names]
    return sorted(found)


def flip_probability(flip_prob: float | Sequence[float], axis: int, slice_axis: int | None = None) -> float:
    """Pick the probability of a flip along one axis of a cube or a slice.

    Args:
        flip_prob: for all axes, or for each of the scan's three.
        axis: of the cube, or of the slice's two.
        slice_axis: axis of the scan that slices stand across; None for cubes.

    Returns:
        The probability; 0 along the third axis, which a slice does not have.

    Raises:
        ValueError: When there are neither one nor three probabilities.

    Example:
        >>> [flip_probability([0.5, 0.0, 0.25], axis) for axis in range(3)]
        [0.5, 0.0, 0.25]
        >>> [flip_probability([0.5, 0.0, 0.25], axis, slice_axis=0) for axis in range(3)]
        [0.0, 0.25, 0.0]
    """
    axes = [number for number in range(3) if number != slice_axis]
    if axis >= len(axes):
        return 0.0
    if isinstance(flip_prob, int | float):
        return float(flip_prob)
    if len(flip_prob) != 3:
        raise ValueError(f"flip_prob: expected a probability, or one for each of three axes, found {list(flip_prob)}.")
    return float(flip_prob[axes[axis]])
