# SPDX-License-Identifier: Apache-2.0
"""Loading weights into networks: what is transferred, what is reported, what is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from torch import Tensor, nn

from models_genesis.networks import GenesisClassifier, GenesisUNet, WeightReport, load_pretrained, save_weights
from models_genesis.networks.original_names import from_original_name
from models_genesis.networks.weights import adapt_input_channels

FEATURES = (4, 8)
State = dict[str, Tensor]


def unet(seed: int = 1, **arguments: Any) -> GenesisUNet:
    """A small U-Net with all values random, those of the buffers too."""
    torch.manual_seed(seed)
    network = GenesisUNet(**({"features": FEATURES} | arguments)).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(17)
        else:
            tensor.uniform_(0.1, 0.5)
    return network


def snapshot(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def names_of(network: nn.Module, *parts: str) -> set[str]:
    return {name for name in network.state_dict() if name.startswith(parts)}


@pytest.fixture
def source() -> GenesisUNet:
    return unet(seed=7)


@pytest.fixture
def path(source: GenesisUNet, tmp_path: Path) -> Path:
    """A plain ``model.pt`` of the source."""
    save_weights(source.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


WRAPPINGS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda state: state, "plain state dict"),
    "bundle checkpoint": (
        lambda state: {"model": state, "optimizer": {"state": {}}, "trainer": {"epoch": 3}},
        "checkpoint, entry 'model'",
    ),
    "state_dict": (lambda state: {"epoch": 3, "loss": torch.tensor(0.5), "state_dict": state}, "entry 'state_dict'"),
    "network": (lambda state: {"network": state}, "entry 'network'"),
    "ddp": (lambda state: {f"module.{name}": value for name, value in state.items()}, "plain state dict"),
    "compiled": (lambda state: {f"_orig_mod.{name}": value for name, value in state.items()}, "plain state dict"),
    "compiled in ddp in a checkpoint": (
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        "checkpoint, entry 'model'",
    ),
    "compiled encoder": (
        lambda state: {re.sub("^encoder", "encoder._orig_mod", name): value for name, value in state.items()},
        "plain state dict",
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("as_text", [True, False])
def test_every_wrapping_loads_all(wrapping: str, as_text: bool, source: GenesisUNet, tmp_path: Path) -> None:
    wrap, layout = WRAPPINGS[wrapping]
    file = tmp_path / "file.pt"
    torch.save(wrap(source.state_dict()), file)
    network = unet()
    report = load_pretrained(network, str(file) if as_text else file)
    assert equal(snapshot(network), snapshot(source))  # buffers of batch norm included
    assert report.matched == tuple(source.state_dict())
    assert (report.adapted, report.skipped, report.missing, report.unexpected) == ((), (), (), ())
    assert layout in report.layout and report.path == str(file)


def test_original_names_load_all(
    original_shapes: dict[str, tuple[int, ...]], source: GenesisUNet, tmp_path: Path
) -> None:
    deep = unet(seed=3, features=(4, 6, 8, 10))
    names = {from_original_name(name.removeprefix("module.")): name for name in original_shapes}
    state = {names[name]: tensor for name, tensor in deep.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state, "optimizer_state_dict": {}}, tmp_path / "Genesis.pt")
    network = unet(features=(4, 6, 8, 10))
    report = load_pretrained(network, tmp_path / "Genesis.pt", strict=True)
    assert equal(snapshot(network), snapshot(deep))
    assert len(report.matched) == 106 and "original" in report.layout


@pytest.mark.parametrize("wrapper", ["ddp", "compiled", "data parallel"])
def test_wrapped_networks_take_the_weights(wrapper: str, source: GenesisUNet, path: Path, tmp_path: Path) -> None:
    network = unet()
    if wrapper == "ddp":
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped: Any = {
            "ddp": nn.parallel.DistributedDataParallel,
            "compiled": torch.compile,
            "data parallel": nn.DataParallel,
        }[wrapper](network)
        report = load_pretrained(wrapped, path, strict=True)
    finally:
        if wrapper == "ddp":
            dist.destroy_process_group()
    assert equal(snapshot(network), snapshot(source))
    assert report.matched == tuple(source.state_dict())


def test_classifier_takes_the_encoder(source: GenesisUNet, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = GenesisClassifier(features=FEATURES, hidden_channels=16)
    before = snapshot(network)
    with caplog.at_level(logging.INFO, logger="models_genesis.networks"):
        report = load_pretrained(network, path)
    after, given = snapshot(network), source.state_dict()
    encoder, rest = names_of(network, "encoder."), names_of(network, "hidden.", "classes.")
    assert set(report.matched) == encoder and len(encoder) == 28
    assert all(torch.equal(after[name], given[name]) for name in encoder)
    assert set(report.missing) == rest and all(torch.equal(after[name], before[name]) for name in rest)
    assert set(report.skipped) == names_of(source, "decoder.", "head.")
    assert set(report.reasons.values()) == {"the network has no tensor of this name"}
    assert report.unexpected == ()  # leaving the decoder behind is what transfer learning does
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_unet_takes_a_classifiers_encoder(tmp_path: Path) -> None:
    save_weights(GenesisClassifier(features=FEATURES, hidden_channels=16).state_dict(), tmp_path / "classifier.pt")
    report = load_pretrained(unet(), tmp_path / "classifier.pt")
    assert set(report.matched) == names_of(unet(), "encoder.") and report.unexpected == ()


def test_other_classes_leave_the_head_fresh(path: Path, source: GenesisUNet) -> None:
    network = unet(out_channels=2)
    before = snapshot(network)
    report = load_pretrained(network, path)
    assert set(report.skipped) == {"head.weight", "head.bias"}
    assert report.reasons["head.weight"] == "shape (1, 4, 1, 1, 1) != (2, 4, 1, 1, 1)"
    assert report.unexpected == () and report.missing == ()
    expected = source.state_dict() | {name: before[name] for name in report.skipped}
    assert equal(snapshot(network), expected)


def test_three_channels_inflate_the_first_convolution(path: Path, source: GenesisUNet) -> None:
    network = unet(in_channels=3)
    report = load_pretrained(network, path)
    assert report.adapted == ("encoder.levels.0.conv1.weight",)
    assert report.reasons[report.adapted[0]] == "input channels 1 -> 3"
    assert set(report.matched) == set(source.state_dict()) - set(report.adapted)
    image = torch.rand(2, 1, 8, 8, 8)
    with torch.inference_mode():
        expected = source(image)
        torch.testing.assert_close(network(image.expand(-1, 3, -1, -1, -1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("channels", "wanted"), [(1, 3), (1, 4), (2, 3), (3, 1), (4, 3), (3, 2), (2, 4), (2, 2)])
def test_adaptation_keeps_the_sum_over_channels(channels: int, wanted: int) -> None:
    kernel = torch.rand(5, channels, 3, 3, 3, dtype=torch.float64)
    adapted = adapt_input_channels(kernel, wanted)
    assert adapted.shape == (5, wanted, 3, 3, 3)
    torch.testing.assert_close(adapted.sum(dim=1), kernel.sum(dim=1))
    if channels == 1:
        torch.testing.assert_close(adapted, (kernel / wanted).expand(-1, wanted, -1, -1, -1))
    if channels == wanted:
        assert torch.equal(adapted, kernel)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "SegResNet": lambda channels, out=2: SegResNet(3, 8, channels, out, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda channels, out=2: DynUNet(
        3, channels, out, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], res_block=True
    ),
    "SwinUNETR": lambda channels, out=2: SwinUNETR(channels, out, feature_size=12, depths=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_network_loads_and_inflates(name: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretrained, network = NETWORKS[name](1).eval(), NETWORKS[name](channels).eval()
    save_weights(pretrained.state_dict(), tmp_path / "model.pt")
    report = load_pretrained(network, tmp_path / "model.pt")
    assert report.skipped == () and report.missing == () and report.network == name
    assert bool(report.adapted) == (channels == 3)
    image = torch.rand(1, 1, 64, 32, 32)  # SwinUNETR divides by 32 and needs two voxels then
    with torch.inference_mode():
        expected = pretrained(image)
        found = network(image.expand(-1, channels, -1, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_any_network_with_other_classes_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(NETWORKS["SegResNet"](1, 2).state_dict(), tmp_path / "model.pt")
    with caplog.at_level(logging.INFO, logger="models_genesis.networks"):
        report = load_pretrained(NETWORKS["SegResNet"](1, 3), tmp_path / "model.pt")
    # which layer is the head is not known of any network, so what is left out is always worth a warning
    assert report.skipped == report.unexpected == ("conv_final.2.conv.weight", "conv_final.2.conv.bias")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "conv_final.2.conv.weight (shape (2, 8, 1, 1, 1) != (3, 8, 1, 1, 1))" in warnings[0]


def test_a_layer_is_loaded_whole_or_not_at_all(path: Path, source: GenesisUNet) -> None:
    network = unet(features=(4, 10))  # level 1 widens at its second convolution
    before = snapshot(network)
    report = load_pretrained(network, path)
    level = {f"encoder.levels.1.conv1.{kind}" for kind in ("weight", "bias")}
    assert level < set(report.matched)  # 4 -> 4 in both
    assert {"encoder.levels.1.norm2.running_var", "encoder.levels.1.norm2.num_batches_tracked"} < set(report.skipped)
    assert report.reasons["encoder.levels.1.norm2.num_batches_tracked"].endswith("of the same layer does not fit")
    merge = "decoder.levels.0.merge.conv1"  # (4, 12) against (4, 14) input channels, with equal biases
    assert report.reasons[f"{merge}.weight"] == "shape (4, 12, 3, 3, 3) != (4, 14, 3, 3, 3)"
    assert report.reasons[f"{merge}.bias"] == f"{merge}.weight of the same layer does not fit"
    assert {f"{merge}.weight", "encoder.levels.1.conv2.weight"} < set(report.unexpected)
    after = snapshot(network)
    assert all(torch.equal(after[name], before[name]) for name in report.skipped)
    assert all(torch.equal(after[name], source.state_dict()[name]) for name in report.matched)


def test_a_missing_part_of_the_encoder_warns(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="models_genesis.networks"):
        report = load_pretrained(unet(features=(4, 8, 16)), path)  # one level deeper than the file
    deeper = names_of(unet(features=(4, 8, 16)), "encoder.levels.2.")
    assert deeper <= set(report.missing) and deeper <= set(report.unexpected)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("encoder.levels.2.conv1.weight" in message for message in warnings)


def test_a_file_without_batch_counts_is_loaded_and_says_so(source: GenesisUNet, tmp_path: Path) -> None:
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    network = unet()
    network.encoder.levels[0].norm1.num_batches_tracked.fill_(5)
    report = load_pretrained(network, tmp_path / "old.pt")
    assert len(report.missing) == 6 and all(name.endswith("num_batches_tracked") for name in report.missing)
    assert network.encoder.levels[0].norm1.num_batches_tracked == 5


def test_half_precision_files_are_widened(source: GenesisUNet, tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in source.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    network = unet()
    load_pretrained(network, tmp_path / "half.pt", strict=True)
    for name, value in network.state_dict().items():
        assert value.dtype == source.state_dict()[name].dtype
        assert torch.equal(value, half[name].to(value.dtype)), name


def test_log_and_text_of_the_report(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="models_genesis.networks"):
        report = load_pretrained(unet(in_channels=2, out_channels=2), path)
    summary = f"weights of {path} (plain state dict) into GenesisUNet: 43 matched, 1 adapted, 2 skipped, 0 missing"
    lines = str(report).splitlines()
    assert report.summary == lines[0] == summary
    assert lines[1:] == [
        "  adapted encoder.levels.0.conv1.weight: input channels 1 -> 2",
        "  skipped head.weight: shape (1, 4, 1, 1, 1) != (2, 4, 1, 1, 1)",
        "  skipped head.bias: shape (1,) != (2,)",
    ]
    messages = {record.levelname: [] for record in caplog.records}
    for record in caplog.records:
        messages[record.levelname].append(record.getMessage())
    assert messages["INFO"][0] == summary
    assert any("head.bias (shape (1,) != (2,))" in message for message in messages["INFO"][1:])
    assert "encoder.levels.1.norm2.running_mean" in messages["DEBUG"][0]
    assert "WARNING" not in messages
    with pytest.raises(AttributeError):
        report.path = "other"  # type: ignore[misc]


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "empty": (lambda state: {}, "holds no weights"),
    "no tensors": (lambda state: {"epoch": 3, "state_dict": {}}, "found dict with keys ['epoch', 'state_dict']"),
    "a list": (lambda state: list(state.values()), "found list"),
    "two sets": (lambda state: {"model": state, "network": state}, "holds weights under ['model', 'network']"),
    "two names": (
        lambda state: state | {f"_orig_mod.{name}": value for name, value in state.items()},
        "several tensors of one name",
    ),
    "not a number": (
        lambda state: state | {"encoder.levels.1.norm1.bias": torch.full((4,), float("nan"))},
        "encoder.levels.1.norm1.bias holds NaN or infinite values, expected finite",
    ),
    "infinite": (
        lambda state: state | {"encoder.levels.0.norm2.running_var": torch.full((4,), float("inf"))},
        "encoder.levels.0.norm2.running_var holds NaN or infinite",
    ),
    "another network": (lambda state: nn.Linear(3, 2).state_dict(), "no encoder kernel of"),
    "no encoder": (
        lambda state: {name: value for name, value in state.items() if "encoder" not in name},
        "no encoder kernel of",
    ),
    "only batch counts fit": (lambda state: unet(features=(6, 12)).state_dict(), "shape (3, 1, 3, 3, 3) != (2, 1, 3"),
    "two dimensions": (lambda state: unet(spatial_dims=2).state_dict(), "shape (2, 1, 3, 3) != (2, 1, 3, 3, 3)"),
    "integers": (
        lambda state: {name: (100 * value).to(torch.int8) for name, value in state.items()},
        "dtype torch.int8 != torch.float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("network", [unet(), GenesisClassifier(features=FEATURES, hidden_channels=8)])
def test_useless_weights_are_refused_and_nothing_is_touched(
    case: str, network: nn.Module, source: GenesisUNet, tmp_path: Path
) -> None:
    make, message = REFUSED[case]
    file = tmp_path / "refused.pt"
    torch.save(make(dict(source.state_dict())), file)
    before = snapshot(network)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_pretrained(network, file)
    assert str(file) in str(error.value) and "expected" in str(error.value)
    assert equal(snapshot(network), before)


def test_another_network_without_a_common_kernel_is_refused(path: Path) -> None:
    network = NETWORKS["SegResNet"](1)
    before = snapshot(network)
    with pytest.raises(ValueError, match=r"no kernel of .*model\.pt .*fits SegResNet: expected names such as convInit"):
        load_pretrained(network, path)
    assert equal(snapshot(network), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 2}, "skipped head.weight: shape (1, 4, 1, 1, 1) != (2, 4, 1, 1, 1)"),
        ({"in_channels": 2}, "adapted encoder.levels.0.conv1.weight: input channels 1 -> 2"),
        ({"features": (4, 8, 16)}, "missing (unexpected) encoder.levels.2.conv1.weight"),
    ],
)
def test_strict_refuses_anything_but_a_full_match(arguments: dict[str, Any], message: str, path: Path) -> None:
    network = unet(**arguments)
    before = snapshot(network)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_pretrained(network, path, strict=True)
    assert str(path) in str(error.value)
    assert equal(snapshot(network), before)


def test_report_is_a_weight_report(path: Path) -> None:
    report = load_pretrained(unet(), path)
    assert isinstance(report, WeightReport) and hash(report.matched)
