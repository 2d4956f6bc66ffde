# SPDX-License-Identifier: Apache-2.0
"""In-painting and out-painting: the measured distributions, alone and in the chain on both backends; invariants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import (
    RandGenesisDeform,
    RandInPainting,
    RandInPaintingd,
    RandOutPainting,
    RandOutPaintingd,
    draw_in_painting_boxes,
    draw_out_painting_boxes,
)

NdArray = np.ndarray[Any, Any]
PAINTINGS = {"in_painting": RandInPainting, "out_painting": RandOutPainting}


def painter(kind: str, way: str) -> Callable[[NdArray], Any]:
    """A painting at rate 1: the transform alone, or the chain with all else switched off."""
    if way.startswith("alone"):
        return PAINTINGS[kind](prob=1.0, backend=way.split()[1]).set_random_state(5)
    chain = RandGenesisDeform(variant=kind, paint_prob=1.0, flip_prob=0.0, backend=way).set_random_state(5)
    return lambda img: chain(img)[0]


def inside_boxes(shape: tuple[int, ...], boxes: NdArray) -> NdArray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[tuple(slice(*pair) for pair in box.tolist())] = True
    return mask


@pytest.mark.parametrize("way", ["alone numba", "alone numpy", "numba", "numpy"])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", list(PAINTINGS))
def test_noise_follows_the_reference(check_noise: Any, kind: str, number: int, way: str) -> None:
    runs = (400 if "numba" in way else 250) if number == 0 else (120 if "numba" in way else 60)
    check_noise(kind, number, runs, painter(kind, way))


@pytest.mark.parametrize("draw", [draw_in_painting_boxes, draw_out_painting_boxes])
@pytest.mark.parametrize("shape", [(64, 64, 32), (50, 31), (96,)])
def test_boxes_reach_all_sides_and_corners_and_no_more(draw: Any, shape: tuple[int, ...]) -> None:
    R = np.random.RandomState(0)
    boxes = np.concatenate([draw(shape, R) for _ in range(4000)])
    sizes = np.array(shape)
    sides = boxes[..., 1] - boxes[..., 0]
    small, large = sizes // 6, sizes // 3
    if draw is draw_out_painting_boxes:
        small, large = sizes - 4 * sizes // 7, sizes - 3 * sizes // 7
    assert np.array_equal(sides.min(axis=0), small) and np.array_equal(sides.max(axis=0), large)
    assert boxes.min() == 3 and np.array_equal(boxes[..., 1].max(axis=0), sizes - 3)
    # each side is equally likely: Pearson's statistic, mean k-1, variance 2(k-1), six deviations
    for axis in range(len(shape)):
        seen = np.bincount(sides[:, axis] - small[axis])
        expected = len(boxes) / len(seen)
        freedom = len(seen) - 1
        assert ((seen - expected) ** 2 / expected).sum() < freedom + 6 * np.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("draw", [draw_in_painting_boxes, draw_out_painting_boxes])
def test_number_of_boxes(draw: Any) -> None:
    R = np.random.RandomState(1)
    runs, p = 6000, 0.6
    counts = np.bincount([len(draw((64, 64), R, max_boxes=3, box_prob=p)) for _ in range(runs)], minlength=4)
    sure = int(draw is draw_out_painting_boxes)
    # tries until the first failure, at most 3, of which out-painting has the first for sure
    law = {sure + k: p**k * (1 - p) for k in range(3 - sure)} | {3: p ** (3 - sure)}
    for count in range(4):
        chance = law.get(count, 0.0)
        assert abs(counts[count] / runs - chance) <= 5 * np.sqrt(chance * (1 - chance) / runs)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
@pytest.mark.parametrize("kind", list(PAINTINGS))
@pytest.mark.parametrize("shape", [(40, 30, 20), (40, 30), (40,)])
def test_only_one_side_of_the_boxes_changes(kind: str, shape: tuple[int, ...], dtype: Any, backend: str) -> None:
    # values beyond the noise, so that a painted voxel shows
    image = (np.random.RandomState(0).random_sample((3, *shape)) * 100 + 5).astype(dtype)
    kept = image.copy()
    transform = PAINTINGS[kind](prob=1.0, intensity_range=(-2.0, 3.0), backend=backend).set_random_state(2)
    for _ in range(20):
        painted = transform(image)
        assert painted.dtype == np.float32
        mask = inside_boxes(shape, transform.boxes)
        mask = mask if kind == "in_painting" else ~mask
        assert np.array_equal(painted[:, ~mask], image[:, ~mask].astype(np.float32))
        assert np.all(painted[:, mask] != image[:, mask])
        if mask.any():
            noise = painted[:, mask]
            assert noise.min() >= -2 and noise.max() < 3
            assert np.all(noise[0] != noise[1])  # each channel has its own noise
    assert np.array_equal(image, kept)


@pytest.mark.parametrize("kind", list(PAINTINGS))
def test_transform_reproduces_keeps_kinds_and_applies_at_its_rate(kind: str) -> None:
    image = np.zeros((1, 30, 24), np.float32)
    transform = PAINTINGS[kind](prob=1.0, box_prob=1.0)
    first = transform.set_random_state(4)(image)
    assert first.dtype == np.float32 and np.array_equal(transform.set_random_state(4)(image), first)
    assert not np.array_equal(transform(image), first)
    tensor = transform.set_random_state(4)(torch.from_numpy(image))
    assert type(tensor) is torch.Tensor and np.array_equal(tensor.numpy(), first)
    meta = transform.set_random_state(4)(MetaTensor(image, meta={"name": "scan"}))
    assert isinstance(meta, MetaTensor) and meta.meta["name"] == "scan" and np.array_equal(meta.numpy(), first)

    rare = PAINTINGS[kind](prob=0.3, box_prob=1.0).set_random_state(0)
    runs = 1500
    applied = sum(bool(rare(image).any()) for _ in range(runs))
    assert abs(applied / runs - 0.3) < 5 * np.sqrt(0.3 * 0.7 / runs)  # binomial


@pytest.mark.parametrize("kind", list(PAINTINGS))
def test_integers_can_stay_integers(kind: str) -> None:
    image = np.full((1, 40, 40, 40), 7, np.int16)
    transform = PAINTINGS[kind](prob=1.0, box_prob=1.0, intensity_range=(-3, 2), dtype=None).set_random_state(0)
    painted = transform(image)
    assert painted.dtype == np.int16
    # rounded down, noise on [-3, 2) is uniform on five numbers: Pearson's statistic, 4 degrees, five deviations
    seen = np.bincount(painted[painted != 7] + 3)
    expected = seen.sum() / 5
    assert len(seen) == 5 and ((seen - expected) ** 2 / expected).sum() < 4 + 5 * np.sqrt(8) + 10


@pytest.mark.parametrize("twin", [RandInPaintingd, RandOutPaintingd])
def test_dictionary_twin_paints_as_the_array_transform(twin: Any) -> None:
    image = np.zeros((1, 30, 24), np.float32)
    result = twin(["image", "other"], prob=1.0).set_random_state(6)({"image": image, "other": image - 1})
    array = twin.painting(prob=1.0).set_random_state(6)(image)
    assert np.array_equal(result["image"], array)
    assert np.array_equal(result["other"] == -1, array == 0)
    with pytest.raises(ValueError, match=r"other: .* of image, \(30, 24\), found \(29, 24\)"):
        twin(["image", "other"], prob=1.0)({"image": image, "other": image[:, 1:]})


@pytest.mark.parametrize(
    ("kind", "smallest"),
    [("in_painting", 8), ("out_painting", 14)],
)
def test_images_too_small_for_the_boxes_are_refused(kind: str, smallest: int) -> None:
    transform = PAINTINGS[kind](prob=1.0)
    for _ in range(100):
        transform(np.zeros((1, smallest, 64)))
    with pytest.raises(ValueError, match=r"expected axes that hold boxes .* found spatial shape \(64, \d+\)"):
        transform(np.zeros((1, 64, smallest - 1)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prob": 1.5}, "prob: expected a probability"),
        ({"box_prob": -1.0}, "box_prob: expected a probability"),
        ({"max_boxes": 0}, "max_boxes: expected a whole number of at least 1, found 0"),
        ({"intensity_range": (2, 1)}, "intensity_range: expected two finite numbers"),
        ({"backend": "cuda"}, "backend: expected one of"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    for transform in PAINTINGS.values():
        with pytest.raises(ValueError, match=words):
            transform(**arguments)
