# SPDX-License-Identifier: Apache-2.0
"""Arms differ in their weights, and in the network's width only where the study says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models_genesis.networks import GenesisUNet
from models_genesis.networks.weight_files import save_weights
from models_genesis.training.engines.model_settings import features_of_pretrained, save_trained_weights
from models_genesis.transfer.permuted import permuted_file
from models_genesis.transfer.runner import Options, Runner
from models_genesis.transfer.study import StudyError, load_study
from models_genesis.transfer.widths import check_widths

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "genesis_lits_liver_ct_segmentation"
SMALL, PAPER = [4, 8], [64, 128, 256, 512]
ARMS = {
    "scratch": {"pretrained": "none"},
    "pretrained": {"pretrained": "small.pt"},
    "permuted": {"pretrained": "small.pt", "permute": True},
}


@pytest.fixture
def study(make_study, tmp_path):
    """Write a study of a real bundle, whose weights' JSON tells their width, and read it."""

    def write(arms=ARMS, **content):
        save_trained_weights(GenesisUNet(features=SMALL).state_dict(), tmp_path / "small.pt", {"features": SMALL})
        return load_study(make_study(bundle=str(BUNDLE), arms=arms, **content))

    return write


def with_widths(**widths):
    return {
        name: arm | ({"overrides": {"features": widths[name]}} if name in widths else {}) for name, arm in ARMS.items()
    }


def test_arms_of_different_width_are_refused_before_the_first_run(study, tmp_path):
    with pytest.raises(StudyError) as error:
        Runner(study(), Options(tmp_path / "out", jobs=0))
    for part in (
        "study.json: arms: expected networks of one width",
        f"scratch: {PAPER}; pretrained: {SMALL}; permuted: {SMALL}",
        '"overrides": {"features": [4, 8]} in the study',
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arms", "content"),
    [
        (ARMS, {"overrides": {"features": SMALL}}),
        (ARMS, {"train_overrides": {"network_def#features": SMALL}}),
        (with_widths(scratch=SMALL), {}),
        (with_widths(scratch=PAPER, pretrained=SMALL, permuted=SMALL), {}),
        ({name: arm | {"pretrained": "small.pt"} for name, arm in ARMS.items()}, {}),
    ],
    ids=["all arms", "nested id", "as the weights", "each arm says so", "the same weights"],
)
def test_arms_of_one_width_and_those_that_are_to_differ_are_taken(study, arms, content):
    assert check_widths(study(arms, **content)) == []


def test_a_width_in_one_arm_does_not_speak_for_the_others(study):
    with pytest.raises(StudyError, match=r"scratch: \[4, 16\]; pretrained: \[4, 8\]"):
        check_widths(study(with_widths(scratch=[4, 16])))


def test_weights_of_two_widths_leave_open_which_one_is_meant(study, tmp_path):
    wide = {"pretrained": "wide.pt"}
    save_trained_weights(GenesisUNet(features=(8, 8)).state_dict(), tmp_path / "wide.pt", {"features": [8, 8]})
    with pytest.raises(StudyError, match=r'wide: \[8, 8\].*"overrides": \{"features": \[\.\.\.\]\} in the study'):
        check_widths(study({**ARMS, "wide": wide}))


def test_settings_of_other_weights_are_named_with_the_arm(study, tmp_path):
    own = study()
    save_weights(GenesisUNet(features=(8, 8)).state_dict(), tmp_path / "small.pt")
    with pytest.raises(StudyError, match=r"arms#pretrained: .*expected the settings of small\.pt"):
        check_widths(own)


def test_arms_whose_weights_are_elsewhere_are_named(study, tmp_path):
    lines = []
    own = study({**ARMS, "other": {"pretrained": "elsewhere.pt"}})
    with pytest.raises(StudyError, match="expected networks of one width"):  # of those that are here
        Runner(own, Options(tmp_path / "out", jobs=0, arms=("scratch",)))
    (tmp_path / "small.pt").unlink()
    (tmp_path / "small.json").unlink()
    Runner(own, Options(tmp_path / "out", jobs=0, arms=("scratch",)), lines.append)
    assert lines[0].startswith("pretrained, permuted, other: the weights are not here")


def test_permuted_weights_have_the_settings_of_their_source(study, tmp_path):
    study()
    permuted_file(tmp_path / "small.pt", tmp_path / "permuted.pt", 3)
    assert features_of_pretrained(tmp_path / "permuted.pt", PAPER) == SMALL
    shutil.copy(tmp_path / "permuted.json", tmp_path / "small.json")  # the JSON describes the permuted ones alone
    with pytest.raises(ValueError, match=r"small\.pt"):
        permuted_file(tmp_path / "small.pt", tmp_path / "again.pt", 3)
