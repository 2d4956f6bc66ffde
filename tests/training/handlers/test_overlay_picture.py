# SPDX-License-Identifier: Apache-2.0
"""Label and prediction are outlined where they are, each in its own style."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from models_genesis.training import draw_overlay

SIDE = 40


def box(x: tuple[int, int], y: tuple[int, int]) -> MetaTensor:
    values = torch.zeros(1, SIDE, 30, 3)
    values[:, x[0] : x[1], y[0] : y[1], 1] = 1
    return MetaTensor(values, affine=torch.eye(4))


def outlines(prediction: MetaTensor, label: MetaTensor | None) -> dict[str, tuple[float, ...]]:
    """Ends in x and y of each contour, by its line style."""
    image = MetaTensor(torch.rand(1, SIDE, 30, 3), affine=torch.eye(4))
    axes = draw_overlay(image, prediction, {"liver": [1]}, label).axes[0]
    found = {}
    for contour in axes.collections:
        points = np.concatenate([path.vertices for path in contour.get_paths() if len(path.vertices)])
        style = "solid" if contour.get_linestyles()[0][1] is None else "dashed"
        assert style not in found
        found[style] = (*points.min(axis=0), *points.max(axis=0))
    return found


def test_contours_lie_around_label_and_prediction():
    # the first axis is mirrored, for the patient's right is drawn on the left; half a voxel around the outer ones
    assert outlines(box((4, 12), (5, 9)), box((6, 20), (10, 25))) == {
        "dashed": (SIDE - 12 - 0.5, 4.5, SIDE - 1 - 4 + 0.5, 8.5),
        "solid": (SIDE - 20 - 0.5, 9.5, SIDE - 1 - 6 + 0.5, 24.5),
    }


def test_a_prediction_alone_has_one_contour_and_an_empty_one_none():
    assert list(outlines(box((4, 12), (5, 9)), None)) == ["dashed"]
    assert list(outlines(box((0, 0), (0, 0)), box((6, 20), (10, 25)))) == ["solid"]
    assert outlines(box((0, 0), (0, 0)), None) == {}
