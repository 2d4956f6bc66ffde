# SPDX-License-Identifier: Apache-2.0
"""The channels of the images of a data list, by name: chosen, put in order, or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .layouts.brats import NAMES

logger = logging.getLogger(__name__)

UNNAMED_SEQUENCES = {"mr", "mri"}
"""What a list calls channels without telling which sequences they are."""

Case = dict[str, Any]


def choose_sequences(
    source: str | Path, cases: list[Case], content: Mapping[str, Any], channels: Sequence[str] | None
) -> list[Case]:
    """Take the files of some sequences of BraTS, in the given order; of an image of one file they must be its channels.

    Args:
        source: the data list, for messages.
        cases: its entries.
        content: the list, whose ``modality`` names the channels by number.
        channels: names of the sequences; None for all.

    Raises:
        ValueError: When the list lacks one, or has them in one file in another order.
    """
    if channels is None:
        return cases
    listed = listed_channels(source, content)
    return [{**case, "image": _with_sequences(source, case["image"], listed, channels)} for case in cases]


def order_channels(
    source: str | Path, cases: list[Case], content: Mapping[str, Any], channels: Sequence[str] | None
) -> list[Case]:
    """Put the files of each image's channels in the order that a network takes them in.

    Args:
        source: the data list, for messages.
        cases: its entries.
        content: the list, whose ``modality`` names the channels by number; names that tell nothing, or none, are not
            compared.
        channels: names of the network's channels; None where they are not known.

    Raises:
        ValueError: When the list names other channels, another modality, or has them in one file in another order.
    """
    if not channels:
        return cases
    modality = content.get("modality")
    numbered = dict(enumerate(modality)) if isinstance(modality, list) else modality
    try:
        listed = listed_channels(source, {"modality": numbered})
    except ValueError:  # a list that was written by hand
        listed = []
    if not listed:
        if len(channels) > 1:
            logger.warning("%s: does not name its channels; they are taken for %s", source, ", ".join(channels))
        return cases
    known, found = modality_of(channels), modality_of(listed)
    if known and found and known != found:
        raise ValueError(f"{source}: expected {known}, found {found}: its 'modality' is {list(listed)}")
    wanted, names = [_sequence(name) for name in channels], [_sequence(name) for name in listed]
    told = len(set(wanted)) == len(wanted) > 1 and not {*wanted, *names} & UNNAMED_SEQUENCES
    if not told or names == wanted:
        return cases
    advice = "name them alike if they are the same"
    if sorted(names) != sorted(wanted):
        raise ValueError(f"{source}: expected the channels {list(channels)}, found {list(listed)}; {advice}")
    for image in (case["image"] for case in cases):
        if isinstance(image, str):
            raise ValueError(
                f"{source}: expected the channels {list(channels)} in this order, for {image} holds all in one file,"
                f" found {list(listed)}; {advice}"
            )
        if len(image) != len(names):
            raise ValueError(f"{source}: expected a file for each of {list(listed)}, found {len(image)} for {image[0]}")
    order = [names.index(name) for name in wanted]
    logger.info("%s: the channels %s are taken in the order %s", source, ", ".join(listed), ", ".join(channels))
    return [{**case, "image": [case["image"][number] for number in order]} for case in cases]


def listed_channels(source: str | Path, content: Mapping[str, Any]) -> list[str]:
    """Name the channels of a data list in the order of their numbers; none where it does not.

    Args:
        source: the data list, for messages.
        content: the list.

    Raises:
        ValueError: When its ``modality`` is no name and no names by number.

    Example:
        >>> listed_channels("list.json", {"modality": {"1": "T2", "0": "ADC"}})
        ['ADC', 'T2']
    """
    modality = content.get("modality") or {}
    modality = {"0": modality} if isinstance(modality, str) else modality
    if not isinstance(modality, Mapping) or not all(str(number).isdecimal() for number in modality):
        raise ValueError(f"{source}: expected 'modality' as names of the channels by number, found {modality!r}")
    return [str(modality[number]) for number in sorted(modality, key=int)]


def modality_of(channels: Sequence[str]) -> Literal["CT", "MR", ""]:
    """Tell CT from MR by the names of channels; ``""`` where they do not say.

    Example:
        >>> modality_of(["noNormalization"]), modality_of(["CT"]), modality_of(["T1w", "T2w"]), modality_of(["MRI"])
        ('', 'CT', 'MR', 'MR')
    """
    names = {name.casefold() for name in channels}
    if names == {"ct"}:
        return "CT"
    sequences = {*NAMES, "t1w", "t1gd", "adc", "dwi", "pd", *UNNAMED_SEQUENCES}
    return "MR" if names and names <= sequences else ""


def same_channels(first: Sequence[str], second: Sequence[str]) -> bool:
    """Say whether two lists name the same channels in the same order; of a single one the name does not matter.

    Example:
        >>> same_channels(["T1w", "T2"], ["t1", "t2w"]), same_channels(["T2", "ADC"], ["ADC", "T2"])
        (True, False)
    """
    return len(first) == len(second) and (len(first) < 2 or [*map(_sequence, first)] == [*map(_sequence, second)])


def _with_sequences(
    source: str | Path, image: str | list[str], listed: Sequence[str], channels: Sequence[str]
) -> str | list[str]:
    """Choose from a file of each channel by name, and compare the names of the channels of one file."""
    if isinstance(image, str):
        told = [] if {name.casefold() for name in listed} <= UNNAMED_SEQUENCES else listed
        if told and list(map(_sequence, told)) != list(map(_sequence, channels)):
            raise ValueError(
                f"{source}: expected the channels {list(channels)} in this order, for {image} holds all in one file, "
                f"found {list(listed)} as its 'modality'; leave it out of the list if these are the same by other names"
            )
        return image
    if missing := [name for name in channels if name not in listed]:
        raise ValueError(f"{source}: expected the channels {list(channels)}, found {list(listed)} without {missing}")
    if len(image) != len(listed):
        raise ValueError(f"{source}: expected a file for each of {list(listed)}, found {len(image)} for {image[0]}")
    return [image[listed.index(name)] for name in channels]


def _sequence(name: str) -> str:
    """Name a sequence of MR as BraTS does, whose names changed over the years; the Decathlon has others still."""
    name = name.casefold()
    return {"t1w": "t1", "t1gd": "t1ce", **NAMES}.get(name, name)
