# SPDX-License-Identifier: Apache-2.0
"""Trainings that began with the bundles of an earlier version go on with those of now.

``former_settings.json`` has what ``settings_of_run`` gathered of each bundle at commit 7f9869c, before rare keys moved,
gradients were accumulated and flips had a probability for each axis: it was taken from running workflows, not typed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from models_genesis.training.handlers.run_settings import changed_settings, settings_of_run

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
FORMER: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("former_settings.json").read_text())


def settings_now(name: str, **given: Any) -> dict[str, Any]:
    bundle, _, overlay = name.partition(" ")
    files = [str(BUNDLES / bundle / "configs" / f"{each}.json") for each in ("train", overlay) if each]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **given)
    gathered: list[dict[str, Any]] = []
    workflow.parser.config.update({"initialize": [], "run": ["$gather()"]})
    workflow.parser.globals["gather"] = lambda: gathered.append(settings_of_run())
    workflow.initialize()
    workflow.run()
    return gathered[0]


@pytest.mark.parametrize("name", list(FORMER))
def test_a_training_of_an_earlier_version_resumes(name):
    given = {"flip_prob": 0.5} if "msd" in name else {}  # it flips fewer axes by default now
    assert changed_settings(FORMER[name], settings_now(name, **given)) == {}


@pytest.mark.parametrize("name", [name for name in FORMER if "msd" in name])
def test_fewer_flips_are_a_change_that_is_named(name):
    changes = changed_settings(FORMER[name], settings_now(name))
    assert changes == {"flip_prob": (0.5, [0.5, 0.0, 0.5])}


def test_all_bundles_are_compared():
    assert {name.partition(" ")[0] for name in FORMER} == {
        path.parents[1].name for path in BUNDLES.glob("*/configs/train.json")
    }


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("genesis_lits_liver_ct_segmentation", {"batch_size": 3}),
        ("genesis_lits_liver_ct_segmentation", {"flip_prob": [0.0, 0.5, 0.5]}),
        ("genesis_chest_ct_pretraining", {"accumulation_steps": 2}),
        ("genesis_luna16_nodule_ct_classification", {"train#run#freeze_epochs": 3}),
    ],
)
def test_other_values_are_changes(name, given):
    assert list(changed_settings(FORMER[name], settings_now(name, **given))) == list(given)
