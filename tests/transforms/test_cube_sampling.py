# SPDX-License-Identifier: Apache-2.0
"""Cubes are what lies at the drawn start, and every admissible start is as likely as any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.stats import chi2

from models_genesis.transforms import RandTissueCube, RandTissueCubed

SHAPE = (9, 8, 7)
INDEX = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(1, *SHAPE)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_the_cube_is_what_lies_at_the_start(kind):
    img = kind(INDEX.copy())
    cube = RandTissueCube((3, 2, 4))
    cube.set_random_state(seed=0)
    starts = np.array([0, 100, 170], dtype=np.int32)
    for _ in range(20):
        result = cube(img, starts)
        assert type(result) is type(img)
        x, y, z = cube.start
        assert np.ravel_multi_index(cube.start, SHAPE) in starts
        np.testing.assert_array_equal(np.asarray(result), INDEX[:, x : x + 3, y : y + 2, z : z + 4])
        result[...] = -1
        np.testing.assert_array_equal(np.asarray(img), INDEX)


def test_uniform_over_the_starts():
    # chi-square over 40 starts: by construction it exceeds the 1 - 1e-6 quantile once in a million seeds
    possible = INDEX[0, :-1, :-1, :-1].ravel()
    starts = np.random.default_rng(0).choice(possible, 40, replace=False)
    cube = RandTissueCube(2)
    cube.set_random_state(seed=1)
    draws = 8000
    counts = dict.fromkeys(starts.tolist(), 0)
    for _ in range(draws):
        cube.randomize(SHAPE, starts)
        counts[int(np.ravel_multi_index(cube.start, SHAPE))] += 1
    statistic = sum((count - draws / 40) ** 2 / (draws / 40) for count in counts.values())
    assert statistic < chi2.ppf(1 - 1e-6, 39)


def test_without_starts_every_position_may_be_drawn():
    cube = RandTissueCube((8, 7, 6))
    cube.set_random_state(seed=0)
    seen = set()
    for _ in range(200):
        cube(INDEX)
        seen.add(cube.start)
    # 8 positions; one is missed in 200 draws with probability 8 * (7/8)^200 < 1e-10
    assert seen == {(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)}


def test_the_affine_of_the_cube_is_its_own():
    affine = torch.tensor([[2.0, 0, 0, 5], [0, -3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]], dtype=torch.float64)
    cube = RandTissueCube(2)
    result = cube(
        MetaTensor(torch.as_tensor(INDEX), affine=affine), starts=np.array([np.ravel_multi_index((1, 2, 3), SHAPE)])
    )
    np.testing.assert_allclose(result.affine[:3, 3], (affine @ torch.tensor([1.0, 2, 3, 1], dtype=torch.float64))[:3])
    assert result.is_contiguous()


def test_dictionary_form_cuts_all_keys_alike_and_tells_the_start():
    item = {"image": INDEX, "label": torch.as_tensor(INDEX), "starts": np.array([3, 60], dtype=np.int32), "scan": 4}
    cube = RandTissueCubed(["image", "label"], 2)
    results = []
    for _ in range(2):
        cube.set_random_state(seed=5)
        results.append([cube(item) for _ in range(5)])
    for first, second in zip(*results, strict=True):
        assert set(first) == {"image", "label", "start", "scan"} and first["scan"] == 4
        np.testing.assert_array_equal(first["image"], first["label"].numpy())
        assert first["image"][0, 0, 0, 0] == np.ravel_multi_index(first["start"], SHAPE)
        np.testing.assert_array_equal(first["start"], second["start"])
    assert len({int(result["image"][0, 0, 0, 0]) for result in results[0]}) == 2
    assert "starts" in item and item["image"] is INDEX


def test_a_cube_of_a_mapped_scan_is_no_map(tmp_path):
    np.save(tmp_path / "scan.npy", INDEX)
    mapped = np.load(tmp_path / "scan.npy", mmap_mode="r")
    cube = RandTissueCube(2)(mapped)
    assert type(cube) is np.ndarray and cube.flags.owndata and cube.flags.c_contiguous


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="no cube"):
        RandTissueCube(8)(INDEX)
    with pytest.raises(ValueError, match="no cube"):
        RandTissueCube(2)(INDEX, starts=np.empty(0, dtype=np.int32))
    with pytest.raises(ValueError, match="leaves the scan"):
        RandTissueCube(2)(INDEX, starts=np.array([INDEX.size - 1]))
    with pytest.raises(ValueError, match="at least 1"):
        RandTissueCube((2, 0, 2))
    with pytest.raises(ValueError, match="expected a scan of"):
        RandTissueCubed(["a", "b"], 2)({"a": INDEX, "b": INDEX[..., 1:]})


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_a_slice_is_a_cube_one_voxel_thick_without_that_axis(kind, axis):
    img = kind(INDEX.copy())
    thick = np.insert([3, 4], axis, 1)
    thin = RandTissueCube((3, 4), slice_axis=axis).set_random_state(seed=0)
    cube = RandTissueCube(thick.tolist()).set_random_state(seed=0)
    for _ in range(10):
        result = thin(img, np.array([0, 9, 63], dtype=np.int32))
        expected = cube(img, np.array([0, 9, 63], dtype=np.int32))
        assert type(result) is type(img) and result.shape == (1, 3, 4) and thin.start == cube.start
        np.testing.assert_array_equal(np.asarray(result), np.asarray(expected).squeeze(axis + 1))
        assert result.is_contiguous() if isinstance(result, torch.Tensor) else result.flags.c_contiguous


def test_the_affine_of_a_slice_has_its_two_axes():
    scan = MetaTensor(torch.zeros(1, *SHAPE), affine=np.diag([2.0, 3.0, 5.0, 1.0]))
    for axis, sides in ((0, (3, 5)), (1, (2, 5)), (2, (2, 3))):
        cut = RandTissueCube((3, 4), slice_axis=axis).set_random_state(seed=0)
        place = np.delete(np.multiply((2, 3, 5), cut_start(cut, scan)), axis)
        affine = np.asarray(cut(scan, randomize=False).affine)
        np.testing.assert_allclose(affine[:2, :2], np.diag(sides))
        np.testing.assert_allclose(affine[:2, -1], place)


def cut_start(cut: RandTissueCube, scan: MetaTensor) -> tuple[int, ...]:
    cut.randomize(scan.shape[1:])
    return cut.start


def test_slices_of_other_forms_are_refused():
    with pytest.raises(ValueError, match="expected two sides of a slice across axis 2, found \\[3, 4, 5\\]"):
        RandTissueCubed("image", (3, 4, 5), slice_axis=2)
    with pytest.raises(ValueError, match="slice_axis: expected 0, 1, 2 or None, found 3"):
        RandTissueCubed("image", (3, 4), slice_axis=3)
