# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from models_genesis.datasets import msd_task
from models_genesis.datasets.cases import MSD_TASKS
from models_genesis.networks import save_weights
from models_genesis.training import (
    ModelSettingsError,
    ModelSettingsGuard,
    check_model_settings,
    features_of_pretrained,
    name_of_task,
    read_model_settings,
    recorded_overrides,
    save_trained_weights,
    trained_task,
)
from models_genesis.training.engines.model_settings import check_config_settings

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"
NAMES = sorted(path.name for path in BUNDLES.glob("genesis_*_*ation"))
SETTINGS = {"features": [8, 16], "spacing": None, "intensity_range": [-1000, 600], "tumour": False}


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.full((2, 1), value)}


def test_what_training_writes_is_what_inference_reads(tmp_path):
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS, {"epoch": 3})
    assert read_model_settings(tmp_path) == SETTINGS
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["weights"] == {
        "file": "model.pt",
        "sha256": hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest(),
    }
    assert content["epoch"] == 3
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["head.weight"], weights(1.0)["head.weight"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.json"}


def test_weights_from_elsewhere_have_no_settings(tmp_path):
    save_weights(weights(1.0), tmp_path / "model.pt")
    assert read_model_settings(tmp_path) == {}


def test_a_fine_tuning_is_as_wide_as_the_weights_that_it_starts_from(tmp_path):
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS)
    assert features_of_pretrained(tmp_path / "model.pt", [64, 128]) == [8, 16]
    for other in (None, "none", "None", tmp_path / "missing.pt"):
        assert features_of_pretrained(other, [64, 128]) == [64, 128]
    save_weights(weights(2.0), tmp_path / "from_elsewhere.pt")
    assert features_of_pretrained(tmp_path / "from_elsewhere.pt", [64, 128]) == [64, 128]
    save_weights(weights(2.0), tmp_path / "model.pt")
    with pytest.raises(ModelSettingsError, match="SHA-256"):
        features_of_pretrained(tmp_path / "model.pt", [64, 128])


@pytest.mark.parametrize(
    ("pretrained", "line"),
    [
        ("none", "--features [64, 128]: the bundle's own, from scratch"),
        ("model.pt", "--features [8, 16]: those of the weights, by {folder}/model.json"),
        ("from_elsewhere.pt", "--features [64, 128]: the bundle's own; {folder}/from_elsewhere.json tells none"),
    ],
)
def test_the_log_says_which_width_a_fine_tuning_takes_and_whence(tmp_path, caplog, pretrained, line):
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS)
    caplog.set_level(logging.INFO)
    features_of_pretrained(pretrained if pretrained == "none" else tmp_path / pretrained, [64, 128])
    assert line.format(folder=tmp_path) in caplog.text


def test_settings_of_other_weights_are_refused(tmp_path):
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS)
    save_weights(weights(2.0), tmp_path / "model.pt")
    with pytest.raises(ModelSettingsError, match=r"model\.json: expected the settings of model\.pt, whose SHA-256 is"):
        read_model_settings(tmp_path)


@pytest.mark.parametrize("step", ["before the JSON", "between the two"])
def test_a_process_that_ends_while_writing_leaves_weights_with_their_settings(tmp_path, monkeypatch, step):
    """Kill it where the JSON is about to be written, and where it is written and the weights are not yet there."""
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS)
    replace, calls = os.replace, []

    def die(source, target):
        calls.append(str(target))
        if str(target).endswith("model.json" if step == "before the JSON" else "/model.pt"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_trained_weights(weights(2.0), tmp_path / "model.pt", {**SETTINGS, "tumour": True})
    assert read_model_settings(tmp_path) == SETTINGS
    monkeypatch.undo()
    save_trained_weights(weights(3.0), tmp_path / "model.pt", {**SETTINGS, "tumour": True})
    assert read_model_settings(tmp_path)["tumour"] is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "settings": {}}',
        '{"format": 2, "settings": {}, "weights": {"sha256": ""}}',
        '{"format": 1, "settings": [], "weights": {"sha256": ""}}',
        '{"format": 1, "settings": {}, "weights": {"sha256": ""}, "previous": 3}',
        "[" * 100000,
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    save_weights(weights(1.0), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelSettingsError, match=r"model\.json: expected the settings"):
        read_model_settings(tmp_path)


def test_a_given_key_that_differs_is_refused_by_name_or_allowed(caplog):
    check_model_settings(SETTINGS, {**SETTINGS, "intensity_range": (-1000.0, 600.0), "amp": True})
    other = {**SETTINGS, "intensity_range": [-1000, 1000], "tumour": True}
    with pytest.raises(ModelSettingsError, match=r"--intensity_range: .*\[-1000, 600\].*\[-1000, 1000\].*--tumour"):
        check_model_settings(SETTINGS, other)
    check_model_settings({"cube_size": None, "spacing": None}, {"spacing": None})  # as of weights for radiographs
    check_model_settings(SETTINGS, other, allow=True)
    assert "--intensity_range" in caplog.text
    check_model_settings({}, other)  # weights that say nothing


