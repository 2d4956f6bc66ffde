# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from models_genesis.networks import GenesisClassifier, GenesisUNet
from models_genesis.training.engines.feature_maps import feature_maps, undisturbed, with_random_weights


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_features_are_those_of_all_levels_and_of_the_decoder():
    images = torch.rand(1, 1, 8, 8, 4)
    for network, shapes in (
        (GenesisUNet(features=(4, 6)), [(1, 4, 8, 8, 4), (1, 6, 4, 4, 2), (1, 4, 8, 8, 4)]),
        (GenesisClassifier(features=(4, 6), hidden_channels=2), [(1, 4, 8, 8, 4), (1, 6, 4, 4, 2)]),
    ):
        with undisturbed(network):
            maps = feature_maps(network, images)
            assert [tuple(single.shape) for single in maps] == shapes
            levels = network.encoder(images)
            assert all(torch.equal(single, level) for single, level in zip(maps, levels, strict=False))
            if isinstance(network, GenesisUNet):
                assert torch.equal(maps[-1], network.decoder(levels))
        assert not any(module._forward_hooks for module in network.modules())


def test_of_any_other_network_it_is_what_the_last_convolution_sees():
    network = UNet(3, 1, 2, (4, 8), (2,), num_res_units=0).eval()
    seen = []
    hook = network.model[-1].conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.rand(1, 1, 8, 8, 8)
    with undisturbed(network):
        (single,) = feature_maps(network, images)
    hook.remove()
    assert torch.equal(single, seen[0]) and not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="Linear: expected convolutions to read features from, found none"):
        feature_maps(nn.Linear(3, 3), torch.rand(2, 3))


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_nothing_is_disturbed(batch_statistics):
    network = GenesisUNet(features=(4, 6), batch_statistics=batch_statistics)
    network.decoder.eval()  # a mix of modes
    modes = [module.training for module in network.modules()]
    before, random_state = state_of(network), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on the way"), undisturbed(network):
        feature_maps(network, torch.rand(2, 1, 8, 8, 4))
        assert not torch.is_grad_enabled() and not any(module.training for module in network.modules())
        raise RuntimeError("on the way")
    assert [module.training for module in network.modules()] == modes and torch.is_grad_enabled()
    assert same(before, network.state_dict()) and torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("arguments", [{}, {"batch_statistics": True}, {"norm": "instance"}])
def test_random_weights_depend_on_the_seed_alone(arguments):
    images = [torch.rand(1, 1, 8, 8, 4) for _ in range(3)]
    torch.manual_seed(3)
    fresh = GenesisUNet(features=(4, 6), **arguments)
    trained = copy.deepcopy(fresh)
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            tensor.add_(1)
    random_state = torch.get_rng_state()
    for network in (fresh, trained):
        with_random_weights(network, images, seed=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(fresh.state_dict(), trained.state_dict())
    torch.manual_seed(3)
    expected = GenesisUNet(features=(4, 6), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), expected.parameters(), strict=True))
    if not arguments:  # the running statistics are the mean over the images
        norm = fresh.encoder.levels[0].norm1
        means = [fresh.encoder.levels[0].conv1(image).mean(dim=(0, 2, 3, 4)) for image in images]
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))
