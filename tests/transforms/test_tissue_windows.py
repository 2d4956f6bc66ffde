# SPDX-License-Identifier: Apache-2.0
"""The box sums equal the rule written out in loops."""

from __future__ import annotations

import itertools
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import TissueWindows, TissueWindowsd, admissible_starts
from models_genesis.transforms.tissue_windows import lowest_starts, tissue_window_scores, window_bounds


def score_by_the_rule(volume, start, cube, threshold=-150):
    """The rule as the paper states it, voxel by voxel; slices behind the scan are air."""
    scores = []
    for x, y, z in itertools.product(*(range(first, first + side) for first, side in zip(start, cube, strict=True))):
        following = [z + k < volume.shape[2] and volume[x, y, z + k] >= threshold for k in range(3)]
        k = following.index(True) if any(following) else 2
        scores.append(1 - k / 2)
    return np.mean(scores)


@pytest.mark.parametrize("cube", [(3, 4, 2), (1, 1, 1), (5, 5, 5), 4])
@pytest.mark.parametrize("border", [None, 1, ((0, 1), (2, 0), (1, 1))])
def test_every_window_scores_as_the_rule_says(cube, border):
    rng = np.random.default_rng(0)
    volume = rng.choice([-1000, -151, -150, 40], size=(9, 8, 9), p=[0.5, 0.2, 0.1, 0.2]).astype(np.int16)
    scores = tissue_window_scores(volume[None], cube, border=border)
    sides = (cube,) * 3 if isinstance(cube, int) else cube
    bounds = window_bounds(volume.shape, sides, border)
    assert scores.shape == tuple(last - first + 1 for first, last in bounds)
    for index in np.ndindex(scores.shape):
        start = tuple(i + first for i, (first, _) in zip(index, bounds, strict=True))
        assert scores[index] == score_by_the_rule(volume, start, sides)


@pytest.mark.parametrize(
    ("cube", "border", "shape"),
    [
        (2, 3, (0, 0, 1)),
        (2, 1, (1, 3, 5)),
        (4, None, (1, 3, 5)),
        (5, None, (0, 2, 4)),
        ((4, 9, 8), None, (1, 0, 1)),
        (2, ((0, 0), (0, 0), (3, 4)), (3, 5, 0)),
    ],
)
def test_an_axis_without_a_start_has_no_scores(cube, border, shape):
    scores = tissue_window_scores(np.zeros((1, 4, 6, 8), np.int16), cube, border=border)
    assert scores.shape == shape and scores.dtype == np.float64 and (scores == 1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cube_scores_the_mean_of_its_slices(axis):
    """The 2D form of the rule is the rule: a cube of so many slices is the mean of their scores, exactly."""
    rng = np.random.default_rng(1)
    scan = rng.choice([-1000, 40], size=(1, 9, 8, 10)).astype(np.int16)
    thick = np.insert([4, 3], axis, 4)
    cubes = tissue_window_scores(scan, thick.tolist())
    slices = tissue_window_scores(scan, np.insert([4, 3], axis, 1).tolist())
    means = np.lib.stride_tricks.sliding_window_view(slices, 4, axis).mean(axis=-1)
    np.testing.assert_allclose(cubes, means, rtol=0, atol=1e-15)
    of_slices = TissueWindows((4, 3), score_range=(0.0, 0.45), border=None, slice_axis=axis)(scan)
    wanted = np.flatnonzero(np.pad(slices, [(0, n - m) for n, m in zip(scan.shape[1:], slices.shape, strict=True)],
                                   constant_values=1) <= 0.45)  # fmt: skip
    assert 0 < len(of_slices) < slices.size
    np.testing.assert_array_equal(of_slices, wanted)


def test_windows_of_a_real_scan(shared):
    volume = np.asarray(nib.load(shared / "data/ct/lidc_idri_0314.nii.gz").dataobj)[40:120, 40:110, 30:80]
    cube = (16, 16, 8)
    scores = tissue_window_scores(volume[None], cube)
    rng = np.random.default_rng(1)
    for start in [(0, 0, 0), (64, 54, 42), *rng.integers(0, scores.shape, (6, 3)).tolist()]:
        assert scores[tuple(start)] == score_by_the_rule(volume, start, cube)
    starts = admissible_starts(volume[None], cube, border=None)
    # some are and some are not, so that the comparison says something
    assert 0 < len(starts) < scores.size
    np.testing.assert_array_equal(starts, np.flatnonzero(np.pad(scores <= 0.15, [(0, 15), (0, 15), (0, 7)])))


@pytest.mark.parametrize("score_range", [(0.0, 0.15), (0.1, 0.6), (0.0, 1.0), (0.9, 1.0)])
def test_starts_are_the_windows_within_the_range(score_range):
    rng = np.random.default_rng(2)
    image = rng.choice([-1000, 0], size=(2, 12, 10, 11)).astype(np.float32)
    border = ((1, 2), (0, 1), (2, 1))
    for channel in (0, 1):
        starts = admissible_starts(image, (4, 3, 2), score_range=score_range, border=border, channel=channel)
        scores = tissue_window_scores(image, (4, 3, 2), channel=channel)
        expected = [
            np.ravel_multi_index(start, (12, 10, 11))
            for start in itertools.product(range(1, 7), range(0, 7), range(2, 9))
            if score_range[0] <= scores[start] <= score_range[1]
        ]
        assert starts.dtype == np.int32
        np.testing.assert_array_equal(starts, expected)


def test_paper_border_and_its_96_slices():
    assert window_bounds((512, 400, 200), (64, 64, 32), "paper") == [(100, 347), (100, 235), (30, 134)]
    flat = np.full((1, 265, 265, 96), -1000, dtype=np.int16)
    # the smallest scan of the paper has exactly one start, one slice less none
    np.testing.assert_array_equal(
        admissible_starts(flat, (64, 64, 32), border="paper"), [np.ravel_multi_index((100, 100, 30), (265, 265, 96))]
    )
    assert len(admissible_starts(flat[..., :95], (64, 64, 32), border="paper")) == 0


@pytest.mark.parametrize("shape", [(64, 64, 32), (65, 70, 41), (204, 153, 41), (512, 512, 600)])
def test_proportional_border_always_leaves_a_start(shape):
    for (first, last), size, cube in zip(
        window_bounds(shape, (64, 64, 32), "proportional"), shape, (64, 64, 32), strict=True
    ):
        assert 0 <= first <= last <= size - cube
        assert last - first >= (size - cube) // 2


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5)])
def test_without_the_rule_the_border_alone_decides(shape):
    starts = admissible_starts(np.full((1, *shape), 40), 2, threshold=None, border=1)
    expected = [
        np.ravel_multi_index(start, shape) for start in itertools.product(*(range(1, size - 2) for size in shape))
    ]
    np.testing.assert_array_equal(starts, expected)


