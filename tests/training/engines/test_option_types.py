# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models_genesis.training import OptionTypeError, convert_option
from models_genesis.training.engines.option_types import OPTION_KINDS, is_expression, kind_like

CONFIGS = sorted(
    path
    for path in (Path(__file__).resolve().parents[3] / "bundles").glob("genesis_*/configs/*.json")
    if path.stem != "metadata"
)
PROGRAM = {"imports", "+imports", "initialize", "run", "finalize", "handlers"}

UNAMBIGUOUS = [
    ("tumour", "false", False),
    ("tumour", "True", True),
    ("tumour", 0, False),
    ("resume", "FALSE", False),
    ("resume", "Auto", "auto"),
    ("amp", "true", True),
    ("epochs", "12", 12),
    ("epochs", 12.0, 12),
    ("learning_rate", "1e-3", 1e-3),
    ("learning_rate", 1, 1),
    ("spacing", "none", None),
    ("spacing", "null", None),
    ("spacing", (1, 1, 2), [1, 1, 2]),
    ("spacing", "[1, 1, 2.5]", [1, 1, 2.5]),
    ("cube_size", (64, 64, 32), [64, 64, 32]),
    ("cube_size", ["64", "64", "32"], [64, 64, 32]),
    ("cube_size", "[128, 96]", [128, 96]),
    ("slice_axis", "2", 2),
    ("slice_axis", "none", None),
    ("features", "[8,16]", [8, 16]),
    ("channels", '["t1", "t2"]', ["t1", "t2"]),
    ("convention", 2023, "2023"),
    ("datalist", "None", None),
    ("pretrained", "none", "none"),
    ("temperature", "calibrated", "calibrated"),
    ("temperature", "1.5", 1.5),
    ("max_shift", 3, 3),
    ("border", 4, 4),
    ("border", "none", None),
    ("border", "paper", "paper"),
    ("border", "[[2, 2], [2, 2], [1, 1]]", [[2, 2], [2, 2], [1, 1]]),
    ("device", "cpu", "cpu"),
    ("device", torch.device("cpu"), torch.device("cpu")),
    ("dataset_dir", Path("/d"), "/d"),
    ("spacing", "$[1, 1, 1]", "$[1, 1, 1]"),
    ("epochs", "@other", "@other"),
]

REFUSED = [
    ("tumour", "no"),
    ("tumour", "falsch"),
    ("tumour", 2),
    ("tumour", None),
    ("tumour", "none"),
    ("tumour", []),
    ("epochs", "ten"),
    ("epochs", 2.5),
    ("epochs", True),
    ("epochs", 0),
    ("epochs", None),
    ("epochs", [3]),
    ("learning_rate", "fast"),
    ("learning_rate", float("nan")),
    ("learning_rate", "inf"),
    ("learning_rate", (0, 1)),
    ("learning_rate", 0),
    ("overlap", 1.5),
    ("cube_size", 64),
    ("cube_size", [64]),
    ("cube_size", [64, 64, 32, 1]),
    ("slice_axis", 3),
    ("slice_axis", "axial"),
    ("deformation#max_block_fraction", 0),
    ("cube_size", [64, 64, 32.5]),
    ("cube_size", "[64, 64"),
    ("features", "8"),
    ("intensity_range", [-1000]),
    ("spacing", "false"),
    ("spacing", [1, 1, 0]),
    ("channels", "t1"),
    ("targets", "whole tumour"),
    ("pretrained", False),
    ("output_dir", None),
    ("convention", 20.23),
    ("device", "gpu0"),
    ("device", True),
    ("num_workers", -1),
    ("network_def", "UNet"),
]

DEFAULTS = {"tumour": False, "resume": False, "amp": True, "convention": "2018", "network_def": {"_target_": "UNet"}}


@pytest.mark.parametrize(("key", "given", "expected"), UNAMBIGUOUS)
def test_what_is_without_doubt_is_converted(key, given, expected):
    converted = convert_option(key, given, DEFAULTS.get(key))
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(("key", "given"), REFUSED)
def test_anything_else_is_refused_by_name(key, given):
    with pytest.raises(OptionTypeError, match=rf"--{key}: expected "):
        convert_option(key, given, DEFAULTS.get(key))


def test_the_type_of_a_default_counts_where_nothing_is_declared():
    assert convert_option("a_new_switch", "false", False) is False
    assert convert_option("a_new_number", "0.5", 0.25) == 0.5
    with pytest.raises(OptionTypeError, match="a whole number"):
        convert_option("a_new_count", "many", 3)
    assert convert_option("unknown", "True") is True and convert_option("unknown", "text") == "text"
    assert convert_option("reduction", "none") == "none"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_key_of_every_bundle_has_a_type_that_its_default_meets(path):
    for key, default in json.loads(path.read_text()).items():
        if key in PROGRAM or "#" in key or key in ("train", "validate"):
            continue
        component = isinstance(default, dict) and "_target_" in default
        assert component or key in OPTION_KINDS or kind_like(default) is not None, f"{key}: declare it in OPTION_KINDS"
        if not is_expression(default):
            assert convert_option(key, default, default) == default


def test_numbers_are_read_as_python_reads_them():
    rng = np.random.default_rng(0)
    for value in rng.normal(size=200) * 10.0 ** rng.integers(-8, 8, 200):
        assert convert_option("tissue_threshold", repr(float(value))) == value
