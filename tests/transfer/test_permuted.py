# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from models_genesis.networks import GenesisUNet, load_pretrained
from models_genesis.networks.weight_files import save_weights
from models_genesis.transfer.permuted import permute_weights, permuted_file


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    network = GenesisUNet(features=(4, 8))
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.randn(tensor.shape).abs() + 0.1
    return {name: tensor.clone() for name, tensor in state.items()}


def test_each_kernel_keeps_its_values_and_loses_their_places(weights):
    permuted = permute_weights(weights, 0)
    assert permuted.keys() == weights.keys()
    for name, tensor in weights.items():
        assert permuted[name].shape == tensor.shape
        assert permuted[name].dtype == tensor.dtype
        if tensor.ndim > 1:
            assert torch.equal(permuted[name].flatten().sort().values, tensor.flatten().sort().values)
            # of n! orders the identity is one; a fixed point comes with probability 1/n
            assert (permuted[name] == tensor).float().mean() < 0.2


def test_scale_and_shift_of_a_channel_stay_together():
    scale, shift = torch.arange(1.0, 9.0), torch.arange(1.0, 9.0) * 10
    permuted = permute_weights({"norm.weight": scale, "norm.bias": shift}, 3)
    assert torch.equal(permuted["norm.bias"], permuted["norm.weight"] * 10)
    assert not torch.equal(permuted["norm.weight"], scale)


def test_running_statistics_start_afresh(weights):
    permuted = permute_weights({**weights, "n.num_batches_tracked": torch.tensor(7)}, 0)
    assert permuted["n.num_batches_tracked"] == 0
    names = [name for name in weights if name.endswith("running_var")]
    assert names
    for name in names:
        assert torch.equal(permuted[name], torch.ones_like(weights[name]))
        mean = name.replace("running_var", "running_mean")
        assert torch.equal(permuted[mean], torch.zeros_like(weights[mean]))


def test_the_file_loads_like_any_other_and_depends_on_the_seed_alone(weights, tmp_path):
    save_weights(weights, tmp_path / "w.pt")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        permuted_file(tmp_path / "w.pt", tmp_path / f"{name}.pt", seed)
    a, b, c = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    report = load_pretrained(GenesisUNet(features=(4, 8)), tmp_path / "a.pt", strict=True)
    assert not report.missing


def test_the_weights_are_not_overwritten(weights, tmp_path):
    save_weights(weights, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="name another file"):
        permuted_file(tmp_path / "w.pt", tmp_path / "w.pt", 0)
