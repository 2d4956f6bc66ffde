# SPDX-License-Identifier: Apache-2.0
"""``from_pretrained`` and its kin: from files, folders and a hub on this machine; nothing fresh unless asked for."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

from models_genesis.networks import GenesisClassifier, GenesisUNet, save_weights
from models_genesis.networks import hub as hub_module
from models_genesis.networks.original_names import from_original_name
from models_genesis.networks.weight_files import save_safetensors
from models_genesis.training import ModelSettingsError, save_trained_weights

SPEC = importlib.util.spec_from_file_location("loopback_hub", Path(__file__).with_name("loopback_hub.py"))
assert SPEC is not None and SPEC.loader is not None
loopback = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(loopback)

SETTINGS = {
    "features": [4, 8],
    "in_channels": 2,
    "out_channels": 3,
    "spacing": [1.0, 1.0, 2.0],
    "intensity_range": [-1000, 600],
    "classes": [0, 1, 2],
}
PREPROCESSING = {"spacing": [1.0, 1.0, 2.0], "intensity_range": [-1000, 600]}


def unet(seed: int = 1, **arguments: Any) -> GenesisUNet:
    torch.manual_seed(seed)
    network = GenesisUNet(**({"features": (4, 8), "in_channels": 2, "out_channels": 3} | arguments)).eval()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.uniform_(0.1, 0.5)
    return network


def classifier(**arguments: Any) -> GenesisClassifier:
    torch.manual_seed(2)
    return GenesisClassifier(**({"features": (4, 8), "hidden_channels": 6, "num_classes": 2} | arguments)).eval()


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    assert unet().save_pretrained(tmp_path / "saved") is None
    return tmp_path / "saved"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The folder of a bundle whose training has written weights."""
    save_trained_weights(unet().state_dict(), tmp_path / "bundle" / "models" / "model.pt", SETTINGS)
    (tmp_path / "bundle" / "models" / "last_epoch.pt").write_bytes(b"another file")
    return tmp_path / "bundle"


# files and folders


def test_slices_along_three_axes_are_channels_of_the_network_not_of_the_scan(tmp_path):
    """Weights of ``2.5d.json``: settings have the scan's one channel, the network three."""
    network = classifier(spatial_dims=2, in_channels=3)
    settings = {"features": [4, 8], "in_channels": 1, "slice_axes": [2, 1, 0]}
    save_trained_weights(network.state_dict(), tmp_path / "model.pt", settings)
    loaded = GenesisClassifier.from_pretrained(tmp_path / "model.pt")
    assert loaded.architecture["in_channels"] == 3 and same(loaded, network)
    save_trained_weights(network.state_dict(), tmp_path / "other.pt", {**settings, "in_channels": 2})
    with pytest.raises(ValueError, match=r"in_channels is 6, but .* has 3"):
        GenesisClassifier.from_pretrained(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "source",
    [
        unet(),
        unet(spatial_dims=2, features=(4, 6, 8)),
        unet(act=("leakyrelu", {"negative_slope": 0.3}), norm=("group", {"num_groups": 1})),
        unet(norm="instance"),
        unet(batch_statistics=True),
        classifier(),
        classifier(dropout=0.4, in_channels=3, act="elu"),
    ],
    ids=lambda network: type(network).__name__,
)
@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_saved_comes_back_as_it_was(source: Any, as_file: bool, tmp_path: Path) -> None:
    """With activation, norm and dropout, which no shape tells; the file alone is complete."""
    source.save_pretrained(tmp_path)
    if as_file:
        (tmp_path / "config.json").unlink()
    found = type(source).from_pretrained(tmp_path / "model.safetensors" if as_file else str(tmp_path))
    assert str(found) == str(source) and found.architecture == source.architecture and not found.training
    assert same(found, source)
    image = torch.rand(2, source.architecture["in_channels"], *[8] * source.architecture["spatial_dims"])
    assert torch.equal(found(image), source(image))
    assert found.weight_report.summary.endswith("0 adapted, 0 skipped, 0 missing")