@pytest.mark.parametrize(("axis", "given"), [(2, None), (0, 1), (None, 2)])
def test_weights_of_slices_and_of_cubes_are_told_apart(axis, given):
    recorded = {"cube_size": [64, 64, 32] if axis is None else [64, 64], "slice_axis": axis}
    check_model_settings(recorded, {"slice_axis": axis})
    words = [json.dumps(each) for each in (axis, given)]
    with pytest.raises(ModelSettingsError, match=f"--slice_axis: trained with {words[0]}, given {words[1]}"):
        check_model_settings(recorded, {"slice_axis": given})


def test_weights_from_before_there_were_slices_are_of_cubes():
    check_model_settings({"cube_size": [64, 64, 32]}, {"slice_axis": None})
    with pytest.raises(ModelSettingsError, match="--slice_axis: trained with null, given 2"):
        check_model_settings({"cube_size": [64, 64, 32]}, {"slice_axis": 2})


def test_a_server_that_would_prepare_scans_for_other_weights_stops(tmp_path):
    save_trained_weights(weights(1.0), tmp_path / "model.pt", SETTINGS)
    guard = ModelSettingsGuard(tmp_path, read_model_settings(tmp_path))
    item = {"image": 1}
    assert guard(item) == item and guard(item) is not item
    save_trained_weights(weights(2.0), tmp_path / "model.pt", SETTINGS)  # better weights of the same training
    assert guard(item) == item
    save_trained_weights(weights(3.0), tmp_path / "model.pt", {**SETTINGS, "spacing": [1, 1, 2]})
    with pytest.raises(ModelSettingsError, match="has changed"):
        guard(item)


def test_a_task_described_by_a_file_is_known_without_it(tmp_path):
    facts = {"name": "Own", "in_channels": 1, "labels": {"0": "background", "1": "cyst"}}
    settings = {"task": "/gone/dataset.json", "task_facts": facts}
    assert trained_task(settings, "/gone/dataset.json") == facts
    assert trained_task(settings, "Task09_Spleen")["regions"] == {"spleen": [1]}
    assert trained_task({}, "Task09_Spleen")["regions"] == {"spleen": [1]}


def test_a_task_of_the_decathlon_is_recorded_by_its_name_not_by_a_path():
    for name in MSD_TASKS:
        assert name_of_task({**msd_task(name), "name": "as the file says"}) == name
    other = {**msd_task("Task09_Spleen"), "name": "Kidneys", "labels": {"0": "background", "1": "kidney"}}
    assert name_of_task(other) == "Kidneys"


def test_tasks_are_the_same_by_what_they_hold_not_by_name():
    """As an nnU-Net data set of another hospital with the same channels and labels."""
    ours = msd_task("Task05_Prostate")
    check = check_model_settings
    check({"task_facts": ours}, {"task_facts": {**ours, "name": "Dataset999_Extern", "tolerance_mm": 2.0}})
    check({"task_facts": {**ours, "channels": ["t2w", "adc"]}}, {"task_facts": ours})
    check({"task_facts": {name: value for name, value in ours.items() if name != "channels"}}, {"task_facts": ours})
    turned = {**ours, "channels": ["ADC", "T2"]}
    with pytest.raises(ModelSettingsError, match=r'--task: trained with \{"channels": \["T2", "ADC"\]\}'):
        check({"task_facts": ours}, {"task_facts": turned})
    with pytest.raises(ModelSettingsError, match=r'--task: trained with \{"labels": \{"0": "background", "1": "PZ"'):
        check({"task_facts": ours}, {"task_facts": {**ours, "labels": {"0": "background", "1": "TZ", "2": "PZ"}}})


def test_weights_of_another_bundle_are_refused():
    """Networks of the same shape take each other's weights, and call nodules a liver."""
    ours, theirs = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
    shape = {"features": [8, 16]}
    with pytest.raises(ModelSettingsError, match=f"expected weights of {ours}, found those of {theirs}"):
        check_model_settings({**shape, "bundle": theirs}, {**shape, "bundle": ours})
    check_model_settings({**shape, "bundle": theirs}, {**shape, "bundle": ours}, allow=True)
    check_model_settings({**shape, "bundle": ours}, {**shape, "bundle": ours})
    check_model_settings(shape, {**shape, "bundle": ours})  # written before bundles were


@pytest.mark.parametrize("name", NAMES)
def test_each_bundle_records_its_name_and_asks_for_it(name):
    """Also in a copy of another name."""
    configs = BUNDLES / name / "configs"
    train, inference = (json.loads((configs / f"{each}.json").read_text()) for each in ("train", "inference"))
    assert train["train"]["run"]["model_settings"]["bundle"] == name
    assert inference["settings_check"]["given"]["bundle"] == name
    for settings, allowed in (({}, False), ({"allow_changed_settings": True}, True)):
        with nullcontext() if allowed else pytest.raises(ModelSettingsError, match=f"expected weights of {name}"):
            check_config_settings({"bundle": "genesis_other_segmentation"}, inference, settings)


def test_a_training_takes_over_what_its_config_has():
    """A value of None too; what the config has nowhere, such as the facts of another bundle, is left out."""
    config = {"spacing": [1, 1, 1], "variant": "genesis", "deformation": {"variant": "@variant", "mask_ratio": 0.6}}
    recorded = {"spacing": None, "variant": "masking", "mask_ratio": 0.3, "tumour": True}
    expected = {"spacing": None, "variant": "masking", "deformation#mask_ratio": 0.3}
    assert recorded_overrides(config, recorded) == expected
    assert recorded_overrides({"spacing": None}, {"mask_ratio": 0.3}) == {}
