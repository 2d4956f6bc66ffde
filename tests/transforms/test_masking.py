# SPDX-License-Identifier: Apache-2.0
"""Masked patches: their exact number and grid, the law of the choice, noise and constant, on all backends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.training import DEFORM_ON, DeformationBackend
from models_genesis.transforms import (
    BatchGenesisDeform,
    RandGenesisDeform,
    RandPatchMasking,
    RandPatchMaskingd,
    draw_masked_patches,
)
from models_genesis.transforms.masking import count_masked, patch_grid

NdArray = np.ndarray[Any, Any]
WAYS = ("alone numba", "alone numpy", "numba", "numpy", "batch")


def masker(way: str, **arguments: Any) -> Callable[[NdArray], NdArray]:
    """Masking without flips: the transform alone, the chain on both backends, or a batch of one."""
    chain = {f"mask_{name}": value for name, value in arguments.items()}
    if way.startswith("alone"):
        return RandPatchMasking(backend=way.split()[1], **arguments).set_random_state(1)
    if way == "batch":
        deform = BatchGenesisDeform("masking", flip_prob=0, seed=1, **chain)
        return lambda image: deform(torch.from_numpy(image)[None])[0][0].numpy()
    transform = RandGenesisDeform("masking", flip_prob=0, backend=way, **chain).set_random_state(1)
    return lambda image: transform(image)[0]


def patch_states(hidden: NdArray, patch: tuple[int, ...]) -> NdArray:
    """For each patch of the grid whether it is hidden; a patch is hidden as a whole or not at all."""
    grid, sides = patch_grid(hidden.shape, patch)
    states = np.empty(grid, bool)
    for number in itertools.product(*(range(count) for count in grid)):
        part = hidden[tuple(slice(n * side, (n + 1) * side) for n, side in zip(number, sides, strict=True))]
        assert part.all() or not part.any()
        states[number] = part.all()
    return states


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("shape", "patch", "ratio"),
    [((24, 16, 8), (8,), 0.6), ((20, 13, 9), (8, 4, 16), 0.75), ((30, 17), (5, 6), 0.1), ((50,), (7,), 0.5),
     ((16, 16), (4,), 0.0), ((16, 16), (4,), 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, 0.0])
def test_exactly_so_many_whole_patches_show_noise_or_the_constant(
    way: str, shape: tuple[int, ...], patch: tuple[int, ...], ratio: float, value: float | None
) -> None:
    R = np.random.RandomState(0)
    image = (0.25 + 0.5 * R.random_sample((2, *shape))).astype(np.float32)
    kept = image.copy()
    mask = masker(way, patch=patch, ratio=ratio, value=value)
    patches = math.prod(-(-length // side) for length, side in zip(shape, patch * len(shape), strict=False))
    for _ in range(5):
        masked = mask(image)
        hidden = np.abs(masked - image) > 1e-6
        # noise is an image's value to within 1e-6 once in 5e5 voxels: whether one of two channels differs settles it
        states = patch_states(hidden.any(axis=0), patch)
        assert states.sum() == math.floor(ratio * patches + 0.5) == count_masked(states.shape, ratio)
        values = masked[:, hidden.any(axis=0)]
        if value is not None:
            assert np.all(values == value)
        elif values.size:
            # uniform on [0, 1): mean and variance of n values, six deviations; channels are unrelated
            assert values.min() >= 0 and values.max() < 1
            assert abs(values.mean() - 0.5) < 6 * np.sqrt(1 / 12 / values.size)
            assert abs(values.var() - 1 / 12) < 6 * np.sqrt(1 / 180 / values.size)
            assert abs(np.corrcoef(values)[0, 1]) < 6 / np.sqrt(values.shape[1])
    assert np.array_equal(image, kept)


@pytest.mark.parametrize("way", ["alone numpy", "numba", "batch"])
def test_each_choice_of_patches_is_equally_likely(way: str) -> None:
    # two of four patches: six choices. Pearson's statistic of equal rates, mean 5, variance 10, six deviations
    runs = 1200
    if way == "batch":
        deform = BatchGenesisDeform("masking", mask_patch=2, mask_ratio=0.5, mask_value=0.0, flip_prob=0, seed=3)
        masked = list(deform(torch.ones(runs, 1, 8))[0].numpy())
    else:
        mask = masker(way, patch=2, ratio=0.5, value=0.0)
        masked = [mask(np.ones((1, 8), np.float32)) for _ in range(runs)]
    counts: dict[tuple[bool, ...], int] = {}
    for image in masked:
        states = tuple(patch_states(image[0] == 0, (2,)).tolist())
        counts[states] = counts.get(states, 0) + 1
    assert len(counts) == 6 and all(sum(states) == 2 for states in counts)
    assert sum((count - runs / 6) ** 2 / (runs / 6) for count in counts.values()) < 5 + 6 * np.sqrt(10)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_the_grid_is_that_of_the_flipped_image_and_the_target_is_whole(backend: str) -> None:
    shape = (10, 7)  # patches of 4 do not divide the axes, so a grid that was flipped too would show
    image = np.arange(70, dtype=np.float32).reshape(1, *shape) / 70 + 0.001
    deform = RandGenesisDeform(
        "masking", flip_prob=1.0, max_flips=1, mask_patch=4, mask_value=0.0, backend=backend
    ).set_random_state(2)
    batch = BatchGenesisDeform("masking", flip_prob=1.0, max_flips=1, mask_patch=4, mask_value=0.0, seed=2)
    results = [deform(image) for _ in range(8)]
    results += [tuple(part.numpy() for part in pair) for pair in zip(*batch(torch.from_numpy(image)[None].repeat(8, 1, 1, 1)), strict=True)]  # noqa: E501  # fmt: skip
    for deformed, target in results:
        assert any(np.allclose(target, np.flip(image, axis)) for axis in (1, 2))
        states = patch_states(deformed[0] == 0, (4,))
        assert states.sum() == 4  # 0.6 of 6, rounded
        assert np.array_equal(deformed[deformed > 0], target[deformed > 0])


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("shape", [(20,), (20, 24), (20, 24, 18)])
def test_masking_comes_after_all_else_and_changes_nothing_of_it(backend: str, shape: tuple[int, ...]) -> None:
    image = np.random.RandomState(0).random_sample((2, *shape)).astype(np.float32)
    arguments: dict[str, Any] = {"paint_prob": 1.0, "shuffle_prob": 1.0, "num_blocks": 100, "backend": backend}
    plain = RandGenesisDeform(**arguments).set_random_state(7)
    masking = RandGenesisDeform(**arguments, mask_prob=1.0, mask_patch=5, mask_value=1.0).set_random_state(7)
    (before, target), (after, same_target) = plain(image), masking(image)
    assert masking.parameters is not None and masking.parameters.masked is not None
    inside = np.zeros(shape, bool)
    for box in masking.parameters.masked.tolist():
        inside[tuple(slice(*ends) for ends in box)] = True
    assert np.array_equal(target, same_target)
    assert np.array_equal(after[:, ~inside], before[:, ~inside]) and np.all(after[:, inside] == 1)
    # a variant without masking draws what it always drew: its parameters follow from the same random numbers
    plain.randomize(shape)
    again = RandGenesisDeform(**arguments, mask_patch=3, mask_ratio=0.2).set_random_state(7)
    again.randomize(shape)
    again.randomize(shape)
    assert plain.parameters is not None and again.parameters is not None
    assert plain.parameters.seed == again.parameters.seed and again.parameters.masked is None


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_masking_happens_at_its_rate(rate: float) -> None:
    runs = 1500
    images = torch.ones(runs, 1, 8, 8)
    deform = BatchGenesisDeform("masking", mask_prob=rate, mask_patch=4, mask_value=0.0, seed=4)
    happens = (deform(images)[0] == 0).flatten(1).any(dim=1).double().mean().item()
    chain = RandGenesisDeform("masking", mask_prob=rate, mask_patch=4, mask_value=0.0).set_random_state(4)
    drawn = []
    for _ in range(runs):
        chain.randomize((8, 8))
        assert chain.parameters is not None
        drawn.append(chain.parameters.masked is not None)
    for share in (happens, np.mean(drawn)):
        assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / runs)  # binomial


@pytest.mark.parametrize("backend", DEFORM_ON)
@pytest.mark.parametrize("variant", ["masking", "autoencoder"])
def test_variants_on_all_three_backends(backend: str, variant: str) -> None:
    """Masking hides exactly its share and nothing else; the autoencoder's image is its target, flipped alike."""
    arguments: dict[str, Any] = {"mask_patch": (8, 8, 4), "intensity_range": (-1000, 1000), "output_range": (0, 1)}
    deformation = DeformationBackend(backend, variant=variant, **arguments)
    deformation.transform.set_random_state(5)
    scan = np.random.RandomState(1).randint(-1000, 1001, (1, 16, 24, 12)).astype(np.int16)
    items = [deformation.transform({"image": torch.from_numpy(scan)}) for _ in range(6)]
    batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
    deformed, target = (part.numpy()[:, 0] for part in deformation.prepare_batch(batch))
    flips = set()
    for one, whole in zip(deformed, target, strict=True):
        options = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]
        matching = [axes for axes in options if np.allclose(whole, (np.flip(scan[0], axes) + 1000.0) / 2000)]
        assert len(matching) == 1
        flips.update(matching)
        hidden = one != whole
        if variant == "autoencoder":
            assert not hidden.any()
            continue
        # noise is what the voxel holds once in 2000 levels or less: a patch of 256 voxels that differs at all is hidden
        grid = (2, 3, 3)
        blocks = hidden.reshape(2, 8, 3, 8, 3, 4).mean(axis=(1, 3, 5))
        assert set(np.unique(blocks > 0.9)) <= {True, False} and np.all((blocks == 0) | (blocks > 0.9))
        assert (blocks > 0).sum() == count_masked(grid, 0.6) == 11
    assert len(flips) > 1


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float64, np.float32])
def test_kinds_types_and_seeds(backend: str, dtype: Any) -> None:
    image = np.random.RandomState(0).randint(0, 100, (2, 12, 10)).astype(dtype)
    span: dict[str, Any] = {"patch": 4, "intensity_range": (0, 100), "backend": backend}
    transform = RandPatchMasking(**span)
    result = transform.set_random_state(3)(image)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32 and result.shape == image.shape
    assert np.array_equal(result, transform.set_random_state(3)(image))
    assert not np.array_equal(result, transform(image))
    tensor = transform.set_random_state(3)(torch.from_numpy(image))
    assert type(tensor) is torch.Tensor and np.array_equal(tensor.numpy(), result)
    meta = transform.set_random_state(3)(MetaTensor(image))
    assert isinstance(meta, MetaTensor) and np.array_equal(meta.numpy(), result)
    assert RandPatchMasking(**span, dtype=None).set_random_state(3)(image).dtype == dtype
    strided = np.asfortranarray(image)[:, ::-1]
    assert np.array_equal(transform.set_random_state(3)(strided), transform.set_random_state(3)(strided.copy()))