def test_a_bundle_its_folder_and_its_file_load(bundle: Path) -> None:
    for source in (bundle, bundle / "models", bundle / "models" / "model.pt", str(bundle)):
        network = GenesisUNet.from_pretrained(source)
        assert same(network, unet()) and network.model_settings == SETTINGS


def test_settings_travel_on(bundle: Path, tmp_path: Path) -> None:
    GenesisUNet.from_pretrained(bundle).save_pretrained(tmp_path / "again")
    assert GenesisUNet.from_pretrained(tmp_path / "again").model_settings == SETTINGS
    fresh = GenesisUNet.from_pretrained(tmp_path / "again", out_channels=7)
    assert fresh.model_settings == PREPROCESSING  # classes of a head that is gone are gone too
    assert GenesisClassifier.from_pretrained(bundle, num_classes=1).model_settings == PREPROCESSING


FACTS = {"name": "Two", "modality": "MR", "in_channels": 2, "labels": {"0": "background"}, "out_channels": 3}


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [({}, FACTS), ({"out_channels": 3}, FACTS), ({"out_channels": 5}, {"modality": "MR"}),
     ({"in_channels": 4}, {"modality": "MR"})],
)  # fmt: skip
def test_a_fresh_head_or_an_adapted_input_keeps_of_the_task_what_stays_true(
    overrides: dict[str, Any], kept: Any, tmp_path: Path
) -> None:
    settings = {"features": [4, 8], "spacing": None, "task": "Two", "task_facts": FACTS}
    save_trained_weights(unet().state_dict(), tmp_path / "model.pt", settings)
    network = GenesisUNet.from_pretrained(tmp_path, **overrides)
    network.save_pretrained(tmp_path / "again")
    assert network.model_settings["task_facts"] == kept
    assert ("task" in network.model_settings) == (kept == FACTS)
    again = GenesisUNet.from_pretrained(tmp_path / "again")
    assert again.model_settings == network.model_settings and again.architecture == network.architecture


def test_a_training_notes_what_tensors_do_not_show(tmp_path: Path) -> None:
    network = unet(act="elu", batch_statistics=True)
    described = {
        "target": "models_genesis.networks.GenesisUNet",
        "arguments": json.loads(json.dumps(network.architecture)),
    }
    save_trained_weights(network.state_dict(), tmp_path / "model.pt", {**SETTINGS, "network_def": described})
    loaded = GenesisUNet.from_pretrained(tmp_path)
    assert loaded.architecture == network.architecture and loaded.model_settings == SETTINGS
    assert GenesisClassifier.from_pretrained(tmp_path, num_classes=1).architecture["act"] == "elu"
    assert GenesisUNet.from_pretrained(tmp_path, act="relu").architecture["act"] == "relu"
    save_trained_weights(
        network.state_dict(),
        tmp_path / "model.pt",
        {"network_def": {**described, "target": "models_genesis.networks.GenesisClassifier"}},
    )
    with pytest.raises(ValueError, match=r"model\.json: network is GenesisClassifier, but .* has GenesisUNet"):
        GenesisUNet.from_pretrained(tmp_path)


