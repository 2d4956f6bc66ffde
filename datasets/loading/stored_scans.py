# SPDX-License-Identifier: Apache-2.0
"""Scans of a store as the cache takes them: whole ones, and ones of which a cube reads a few chunks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.data.utils import json_hashing
from monai.transforms import Compose

from ..io.scan_header import BadScanError
from ..store.location import Location
from ..store.manifest import ScanRow, Store, duplicates, name_of_datalist, shared_patients
from ..store.scan_arrays import StoredArray
from ..store.settings import differences, fingerprint, settings_of_steps
from ..store.start_runs import StoredStarts
from .mapped_scans import VERSION
from .prepare_scan import AFFINE_SUFFIX, LeftOut, leave_out, no_cubes

__all__ = ["StoreReader", "StoredScan", "load_stored_entries"]

logger = logging.getLogger(__name__)


def load_stored_entries(store: str, datalist: str | Path | None = None, key: str = "training") -> list[dict[str, Any]]:
    """Give the scans of one split of a store, those that could not be prepared too.

    Args:
        store: path or URL of the store.
        datalist: the data list that it was prepared from; None where that was one list only.
        key: the split.

    Returns:
        The entries of the data list, in its order, ``image`` being the path that was prepared, which need not exist any
        more; ``stored`` has the list's name in the store, and the SHA-256 of the file, which is that of the way to
        find starts that a training asks for once :class:`StoreReader` knows it.

    Raises:
        ValueError: When there is no such store, list or split, or the list is not prepared to its end.
    """
    rows = Store(Location(store)).rows(None if datalist is None else name_of_datalist(datalist))
    chosen = [row for row in rows if row.split == key]
    if not chosen:
        raise ValueError(f"{store}: expected scans in {key!r}, found {sorted({row.split for row in rows})}.")
    _warn(store, rows)
    return [
        {
            **json.loads(row.entry),
            "image": row.source,
            "stored": {"datalist": row.datalist, "sha256": row.sha256},
        }
        for row in chosen
    ]


def _warn(store: str, rows: Sequence[ScanRow]) -> None:
    """Warn of scans that are in a list twice, and of patients who are in several splits: validation would mislead."""
    groups = duplicates(rows)
    if groups:
        shown = "\n  ".join(" = ".join(f"{row.split} {row.source}" for row in group) for group in groups[:5])
        logger.warning("%s: %d scans are in it twice or more, the first:\n  %s", store, len(groups), shown)
    if patients := shared_patients(rows):
        logger.warning("%s: %d patients are in several splits: %s", store, len(patients), ", ".join(patients[:10]))


class StoredScan:
    """The arrays of one scan in a store, of which nothing is read before it is indexed.

    Args:
        location: the store.
        row: the scan's.
        image_key: key of the scan.
        starts_key: key of the starts; None for none.
    """

    def __init__(self, location: Location, row: ScanRow, image_key: str, starts_key: str | None) -> None:
        self.location = location
        self.row = row
        self.image_key = image_key
        self.starts_key = starts_key

    def arrays(self) -> dict[str, Any]:
        """Give what looks like arrays of the image and of its starts, and the affine."""
        row = self.row
        arrays: dict[str, Any] = {
            self.image_key: StoredArray(self.location, row.image_name, row.shape, row.dtype),
            f"{self.image_key}{AFFINE_SUFFIX}": np.array(row.affine).reshape(4, 4),
        }
        if self.starts_key is not None:
            arrays[self.starts_key] = StoredStarts(
                self.location, row.starts_name, row.starts_before, row.starts_runs, row.starts_type
            )
        return arrays

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels, uncompressed."""
        return int(np.prod(self.row.shape, dtype=np.int64)) * np.dtype(self.row.dtype).itemsize


