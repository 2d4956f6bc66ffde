# SPDX-License-Identifier: Apache-2.0
"""Scans decoded once and kept: in memory where they fit a stated budget, else as memory-mapped files."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from monai.utils import convert_data_type, ensure_tuple
from torch import Tensor
from tqdm import tqdm

from ..io.root_cause import root_cause
from ..io.scan_header import BadScanError, ScanHeader, read_scan_header, root_cause_message
from .mapped_scans import MappedScan, check_free_space, scan_key
from .memory_budget import GIB, cache_budget

logger = logging.getLogger(__name__)

AFFINE_SUFFIX = "_affine"
"""Behind a scan's key: the ``(4, 4)`` affine of the prepared scan, voxels to mm in RAS."""


Prepared = dict[str, np.ndarray] | MappedScan


@dataclass(frozen=True)
class LeftOut:
    """A scan that is not used, and why."""

    scan: str
    reason: str


class ScanCache:
    """Prepared scans, each a dictionary of plain arrays, from memory or from disk, with the same content either way.

    If the headers predict that all scans fit the budget at 2 bytes a voxel (int16), they are kept in memory. Else each
    is written to ``cache_dir`` once and mapped from there, so that cutting a cube reads the cube and not the scan,
    which MONAI's ``PersistentDataset`` would; the next run takes the same files. What is chosen is logged at INFO with
    its numbers. With the spawn or forkserver start method each worker gets a copy of what is in memory: let the disk
    be used there (``cache_gib=0``).

    Args:
        data: entries of a data list.
        preprocessing: deterministic transforms that load and prepare an entry.
        image_key: key of the scan in an entry, a path or, for several channels, a list of paths.
        starts_key: key of the admissible starts that the preprocessing may add; a scan with none is bad.
        cache_gib: memory budget in GiB, 0 for none, by default half of what is available.
        cache_dir: folder for prepared scans, by default ``models_genesis/scans`` in the user's cache folder.
        on_bad_scan: ``"raise"`` an error for the first bad scan, or ``"skip"`` it with a warning.
        num_workers: threads that decode.
        progress: whether to show a progress bar.
        channels: channels of an image that is one file; where each channel has its own file, each has one.

    Attributes:
        data: the entries in use.
        left_out: the bad scans.
        in_memory: whether the scans are in memory.
        nbytes: bytes of all arrays in use.

    Raises:
        BadScanError: When a scan is bad and ``on_bad_scan="raise"``.
        ValueError: When there are no entries, or no good one.
        OSError: When the disk has no room for the prepared scans.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Callable | Sequence[Callable],
        image_key: str = "image",
        starts_key: str = "starts",
        cache_gib: float | None = None,
        cache_dir: str | Path | None = None,
        on_bad_scan: Literal["raise", "skip"] = "raise",
        num_workers: int | None = None,
        progress: bool = True,
        channels: int = 1,
    ) -> None:
        if on_bad_scan not in ("raise", "skip"):
            raise ValueError(f"on_bad_scan must be 'raise' or 'skip', got {on_bad_scan!r}.")
        if len(data) == 0:
            raise ValueError("expected scans, found an empty data list.")
        self.num_workers = num_workers or min(os.cpu_count() or 1, 4)
        self.progress = progress
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._prepare = PrepareScan(preprocessing, image_key, starts_key, on_bad_scan, channels)
        sizes = [self._prepare.predicted_bytes(entry) for entry in data]
        budget = cache_budget(cache_gib)
        kept = self._fill_memory(data, budget, sizes) if sum(sizes) <= budget else None
        self.in_memory = kept is not None
        scans: Sequence[Prepared | LeftOut] = self._fill_disk(data, budget, sizes) if kept is None else kept
        self._scans = [scan for scan in scans if not isinstance(scan, LeftOut)]
        self.data = [dict(entry) for entry, scan in zip(data, scans, strict=True) if not isinstance(scan, LeftOut)]
        self.left_out = [scan for scan in scans if isinstance(scan, LeftOut)]
        self.nbytes = sum(_nbytes(scan) for scan in self._scans)
        self._report()

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Give the arrays of a prepared scan; they must not be changed."""
        scan = self._scans[index]
        return scan.arrays() if isinstance(scan, MappedScan) else dict(scan)

    def _fill_memory(
        self, data: Sequence[Mapping[str, Any]], budget: int, sizes: Sequence[int]
    ) -> Sequence[Prepared | LeftOut] | None:
        """Decode all scans into memory; give up with a warning if they are larger than their headers say."""
        logger.info(
            "%d scans fit in memory: %.2f GiB at 2 bytes a voxel, %.1f MB a scan, budget %.2f GiB.",
            len(data), sum(sizes) / GIB, sum(sizes) / len(sizes) / 1e6, budget / GIB,
        )  # fmt: skip
        limited = _Limited(self._prepare, budget)
        try:
            return self._in_threads(limited, data, "Loading scans")
        except Exception as error:
            if not limited.exceeded:
                raise root_cause(error, BadScanError) from None
            logger.warning(
                "the prepared scans are larger than their headers said and exceed the budget of %.2f GiB; they go to"
                " disk instead.",
                budget / GIB,
            )
            return None

    def _fill_disk(
        self, data: Sequence[Mapping[str, Any]], budget: int, sizes: Sequence[int]
    ) -> Sequence[Prepared | LeftOut]:
        """Write the scans that are not there yet."""
        logger.info(
            "%d scans go to disk, %s: %.2f GiB at 2 bytes a voxel, %.1f MB a scan, memory budget %.2f GiB.",
            len(data), self.cache_dir, sum(sizes) / GIB, sum(sizes) / len(sizes) / 1e6, budget / GIB,
        )  # fmt: skip
        mapped = [self._mapped(entry) for entry in data]
        there = [scan is not None and scan.exists() for scan in mapped]
        check_free_space(self.cache_dir, sum(size for size, found in zip(sizes, there, strict=True) if not found))

        def write(index: int) -> MappedScan | LeftOut:
            scan = mapped[index]
            if there[index] and scan is not None:
                return scan if _has_starts(scan.arrays(), self._prepare) else self._prepare.empty(data[index])
            arrays = self._prepare(data[index])
            if isinstance(arrays, LeftOut):
                return arrays
            if scan is None:
                raise BadScanError(self._prepare.name(data[index]), "unreadable", "the file vanished while it was read")
            scan.write(arrays)
            return scan

        scans = self._in_threads(write, range(len(data)), "Preparing scans")
        logger.info("%d of %d prepared scans were there already, in %s.", sum(there), len(data), self.cache_dir)
        return scans

    def _in_threads(self, prepare: Callable[[Any], Any], items: Sequence[Any], title: str) -> list[Any]:
        """Prepare items in threads, in order; after an error no thread is left behind.

        A process that ends while a thread of ``multiprocessing.pool.ThreadPool``, which MONAI's ``CacheDataset`` uses
        too, is still in a reader's compiled code is aborted: its message and exit status would be lost.
        """
        with ThreadPoolExecutor(self.num_workers) as pool:
            futures = [pool.submit(prepare, item) for item in items]
            try:
                return [future.result() for future in tqdm(futures, title, disable=not self.progress)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _mapped(self, entry: Mapping[str, Any]) -> MappedScan | None:
        """Name the files of a prepared scan; ``None`` where the scan itself is missing."""
        # a label map that has changed must not be taken from the cache either
        files = [path for key in (self._prepare.image_key, "label") for path in ensure_tuple(entry.get(key) or ())]
        try:
            return MappedScan(self.cache_dir, scan_key(files, self._prepare.preprocessing))
        except OSError:
            return None

    def _report(self) -> None:
        total = len(self._scans) + len(self.left_out)
        if self.left_out:
            names = "".join(f"\n  {scan.reason}" for scan in self.left_out[:10])
            more = f"\n  and {len(self.left_out) - 10} more" if len(self.left_out) > 10 else ""
            logger.warning("%d of %d scans are left out:%s%s", len(self.left_out), total, names, more)
        if not self._scans:
            raise ValueError(f"none of the {total} scans can be used; the first: {self.left_out[0].reason}")
        logger.info(
            "%d scans ready %s: %.2f GiB, %.1f MB a scan.",
            len(self._scans), "in memory" if self.in_memory else f"in {self.cache_dir}",
            self.nbytes / GIB, self.nbytes / len(self._scans) / 1e6,
        )  # fmt: skip


class PrepareScan(Transform):
    """Check, load and prepare an entry: plain arrays come out, or :class:`LeftOut`.

    Args:
        preprocessing: deterministic transforms, the first of which loads the entry.
        image_key: key of the scan.
        starts_key: key of the admissible starts that the preprocessing may add.
        on_bad_scan: ``"raise"`` or ``"skip"``.
        channels: channels of an image that is one file.
    """

    def __init__(
        self,
        preprocessing: Callable | Sequence[Callable],
        image_key: str,
        starts_key: str,
        on_bad_scan: Literal["raise", "skip"],
        channels: int = 1,
    ) -> None:
        self.preprocessing = preprocessing if callable(preprocessing) else Compose(preprocessing)
        self.image_key = image_key
        self.starts_key = starts_key
        self.on_bad_scan = on_bad_scan
        self.channels = channels

    def name(self, entry: Mapping[str, Any]) -> str:
        """Name an entry's scan in messages."""
        return str(ensure_tuple(entry[self.image_key])[0])

    def predicted_bytes(self, entry: Mapping[str, Any]) -> int:
        """Predict from the header what the scan takes at 2 bytes a voxel; 0 where it is bad."""
        try:
            return sum(2 * channels * int(np.prod(header.shape)) for header, channels in self._headers(entry))
        except BadScanError:
            return 0

    def _headers(self, entry: Mapping[str, Any]) -> list[tuple[ScanHeader, int]]:
        """Read the headers of an image's files, each with the number of its channels."""
        paths = ensure_tuple(entry[self.image_key])
        channels = self.channels if len(paths) == 1 else 1
        return [(read_scan_header(str(path), channels), channels) for path in paths]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, np.ndarray] | LeftOut:
        """Prepare one scan.

        Raises:
            BadScanError: When the scan is bad and ``on_bad_scan="raise"``.
        """
        name = self.name(data)
        try:
            self._headers(data)
            arrays = plain_arrays(self.preprocessing(dict(data)))
        except MemoryError:
            raise
        except Exception as error:
            cause = root_cause(error, BadScanError)
            if not isinstance(cause, BadScanError):
                text = root_cause_message(cause) if name not in str(cause) else str(cause).removeprefix(f"{name}: ")
                cause = BadScanError(name, "cannot be prepared", text)
            return self._bad(cause, error)
        return arrays if _has_starts(arrays, self) else self.empty(data)

    def empty(self, data: Mapping[str, Any]) -> LeftOut:
        """Treat a scan without an admissible cube."""
        return self._bad(BadScanError(self.name(data), "no cubes", "expected an admissible start, found none"))

    def _bad(self, bad: BadScanError, error: Exception | None = None) -> LeftOut:
        if self.on_bad_scan == "raise":
            raise bad from error
        logger.warning("left out: %s", bad)
        return LeftOut(bad.scan, str(bad))


