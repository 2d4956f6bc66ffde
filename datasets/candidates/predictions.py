# SPDX-License-Identifier: Apache-2.0
"""Predictions of candidates: kept as they come, so that an evaluation can be resumed, and written as tables."""

from __future__ import annotations

import csv
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...networks.weight_container import sha256_of
from ..io.atomic_write import atomic_text
from .table import COORDINATES, CandidateTable, read_rows

logger = logging.getLogger(__name__)

VERSION = 2
"""1 had no checksums."""


class PredictionStore:
    """A file that takes in predictions batch by batch, and knows them again after the process was killed.

    The first line says what the predictions belong to: the table, by its content, and ``key``. Where a file belongs to
    something else, a new one is started, which is logged. Each batch is one write. Each line ends with a checksum: one
    that was cut off, damaged or edited does not count, its row is scored again, and a warning names it. Of two
    processes that would write to one file the second is refused.

    Args:
        path: the file; with several processes each has one of its own.
        table: the table whose rows are scored.
        key: what else must be the same for predictions to go together, such as the hash of the weights.
        resume: whether to keep what the file holds.

    Raises:
        OSError: When the file cannot be written, or another process writes to it.
    """

    def __init__(self, path: str | Path, table: CandidateTable, key: str = "", resume: bool = True) -> None:
        self.path = Path(path)
        self.table = table
        self._mark = _fingerprint(table, key)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # "a" makes the file and touches nothing that is in it before it is known to be ours alone
        self._stream: BinaryIO | None = open(self.path, "a+b")
        _take_alone(self._stream, self.path)
        found = _read_store(self.path, self._mark, len(table)) if resume else None
        self._values = np.full(len(table), np.nan) if found is None else found
        if found is None:
            self._stream.truncate(0)
            self._write(f"{self._mark}\n")
            return
        if not self.path.read_bytes().endswith(b"\n"):  # of a line that was cut off nothing must stick to the next
            self._write("\n")
        logger.info("%s: %d of %d candidates are scored already.", self.path, len(self.done), len(table))

    def _write(self, text: str) -> None:
        if self._stream is None:
            raise ValueError(f"{self.path}: expected an open store, found a closed one.")
        self._stream.write(text.encode())
        self._stream.flush()

    @property
    def done(self) -> NDArray[np.int64]:
        """Rows that have a prediction."""
        return np.flatnonzero(~np.isnan(self._values))

    @property
    def values(self) -> NDArray[np.float64]:
        """Prediction of each row of the table, NaN where there is none; a copy."""
        return self._values.copy()

    def add(self, rows: Sequence[int], values: Sequence[float]) -> None:
        """Keep predictions; when this returns, they outlive the process.

        Args:
            rows: rows of the table.
            values: as many finite numbers, probabilities or logits; they are kept exactly.

        Raises:
            ValueError: When a number is not finite; its row is named.
        """
        pairs = [(int(row), float(value)) for row, value in zip(rows, values, strict=True)]
        for row, value in pairs:
            if not np.isfinite(value):
                raise ValueError(
                    f"{self.table.path}, line {self.table.line[row]}: expected a finite prediction, got {value}."
                )
        self._write("".join(_line(self._mark, row, value) for row, value in pairs))
        for row, value in pairs:
            self._values[row] = value

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> PredictionStore:
        """Give the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _fingerprint(table: CandidateTable, key: str) -> str:
    """Make the first line of a store."""
    fingerprint = {"version": VERSION, "rows": len(table), "table": sha256_of(table.path), "key": key}
    return json.dumps(fingerprint, sort_keys=True)


def _line(fingerprint: str, row: int, value: float) -> str:
    """Write a prediction with the checksum of it and of what it belongs to."""
    text = f"{row},{value!r}"
    return f"{text},{zlib.crc32(f'{fingerprint},{text}'.encode()):08x}\n"


def _take_alone(stream: BinaryIO, path: Path) -> None:
    """Refuse a file that another process is writing to; the system's lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise OSError(
            error.errno, f"{path}: another process writes its predictions to this file; name another --output_dir"
        ) from error
    except OSError:  # a file system without locks
        return


def _read_store(path: Path, fingerprint: str, rows: int) -> NDArray[np.float64] | None:
    """Read a store: its predictions, NaN where there is none; ``None`` where it has another fingerprint."""
    head, *lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    if head != fingerprint:
        if head or lines:
            logger.warning("%s: belongs to another table or other scans, weights or settings.", path)
        return None
    values = np.full(rows, np.nan)
    bad = []
    for number, line in enumerate(lines, 2):
        row = _parse(line, fingerprint, rows)
        if row is not None:
            values[row[0]] = row[1]
        elif line or number < len(lines) + 1:
            bad.append(number)
    if bad:
        logger.warning(
            "%s: %d lines are damaged, cut off or were edited (the first is line %d); their rows are scored again.",
            path, len(bad), bad[0],
        )  # fmt: skip
    return values


