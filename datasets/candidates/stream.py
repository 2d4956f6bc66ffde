# SPDX-License-Identifier: Apache-2.0
"""All candidates of a split, scan by scan in bounded memory, for evaluation and inference."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal

import numpy as np
from monai.transforms import Compose
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from ..loading.prepare_scan import LeftOut, PrepareScan
from ..loading.processes import process_count, process_rank
from .split import CandidateSet
from .training_set import candidate_item, place_candidates

logger = logging.getLogger(__name__)


class CandidateStream(IterableDataset):
    """Items of all candidates, those of a scan together, each scan decoded once.

    While the candidates of one scan are cut, the next is decoded in a thread; no more than ``1 + prefetch`` scans are
    held. Candidates that cannot be scored are marked in the table, so that they can be reported, and the rest goes on.

    Args:
        data: scans and candidates.
        transform: deterministic transforms that load an entry and prepare its scan, those of the training.
        cube_transform: transforms of one item, the first of which cuts its cube, such as
            :class:`~models_genesis.transforms.CandidateCubed`; what they get says
            :class:`~models_genesis.datasets.candidates.training_set.CandidateDataset`.
        done: rows that are scored already, from a run that ended early; a scan whose candidates are all done is not
            opened.
        rank: number of this process, which takes every ``world_size``-th scan; where there are fewer scans than
            processes, every ``world_size``-th candidate of each. None asks ``torch.distributed``.
        world_size: number of processes; None asks ``torch.distributed``.
        prefetch: scans decoded ahead.
        on_bad_scan: ``"skip"`` a scan that cannot be read, which marks its rows, or ``"raise"`` an error.
        image_key: key of the scan in an entry.
        progress: whether to show a bar, one step a scan.

    Attributes:
        table: the table, in which rows that cannot be scored are marked as the iteration goes on.
        data: entries of the scans, all of the split.

    Raises:
        ValueError: When ``rank``, ``prefetch`` or ``on_bad_scan`` is out of range.
    """

    def __init__(
        self,
        data: CandidateSet,
        transform: Callable | Sequence[Callable],
        cube_transform: Callable | Sequence[Callable],
        done: Collection[int] | NDArray[np.int64] = (),
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 1,
        on_bad_scan: Literal["raise", "skip"] = "skip",
        image_key: str = "image",
        progress: bool = False,
    ) -> None:
        rank = process_rank() if rank is None else rank
        world_size = process_count() if world_size is None else world_size
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 to {world_size - 1}, got {rank}.")
        if prefetch < 0:
            raise ValueError(f"prefetch must be 0 or more, got {prefetch}.")
        if on_bad_scan not in ("raise", "skip"):
            raise ValueError(f"on_bad_scan must be 'raise' or 'skip', got {on_bad_scan!r}.")
        self.table = data.table
        self.data = data.data
        self.name = data.name
        self.prefetch = prefetch
        self.image_key = image_key
        self.progress = progress
        self.cube_transform = cube_transform if callable(cube_transform) else Compose(cube_transform)
        self._prepare = PrepareScan(transform, image_key, "starts", on_bad_scan)
        scored = np.zeros(len(self.table), bool)
        scored[np.array(list(done), np.int64)] = True
        if len(data.rows) < world_size:
            own = [(scan, rows[(rank - scan) % world_size :: world_size]) for scan, rows in enumerate(data.rows)]
        else:
            own = list(enumerate(data.rows))[rank::world_size]
        left = [(scan, rows[~scored[rows]]) for scan, rows in own]
        self._todo = [(scan, rows) for scan, rows in left if len(rows)]
        logger.info(
            "%s: %d candidates of %d scans to score, %d scored before.",
            self.name, len(self), len(self._todo), int(scored.sum()),
        )  # fmt: skip

    def __len__(self) -> int:
        """Count the candidates to come, those that will turn out to be bad included."""
        return sum(len(rows) for _, rows in self._todo)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Go through the candidates.

        Yields:
            What ``cube_transform`` makes of a candidate's item.

        Raises:
            RuntimeError: In a worker process, whose marks in the table would be lost.
            BadScanError: For a scan that cannot be read, with ``on_bad_scan="raise"``.
        """
        if get_worker_info() is not None:
            raise RuntimeError("a CandidateStream decodes ahead in its own thread: use num_workers=0.")
        bar = tqdm(self._prepared(), "scans", len(self._todo), disable=None if self.progress else True)
        for scan, rows, arrays in bar:
            if isinstance(arrays, LeftOut):
                self.table.mark(rows, "scan cannot be read", {int(row): arrays.reason for row in rows})
                continue
            centers = place_candidates(self.table, rows, arrays, self.image_key)
            good = self.table.good[rows]
            for row, center in zip(rows[good].tolist(), centers[good], strict=True):
                yield self.cube_transform(
                    candidate_item(self.table, row, scan, self.data[scan]["seriesuid"], arrays, center)
                )

    def _prepared(self) -> Iterator[tuple[int, NDArray[np.int64], dict[str, np.ndarray] | LeftOut]]:
        """Prepare the scans in turn, ``prefetch`` of them ahead."""
        waiting: deque[Future] = deque()
        following = iter(self._todo)

        def decode(number: int) -> None:
            for scan, _ in islice(following, number):
                waiting.append(pool.submit(self._prepare, self.data[scan]))

        with ThreadPoolExecutor(max(self.prefetch, 1), "scans") as pool:
            try:
                for scan, rows in self._todo:
                    decode(0 if waiting else 1)
                    arrays = waiting.popleft().result()
                    decode(self.prefetch - len(waiting))
                    yield scan, rows, arrays
                    del arrays
            finally:
                for future in waiting:
                    future.cancel()
