# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import json
import pydoc
from pathlib import Path

import pytest

from models_genesis.training import TrainingRunHandler
from models_genesis.transfer.settings import RUN_HANDLER, SILENT_RUN
from models_genesis.transfer.study import Contrast, StudyError, load_study


def test_defaults_and_order(make_study):
    study = load_study(make_study(labels=["all", 4, 2]))
    assert study.labels == (2, 4, "all")
    assert (study.folds, study.train_lists, study.test_lists) == (1, ("training",), ("testing",))
    assert study.all_rates == (0.001, 0.01)
    assert study.contrasts == (Contrast("pretrained", "scratch", (2,)),)


def test_each_arm_is_held_against_scratch_and_the_claim_against_its_control(make_study):
    control = {"pretrained": "weights.pt", "permute": True}
    arms = {"scratch": {"pretrained": "none"}, "pretrained": {"pretrained": "weights.pt"}, "control": control}
    study = load_study(make_study(arms=arms))
    assert [str(each) for each in study.contrasts] == [
        "pretrained - scratch",
        "control - scratch",
        "pretrained - control",
    ]


def test_the_hash_is_that_of_the_content(make_study):
    path = make_study()
    first = load_study(path).hash
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=4))
    assert load_study(path).hash == first
    assert load_study(make_study(steps=11)).hash != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [2]}, "did you mean 'labels'"),
        ({"labels": [0]}, "labels"),
        ({"labels": [True]}, "labels"),
        ({"labels": [2, 2]}, "labels"),
        ({"score": "hd95_mm"}, "more is better"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"steps": 0}, "steps"),
        ({"steps": 10, "epochs": 3}, "multiple of the 3 epochs"),
        ({"rates": {"common": 0}}, "rates"),
        ({"rates": {"common": 0.1, "grid": ["0.1"]}}, "rates"),
        ({"rates": {"common": 0.1, "labels": [3]}}, "label counts of the study"),
        ({"rates": {"common": 0.1, "share": 1}}, "share"),
        ({"arms": {"scratch": {"pretrained": "none"}}}, "two arms"),
        ({"arms": {"a b": {"pretrained": "none"}, "c": {"pretrained": "none"}}}, "letters, digits"),
        ({"arms": {"scratch": {"pretrained": "none", "permute": True}, "c": {"pretrained": "none"}}}, "permute"),
        ({"arms": {"scratch": {"pretrained": None}, "c": {"pretrained": "none"}}}, "weight file"),
        ({"arms": {"scratch": {"pretrained": "none", "sha256": "a" * 64}, "c": {"pretrained": "none"}}}, "sha256"),
        ({"arms": {"scratch": {"pretrained": "none"}, "c": {"pretrained": "w.pt", "sha256": "de84f6a3"}}}, "64 digits"),
        ({"primary": {"arm": "pretrained", "against": "pretrained"}}, "two different arms"),
        ({"primary": {"arm": "other", "against": "scratch"}}, "one of the arms"),
        ({"primary": {"arm": "pretrained", "against": "scratch", "labels": [3]}}, "label counts of the study"),
        ({"primary": {"arm": "pretrained", "against": "scratch", "rate": "any"}}, '"best" or "common"'),
        ({"split": {"folds": 3, "test": ["testing"]}}, "split"),
        ({"split": {"train": ["training"], "test": ["training"]}}, "split"),
        ({"overrides": {"learning_rate": 1}}, "does not set itself"),
        ({"overrides": {"batchsize": 1}}, "did you mean 'batch_size'"),
        ({"train_overrides": {"train#optimiser": 1, "trian#x": 1}}, "did you mean 'train'"),
        ({"bundle": "nowhere"}, "expected the config"),
    ],
)
def test_a_study_that_cannot_be_right_is_refused(make_study, changes, message):
    path = make_study(**changes)
    with pytest.raises((StudyError, FileNotFoundError), match=message) as error:
        load_study(path)
    assert str(path) in str(error.value)


def test_a_missing_key_is_named(make_study):
    path = make_study()
    content = json.loads(path.read_text())
    del content["primary"]
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="expected the key 'primary'"):
        load_study(path)


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[2] / "bundles").glob("*/configs/train.json")))
def test_what_a_study_switches_off_is_there_in_every_bundle(path):
    """A study names the arguments, so that they must be the handler's, at the id where the bundles have it."""
    assert json.loads(path.read_text())["train"]["run"]["_target_"] == RUN_HANDLER
    assert pydoc.locate(RUN_HANDLER) is TrainingRunHandler
    assert {key.split("#")[-1] for key in SILENT_RUN} <= set(inspect.signature(TrainingRunHandler).parameters)
