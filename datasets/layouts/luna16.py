# SPDX-License-Identifier: Apache-2.0
"""The raw layout of LUNA16: ten folders ``subset0`` to ``subset9`` of MetaImage files, split by fold."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord, smaller_than
from ..io.file_walk import find_files, walk_folders
from ..io.scan_header import BadScanError, read_scan_header
from .fold_column import parse_fold_names

FOLDS: Mapping[str, tuple[int, ...]] = {"training": (0, 1, 2, 3, 4), "validation": (5, 6), "testing": (7, 8, 9)}
"""The paper's folds: 0-4 train, 5-6 validate, 7-9 are kept for the target tasks (arXiv:2004.07882)."""


def parse_folds(text: str) -> tuple[int, ...]:
    """Read fold numbers.

    Example:
        >>> parse_folds("0-2,5"), parse_folds("")
        ((0, 1, 2, 5), ())
    """
    names = parse_fold_names(text.replace(" ", ""))
    if not all(re.fullmatch(r"\d", name) for name in names):
        raise ValueError(f"expected folds as '0-4' or '0,2,5', found {text!r}")
    return tuple(sorted(map(int, names)))


def find_subsets(root: Path) -> dict[int, Path]:
    """Find the folders ``subset0`` to ``subset9`` below a folder, by fold."""
    folders = (
        sorted(path for path, _ in walk_folders(root) if re.fullmatch(r"subset\d", path.name)) if root.is_dir() else []
    )
    return {int(path.name[-1]): path for path in reversed(folders)}


def list_luna16(
    root: str | Path,
    training: Sequence[int] = FOLDS["training"],
    validation: Sequence[int] = FOLDS["validation"],
    testing: Sequence[int] = FOLDS["testing"],
    min_size: Sequence[int] = (1, 1, 1),
    progress: bool = False,
) -> DatasetSummary:
    """Find the scans of LUNA16, read their headers, and split them by fold.

    Args:
        root: folder with ``subset0`` to ``subset9``; the folders may lie deeper.
        training: folds to train on.
        validation: folds to validate on.
        testing: folds kept for testing.
        min_size: least voxels to the right, forward and upward.
        progress: whether to show a progress bar.

    Returns:
        All scans of the chosen folds, those left out with the reason. The challenge has one scan a patient, so the
        series identifier stands for the patient.

    Raises:
        FileNotFoundError: When the folder or all of its subsets are missing.
        ValueError: When a fold is in two splits.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of LUNA16, found no such folder.")
    split_of = {fold: "training" for fold in training}
    for split, folds in (("validation", validation), ("testing", testing)):
        for fold in folds:
            if split_of.setdefault(fold, split) != split:
                raise ValueError(f"expected each fold in one split, found fold {fold} in {split_of[fold]} and {split}.")
    subsets = find_subsets(folder)
    if not subsets:
        raise FileNotFoundError(f"{folder}: expected the folders subset0 to subset9 of LUNA16, found none of them.")
    images = [(path, split_of[fold]) for fold in sorted(split_of) if fold in subsets for path in _images(subsets[fold])]
    shown = tqdm(images, "headers", disable=None if progress else True)
    scans = [_check(folder, path, split, min_size) for path, split in shown]
    missing = [str(fold) for fold in sorted(split_of) if fold not in subsets]
    notes = [f"subsets missing below {folder}: {', '.join(missing)}"] if missing else []
    notes += [
        f"subset{fold} holds no .mhd file"
        for fold in sorted(split_of)
        if fold in subsets and not _images(subsets[fold])
    ]
    header = {
        "name": "LUNA16",
        "description": "CT of LUNA16 (luna16.grand-challenge.org), split by its folds",
        "modality": {"0": "CT"},
        "split_rule": {"training": list(training), "validation": list(validation), "testing": list(testing)},
    }
    return DatasetSummary(folder, scans, notes, header)


def _images(subset: Path) -> list[Path]:
    return find_files(subset, ".mhd")


def _check(root: Path, path: Path, split: str, min_size: Sequence[int]) -> ScanRecord:
    image = path.relative_to(root).as_posix()
    try:
        header = read_scan_header(str(path))
    except BadScanError as error:
        return ScanRecord(image, path.stem, reason=error.reason, detail=error.detail)
    if detail := smaller_than(header.ras_shape, min_size):
        return ScanRecord(image, path.stem, reason="too small", detail=detail, **ScanRecord.geometry(header))
    return ScanRecord(image, path.stem, split, **ScanRecord.geometry(header))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets luna16``."""
    for split, option in (("training", "--train"), ("validation", "--validation"), ("testing", "--test")):
        parser.add_argument(
            option, dest=split, type=parse_folds, default=FOLDS[split], metavar="FOLDS", help=f"folds for {split}"
        )


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the LUNA16 folder that the command line names."""
    folds = {split: getattr(arguments, split) for split in FOLDS}
    return list_luna16(arguments.root, progress=True, **folds)
