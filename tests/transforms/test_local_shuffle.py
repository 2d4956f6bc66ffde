# SPDX-License-Identifier: Apache-2.0
"""Local pixel shuffling: the exact law on a tiny image, the measured distributions on real sizes, invariants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import RandLocalPixelShuffle, RandLocalPixelShuffled, local_pixel_shuffle
from models_genesis.transforms.local_shuffle import max_block_sides

NdArray = np.ndarray[Any, Any]
BACKENDS = ("numba", "numpy")


def index_image(shape: tuple[int, ...], dtype: Any = np.int32) -> NdArray:
    """Each voxel holds its own flat index, so that a shuffled image tells the source of each voxel."""
    return np.arange(np.prod(shape), dtype=dtype).reshape((1, *shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_exact_law_on_three_voxels(check_shuffle_law: Any, backend: str, axis: int, blocks: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = 3
    image = index_image(tuple(shape))
    seeds = range(0, 7919 * (6000 if backend == "numba" else 1500), 7919)
    check_shuffle_law(blocks, [local_pixel_shuffle(image, seed, blocks, 1.0, backend).ravel() for seed in seeds])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_displacements_follow_the_reference(check_displacements: Any, backend: str, number: int) -> None:
    runs = (30 if backend == "numba" else 16) if number < 2 else (10 if backend == "numba" else 6)
    check_displacements(number, runs, lambda image, run: local_pixel_shuffle(image, 31 + run, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
)  # the longest axis is the last, the first, the middle
def test_leaving_out_regions_keeps_the_law_inside_them(backend: str, axes: tuple[int, ...]) -> None:
    shape = tuple((24, 30, 40)[axis] for axis in axes)
    regions = np.array([[[3, 14], [5, 20], [4, 30]], [[10, 20], [12, 25], [20, 36]]])[:, axes]
    inside = np.zeros(shape, bool)
    for box in regions:
        inside[tuple(slice(*pair) for pair in box.tolist())] = True
    image = index_image(shape)
    places = np.arange(image.size).reshape(shape)
    rows: dict[bool, list[list[float]]] = {True: [], False: []}
    runs = 150
    for some, seed in itertools.product((True, False), range(runs)):
        shuffled = local_pixel_shuffle(image, 2 * seed + some, 800, backend=backend, regions=regions if some else None)[
            0
        ]
        distinct = len(np.unique(shuffled[inside])) / inside.sum()
        far = np.abs(shuffled - places)[inside]
        rows[some].append([(far > 0).mean(), distinct, (far > 50).mean(), (far > 1000).mean()])
    some_rows, all_rows = np.array(rows[True]), np.array(rows[False])
    # difference of two means over `runs` runs each, four comparisons: five deviations
    deviation = np.sqrt((some_rows.var(axis=0, ddof=1) + all_rows.var(axis=0, ddof=1)) / runs)
    assert np.all(np.abs(some_rows.mean(axis=0) - all_rows.mean(axis=0)) < 5 * deviation)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(70,), (33, 50), (20, 31, 130), (12, 12, 9)])
def test_sources_lie_within_a_block(backend: str, shape: tuple[int, ...]) -> None:
    image = index_image(shape)
    shuffled = np.concatenate([local_pixel_shuffle(image, seed, 300, backend=backend) for seed in range(30)])
    for side, here, there in zip(
        max_block_sides(shape), np.indices(shape), np.unravel_index(shuffled, shape), strict=True
    ):
        # two voxels of one block are at most side - 1 apart, and in 9000 blocks that is reached
        assert np.abs(there - here).max() == side - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(200,), (9, 70), (5, 6, 140), (3, 100, 9), (70, 4, 5)])
def test_blocks_up_to_the_whole_image_write_sources_of_their_own(backend: str, shape: tuple[int, ...]) -> None:
    # one block is a permutation of its own voxels, so nothing is lost or doubled, wherever it lies and however large
    for seed in range(20):
        image = index_image(shape)
        shuffled = local_pixel_shuffle(image, seed, 1, 1.0, backend)
        assert np.array_equal(np.sort(shuffled.ravel()), image.ravel())


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_move_alike(backend: str) -> None:
    image = index_image((20, 30, 10))
    stacked = np.concatenate([image, 2 * image, image + 7])
    shuffled = local_pixel_shuffle(stacked, 3, backend=backend)
    assert np.array_equal(shuffled[1], 2 * shuffled[0])
    assert np.array_equal(shuffled[2], shuffled[0] + 7)
    assert not np.array_equal(shuffled[0], image[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_every_data_type_moves_unchanged(backend: str, dtype: Any) -> None:
    image = (np.random.RandomState(0).random_sample((2, 20, 20, 20)) * 50).astype(dtype)
    kept = image.copy()
    shuffled = local_pixel_shuffle(image, 3, 500, backend=backend)
    assert shuffled.dtype == dtype and np.array_equal(image, kept)
    as_index = local_pixel_shuffle(index_image((20, 20, 20)), 3, 500, backend=backend)[0]
    assert np.array_equal(shuffled[1], image[1].ravel()[as_index])
    strided = np.asfortranarray(image)[:, ::-1]
    assert np.array_equal(
        local_pixel_shuffle(strided, 3, 500, backend=backend),
        local_pixel_shuffle(np.ascontiguousarray(strided), 3, 500, backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_moves_without_blocks_or_on_short_axes(backend: str) -> None:
    image = index_image((16, 16, 16))
    assert np.array_equal(local_pixel_shuffle(image, 1, 0, backend=backend), image)
    assert np.array_equal(local_pixel_shuffle(image, 1, backend=backend), image)  # 16 // 10 = 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_transform_reproduces_keeps_kinds_and_applies_at_its_rate(backend: str) -> None:
    image = index_image((30, 30), np.float32)
    transform = RandLocalPixelShuffle(prob=1.0, num_blocks=200, backend=backend)
    first = transform.set_random_state(4)(image)
    assert np.array_equal(transform.set_random_state(4)(image), first)
    assert not np.array_equal(transform(image), first)
    tensor = transform.set_random_state(4)(torch.from_numpy(image))
    assert type(tensor) is torch.Tensor and np.array_equal(tensor.numpy(), first)
    meta = transform.set_random_state(4)(MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))))
    assert isinstance(meta, MetaTensor) and meta.affine[1, 1] == 3 and np.array_equal(meta.numpy(), first)
    assert np.array_equal(image, index_image((30, 30), np.float32))

    rare = RandLocalPixelShuffle(prob=0.3, num_blocks=200, backend=backend).set_random_state(0)
    runs = 1000
    applied = sum(not np.array_equal(rare(image), image) for _ in range(runs))
    assert abs(applied / runs - 0.3) < 5 * np.sqrt(0.3 * 0.7 / runs)  # binomial


def test_dictionary_twin_shuffles_every_key_alike() -> None:
    image = index_image((30, 30, 12))
    twin = RandLocalPixelShuffled(keys=["image", "mask"], prob=1.0, num_blocks=100).set_random_state(9)
    result = twin({"image": image, "mask": image + 1, "name": "x"})
    array = RandLocalPixelShuffle(prob=1.0, num_blocks=100).set_random_state(9)(image)
    assert np.array_equal(result["image"], array) and np.array_equal(result["mask"], array + 1)
    assert result["name"] == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prob": 1.5}, "prob: expected a probability"),
        ({"num_blocks": -1}, "num_blocks: expected a whole number of at least 0, found -1"),
        ({"max_block_fraction": 0.0}, "max_block_fraction: expected a share in"),
        ({"backend": "cuda"}, "backend: expected one of"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RandLocalPixelShuffle(**arguments)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 2, 2, 2), (1, 0, 5)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="img: expected a channel-first image"):
        RandLocalPixelShuffle(prob=1.0)(np.zeros(shape))
