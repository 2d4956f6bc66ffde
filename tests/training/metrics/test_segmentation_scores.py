# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice

from models_genesis.training import bootstrap_mean, mask_scores


def box(low, high, shape=(44, 44, 20)) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


LABEL = box((4, 4, 4), (14, 14, 14))


def test_overlap_by_counting():
    scores = mask_scores(box((4, 4, 4), (14, 14, 9)), LABEL, (1, 1, 1), 1)
    assert scores["dice"] == pytest.approx(2 * 500 / 1500)
    assert scores["iou"] == pytest.approx(500 / 1000)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_box_is_as_far_away_as_it_was_shifted(axis):
    """The faces across the shift are more than 5 % of the surface, so the 95th percentile is the shift itself."""
    spacing = (1, 2.0, 3)
    low, high = [4, 4, 4], [14, 14, 14]
    low[axis] += 2
    high[axis] += 2
    shift = 2 * spacing[axis]
    moved = box(low, high)
    assert mask_scores(moved, LABEL, spacing, shift)["hd95_mm"] == pytest.approx(shift)
    assert mask_scores(moved, LABEL, spacing, shift)["surface_dice"] == pytest.approx(1)
    assert mask_scores(moved, LABEL, spacing, 0.9 * shift)["surface_dice"] < 0.95
    # units: the same voxels at twice the size are twice as far apart
    doubled = mask_scores(moved, LABEL, [2 * side for side in spacing], 2 * shift)
    assert doubled["hd95_mm"] == pytest.approx(2 * shift)


def test_surface_dice_counts_area_not_voxels():
    """A box of 40 x 40 x 30 mm in voxels of 1 x 1 x 3 mm, predicted two slices too high, at a tolerance of 1 mm.

    Wrong are the label's upper face but for its rim of 1 mm (38^2 mm2), the upper face of the prediction (40^2) and
    5 of the 6 mm of its sides that stand out (4 x 40 x 5), of both surfaces: 2 x 40^2 + 4 x 40 x 30 and x 36. MONAI
    without subvoxels counts voxels, of which faces along thick slices have too few.
    """
    label, prediction = box((2, 2, 2), (42, 42, 12)), box((2, 2, 2), (42, 42, 14))
    truth = 1 - (38**2 + 40**2 + 4 * 40 * 5) / (4 * 40**2 + 4 * 40 * (30 + 36))
    found = mask_scores(prediction, label, (1, 1, 3), 1)["surface_dice"]
    assert found == pytest.approx(truth, abs=0.03)  # edges are cut by half a voxel
    masks = (prediction[None, None].float(), label[None, None].float())
    counted = compute_surface_dice(*masks, [1.0], include_background=True, spacing=[1.0, 1.0, 3.0])
    assert abs(float(counted) - truth) > 0.06


def test_a_mask_at_the_border_has_a_surface_there():
    inside, border = box((1, 1, 1), (9, 9, 9), (12, 12, 12)), box((0, 0, 0), (8, 8, 8), (12, 12, 12))
    shifted = box((2, 1, 1), (10, 9, 9), (12, 12, 12)), box((1, 0, 0), (9, 8, 8), (12, 12, 12))
    assert mask_scores(shifted[0], inside, (1, 1, 1), 0.5) == mask_scores(shifted[1], border, (1, 1, 1), 0.5)


def test_empty_masks_are_scored_as_stated():
    nothing = torch.zeros_like(LABEL)
    assert mask_scores(nothing, nothing, (1, 1, 1), 1) == {"dice": 1, "iou": 1, "surface_dice": 1, "hd95_mm": 0}
    for pair in ((nothing, LABEL), (LABEL, nothing)):
        scores = mask_scores(*pair, (1, 1, 1), 1)
        assert (scores["dice"], scores["iou"], scores["surface_dice"]) == (0, 0, 0)
        assert math.isnan(scores["hd95_mm"])


def test_a_single_voxel_has_a_distance():
    one, other = box((4, 4, 4), (5, 5, 5)), box((4, 4, 7), (5, 5, 8))
    assert mask_scores(one, other, (1, 1, 3), 1)["hd95_mm"] == pytest.approx(9)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        mask_scores(LABEL, LABEL[1:], (1, 1, 1), 1)


def test_bootstrap_interval_is_that_of_the_normal_law_for_many_cases():
    """For n = 400 the mean's standard error is s / 20; the percentile interval is mean +- 1.96 of it.

    2000 resamples leave an error of the interval's ends of about 4 % of its half width (the standard deviation of an
    empirical 2.5 % quantile is 2.8 standard errors / sqrt(2000) = 0.06, 3 % of 1.96); 15 % is five times that.
    """
    values = np.random.default_rng(1).normal(0.7, 0.1, 400)
    found = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert bootstrap_mean(values.tolist()) == found
    assert bootstrap_mean(values.tolist(), seed=1) != found


@pytest.mark.parametrize(
    ("values", "mean", "cases", "undefined"),
    [([], None, 0, 0), ([math.nan], None, 0, 1), ([0.4], 0.4, 1, 0), ([0.4, math.nan], 0.4, 1, 1)],
)
def test_bootstrap_of_few_cases_gives_no_interval(values, mean, cases, undefined):
    found = bootstrap_mean(values)
    assert (found.mean, found.low, found.high, found.cases, found.undefined) == (mean, None, None, cases, undefined)
