# SPDX-License-Identifier: Apache-2.0
"""Classes that are told apart by a direction are not flipped along it, all others are."""

from __future__ import annotations

import logging

import pytest

from models_genesis.transforms import flip_probabilities, flip_probability


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Anterior", "Posterior"], [0.5, 0.0, 0.5]),  # Task04_Hippocampus
        (["kidney_left", "kidney_right", "liver"], [0.0, 0.5, 0.5]),
        (["Left Kidney", "Right Kidney"], [0.0, 0.5, 0.5]),
        (["L hippocampus", "R hippocampus"], [0.0, 0.5, 0.5]),
        (["LeftLung", "RightLung"], [0.0, 0.5, 0.5]),
        (["L1", "R1"], [0.0, 0.5, 0.5]),
        (["LEFT_EYE", "RIGHT_EYE"], [0.0, 0.5, 0.5]),
        (["vertebra L1", "vertebra T12"], 0.5),
        (["lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right"], [0.0, 0.5, 0.0]),
        # one side alone is nothing to be told apart
        (["left ventricle", "myocardium"], 0.5),
        (["left atrium", "right ventricle"], 0.5),
        # Tasks 01, 03, 05, 07, 08, 10 of the Decathlon
        (["edema", "non-enhancing tumor", "enhancing tumour"], 0.5),
        (["liver", "cancer"], 0.5),
        (["PZ", "TZ"], 0.5),
        (["pancreas", "cancer"], 0.5),
        (["Vessel", "Tumour"], 0.5),
        (["colon cancer primaries"], 0.5),
        ([], 0.5),
    ],
)
def test_no_flips_along_an_axis_that_tells_classes_apart(names, expected):
    assert flip_probabilities(names) == expected


def test_what_is_left_out_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert flip_probabilities(["Anterior", "Posterior"], 0.25) == [0.25, 0.0, 0.25]
    assert "no flips along axis 1 in training: it tells Anterior and Posterior apart" in caplog.text


@pytest.mark.parametrize("slice_axis", [None, 0, 1, 2])
def test_a_slice_takes_those_of_its_own_axes(slice_axis):
    probabilities = [0.1, 0.2, 0.3]
    kept = [each for axis, each in enumerate(probabilities) if axis != slice_axis]
    found = [flip_probability(probabilities, axis, slice_axis) for axis in range(3)]
    assert found == (kept + [0.0])[:3]
    assert [flip_probability(0.5, axis, slice_axis) for axis in range(len(kept))] == [0.5] * len(kept)


def test_two_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"one for each of three axes, found \[0\.5, 0\.5\]"):
        flip_probability([0.5, 0.5], 0)
