# SPDX-License-Identifier: Apache-2.0
"""Copies of bundles for MONAI Label: settings, channels and label names. MONAI Label itself is not needed."""

from __future__ import annotations

import doctest
import json
import shutil
import stat
from pathlib import Path

import pytest
import torch

from models_genesis.training import read_model_settings, save_trained_weights

ROOT = Path(__file__).resolve().parents[2]
LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
WHOLE, CORE, ENHANCING = "whole tumour", "tumour core", "enhancing tumour"
NECROSIS = "necrosis or non-enhancing tumour"


@pytest.fixture(scope="module")
def tool(load_script):
    """The script as a module."""
    return load_script(ROOT / "label" / "copy_bundle.py")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("bundle", "settings", "channels", "names"),
    [
        (LITS, [], (1, 2), {1: "liver"}),
        (LITS, ["tumour=True"], (1, 3), {1: "liver", 2: "tumour"}),
        (LIDC, [], (1, 2), {1: "nodule"}),
        (MSD, [], (1, 3), {1: "Anterior", 2: "Posterior"}),
        (MSD, ["task=Task05_Prostate"], (2, 3), {1: "PZ", 2: "TZ"}),
        (BRATS, [], (1, 3), {1: NECROSIS, 2: "oedema", 4: ENHANCING}),
        (BRATS, ["convention=2023", 'channels=["t1", "t2"]'], (2, 3), {1: NECROSIS, 2: "oedema", 3: ENHANCING}),
        (BRATS, ["convention=msd"], (1, 3), {1: "oedema", 2: NECROSIS, 3: ENHANCING}),
        (BRATS, [f'targets=["{WHOLE}"]'], (1, 1), {2: WHOLE}),
        (BRATS, [f'targets=["{WHOLE}", "{CORE}"]'], (1, 2), {2: WHOLE, 1: CORE}),
    ],
)
def test_label_names_follow_from_the_settings(tool, bundle, settings, channels, names, tmp_path):
    given = [part for setting in settings for part in ("--set", setting)]
    assert tool.main([str(ROOT / "bundles" / bundle), str(tmp_path / "copy"), *given]) == 0
    formats = read(tmp_path / "copy", "metadata")["network_data_format"]
    found = formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]
    assert found == channels
    defined = formats["outputs"]["pred"]["channel_def"]
    assert {int(value): name for value, name in defined.items() if name != "background"} == names


@pytest.mark.parametrize("bundle", [LITS, LIDC, BRATS, MSD])
def test_the_bundles_own_metadata_have_the_names_of_their_settings(tool, bundle, tmp_path):
    tool.copy_bundle(ROOT / "bundles" / bundle, tmp_path / "copy", {})
    for name in ("metadata", "inference"):
        assert read(tmp_path / "copy", name) == read(ROOT / "bundles" / bundle, name)
    train, models = read(ROOT / "bundles" / bundle, "train"), ROOT / "bundles" / bundle / "models"
    enclosed = {key: value for key, value in read_model_settings(models).items() if key in train}
    assert read(tmp_path / "copy", "train") == {**train, **enclosed}
    assert (tmp_path / "copy" / "models" / "model.pt").is_file() == bool(enclosed)


def test_a_copy_for_another_task_does_not_get_the_enclosed_weights(tool, tmp_path, capsys):
    """MONAI Label would train and predict with a network of other channels, and fail."""
    tool.copy_bundle(ROOT / "bundles" / MSD, tmp_path / "copy", {"task": "Task05_Prostate"})
    assert not list((tmp_path / "copy").glob("models/*"))
    assert read(tmp_path / "copy", "train")["features"] == read(ROOT / "bundles" / MSD, "train")["features"]
    assert 'left out of the copy. the weights were trained with other settings. --task: trained with "Task04' in (
        capsys.readouterr().out
    )


def test_settings_are_written_where_the_key_is_known(tool, tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "copy", {"features": [4, 8], "learning_rate": 0.1}, weights)
    before = {name: read(ROOT / "bundles" / LITS, name) for name in ("train", "inference")}
    after = {name: read(tmp_path / "copy", name) for name in before}
    assert after["train"] == {**before["train"], "features": [4, 8], "learning_rate": 0.1}
    assert after["inference"] == {**before["inference"], "features": [4, 8]}
    assert (tmp_path / "copy" / "models" / "model.pt").read_bytes() == b"weights"
    assert read(ROOT / "bundles" / LITS, "train") == before["train"]


def test_so_are_those_of_a_component_by_their_nested_ids(tool, tmp_path):
    """Given ones, and those that the weights were trained with."""
    weights = tmp_path / "w.pt"
    save_trained_weights({"head.weight": torch.zeros(1)}, weights, {"variant": "masking", "mask_ratio": 0.3})
    source = ROOT / "bundles" / "genesis_chest_ct_pretraining"
    tool.copy_bundle(source, tmp_path / "copy", {"train#run#keep_last": "5"}, weights)
    after = read(tmp_path / "copy", "train")
    assert after["train"]["run"]["keep_last"] == 5 and "train#run#keep_last" not in after
    assert (after["variant"], after["deformation"]["variant"]) == ("masking", "@variant")
    assert after["deformation"]["mask_ratio"] == 0.3 and "mask_ratio" not in after
    with pytest.raises(ValueError, match="'train#walk#keep_last'"):
        tool.copy_bundle(source, tmp_path / "other", {"train#walk#keep_last": 5})


