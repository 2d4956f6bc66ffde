# SPDX-License-Identifier: Apache-2.0
"""Scans decoded once and kept: in memory where they fit a stated budget, else as memory-mapped files, or in a store."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.transforms import Transform
from tqdm import tqdm

from ..io.root_cause import root_cause
from ..io.scan_header import BadScanError
from .mapped_scans import MappedScan, check_free_space, preprocessing_key, scan_key
from .memory_budget import GIB, cache_budget
from .prepare_scan import LeftOut, PrepareScan, has_starts
from .scan_notes import ScanNote, ScanNotes
from .stored_scans import StoredScan, StoreReader

logger = logging.getLogger(__name__)

SHORT_WAIT = 2
"""Seconds of reading headers that need no progress bar."""

Prepared = dict[str, np.ndarray] | MappedScan | StoredScan


class ScanCache:
    """Prepared scans, each a dictionary of plain arrays, from memory or from disk, with the same content either way.

    If the headers predict that all scans fit the budget at 2 bytes a voxel (int16), they are kept in memory. Else each
    is written to ``cache_dir`` once and mapped from there, so that cutting a cube reads the cube and not the scan,
    which MONAI's ``PersistentDataset`` would; the next run takes the same files where preprocessing, entry and the
    files that it names are the same, see :func:`~.mapped_scans.scan_key`, and for these reads no header of DICOM
    again, see :class:`~.scan_notes.ScanNotes`. What is chosen is logged at INFO with its
    numbers. With the spawn or forkserver start method each worker gets a copy of what is in memory: let the disk be
    used there (``cache_gib=0``).

    With ``store`` the scans were prepared before, by ``python -m models_genesis.datasets prepare``, and nothing is
    decoded. What fits the budget is read into memory; else cubes are read straight from the store, or, where
    ``cache_dir`` is given, the prepared scans are copied there first and mapped.

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
        store: path or URL of a store that the entries are of, see :func:`~models_genesis.datasets.load_datalist`.

    Attributes:
        data: the entries in use.
        left_out: the bad scans.
        in_memory: whether the scans are in memory.
        reads_store: whether cubes are read straight from a store.
        nbytes: bytes of all arrays in use.

    Raises:
        BadScanError: When a scan is bad and ``on_bad_scan="raise"``.
        ValueError: When there are no entries, or no good one; or a store was prepared otherwise than
            ``preprocessing`` would.
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
        store: str | None = None,
    ) -> None:
        if on_bad_scan not in ("raise", "skip"):
            raise ValueError(f"on_bad_scan must be 'raise' or 'skip', got {on_bad_scan!r}.")
        if len(data) == 0:
            raise ValueError("expected scans, found an empty data list.")
        self.num_workers = num_workers or min(os.cpu_count() or 1, 4)
        self.progress = progress
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._prepare = (
            PrepareScan(preprocessing, image_key, starts_key, on_bad_scan, channels)
            if store is None
            else StoreReader(store, data, preprocessing, image_key, starts_key, on_bad_scan)
        )
        self._notes = None if store is not None else self._keep_notes()
        noted = self._in_threads(self._look, data, "Reading headers", SHORT_WAIT)
        sizes = [note.nbytes for note in noted]
        budget = cache_budget(cache_gib)
        kept = self._fill_memory(data, budget, sizes) if sum(sizes) <= budget else None
        self.in_memory = kept is not None
        self.reads_store = kept is None and isinstance(self._prepare, StoreReader) and cache_dir is None
        scans: Sequence[Prepared | LeftOut]
        if kept is not None:
            scans = kept
        elif self.reads_store:
            scans = self._leave_in_store(data, budget, sizes)
        else:
            scans = self._fill_disk(data, budget, noted)
        self._scans = [scan for scan in scans if not isinstance(scan, LeftOut)]
        in_use = self._prepare.noted if isinstance(self._prepare, StoreReader) else dict
        self.data = [in_use(entry) for entry, scan in zip(data, scans, strict=True) if not isinstance(scan, LeftOut)]
        self.left_out = [scan for scan in scans if isinstance(scan, LeftOut)]
        self.nbytes = sum(_nbytes(scan) for scan in self._scans)
        self._report()

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Give the arrays of a prepared scan; they must not be changed."""
        scan = self._scans[index]
        return dict(scan) if isinstance(scan, dict) else scan.arrays()

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

    def _leave_in_store(
        self, data: Sequence[Mapping[str, Any]], budget: int, sizes: Sequence[int]
    ) -> list[Prepared | LeftOut]:
        """Read nothing yet."""
        assert isinstance(self._prepare, StoreReader)
        logger.info(
            "%d scans stay in %s: %.2f GiB uncompressed, %.1f MB a scan, memory budget %.2f GiB.",
            len(data), self._prepare.location.url, sum(sizes) / GIB, sum(sizes) / len(sizes) / 1e6, budget / GIB,
        )  # fmt: skip
        return [self._prepare.scan(entry) for entry in data]

    def _fill_disk(
        self, data: Sequence[Mapping[str, Any]], budget: int, noted: Sequence[ScanNote]
    ) -> Sequence[Prepared | LeftOut]:
        """Write the scans that are not there yet."""
        sizes = [note.nbytes for note in noted]
        logger.info(
            "%d scans go to disk, %s: %.2f GiB at 2 bytes a voxel, %.1f MB a scan, memory budget %.2f GiB.",
            len(data), self.cache_dir, sum(sizes) / GIB, sum(sizes) / len(sizes) / 1e6, budget / GIB,
        )  # fmt: skip
        settings = self._settings() if self._notes is None else self._notes.preprocessing
        mapped = [self._mapped(entry, settings, note) for entry, note in zip(data, noted, strict=True)]
        there = [scan is not None and scan.exists() for scan in mapped]
        check_free_space(self.cache_dir, sum(size for size, found in zip(sizes, there, strict=True) if not found))

        def write(index: int) -> MappedScan | LeftOut:
            scan = mapped[index]
            if there[index] and scan is not None:
                self._keep(data[index], noted[index])
                return scan if has_starts(scan.arrays(), self._prepare.starts_key) else self._prepare.empty(data[index])
            arrays = self._prepare(data[index])
            if isinstance(arrays, LeftOut):
                return arrays
            if scan is None:
                raise BadScanError(self._prepare.name(data[index]), "unreadable", "the file vanished while it was read")
            scan.write(arrays)
            self._keep(data[index], noted[index])
            return scan

        scans = self._in_threads(write, range(len(data)), "Preparing scans")
        logger.info("%d of %d prepared scans were there already, in %s.", sum(there), len(data), self.cache_dir)
        return scans

    def _in_threads(
        self, prepare: Callable[[Any], Any], items: Sequence[Any], title: str, delay: float = 0
    ) -> list[Any]:
        """Prepare items in threads, in order; after an error no thread is left behind.

        A process that ends while a thread of ``multiprocessing.pool.ThreadPool``, which MONAI's ``CacheDataset`` uses
        too, is still in a reader's compiled code is aborted: its message and exit status would be lost.
        """
        with ThreadPoolExecutor(self.num_workers) as pool:
            futures = [pool.submit(prepare, item) for item in items]
            try:
                return [future.result() for future in tqdm(futures, title, disable=not self.progress, delay=delay)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _keep_notes(self) -> ScanNotes | None:
        """Make the notes; ``None`` where the preprocessing has no name, which matters only when scans go to disk."""
        try:
            return ScanNotes(self.cache_dir, self._settings(), self._prepare.image_key)
        except ValueError:
            return None

    def _settings(self) -> str:
        """Name the preprocessing; that of a store is part of what it gives for a key."""
        return preprocessing_key(getattr(self._prepare, "preprocessing", None))

    def _look(self, entry: Mapping[str, Any]) -> ScanNote:
        """Predict how large a scan is."""
        predict = self._prepare.predicted_bytes
        return ScanNote(predict(entry)) if self._notes is None else self._notes.look(entry, predict)

    def _keep(self, entry: Mapping[str, Any], note: ScanNote) -> None:
        """Keep the note of a scan that is on disk."""
        if self._notes is not None:
            self._notes.write(entry, note)

    def _mapped(self, entry: Mapping[str, Any], settings: str, note: ScanNote) -> MappedScan | None:
        """Name the files of a prepared scan; ``None`` where the scan itself is missing."""
        if isinstance(self._prepare, StoreReader):
            return MappedScan(self.cache_dir, self._prepare.mapped_key(entry))
        try:
            return MappedScan(self.cache_dir, note.key or scan_key(entry, settings, self._prepare.image_key))
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
        where = "in memory" if self.in_memory else "in the store" if self.reads_store else f"in {self.cache_dir}"
        logger.info(
            "%d scans ready %s: %.2f GiB, %.1f MB a scan.",
            len(self._scans), where, self.nbytes / GIB, self.nbytes / len(self._scans) / 1e6,
        )  # fmt: skip


class _Limited(Transform):
    """:class:`PrepareScan` that stops when its results exceed a number of bytes."""

    def __init__(self, prepare: PrepareScan | StoreReader, budget: int) -> None:
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


def default_cache_dir() -> Path:
    """Folder of prepared scans in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "models_genesis" / "scans"


def _nbytes(scan: Mapping[str, np.ndarray] | MappedScan | StoredScan | LeftOut) -> int:
    if isinstance(scan, LeftOut):
        return 0
    return sum(array.nbytes for array in scan.values()) if isinstance(scan, Mapping) else scan.nbytes
