# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["atomic_path", "atomic_text", "atomic_write", "sweep_temporary", "write_figure"]

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\.tmp\.[0-9a-f]{8}\.(?P<name>.+)|\.(?P<old>.+)\.\d+\.tmp")
"""Names of temporary files, of this version and of those before it."""

STALE_SECONDS = 3600.0
"""Age from which a temporary file is that of a process that died."""

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_swept: set[Path] = set()


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Give a name to write to, of a file that takes its place only when the block ends well.

    A reader, a full disk or a crash in the middle sees the old file or the new one. The temporary file next to it is
    hidden, has the same suffix, and a random name, so that of two writers of one file, on whatever machines, the last
    to end wins. Temporary files that a dead process left in the folder are removed, see :func:`sweep_temporary`.

    Args:
        path: the file; its folder is made if absent.
        durable: whether the content must outlive a loss of power; False is faster where it can be made again.

    Yields:
        Path of the temporary file, to be written there and closed.

    Raises:
        OSError: when the disk is full, with the path and the bytes; what was there before is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep_temporary(path.parent)
    temporary = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if (number := _out_of_space(error)) is None:
            raise
        raise OSError(
            number,
            f"{os.strerror(number)}: {path} needs more than the {written} bytes that were written; "
            f"{shutil.disk_usage(path.parent).free} bytes are free in its folder",
        ) from error


def _out_of_space(error: BaseException) -> int | None:
    """Find the system's word for a full disk behind an error; torch.save hides it behind a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OUT_OF_SPACE:
            return cause.errno
        cause = cause.__cause__ or cause.__context__
    return None


def sweep_temporary(
    folder: str | os.PathLike[str], names: Collection[str] | None = None, older_than: float = STALE_SECONDS
) -> list[Path]:
    """Remove the temporary files of :func:`atomic_path` that a process left behind when it was killed.

    Args:
        folder: where to look; not the folders in it.
        names: files whose temporary ones are removed; None for all.
        older_than: age in seconds; 0 only where no other process can be writing these files.

    Returns:
        What was removed; nothing where the folder cannot be read.
    """
    removed = []
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return []
    for path in entries:
        match = TEMPORARY.fullmatch(path.name)
        if match is None or (names is not None and (match["name"] or match["old"]) not in names):
            continue
        try:
            if time.time() - path.lstat().st_mtime >= older_than:
                path.unlink()
                removed.append(path)
        except OSError:  # another process was faster, or it is not ours to remove
            continue
    if removed:
        logger.info("%s: removed %d temporary files of a run that was killed", folder, len(removed))
    return removed


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when the block ends well, see :func:`atomic_path`.

    Args:
        path: the file; its folder is made if absent.

    Yields:
        The open temporary file.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def atomic_text(path: str | os.PathLike[str], errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file of UTF-8 as :func:`atomic_write` does, with line ends as they are written.

    Args:
        path: the file; its folder is made if absent.
        errors: how to handle characters that cannot be encoded, see :func:`open`.

    Yields:
        The open temporary file.
    """
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors=errors, newline="")
        yield text
        text.flush()
        text.detach()


def write_figure(path: str | Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        path: the file.
        figure: a matplotlib figure, made without pyplot so that no window system is needed.
        dpi: dots per inch.
    """
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
