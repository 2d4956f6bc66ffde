# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import CandidateCubed, CentreSlices, CentreSlicesd


def cube(sides=(4, 4, 4), channels: int = 2) -> np.ndarray:
    """A value tells its channel and its place: c x y z are its digits."""
    c, x, y, z = np.meshgrid(*(np.arange(side) for side in (channels, *sides)), indexing="ij")
    return 1000 * c + 100 * x + 10 * y + z


@pytest.mark.parametrize(
    "axes", [axes for count in (1, 2, 3) for axes in itertools.permutations(range(3), count)], ids=str
)
def test_each_channel_is_the_slice_through_the_middle(axes):
    found = CentreSlices(axes)(cube())
    first, second = np.meshgrid(np.arange(4), np.arange(4), indexing="ij")
    of_axis = {0: 200 + 10 * first + second, 1: 100 * first + 20 + second, 2: 100 * first + 10 * second + 2}
    expected = np.stack([1000 * channel + of_axis[axis] for axis in axes for channel in range(2)])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_the_candidate_is_the_middle_of_every_slice(side):
    """All three slices meet in the voxel that the cube was cut around."""
    scan = np.zeros((1, 12, 13, 14), np.float32)
    scan[0, 6, 7, 5] = 1
    item = CandidateCubed("image", side)({"image": scan, "center": np.array([6.0, 7.0, 5.0])})
    found = CentreSlicesd("image")(item)["image"]
    assert found.shape == (3, side, side)
    assert [np.argwhere(plane).tolist() for plane in found] == [[[side // 2, side // 2]]] * 3


def test_kinds_are_kept_and_inputs_untouched():
    array = cube().astype(np.int16)
    for given in (array, torch.as_tensor(array), MetaTensor(torch.as_tensor(array))):
        found = CentreSlices()(given)
        assert type(found) is (np.ndarray if isinstance(given, np.ndarray) else torch.Tensor)
        assert found.dtype == given.dtype and np.array_equal(found, CentreSlices()(array))
        found[:] = -1
        assert np.array_equal(np.asarray(given), array)


def test_dictionary_twin():
    item = {"image": cube(), "other": 1}
    found = CentreSlicesd(["image", "absent"], axes=[1], allow_missing_keys=True)(item)
    assert np.array_equal(found["image"], CentreSlices([1])(cube())) and found["other"] == 1
    assert item["image"].ndim == 4


def test_mistakes_are_refused():
    for axes in ((), (3,), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="different ones of 0, 1 and 2"):
            CentreSlices(axes)
    with pytest.raises(ValueError, match=r"equal sides.*\(4, 5\) across 2, \(4, 3\) across 1"):
        CentreSlices((2, 1))(cube((4, 5, 3)))
    with pytest.raises(ValueError, match=r"shape \(C, X, Y, Z\), found \(4, 4\)"):
        CentreSlices()(np.zeros((4, 4)))
    assert CentreSlices(1)(cube((4, 5, 3))).shape == (2, 4, 3)  # of one axis the sides may differ
