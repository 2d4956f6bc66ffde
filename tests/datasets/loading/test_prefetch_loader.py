# SPDX-License-Identifier: Apache-2.0
"""The prefetching loader gives what a plain one gives, errors included, and prepares the next batch meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from models_genesis.datasets import EpochSampler, PrefetchDataLoader


class Numbers(Dataset):
    def __init__(self, bad: int = -1, pause: float = 0.0) -> None:
        self.bad = bad
        self.pause = pause
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        time.sleep(self.pause)
        if index == self.bad:
            raise RuntimeError(f"no number {index}")
        return torch.tensor(index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_those_of_a_plain_loader(num_workers: int) -> None:
    sampler = EpochSampler(10, seed=3)
    arguments = {"batch_size": 3, "sampler": sampler, "num_workers": num_workers}
    loader = PrefetchDataLoader(Numbers(), persistent_workers=num_workers > 0, **arguments)
    assert len(loader) == 4
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected = [batch.tolist() for batch in DataLoader(Numbers(), **arguments)]
        assert [batch.tolist() for batch in loader] == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_reaches_the_training_after_the_batches_before_it(num_workers: int) -> None:
    loader = PrefetchDataLoader(Numbers(bad=7), batch_size=2, num_workers=num_workers)
    seen = []
    with pytest.raises(RuntimeError, match="no number 7"):
        for batch in loader:
            seen.append(batch.tolist())
    assert seen == [[0, 1], [2, 3], [4, 5]]


def test_the_next_batch_is_prepared_meanwhile_and_no_more_than_two() -> None:
    numbers = Numbers()
    loader = PrefetchDataLoader(numbers, batch_size=2)
    iterator = iter(loader)
    next(iterator)
    deadline = time.monotonic() + 10
    while len(numbers.asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    # one batch is out, one waits in the buffer, one waits to enter it
    assert numbers.asked == [0, 1, 2, 3, 4, 5]
    before = threading.active_count()
    iterator.close()
    assert threading.active_count() == before - 1
