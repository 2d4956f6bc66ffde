# SPDX-License-Identifier: Apache-2.0
"""Candidate tables, ``seriesuid,coordX,coordY,coordZ,class[,probability][,patient]``; bad rows are named, not dropped.

LUNA16's ``candidates_V2.csv`` and ``candidates.csv`` are such tables, and so is what any detector can write.
Coordinates are mm in the world of the scan, LPS: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

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

BLOCK = 1024
"""Lines of a table that are read at once."""


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
    with _open(file) as stream:
        reader = _Reader(file, stream, with_class)
        while lines := list(islice(stream, BLOCK)):
            reader.add(lines)
    if not reader.rows:
        raise ValueError(f"{file}: expected candidates, found a header alone.")
    table = reader.table()
    table.check(on_bad_row)
    return table


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Go through the lines of a CSV file that are not blank, the header included.

    Args:
        path: the file; bytes that are no UTF-8 stay as they are (``surrogateescape``).

    Yields:
        Line number from 1, and its fields.
    """
    with _open(path) as stream:
        for line, text in enumerate(stream, 1):
            if (fields := _fields(text)) is not None:
                yield line, fields


def _open(path: Path) -> TextIO:
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _fields(text: str) -> list[str] | None:
    """Split a line; None for a blank one."""
    text = text.rstrip("\r\n")
    if "\0" in text:  # no table has it, and Python 3.10 cannot write it: the line stays whole, a malformed row
        return [without_nul(text)]
    if not text.strip():
        return None
    return _quoted_fields(text) if '"' in text else text.split(",")


def _quoted_fields(text: str) -> list[str]:
    """Split a line with quotes; one that cannot be split stays whole, which makes it a malformed row."""
    if len(text) > csv.field_size_limit():
        csv.field_size_limit(len(text))
    try:
        return next(csv.reader([text]))
    except csv.Error:
        return [text]


