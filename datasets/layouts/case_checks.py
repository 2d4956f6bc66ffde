# SPDX-License-Identifier: Apache-2.0
"""The cases of a segmentation data list checked: by headers as the list is made, by voxels before it is used."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from monai.transforms import LoadImaged
from tqdm import tqdm

from ...transforms.segmentation_case import (
    BadCaseError,
    Modality,
    check_case,
    check_space_difference,
    space_difference,
)
from ..datalist import ScanRecord, read_datalist
from ..io.json_file import read_json
from ..io.scan_header import BadScanError, ScanHeader, read_scan_header, root_cause_message
from ..io.scan_reader import ScanReader
from ..splits import SPLITS

logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""How far apart the affines of image and label may put a voxel, in units of the smaller voxel side."""


def check_headers(
    root: Path, image: str | Sequence[str], label: str = "", channels: int = 1, tolerance: float = TOLERANCE
) -> ScanHeader:
    """Read the headers of a case and check that they describe one space.

    Args:
        root: folder that the paths start from.
        image: path of the image, or one of each channel.
        label: path of the label map, ``""`` for a case without.
        channels: volumes along the fourth axis of the image's file.
        tolerance: how far apart the affines may put a voxel, in units of the smaller voxel side.

    Returns:
        The header of the image, of its first channel where each has a file.

    Raises:
        BadScanError: When a file is missing or unreadable, see :func:`read_scan_header`.
        BadCaseError: When label or channels differ in shape or space from the image.
    """
    images = [image] if isinstance(image, str) else list(image)
    # the reader itself looks for the files, so links are followed as it does
    header = read_scan_header(os.path.normpath(root / images[0]), channels)
    for path, kind in [*((path, "channel") for path in images[1:]), *([(label, "label")] if label else [])]:
        other = read_scan_header(os.path.normpath(root / path))
        expected, found = (" x ".join(map(str, each.shape)) for each in (header, other))
        if expected != found:
            raise BadCaseError(
                path, f"{kind} of another shape", f"expected {expected} voxels as the image, found {found}"
            )
        check_space_difference(path, space_difference(header.shape, header.affine, other.affine), tolerance, kind)
    return header


def found_case(
    root: Path,
    image: str | Sequence[str],
    patient: str,
    split: str,
    label: str = "",
    channels: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> ScanRecord:
    """Check a case's headers and give its status: kept in its split, or left out with the reason.

    Args:
        root: folder that the paths start from.
        image: path of the image, or one of each channel.
        patient: name that keeps a patient's cases in one split.
        split: the split it goes to if it is good.
        label: path of the label map, ``""`` for a case without.
        channels: volumes along the fourth axis of the image's file.
        facts: what else the data list says of the case.
    """
    paths = image if isinstance(image, str) else tuple(image)
    more: dict[str, Any] = {"label": label, "facts": dict(facts or {})}
    try:
        header = check_headers(root, image, label, channels)
    except (BadScanError, BadCaseError) as error:
        return ScanRecord(paths, patient, "", *_fault(root, image, label, error), **more)
    return ScanRecord(paths, patient, split, **{**more, **ScanRecord.geometry(header)})


def _fault(root: Path, image: str | Sequence[str], label: str, error: BadScanError | BadCaseError) -> tuple[str, str]:
    """Give reason and detail of a bad case, with the path of the file at fault where it is not the image's first."""
    images = [image] if isinstance(image, str) else list(image)
    listed = {os.path.normpath(root / path): path for path in (*images, *([label] if label else []))}
    file = error.case if isinstance(error, BadCaseError) else listed.get(error.scan, error.scan)
    # image and label often have one name in two folders, so the path is given, and the reason says which it is
    reason = f"label {error.reason}" if isinstance(error, BadScanError) and file == label else error.reason
    return reason, error.detail if file == images[0] else f"{file}: {error.detail}"


def case_file(image: str | Sequence[str]) -> str:
    """Name the first file of an image."""
    return image if isinstance(image, str) else image[0]


def check_cases(
    data: Sequence[Mapping[str, Any]],
    labels: Mapping[Any, str] | Iterable[int],
    modality: Modality | None = None,
    channels: int | None = None,
    tolerance: float = TOLERANCE,
    require_foreground: bool = True,
    on_bad_case: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Load each case of a data list once and check it, see :func:`~models_genesis.transforms.check_case`.

    Args:
        data: entries with the path of an ``image`` and, where there is one, of a ``label``.
        labels: the label values that may occur, or the data list's ``"labels"``.
        modality: ``"CT"`` or ``"MR"``; ``None`` for no check.
        channels: channels that each image must have; ``None`` for any.
        tolerance: how far apart the affines of image and label may put a voxel, in units of the smaller voxel side.
        require_foreground: whether a label map of background only is a fault.
        on_bad_case: ``"raise"`` an error for the first bad case, or ``"skip"`` it with a warning.
        progress: whether to show a progress bar.

    Returns:
        The good entries, in their order.

    Raises:
        BadCaseError: When a case is bad, or cannot be read, and ``on_bad_case="raise"``.
        ValueError: When no case is good.
    """
    if on_bad_case not in ("raise", "skip"):
        raise ValueError(f"on_bad_case must be 'raise' or 'skip', got {on_bad_case!r}.")
    rules = (modality, channels, ("image", "label"), tolerance, require_foreground)
    labels = list(labels)
    good, bad = [], []
    load = _Load()
    for entry in tqdm(data, "cases", disable=not progress):
        try:
            check_case(load(entry), labels, *rules)
        except BadCaseError as error:
            if on_bad_case == "raise":
                raise
            logger.warning("left out: %s", error)
            bad.append(error)
            continue
        good.append(dict(entry))
    if data and not good:
        raise ValueError(f"none of the {len(data)} cases can be used; the first: {bad[0]}")
    return good


class _Load:
    """Load image and label of an entry; what cannot be read is a bad case."""

    def __init__(self) -> None:
        self.load = LoadImaged(("image", "label"), ScanReader, None, ensure_channel_first=True, allow_missing_keys=True)

    def __call__(self, entry: Mapping[str, Any]) -> dict[Any, Any]:
        try:
            return self.load({key: entry[key] for key in ("image", "label", "patient") if entry.get(key)})
        except Exception as error:
            detail = f"expected an image and its label, found {root_cause_message(error)}"
            raise BadCaseError(case_file(entry["image"]), "unreadable", detail) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets check``."""
    parser.add_argument("--datalist", required=True, metavar="JSON", help="the data list to check")
    parser.add_argument("--root", help="folder that its paths start from (default: the list's own)")
    parser.add_argument("--modality", choices=["CT", "MR"], help="refuse other images (default: no check)")
    parser.add_argument("--channels", type=int, help="channels of each image (default: any)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="between the affines, in voxels")
    parser.add_argument("--allow-empty", action="store_true", help="accept cases without foreground")


def run(arguments: argparse.Namespace) -> int:
    """Load every case of a data list, print the bad ones, and return 1 if there are any."""
    content = read_json(arguments.datalist, "a data list")
    checked = bad = 0
    for split in SPLITS:
        for entry in read_datalist(arguments.datalist, arguments.root, split) if content.get(split) else []:
            checked += 1
            try:
                check_cases(
                    [entry], content.get("labels", {}), arguments.modality, arguments.channels, arguments.tolerance,
                    not arguments.allow_empty,
                )  # fmt: skip
            except BadCaseError as error:
                bad += 1
                print(f"{split}: {error}")
    print(f"{checked - bad} of {checked} cases are good")
    return 1 if bad else 0
