# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from models_genesis.networks import GenesisClassifier, GenesisUNet
from models_genesis.training import AutocastInferer, Precision, choose_precision

BF16 = Precision(torch.bfloat16, channels_last=True)
FLOAT32 = Precision(channels_last=True, volumes_only=True)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, BF16), ({"amx_bf16": True}, BF16), ({"avx2": True, "avx512_bf16": False}, FLOAT32)],
)
def test_cpu_takes_bfloat16_only_where_the_processor_has_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("cpu") == expected
    assert choose_precision("cpu", amp=False) == Precision()


@pytest.mark.parametrize(
    ("has_bf16", "expected"),
    [(True, BF16), (False, Precision(torch.float16, channels_last=True, loss_scaling=True))],
)
def test_old_gpus_take_float16_with_loss_scaling(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_precision("cuda:0") == expected


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_channels_last_reaches_network_and_images(spatial_dims):
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    network = BF16.place(convolution(2, 4, 3), "cpu")
    assert network.weight.is_contiguous(memory_format=layout)
    images = torch.rand((2, 3) + (8,) * spatial_dims)
    arranged = BF16.arrange(images)
    assert arranged.is_contiguous(memory_format=layout)
    assert torch.equal(arranged, images)
    assert BF16.arrange(torch.rand(2, 5)).is_contiguous()
    kept = FLOAT32.arrange(images)
    assert kept.is_contiguous(memory_format=torch.contiguous_format if spatial_dims == 2 else layout)
    weight = FLOAT32.place(convolution(2, 4, 3), "cpu").weight
    assert weight.is_contiguous(memory_format=torch.contiguous_format if spatial_dims == 2 else layout)


@pytest.mark.parametrize("inferer", [None, SlidingWindowInferer(8, overlap=0)])
def test_autocast_gives_float32_near_the_exact_result(inferer):
    torch.manual_seed(0)
    network = nn.Conv3d(1, 4, 3, padding=1)
    images = torch.rand(1, 1, 8, 8, 8)
    exact = network(images)
    restored = AutocastInferer(BF16, inferer)(images, network)
    assert restored.dtype == torch.float32
    # 27 products of values below 1 and weights below 0.2, each rounded to 8 bits: error below 28 * 0.2 * 2**-8.
    assert (restored - exact).abs().max() < 28 * 0.2 / 256
    # Autocast was really on: bfloat16 cannot represent the exact sums.
    assert not torch.equal(restored, exact)
    assert torch.equal(AutocastInferer(Precision(), inferer)(images, network), exact)


def test_networks_with_several_outputs_keep_them():
    class Two(nn.Module):
        def forward(self, x):
            return [x.bfloat16(), x]

    outputs = AutocastInferer(Precision())(torch.rand(1, 1, 4, 4), Two())
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32]


@pytest.mark.parametrize(("planes", "kernel"), [(2, 3), (1, 3), (2, 5), (4, 5)])
def test_gradients_of_thin_images_are_exact(planes, kernel):
    """OneDNN's own in bfloat16 are wrong by 100 % and more there."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(64, 64, 1), nn.Conv3d(64, 64, kernel, padding=kernel // 2))
    images = torch.randn(2, 64, planes, 6, 6)
    weight = network[1].weight
    (exact,) = torch.autograd.grad(network(images).square().sum(), weight)
    (found,) = torch.autograd.grad(AutocastInferer(BF16)(images, network).square().sum(), weight)
    # the first convolution's result and gradient are rounded to 8 bits: errors of 2**-8, independent of each other
    assert (found - exact).norm() < 2**-6 * exact.norm()


def test_only_thin_images_leave_autocast():
    network = nn.Conv3d(16, 16, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images := torch.randn(1, 16, 4, 4, 4))
    found = AutocastInferer(Precision(torch.bfloat16))(images, network)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("features", [(4, 8, 16), (5, 9, 7), (16, 32)])
@pytest.mark.parametrize("kind", [GenesisUNet, GenesisClassifier])
def test_channels_last_float32_agrees_with_the_default_layout_to_rounding(kind, features, spatial_dims):
    """Logits, running statistics and gradients of a training step, and logits in evaluation."""
    found = {}
    everywhere = Precision(channels_last=True)
    for precision in (Precision(), everywhere):
        torch.manual_seed(0)
        # a smooth activation: rounding would decide on which side of a kink a few gradients are taken
        network = precision.place(kind(spatial_dims=spatial_dims, features=features, act="gelu"), "cpu").train()
        images = torch.rand((2, 1) + (16,) * spatial_dims)
        logits = AutocastInferer(precision)(images, network)
        logits.square().mean().backward()
        with torch.no_grad():
            evaluated = AutocastInferer(precision)(images, network.eval())
        gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
        found[precision] = {"logits": logits, "evaluated": evaluated, **dict(network.named_buffers()), **gradients}
    largest = max(value.norm() for name, value in found[everywhere].items() if name.startswith("gradient"))
    for name, expected in found[Precision()].items():
        # sums of n < 1,000 products, rounded by 2**-24 each, in 14 layers one after the other: 14 * 1000 * 2**-24;
        # a bias before a batch norm has no gradient but what rounding leaves
        bound = 1e-3 * max(expected.float().norm(), 1e-2 * largest if name.startswith("gradient") else 0)
        assert (found[everywhere][name] - expected).float().norm() <= bound, name
