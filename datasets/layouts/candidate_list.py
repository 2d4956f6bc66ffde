# SPDX-License-Identifier: Apache-2.0
"""Scans and a candidate table put together into a data list; any CT folder with such a table is a data set."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..candidates.matching import match_scans
from ..candidates.table import CandidateTable, OnBadRow, read_candidates, voxels_of
from ..candidates.training_set import mark_outside
from ..datalist import DatasetSummary, ScanRecord
from ..io.scan_header import BadScanError, read_scan_header
from ..splits import RULE, SPLITS, add_split_arguments, split_patients


def list_candidates(
    root: str | Path,
    candidates: str | Path,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    on_bad_row: OnBadRow = "report",
    bad_rows: str | Path | None = None,
    progress: bool = False,
) -> DatasetSummary:
    """Put the scans of a folder, in any format, together with a candidate table, split by patient.

    A ``seriesuid`` of the table names a scan by its file name without suffix, its path, the name of its DICOM folder,
    or its DICOM series identifier. The patient is that of the table's column ``patient``, else the DICOM patient, else
    the scan itself.

    Args:
        root: folder of the scans.
        candidates: the table, see :func:`~models_genesis.datasets.candidates.table.read_candidates`.
        validation_fraction: share of the patients for validation.
        test_fraction: share of the patients for testing.
        seed: seed of the split.
        on_bad_row: ``"report"`` bad rows, or ``"raise"`` an error for the first.
        bad_rows: CSV file for the bad rows.
        progress: whether to show a progress bar.

    Returns:
        All scans, those left out with the reason; its data list names the table.

    Raises:
        FileNotFoundError: When the folder or the table is missing.
        ValueError: When no scan of the folder has candidates, or a share is out of range.
        BadRowError: With ``on_bad_row="raise"``.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of scans, found no such folder.")
    table = read_candidates(candidates)
    matched, ambiguous, others = match_scans(folder, table.series)
    if not matched:
        shown = ", ".join(table.series[:3])
        several = "; ".join(f"{name}: {', '.join(images)}" for name, images in sorted(ambiguous.items())[:3])
        found = f"several scans of one name ({several})" if ambiguous else f"none among {len(others)}"
        raise ValueError(f"{folder}: expected scans named as in {table.path} ({shown}), found {found}.")
    patients = _patients_of(table)
    scans = [
        _check(folder, matched[name], name, patients.get(name, ""))
        for name in tqdm(sorted(matched), "headers", disable=None if progress else True)
    ]
    for name, images in sorted(ambiguous.items()):
        detail = f"expected one scan of this name, found {', '.join(images)}"
        scans.append(ScanRecord(images[0], reason="ambiguous name", detail=detail, facts={"seriesuid": name}))
    scans += [ScanRecord(image, reason="no candidates", detail="the table has no such name") for image in others]
    kept = [scan.patient for scan in scans if not scan.reason]
    splits = split_patients(kept, validation_fraction, test_fraction, seed)
    scans = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in scans]
    header = {
        "name": folder.resolve().name,
        "description": f"candidates of {table.path.name} on the scans of {folder.resolve().name}, split by patient",
        "modality": {"0": "CT"},
        "split_rule": RULE,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
    }
    return add_candidates(DatasetSummary(folder, scans, (), header), table, on_bad_row=on_bad_row, bad_rows=bad_rows)


def _patients_of(table: CandidateTable) -> dict[str, str]:
    """Name the patient of each series; a series of several patients is split from none of them."""
    pairs = np.unique(
        np.stack([table.series_code, table.patient_code], 1)[table.good & (table.patient_code >= 0)], axis=0
    )
    if len(pairs) and (several := np.flatnonzero(np.bincount(pairs[:, 0]) > 1)).size:
        name = table.series[several[0]]
        found = ", ".join(table.patients[code] for series, code in pairs if series == several[0])
        raise ValueError(f"{table.path}: expected one patient for the series {name}, found {found}.")
    return {table.series[series]: table.patients[patient] for series, patient in pairs}


def _check(root: Path, image: str, name: str, patient: str) -> ScanRecord:
    try:
        header = read_scan_header(str(root / image))
    except BadScanError as error:
        return ScanRecord(image, patient, reason=error.reason, detail=error.detail, facts={"seriesuid": name})
    return ScanRecord(
        image, patient or header.patient or name, facts={"seriesuid": name}, **ScanRecord.geometry(header)
    )


