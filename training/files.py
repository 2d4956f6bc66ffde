# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure

__all__ = ["whole_file", "write_csv", "write_figure"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends well.

    A reader, a full disk or a crash in the middle sees the old file or the new one. The temporary file beside it always
    has the same name, so that what a killed process leaves is overwritten by the next.

    Args:
        path: the file; its folder is made if absent.

    Yields:
        The open temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV with a header, whole or not at all.

    Args:
        path: the file.
        columns: names and order of the columns.
        rows: one mapping a row, from column to value.
    """
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()


def write_figure(path: str | Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        path: the file.
        figure: a matplotlib figure, made without pyplot so that no window system is needed.
        dpi: dots per inch.
    """
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
