# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch.distributed as dist

from models_genesis.datasets import EpochSampler
from models_genesis.datasets.loading.processes import process_count, process_rank


def test_a_run_of_one_process_needs_no_group():
    assert (process_rank(), process_count()) == (0, 1)


def test_a_sampler_takes_its_share_from_the_group(tmp_path, monkeypatch):
    assert (EpochSampler(5).rank, EpochSampler(5).num_replicas) == (0, 1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert (process_rank(), process_count()) == (0, 1)
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        monkeypatch.setattr(dist, "get_world_size", lambda: 3)
        sampler = EpochSampler(6, shuffle=False)
        assert list(sampler) == [1, 4] and len(sampler) == 2
        assert list(EpochSampler(6, shuffle=False, rank=0, num_replicas=2)) == [0, 2, 4]
    finally:
        dist.destroy_process_group()