def test_the_originals_file_loads(original_shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    deep = unet(features=(4, 6, 8, 10), in_channels=1, out_channels=1)
    names = {from_original_name(name.removeprefix("module.")): name for name in original_shapes}
    state = {names[name]: tensor for name, tensor in deep.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "Genesis_Chest_CT.pt")
    for source in (tmp_path, tmp_path / "Genesis_Chest_CT.pt"):
        network = GenesisUNet.from_pretrained(source)
        assert same(network, deep) and "original" in network.weight_report.layout


@pytest.mark.parametrize("prefix", ["module.", "network._orig_mod."])
def test_prefixes_do_not_matter(prefix: str, tmp_path: Path) -> None:
    torch.save({"model": {prefix + name: t for name, t in unet().state_dict().items()}}, tmp_path / "model.pt")
    assert same(GenesisUNet.from_pretrained(tmp_path), unet())


def test_networks_that_were_loaded_are_ordinary(saved: Path) -> None:
    network = GenesisUNet.from_pretrained(saved, map_location="cpu", use_checkpointing=True)
    image = torch.rand(1, 2, 8, 8, 8)
    assert same(copy.deepcopy(network), network) and same(pickle.loads(pickle.dumps(network)), network)
    with pytest.warns(DeprecationWarning):
        assert torch.equal(torch.jit.script(network)(image), network(image))
    assert isinstance(network, PyTorchModelHubMixin)
    network.train()(image).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# what is fresh has to be asked for


def test_other_outputs_give_a_fresh_head_with_the_report(saved: Path) -> None:
    torch.manual_seed(5)
    network = GenesisUNet.from_pretrained(saved, out_channels=5)
    assert network.weight_report.skipped == ("head.bias", "head.weight")
    source = unet().state_dict()
    for name, tensor in network.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, source[name])
    limit = 4**-0.5  # PyTorch's bound for four inputs
    assert network.head.weight.shape == (5, 4, 1, 1, 1) and network.head.weight.abs().max() <= limit
    assert network.head.weight.unique().numel() == 20


def test_other_inputs_adapt_the_first_convolution(saved: Path) -> None:
    network = GenesisUNet.from_pretrained(saved, in_channels=4)
    assert network.weight_report.adapted == ("encoder.levels.0.conv1.weight",)
    image = torch.rand(1, 2, 8, 8, 8)
    torch.testing.assert_close(network(torch.cat([image, image], dim=1)), unet()(image))


def test_the_same_number_of_outputs_keeps_the_head(saved: Path) -> None:
    assert same(GenesisUNet.from_pretrained(saved, out_channels=3, features=[4, 8]), unet())


def test_a_classifier_takes_the_encoder_of_a_unet_and_the_other_way(saved: Path, tmp_path: Path) -> None:
    network = GenesisClassifier.from_pretrained(saved, num_classes=1)
    assert same(network.encoder, unet().encoder) and network.architecture["in_channels"] == 2
    network.save_pretrained(tmp_path / "classifier")
    back = GenesisUNet.from_pretrained(tmp_path / "classifier", out_channels=3)
    assert same(back.encoder, unet().encoder)
    assert all(name.startswith(("decoder.", "head.")) for name in back.weight_report.missing)


def test_another_hidden_width_gives_a_fresh_classification_head(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path)
    network = GenesisClassifier.from_pretrained(tmp_path, hidden_channels=9)
    assert same(network.encoder, classifier().encoder)
    assert {name.partition(".")[0] for name in network.weight_report.skipped} == {"hidden", "classes"}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_facts(folder: Path, **changes: Any) -> None:
    """Save a network as it was saved with the settings of another one."""
    network = unet()
    network.model_settings = {"task_facts": FACTS | changes}
    network.save_pretrained(folder)
    (folder / "config.json").unlink()


