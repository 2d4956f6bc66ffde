# SPDX-License-Identifier: Apache-2.0
"""What the headers of a scan in many files said, kept so that the next start need not read them again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ..io.atomic_write import atomic_path
from ..io.scan_header import listed_files, split_series
from .mapped_scans import scan_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanNote:
    """What is known of a scan before it is read.

    Attributes:
        nbytes: what it is predicted to take in memory; 0 where it is bad.
        key: name of its prepared copy, see :func:`~.mapped_scans.scan_key`; ``""`` where it is not known yet.
        name: of the note; ``""`` where none is kept.
    """

    nbytes: int
    key: str = ""
    name: str = ""


class ScanNotes:
    """Notes of scans that are folders of DICOM files, next to their prepared copies.

    To find out which files of a folder make up a series, all their headers are read: half a second for 300 slices. A
    note says what came of it, and counts as long as the folder holds the same files with the same sizes and times, and
    the rest of the entry and the preprocessing are the same.

    Args:
        folder: where the prepared copies are.
        preprocessing: see :func:`~.mapped_scans.preprocessing_key`.
        image_key: key of the scan in an entry.
    """

    def __init__(self, folder: str | Path, preprocessing: str, image_key: str) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.image_key = image_key

    def look(self, entry: Mapping[str, Any], predicted_bytes: Callable[[Mapping[str, Any]], int]) -> ScanNote:
        """Take the note of an entry, or read the headers of its scan.

        Args:
            entry: entry of a data list.
            predicted_bytes: what reads the headers.
        """
        name = self._name(entry)
        if not name:
            return ScanNote(predicted_bytes(entry))
        found = self._read(name)
        if found is not None:
            return found
        nbytes = predicted_bytes(entry)  # first, for then the key finds the headers in memory
        try:
            key = scan_key(entry, self.preprocessing, self.image_key)
        except OSError:
            return ScanNote(nbytes)
        return ScanNote(nbytes, key, name)

    def write(self, entry: Mapping[str, Any], note: ScanNote) -> None:
        """Keep the note of an entry whose prepared copy is there.

        Args:
            entry: entry of a data list.
            note: what :meth:`look` gave.
        """
        if not note.name or self._read(note.name) == note or self._name(entry) != note.name:
            return  # a folder that changed since is another scan
        try:
            with atomic_path(self._path(note.name), durable=False) as temporary:
                temporary.write_text(json.dumps({"key": note.key, "nbytes": note.nbytes}))
        except OSError as error:  # prepared copies may lie in a folder that others only read
            logger.debug("%s: no note is kept: %s", entry[self.image_key], error)

    def _name(self, entry: Mapping[str, Any]) -> str:
        """Name an entry by what its folders hold; ``""`` where no scan of it is a folder, or one is missing."""
        paths = ensure_tuple(entry[self.image_key])
        if not any(Path(split_series(str(path))[0]).is_dir() for path in paths):
            return ""
        try:
            return scan_key(entry, self.preprocessing, self.image_key, listed_files)
        except (OSError, ValueError):  # of a value without a description, which writing the scan refuses
            return ""

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.note.json"

    def _read(self, name: str) -> ScanNote | None:
        try:
            found = json.loads(self._path(name).read_text())
            return ScanNote(int(found["nbytes"]), str(found["key"]), name)
        except (OSError, ValueError, KeyError, TypeError):
            return None
