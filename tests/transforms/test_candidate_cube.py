# SPDX-License-Identifier: Apache-2.0
"""Cubes around candidates: centred, padded, shifted evenly, and cut fast enough."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from models_genesis.transforms import CandidateCubed, RandCandidateCubed, candidate_cube

SHAPE = (24, 20, 16)


@pytest.mark.parametrize("size", [(5, 4, 3), (64, 64, 32)])
@pytest.mark.parametrize("center", [(0, 0, 0), (10.4, 9.6, 7.5), (23, 19, 15), (11, 0, 15), (-40, 3, 3)])
def test_cube_is_centred_and_padded(size: tuple[int, ...], center: tuple[float, ...]) -> None:
    """Every voxel is checked: that of the scan where there is one, else the fill."""
    scan = np.random.default_rng(0).integers(-900, 900, (2, *SHAPE)).astype(np.int16)
    cube = candidate_cube(scan, center, size, fill=-1000)
    assert cube.shape == (2, *size)
    assert cube.dtype == np.int16
    nearest = np.floor(np.array(center) + 0.5).astype(int)
    # each voxel of the cube in voxels of the scan, clipped to it and with what lies beyond replaced
    index = [middle + np.arange(side) - side // 2 for middle, side in zip(nearest, size, strict=True)]
    there = [(axis >= 0) & (axis < side) for axis, side in zip(index, SHAPE, strict=True)]
    seen = scan[np.ix_([0, 1], *(np.clip(axis, 0, side - 1) for axis, side in zip(index, SHAPE, strict=True)))]
    expected = np.where(there[0][:, None, None] & there[1][:, None] & there[2], seen, -1000)
    assert np.array_equal(cube, expected)
    assert np.array_equal(candidate_cube(torch.from_numpy(scan), center, size, fill=-1000).numpy(), cube)


def test_beyond_a_scan_is_air_where_nothing_else_is_said() -> None:
    scan = np.zeros((1, 4, 4, 4), np.int16)
    item = {"image": scan, "center": (0, 0, 0), "image_affine": np.eye(4)}
    for cube in (
        candidate_cube(scan, (0, 0, 0), (4, 4, 4)),
        CandidateCubed("image", 4)(item)["image"],
        RandCandidateCubed("image", 4, max_shift=0)(item)["image"],
    ):
        expected = np.full((1, 4, 4, 4), -1000)
        expected[:, 2:, 2:, 2:] = 0
        assert np.array_equal(cube, expected)


def test_cube_is_a_copy() -> None:
    scan = np.zeros((1, 8, 8, 8), np.int16)
    candidate_cube(scan, (4, 4, 4), (4, 4, 4))[:] = 7
    assert not scan.any()


def test_random_shift_is_uniform_and_keeps_the_candidate() -> None:
    scan = np.zeros((1, 32, 32, 32), np.int16)
    scan[0, 16, 16, 16] = 1
    transform = RandCandidateCubed("image", 8, max_shift=(1, 1, 0))
    transform.set_random_state(0)
    item = {"image": scan, "center": np.array([16.0, 16, 16]), "image_affine": np.eye(4)}
    counts = np.zeros((8, 8, 8), int)
    for _ in range(900):
        counts += transform(item)["image"][0]
    assert counts.sum() == 900
    found = counts[3:6, 3:6, 4]
    # nine places, each expected 100 times: sd 9.4, so 5 sd are 47
    assert found.sum() == 900
    assert (np.abs(found - 100) < 47).all()


@pytest.mark.parametrize("arguments", [{"max_shift": 4}, {"max_shift": -1}, {"cube_size": (8, 0, 8)}])
def test_cut_arguments_out_of_range(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        RandCandidateCubed("image", **{"cube_size": 8, **arguments})


def test_a_core_cuts_a_thousand_cubes_a_second() -> None:
    scan = np.random.default_rng(0).integers(-1000, 1000, (1, 256, 256, 128)).astype(np.int16)
    centers = np.random.default_rng(1).uniform(0, 1, (400, 3)) * scan.shape[1:]
    for size in ((64, 64, 32), (64, 64, 64)):
        cut = CandidateCubed("image", size)
        begin = time.process_time()
        for center in centers:
            cut({"image": scan, "center": center, "image_affine": np.eye(4)})
        assert 400 / (time.process_time() - begin) > 1000
