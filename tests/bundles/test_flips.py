# SPDX-License-Identifier: Apache-2.0
"""Segmentation trains on flips along the axes that ``--flip_prob`` names, of cubes and of slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SEGMENTATION = sorted(path.name for path in BUNDLES.glob("*_segmentation"))


def train_config(bundle: str, **given: Any) -> ConfigParser:
    parser = ConfigParser(json.loads((BUNDLES / bundle / "configs" / "train.json").read_text()))
    parser.update({"pretrained": "none", "device": torch.device("cpu"), **given})
    return parser


def first_sample(bundle: str, data: dict[str, Any], flip_prob: Any, slice_axis: int | None) -> list[np.ndarray]:
    size = [16, 24, 8] if slice_axis is None else [16, 24]
    given = {"cube_size": size, "slice_axis": slice_axis, "flip_prob": flip_prob, "intensity_prob": 0}
    sample = train_config(bundle, **data, **given, cubes_per_case=1).get_parsed_content("train#dataset")[0]
    return [np.asarray(sample[key]) for key in ("image", "label")]


@pytest.mark.parametrize("slice_axis", [None, 1])
@pytest.mark.parametrize("bundle", SEGMENTATION)
def test_a_probability_for_each_axis(bundle, slice_axis, data_of):
    data = data_of(bundle)
    plain = first_sample(bundle, data, 0, slice_axis)
    assert (plain[1] != plain[1][:, :1]).any()  # there is something to be turned round
    axes = [axis for axis in range(3) if axis != slice_axis]
    for axis in range(3):
        found = first_sample(bundle, data, [float(each == axis) for each in range(3)], slice_axis)
        for before, after in zip(plain, found, strict=True):
            turned = np.flip(before, 1 + axes.index(axis)) if axis in axes else before
            np.testing.assert_array_equal(after, turned)
    both = first_sample(bundle, data, 1, slice_axis)
    np.testing.assert_array_equal(both[1], np.flip(plain[1], range(1, plain[1].ndim)))


def test_the_decathlon_flips_no_axis_that_tells_classes_apart(tmp_path):
    for labels, expected in [
        ({"1": "Anterior", "2": "Posterior"}, [0.5, 0.0, 0.5]),
        ({"1": "liver", "2": "cancer"}, 0.5),
    ]:
        content = {"name": "T", "modality": {"0": "MRI"}, "labels": {"0": "background", **labels}, "training": []}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        parser = train_config("genesis_msd_segmentation", task=str(tmp_path / "dataset.json"))
        assert parser.get_parsed_content("flip_prob") == expected
