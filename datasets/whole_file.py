# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = ["whole_file", "whole_path", "whole_text"]


@contextmanager
def whole_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name to write to, of a file that takes its place only when the block ends well.

    A reader, a full disk or a crash in the middle sees the old file or the new one. The temporary file beside it is
    hidden, has the same suffix, and a name of its own, so that of two writers of one file the last to end wins.

    Args:
        path: the file; its folder is made if absent.

    Yields:
        Path of the temporary file, to be written there and closed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends well, see :func:`whole_path`.

    Args:
        path: the file; its folder is made if absent.

    Yields:
        The open temporary file.
    """
    with whole_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def whole_text(path: str | os.PathLike[str], errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file of UTF-8 as :func:`whole_file` does, with line ends as they are written.

    Args:
        path: the file; its folder is made if absent.
        errors: what becomes of characters that cannot be encoded, see :func:`open`.

    Yields:
        The open temporary file.
    """
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors=errors, newline="")
        yield text
        text.flush()
        text.detach()