def add_candidates(
    summary: DatasetSummary,
    table: CandidateTable,
    annotations: Mapping[str, Path] | None = None,
    on_bad_row: OnBadRow = "report",
    bad_rows: str | Path | None = None,
) -> DatasetSummary:
    """Say in a summary which candidates its scans have, after checking each row against the scans' headers.

    Args:
        summary: scans whose facts hold their ``seriesuid``.
        table: the table; rows of scans that are unknown, left out or too small for them are marked.
        annotations: other tables that the data list names, by their keys.
        on_bad_row: ``"report"`` bad rows, or ``"raise"`` an error for the first.
        bad_rows: CSV file for the bad rows.

    Returns:
        The summary, with candidates and positives of each scan, and notes on bad rows and on splits without positives.

    Raises:
        BadRowError: With ``on_bad_row="raise"``.
    """
    codes = {name: code for code, name in enumerate(table.series)}
    left_out = {
        str(scan.facts["seriesuid"]): f"{scan.reason}: {scan.detail}"
        for scan in summary.scans
        if scan.reason and "seriesuid" in scan.facts
    }
    known = {str(scan.facts["seriesuid"]): scan for scan in summary.scans if not scan.reason}
    order = np.argsort(table.series_code, kind="stable")
    starts = np.searchsorted(table.series_code[order], np.arange(len(table.series) + 1))
    for name, code in codes.items():
        rows = order[starts[code] : starts[code + 1]]
        if name in known:
            scan_header = read_scan_header(str(summary.root / known[name].name))
            rows = rows[table.good[rows]]
            mark_outside(table, rows, voxels_of(table.world[rows], scan_header.affine), scan_header.shape)
        elif name in left_out:
            table.mark(rows, "scan left out", {int(row): f"{name}: {left_out[name]}" for row in rows})
        else:
            table.mark(rows, "unknown seriesuid")
    if bad_rows is not None:
        table.write_bad_rows(bad_rows)
    table.check(on_bad_row)
    counts = [np.bincount(table.series_code[rows], minlength=len(codes)) for rows in _good_rows(table)]
    scans = []
    for scan in summary.scans:
        name = str(scan.facts.get("seriesuid", ""))
        numbers = [int(count[codes[name]]) if name in codes else 0 for count in counts]
        found = {} if scan.reason else {"candidates": sum(numbers), "positives": numbers[1]}
        scans.append(replace(scan, facts={**scan.facts, **found}))
    paths = {"candidates": table.path, **(annotations or {})}
    header = {
        **summary.header,
        **{key: relative_path(path, summary.root) for key, path in paths.items()},
        "left_out": left_out,
    }
    notes = [*summary.notes, table.summary().replace("\n", "\n  "), *_split_notes(scans)]
    return replace(summary, scans=scans, notes=notes, header=header)


def _good_rows(table: CandidateTable) -> list[np.ndarray]:
    """List the good rows of class 0 and of class 1."""
    return [np.flatnonzero(table.good & (table.label == label)) for label in (0, 1)]


def _split_notes(scans: list[ScanRecord]) -> list[str]:
    """Count candidates by split, and say where positives are missing."""
    notes = []
    for split in SPLITS:
        sums = Counter[str]()
        for scan in scans:
            if scan.split == split:
                sums.update({"scans": 1, **{key: scan.facts[key] for key in ("candidates", "positives")}})
        if sums["scans"]:
            notes.append(f"{split}: {sums['candidates']} candidates, {sums['positives']} positive")
            if not sums["positives"]:
                lacking = "nothing can be learned" if split == "training" else "AUC and sensitivity are undefined"
                notes[-1] += f"; without positives {lacking}"
    return notes


def relative_path(path: Path, root: Path) -> str:
    """Write a path relative to a folder that holds it, else as an absolute one."""
    path, root = path.absolute(), root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how bad rows are handled on a command line.

    Args:
        parser: where to.
    """
    parser.add_argument("--bad-rows", metavar="CSV", help="write the rows that cannot be used, with line and reason")
    parser.add_argument(
        "--on-bad-row", choices=["report", "raise"], default="report", help="go on after a bad row, or stop"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets candidates``."""
    parser.add_argument("--candidates", required=True, metavar="CSV", help="seriesuid,coordX,coordY,coordZ,class[,...]")
    add_split_arguments(parser, 0.2, 0.0)
    add_row_arguments(parser)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the folder and the table that the command line names."""
    names = ("candidates", "validation_fraction", "test_fraction", "seed", "on_bad_row", "bad_rows")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return list_candidates(arguments.root, progress=True, **options)
