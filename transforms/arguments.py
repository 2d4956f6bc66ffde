# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that several transforms share; an error names the argument, what it expects and what it found."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_image_shape", "check_intensity_range", "check_probability", "check_whole_number"]


def check_probability(name: str, value: float) -> float:
    """Return a probability as a float.

    Args:
        name: the argument's name, for the error.
        value: expected in [0, 1].

    Returns:
        The value as a float.

    Raises:
        ValueError: outside [0, 1].

    Example:
        >>> check_probability("prob", 1)
        1.0
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1], found {value}")
    return float(value)


def check_whole_number(name: str, value: int, minimum: int) -> int:
    """Return a whole number that is large enough.

    Args:
        name: the argument's name, for the error.
        value: the number.
        minimum: the smallest that is allowed.

    Returns:
        The value as an int.

    Raises:
        ValueError: when it is below the minimum or not whole.

    Example:
        >>> check_whole_number("num_blocks", 3, minimum=0)
        3
    """
    if value != int(value) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, found {value}")
    return int(value)


def check_intensity_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Return an intensity range as a pair of floats.

    Args:
        name: the argument's name, for the error.
        value: (low, high), finite, low < high.

    Returns:
        ``(low, high)``.

    Raises:
        ValueError: when it is no such pair.

    Example:
        >>> check_intensity_range("intensity_range", (-1000, 1000))
        (-1000.0, 1000.0)
    """
    pair = tuple(float(v) for v in value)
    if len(pair) != 2 or not -float("inf") < pair[0] < pair[1] < float("inf"):
        raise ValueError(f"{name}: expected two finite numbers (low, high) with low < high, found {tuple(value)}")
    return pair[0], pair[1]


def check_image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial part of a channel-first image's shape.

    Args:
        shape: (channels, x[, y[, z]]), nothing empty.

    Returns:
        The one to three spatial sizes in voxels.

    Raises:
        ValueError: for another number of axes or an empty one.

    Example:
        >>> check_image_shape((1, 64, 64, 32))
        (64, 64, 32)
    """
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(
            "img: expected a channel-first image with one to three spatial axes, none empty, "
            f"found shape {tuple(shape)}"
        )
    return tuple(int(size) for size in shape[1:])
