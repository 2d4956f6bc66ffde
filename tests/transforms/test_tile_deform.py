# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices

from models_genesis.transforms import RandGenesisDeform, RandGenesisDeformTiles, RandGenesisDeformTilesd, window_size

CUBE = (20, 20, 16)


def index_scan(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)


def tiles(variant: str, **arguments) -> RandGenesisDeformTiles:
    return RandGenesisDeformTiles(CUBE, RandGenesisDeform(variant, flip_prob=0.0, **arguments))


def test_without_deformation_only_the_scale_changes():
    scan = np.random.default_rng(0).integers(-1200, 1200, (1, 47, 33, 40)).astype(np.int16)
    untouched = scan.copy()
    result = tiles("autoencoder", intensity_range=(-1000, 1000), output_range=(0, 1))(scan)
    np.testing.assert_allclose(result, (np.clip(scan, -1000, 1000) + 1000.0) / 2000, atol=1e-6)
    np.testing.assert_array_equal(scan, untouched)


def test_no_voxel_leaves_its_cube():
    shape = (40, 20, 32)
    scan = index_scan(shape)
    limits = (0, scan.size - 1)
    transform = tiles("shuffle", shuffle_prob=1.0, num_blocks=500, intensity_range=limits).set_random_state(0)
    source = np.rint(transform(scan)[0]).astype(int)
    cube_of = sum(
        index // side * factor for index, side, factor in zip(np.indices(shape), CUBE, (100, 10, 1), strict=True)
    )
    np.testing.assert_array_equal(cube_of.ravel()[source], cube_of)
    # 500 blocks move at least some voxels in each of the four cubes.
    assert all((source != scan[0])[cube_of == cube].any() for cube in np.unique(cube_of))


def test_cubes_are_deformed_independently_and_by_the_seed():
    scan = np.zeros((1, 40, 40, 16), np.float32)
    first, again, other = (tiles("out_painting", paint_prob=1.0).set_random_state(seed)(scan) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    masks = [first[0, x : x + 20, y : y + 20] != 0 for x in (0, 20) for y in (0, 20)]
    assert len({mask.tobytes() for mask in masks}) == 4
    assert (first != other).any()


def test_geometry_of_a_metatensor_is_kept():
    scan = MetaTensor(torch.zeros(1, 24, 24, 20), affine=np.diag([2.0, 2.0, 3.0, 1.0]))
    scan.push_applied_operation({"class": "Orientationd"})
    result = RandGenesisDeformTilesd("image", CUBE).set_random_state(0)({"image": scan})["image"]
    assert torch.equal(result.affine, scan.affine)
    assert result.applied_operations == scan.applied_operations
    assert result.dtype == torch.float32


def test_flipping_cubes_is_refused():
    with pytest.raises(ValueError, match=r"flip_prob=0, got 0\.4"):
        RandGenesisDeformTiles(CUBE, RandGenesisDeform())


@pytest.mark.parametrize("shape", [(1, 19, 20, 16), (1, 20, 20)])
def test_a_scan_smaller_than_a_cube_is_refused(shape):
    with pytest.raises(ValueError, match=r"a cube needs \(20, 20, 16\)"):
        tiles("genesis")(np.zeros(shape, np.float32))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_deformed_one_by_one_in_the_order_of_the_windows(axis):
    """The same as cutting the slices into tiles oneself and deforming each in two dimensions."""
    size = (20, 16)
    shape = np.insert([32, 20], axis, 3)
    scan = np.random.default_rng(1).integers(-1000, 1000, (1, *shape)).astype(np.int16)
    settings = {"flip_prob": 0.0, "intensity_range": (-1000, 1000), "output_range": (0, 1), "num_blocks": 50}
    by_slice = RandGenesisDeformTiles(size, RandGenesisDeform(**settings), slice_axis=axis).set_random_state(3)(scan)
    deform = RandGenesisDeform(**settings).set_random_state(3)
    expected = np.empty(scan.shape, np.float32)
    windows = dense_patch_slices(shape, window_size(size, axis), window_size(size, axis))
    for window in windows:
        tile = np.take(scan[(slice(None), *window)], 0, axis + 1)
        np.moveaxis(expected[(slice(None), *window)], axis + 1, 0)[0] = deform(tile)[0]
    np.testing.assert_array_equal(by_slice, expected)
    with pytest.raises(ValueError, match="two sides of a slice"):
        RandGenesisDeformTiles(CUBE, RandGenesisDeform(**settings), slice_axis=axis)
