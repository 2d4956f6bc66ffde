# SPDX-License-Identifier: Apache-2.0
"""LUNA16's candidates on its scans: the paper's folds, one of the challenge's ten, or a split by patient."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..candidates.table import OnBadRow, read_candidates
from ..datalist import DatasetSummary
from ..io.file_walk import find_files
from ..splits import RULE, add_split_arguments, split_patients
from .candidate_list import add_candidates, add_row_arguments
from .luna16 import FOLDS, find_subsets, list_luna16, parse_folds

TABLES = ("candidates_V2.csv", "candidates.csv")
"""Names of the challenge's tables, the newer first."""

ANNOTATIONS = {"annotations": "annotations.csv", "annotations_excluded": "annotations_excluded.csv"}


def ten_fold(fold: int) -> dict[str, tuple[int, ...]]:
    """Split the subsets as the challenge's cross-validation does: one is tested, the others are for training.

    Of those the next one (after 9 comes 0) validates, for early stopping and calibration; the challenge leaves open how
    its nine training subsets are used.

    Args:
        fold: the tested subset, 0 to 9.

    Returns:
        Subsets of each split.

    Raises:
        ValueError: When there is no such fold.

    Example:
        >>> ten_fold(9)
        {'training': (1, 2, 3, 4, 5, 6, 7, 8), 'validation': (0,), 'testing': (9,)}
    """
    if not 0 <= fold <= 9:
        raise ValueError(f"fold must lie in 0 to 9, got {fold}.")
    validation = (fold + 1) % 10
    training = tuple(number for number in range(10) if number not in (fold, validation))
    return {"training": training, "validation": (validation,), "testing": (fold,)}


def list_luna16_candidates(
    root: str | Path,
    folds: dict[str, tuple[int, ...]] | None = None,
    by_patient: tuple[float, float, int] | None = None,
    candidates: str | Path | None = None,
    on_bad_row: OnBadRow = "report",
    bad_rows: str | Path | None = None,
    progress: bool = False,
) -> DatasetSummary:
    """Find the scans of LUNA16 and their candidates.

    Args:
        root: folder with ``subset0`` to ``subset9``, ``candidates_V2.csv`` or ``candidates.csv``, ``annotations.csv``
            and ``annotations_excluded.csv``; all of them may lie deeper, the annotations may be missing.
        folds: subsets of each split, by default the paper's (arXiv:2004.07882); see also :func:`ten_fold`.
        by_patient: shares of validation and testing, and seed, of a split by patient instead, for a part of the data
            that holds too few subsets.
        candidates: the table, by default the newer one that is there.
        on_bad_row: ``"report"`` bad rows, or ``"raise"`` an error for the first.
        bad_rows: CSV file for the bad rows.
        progress: whether to show a progress bar.

    Returns:
        All scans of the chosen folds, those left out with the reason; the data list names the tables.

    Raises:
        FileNotFoundError: When the folder, its subsets or the table are missing.
        ValueError: When a file is not a table of candidates, or a fold is in two splits.
        BadRowError: With ``on_bad_row="raise"``.
    """
    folder = Path(root)
    if by_patient is not None:
        folds = {"training": tuple(find_subsets(folder)), "validation": (), "testing": ()}
    found = list_luna16(folder, **(folds or dict(FOLDS)), progress=progress)
    table = read_candidates(candidates if candidates is not None else _find_table(folder))
    if by_patient is not None:
        found = _split(found, *by_patient)
    scans = [replace(scan, facts={**scan.facts, "seriesuid": scan.patient}) for scan in found.scans]
    description = f"candidates of {table.path.name} on LUNA16 (luna16.grand-challenge.org)"
    found = replace(found, scans=scans, header={**found.header, "description": description})
    annotations = {key: path for key, name in ANNOTATIONS.items() if (path := _find(folder, name))}
    notes = [f"{ANNOTATIONS[key]} is missing: no FROC" for key in ANNOTATIONS if key not in annotations]
    found = replace(found, notes=[*found.notes, *notes])
    return add_candidates(found, table, annotations, on_bad_row, bad_rows)


def _split(summary: DatasetSummary, validation_fraction: float, test_fraction: float, seed: int) -> DatasetSummary:
    patients = [scan.patient for scan in summary.scans if not scan.reason]
    splits = split_patients(patients, validation_fraction, test_fraction, seed)
    scans = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in summary.scans]
    rule = {"split_rule": RULE, "seed": seed}
    shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    return replace(summary, scans=scans, header={**summary.header, **rule, **shares})


def _find_table(root: Path) -> Path:
    for name in TABLES:
        path = _find(root, name)
        if path is not None:
            return path
    raise FileNotFoundError(f"{root}: expected {' or '.join(TABLES)}, found neither.")


def _find(root: Path, name: str) -> Path | None:
    """Find a file in a folder, or below it."""
    found = (path for path in find_files(root, name) if path.name == name)
    return next(iter(sorted(found, key=lambda path: (len(path.parts), path))), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets luna16-candidates``."""
    parser.add_argument("--candidates", metavar="CSV", help=f"the table (default: {' or '.join(TABLES)})")
    for split, option in (("training", "--train"), ("validation", "--validation"), ("testing", "--test")):
        parser.add_argument(
            option, dest=split, type=parse_folds, default=FOLDS[split], metavar="FOLDS", help=f"folds for {split}"
        )
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--fold", type=int, metavar="K", help="test subset K, validate on the next, train on the others")
    rule.add_argument("--by-patient", action="store_true", help="split by patient, for a part of the data")
    add_split_arguments(parser, 0.2, 0.2)
    add_row_arguments(parser)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the LUNA16 folder that the command line names, with its candidates."""
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("candidates", "on_bad_row", "bad_rows")}
    if arguments.by_patient:
        options["by_patient"] = (arguments.validation_fraction, arguments.test_fraction, arguments.seed)
    elif arguments.fold is not None:
        options["folds"] = ten_fold(arguments.fold)
    else:
        options["folds"] = {split: getattr(arguments, split) for split in FOLDS}
    return list_luna16_candidates(arguments.root, progress=True, **options)
