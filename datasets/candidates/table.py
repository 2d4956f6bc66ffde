# SPDX-License-Identifier: Apache-2.0
"""Candidate tables, ``seriesuid,coordX,coordY,coordZ,class[,probability][,patient]``; bad rows are named, not dropped.

LUNA16's ``candidates_V2.csv`` and ``candidates.csv`` are such tables, and so is what any detector can write.
Coordinates are mm in the world of the scan, LPS: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..io.atomic_write import atomic_text
from ..io.csv_file import safe_cell, without_nul

logger = logging.getLogger(__name__)

COORDINATES = ("coordX", "coordY", "coordZ")
REQUIRED = ("seriesuid", *COORDINATES)

REASONS = (
    "",
    "malformed row",
    "bad coordinate",
    "bad class",
    "unknown seriesuid",
    "scan left out",
    "duplicate",
    "outside its scan",
    "scan cannot be read",
)
"""Why a row is bad; ``""`` for a good one. :attr:`CandidateTable.reason` holds the index in this list."""

OnBadRow = Literal["report", "raise"]


class BadRowError(ValueError):
    """A row that cannot be used; the message names the file, the line, what was expected and what was found."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why.

    Attributes:
        file: the table.
        line: line in the file, the header's is 1.
        row: number of the row, the first below the header is 0.
        reason: one of :data:`REASONS`.
        detail: what was expected and what was found.
    """

    file: str
    line: int
    row: int
    reason: str
    detail: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.file}, line {self.line}: {self.reason}: {self.detail}"


@dataclass(frozen=True)
class CandidateTable:
    """All rows of a table in their order, good and bad.

    Attributes:
        path: the file.
        columns: names of its columns.
        series: the different series identifiers.
        series_code: (N,) index in ``series``, -1 where the row names none.
        world: (N, 3) mm, LPS; NaN where bad.
        label: (N,) class 0 or 1, -1 where none is given.
        probability: (N,) NaN where none is given.
        patients: the different names of patients; empty without such a column.
        patient_code: (N,) index in ``patients``, -1 where none is given.
        line: (N,) line in the file.
        reason: (N,) index in :data:`REASONS`, 0 for good rows; :meth:`mark` changes it.
        duplicate_of: (N,) the first row at the same place, -1 where there is none.
        details: what was found, for the rows where the columns do not tell it.
    """

    path: Path
    columns: tuple[str, ...]
    series: tuple[str, ...]
    series_code: NDArray[np.int32]
    world: NDArray[np.float64]
    label: NDArray[np.int8]
    probability: NDArray[np.float64]
    patients: tuple[str, ...]
    patient_code: NDArray[np.int32]
    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    duplicate_of: NDArray[np.int64]
    details: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.line)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which rows can be used."""
        return self.reason == 0

    def mark(self, rows: ArrayLike, reason: str, details: Mapping[int, str] | None = None) -> None:
        """Give rows that were good so far a reason why they are not.

        Args:
            rows: their numbers.
            reason: one of :data:`REASONS`.
            details: what was expected and what was found, by row.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        numbers = numbers[self.reason[numbers] == 0]
        self.reason[numbers] = REASONS.index(reason)
        if details:
            self.details.update({int(row): details[int(row)] for row in numbers if int(row) in details})

    def bad_rows(self) -> Iterator[BadRow]:
        """Go through the bad rows in their order."""
        return (self._bad_row(int(row)) for row in np.flatnonzero(self.reason))

    def _bad_row(self, row: int) -> BadRow:
        reason = REASONS[self.reason[row]]
        detail = self.details.get(row, "")
        if reason == "duplicate":
            first = int(self.duplicate_of[row])
            detail = f"expected each place once, found that of line {self.line[first]}"
            if self.label[first] != self.label[row]:
                detail += f", of class {self.label[first]} there and {self.label[row]} here"
        elif not detail and self.series_code[row] >= 0:
            detail = self.series[self.series_code[row]]
        # bytes that are no UTF-8 become \\udc.., which a log and a report can hold
        printable = detail.encode("utf-8", errors="backslashreplace").decode("utf-8")
        return BadRow(str(self.path), int(self.line[row]), row, reason, printable)

    def counts(self) -> dict[str, int]:
        """Count the bad rows by reason, those that occur."""
        numbers = np.bincount(self.reason, minlength=len(REASONS))
        return {reason: int(number) for reason, number in zip(REASONS, numbers, strict=True) if reason and number}

    def summary(self, names: int = 3) -> str:
        """Say how many rows are good, and of the bad ones how many and which first, by reason.

        Args:
            names: rows named of each reason.
        """
        labels = self.label[self.good]
        found = f"{int((labels == 1).sum())} positive, {int((labels == 0).sum())} negative"
        if (labels < 0).any():
            found += f", {int((labels < 0).sum())} without class"
        lines = [f"{self.path}: {len(labels)} of {len(self)} rows are good ({found})"]
        for reason, number in self.counts().items():
            lines.append(f"  {number} {reason}")
            rows = np.flatnonzero(self.reason == REASONS.index(reason))[:names]
            lines += [f"      line {bad.line}: {bad.detail}" for bad in map(self._bad_row, rows.tolist())]
        return "\n".join(lines)

    def write_bad_rows(self, path: str | Path) -> int:
        """Write the bad rows as CSV, whole or not at all.

        Args:
            path: the file; it holds its header alone where all rows are good.

        Returns:
            Number of bad rows.
        """
        with atomic_text(path, errors="backslashreplace") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "line", "row", "reason", "detail"))
            for bad in self.bad_rows():
                writer.writerow(map(safe_cell, (bad.file, bad.line, bad.row, bad.reason, bad.detail)))
        return int((self.reason > 0).sum())

    def check(self, on_bad_row: OnBadRow) -> None:
        """Log what was bad, or raise for it.

        Args:
            on_bad_row: ``"report"`` or ``"raise"``.

        Raises:
            BadRowError: For the first bad row, with the number of all.
        """
        if not self.reason.any():
            return
        if on_bad_row == "raise":
            first = next(self.bad_rows())
            raise BadRowError(f"{first} ({int((self.reason > 0).sum())} bad rows in all)")
        logger.warning("%s", self.summary())


def read_candidates(path: str | Path, with_class: bool = True, on_bad_row: OnBadRow = "report") -> CandidateTable:
    """Read a candidate table.

    Each line is a row, blank lines aside, so that a broken one harms no other. Rows are bad when they have another
    number of fields than the header, coordinates that are no finite numbers, a class other than 0 and 1, or the place
    of an earlier row. Columns of other names are allowed.

    Args:
        path: CSV file, UTF-8, with a header.
        with_class: whether a class is needed; without, rows may lack it.
        on_bad_row: ``"report"`` bad rows in the log and in the table, or ``"raise"`` an error for the first.

    Returns:
        The table.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When a column is missing or named twice, or there is no row.
        BadRowError: With ``on_bad_row="raise"``.
    """
    if on_bad_row not in ("report", "raise"):
        raise ValueError(f"on_bad_row must be 'report' or 'raise', got {on_bad_row!r}.")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a candidate table, found no such file.")
    rows = read_rows(file)
    columns = tuple(name.strip() for name in next(rows, (0, []))[1])
    expected = REQUIRED + (("class",) if with_class else ())
    missing = [name for name in expected if columns.count(name) != 1]
    if missing:
        raise ValueError(
            f"{file}: expected each of the columns {', '.join(expected)} once, found {', '.join(columns)}."
        )
    reader = _Reader(columns, with_class)
    for line, fields in rows:
        reader.add(line, fields)
    if not reader.lines:
        raise ValueError(f"{file}: expected candidates, found a header alone.")
    table = reader.table(file)
    table.check(on_bad_row)
    return table


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Go through the lines of a CSV file that are not blank, the header included.

    Args:
        path: the file; bytes that are no UTF-8 stay as they are (``surrogateescape``).

    Yields:
        Line number from 1, and its fields.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for line, text in enumerate(stream, 1):
            text = text.rstrip("\r\n")
            if "\0" in text:  # no table has it, and Python 3.10 cannot write it: the line stays whole, a malformed row
                yield line, [without_nul(text)]
            elif text.strip():
                yield line, _quoted_fields(text) if '"' in text else text.split(",")


def _quoted_fields(text: str) -> list[str]:
    """Split a line with quotes; one that cannot be split stays whole, which makes it a malformed row."""
    if len(text) > csv.field_size_limit():
        csv.field_size_limit(len(text))
    try:
        return next(csv.reader([text]))
    except csv.Error:
        return [text]


class _Reader:
    """Columns that grow row by row."""

    def __init__(self, columns: Sequence[str], with_class: bool) -> None:
        self.columns = tuple(columns)
        self.with_class = with_class
        column = {
            name: columns.index(name) for name in (*REQUIRED, "class", "probability", "patient") if name in columns
        }
        self.series_column, *self.world_columns = (column[name] for name in REQUIRED)
        self.class_column, self.probability_column = column.get("class"), column.get("probability")
        self.patient_column = column.get("patient")
        self.series: dict[str, int] = {}
        self.patients: dict[str, int] = {}
        self.lines: list[int] = []
        self.codes: list[int] = []
        self.patient_codes: list[int] = []
        self.world: list[tuple[float, float, float]] = []
        self.labels: list[int] = []
        self.probabilities: list[float] = []
        self.bad: dict[int, tuple[str, str]] = {}

    def add(self, line: int, fields: list[str]) -> None:
        """Take in a row."""
        row = len(self.lines)
        self.lines.append(line)
        if len(fields) != len(self.columns):
            self.bad[row] = ("malformed row", f"expected {len(self.columns)} fields, found {len(fields)}")
            self._append(-1, (np.nan,) * 3, -1, np.nan, -1)
            return
        name = fields[self.series_column].strip()
        code = self.series.setdefault(name, len(self.series)) if name else -1
        if not name:
            self.bad[row] = ("malformed row", "expected a seriesuid, found none")
        x, y, z = (_number(fields[column]) for column in self.world_columns)
        # a sum that is finite has finite terms
        if not abs(x + y + z) < np.inf:
            found = ", ".join(fields[column] for column in self.world_columns)
            self.bad.setdefault(row, ("bad coordinate", f"expected three finite numbers in mm, found {found}"))
        label = self._label(row, "" if self.class_column is None else fields[self.class_column])
        probability = np.nan if self.probability_column is None else _number(fields[self.probability_column])
        patient = "" if self.patient_column is None else fields[self.patient_column].strip()
        patient_code = self.patients.setdefault(patient, len(self.patients)) if patient else -1
        self._append(code, (x, y, z), label, probability, patient_code)

    def _label(self, row: int, text: str) -> int:
        label = _LABELS.get(text)
        if label is None:
            number = _number(text)
            label = int(number) if number in (0, 1) else -1
        if label < 0 and self.with_class:
            self.bad.setdefault(row, ("bad class", f"expected 0 or 1, found {text!r}"))
        return label

    def _append(self, code: int, world: tuple[float, ...], label: int, probability: float, patient: int) -> None:
        self.codes.append(code)
        self.world.append((world[0], world[1], world[2]))
        self.labels.append(label)
        self.probabilities.append(probability)
        self.patient_codes.append(patient)

    def table(self, path: Path) -> CandidateTable:
        """Make the table, with the rows that repeat a place marked."""
        reason = np.zeros(len(self.lines), np.uint8)
        for row, (why, _) in self.bad.items():
            reason[row] = REASONS.index(why)
        world, codes = np.array(self.world, np.float64), np.array(self.codes, np.int32)
        duplicate_of = _duplicates(codes, world, reason == 0)
        reason[duplicate_of >= 0] = REASONS.index("duplicate")
        return CandidateTable(
            path=path,
            columns=self.columns,
            series=tuple(self.series),
            series_code=codes,
            world=world,
            label=np.array(self.labels, np.int8),
            probability=np.array(self.probabilities, np.float64),
            patients=tuple(self.patients),
            patient_code=np.array(self.patient_codes, np.int32),
            line=np.array(self.lines, np.int64),
            reason=reason,
            duplicate_of=duplicate_of,
            details={row: detail for row, (_, detail) in self.bad.items()},
        )


_LABELS = {"0": 0, "1": 1}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _duplicates(codes: NDArray[np.int32], world: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Name for each row the first good one of the same series and place, -1 where it is that one itself."""
    found = np.full(len(codes), -1, np.int64)
    rows = np.flatnonzero(good)
    if len(rows) < 2:
        return found
    keys = (*world[rows].T, codes[rows])
    order = np.lexsort(keys)  # stable: of equal ones the first row comes first
    same = np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)
    starts = np.flatnonzero(np.concatenate(([True], ~same)))
    first = np.repeat(rows[order][starts], np.diff(np.append(starts, len(rows))))
    repeated = first != rows[order]
    found[rows[order][repeated]] = first[repeated]
    return found


def voxels_of(world: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """Find the place of world points in a scan.

    Args:
        world: (N, 3) mm, **LPS**, as the tables give them.
        affine: (4, 4), voxels to mm, **RAS**, as MONAI and nibabel give it.

    Returns:
        (N, 3) voxels, not rounded.

    Example:
        >>> voxels_of([[10.0, 0.0, 4.0]], [[-2, 0, 0, 0], [0, -2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        array([[5., 0., 2.]])
    """
    ras = np.asarray(world, np.float64) * (-1, -1, 1)
    inverse = np.linalg.inv(np.asarray(affine, np.float64))
    # the added zero turns minus zero into zero
    return np.asarray(ras @ inverse[:3, :3].T + inverse[:3, 3] + 0.0)


def inside(voxels: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Say which voxels of :func:`voxels_of` lie in a scan of a shape, up to the outer faces of its voxels.

    Example:
        >>> inside(np.array([[-0.4, 0, 3.4], [-0.6, 0, 0], [0, 0, 3.6]]), (4, 4, 4)).tolist()
        [True, False, False]
    """
    return np.asarray(((voxels >= -0.5) & (voxels <= np.asarray(shape) - 0.5)).all(1))