def test_what_cannot_be_done_is_refused(tool, tmp_path):
    source = ROOT / "bundles" / LITS
    with pytest.raises(ValueError, match="'feature'"):
        tool.copy_bundle(source, tmp_path / "copy", {"feature": [4, 8]})
    with pytest.raises(FileNotFoundError, match=r"w\.pt"):
        tool.copy_bundle(source, tmp_path / "copy", {}, tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tool.copy_bundle(tmp_path / "nowhere", tmp_path / "copy", {})
    assert not (tmp_path / "copy").exists()
    (tmp_path / "copy").mkdir()
    with pytest.raises(FileExistsError):
        tool.copy_bundle(source, tmp_path / "copy", {})


def test_an_interrupted_copy_leaves_nothing(tool, tmp_path, monkeypatch):
    """Half a bundle would be taken for a copy at the next start."""
    copytree = tool.shutil.copytree

    def interrupted(*args, **kwargs):
        copytree(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.shutil, "copytree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "bundles" / LITS, {})
    assert list((tmp_path / "bundles").iterdir()) == []
    monkeypatch.undo()
    tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "bundles" / LITS, {})
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [LITS]


def read_only(source: Path, target: Path) -> Path:
    """Copy a folder as a package manager or an administrator installs it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "logs", "eval"))
    for path in (*target.rglob("*"), target):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return target


def not_writable(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if not path.stat().st_mode & stat.S_IWUSR]


def test_the_copy_of_a_read_only_bundle_can_be_written(tool, tmp_path):
    """By the copying itself, whose modes are those of the source, by training, and by whoever deletes it."""
    weights = tmp_path / "w.pt"
    save_trained_weights({"head.weight": torch.zeros(1)}, weights, {"features": [4, 8]})
    for path in (weights, weights.with_suffix(".json")):
        path.chmod(0o444)
    source = read_only(ROOT / "bundles" / LIDC, tmp_path / LIDC)
    assert len(not_writable(source)) > 10
    tool.copy_bundle(source, tmp_path / "copy", {})
    tool.copy_bundle(source, tmp_path / "other", {}, weights)
    assert not_writable(tmp_path / "copy") == not_writable(tmp_path / "other") == []
    assert (tmp_path / "other" / "models" / "model.pt").read_bytes() == weights.read_bytes()


def test_so_can_the_viewers_copy_of_a_read_only_app(load_script, tmp_path, monkeypatch):
    viewer = load_script(ROOT / "tools" / "viewer.py")
    read_only(ROOT / "label", tmp_path / "label")
    monkeypatch.setattr(viewer, "ROOT", tmp_path)
    for _ in range(2):  # a kept storage has a copy already
        viewer.copy_app(tmp_path / "app")
        assert not_writable(tmp_path / "app") == []
    assert (tmp_path / "app" / "main.py").read_bytes() == (ROOT / "label" / "main.py").read_bytes()


def test_paths_of_scans_are_not_copied(tool, tmp_path):
    """MONAI Label leaves them in the bundle after a training on several GPUs; git ignores them."""
    source = tmp_path / LIDC
    shutil.copytree(ROOT / "bundles" / LIDC, source)
    (source / "configs" / "monailabel_train.json").write_text(
        '{"train#dataset#data": [{"image": "SMITH_JOHN.nii.gz"}]}'
    )
    tool.copy_bundle(source, tmp_path / "copy", {})
    copied = {path.name for path in (tmp_path / "copy" / "configs").iterdir()}
    assert copied == {path.name for path in (source / "configs").iterdir()} - {"monailabel_train.json"}
    assert f"bundles/*/configs/{tool.PATHS_OF_SCANS}" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_server_writes_the_config_that_is_not_copied():
    """The name is MONAI Label's own."""
    bundle = pytest.importorskip("monailabel.tasks.train.bundle")
    assert '"monailabel_train.json"' in Path(bundle.__file__).read_text()


def test_examples(tool):
    assert doctest.testmod(tool).failed == 0


def test_the_settings_of_weights_come_along(tool, tmp_path):
    """Inference takes them from ``model.json``, fine-tuning from the copy's ``train.json``."""
    trained = {"features": [4, 8], "tumour": True, "classes": [0, 1, 2], "in_channels": 1, "out_channels": 3}
    weights = tmp_path / "best.pt"
    save_trained_weights({"head.weight": torch.zeros(1)}, weights, {**trained, "spacing": [1, 1, 2]})
    tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "a_segmentation", {}, weights)
    assert (tmp_path / "a_segmentation/models/model.pt").read_bytes() == weights.read_bytes()
    assert read_model_settings(tmp_path / "a_segmentation/models") == {**trained, "spacing": [1, 1, 2]}
    train = read(tmp_path / "a_segmentation", "train")
    assert {key: train[key] for key in trained} == trained and train["spacing"] == [1, 1, 2]
    metadata = read(tmp_path / "a_segmentation", "metadata")
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    with pytest.raises(ValueError, match="--tumour: trained with true, given false"):
        tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "b_segmentation", {"tumour": "false"}, weights)


def test_the_networks_activation_comes_along_to_both_configs(tool, tmp_path):
    described = {"target": "models_genesis.networks.GenesisUNet", "arguments": {"act": "elu", "norm": "batch"}}
    weights = tmp_path / "best.pt"
    save_trained_weights({"head.weight": torch.zeros(1)}, weights, {"network_def": described})
    tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "a_segmentation", {}, weights)
    for name in ("train", "inference"):
        written = read(ROOT / "bundles" / LITS, name)["network_def"]
        assert read(tmp_path / "a_segmentation", name)["network_def"] == {**written, "act": "elu"}
    with pytest.raises(ValueError, match='--network_def#act: trained with "elu", given "relu"'):
        tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "b_segmentation", {"network_def#act": "relu"}, weights)


def test_a_setting_of_another_type_is_refused(tool, tmp_path):
    with pytest.raises(ValueError, match="--tumour: expected True or False"):
        tool.copy_bundle(ROOT / "bundles" / LITS, tmp_path / "c_segmentation", {"tumour": "maybe"})