class StoreReader:
    """Take the place of :class:`~.scan_cache.PrepareScan` where the scans were prepared before.

    Args:
        store: path or URL of the store.
        data: entries of :func:`load_stored_entries`.
        preprocessing: how the training would prepare scans, which the store must have done in the same way.
        image_key: key of the scan.
        starts_key: key of the admissible starts.
        on_bad_scan: ``"raise"`` or ``"skip"``.

    Raises:
        ValueError: When the scans were prepared otherwise, or the starts for these cubes were not found.
    """

    def __init__(
        self,
        store: str,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Callable | Sequence[Callable],
        image_key: str,
        starts_key: str,
        on_bad_scan: Literal["raise", "skip"],
    ) -> None:
        self.image_key, self.on_bad_scan = image_key, on_bad_scan
        self.location = Location(store)
        steps = list(preprocessing.transforms if isinstance(preprocessing, Compose) else ensure_steps(preprocessing))
        windows = steps.pop() if getattr(steps[-1], "starts_key", None) == starts_key else None
        self.starts_key = None if windows is None else starts_key
        kept = Store(self.location)
        prepared = kept.preparation()
        if prepared is None:
            raise ValueError(f"{store}: expected a store of prepared scans, found none")
        if text := differences(prepared, settings_of_steps(steps)):
            raise ValueError(f"{store}: the scans were prepared otherwise than this training asks for: {text}")
        self.windows = "" if windows is None else fingerprint(settings_of_steps([windows]))
        lists = {entry["stored"]["datalist"] for entry in data}
        way = None if windows is None else self.windows
        self._rows = {(name, row.source): row for name in lists for row in kept.rows(name, way)}

    def name(self, entry: Mapping[str, Any]) -> str:
        """Name an entry's scan in messages."""
        return str(entry[self.image_key])

    def row(self, entry: Mapping[str, Any]) -> ScanRow:
        """Find a scan in the manifest.

        Raises:
            ValueError: When it is not there.
        """
        name, source = entry["stored"]["datalist"], str(entry[self.image_key])
        if (name, source) not in self._rows:
            raise ValueError(
                f"{self.location.url}: {name}: expected {source}, found it not among the {len(self._rows)} scans of"
                " these starts; run prepare again"
            )
        return self._rows[name, source]

    def noted(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Give an entry with the SHA-256 of the file whose voxels are read here."""
        return {**entry, "stored": {**entry["stored"], "sha256": self.row(entry).sha256}}

    def predicted_bytes(self, entry: Mapping[str, Any]) -> int:
        """Say what the scan takes in memory; 0 where it was left out."""
        row = self.row(entry)
        return 0 if row.skipped else StoredScan(self.location, row, self.image_key, None).nbytes

    def scan(self, entry: Mapping[str, Any]) -> StoredScan | LeftOut:
        """Give a scan of which nothing is read yet.

        Raises:
            BadScanError: When it was left out and ``on_bad_scan="raise"``.
        """
        row = self.row(entry)
        if row.skipped:
            reason, _, detail = row.skipped.partition(": ")
            return leave_out(BadScanError(row.source, reason, detail), self.on_bad_scan)
        return StoredScan(self.location, row, self.image_key, self.starts_key)

    def empty(self, entry: Mapping[str, Any]) -> LeftOut:
        """Treat a scan without an admissible cube, of which a store has none."""
        return leave_out(no_cubes(self.name(entry)), self.on_bad_scan)

    def mapped_key(self, entry: Mapping[str, Any]) -> str:
        """Name the copy of a scan on this machine's disk, by what the scan holds."""
        row = self.row(entry)
        return json_hashing([VERSION, "store", row.hash, list(row.affine), self.windows]).decode()[:32]

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, np.ndarray] | LeftOut:
        """Read a whole scan.

        Raises:
            BadScanError: See :meth:`scan`.
            OSError: When the store cannot be read.
        """
        scan = self.scan(entry)
        if isinstance(scan, LeftOut):
            return scan
        return {name: np.asarray(array) for name, array in scan.arrays().items()}


def ensure_steps(preprocessing: Any) -> list[Any]:
    """List the steps of a preprocessing that is no ``Compose``."""
    return [preprocessing] if callable(preprocessing) else list(preprocessing)
