# SPDX-License-Identifier: Apache-2.0
"""Weights of other projects: files made from the names in their public code load, tensor by tensor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets import FlexibleUNet, ResNet, SwinUNETR, resnet10, resnet18
from monai.networks.nets.resnet import get_inplanes
from torch import Tensor, nn

from models_genesis.networks import GenesisUNet, load_pretrained
from models_genesis.networks.original_names import from_original_name

State = dict[str, Tensor]


def fill(network: nn.Module, seed: int) -> nn.Module:
    """All values random, so that a tensor in a wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return network


def check(network: nn.Module, source: nn.Module, names: set[str]) -> None:
    """The named tensors are those of the source."""
    found, expected = network.state_dict(), source.state_dict()
    assert names and all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("prefix", ["module.backbone.", "backbone."])
def test_suprem_and_universal_model(
    prefix: str, original_shapes: dict[str, tuple[int, ...]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Checkpoint entry net; the U-Net below backbone without its last layer, and the parts that make dynamic heads."""
    source = fill(GenesisUNet(features=(4, 6, 8, 10)), 1)
    names = {from_original_name(name.removeprefix("module.")): name.removeprefix("module.") for name in original_shapes}
    state = {prefix + names[name]: tensor for name, tensor in source.state_dict().items() if "head" not in name}
    above = {"precls_conv.2.weight": (8, 4, 1, 1, 1), "GAP.3.weight": (256, 10, 1, 1, 1), "organ_embedding": (32, 512)}
    above |= {"controller.weight": (153, 512, 1, 1, 1), "text_to_vision.weight": (256, 512)}
    state |= {prefix.replace("backbone.", "") + name: torch.ones(shape) for name, shape in above.items()}
    torch.save({"net": state, "optimizer": {}, "epoch": 2100}, tmp_path / "suprem_unet_2100.pth")
    network = GenesisUNet(features=(4, 6, 8, 10), out_channels=3)
    report = load_pretrained(network, tmp_path / "suprem_unet_2100.pth")
    unet = {name for name in source.state_dict() if not name.startswith("head.")}
    assert set(report.matched) == unet and set(report.skipped) == set(above)
    assert report.missing == ("head.weight", "head.bias") and "below backbone" in report.layout
    check(network, source, unet)


def imagenet(path: Path, block: str = "basic", layers: tuple[int, ...] = (1, 1, 1, 1), out: int = 1000) -> nn.Module:
    """A file as torchvision writes its ResNets; MONAI's network has the same names with these arguments."""
    source = resnet(3, block, layers, out)
    torch.save(source.state_dict(), path)
    return source


def resnet(channels: int, block: str, layers: tuple[int, ...], out: int) -> nn.Module:
    sides = {"block_inplanes": [4, 8, 12, 16]} if layers == (1, 1, 1, 1) else {"block_inplanes": get_inplanes()}
    options = {"spatial_dims": 2, "n_input_channels": channels, "num_classes": out, "bias_downsample": False}
    return fill(ResNet(block, list(layers), conv1_t_stride=2, **sides, **options), channels)


def test_imagenet_weights_see_a_gray_image_as_one_of_three_equal_channels(tmp_path: Path) -> None:
    """All of torchvision's tensors are taken, and the first kernel's sum over its channels, as the report says."""
    source = imagenet(tmp_path / "resnet.pth", out=5).eval()
    network = resnet(1, "basic", (1, 1, 1, 1), 5)
    report = load_pretrained(network, tmp_path / "resnet.pth")
    assert report.adapted == ("conv1.weight",) and not report.skipped and not report.missing
    assert report.reasons["conv1.weight"] == "input channels 3 -> 1"
    assert len(report.matched) + 1 == len(source.state_dict())
    gray = torch.rand(2, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(gray), source(gray.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-3)


def test_names_are_torchvision_s() -> None:
    """As published for resnet18: 20 convolutions without bias, 20 norms of five tensors, one linear layer."""
    names = set(resnet(3, "basic", (2, 2, 2, 2), 1000).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", *(f"bn1.{part}" for part in norm), "fc.weight", "fc.bias"}
    for layer in range(1, 5):
        for block in range(2):
            expected |= {f"layer{layer}.{block}.conv{number}.weight" for number in (1, 2)}
            expected |= {f"layer{layer}.{block}.bn{number}.{part}" for number in (1, 2) for part in norm}
        if layer > 1:
            expected |= {f"layer{layer}.0.downsample.0.weight", *(f"layer{layer}.0.downsample.1.{p}" for p in norm)}
    assert names == expected and len(names) == 122


def test_a_u_net_takes_them_for_its_encoder(tmp_path: Path) -> None:
    """What the file lacks, the decoder and biases of MONAI's, is named."""
    source = imagenet(tmp_path / "resnet50.pth", "bottleneck", (3, 4, 6, 3))
    network = FlexibleUNet(1, 2, "resnet50", spatial_dims=2, decoder_channels=(8, 8, 8, 8, 8))
    report = load_pretrained(network, tmp_path / "resnet50.pth")
    assert "torchvision" in report.layout and report.adapted == ("encoder.conv1.weight",)
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    encoder = {name for name in source.state_dict() if not name.startswith("fc")}
    assert {name.removeprefix("encoder.") for name in (*report.matched, *report.adapted)} == encoder
    left = [name for name in report.missing if name.startswith("encoder.")]
    assert all(re.fullmatch(r"encoder\.layer[1-4]\.0\.downsample\.0\.bias", name) for name in left)
    found, expected = network.state_dict(), source.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], expected[name]) for name in encoder - {"conv1.weight"})
    kernel = expected["conv1.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(found["encoder.conv1.weight"], kernel)


def swin(seed: int, **arguments: int) -> nn.Module:
    options = {"in_channels": 1, "out_channels": 2, "feature_size": 12} | arguments
    return fill(SwinUNETR(**options), seed)


def swin_names(network: nn.Module) -> set[str]:
    return {name for name in network.state_dict() if name.startswith("swinViT.")}


LAYOUTS = {
    "model_swinvit.pt": lambda name: "module." + re.sub(r"mlp.linear(\d)", r"mlp.fc\1", name.removeprefix("swinViT.")),
    "swin_vit": lambda name: "module.swin_vit." + name.removeprefix("swinViT."),
    "SwinUNETR itself": lambda name: name,
    "below backbone": lambda name: "module.backbone." + name,
    "ssl_pretrained_weights.pth": lambda name: re.sub(
        r"^swinViT\.(layers\d\.0\.|)", lambda match: f"encoder.{match[1]}{'0.' if match[1] else ''}", name
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swin_transformers_of_monai(layout: str, tmp_path: Path) -> None:
    source, network = swin(1), swin(2)
    rename = LAYOUTS[layout]
    state = {rename(name): source.state_dict()[name] for name in swin_names(source)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "weights.pt")
    report = load_pretrained(network, tmp_path / "weights.pt")
    assert set(report.matched) == swin_names(source) and report.skipped == ()
    check(network, source, swin_names(source))


def test_model_swinvit_loads_as_monai_itself_loads_it(tmp_path: Path) -> None:
    source, ours, theirs = swin(1), swin(2), swin(2)
    rename = LAYOUTS["model_swinvit.pt"]
    content = {"state_dict": {rename(name): source.state_dict()[name] for name in swin_names(source)}}
    torch.save(content, tmp_path / "model_swinvit.pt")
    load_pretrained(ours, tmp_path / "model_swinvit.pt")
    theirs.load_from(content)  # type: ignore[operator]
    check(ours, theirs, set(ours.state_dict()))


@pytest.mark.parametrize(("make", "arguments"), [(resnet10, (False, "B")), (resnet18, (True, "A"))])
def test_medicalnet(make: type, arguments: tuple[bool, str], tmp_path: Path) -> None:
    """The encoder under MONAI's own names, with DataParallel's prefix."""

    def network(seed: int) -> nn.Module:
        bias, shortcut = arguments
        options = {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False}
        return fill(make(**options, bias_downsample=bias, shortcut_type=shortcut), seed)

    source, found = network(1), network(2)
    torch.save({"state_dict": {f"module.{n}": t for n, t in source.state_dict().items()}}, tmp_path / "resnet.pth")
    report = load_pretrained(found, tmp_path / "resnet.pth", strict=True)
    assert report.matched == tuple(source.state_dict())
    check(found, source, set(source.state_dict()))


def test_checkpoints_of_nnssl_are_read(tmp_path: Path) -> None:
    """Entry network_weights; the network is nnU-Net's own, here one with as few names."""
    source = fill(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1)), 1)
    network = fill(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1)), 2)
    content = {"network_weights": source.state_dict(), "nnssl_adaptation_plan": {"key_to_stem": "0"}, "citations": []}
    torch.save(content, tmp_path / "checkpoint_final.pth")
    load_pretrained(network, tmp_path / "checkpoint_final.pth", strict=True)
    check(network, source, set(source.state_dict()))