def without(path: Path, *names: str, **extra: torch.Tensor) -> None:
    state = {name: tensor for name, tensor in unet().state_dict().items() if name not in names}
    save_safetensors(state | extra, path)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "width": (lambda folder: None, {"features": (8, 16)}, r"expected features=\(4, 8\).*found features=\(8, 16\)"),
    "depth": (lambda folder: None, {"features": (4, 8, 16)}, r"expected features=\(4, 8\)"),
    "dimensions": (lambda folder: None, {"spatial_dims": 2}, "expected spatial_dims=3.*found spatial_dims=2"),
    "norm without statistics": (
        lambda folder: None,
        {"norm": "instance"},
        r"skipped \(unexpected\) encoder\.levels\.0\.norm1\.bias",
    ),
    "channels of the config": (
        lambda folder: edit(folder / "config.json", in_channels=1),
        {},
        r"config\.json: in_channels is 1, but .*model\.safetensors, header has 2",
    ),
    "channels of the config's task": (
        lambda folder: write_facts(folder, in_channels=1),
        {},
        r"header, task_facts: in_channels is 1, but .*model\.safetensors has 2",
    ),
    "labels of the config's task": (
        lambda folder: write_facts(folder, out_channels=2),
        {"out_channels": 5},
        r"header, task_facts: out_channels is 2, but .*model\.safetensors has 3",
    ),
    "width of the config": (
        lambda folder: edit(folder / "config.json", features=[8, 16]),
        {},
        r"config\.json: features is \[8, 16\], but .*has \[4, 8\]",
    ),
    "another activation in the config than in the header": (
        lambda folder: edit(folder / "config.json", act="elu"),
        {},
        r"config\.json: act is elu, but .*header has relu",
    ),
    "another network in the config": (
        lambda folder: edit(folder / "config.json", network="GenesisClassifier"),
        {},
        "network is GenesisClassifier, but .* has GenesisUNet",
    ),
    "an argument that we do not know": (
        lambda folder: edit(folder / "config.json", residual=True),
        {},
        r"config\.json: expected the arguments .* of GenesisUNet, found \['residual'\]",
    ),
    "a config that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        {},
        r"config\.json: expected a JSON object",
    ),
    "a config that is cut off": (
        lambda folder: (folder / "config.json").write_text('{"network": '),
        {},
        r"config\.json: expected a JSON object",
    ),
    "a tensor that is missing": (
        lambda folder: without(folder / "model.safetensors", "decoder.levels.0.merge.conv1.weight"),
        {},
        r"every tensor has to match, found:(.|\n)*missing decoder\.levels\.0\.merge\.conv1\.weight",
    ),
    "a tensor that is missing next to a fresh head": (
        lambda folder: without(folder / "model.safetensors", "decoder.levels.0.merge.conv1.weight"),
        {"out_channels": 7},
        r"every tensor but those of .*found \['decoder\.levels\.0\.merge\.conv1\.weight'\] left over",
    ),
    "a tensor too many": (
        lambda folder: without(folder / "model.safetensors", **{"encoder.gate": torch.ones(3)}),
        {"out_channels": 7},
        r"found \['encoder\.gate'\] left over",
    ),
    "no head": (
        lambda folder: without(folder / "model.safetensors", "head.weight", "head.bias"),
        {},
        "expected all weights of GenesisClassifier or GenesisUNet, found 44 tensors",
    ),
    "another network": (
        lambda folder: save_safetensors(nn.Linear(3, 2).state_dict(), folder / "model.safetensors"),
        {},
        "expected all weights of GenesisClassifier or GenesisUNet, found 2 tensors such as",
    ),
    "two files": (
        lambda folder: save_weights(unet().state_dict(), folder / "model.pt"),
        {},
        r"expected one file of weights, found \['model\.safetensors', 'model\.pt'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, saved: Path) -> None:
    spoil, overrides, message = REFUSED[case]
    spoil(saved)
    with pytest.raises(ValueError, match=message) as error:
        GenesisUNet.from_pretrained(saved, **overrides)
    assert str(saved) in str(error.value)


def test_other_refusals_name_what_was_expected(saved: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a GenesisClassifier, found a GenesisUNet; num_classes=.*fresh"):
        GenesisClassifier.from_pretrained(saved)
    with pytest.raises(TypeError, match=r"expected arguments of GenesisUNet \(spatial_dims, .*found \['chanels'\]"):
        GenesisUNet.from_pretrained(saved, chanels=3)
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors or models/model.pt or model.pt"):
        GenesisUNet.from_pretrained(tmp_path / "saved" / "..", filename=None)
    for missing in (tmp_path / "none", str(tmp_path / "none"), "none.pt", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="expected a file of weights, a folder with"):
            GenesisUNet.from_pretrained(missing)
    edit(bundle / "models" / "model.json", weights={"file": "model.pt", "sha256": "0" * 64})
    with pytest.raises(ModelSettingsError, match=r"expected the settings of model.pt, whose SHA-256 is"):
        GenesisUNet.from_pretrained(bundle)


def test_saving_refuses_what_would_not_come_back(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="act: expected a value that JSON has"):
        unet(act=("leakyrelu", {"negative_slope": float("nan")})).save_pretrained(tmp_path / "one")
    broken = unet()
    broken.head.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"head\.bias holds NaN or infinite values"):
        broken.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()


# the hub, on this machine


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with loopback.loopback_hub() as server:
        yield server


@pytest.fixture
def pushing(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uploads go to this machine; downloads name it themselves."""
    push = PyTorchModelHubMixin.push_to_hub

    def here(self: Any, *positional: Any, **options: Any) -> str:
        with monkeypatch.context() as context:
            context.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
            return str(push(self, *positional, **options))

    monkeypatch.setattr(PyTorchModelHubMixin, "push_to_hub", here)
    yield


def upload(hub: Any, repository: str, folder: Path) -> None:
    hub.repositories[repository] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def load(hub: Any, repository: str, cache: Path, **options: Any) -> GenesisUNet:
    return GenesisUNet.from_pretrained(repository, endpoint=hub.address, cache_dir=cache, **options)


def test_a_repository_loads_and_then_from_the_cache_alone(hub: Any, saved: Path, tmp_path: Path) -> None:
    upload(hub, "someone/unet", saved)
    assert same(load(hub, "someone/unet", tmp_path / "cache"), unet())
    hub.requests.clear()
    assert same(load(hub, "someone/unet", tmp_path / "cache", local_files_only=True), unet())
    assert hub.requests == []
    assert load(hub, "someone/unet", tmp_path / "cache", out_channels=1).head.out_channels == 1
    assert all(request.startswith("HEAD") for request in hub.requests)  # nothing is downloaded again


def test_a_bundles_repository_loads_with_its_settings(hub: Any, bundle: Path, tmp_path: Path) -> None:
    """The layout of MONAI's own repositories: the whole bundle, weights under models/."""
    upload(hub, "MONAI/bundle", bundle)
    for options in ({}, {"local_files_only": True}):
        network = load(hub, "MONAI/bundle", tmp_path / "cache", **options)
        assert same(network, unet()) and network.model_settings == SETTINGS
    save_weights(unet(3).state_dict(), bundle / "models" / "other.pt")
    upload(hub, "MONAI/bundle", bundle)
    assert same(load(hub, "MONAI/bundle", tmp_path / "cache", filename="models/other.pt"), unet(3))


def test_all_files_are_of_one_commit(hub: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push between two downloads must not mix old weights with a new config."""
    upload(hub, "someone/unet", saved)
    commit = hub.commit("someone/unet")
    download = huggingface_hub.hf_hub_download

    def push_in_between(repository: str, name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return download(repository, name, **options)

    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", push_in_between)
    load(hub, "someone/unet", tmp_path / "cache")
    assert asked == [("model.safetensors", None), ("config.json", commit)]


def test_a_config_that_may_exist_is_not_done_without(hub: Any, tmp_path: Path, saved: Path) -> None:
    """Weights of others say nothing of their activation; in a torn cache it is not guessed."""
    save_safetensors(unet(act="elu").state_dict(), saved / "model.safetensors")
    edit(saved / "config.json", act="elu")
    upload(hub, "someone/unet", saved)
    assert "ELU" in str(load(hub, "someone/unet", tmp_path / "cache"))
    (config,) = (tmp_path / "cache").rglob("config.json")
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json|outgoing traffic|cache"):
        load(hub, "someone/unet", tmp_path / "cache", local_files_only=True)
    assert "ELU" in str(load(hub, "someone/unet", tmp_path / "cache"))


def test_repositories_without_weights_or_answer_are_named(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.repositories["someone/empty"] = {"README.md": b"nothing"}
    with pytest.raises(FileNotFoundError, match=r"repository someone/empty: expected model.safetensors or models/"):
        load(hub, "someone/empty", tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="someone/none is not a file or folder here, and as a repository"):
        load(hub, "someone/none", tmp_path / "cache")
    for options in ({"local_files_only": True}, {"endpoint": "http://127.0.0.1:9"}):
        with pytest.raises(FileNotFoundError, match="someone/unet is not a file or folder here, nor in the cache"):
            GenesisUNet.from_pretrained("someone/unet", cache_dir=tmp_path / "cache", **options)
    assert len(waits) <= 5  # a dead server is waited for once, not for every name of a file


def test_what_is_pushed_comes_back(hub: Any, pushing: None, bundle: Path, tmp_path: Path) -> None:
    network = GenesisUNet.from_pretrained(bundle)
    address = network.push_to_hub("someone/pushed", token="hf_of_this_machine", private=True)
    assert address == f"{hub.address}/someone/pushed/commit/{hub.commit('someone/pushed')}"
    assert set(hub.repositories["someone/pushed"]) == {"README.md", "config.json", "model.safetensors"}
    again = load(hub, "someone/pushed", tmp_path / "other cache")
    assert same(again, unet()) and again.model_settings == SETTINGS
    card = ModelCard(hub.repositories["someone/pushed"]["README.md"].decode())
    assert card.data.library_name == "models_genesis" and "monai" in card.data.tags and card.data.license is None
    assert 'GenesisUNet.from_pretrained("someone/pushed")' in card.text


def test_pushing_the_originals_weights_warns(
    pushing: None, original_shapes: dict[str, tuple[int, ...]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {from_original_name(name.removeprefix("module.")): name for name in original_shapes}
    state = unet(features=(4, 6, 8, 10), in_channels=1, out_channels=1).state_dict()
    torch.save({"state_dict": {names[name]: tensor for name, tensor in state.items()}}, tmp_path / "Genesis.pt")
    GenesisUNet.from_pretrained(tmp_path / "Genesis.pt").push_to_hub("someone/pushed", token="hf_of_this_machine")
    assert "licensed for non-commercial use only" in caplog.text


class Mixed(nn.Module, PyTorchModelHubMixin):
    """Someone's own network, which the library itself saves and loads."""

    def __init__(self, features: tuple[int, ...] = (4, 8), act: str = "relu", network: str = "") -> None:
        super().__init__()
        inner = GenesisUNet(features=features, act=act)
        self.encoder, self.decoder, self.head = inner.encoder, inner.decoder, inner.head


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    source = unet(in_channels=1, out_channels=1, act="elu")
    source.save_pretrained(tmp_path / "ours")
    theirs = Mixed.from_pretrained(tmp_path / "ours", strict=True)
    assert same(theirs, source) and "ELU" in str(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    edit(tmp_path / "theirs" / "config.json", transformers_version="4")  # others write what they like
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps(
            {k: v for k, v in json.loads((tmp_path / "theirs/config.json").read_text()).items() if k != "network"}
        )
    )
    again = GenesisUNet.from_pretrained(tmp_path / "theirs")
    assert same(again, source) and "ELU" in str(again)


def test_offline_mode_is_respected(hub: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, "someone/unet", saved)
    load(hub, "someone/unet", tmp_path / "cache")
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what the variable sets on import
    assert same(load(hub, "someone/unet", tmp_path / "cache"), unet())
    with pytest.raises(FileNotFoundError, match="nor in the cache of the Hugging Face hub"):
        load(hub, "someone/other", tmp_path / "cache")
    assert hub.requests == []


def test_without_the_package_files_load_and_repositories_say_what_they_need(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    spec = importlib.util.spec_from_file_location("models_genesis.networks.hub_alone", hub_module.__file__)
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    alone.NETWORKS.update(hub_module.NETWORKS)  # the networks have entered themselves in the module as it was
    assert not issubclass(alone.PretrainedMixin, PyTorchModelHubMixin)
    network: Any = type("Alone", (alone.PretrainedMixin, GenesisUNet), {}).from_pretrained(saved)
    network.save_pretrained(tmp_path / "again")
    assert same(GenesisUNet.from_pretrained(tmp_path / "again"), unet())
    with pytest.raises(ImportError, match=r"pip install 'models-genesis\[hub\]'"):
        type(network).from_pretrained("someone/unet")
    with pytest.raises(ImportError, match=r"pip install 'models-genesis\[hub\]'"):
        network.push_to_hub("someone/unet")
