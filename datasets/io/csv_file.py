# SPDX-License-Identifier: Apache-2.0
"""CSV in and out: broken tables are named, and no cell of a report is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic_write import atomic_text

FORMULA = re.compile(r"\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20\t\r\n]")
"""What a cell begins with that a spreadsheet takes for a formula, in ordinary and in wide characters."""


def printable(text: str) -> str:
    r"""Write characters that UTF-8 cannot hold, which stand for bytes of a file's name, as escapes.

    Example:
        >>> printable("scan\udcff.nii")
        'scan\\udcff.nii'
    """
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def without_nul(text: str) -> str:
    r"""Write NUL as an escape: Python's ``csv`` refuses to write it before 3.11, and other programs end a text there.

    Example:
        >>> without_nul("scan\0")
        'scan\\x00'
    """
    return text.replace("\0", r"\x00")


def safe_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; numbers stay numbers.

    Example:
        >>> safe_cell("=1+1"), safe_cell("-1.5"), safe_cell(-1.5), safe_cell("lung")
        ("'=1+1", '-1.5', -1.5, 'lung')
    """
    if not isinstance(value, str):
        return value
    value = without_nul(value)
    if not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def read_csv(path: str | os.PathLike[str], columns: Sequence[str], what: str) -> Iterator[dict[str, str]]:
    """Go through the rows of a table with a header.

    Args:
        path: CSV file, UTF-8.
        columns: columns that it must have.
        what: what was expected, for errors.

    Yields:
        The cells by column; missing ones at the end of a row are "", those beyond the header are left out.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no UTF-8, lacks a column or has it twice, or a row cannot be split; the line is named.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected {what}, found no such file.")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream, restval="")
        try:
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{file}: expected the columns {', '.join(missing)}, found {rows.fieldnames}.")
            repeated = [name for name in columns if list(rows.fieldnames or ()).count(name) > 1]
            if repeated:
                raise ValueError(f"{file}: expected one column {repeated[0]}, found several of this name.")
            for row in rows:
                if any("\0" in str(value) for value in row.values()):  # Python 3.10 refuses it by itself
                    raise csv.Error("a NUL character")
                yield {name: value for name, value in row.items() if name is not None}
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected {what} in UTF-8, found {error}.") from error
        except csv.Error as error:
            raise ValueError(f"{file}, line {rows.line_num + 1}: expected {what}, found {error}.") from error


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV with a header, whole or not at all; no cell is a formula to a spreadsheet.

    Args:
        path: the file.
        columns: names and order of the columns.
        rows: one mapping a row, from column to value.
    """
    with atomic_text(path, errors="backslashreplace") as text:
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)
