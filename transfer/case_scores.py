# SPDX-License-Identifier: Apache-2.0
"""Scores of each case, from the tables that a bundle's evaluation writes."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.candidates.table import read_candidates


def region_scores(
    path: str | Path, column: str, dataset_dir: str | Path, entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Read ``segmentation.csv``: a row for each case, its score the mean over the regions that are defined.

    Args:
        path: the file.
        column: the score, such as ``"dice"``.
        dataset_dir: folder of the data; cases are named relative to it, so that machines agree.
        entries: the cases that must be there, with their patients.

    Returns:
        Rows of ``case``, ``patient``, ``score`` and one column for each region.

    Raises:
        ValueError: when the file lacks the column or a case, has another case, or no region of a case is defined.
    """
    regions: dict[str, dict[str, float]] = defaultdict(dict)
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: expected the column {column!r}, found {reader.fieldnames}")
        for line in reader:
            value = float(line[column]) if line[column] else math.nan
            regions[_relative(line["case"], dataset_dir)][line["region"]] = value
    patients = {_relative(_image(entry), dataset_dir): str(entry["patient"]) for entry in entries}
    if regions.keys() != patients.keys():
        odd = sorted(set(regions) ^ set(patients))
        raise ValueError(
            f"{path}: expected the {len(patients)} cases of the test, found {len(regions)}; odd: {odd[:3]}"
        )
    rows = []
    for case, scores in sorted(regions.items()):
        defined = [score for score in scores.values() if not math.isnan(score)]
        if not defined:
            raise ValueError(f"{path}: expected {column} of a region of {case}, found none that is defined")
        texts = {name: "" if math.isnan(score) else score for name, score in scores.items()}
        rows.append({"case": case, "patient": patients[case], "score": float(np.mean(defined)), **texts})
    return rows


def candidate_scores(path: str | Path, table: str | Path, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read ``predictions.csv`` together with the classes of the candidates.

    Args:
        path: the file.
        table: the candidate table.
        entries: the scans of the test, with their patients.

    Returns:
        Rows of ``case``, ``patient``, ``score`` and ``label``.

    Raises:
        ValueError: when a candidate of the test has no prediction.
    """
    found: dict[tuple[str, ...], float] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            place = (line["seriesuid"], *(repr(float(line[side])) for side in ("coordX", "coordY", "coordZ")))
            found[place] = float(line["probability"])
    patients = {str(entry["seriesuid"]): str(entry["patient"]) for entry in entries}
    candidates = read_candidates(table, True)
    rows, missing = [], []
    for row in np.flatnonzero(candidates.good).tolist():
        series = candidates.series[candidates.series_code[row]]
        if series not in patients:
            continue
        place = (series, *(repr(side) for side in candidates.world[row].tolist()))
        if place not in found:
            missing.append(series)
            continue
        case, label = f"{series}:{int(candidates.line[row])}", int(candidates.label[row])
        rows.append({"case": case, "patient": patients[series], "score": found[place], "label": label})
    if missing or not rows:
        raise ValueError(f"{path}: expected a prediction for each candidate of the test, found none for {missing[:3]}")
    return sorted(rows, key=lambda row: str(row["case"]))


def case_columns(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of ``cases.csv``."""
    return list(dict.fromkeys(column for case in cases for column in case))


def _image(entry: Mapping[str, Any]) -> str:
    image = entry["image"]
    return str(image if isinstance(image, str) else image[0])


def _relative(case: str, dataset_dir: str | Path) -> str:
    root = Path(dataset_dir).absolute()
    return Path(os.path.relpath(os.path.normpath(root / case), os.path.normpath(root))).as_posix()
