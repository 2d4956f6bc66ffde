# SPDX-License-Identifier: Apache-2.0
"""RSPECT (RSNA-STR pulmonary embolism challenge): angiograms with labels of studies and slices, without places.

Its labels say whether a study shows an embolus, on which side, and on which slices, but not where on a slice. A
candidate needs a place, so none can be made of it: a slice's middle, or any dark spot on a positive slice, would be a
guess that training takes for truth. What it can do here: 7,279 angiograms to pretrain on, and the labels of studies,
which the data list carries, for a classification of whole studies.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.csv_file import read_csv
from ..io.scan_header import BadScanError, read_scan_header
from ..splits import RULE, add_split_arguments, split_patients

STUDY, SERIES, SLICE = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"
ON_SLICE = "pe_present_on_image"


@dataclass
class _Study:
    """Labels of one series."""

    labels: dict[str, int] = field(default_factory=dict)
    slices: int = 0
    positive: int = 0


def list_rspect(
    root: str | Path,
    table: str | Path | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> DatasetSummary:
    """List the studies of RSPECT with their labels, split by study.

    Args:
        root: folder with ``train.csv`` and ``train/STUDY/SERIES/*.dcm``.
        table: the table of labels, by default ``train.csv``.
        validation_fraction: share of the studies for validation.
        test_fraction: share of the studies for testing.
        seed: seed of the split.
        progress: whether to show a progress bar.

    Returns:
        All studies, those left out with the reason; the table has no patients, so a study stands for one. There is no
        candidate table.

    Raises:
        FileNotFoundError: When the table is missing.
        ValueError: When it lacks a column, or a share is out of range.
    """
    folder = Path(root)
    path = Path(table) if table is not None else folder / "train.csv"
    studies = _read_labels(path)
    scans = []
    for (study, series), found in tqdm(sorted(studies.items()), "studies", disable=None if progress else True):
        places = (f"train/{study}/{series}", f"{study}/{series}")
        shown = next((place for place in places if (folder / place).is_dir()), places[0])
        facts = {"seriesuid": series, **found.labels, "slices": found.slices, "slices_with_pe": found.positive}
        try:
            header = read_scan_header(str(folder / shown))
        except BadScanError as error:
            scans.append(ScanRecord(shown, study, reason=error.reason, detail=error.detail, facts=facts))
        else:
            scans.append(ScanRecord(shown, study, facts=facts, **ScanRecord.geometry(header)))
    kept = [scan.patient for scan in scans if not scan.reason]
    splits = split_patients(kept, validation_fraction, test_fraction, seed)
    scans = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in scans]
    notes = [
        "labels of studies and slices only: no place of an embolus is known, so no candidates can be made;"
        " use the scans to pretrain on, or the labels for whole studies"
    ]
    header_facts = {
        "name": "RSPECT",
        "description": "CT angiograms of the RSNA-STR challenge with labels of studies, split by study",
        "modality": {"0": "CT"},
        "split_rule": RULE,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
    }
    return DatasetSummary(folder, scans, notes, header_facts)


def _read_labels(path: Path) -> dict[tuple[str, str], _Study]:
    """Read the labels of each series; those of studies stand in every row of their slices."""
    studies: dict[tuple[str, str], _Study] = {}
    for row in read_csv(path, (STUDY, SERIES, SLICE, ON_SLICE), "the table of labels"):
        study = studies.setdefault((row[STUDY], row[SERIES]), _Study())
        study.slices += 1
        study.positive += row[ON_SLICE] == "1"
        for name, value in row.items():
            if name not in (STUDY, SERIES, SLICE, ON_SLICE) and value in ("0", "1"):
                study.labels[name] = int(value)
    return studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets rspect``."""
    parser.add_argument("--table", metavar="CSV", help="labels (default: train.csv in --root)")
    add_split_arguments(parser, 0.2, 0.0)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the RSPECT folder that the command line names."""
    names = ("table", "validation_fraction", "test_fraction", "seed")
    return list_rspect(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})