class _Reader:
    """Columns that grow block by block; a block in which any row is not plain or not good is read row by row.

    Args:
        path: the table.
        stream: its lines, from which the header is taken.
        with_class: whether a class is needed.

    Raises:
        ValueError: When a column is missing or named twice.
    """

    def __init__(self, path: Path, stream: Iterator[str], with_class: bool) -> None:
        self.path = path
        self.with_class = with_class
        self.lines, names = next(
            ((line, fields) for line, text in enumerate(stream, 1) if (fields := _fields(text)) is not None), (0, [])
        )
        self.columns = tuple(name.strip() for name in names)
        expected = REQUIRED + (("class",) if with_class else ())
        if any(self.columns.count(name) != 1 for name in expected):
            raise ValueError(
                f"{path}: expected each of the columns {', '.join(expected)} once, found {', '.join(self.columns)}."
            )
        known = (*REQUIRED, "class", "probability", "patient")
        column = {name: self.columns.index(name) for name in known if name in self.columns}
        self.series_column, *self.world_columns = (column[name] for name in REQUIRED)
        self.class_column, self.probability_column = column.get("class"), column.get("probability")
        self.patient_column = column.get("patient")
        self.series: dict[str, int] = {}
        self.patients: dict[str, int] = {}
        self.rows = 0
        self.blocks: list[list[NDArray[Any]]] = []
        self.bad: dict[int, tuple[str, str]] = {}

    def add(self, texts: Sequence[str]) -> None:
        """Take in the next lines of the file."""
        lines: Sequence[int] = range(self.lines + 1, self.lines + len(texts) + 1)
        values = self._good_columns(texts)
        if values is None:
            rows = [
                (line, fields) for line, text in zip(lines, texts, strict=True) if (fields := _fields(text)) is not None
            ]
            lines = [line for line, _ in rows]
            values = list(
                zip(*(self._row(self.rows + row, fields) for row, (_, fields) in enumerate(rows)), strict=True)
            )
        if values:  # else all lines are blank
            self.blocks.append([np.array(cells, kind) for cells, kind in zip((lines, *values), _KINDS, strict=True)])
        self.lines += len(texts)
        self.rows += len(lines)

    def _good_columns(self, texts: Sequence[str]) -> Sequence[Any] | None:
        """Read a block column by column, as :meth:`_row` would each row; None where a row is not plain or not good."""
        number, text = len(self.columns), ",".join(texts)
        if '"' in text or "\0" in text or any(line.count(",") != number - 1 for line in texts):
            return None
        # one list of all cells: a million small lists would keep the garbage collector busy for seconds
        cells = text.split(",")
        columns = [cells[column::number] for column in range(number)]
        columns[-1] = [cell.rstrip("\r\n") for cell in columns[-1]]
        names = list(map(str.strip, columns[self.series_column]))
        if not all(names):
            return None
        try:
            x, y, z = (np.fromiter(map(float, columns[column]), np.float64) for column in self.world_columns)
        except ValueError:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            if not (np.abs(x + y + z) < np.inf).all():
                return None

        def optional(column: int | None, read: Callable[[str], float], absent: float) -> Sequence[float]:
            return [absent] * len(texts) if column is None else list(map(read, columns[column]))

        labels = optional(self.class_column, _label, -1)
        if self.with_class and min(labels) < 0:
            return None
        probabilities = optional(self.probability_column, _number, np.nan)
        patients = [""] if self.patient_column is None else list(map(str.strip, columns[self.patient_column]))
        patient_codes = np.broadcast_to(_codes(patients, self.patients), len(texts))
        return _codes(names, self.series), x, y, z, labels, probabilities, patient_codes

    def _row(self, row: int, fields: list[str]) -> tuple[int, float, float, float, int, float, int]:
        """Read a row, and note why it is bad."""
        if len(fields) != len(self.columns):
            self.bad[row] = ("malformed row", f"expected {len(self.columns)} fields, found {len(fields)}")
            return -1, np.nan, np.nan, np.nan, -1, np.nan, -1
        name = fields[self.series_column].strip()
        if not name:
            self.bad[row] = ("malformed row", "expected a seriesuid, found none")
        x, y, z = (_number(fields[column]) for column in self.world_columns)
        # a sum that is finite has finite terms
        if not abs(x + y + z) < np.inf:
            found = ", ".join(fields[column] for column in self.world_columns)
            self.bad.setdefault(row, ("bad coordinate", f"expected three finite numbers in mm, found {found}"))
        text = "" if self.class_column is None else fields[self.class_column]
        label = _label(text)
        if label < 0 and self.with_class:
            self.bad.setdefault(row, ("bad class", f"expected 0 or 1, found {text!r}"))
        probability = np.nan if self.probability_column is None else _number(fields[self.probability_column])
        patient = "" if self.patient_column is None else fields[self.patient_column].strip()
        return (
            _codes([name], self.series)[0], x, y, z, label, probability, _codes([patient], self.patients)[0],
        )  # fmt: skip

    def table(self) -> CandidateTable:
        """Make the table, with the rows that repeat a place marked."""
        line, codes, x, y, z, label, probability, patient_codes = map(np.concatenate, zip(*self.blocks, strict=True))
        reason = np.zeros(self.rows, np.uint8)
        for row, (why, _) in self.bad.items():
            reason[row] = REASONS.index(why)
        self.blocks.clear()  # what follows takes as much again
        world = np.stack([x, y, z], 1)
        del x, y, z
        duplicate_of = _duplicates(codes, world, reason == 0)
        reason[duplicate_of >= 0] = REASONS.index("duplicate")
        return CandidateTable(
            path=self.path,
            columns=self.columns,
            series=tuple(self.series),
            series_code=codes,
            world=world,
            label=label,
            probability=probability,
            patients=tuple(self.patients),
            patient_code=patient_codes,
            line=line,
            reason=reason,
            duplicate_of=duplicate_of,
            details={row: detail for row, (_, detail) in self.bad.items()},
        )


_KINDS = (np.int64, np.int32, np.float64, np.float64, np.float64, np.int8, np.float64, np.int32)
"""Types of a block's columns: line, series, x, y, z, class, probability, patient."""

_LABELS = {"0": 0, "1": 1}


def _codes(names: Sequence[str], known: dict[str, int]) -> list[int]:
    """Number names in the order in which they first come, -1 for an empty one."""
    for name in dict.fromkeys(names):
        if name:
            known.setdefault(name, len(known))
    return [known.get(name, -1) for name in names]


def _label(text: str) -> int:
    label = _LABELS.get(text)
    if label is None:
        number = _number(text)
        label = int(number) if number in (0, 1) else -1
    return label


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
