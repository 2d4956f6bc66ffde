# SPDX-License-Identifier: Apache-2.0
"""The scans below a folder, and what a scan is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .dicom_series import list_series
from .dicom_slice import DICOM_SUFFIXES, is_dicom
from .file_walk import walk_folders
from .picture_file import PICTURE_SUFFIXES
from .scan_geometry import SCAN_SUFFIXES, SERIES_SEPARATOR, split_series

__all__ = ["find_pictures", "find_scans", "scan_name", "without_suffix"]


def find_scans(root: Path) -> Iterator[str]:
    """Walk through a folder tree and name its scans, in order: files by their suffix, DICOM one name a series.

    Args:
        root: the folder; see :func:`.walk_folders`.

    Yields:
        Paths relative to the root, with forward slashes.
    """
    for folder, files in walk_folders(root):
        relative = folder.relative_to(root)
        yield from ((relative / name).as_posix() for name in files if name.lower().endswith(SCAN_SUFFIXES))
        others = [name for name in files if not name.lower().endswith(SCAN_SUFFIXES)]
        if any(name.upper() != "DICOMDIR" and is_dicom(folder / name) for name in others):
            series = sorted(list_series(str(folder)))
            if len(series) < 2:
                yield relative.as_posix()
            yield from (f"{relative.as_posix()}{SERIES_SEPARATOR}{name}" for name in series if len(series) > 1)


def find_pictures(root: Path) -> Iterator[str]:
    """Walk through a folder tree and name what may be an image of two dimensions, in order: each file by itself.

    Args:
        root: the folder; see :func:`.walk_folders`.

    Yields:
        Paths of PNG, JPEG and DICOM files relative to the root, with forward slashes.
    """
    for folder, files in walk_folders(root):
        for name in files:
            other = name.upper() == "DICOMDIR" or name.lower().endswith(SCAN_SUFFIXES)
            if name.lower().endswith(PICTURE_SUFFIXES) or (not other and is_dicom(folder / name)):
                yield (folder.relative_to(root) / name).as_posix()


def scan_name(image: str) -> str:
    """Name a scan as a seriesuid does: its file without folder and suffix, or the DICOM folder's name.

    Example:
        >>> scan_name("subset0/1.2.840.mhd"), scan_name("ct/PAT001"), scan_name("ct/PAT001::1.2.3")
        ('1.2.840', 'PAT001', '1.2.3')
    """
    folder, series = split_series(image)
    return series or without_suffix(Path(folder).name)


def without_suffix(name: str) -> str:
    """Take the suffix of a scan off a name; a series identifier is full of dots, so no other."""
    suffixes = SCAN_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]