def test_dictionary_twin_is_the_array_transform() -> None:
    image = np.random.RandomState(0).random_sample((1, 12, 10)).astype(np.float32)
    result = RandPatchMaskingd(["a", "b"], patch=4).set_random_state(8)({"a": image, "b": 1 - image, "id": 3})
    array = RandPatchMasking(patch=4).set_random_state(8)
    assert np.array_equal(result["a"], array(image))
    assert np.array_equal(result["b"], array(1 - image, randomize=False))
    assert result["id"] == 3
    with pytest.raises(ValueError, match=r"b: expected the spatial shape of a, \(20, 20\), found \(20, 21\)"):
        RandPatchMaskingd(["a", "b"])({"a": np.zeros((1, 20, 20)), "b": np.zeros((1, 20, 21))})


@pytest.mark.parametrize("way", WAYS)
def test_six_of_ten_patches_of_16_are_hidden_where_nothing_else_is_said(way: str) -> None:
    hidden = masker(way, value=0.0)(np.ones((1, 64, 32, 16), np.float32))[0] == 0
    assert patch_states(hidden, (16,)).sum() == 5  # of 8, 4.8 to the nearest
    boxes = draw_masked_patches((64, 32, 16), np.random.RandomState(0))
    assert len(boxes) == 5 and (np.diff(boxes) == 16).all()


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.49 / 8, 0), (0.5 / 8, 1), (0.6, 5), (1.0, 8)])
def test_the_number_is_the_nearest(ratio: float, count: int) -> None:
    assert count_masked((2, 2, 2), ratio) == count
    boxes = draw_masked_patches((5, 6, 8), np.random.RandomState(0), (4,), ratio)
    assert boxes.shape == (count, 3, 2) and boxes.dtype == np.int64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask_prob": 2}, "mask_prob: expected a probability"),
        ({"mask_ratio": 1.1}, "mask_ratio: expected a probability"),
        ({"mask_patch": 0}, "mask_patch: expected a whole number of at least 1, found 0"),
        ({"mask_patch": (4, 2.5)}, "mask_patch: expected a whole number"),
        ({"mask_patch": (4, 4, 4, 4)}, "mask_patch: expected one side, or one for each spatial axis"),
        ({"mask_value": 2.0}, r"mask_value: expected a number in \(0.0, 1.0\), or None for noise, found 2.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RandGenesisDeform("masking", **arguments)
    with pytest.raises(ValueError, match=words):
        BatchGenesisDeform("masking", **arguments)


def test_a_patch_of_another_number_of_axes_is_named() -> None:
    for call in (RandGenesisDeform("masking", mask_patch=(4, 4)), RandPatchMasking(patch=(4, 4))):
        with pytest.raises(ValueError, match=r"mask_patch: expected one side, or 3 for spatial shape \(8, 8, 8\)"):
            call(np.zeros((1, 8, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"mask_patch: expected one side, or 3"):
        BatchGenesisDeform("masking", mask_patch=(4, 4))(torch.zeros(1, 1, 8, 8, 8))
