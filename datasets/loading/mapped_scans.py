# SPDX-License-Identifier: Apache-2.0
"""Prepared scans on disk, from which a cube is read without reading the scan."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from monai import __version__ as monai_version
from monai.data.utils import json_hashing
from monai.utils import ensure_tuple

from ..io.atomic_write import atomic_path
from ..io.scan_header import BadScanError, file_states, scan_files, split_series
from ..store.describe import describe

VERSION = 2
"""Version of what this package makes of a scan, part of the name of each prepared scan.

Raise it with every change after which the same files and settings give other arrays: a reader that takes other voxels,
such as padding that is filled, other files of a folder for a series, or a transform of this package that computes
otherwise. It is not the package's version, with which all scans would be prepared again at each release.
``tests/datasets/loading/test_prepared_version.py`` has scans of several kinds and what they were prepared to, and fails
where that changes and this number does not.
"""

NAMES = ("patient", "seriesuid", "fold", "prediction", "candidates", "positives")
"""Keys of an entry that say what a scan is called and how a list uses it, which prepared scans do not depend on."""

SMALL = 4096
"""Bytes of a file up to which it is read instead of mapped."""


def preprocessing_key(preprocessing: Any) -> str:
    """Name a preprocessing by all that it is made of.

    Args:
        preprocessing: transforms.

    Returns:
        A digest of what :func:`~models_genesis.datasets.store.describe.describe` says of them.

    Raises:
        ValueError: When something in it has no description that another process would give too.
    """
    return json_hashing(describe(preprocessing)).decode()


def scan_key(
    entry: Mapping[str, Any],
    preprocessing: str,
    image_key: str = "image",
    members: Callable[[str], list[Path]] = scan_files,
) -> str:
    """Name a prepared scan by what it is made of: files with their sizes and times, other values, the preprocessing.

    Every value of the entry counts but for :data:`NAMES`, since a transform may read any: a text that is the path of
    a file, or of a folder of DICOM or Zarr, stands for the files; what else there is, such as the number of a class or
    another folder, for itself.

    Args:
        entry: entry of a data list.
        preprocessing: see :func:`preprocessing_key`.
        image_key: key of the scan, which must be there.
        members: lists the files that a scan stands for.

    Returns:
        A name for files, the same in every process.

    Raises:
        OSError: When the scan, or a file of it, is missing.
    """
    image = [_files(path, members) for path in ensure_tuple(entry[image_key])]
    others = [
        [str(key), _content(value, str(key), members)] for key, value in entry.items() if key not in (image_key, *NAMES)
    ]
    return json_hashing([VERSION, monai_version, image, sorted(others, key=str), preprocessing]).decode()[:32]


def _content(value: Any, name: str, members: Callable[[str], list[Path]]) -> Any:
    """Describe a value of an entry; files by their state."""
    if isinstance(value, Mapping):
        return {str(key): _content(each, f"{name}.{key}", members) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_content(each, name, members) for each in value]
    if isinstance(value, str | PurePath) and os.path.exists(split_series(str(value))[0]):
        with contextlib.suppress(OSError, BadScanError):
            return _files(value, members)
    return describe(value, name=name)


def _files(path: str | PurePath, members: Callable[[str], list[Path]]) -> list[Any]:
    """List the files that a path stands for, with sizes and times; none of a folder that is no scan."""
    files = members(str(path))
    if not files and str(path).endswith(".zarr"):  # an array of many files
        files = sorted(each for each in Path(path).rglob("*") if each.is_file())
    return [str(path), file_states(files)]


class MappedScan:
    """The arrays of one prepared scan, as files that are mapped into memory whenever one is requested.

    Nothing stays open between two uses: workers share the pages through the system's cache, no process runs out of
    file handles, and resident memory does not grow.

    Args:
        folder: folder of the files.
        key: their name, see :func:`scan_key`.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = str(folder)
        self.key = key
        self._index: dict[str, np.ndarray | tuple[str, tuple[int, ...], int]] | None = None

    def _path(self, name: str) -> Path:
        return Path(self.folder) / f"{self.key}.{name}"

    def arrays(self) -> dict[str, np.ndarray]:
        """Map the arrays, read-only; small ones are kept in memory."""
        if self._index is None:
            self._index = self._read_index()
        return {
            name: entry if isinstance(entry, np.ndarray) else self._map(name, *entry)
            for name, entry in self._index.items()
        }

    def _map(self, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
        return np.memmap(f"{self.folder}/{self.key}.{name}.npy", dtype, mode="r", offset=offset, shape=shape)

    def _read_index(self) -> dict[str, np.ndarray | tuple[str, tuple[int, ...], int]]:
        index: dict[str, np.ndarray | tuple[str, tuple[int, ...], int]] = {}
        for name, written in json.loads(self._path("json").read_text()).items():
            path = self._path(f"{name}.npy")
            if written["size"] <= SMALL:
                index[name] = np.load(path)
            else:
                array = np.load(path, mmap_mode="r")
                index[name] = (str(array.dtype), tuple(array.shape), int(array.offset))
        return index

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def exists(self) -> bool:
        """Say whether the scan was written before and is unharmed.

        Size and time of each file must be as they were written; where only the time differs, as after a copy, the
        checksum decides.
        """
        try:
            written = json.loads(self._path("json").read_text())
            for name, expected in written.items():
                path = self._path(f"{name}.npy")
                state = path.stat()
                if state.st_size != expected["size"]:
                    return False
                if state.st_mtime_ns != expected["time"] and _checksum(path) != expected["checksum"]:
                    return False
            self.arrays()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays; each file appears whole or not at all, and the index, which makes them count, last.

        Args:
            arrays: the arrays by name.

        Raises:
            OSError: When the disk is full or the folder cannot be written.
        """
        written = {}
        for name, array in arrays.items():
            path = self._path(f"{name}.npy")
            checksum = self._replace(path, lambda stream, array=array: np.save(stream, array, allow_pickle=False))
            state = path.stat()
            written[name] = {"size": state.st_size, "time": state.st_mtime_ns, "checksum": checksum}
        text = json.dumps(written).encode()
        self._replace(self._path("json"), lambda stream: stream.write(text))
        self._index = None

    def _replace(self, path: Path, write: Any) -> int:
        with atomic_path(path, durable=False) as temporary:
            with temporary.open("wb") as stream:
                write(stream)
            return _checksum(temporary)


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as stream:
        while block := stream.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def check_free_space(folder: str | Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where the files go; it is made where it lacks.
        needed: bytes.

    Raises:
        OSError: When less is free, with both numbers.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: expected {needed / 2**30:.2f} GiB free for prepared scans, found {free / 2**30:.2f} GiB;"
            " name another cache_dir, or allow more memory (cache_gib)."
        )