def _parse(line: str, fingerprint: str, rows: int) -> tuple[int, float] | None:
    """Read a line; None where it is not as it was written."""
    text, _, checksum = line.rpartition(",")
    if checksum != f"{zlib.crc32(f'{fingerprint},{text}'.encode()):08x}":
        return None
    row, _, value = text.partition(",")
    if not row.isdecimal() or int(row) >= rows or not np.isfinite(float(value)):
        return None
    return int(row), float(value)


def write_probabilities(path: str | Path, table: CandidateTable, probabilities: NDArray[np.floating]) -> int:
    """Write the table again with probabilities: all rows in their order and all columns, whole or not at all.

    The column ``probability`` is added at the end, or takes the place of one that is there. A row that was not scored
    has none; one that repeats the place of another has that one's. A malformed row stays as it is, without one.

    Args:
        path: the file; it may be the table itself.
        table: the table.
        probabilities: (N,) NaN where a row was not scored.

    Returns:
        Number of rows with a probability.

    Raises:
        ValueError: When the table's file has changed since it was read.
    """
    values = _with_duplicates(table, probabilities)
    column, names = _scored_columns(table)
    rows = read_rows(table.path)
    next(rows, None)
    count = 0
    with _writer(path) as writer:
        writer.writerow(names)
        for count, (_, fields) in enumerate(rows, 1):
            if count <= len(table) and len(fields) == len(table.columns):
                fields = [*fields[:column], _text(values[count - 1]), *fields[column + 1 :]]
            writer.writerow(fields)
        if count != len(table):
            raise ValueError(f"{table.path}: expected {len(table)} rows as before, found {count}: it has changed.")
    return int((~np.isnan(values)).sum())


def holds_only(path: str | Path, table: CandidateTable) -> bool:
    """Say whether a file that :func:`write_probabilities` wrote is of this table, or of one with fewer rows.

    Args:
        path: the file.
        table: the table.

    Returns:
        Whether its columns are the table's, and each of its rows but for the probability is one of the table's.
    """
    column, names = _scored_columns(table)
    rows = read_rows(Path(path))
    if next(rows, (0, []))[1] != names:
        return False
    # hashes, for a table may have millions of rows
    known = {hash(form) for _, fields in read_rows(table.path) for form in _forms(fields, column, len(names))}
    return all(any(hash(form) in known for form in _forms(fields, column, len(names))) for _, fields in rows)


def _scored_columns(table: CandidateTable) -> tuple[int, list[str]]:
    """Give the column of the probability, at the end where the table has none, and the names of all with it."""
    column = table.columns.index("probability") if "probability" in table.columns else len(table.columns)
    return column, [*table.columns[:column], "probability", *table.columns[column + 1 :]]


def _forms(fields: list[str], column: int, count: int) -> list[tuple[str, ...]]:
    """Give a row as it is, which a malformed one stays, and without its probability."""
    without = [tuple(fields[:column] + fields[column + 1 :])] if len(fields) == count else []
    return [tuple(fields), *without]


def write_submission(path: str | Path, table: CandidateTable, probabilities: NDArray[np.floating]) -> int:
    """Write predictions as LUNA16 takes them: ``seriesuid,coordX,coordY,coordZ,probability``, whole or not at all.

    Args:
        path: the file.
        table: the table.
        probabilities: (N,) NaN where a row was not scored; such rows are not written.

    Returns:
        Number of rows written.
    """
    rows = np.flatnonzero(~np.isnan(np.asarray(probabilities, float)))
    with _writer(path) as writer:
        writer.writerow(("seriesuid", *COORDINATES, "probability"))
        for row in rows.tolist():
            # the shortest text that gives the same number again
            coordinates = [repr(value) for value in table.world[row].tolist()]
            writer.writerow((table.series[table.series_code[row]], *coordinates, _text(probabilities[row])))
    return len(rows)


@contextmanager
def _writer(path: str | Path) -> Iterator[Any]:
    with atomic_text(path, errors="surrogateescape") as stream:
        yield csv.writer(stream, lineterminator="\n")


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.9g}"


def _with_duplicates(table: CandidateTable, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Give rows that repeat a place the probability of that place."""
    values = np.asarray(probabilities, np.float64)
    if values.shape != (len(table),):
        raise ValueError(f"{table.path}: expected a probability for each of {len(table)} rows, found {values.shape}.")
    repeated = (table.duplicate_of >= 0) & np.isnan(values)
    return np.where(repeated, values[table.duplicate_of], values)
