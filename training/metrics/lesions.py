# SPDX-License-Identifier: Apache-2.0
"""Annotated lesions, and what the candidates of a split count for next to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...datasets.candidates.split import CandidateSet
from ...datasets.candidates.table import COORDINATES, REASONS, CandidateTable, read_rows
from .froc import ScanDetections, match_scan_detections

__all__ = ["HIT_RULES", "Lesions", "hit_rule", "match_detections", "read_lesions"]

FloatArray = NDArray[np.float64]

LESION_COLUMN = "lesion"
"""Column of a candidate table that names the lesion of a positive candidate within its scan."""

HIT_RULES = {
    "lesion": "a positive candidate hits the lesion that its row names; several on one lesion count once; a lesion of "
    "the annotations that no candidate names is missed; negative candidates are false positives",
    "radius": "LUNA16's: a candidate nearer to a lesion's centre than half of its diameter hits it; several on one "
    "lesion count once; candidates on excluded findings are ignored; all others are false positives; a lesion without "
    "a candidate is missed; the 100 most suspicious candidates of a scan count",
    "candidate": "each positive candidate is a lesion of its own, so that lesions without a candidate do not count; "
    "negative candidates are false positives",
}
"""What counts as a hit, in words, written into each report."""


@dataclass(frozen=True)
class Lesions:
    """Lesions of many scans.

    Args:
        series: (L,) seriesuid of each.
        world: (L, 3) centre, mm, LPS.
        diameter_mm: (L,).
        name: (L,) name within its scan, "" where the file gives none.
    """

    series: tuple[str, ...]
    world: FloatArray
    diameter_mm: FloatArray
    name: tuple[str, ...]

    def of(self, seriesuid: str) -> tuple[FloatArray, FloatArray, list[str]]:
        """Give centres, diameters and names of one scan's lesions."""
        chosen = [number for number, series in enumerate(self.series) if series == seriesuid]
        return self.world[chosen], self.diameter_mm[chosen], [self.name[number] for number in chosen]