def test_lowest_windows():
    image = np.random.default_rng(3).choice([-1000, 0], size=(1, 9, 9, 9))
    starts = lowest_starts(image, 3, share=0.1, border=None)
    scores = np.pad(tissue_window_scores(image, 3), [(0, 2)] * 3, constant_values=np.nan).ravel()
    assert len(starts) == int(0.1 * 7**3)
    chosen = np.zeros(scores.size, dtype=bool)
    chosen[starts] = True
    assert scores[chosen].max() <= np.nanmin(scores[~chosen])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_kinds_agree(kind):
    image = np.random.default_rng(4).choice([-1000, 0], size=(1, 8, 8, 8), p=[0.9, 0.1]).astype(np.int16)
    starts = TissueWindows(4, border=None)(kind(image.copy()))
    assert len(starts) > 0
    np.testing.assert_array_equal(starts, admissible_starts(image, 4, border=None))


def test_a_scan_without_a_start_is_named(caplog):
    scan = MetaTensor(torch.zeros(1, 8, 8, 8), meta={"filename_or_obj": "solid.nii.gz"})
    with pytest.raises(ValueError, match=r"solid.nii.gz: no admissible cube"):
        TissueWindowsd("image", 4)({"image": scan})
    with caplog.at_level(logging.WARNING):
        item = TissueWindowsd("image", 4, on_empty="warn")({"image": scan})
        assert len(item["starts"]) == 0
        item = TissueWindowsd("image", 4, starts_key="s", on_empty="lowest", lowest_share=0.5, border=None)(
            {"image": scan}
        )
    assert len(item["s"]) == 5**3 // 2
    assert caplog.text.count("solid.nii.gz: no admissible cube") == 2


def test_a_scan_smaller_than_the_cube_is_named():
    scan = MetaTensor(torch.zeros(1, 8, 8, 8), meta={"filename_or_obj": "small.nii.gz"})
    with pytest.raises(ValueError, match=r"small.nii.gz: expected .* \(4, 4, 16\), found \(8, 8, 8\)"):
        TissueWindows((4, 4, 16), on_empty="warn")(scan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"border": "wide"}, "border must be"),
        ({"border": ((1, 1), (1, 1))}, "3 pairs"),
        ({"border": -1}, "none negative"),
        ({"score_range": (0.5, 0.1)}, "score_range"),
        ({"on_empty": "ignore"}, "on_empty"),
        ({"lowest_share": 0}, "lowest_share"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TissueWindows(2, **arguments)(np.zeros((1, 4, 4, 4)))


@pytest.mark.parametrize(("first", "dtype"), [(2**11 - 1, np.int32), (2**11, np.int64), (2**12, np.int64)])
def test_starts_of_scans_with_more_voxels_than_int32_counts(first, dtype):
    """2**31 voxels and more, of which none is read: the rule is off."""
    shape = (first, 2**10, 2**10)
    starts = admissible_starts(np.broadcast_to(np.int16(0), (1, *shape)), (1, 2**10, 2**10), None, border=None)
    assert starts.dtype == dtype
    np.testing.assert_array_equal(starts, np.arange(first, dtype=np.int64) * 2**20)


def test_the_rule_needs_slices_and_one_scan():
    with pytest.raises(ValueError, match="looks along slices"):
        admissible_starts(np.zeros((1, 4, 4)), 2, border=None)
    with pytest.raises(ValueError, match="one key"):
        TissueWindowsd(["a", "b"], 2)
