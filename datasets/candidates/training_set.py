# SPDX-License-Identifier: Apache-2.0
"""Training cubes around candidates: a balanced mix of rare positives and many negatives, drawn without reading all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..loading.cube_dataset import CubeDataset
from ..loading.prepare_scan import AFFINE_SUFFIX
from .split import CandidateSet
from .table import CandidateTable, inside, voxels_of

logger = logging.getLogger(__name__)

POSITIVE, NEGATIVE, HARD = 1, 2, 3
"""Streams of random numbers."""


class CandidateDataset(CubeDataset):
    """Cubes around candidates, positives and negatives in a stated ratio, from scans that are prepared once.

    An epoch takes each positive once, and ``negatives_per_positive`` negatives for each. Which negatives, goes through
    a shuffled list of all of them, epoch after epoch, so that none comes again before all have come; so do the
    positives where ``samples_per_epoch`` says how many. LUNA16 has 484 negatives for each positive: at a ratio of 1 an
    epoch is 0.4 % of the table, and only these cubes are read. Scans are kept as in
    :class:`~models_genesis.datasets.loading.cube_dataset.CubeDataset`, as int16, in memory or mapped from disk.

    Index ``e * len(dataset) + i`` is sample ``i`` of epoch ``e``; the same seed and index give the same sample in any
    order and any worker. **Give the loader an** :class:`~models_genesis.datasets.EpochSampler`: with other samplers
    every epoch is the first one, with the same few negatives.

    Args:
        data: scans and candidates of the training split.
        transform: deterministic transforms that load an entry and prepare its scan: load, orient, resample to one
            spacing if wanted, clip to int16.
        random_transform: transforms of one sample, the first of which cuts its cube, such as
            :class:`~models_genesis.transforms.RandCandidateCubed`. They get a dictionary of ``image`` (the whole
            prepared scan, not to be changed), ``image_affine``, ``center`` (voxels), ``label`` (float32, (1,)), ``row``
            (of the table), ``scan`` (in ``dataset.data``) and ``seriesuid``.
        negatives_per_positive: the ratio, above 0.
        samples_per_epoch: samples of an epoch at the same ratio; by default as many as the positives ask for.
        hard_negatives: share of the negatives, in [0, 1], drawn in proportion to the table's ``probability`` instead,
            so that those which an earlier model or the detector took for true come more often.
        seed: seed of all draws.
        image_key: key of the scan in an entry.
        cache_gib: see :class:`~models_genesis.datasets.loading.scan_cache.ScanCache`.
        cache_dir: see there.
        on_bad_scan: see there; candidates of a scan that is skipped are marked in the table.
        num_workers: threads that prepare the scans.
        progress: whether to show the progress of preparing.

    Attributes:
        table: the table, in which candidates outside their scan are marked now.

    Raises:
        ValueError: When there are no positives or no negatives, a number is out of range, or no probabilities are there
            for hard negatives; also see ``ScanCache``.
    """

    def __init__(
        self,
        data: CandidateSet,
        transform: Callable | Sequence[Callable],
        random_transform: Callable | Sequence[Callable],
        negatives_per_positive: float = 1.0,
        samples_per_epoch: int | None = None,
        hard_negatives: float = 0.0,
        seed: int = 0,
        image_key: str = "image",
        cache_gib: float | None = None,
        cache_dir: str | Path | None = None,
        on_bad_scan: Literal["raise", "skip"] = "raise",
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        if not 0 < negatives_per_positive < np.inf:
            raise ValueError(f"negatives_per_positive must be above 0, got {negatives_per_positive}.")
        if samples_per_epoch is not None and samples_per_epoch < 2:
            raise ValueError(f"samples_per_epoch must be at least 2, got {samples_per_epoch}.")
        if not 0 <= hard_negatives <= 1:
            raise ValueError(f"hard_negatives must lie in [0, 1], got {hard_negatives}.")
        _check_classes(data)
        self.table: CandidateTable = data.table
        rows = dict(zip((entry["seriesuid"] for entry in data.data), data.rows, strict=True))
        # a scan without candidates need not be read
        entries = [entry for entry in data.data if len(rows[entry["seriesuid"]])]
        super().__init__(
            entries,
            transform,
            random_transform,
            seed=seed,
            image_key=image_key,
            cache_gib=cache_gib,
            cache_dir=cache_dir,
            on_bad_scan=on_bad_scan,
            num_workers=num_workers,
            progress=progress,
        )
        used = {entry["seriesuid"]: number for number, entry in enumerate(self.data)}
        for name in [entry["seriesuid"] for entry in entries if entry["seriesuid"] not in used]:
            self.table.mark(rows[name], "scan cannot be read")
        self._scan = np.full(len(self.table), -1, np.int32)
        self._center = np.zeros((len(self.table), 3), np.float32)
        for name, number in used.items():
            self._center[rows[name]] = place_candidates(self.table, rows[name], self.scans[number], image_key)
            self._scan[rows[name]] = number
        good = (self._scan >= 0) & self.table.good
        self._rows = {
            POSITIVE: np.flatnonzero(good & (self.table.label == 1)),
            NEGATIVE: np.flatnonzero(good & (self.table.label == 0)),
        }
        _check_classes(CandidateSet(self.data, self.table, self._scan, name=data.name))
        if hard_negatives:
            self._hard = _hardness(self.table, self._rows[NEGATIVE])
        self.hard_negatives = hard_negatives
        positives = len(self._rows[POSITIVE])
        if samples_per_epoch is not None:
            positives = min(max(round(samples_per_epoch / (1 + negatives_per_positive)), 1), samples_per_epoch - 1)
        self.positives_per_epoch = positives
        self._length = samples_per_epoch or positives + max(round(positives * negatives_per_positive), 1)
        logger.info("%s", self.summary())

    def __len__(self) -> int:
        """Count the samples of one epoch."""
        return self._length

    def summary(self) -> str:
        """Say what an epoch is made of."""
        positives, negatives = (len(self._rows[kind]) for kind in (POSITIVE, NEGATIVE))
        drawn = len(self) - self.positives_per_epoch
        return (
            f"an epoch takes {self.positives_per_epoch} of {positives} positives and {drawn} of {negatives} negatives"
            f" from {len(self.data)} scans, {round(self.hard_negatives * 100)} % of the negatives by their probability"
        )

    def row(self, index: int) -> int:
        """Tell which row of the table a sample shows.

        Args:
            index: ``epoch * len(self) + number``.
        """
        epoch, number = divmod(int(index), len(self))
        if number < self.positives_per_epoch:
            return self._nth(POSITIVE, epoch * self.positives_per_epoch + number)
        slot = number - self.positives_per_epoch
        negatives = len(self) - self.positives_per_epoch
        hard, before = int((slot + 1) * self.hard_negatives), int(slot * self.hard_negatives)
        if hard > before:
            draw = np.random.default_rng((self.seed, HARD, epoch, slot)).random()
            index = np.searchsorted(self._hard, draw * self._hard[-1], side="right")
            return int(self._rows[NEGATIVE][index])
        uniform = negatives - int(negatives * self.hard_negatives)
        return self._nth(NEGATIVE, epoch * uniform + slot - before)

    def _nth(self, kind: int, number: int) -> int:
        """Give an entry of the endless list that goes through all rows of a kind in one order after the other."""
        rows = self._rows[kind]
        cycle, index = divmod(number, len(rows))
        return int(rows[self._order(kind, cycle)[index]])

    def _order(self, kind: int, cycle: int) -> NDArray[np.int64]:
        orders = getattr(self._threads, "orders", None)
        if orders is None:
            orders = self._threads.orders = {}
        if (kind, cycle) not in orders:
            # an epoch may begin at the end of one order and go on in the next
            for key in [key for key in orders if key[0] == kind and abs(key[1] - cycle) > 1]:
                del orders[key]
            rng = np.random.default_rng((self.seed, kind, cycle))
            orders[kind, cycle] = rng.permutation(len(self._rows[kind])).astype(np.int32)
        return orders[kind, cycle]

    def _item(self, epoch: int, number: int) -> dict[str, Any]:
        row = self.row(epoch * len(self) + number)
        scan = int(self._scan[row])
        name = self.data[scan]["seriesuid"]
        return candidate_item(self.table, row, scan, name, self.scans[scan], self._center[row])


def candidate_item(
    table: CandidateTable,
    row: int,
    scan: int,
    seriesuid: str,
    arrays: Mapping[str, np.ndarray],
    center: NDArray[np.floating],
) -> dict[str, Any]:
    """Make the item of a candidate from which the transforms cut its cube.

    Args:
        table: the table.
        row: the candidate.
        scan: number of its scan.
        seriesuid: name of its scan.
        arrays: the prepared scan.
        center: the candidate's place in it, voxels.

    Returns:
        ``image``, ``image_affine``, ``center``, ``label``, ``row``, ``scan`` and ``seriesuid``.
    """
    label = float(table.label[row])
    return {
        **arrays,
        "center": center.astype(np.float64),
        "label": np.array([label if label >= 0 else np.nan], np.float32),
        "row": row,
        "scan": scan,
        "seriesuid": seriesuid,
    }


def place_candidates(
    table: CandidateTable, rows: NDArray[np.int64], arrays: Mapping[str, np.ndarray], image_key: str
) -> NDArray[np.float64]:
    """Find the places of candidates in their prepared scan, and mark those outside it.

    Args:
        table: the table.
        rows: candidates of the scan.
        arrays: the prepared scan, with its affine.
        image_key: key of the scan.

    Returns:
        (N, 3) voxels, not rounded.
    """
    voxels = voxels_of(table.world[rows], arrays[f"{image_key}{AFFINE_SUFFIX}"])
    mark_outside(table, rows, voxels, arrays[image_key].shape[1:])
    return voxels


def mark_outside(
    table: CandidateTable, rows: NDArray[np.int64], voxels: NDArray[np.float64], shape: Sequence[int]
) -> None:
    """Mark the candidates that lie outside their scan.

    Args:
        table: the table.
        rows: candidates of the scan.
        voxels: (N, 3), their places.
        shape: voxels of the scan.
    """
    size = " x ".join(map(str, shape))
    outside = ~inside(voxels, shape)
    details = {
        int(row): f"expected a place in the scan's {size} voxels, found {', '.join(f'{side:.1f}' for side in place)}"
        for row, place in zip(rows[outside], voxels[outside], strict=True)
    }
    table.mark(rows[outside], "outside its scan", details)


def _check_classes(data: CandidateSet) -> None:
    for kind, rows in (("positive", data.positives), ("negative", data.negatives)):
        if not len(rows):
            raise ValueError(
                f"{data.name}: expected {kind} candidates to train on, found none in {len(data.data)} scans."
                f"\n{data.table.summary()}"
            )


def _hardness(table: CandidateTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum up the probabilities of negatives, so that a number drawn evenly falls on each as often as it says."""
    weights = np.nan_to_num(table.probability[rows], nan=0.0, posinf=0.0, neginf=0.0)
    if weights.min() < 0 or weights.max() <= 0:
        raise ValueError(
            f"{table.path}: expected probabilities of the negatives, 0 or more and some above 0, found"
            f" {weights.min():g} to {weights.max():g}."
        )
    return np.cumsum(weights)
