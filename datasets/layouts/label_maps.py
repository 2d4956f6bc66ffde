# SPDX-License-Identifier: Apache-2.0
"""Label maps read voxel by voxel as a list is made: what values they hold, and whether a task can be made of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ...transforms.segmentation_case import BadCaseError, label_values
from ..datalist import ScanRecord
from ..io.scan_header import BadScanError, open_scan

MOST_VALUES = 256
"""Label values from 0 that the bundles keep apart: they hold label maps as bytes."""


def check_label_maps(
    root: Path, scans: Sequence[ScanRecord], declared: Sequence[int] | None = None, progress: bool = False
) -> tuple[list[ScanRecord], dict[int, str]]:
    """Read the label maps of the cases that are kept, and leave out those that no bundle could learn from.

    Args:
        root: folder that the paths start from.
        scans: all cases; those with a reason or without a label are given back as they are.
        declared: the values that may occur; ``None`` for any.
        progress: whether to show a progress bar.

    Returns:
        The cases, some now left out because their label cannot be read, has values that are not whole or not declared,
        or is background only; and for each value that the others hold the first label map that holds it.
    """
    checked, values = [], dict[int, str]()
    for scan in tqdm(scans, "label maps", disable=None if progress else True):
        if scan.reason or not scan.label:
            checked.append(scan)
            continue
        try:
            found = _values(root, scan.label, declared)
        except (BadScanError, BadCaseError) as error:
            reason = f"label {error.reason}" if isinstance(error, BadScanError) else error.reason
            checked.append(replace(scan, split="", reason=reason, detail=f"{scan.label}: {error.detail}"))
            continue
        checked.append(scan)
        for value in found:
            values.setdefault(value, scan.label)
    return checked, values


def _values(root: Path, label: str, declared: Sequence[int] | None) -> list[int]:
    voxels = open_scan(os.path.normpath(root / label))[1]()
    found = label_values(label, voxels)
    if declared is not None and (others := [value for value in found if value not in (0, *declared)]):
        raise BadCaseError(label, "undeclared label", f"expected values of {list(declared)}, found {others[:5]}")
    if not any(found):
        raise BadCaseError(label, "no foreground", "expected voxels of a label, found background (0) only")
    return found


def name_labels(values: dict[int, str], names: dict[int, str] | None = None) -> dict[str, str]:
    """Name the values of a task, ``"background"`` first.

    Args:
        values: for each value that was found a label map that holds it.
        names: what the values mean, those that occur in no label map included; ``None`` makes up names.

    Returns:
        Names by value as text, as a data list has them.

    Raises:
        ValueError: When the values are not 0, 1, 2, ... without a gap, which is how the bundles number classes.

    Example:
        >>> name_labels({0: "a.nii", 1: "a.nii"}), name_labels({0: "a.nii", 1: "a.nii"}, {1: "liver"})
        ({'0': 'background', '1': 'label 1'}, {'0': 'background', '1': 'liver'})
    """
    named = {0: "background", **({value: f"label {value}" for value in values if value} if names is None else names)}
    listed = sorted(named)
    if listed != list(range(min(len(listed), MOST_VALUES))):
        odd = next(value for number, value in enumerate(listed) if value != number or value >= MOST_VALUES)
        where = f" (in {values[odd]})" if odd in values else ""
        raise ValueError(
            f"expected label values 0, 1, 2, ... without a gap, up to {MOST_VALUES - 1}, found {listed[:10]}{where}:"
            " renumber the label maps, or name values that happen to occur in none"
        )
    return {str(value): named[value] for value in listed}
