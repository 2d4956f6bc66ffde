# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from models_genesis.training import UnknownOverrideError, refuse_unknown_overrides

PROGRAM = "/somewhere/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def configs(tmp_path):
    train, evaluate = tmp_path / "train.json", tmp_path / "evaluate.json"
    train.write_text(json.dumps({"epochs": 3, "train": {"trainer": {}}}))
    evaluate.write_text(json.dumps({"validate#handlers": [], "split": "test"}))
    return train, evaluate


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "1"],
        ["--epochs=1"],
        ["--train#trainer#max_epochs", "1"],
        ["--train::trainer::max_epochs", "1"],
        ["--meta_file", "m.json", "--tracking", "mlflow"],
        [],
    ],
)
def test_accepts_what_the_config_has(configs, options):
    refuse_unknown_overrides([PROGRAM, "run", "--config_file", str(configs[0]), *options])


@pytest.mark.parametrize("option", ["--epoch", "--epoch=1", "--tran#trainer#max_epochs"])
def test_refuses_a_key_that_would_change_nothing_and_names_the_nearest(configs, option):
    near = "train" if "tran" in option else "epochs"
    with pytest.raises(UnknownOverrideError, match=rf"did you mean --{near}\?"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", str(configs[0]), option, "1"])


def test_merged_configs_know_the_keys_of_both(configs):
    both = f"['{configs[0]}','{configs[1]}']"
    refuse_unknown_overrides([PROGRAM, "run", "--config_file", both, "--split", "a", "--epochs", "2"])
    with pytest.raises(UnknownOverrideError, match="--splits"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", both, "--splits", "a"])


def test_the_keys_of_an_args_file_are_held_to_the_same(configs, tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": str(configs[0]), "epoch": 1}))
    with pytest.raises(UnknownOverrideError, match="--epoch "):
        refuse_unknown_overrides([PROGRAM, "run", "--args_file", str(arguments)])


def test_other_programs_are_left_alone():
    refuse_unknown_overrides(["/usr/bin/monailabel", "--epoch", "1"])
