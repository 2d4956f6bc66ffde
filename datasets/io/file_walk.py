# SPDX-License-Identifier: Apache-2.0
"""Walking through a folder tree, the same way for every command: links followed once, special files passed over."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .scan_geometry import file_kind

logger = logging.getLogger(__name__)


def walk_folders(root: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk through a folder tree, in order.

    Linked folders and files count like others, but a folder is visited once, so loops of links end. What is neither a
    file nor a folder (a FIFO, a device, a link to itself) is passed over with a warning: to open it could wait forever.

    Args:
        root: the folder; hidden files and folders are passed over.

    Yields:
        Each folder with the names of its files. A link whose target is missing counts as a file; reading it says so.
    """
    visited: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            logger.warning("%s: passed over, the same folder as %s", folder, visited[real])
            subfolders.clear()
            continue
        visited[real] = folder
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        shown = sorted(name for name in names if not name.startswith("."))
        yield Path(folder), [name for name in shown if _is_file(os.path.join(folder, name))]


def _is_file(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    except OSError as error:
        logger.warning("%s: passed over, expected a file, found %s", path, error.strerror)
        return False
    if not stat.S_ISREG(mode):
        logger.warning("%s: passed over, expected a file, found %s", path, file_kind(mode))
        return False
    return True


def find_files(root: str | Path, *suffixes: str) -> list[Path]:
    """List the files of a folder tree, see :func:`walk_folders`.

    Args:
        root: the folder.
        suffixes: ends of the names, in upper and lower case; none for all files.

    Returns:
        Sorted paths.
    """
    ends = tuple(suffix.lower() for suffix in suffixes)
    found = (folder / name for folder, names in walk_folders(root) for name in names)
    return sorted(path for path in found if not ends or path.name.lower().endswith(ends))
