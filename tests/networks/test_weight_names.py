# SPDX-License-Identifier: Apache-2.0
"""Prefixes in weight files: each one and their nesting load, in inference too; ambiguous ones are refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained, save_weights
from models_genesis.training.handlers.weight_loader import WeightLoader

SINGLE = ["module.", "_orig_mod.", "network.", "model.", "net."]
NESTED = ["".join(pair) for pair in itertools.permutations(SINGLE[:3], 2)]
DEEP = ["".join(three) for three in itertools.permutations(SINGLE[:3])] + ["model.module._orig_mod.network."]


def unet(seed: int) -> GenesisUNet:
    torch.manual_seed(seed)
    return GenesisUNet(features=(4, 8))


def prefixed(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prefix", ["", *SINGLE, *NESTED, *DEEP])
@pytest.mark.parametrize("entry", [None, "model", "state_dict", "network"])
def test_inference_takes_every_prefix(prefix: str, entry: str | None, tmp_path: Path) -> None:
    source, network = unet(1), unet(2)
    state = prefixed(prefix, source)
    torch.save(state if entry is None else {entry: state, "epoch": 3}, tmp_path / "model.pt")
    WeightLoader(load_path=str(tmp_path / "model.pt"), load_dict={"model": network})(Engine(lambda *_: None))
    assert same(network, source)


@pytest.mark.parametrize("prefix", [*SINGLE, *NESTED, *DEEP])
@pytest.mark.parametrize("kind", [GenesisUNet, GenesisClassifier])
def test_networks_take_every_prefix_from_torch_itself(prefix: str, kind: type[nn.Module]) -> None:
    """As MONAI Label loads a bundle's weights."""
    torch.manual_seed(0)
    source, network = kind(features=(4, 8)), kind(features=(4, 8))
    state = prefixed(prefix, source)
    network.load_state_dict(state, strict=True)
    assert same(network, source)
    assert next(iter(state)).startswith(prefix)  # the caller's own dict stays


@pytest.mark.parametrize("prefix", ["other.", "module.other.", "Module."])
def test_unknown_prefixes_are_refused_by_torch_and_by_us(prefix: str, tmp_path: Path) -> None:
    state, network = prefixed(prefix, unet(1)), unet(2)
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no encoder kernel"):
        load_pretrained(network, tmp_path / "model.pt", strict=True)
    assert same(network, unet(2))


@pytest.mark.parametrize(
    ("one", "two"), [("", "module."), ("", "network."), ("module.", "network."), ("net.", "model.")]
)
def test_two_sets_of_weights_are_refused(one: str, two: str, tmp_path: Path) -> None:
    """Such as averaged weights next to those of the last step: which is meant is not known."""
    state = prefixed(one, unet(1)) | prefixed(two, unet(3))
    torch.save(state, tmp_path / "model.pt")
    network = unet(2)
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"model\.pt holds several tensors of one name without wrappers") as error:
            load_pretrained(network, tmp_path / "model.pt", strict=strict)
        assert "decoder.levels.0.merge.conv1.bias" in str(error.value)
    assert same(network, unet(2))


class Holder(nn.Module):
    """A network with the name of a prefix for one of its own parts."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1))
        if head:
            self.head = nn.Conv2d(2, 1, 1)


@pytest.mark.parametrize("head", [True, False])
def test_a_network_with_such_a_part_keeps_it(head: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, network = Holder(False), Holder(head)
    torch.save(source.state_dict(), tmp_path / "part.pt")
    report = load_pretrained(network, tmp_path / "part.pt")
    assert report.matched == tuple(source.state_dict()) and len(report.missing) == 2 * head
    assert same(network.network, source.network)
    save_weights(network.state_dict(), tmp_path / "saved.pt")  # torch loads what we write
    network.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
