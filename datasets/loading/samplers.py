# SPDX-License-Identifier: Apache-2.0
"""The order in which an epoch's samples are drawn, over several processes too."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .processes import process_count, process_rank


class EpochSampler(Sampler[int]):
    """Indices that also carry the epoch, for :class:`~models_genesis.datasets.CubeDataset`.

    In epoch ``e`` it yields ``e * n + i`` for each ``i`` below ``n`` once, so that workers that live on and fetch ahead
    need not be told of the epoch. With several processes each takes every ``num_replicas``-th of the same order.

    Args:
        data_source: the dataset, or the number of its samples.
        shuffle: whether the order is drawn again each epoch, from seed and epoch.
        seed: seed of the order.
        rank: number of this process; None asks ``torch.distributed``.
        num_replicas: number of processes; None asks ``torch.distributed``.
        fixed: whether to stay in epoch 0, as validation does to be comparable.
        even_divisible: whether each process yields the same number, as training needs; if ``n`` is no multiple of
            ``num_replicas`` the first ones of the order come twice then. If not, the last processes yield one less.

    Raises:
        ValueError: When there are no samples, a process would have none, or there is no such process.

    Example:
        >>> sampler = EpochSampler(5, shuffle=False, rank=1, num_replicas=2)
        >>> sampler.set_epoch(3)
        >>> list(sampler)
        [16, 18, 15]
    """

    def __init__(
        self,
        data_source: Sized | int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        fixed: bool = False,
        even_divisible: bool = True,
    ) -> None:
        self.length = data_source if isinstance(data_source, int) else len(data_source)
        if self.length < 1:
            raise ValueError(f"expected at least 1 sample, found {self.length}.")
        rank = process_rank() if rank is None else rank
        num_replicas = process_count() if num_replicas is None else num_replicas
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must lie in 0 to {num_replicas - 1}, got {rank}.")
        if self.length < num_replicas and not even_divisible:
            raise ValueError(f"expected at least 1 sample for each of {num_replicas} processes, found {self.length}.")
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_replicas = num_replicas
        self.fixed = fixed
        self.even_divisible = even_divisible
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, from 0; without effect where the sampler is fixed.

        Args:
            epoch: its number.
            start: this process's samples of the epoch that are done already, as after a resume in its middle.

        Raises:
            ValueError: When one of them is negative, or the epoch has not as many samples.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must lie in 0 to {len(self)}, the samples of an epoch, got {start}.")
        self.epoch, self.start = (0, 0) if self.fixed else (epoch, start)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's indices of the epoch, from the start on."""
        order: NDArray[np.int64] = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        if self.even_divisible:
            order = np.resize(order, -(-self.length // self.num_replicas) * self.num_replicas)
        own = order[self.rank :: self.num_replicas][self.start :]
        return iter((self.epoch * self.length + own).tolist())

    def __len__(self) -> int:
        """Count this process's indices of a whole epoch."""
        if self.even_divisible:
            return -(-self.length // self.num_replicas)
        return len(range(self.rank, self.length, self.num_replicas))
