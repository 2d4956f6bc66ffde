# SPDX-License-Identifier: Apache-2.0
"""Cubes from cached scans; each depends on seed, epoch and number alone, whoever computes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset

from .prepare_scan import AFFINE_SUFFIX, LeftOut
from .scan_cache import ScanCache


class CubeDataset(Dataset):
    """Cubes drawn and deformed at random from scans that are prepared once.

    An epoch has ``len(dataset)`` samples, of scan ``i % number of scans``. An index beyond that belongs to a later
    epoch: index ``e * len(dataset) + i`` is sample ``i`` of epoch ``e``, as
    :class:`~models_genesis.datasets.EpochSampler` counts them. Before each sample the random transforms are
    seeded with ``(seed, e, i)``, so that the same index gives the same sample in any order, in any number of worker
    processes or threads, and after a resume.

    **Give the loader an** :class:`~models_genesis.datasets.EpochSampler`. Other samplers, as that of a loader's
    ``shuffle=True``, ask for the indices of the first epoch again and again, and so get the same cubes in every epoch.

    Args:
        data: entries of a data list, see :func:`~models_genesis.datasets.load_datalist`.
        transform: deterministic transforms that load an entry and prepare its scan, for CT: load, orient, clip to
            int16, find admissible starts.
        random_transform: random transforms, the first of which cuts a cube. They get the arrays of a prepared scan,
            which they must not change, and ``"scan"``, its number in ``dataset.data``.
        cubes_per_scan: cubes of each scan in an epoch; the paper draws 32 (arXiv:2004.07882).
        seed: seed of all draws.
        image_key: key of the scan in an entry.
        starts_key: key of the admissible starts that the preprocessing adds.
        cache_gib: see :class:`~models_genesis.datasets.ScanCache`.
        cache_dir: see there.
        on_bad_scan: see there.
        num_workers: threads that prepare the scans.
        progress: whether to show the progress of preparing.
        channels: see ``ScanCache``.
        store: see ``ScanCache``.

    Attributes:
        data: the entries in use, without those left out.
        scans: the cache.

    Raises:
        ValueError: When ``cubes_per_scan`` is below 1, or no scan can be used; also see ``ScanCache``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable | Sequence[Callable],
        random_transform: Callable | Sequence[Callable],
        cubes_per_scan: int = 32,
        seed: int = 0,
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
        if cubes_per_scan < 1:
            raise ValueError(f"cubes_per_scan must be at least 1, got {cubes_per_scan}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        self.scans = ScanCache(
            data, transform, image_key, starts_key, cache_gib, cache_dir, on_bad_scan, num_workers, progress, channels,
            store,
        )  # fmt: skip
        self.data = self.scans.data
        self.random_transform = random_transform if callable(random_transform) else Compose(random_transform)
        self.cubes_per_scan = cubes_per_scan
        self.seed = seed
        self.image_key = image_key
        self._threads = threading.local()

    def __len__(self) -> int:
        """Count the samples of one epoch."""
        return len(self.scans) * self.cubes_per_scan

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Go through the first epoch in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Compute a sample.

        Args:
            index: ``epoch * len(self) + number``.

        Returns:
            What the transform makes of a scan's arrays and ``"scan"``.

        Raises:
            IndexError: When the index is negative.
        """
        if index < 0:
            raise IndexError(f"expected an index of 0 or more, got {index}.")
        epoch, number = divmod(int(index), len(self))
        transform = self._own_transform()
        if isinstance(transform, Randomizable):
            sequence = np.random.SeedSequence((self.seed, epoch, number))
            transform.set_random_state(state=np.random.RandomState(np.random.PCG64(sequence)))
        return transform(self._item(epoch, number))

    def _item(self, epoch: int, number: int) -> dict[str, Any]:
        """Give what the random transforms start from."""
        scan = number % len(self.scans)
        arrays = {key: array for key, array in self.scans[scan].items() if not key.endswith(AFFINE_SUFFIX)}
        return {**arrays, "scan": scan}

    @property
    def forkable(self) -> bool:
        """Whether worker processes may be forked; TensorStore, which reads stores, ends those that are."""
        return not self.scans.reads_store

    def affine(self, scan: int) -> np.ndarray:
        """Affine of a prepared scan, ``(4, 4)``, voxels to mm in RAS.

        Args:
            scan: its number, as in a sample's ``"scan"``.
        """
        return np.array(self.scans[scan][f"{self.image_key}{AFFINE_SUFFIX}"])

    @property
    def left_out(self) -> list[LeftOut]:
        """The scans that are not used, and why."""
        return self.scans.left_out

    def _own_transform(self) -> Any:
        """Give each thread a copy: a random transform keeps its state and its draws in itself."""
        transform = getattr(self._threads, "transform", None)
        if transform is None:
            transform = self._threads.transform = deepcopy(self.random_transform)
        return transform

    def __getstate__(self) -> dict[str, Any]:
        """Leave the threads' copies behind when sent to a worker process."""
        return {key: value for key, value in self.__dict__.items() if key != "_threads"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without copies."""
        self.__dict__.update(state)
        self._threads = threading.local()
