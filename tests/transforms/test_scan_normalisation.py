# SPDX-License-Identifier: Apache-2.0
"""Scans without units: known values, the same kind out as in, zeros and CT as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import NormaliseScan, NormaliseScand, default_intensity_range, restored_dtype

SCAN = np.array([[[[10, 20, 30]]], [[[0, 4, 6]]]], np.int16)
EXPECTED = {
    "none": SCAN,
    "minmax": [[[[0, 0.5, 1]]], [[[0, 2 / 3, 1]]]],
    # mean 20 and deviation sqrt(200 / 3) of the first channel; 5 and 1 of the second without its zero
    "zscore": [[[[-(1.5**0.5), 0, 1.5**0.5]]], [[[0, -1, 1]]]],
}


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda scan: MetaTensor(scan, affine=2 * torch.eye(4))])
@pytest.mark.parametrize("normalise", EXPECTED)
def test_each_channel_by_itself_and_the_same_kind(normalise, kind):
    scan = kind(SCAN.copy())
    found = NormaliseScan(normalise)(scan)
    assert type(found) is type(scan)
    np.testing.assert_allclose(np.asarray(found), EXPECTED[normalise], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(scan), SCAN)
    assert normalise == "none" or found.dtype in (np.float32, torch.float32)
    if isinstance(found, MetaTensor):
        torch.testing.assert_close(found.affine, 2 * torch.eye(4, dtype=torch.float64), check_dtype=False)
    item = {"image": scan, "label": 1}
    np.testing.assert_array_equal(NormaliseScand("image", normalise=normalise)(item)["image"], np.asarray(found))
    assert item["image"] is scan


def test_another_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"expected one of .*'zscore'.*, found 'median'"):
        NormaliseScan("median")


def test_a_scan_between_its_ends_fills_the_range_that_is_cut_out():
    scan = NormaliseScan("minmax")(SCAN)
    assert [scan.min(), scan.max()] == default_intensity_range("minmax")
    assert default_intensity_range("none") == [-1000, 1000]  # HU of air, and beyond that of soft tissue
    default_intensity_range("none").clear()
    assert default_intensity_range("none") == [-1000, 1000]


def test_shares_of_full_scale_stay_and_anything_else_is_refused():
    """They are known from the file: a dark picture is not stretched."""
    dark = np.random.default_rng(0).random((1, 6, 5, 1)).astype(np.float32) / 3
    np.testing.assert_array_equal(NormaliseScan("full_scale")(dark), dark)
    assert default_intensity_range("full_scale") == [0, 1]
    assert restored_dtype("full_scale", (0, 1)) == "float32"
    for wrong in (dark * 4, dark - 0.1, np.full((1, 2, 2, 2), -1000, np.int16), dark * np.nan):
        with pytest.raises(ValueError, match=r"expected shares of full scale in \[0, 1\]"):
            NormaliseScan("full_scale")(wrong)