class _Limited(Transform):
    """:class:`PrepareScan` that stops when its results exceed a number of bytes."""

    def __init__(self, prepare: PrepareScan, budget: int) -> None:
        self.prepare = prepare
        self.budget = budget
        self.used = 0
        self.exceeded = False
        self.lock = threading.Lock()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, np.ndarray] | LeftOut:
        arrays = self.prepare(data)
        with self.lock:
            self.used += _nbytes(arrays)
            self.exceeded = self.exceeded or self.used > self.budget
        if self.exceeded:
            raise MemoryError(f"more than {self.budget} bytes")
        return arrays


def plain_arrays(item: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Keep the arrays of an item, as contiguous numpy arrays; a MetaTensor gives its affine besides.

    Example:
        >>> import torch
        >>> arrays = plain_arrays({"image": MetaTensor(torch.zeros(1, 2, 2, 2)), "patient": "a"})
        >>> {name: array.shape for name, array in arrays.items()}
        {'image': (1, 2, 2, 2), 'image_affine': (4, 4)}
    """
    arrays = {}
    for key, value in item.items():
        if isinstance(value, np.ndarray | Tensor):
            arrays[str(key)] = np.ascontiguousarray(convert_data_type(value, np.ndarray)[0])
        if isinstance(value, MetaTensor):
            arrays[f"{key}{AFFINE_SUFFIX}"] = convert_data_type(value.affine, np.ndarray, dtype=np.float64)[0]
    return arrays


def default_cache_dir() -> Path:
    """Folder of prepared scans in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "models_genesis" / "scans"


def _has_starts(arrays: Mapping[str, np.ndarray], prepare: PrepareScan) -> bool:
    return prepare.starts_key not in arrays or len(arrays[prepare.starts_key]) > 0


def _nbytes(scan: Mapping[str, np.ndarray] | MappedScan | LeftOut) -> int:
    if isinstance(scan, LeftOut):
        return 0
    return scan.nbytes if isinstance(scan, MappedScan) else sum(array.nbytes for array in scan.values())