def read_lesions(path: str | Path) -> Lesions:
    """Read LUNA16's ``annotations.csv`` or ``annotations_excluded.csv``, or a file of the same columns.

    Args:
        path: CSV with ``seriesuid,coordX,coordY,coordZ,diameter_mm`` and optionally ``lesion``, mm in LPS.

    Returns:
        The lesions.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a column is missing or a row is no lesion; the truth of a measurement must be whole.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected annotations, found no such file")
    lines = read_rows(file)
    columns = [name.strip() for name in next(lines, (0, []))[1]]
    wanted = ("seriesuid", *COORDINATES, "diameter_mm")
    if missing := [name for name in wanted if name not in columns]:
        raise ValueError(f"{file}: expected the columns {', '.join(wanted)}, found {columns} without {missing}")
    column = {name: columns.index(name) for name in columns}
    rows = []
    for line, fields in lines:
        try:
            numbers = [float(fields[column[name]]) for name in wanted[1:]]
        except (ValueError, IndexError):
            numbers = [math.nan]
        if len(fields) != len(columns) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{file}, line {line}: expected a seriesuid and four finite numbers, found {fields}")
        name = fields[column[LESION_COLUMN]].strip() if LESION_COLUMN in column else ""
        rows.append((fields[column["seriesuid"]].strip(), numbers, name))
    table = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4)
    return Lesions(tuple(row[0] for row in rows), table[:, :3], table[:, 3], tuple(row[2] for row in rows))


def hit_rule(data: CandidateSet) -> str:
    """Choose the rule that the data allow, one of :data:`HIT_RULES`.

    Args:
        data: scans, candidates and, where there are any, annotations.

    Returns:
        ``"lesion"`` where the candidates name their lesions, else ``"radius"`` where there are annotations, else
        ``"candidate"``.
    """
    if LESION_COLUMN in data.table.columns:
        return "lesion"
    return "radius" if data.annotations is not None else "candidate"


def match_detections(data: CandidateSet, scores: ArrayLike) -> tuple[list[str], list[ScanDetections]]:
    """Decide for all candidates of a split what they count for.

    Args:
        data: scans and candidates; of a scan without candidates all lesions are missed.
        scores: (N,) for all rows of the table, NaN where a candidate has none; it counts as not proposed then.

    Returns:
        Names of the scans and what their candidates count for. Scans that could not be read are left out.

    Raises:
        ValueError: when candidates name lesions that the annotations do not, or annotations none; the lesions would
            count as missed.
    """
    values = np.asarray(scores, dtype=np.float64)
    rule = hit_rule(data)
    lesions = read_lesions(data.annotations) if data.annotations is not None else None
    excluded = read_lesions(data.annotations_excluded) if data.annotations_excluded is not None else None
    names = _lesion_names(data.table) if rule == "lesion" else None
    if names is not None and lesions is not None:
        _check_names(data, names, lesions)
    unread = set(data.scan[data.table.reason == REASONS.index("scan cannot be read")].tolist())
    series, detections = [], []
    for number, (entry, rows) in enumerate(zip(data.data, data.rows, strict=True)):
        if number in unread:
            continue
        rows = rows[np.isfinite(values[rows])]
        seriesuid = str(entry["seriesuid"])
        series.append(seriesuid)
        if rule == "radius" and lesions is not None:
            centers, diameters, _ = lesions.of(seriesuid)
            others = excluded.of(seriesuid)[:2] if excluded is not None else ((), ())
            detections.append(match_scan_detections(data.table.world[rows], values[rows], centers, diameters, *others))
            continue
        groups = [str(row) if names is None else names[row] for row in rows.tolist()]
        listed = lesions.of(seriesuid)[2] if lesions is not None and names is not None else []
        detections.append(_match_by_name(values[rows], data.table.label[rows], groups, listed))
    return series, detections


def _check_names(data: CandidateSet, names: Sequence[str], lesions: Lesions) -> None:
    """Refuse names of lesions that the annotations do not have, such as the ``1.0`` that a table program made of ``1``.

    A positive candidate without a name stays a lesion of its own.
    """
    for entry, rows in zip(data.data, data.rows, strict=True):
        seriesuid = str(entry["seriesuid"])
        listed = lesions.of(seriesuid)[2]
        if "" in listed or len(set(listed)) < len(listed):
            raise ValueError(
                f"{data.annotations}: expected a name of its own for each lesion of {seriesuid} in the column"
                f" {LESION_COLUMN}, since {data.table.path} has that column; found {listed}"
            )
        for row in rows[data.table.label[rows] == 1].tolist():
            if names[row] not in (*listed, _own_name(row)):
                raise ValueError(
                    f"{data.table.path}: expected each positive candidate of {seriesuid} to name one of the lesions of"
                    f" {data.annotations}, {listed}; found {names[row]!r}"
                )


def _match_by_name(scores: FloatArray, labels: NDArray, groups: Sequence[str], listed: Sequence[str]) -> ScanDetections:
    found = dict.fromkeys(listed, -math.inf)
    positive = labels == 1
    for score, group in zip(scores[positive].tolist(), np.array(groups, dtype=object)[positive], strict=True):
        found[group] = max(score, found.get(group, -math.inf))
    best = np.array(list(found.values()), dtype=np.float64)
    hit = np.isfinite(best)
    repeated = int(positive.sum()) - int(hit.sum())
    return ScanDetections(np.where(hit, best, np.nan), scores[labels == 0], repeated=repeated)


def _lesion_names(table: CandidateTable) -> list[str]:
    """Read the column of lesions; a positive row without a name is a lesion of its own."""
    lines = read_rows(table.path)
    next(lines)
    column = table.columns.index(LESION_COLUMN)
    names = [fields[column].strip() if len(fields) == len(table.columns) else "" for _, fields in lines]
    return [name or _own_name(row) for row, name in enumerate(names)]


def _own_name(row: int) -> str:
    return f"row {row}"
