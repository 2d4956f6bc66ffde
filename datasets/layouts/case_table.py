# SPDX-License-Identifier: Apache-2.0
"""A table that says of each case's file the patient and the fold; the column that names the files is found or given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from ..io.csv_file import read_csv
from ..io.find_scans import without_suffix

WHAT = "a table of cases"


@dataclass(frozen=True)
class CaseRow:
    """What a table says of a case.

    Attributes:
        number: the row in the file, the header being the first.
        patient: cell of the patient's column; ``""`` where there is none.
        fold: cell of the fold's column, a whole number without its ``.0``; ``""`` where there is none.
    """

    number: int
    patient: str
    fold: str


@dataclass(frozen=True)
class CaseTable:
    """A table put together with the cases.

    Attributes:
        column: the column that names the files.
        rows: the row of each case that has one.
        unmatched: rows that name none of the cases, each with the cell that should.
    """

    column: str
    rows: Mapping[str, CaseRow]
    unmatched: Sequence[tuple[str, CaseRow]]


def file_names(root: Path, folder: Path, path: str) -> set[str]:
    """List what a table may call a file: its path, that below its folder, its name, each with and without suffix.

    Args:
        root: folder that the path starts from.
        folder: the one folder of all images, or of all label maps.
        path: the file, relative to ``root``.

    Example:
        >>> sorted(file_names(Path("/d"), Path("/d/ct"), "ct/a/x.nii.gz"))[-6:]
        ['a/x', 'a/x.nii.gz', 'ct/a/x', 'ct/a/x.nii.gz', 'x', 'x.nii.gz']
    """
    full = os.path.abspath(root / path)
    below = Path(os.path.relpath(full, os.path.abspath(folder))).as_posix()
    names = {full, path, below, Path(path).name}
    return names | {without_suffix(name) for name in names}


def read_case_table(
    path: str | Path, names: Mapping[str, Set[str]], file: str = "", patient: str = "", fold: str = ""
) -> CaseTable:
    """Read a table and find the case of each row.

    Args:
        path: CSV file with a header, UTF-8.
        names: for each case what a table may call its files, see :func:`file_names`.
        file: column that names the files; ``""`` finds it: the one whose cells do, the fold's left out.
        patient: column of the patient; ``""`` for none.
        fold: column of the fold; ``""`` for none.

    Returns:
        The rows by case. Several rows of one case are one if they say the same.

    Raises:
        FileNotFoundError: When there is no such table.
        ValueError: When it lacks a column, no column names the files or several name different ones, a cell names
            several cases, or two rows of a case contradict each other.
    """
    wanted = [name for name in (file, patient, fold) if name]
    rows = list(read_csv(path, wanted, WHAT))
    if not rows:
        raise ValueError(f"{path}: expected {WHAT}, found a header without rows.")
    cases: dict[str, set[str]] = {}
    for case, known in names.items():
        for name in known:
            cases.setdefault(name, set()).add(case)
    column = file or _file_column(path, rows, cases, fold)
    found: dict[str, CaseRow] = {}
    unmatched = []
    for number, row in enumerate(rows, start=2):
        cell = row[column].strip()
        entry = CaseRow(number, row[patient].strip() if patient else "", plain_fold(row[fold]) if fold else "")
        meant = sorted(cases.get(cell, ()))
        if len(meant) > 1:
            raise ValueError(
                f"{path}, row {number}: expected a name of one case in {column}, found {cell!r}, which is that of"
                f" {', '.join(meant[:3])}."
            )
        if not meant:
            unmatched.append((cell, entry))
            continue
        first = found.setdefault(meant[0], entry)
        if (first.patient, first.fold) != (entry.patient, entry.fold):
            raise ValueError(
                f"{path}: expected rows that say the same of {cell}, found patient {first.patient!r} and fold"
                f" {first.fold!r} in row {first.number}, {entry.patient!r} and {entry.fold!r} in row {number}."
            )
    return CaseTable(column, found, unmatched)


def plain_fold(text: str) -> str:
    """Write a fold as other programs would: a column of whole numbers with an empty cell becomes ``1.0`` in pandas.

    Example:
        >>> plain_fold(" 3.0 "), plain_fold("007"), plain_fold("val")
        ('3', '7', 'val')
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _file_column(path: str | Path, rows: Sequence[Mapping[str, str]], cases: Mapping[str, Set[str]], fold: str) -> str:
    """Find the one column that names the files; several must mean the same file in each row."""
    meant: dict[str, dict[int, str]] = {}
    for column in rows[0]:
        if column != fold:
            found = {number: cases.get(row[column].strip(), set()) for number, row in enumerate(rows)}
            meant[column] = {number: "/".join(sorted(each)) for number, each in found.items() if each}
    meant = {column: each for column, each in meant.items() if each}
    if not meant:
        example = next(iter(sorted(cases, key=len)), "")
        raise ValueError(
            f"{path}: expected a column that names the files, such as {example!r}, found none among"
            f" {', '.join(rows[0])}."
        )
    best = max(meant, key=lambda column: len(meant[column]))
    others = [column for column, each in meant.items() if not each.items() <= meant[best].items()]
    if others:
        raise ValueError(
            f"{path}: expected one column that names the files, found {best} and {', '.join(others)}, which name"
            " different ones: give it with --file."
        )
    return best
