# SPDX-License-Identifier: Apache-2.0
"""Rescaled weights: the initial norm, the same function, and what the norms' eps adds in closed form."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn

from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained, save_weights
from models_genesis.networks.norm_pairs import find_norm_pairs
from models_genesis.networks.weight_scale import eps_change

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: GenesisUNet(features=(4, 6, 8)),
    "unet, batch statistics": lambda: GenesisUNet(features=(4, 6), batch_statistics=True),
    "unet, instance norm": lambda: GenesisUNet(features=(4, 6), norm=("instance", {"affine": True})),
    "classifier": lambda: GenesisClassifier(features=(4, 6, 8), hidden_channels=4),
    "MONAI's UNet": lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
    # each of its layers has two names
    "DynUNet": lambda: DynUNet(
        3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], norm_name="batch", res_block=True
    ),
}


def pretrained(make: Callable[[], nn.Module], seed: int = 1) -> nn.Module:
    """A network with weights of other scales than at initialisation and running statistics of real data."""
    torch.manual_seed(seed)
    network = make().double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and parameter.ndim > 2:
                parameter.mul_(float(torch.empty(1).uniform_(0.5, 8)))
        network.train()
        for _ in range(3):
            network(torch.rand(2, 1, 8, 8, 8, dtype=torch.float64))
    return network


def set_eps(network: nn.Module, eps: float) -> None:
    for module in network.modules():
        if hasattr(module, "eps"):
            module.eps = eps


def run(network: nn.Module, images: Tensor, training: bool) -> Tensor:
    with torch.no_grad():
        output: Tensor = network.train(training)(images)
    return output


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_without_eps_the_function_is_the_same(name: str, training: bool, tmp_path: Path) -> None:
    source = pretrained(NETWORKS[name])
    save_weights(source.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(2)
    network = NETWORKS[name]().double()
    fresh = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    report = load_pretrained(network, tmp_path / "model.pt", strict=True, scale="initial")
    pairs, reasons = find_norm_pairs(network)
    assert set(report.rescaled) == {f"{pair}.weight" for pair in pairs} and len(pairs) >= 4
    assert report.not_rescaled == {f"{other}.weight": reason for other, reason in reasons.items()}
    after, given = network.state_dict(), source.state_dict()
    for weight, factor in report.rescaled.items():
        torch.testing.assert_close(after[weight].norm(), fresh[weight].norm())
        torch.testing.assert_close(after[weight], given[weight] * factor)
        norm = pairs[weight.removesuffix(".weight")]
        if f"{norm}.running_var" in given:
            torch.testing.assert_close(after[f"{norm}.running_mean"], given[f"{norm}.running_mean"] * factor)
            torch.testing.assert_close(after[f"{norm}.running_var"], given[f"{norm}.running_var"] * factor**2)
    for other in report.not_rescaled:
        assert torch.equal(after[other], given[other])
    images = torch.rand(3, 1, 16, 8, 8, dtype=torch.float64)
    expected = run(source, images, training), run(network, images, training)
    assert not torch.equal(*expected)
    set_eps(source, 1e-30)  # torch refuses 0; next to any variance it is nothing
    set_eps(network, 1e-30)
    found = run(network, images, training)
    torch.testing.assert_close(found, run(source, images, training), rtol=1e-9, atol=1e-11)  # float64's rounding


@pytest.mark.parametrize("make_norm", [nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n, affine=True)])
@pytest.mark.parametrize("training", [False, True])
def test_eps_adds_what_its_closed_form_says(make_norm: Any, training: bool, tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 3, 3), make_norm(3))

    torch.manual_seed(0)
    source, eps = make().double(), 1e-2  # a large one, so that it shows
    with torch.no_grad():
        source[0].weight.mul_(4)
    images = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    for _ in range(20):
        run(source, images, True)  # running statistics: those of these images
    save_weights(source.state_dict(), tmp_path / "model.pt")
    network = make().double()
    set_eps(source, eps)
    set_eps(network, eps)
    report = load_pretrained(network, tmp_path / "model.pt", scale="initial")
    (s,) = report.rescaled.values()
    before, after = run(source, images, training), run(network, images, training)
    made = source[0](images)
    if isinstance(source[1], nn.InstanceNorm2d):
        v = made.var(dim=(2, 3), unbiased=False, keepdim=True)
    else:
        v = made.var(dim=(0, 2, 3), unbiased=False) if training else source[1].running_var
        v = v[:, None, None]
    ratio = ((v + eps) / (v + eps / s**2)).sqrt()  # what eps leaves of a channel: the gain and shift are 1 and 0
    torch.testing.assert_close(after, before * ratio, rtol=1e-9, atol=1e-11)
    if not training and isinstance(source[1], nn.BatchNorm2d):
        v = source[1].running_var
        assert report.eps_change == pytest.approx(float(eps_change(v, eps, s).max()))
        # in standard deviations of the channel: z = sqrt(v / (v + eps)) times a standard score
        expected = (v / (v + eps)).sqrt() * (1 - ((v + eps) / (v + eps / s**2)).sqrt())
        torch.testing.assert_close(eps_change(v, eps, s), expected.abs())
        assert bool((eps_change(v, eps, s) < eps * abs(1 / s**2 - 1) / (2 * v)).all())


def test_eps_change_is_bounded_for_any_variance_and_factor() -> None:
    v = torch.logspace(-8, 3, 200, dtype=torch.float64)
    for s in (0.01, 0.3, 0.999, 1.0, 3.0, 50.0):
        change = eps_change(v, 1e-5, s)
        assert bool((change >= 0).all() and (change < 1).all())
        assert bool((change <= 1e-5 * abs(1 / s**2 - 1) / (2 * v) + 1e-15).all())  # the last: float64's rounding
    assert eps_change(torch.zeros(1), 1e-5, 0.1).item() == 0  # a channel that is constant stays constant


def test_the_default_keeps_the_scale_and_says_nothing(tmp_path: Path) -> None:
    source = pretrained(NETWORKS["unet"])
    save_weights(source.state_dict(), tmp_path / "model.pt")
    network = NETWORKS["unet"]().double()
    report = load_pretrained(network, tmp_path / "model.pt")
    assert (report.rescaled, report.not_rescaled, report.rescaling) == ({}, {}, "")
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=r"scale: expected one of \('kept', 'initial'\), found 'small'"):
        load_pretrained(network, tmp_path / "model.pt", scale="small")


def test_transfer_to_other_heads_and_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = pretrained(lambda: GenesisUNet(features=(4, 6, 8)))
    save_weights(source.state_dict(), tmp_path / "model.pt")
    network = GenesisClassifier(in_channels=3, features=(4, 6, 8), hidden_channels=4)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="models_genesis.networks"):
        report = load_pretrained(network, tmp_path / "model.pt", scale="initial")
    assert set(report.rescaled) == {f"encoder.levels.{n}.conv{k}.weight" for n in range(3) for k in (1, 2)}
    for weight in report.rescaled:  # the adapted first convolution too
        torch.testing.assert_close(network.state_dict()[weight].norm(), fresh[weight].norm())
        assert network.state_dict()[weight].dtype == torch.float32
    assert report.rescaling in caplog.text and "6 convolutions rescaled to their initial norm by" in str(report)
    assert f"  rescaled {next(iter(report.rescaled))}: by " in str(report)


def test_what_is_not_loaded_or_has_no_scale_is_left_alone(tmp_path: Path) -> None:
    source = GenesisUNet(features=(4, 6))
    with torch.no_grad():
        source.encoder.levels[0].conv2.weight.zero_()
    save_weights(source.state_dict(), tmp_path / "model.pt")
    network = GenesisUNet(features=(4, 6, 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_pretrained(network, tmp_path / "model.pt", scale="initial")
    assert report.not_rescaled["encoder.levels.2.conv1.weight"] == "it is not loaded"
    assert report.not_rescaled["encoder.levels.0.conv2.weight"].startswith("a norm of 0 has no scale: 0.0 in the file")
    assert torch.equal(network.state_dict()["encoder.levels.2.norm1.running_var"],
                       before["encoder.levels.2.norm1.running_var"])  # fmt: skip
    again = load_pretrained(network, tmp_path / "model.pt", scale="initial")
    assert again.rescaled == pytest.approx(report.rescaled)  # the norms that it goes by are those before
