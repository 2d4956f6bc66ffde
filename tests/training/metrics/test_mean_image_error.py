# SPDX-License-Identifier: Apache-2.0
"""The mean image's error is the variance over cubes, voxel by voxel, however the cubes are batched or shared out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from models_genesis.training import MeanImageError


def _cubes(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 4, 3, 2, generator=torch.Generator().manual_seed(0))


def test_it_is_the_variance_of_the_originals():
    cubes, metric = _cubes(7), MeanImageError()
    for part in cubes.split(3):
        metric.update([{"label": cube, "pred": cube * 0} for cube in part])
    assert metric.compute() == pytest.approx(float(cubes.double().numpy().var(axis=0).mean()), rel=1e-12)
    metric.reset()
    assert math.isnan(metric.compute())


def test_it_is_over_the_cubes_of_all_processes(monkeypatch):
    """Each process sends its sums and gets those of all; one of three has no cubes."""
    cubes = _cubes(5)
    metrics = [MeanImageError() for _ in range(3)]
    for metric, own in zip(metrics, ([0, 1, 2, 3], [4], []), strict=True):
        metric.update([{"label": cube} for cube in cubes[own]])
    sent: list = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "all_gather_object", lambda parts, own: sent.append(own))
    for metric in metrics:  # a process that got nothing back has no cubes
        with pytest.raises(TypeError):
            metric.compute()
    monkeypatch.setattr(dist, "all_gather_object", lambda parts, own: parts.__setitem__(slice(None), sent))
    expected = cubes.double().numpy().var(axis=0).mean()
    assert [metric.compute() for metric in metrics] == pytest.approx(3 * [expected], rel=1e-12)
