# SPDX-License-Identifier: Apache-2.0
"""Tables and figures that appear whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..datasets.io.atomic_write import whole_file, whole_text
from ..datasets.io.csv_file import safe_cell

__all__ = ["write_csv", "write_figure"]


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV with a header, whole or not at all; no cell is a formula to a spreadsheet.

    Args:
        path: the file.
        columns: names and order of the columns.
        rows: one mapping a row, from column to value.
    """
    with whole_text(path, errors="backslashreplace") as text:
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)


def write_figure(path: str | Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        path: the file.
        figure: a matplotlib figure, made without pyplot so that no window system is needed.
        dpi: dots per inch.
    """
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
