# SPDX-License-Identifier: Apache-2.0
"""A scan is kept exactly in int16, or it is not rounded at all."""

from __future__ import annotations

import logging
from fractions import Fraction

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import ClipHounsfield, ClipHounsfieldd, ScaleHounsfield, ScaleHounsfieldd
from models_genesis.transforms.hounsfield import check_affine
from models_genesis.transforms.nonlinear_intensity import IntensityMap


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("intensity_range", [(-1000, 1000), (-50, 120), (300, 400), (-400, -300)])
def test_integers_stay_exact(dtype, intensity_range):
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.iinfo(np.int16)
    values = np.linspace(max(info.min, -40000), min(info.max, 70000), 27).astype(np.int64).reshape(1, 3, 3, 3)
    result = ClipHounsfield(intensity_range)(values.astype(dtype))
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, np.clip(values, *intensity_range))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 2, 1)])
def test_memory_order_does_not_matter(axes):
    values = np.random.default_rng(0).integers(-2000, 3000, (2, 4, 5, 6)).astype(np.float64).transpose(axes)
    np.testing.assert_array_equal(ClipHounsfield()(values), np.clip(values, -1000, 1000))


def test_fractions_become_float32_and_are_never_rounded(caplog):
    values = np.full((1, 4, 4, 4), 10.0)
    values[0, 3, 1, 1] = 10.25
    with caplog.at_level(logging.INFO):
        result = ClipHounsfield()(values)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, values)
    assert "1 of 64 voxels" in caplog.text
    # a fraction beyond the range is clipped away, what is left is exact
    values[0, 3, 1, 1] = 1000.25
    assert ClipHounsfield()(values).dtype == np.int16


def test_values_beyond_int16_become_float32():
    values = np.full((1, 2, 2, 2), 40000, dtype=np.int32)
    result = ClipHounsfield((0, 50000))(values)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, values)
    assert ClipHounsfield((0, 50000))(values // 4).dtype == np.int16


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_kind_is_kept_and_the_input_is_not_changed(kind):
    values = np.random.default_rng(1).integers(-3000, 3000, (1, 3, 4, 5)).astype(np.int32)
    img = kind(values.copy())
    result = ClipHounsfield()(img)
    assert type(result) is type(img)
    np.testing.assert_array_equal(np.asarray(img), values)
    np.testing.assert_array_equal(np.asarray(result), np.clip(values, -1000, 1000))


def test_dictionary_form_keeps_other_keys_and_the_affine():
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    item = {"image": MetaTensor(torch.full((1, 2, 2, 2), 5000.0), affine=affine), "patient": "a"}
    result = ClipHounsfieldd("image")(item)
    assert result["patient"] == "a" and item["image"].max() == 5000
    assert result["image"].dtype == torch.int16 and result["image"].unique().tolist() == [1000]
    torch.testing.assert_close(result["image"].affine, affine)


@pytest.mark.parametrize(("bad", "number"), [(np.nan, 1), (np.inf, 2), (-np.inf, 3)])
def test_non_finite_voxels_are_counted_and_the_file_is_named(bad, number):
    values = torch.full((1, 4, 4, 4), 0.5)
    values.view(-1)[: 16 * number : 16] = bad
    img = MetaTensor(values, meta={"filename_or_obj": "folder/scan.nii.gz"})
    with pytest.raises(ValueError, match=rf"folder/scan.nii.gz: expected finite voxels, found {number} of 64"):
        ClipHounsfield()(img)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 4, 4, 4, 2), (1, 4, 0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="3 spatial dimensions"):
        ClipHounsfield()(np.zeros(shape))
    assert ClipHounsfield(spatial_dims=2)(np.zeros((1, 4, 4))).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1, 0, 1, 1.0]), "spacings above zero"),
        (np.diag([1, np.nan, 1, 1.0]), "finite affine"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "independent axes"),
    ],
)
def test_an_affine_without_volume_is_refused(affine, message):
    with pytest.raises(ValueError, match=message):
        check_affine(affine)
    with pytest.raises(ValueError, match=message):
        ClipHounsfield()(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.as_tensor(affine)))


