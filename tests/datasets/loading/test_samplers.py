# SPDX-License-Identifier: Apache-2.0
"""Each epoch has every sample once, over any number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.datasets import EpochSampler


@pytest.mark.parametrize("length", [1, 7, 24])
@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_processes_cover_the_epoch(length, replicas):
    for epoch in (0, 3):
        samplers = [EpochSampler(length, seed=4, rank=rank, num_replicas=replicas) for rank in range(replicas)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        drawn = [list(sampler) for sampler in samplers]
        assert (
            [len(part) for part in drawn]
            == [len(sampler) for sampler in samplers]
            == [-(-length // replicas)] * replicas
        )
        everything = [index for part in drawn for index in part]
        assert set(everything) == set(range(epoch * length, (epoch + 1) * length))
        # what comes twice is only the padding
        assert len(everything) - len(set(everything)) == -length % replicas


@pytest.mark.parametrize(("length", "replicas"), [(7, 2), (24, 5), (4, 4)])
def test_uneven_processes_are_disjoint(length, replicas):
    samplers = [
        EpochSampler(length, rank=rank, num_replicas=replicas, even_divisible=False) for rank in range(replicas)
    ]
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(length))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        return [index - 50 * epoch for index in sampler]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}) == 9


def test_shuffling_is_uniform():
    # position of sample 0 over 2,000 epochs of 5: mean 400 each, 5 * sqrt(2000 * .2 * .8) = 90
    sampler = EpochSampler(5)
    positions = []
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        positions.append(list(sampler).index(5 * epoch))
    assert np.abs(np.bincount(positions, minlength=5) - 400).max() < 90


@pytest.mark.parametrize("length", [24, 22])
def test_the_batches_of_all_processes_together_do_not_depend_on_their_number(length):
    """1 process with batches of 4, 2 with 2, 4 with 1: the same samples are in each global step."""
    steps = []
    for replicas in (1, 2, 4):
        drawn = []
        for rank in range(replicas):
            sampler = EpochSampler(length, seed=5, rank=rank, num_replicas=replicas)
            sampler.set_epoch(2)
            drawn.append(list(sampler))
        own = 4 // replicas
        parts = [[part[step * own : (step + 1) * own] for part in drawn] for step in range(length // 4)]
        steps.append([sorted(index for part in step for index in part) for step in parts])
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize("replicas", [1, 3])
def test_an_epoch_that_is_begun_in_its_middle_yields_what_is_left(replicas):
    sampler = EpochSampler(11, seed=2, rank=replicas - 1, num_replicas=replicas)
    sampler.set_epoch(4)
    whole = list(sampler)
    for start in range(len(sampler) + 1):
        sampler.set_epoch(4, start)
        assert list(sampler) == whole[start:] and len(sampler) == len(whole)
    sampler.set_epoch(4)
    assert list(sampler) == whole
    for start in (-1, len(sampler) + 1):
        with pytest.raises(ValueError, match=f"start must lie in 0 to {len(sampler)}"):
            sampler.set_epoch(4, start)


def test_fixed_stays_in_epoch_0():
    sampler = EpochSampler(6, shuffle=False, fixed=True)
    sampler.set_epoch(5)
    assert list(sampler) == list(range(6)) and sampler.epoch == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_source": 0}, "at least 1"),
        ({"data_source": 3, "rank": 2, "num_replicas": 2}, "rank must lie in 0 to 1"),
        ({"data_source": 3, "rank": -1, "num_replicas": 2}, "rank must lie in 0 to 1"),
        ({"data_source": 3, "num_replicas": 4, "even_divisible": False}, "each of 4 processes, found 3"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**arguments)
    with pytest.raises(ValueError, match="epoch"):
        EpochSampler(3).set_epoch(-1)
