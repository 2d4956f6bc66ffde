# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from models_genesis.transforms import ClassVoxelsd, RandClassCubed

SIZE = (4, 4, 2)


def case(kind: str = "numpy", tumour: bool = True) -> dict:
    label = np.zeros((1, 20, 18, 10), np.uint8)
    label[:, 4:10, 4:10, 2:6] = 1
    label[:, 5, 5, 3] = 2 if tumour else 1
    image = np.arange(label.size, dtype=np.int16).reshape(label.shape)
    item = {"image": image, "label": label, "scan": 0}
    if kind == "torch":
        item = {key: torch.as_tensor(value) for key, value in item.items()}
    return ClassVoxelsd("label", num_classes=3)(item)


def draw(item: dict, seed: int, **arguments) -> dict:
    cube = RandClassCubed(["image", "label"], **{"cube_size": SIZE, **arguments})
    cube.set_random_state(seed)
    return cube(item)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_image_and_label_are_cut_alike_and_the_rest_stays(kind):
    item = case(kind)
    before = np.array(item["image"])
    cube = draw(item, 0)
    assert set(cube) == {"image", "label", "scan"}
    assert isinstance(cube["image"], type(item["image"]))
    where = np.argwhere(before == int(cube["image"].ravel()[0]))[0]
    window = tuple(slice(a, a + s) for a, s in zip(where, (1, *SIZE), strict=True))
    assert np.array_equal(cube["image"], before[window])
    assert np.array_equal(cube["label"], np.array(item["label"])[window])
    assert np.array_equal(item["image"], before)


def test_voxels_of_each_class_are_noted_within_the_bound():
    item = case()
    flat = item["label"].ravel()
    for number in range(3):
        assert (flat[item[f"class_voxels_{number}"]] == number).all()
    assert len(item["class_voxels_1"]) == 6 * 6 * 4 - 1
    few = ClassVoxelsd("label", num_classes=3, max_voxels=10)({"label": item["label"]})
    assert [len(few[f"class_voxels_{number}"]) for number in range(3)] == [10, 10, 1]
    assert set(few["class_voxels_0"]) <= set(item["class_voxels_0"])


def test_a_class_of_one_voxel_is_in_the_cube_as_often_as_its_ratio_says():
    """With ratios 1:1:2 the tumour's voxel is drawn with probability 1/2, and shown at least that often.

    Of 400 draws, 200 +- 10 are around it; 160 is four standard deviations below. A cube drawn anywhere holds it in
    32 of 17 * 15 * 9 places, 1.4 %.
    """
    item = case()
    shown = sum(2 in draw(item, seed, ratios=[1, 1, 2])["label"] for seed in range(400))
    assert shown > 160
    assert sum(2 in draw(item, seed, ratios=[1, 0, 0])["label"] for seed in range(100)) < 20


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_shows_the_class_that_was_drawn_and_is_one_of_the_scan_s(axis, kind):
    """Only slices that hold the class can be drawn, each with its share of the class's voxels."""
    item, size = case(kind), (4, 6)
    scan = np.asarray(item["image"])[0]
    drawn = {}
    for seed in range(60):
        for number, key in enumerate(("background", "organ", "tumour")):
            ratios = [float(each == number) for each in range(3)]
            found = draw(item, seed, ratios=ratios, cube_size=size, slice_axis=axis)
            assert found["image"].shape == found["label"].shape == (1, *size)
            assert number in found["label"]
            start = np.argwhere(scan == int(found["image"][0, 0, 0]))[0]
            window = tuple(
                slice(first, first + side) for first, side in zip(start, (*size[:axis], 1, *size[axis:]), strict=True)
            )
            assert np.array_equal(scan[window].squeeze(axis), found["image"][0])
            drawn.setdefault(key, set()).add(int(start[axis]))
    position = (5, 5, 3)[axis]
    inside = range(4, 10) if axis < 2 else range(2, 6)
    assert drawn["tumour"] == {position}
    assert drawn["organ"] <= set(inside) and len(drawn["organ"]) > 2
    assert drawn["background"] > set(inside)  # and others


def test_a_class_that_a_case_lacks_is_not_drawn():
    item = case(tumour=False)
    assert all(1 in draw(item, seed, ratios=[0, 1, 1])["label"] for seed in range(20))


def test_the_seed_decides_and_cubes_lie_inside():
    item = case()
    for seed in range(50):
        cube = draw(item, seed)
        assert cube["image"].shape == (1, *SIZE)
        assert np.array_equal(cube["image"], draw(item, seed)["image"])


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="class_voxels_0"):
        RandClassCubed(["image"], SIZE)({"image": np.zeros((1, 8, 8, 8))})
    with pytest.raises(ValueError, match="num_classes"):
        ClassVoxelsd("label", num_classes=1)
    with pytest.raises(ValueError, match="two sides of a slice"):
        RandClassCubed(["image"], SIZE, slice_axis=2)
    with pytest.raises(ValueError, match="larger than the image"):
        RandClassCubed(["image", "label"], (64, 64, 64))(case())
