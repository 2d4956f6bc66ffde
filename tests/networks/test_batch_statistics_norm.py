# SPDX-License-Identifier: Apache-2.0
"""Batch norm by the batch's own statistics."""

from __future__ import annotations

import pytest
import torch

from models_genesis.networks import GenesisUNet
from models_genesis.networks.batch_statistics_norm import BatchStatisticsNorm


def test_training_is_batch_norm(random_image: torch.Tensor) -> None:
    ours, torchs = BatchStatisticsNorm(1), torch.nn.BatchNorm3d(1)
    assert torch.equal(ours(random_image), torchs(random_image))
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_evaluation_normalises_the_batch_and_updates_nothing() -> None:
    norm = BatchStatisticsNorm(1, eps=1e-9).eval()
    norm.running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    values = torch.tensor([0.0, 2.0, 4.0, 6.0]).reshape(2, 1, 2)  # mean 3, variance 5
    expected = (values - 3) / 5**0.5
    torch.testing.assert_close(norm(values), expected)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_evaluation_depends_on_batch_mates_only_with_the_option(random_image: torch.Tensor) -> None:
    torch.manual_seed(0)
    ordinary = GenesisUNet(features=(4, 8)).eval()
    original = GenesisUNet(features=(4, 8), batch_statistics=True).eval()
    original.load_state_dict(ordinary.state_dict())  # the option changes no names
    other_mate = torch.cat([random_image[:1], 3 * random_image[1:]])
    with torch.inference_mode():
        assert torch.allclose(ordinary(random_image)[0], ordinary(other_mate)[0], atol=1e-6)
        assert (original(random_image)[0] - original(other_mate)[0]).abs().max() > 1e-2


def test_option_changes_nothing_in_training(random_image: torch.Tensor) -> None:
    torch.manual_seed(0)
    ordinary = GenesisUNet(features=(4, 8))
    original = GenesisUNet(features=(4, 8), batch_statistics=True)
    original.load_state_dict(ordinary.state_dict())
    assert torch.equal(ordinary(random_image), original(random_image))
    for name, value in ordinary.state_dict().items():
        assert torch.equal(original.state_dict()[name], value), name


def test_option_needs_batch_norm() -> None:
    with pytest.raises(ValueError, match="batch_statistics=True needs norm='batch', found norm='instance'"):
        GenesisUNet(features=(4, 8), norm="instance", batch_statistics=True)


def test_norm_arguments_reach_the_layer() -> None:
    network = GenesisUNet(features=(4, 8), norm=("batch", {"eps": 0.5, "momentum": 0.25}), batch_statistics=True)
    norms = [module for module in network.modules() if isinstance(module, BatchStatisticsNorm)]
    assert len(norms) == 6
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.5, 0.25)}