def test_air_to_soft_tissue_is_kept_where_nothing_else_is_said():
    """The paper's range: -1000 and 1000 HU are kept, and what lies beyond becomes them."""
    values = np.array([-1001, -1000, -999, 999, 1000, 1001], np.int16).reshape(1, -1, 1, 1)
    expected = [-1000, -1000, -999, 999, 1000, 1000]
    assert ClipHounsfield()(values).ravel().tolist() == expected
    assert ClipHounsfieldd("image")({"image": values})["image"].ravel().tolist() == expected
    scaled = (np.array(expected) + 1000) / 2000
    np.testing.assert_allclose(ScaleHounsfield()(values).ravel(), scaled, rtol=1e-6)
    np.testing.assert_allclose(ScaleHounsfieldd("image")({"image": values})["image"].ravel(), scaled, rtol=1e-6)


@pytest.mark.parametrize("intensity_range", [(5, 5), (1, 0), (0, np.inf)])
def test_an_empty_range_is_refused(intensity_range):
    with pytest.raises(ValueError, match="intensity_range"):
        ClipHounsfield(intensity_range)


def test_rounding_makes_a_resampled_scan_int16() -> None:
    values = np.array([[[[-1000.4, -0.5, 0.49, 1.5, 999.6, 1200.0]]]], np.float32)
    assert ClipHounsfield()(values).dtype == np.float32
    rounded = ClipHounsfield(round_values=True)(values)
    assert rounded.dtype == np.int16
    assert rounded.ravel().tolist() == [-1000, 0, 0, 2, 1000, 1000]
    item = ClipHounsfieldd("image", round_values=True)({"image": values})
    np.testing.assert_array_equal(item["image"], rounded)
    with pytest.raises(ValueError, match="finite"):
        ClipHounsfield(round_values=True)(np.full((1, 2, 2, 2), np.nan))


EXTREMES = {
    np.int16: [-32768, -1001, -1000, -999, 0, 999, 1000, 1001, 31767, 31768, 32767],
    np.uint16: [0, 1, 999, 1000, 1001, 32767, 32768, 65535],
    np.int32: [-(2**31), -32769, -1000, 0, 1000, 32768, 2**31 - 1],
    np.float64: [-1.7e308, -1000.25, -0.125, 0.1, 999.999999, 1e-300, 1.7e308],
    np.uint8: [0, 1, 255],
}


def exact(value: float, low: int, high: int) -> np.float32:
    """The scaled value by fractions, rounded once."""
    clipped = min(max(Fraction(value), Fraction(low)), Fraction(high))
    return np.float32(float((clipped - low) / (high - low)))


@pytest.mark.parametrize("limits", [(-1000, 1000), (-32768, 32767), (0, 65535)])
@pytest.mark.parametrize("dtype", EXTREMES)
def test_scaling_is_exact_to_the_extremes_of_every_type(dtype, limits):
    values = np.array(EXTREMES[dtype], dtype=dtype).reshape(1, -1, 1, 1)
    scaled = ScaleHounsfield(limits)(values)
    assert scaled.dtype == np.float32
    expected = [exact(value.item(), *limits) for value in values.ravel()]
    np.testing.assert_array_max_ulp(scaled.ravel(), np.array(expected, np.float32), 1)


@pytest.mark.parametrize("dtype", EXTREMES)
def test_clipping_first_changes_no_voxel_of_whole_numbers(dtype):
    values = np.array(EXTREMES[dtype], dtype=dtype).reshape(1, -1, 1, 1)
    if np.dtype(dtype).kind == "f":
        values = np.rint(values)
    scale = ScaleHounsfield()
    np.testing.assert_array_equal(scale(ClipHounsfield()(values)), scale(values))


def test_scaling_keeps_the_kind_and_leaves_the_input():
    img = MetaTensor(torch.tensor([[[[32767, -32768]]]], dtype=torch.int16))
    scaled = ScaleHounsfieldd("image")({"image": img})["image"]
    assert isinstance(scaled, MetaTensor) and scaled.dtype == torch.float32
    assert scaled.flatten().tolist() == [1.0, 0.0] and img.flatten().tolist() == [32767, -32768]


@pytest.mark.parametrize("limits", [(0, 0), (5, -5), (0, float("nan"))])
def test_scaling_refuses_an_empty_range(limits):
    with pytest.raises(ValueError, match="intensity_range"):
        ScaleHounsfield(limits)


def test_the_deformations_target_is_scaled_alike():
    values = np.arange(-1200, 1200, dtype=np.int16).reshape(1, -1, 1, 1)
    line = IntensityMap(None, False, (-1000.0, 1000.0), (0.0, 1.0), "numpy")
    np.testing.assert_allclose(line(values), ScaleHounsfield()(values), rtol=0, atol=6e-8)
