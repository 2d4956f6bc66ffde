# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from monai.handlers import CheckpointLoader

from models_genesis.networks import GenesisUNet, save_weights
from models_genesis.training import load_pretrained_weights


def unet(seed: int = 0, **arguments) -> GenesisUNet:
    torch.manual_seed(seed)
    return GenesisUNet(features=(2, 4), **arguments)


def same(first: GenesisUNet, second: GenesisUNet, part: str) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items() if name.startswith(part))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    save_weights(unet(1).state_dict(), path)
    return path


@pytest.mark.parametrize("pretrained", [None, "none", "None"])
def test_without_weights_the_network_stays_and_the_log_says_so(pretrained, caplog):
    network = unet()
    with caplog.at_level(logging.INFO):
        assert load_pretrained_weights(network, pretrained) is None
    assert same(network, unet(), "")
    assert f"({sum(each.numel() for each in network.parameters()):,} parameters) is trained from scratch" in caplog.text


def test_all_but_the_head_is_transferred_and_reported(weights, caplog):
    network = unet(out_channels=3)
    with caplog.at_level(logging.INFO):
        report = load_pretrained_weights(network, weights)
    assert same(network, unet(1), "encoder") and same(network, unet(1), "decoder")
    assert set(report.skipped) == {"head.weight", "head.bias"}
    assert f"{len(report.matched)} matched" in caplog.text


@pytest.mark.parametrize("axis", [0, 2])
def test_weights_of_a_3d_network_start_a_2d_one_by_their_centre_slices(axis, weights, caplog):
    network = unet(spatial_dims=2)
    with caplog.at_level(logging.INFO):
        report = load_pretrained_weights(network, weights, slice_axis=axis)
    name = "encoder.levels.0.conv2.weight"
    expected = unet(1).state_dict()[name].select(axis + 2, 1)
    assert torch.equal(network.state_dict()[name], expected) and name in report.adapted
    assert f"the centre slice of each kernel along axis {axis}" in caplog.text
    several = unet(spatial_dims=2)  # of the axes of 2.5D the first counts
    load_pretrained_weights(several, weights, slice_axis=[axis, 1])
    assert same(network, several, "encoder")


def test_weights_of_a_2d_network_start_a_2d_one_as_they_are_and_no_3d_one(tmp_path):
    save_weights(unet(1, spatial_dims=2).state_dict(), tmp_path / "flat.pt")
    network = unet(spatial_dims=2)
    assert not load_pretrained_weights(network, tmp_path / "flat.pt", slice_axis=1).adapted
    assert same(network, unet(1, spatial_dims=2), "")
    with pytest.raises(ValueError, match=r"of a 2D network: add configs/2d.json.*fits GenesisUNet"):
        load_pretrained_weights(unet(), tmp_path / "flat.pt")


def test_resuming_and_monai_label_bring_their_own_weights(weights, caplog):
    network = unet()
    loader = CheckpointLoader(load_path=str(weights), load_dict={"model": network})
    with caplog.at_level(logging.INFO):
        assert load_pretrained_weights(network, "/nowhere/model.pt", resume=True) is None
        assert load_pretrained_weights(network, "/nowhere/model.pt", handlers=[object(), loader]) is None
    assert same(network, unet(), "")
    assert "resumed" in caplog.text and str(weights) in caplog.text


def test_a_training_that_may_begin_has_its_weights(weights):
    """With ``auto`` there may be no state yet."""
    network = unet()
    assert load_pretrained_weights(network, weights, resume="auto") is not None
    assert same(network, unet(1), "")


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--pretrained none"):
        load_pretrained_weights(unet(), tmp_path / "model.pt")
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_pretrained_weights(unet(), tmp_path / "other.pt")
