# SPDX-License-Identifier: Apache-2.0
"""3D weights in 2D networks: what the centre slice keeps exactly, what is reported, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained, save_weights
from models_genesis.networks.kernel_slices import centre_slice

FEATURES = (4, 8, 16)


def slices_of(network: Callable[[Tensor], Tensor], scan: Tensor, axis: int) -> Tensor:
    """Apply a 2D network to each slice across an axis."""
    return torch.stack([network(plane) for plane in scan.unbind(axis + 2)], axis + 2)


@pytest.mark.parametrize("sides", [(3, 3, 3), (1, 5, 3), (5, 3, 7)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_kernel_of_one_slice_is_the_2d_convolution_exactly(sides, axis):
    """Integers, so that no rounding hides or excuses a difference."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.zeros(2, 3, *sides)
    centre = kernel.select(axis + 2, sides[axis] // 2)
    centre.copy_(torch.randint(-9, 10, centre.shape, generator=generator))
    scan = torch.randint(-9, 10, (1, 3, 7, 8, 9), generator=generator).float()
    padding = [side // 2 for side in sides]
    plane = centre_slice(kernel, axis)
    in_plane = padding[:axis] + padding[axis + 1 :]
    expected = slices_of(lambda image: functional.conv2d(image, plane, padding=in_plane), scan, axis)
    assert torch.equal(functional.conv3d(scan, kernel, padding=padding), expected)
    turned = slices_of(
        lambda image: functional.conv_transpose2d(image, plane.transpose(0, 1), padding=in_plane), scan, axis
    )
    assert torch.equal(functional.conv_transpose3d(scan, kernel.transpose(0, 1), padding=padding), turned)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_any_kernel_it_is_the_answer_to_a_single_slice(axis):
    kernel = torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scan = torch.zeros(1, 1, 5, 5, 5)
    image = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    scan.select(axis + 2, 2).copy_(image)
    answer = functional.conv3d(scan, kernel, padding=1).select(axis + 2, 2)
    torch.testing.assert_close(answer, functional.conv2d(image, centre_slice(kernel, axis), padding=1))


class Pair(nn.Module):
    """Two convolutions with norm and bias, in as many dimensions as wanted."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv1, self.norm, self.conv2 = convolution(1, 6, 3, padding=1), norm(6), convolution(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.conv1(x)).relu())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_that_looks_at_single_slices_says_the_same_in_2d(axis, tmp_path):
    torch.manual_seed(axis)
    network = Pair(3)
    for name, tensor in network.state_dict().items():
        if name.startswith("norm") and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        if tensor.ndim == 5:
            tensor.index_fill_(axis + 2, torch.tensor([0, 2]), 0.0)
    save_weights(network.state_dict(), tmp_path / "model.pt")
    flat = Pair(2)
    report = load_pretrained(flat, tmp_path / "model.pt", kernel_slice_axis=axis)
    assert set(report.adapted) == {"conv1.weight", "conv2.weight"} and not report.skipped and not report.missing
    assert report.reasons["conv1.weight"] == f"centre slice of 3 x 3 x 3 along axis {axis}"
    scan = torch.randn(2, 1, 6, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(slices_of(flat.eval(), scan, axis), network.eval()(scan))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(GenesisUNet(3, features=FEATURES).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("axis", [0, 2])
def test_the_u_net_takes_every_kernel_that_has_a_centre(axis, path, caplog):
    network = GenesisUNet(2, out_channels=1, features=FEATURES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stored = torch.load(path, weights_only=True)
    with caplog.at_level(logging.INFO):
        report = load_pretrained(network, path, kernel_slice_axis=axis)
    now = network.state_dict()
    kernels = [name for name, tensor in stored.items() if tensor.ndim == 5]
    upsampling = {name for name in kernels if stored[name].shape[-1] == 2}
    assert upsampling and set(report.adapted) == set(kernels) - upsampling
    for name in report.adapted:
        assert torch.equal(now[name], stored[name].select(axis + 2, stored[name].shape[axis + 2] // 2))
        sides = " x ".join(map(str, stored[name].shape[2:]))
        assert report.reasons[name] == f"centre slice of {sides} along axis {axis}"
    # an even kernel has no centre: its layer is fresh, and both say so
    layers = {name.rpartition(".")[0] for name in upsampling}
    assert {name.rpartition(".")[0] for name in report.skipped} == layers
    assert all(torch.equal(now[name], before[name]) for name in report.skipped)
    assert set(report.unexpected) == set(report.skipped) and not report.missing
    assert all("no centre slice" in report.reasons[name] for name in upsampling)
    assert any(record.levelno == logging.WARNING and "no centre slice" in record.message for record in caplog.records)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 16, 12)).shape == (1, 1, 16, 12)


def test_a_classifier_takes_the_whole_encoder_and_other_channels_too(path):
    stored = torch.load(path, weights_only=True)
    network = GenesisClassifier(2, in_channels=3, features=FEATURES)
    report = load_pretrained(network, path, kernel_slice_axis=2)
    first = "encoder.levels.0.conv1.weight"
    assert report.reasons[first] == "centre slice of 3 x 3 x 3 along axis 2, input channels 1 -> 3"
    torch.testing.assert_close(network.state_dict()[first].sum(dim=1), stored[first][:, 0, :, :, 1])
    assert {name for name in network.state_dict() if name.startswith("encoder.")} == {
        *report.adapted,
        *(name for name in report.matched if name.startswith("encoder.")),
    }
    assert not report.unexpected
    assert str(report).count("centre slice of") == len(report.adapted)


def test_nothing_is_sliced_unless_asked_for(path):
    network = GenesisUNet(2, features=FEATURES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"no encoder kernel .* kernel_slice_axis takes the centre slice of 3D kernels"
    ):
        load_pretrained(network, path)
    with pytest.raises(ValueError, match="kernel_slice_axis: expected 0, 1, 2 or None, found 3"):
        load_pretrained(network, path, kernel_slice_axis=3)
    with pytest.raises(ValueError, match="every tensor has to match"):
        load_pretrained(network, path, kernel_slice_axis=2, strict=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=r"expected spatial_dims=3, .* kernel_slice_axis"):
        GenesisUNet.from_pretrained(path.parent, spatial_dims=2)


def test_weights_of_the_network_s_own_dimensions_have_nothing_to_slice(path, tmp_path):
    with pytest.raises(ValueError, match="found kernels of 3 axes for 3"):
        load_pretrained(GenesisUNet(3, features=FEATURES), path, kernel_slice_axis=2)
    save_weights(GenesisUNet(2, features=FEATURES).state_dict(), tmp_path / "flat.pt")
    with pytest.raises(ValueError, match="found kernels of 2 axes for 2"):
        load_pretrained(GenesisUNet(2, features=FEATURES), tmp_path / "flat.pt", kernel_slice_axis=2)


def test_an_even_kernel_has_no_centre():
    with pytest.raises(ValueError, match="2 x 3 x 3 has no centre slice along axis 0: expected an odd side"):
        centre_slice(torch.zeros(1, 1, 2, 3, 3), 0)
    assert centre_slice(torch.zeros(1, 1, 2, 3, 3), 1).shape == (1, 1, 2, 3)
