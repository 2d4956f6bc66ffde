# SPDX-License-Identifier: Apache-2.0
"""The voxels of MetaImage and NRRD: one file or several, raw, compressed or as text, never more than was announced."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .scan_geometry import BadScanError, check_regular_file, root_cause_message

DEFLATE_RATIO = 1032
"""A deflated byte holds at most so many."""

MAX_FILES = 100_000
"""More files than any scan has slices."""

BLOCK = 2**20


@dataclass(frozen=True)
class VoxelFiles:
    """Where the voxels of a scan are.

    Attributes:
        scan: the scan, for messages.
        files: the files, in the order of the last axis; each holds the same number of voxels.
        skip: bytes before the voxels in each file; -1 for all but those that the voxels take.
        shape: voxels along each axis, the fastest first.
        dtype: of a voxel, with its byte order.
        encoding: of the voxels.
    """

    scan: str
    files: tuple[Path, ...]
    skip: int
    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: Literal["raw", "deflate", "text"] = "raw"

    def check(self) -> None:
        """Compare the files' sizes with what the header claims, before memory is allocated.

        Raises:
            BadScanError: When a file is missing, not a regular file, or too short.
        """
        if math.prod(self.shape) % max(len(self.files), 1) or not self.files:
            detail = f"expected files of the same number of voxels, found {len(self.files)} for {self.shape}"
            raise BadScanError(self.scan, "voxel files", detail)
        for file in self.files:
            if not os.path.exists(file):  # Path raises OSError for names that no file can have
                raise BadScanError(self.scan, "voxel file missing", f"expected {file.name} next to it, found none")
            check_regular_file(self.scan, file)
            size = file.stat().st_size - max(self.skip, 0)
            most = {"raw": size, "deflate": size * DEFLATE_RATIO, "text": (size + 1) // 2 * self.dtype.itemsize}
            if most[self.encoding] < self._bytes:
                detail = f"expected {self._bytes:,} bytes of voxels in {file.name} as the header says, found {size:,}"
                kind = {"raw": "", "deflate": " compressed", "text": " of text"}[self.encoding]
                raise BadScanError(self.scan, "too short", detail + kind)

    @property
    def _bytes(self) -> int:
        """Bytes of the voxels that each file holds, decoded."""
        return math.prod(self.shape) // len(self.files) * self.dtype.itemsize

    def read(self) -> NDArray:
        """Read the voxels.

        Returns:
            The voxels along the axes of the header, in the machine's byte order.

        Raises:
            BadScanError: When a file is unreadable or ends early.
        """
        voxels = np.empty(math.prod(self.shape), self.dtype.newbyteorder("="))
        part = len(voxels) // len(self.files)
        for number, file in enumerate(self.files):
            try:
                voxels[number * part : (number + 1) * part] = self._read(file, part)
            except (OSError, ValueError, zlib.error) as error:
                detail = f"expected {part:,} voxels in {file.name}, found {root_cause_message(error)}"
                raise BadScanError(self.scan, "unreadable", detail) from error
        return np.ascontiguousarray(voxels.reshape(self.shape, order="F"))

    def _read(self, path: Path, count: int) -> NDArray:
        with open(path, "rb") as file:
            file.seek(self.skip if self.skip >= 0 else os.path.getsize(path) - self._bytes)
            if self.encoding == "text":
                numbers = file.read().split()
                if len(numbers) < count:
                    raise ValueError(f"{len(numbers):,} numbers")
                return np.array(numbers[:count], np.float64).astype(self.dtype)
            content = file.read(self._bytes) if self.encoding == "raw" else _inflate(file, self._bytes)
        if len(content) < self._bytes:
            raise ValueError(f"{len(content):,} of {self._bytes:,} bytes")
        return np.frombuffer(content, self.dtype, count)


def _inflate(file: object, most: int) -> bytes:
    """Decompress a zlib or gzip stream, up to a number of bytes."""
    decoder = zlib.decompressobj(wbits=47)  # 32 + 15: of either header
    found = bytearray()
    while len(found) < most and not decoder.eof:
        block = decoder.unconsumed_tail or file.read(BLOCK)  # type: ignore[attr-defined]
        if not block:
            break
        found += decoder.decompress(block, most - len(found))
    return bytes(found)


def name_files(scan: str, named: Sequence[str]) -> tuple[Path, ...]:
    """List the voxel files that a header names: one, or a pattern with first, last and step.

    Args:
        scan: path of the header.
        named: the words of the header's field: ``name``, or ``pattern first last [step [axes]]``.

    Returns:
        Their paths, relative ones next to the header.

    Raises:
        BadScanError: When the pattern is not one ``%d``, or its numbers are no range.

    Example:
        >>> [path.name for path in name_files("ct/a.mhd", ["a%03d.raw", "1", "5", "2"])]
        ['a001.raw', 'a003.raw', 'a005.raw']
    """
    folder = Path(scan).parent
    text = " ".join(named)
    if "%" not in text:
        return (folder / text,)
    pattern, *numbers = named
    # nothing of a header may reach printf: one whole number, of at most nine places
    directives = re.findall(r"%", pattern)
    if len(directives) != 1 or not re.search(r"%0?[1-9]?d", pattern):
        raise BadScanError(scan, "bad header", f"expected one %d such as %03d, found {pattern[:80]!r}")
    if not 2 <= len(numbers) <= 4 or not all(re.fullmatch(r"-?\d{1,9}", number) for number in numbers):
        raise BadScanError(scan, "bad header", f"expected first, last and step of {pattern[:80]}, found {numbers[:4]}")
    first, last, step = (*map(int, numbers[:2]), int(numbers[2]) if len(numbers) > 2 else 1)
    places = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not 0 < len(places) <= MAX_FILES:
        detail = f"expected 1 to {MAX_FILES} files of {pattern[:80]}, found the numbers {first} to {last} by {step}"
        raise BadScanError(scan, "bad header", detail)
    return tuple(folder / (pattern % place) for place in places)
