# SPDX-License-Identifier: Apache-2.0
"""The deformations of whole batches: the same distributions as image by image, and nothing that a device waits for."""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models_genesis.transforms import (
    GENESIS_VARIANTS,
    BatchGenesisDeform,
    RandDeformSeedd,
    RandGenesisDeformOnDeviced,
    batch_deform,
    batch_shuffle,
    bezier_map,
)
from models_genesis.transforms.batch_curve import batch_bezier_nodes, interpolate
from models_genesis.transforms.batch_shuffle import draw_shuffle_sources, listed_voxels
from models_genesis.transforms.local_shuffle import max_block_sides

NdArray = np.ndarray[Any, Any]
HOUNSFIELD: dict[str, Any] = {"intensity_range": (-1000, 1000), "output_range": (0, 1)}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
PLACES = [
    ("cpu", "torch"),
    pytest.param("cuda", "torch", marks=needs_cuda),
    pytest.param("cuda", "triton", marks=needs_cuda),
]


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def index_batch(size: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Images whose voxels hold their own flat index."""
    return torch.arange(int(np.prod(shape)), dtype=dtype).reshape(1, 1, *shape).repeat(size, *[1] * (len(shape) + 1))


def one_by_one(make: Callable[[], Tensor]) -> Iterator[NdArray]:
    """The samples of batch after batch."""
    while True:
        yield from make().cpu().numpy()


def reversed_axes(targets: Tensor, shape: tuple[int, ...]) -> NdArray:
    """For deformed targets of index images, which axes are reversed (samples, axes)."""
    first = np.stack(np.unravel_index(targets.flatten(1)[:, 0].round().long().numpy(), shape), axis=1)
    return first > 0


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_exact_law_on_three_voxels(
    check_shuffle_law: Any, axis: int, blocks: int, device: str, backend: str
) -> None:
    shape = [1, 1, 1]
    shape[axis] = 3
    deform = BatchGenesisDeform(
        "shuffle", flip_prob=0, shuffle_prob=1, num_blocks=blocks, max_block_fraction=1.0, intensity_range=(0, 2),
        device=device, backend=backend,
    )  # fmt: skip
    images = index_batch(6000, tuple(shape), torch.int16).to(device)
    check_shuffle_law(blocks, deform(images)[0].flatten(1).round().int().cpu().numpy())


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_displacements_follow_the_reference(check_displacements: Any, number: int, device: str, backend: str) -> None:
    draws = generator(31, device)

    def shuffle(image: NdArray, run: int) -> NdArray:
        shape, voxels = image.shape[1:], image.size
        if backend == "torch":
            return draw_shuffle_sources(draws, 1, shape, max_block_sides(shape), 10_000).cpu().numpy().reshape(shape)
        span = {"intensity_range": (0, voxels - 1), "flip_prob": 0, "shuffle_prob": 1}
        deform = BatchGenesisDeform("shuffle", **span, seed=run, device=device, backend=backend)
        return deform(index_batch(1, shape, torch.int32).to(device))[0].round().int().cpu().numpy().reshape(shape)

    check_displacements(number, (30, 12, 8)[number], shuffle)


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_curves_follow_the_reference(
    reference: dict[str, Any], check_curves: Any, dtype: torch.dtype, device: str, backend: str
) -> None:
    grid = torch.tensor(reference["nonlinear"]["grid"])
    # whole numbers 0..40 are the reference's 41 grid points
    runs = 4000 if dtype == torch.float32 else 1500
    images = (grid * 40).round().to(dtype).repeat(runs, 1, 1).to(device)
    deform = BatchGenesisDeform(
        "nonlinear",
        flip_prob=0,
        nonlinear_prob=1,
        intensity_range=(0, 40),
        output_range=(0, 1),
        seed=5,
        device=device,
        backend=backend,
    )
    check_curves(deform(images)[0][:, 0].cpu().numpy())


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["in_painting", "out_painting"])
def test_noise_follows_the_reference(check_noise: Any, kind: str, number: int, device: str, backend: str) -> None:
    deform = BatchGenesisDeform(kind, flip_prob=0, paint_prob=1, seed=6, device=device, backend=backend)
    shape = ((64, 64, 32), (96, 96, 96))[number]
    images = torch.zeros((10, 1, *shape), device=device)
    painted = one_by_one(lambda: deform(images)[0])
    check_noise(kind, number, (400, 80 if device == "cpu" else 400)[number], lambda image: next(painted))


@pytest.mark.parametrize("kind", ["in_painting", "out_painting"])
@pytest.mark.parametrize("length", [14, 50, 64, 96])
def test_a_box_reaches_all_sides_and_corners_and_no_more(
    kind: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_deform, "_MAX_BOXES", 1)
    deform = BatchGenesisDeform(kind, flip_prob=0, paint_prob=1)
    noise = deform(torch.zeros(8000, 1, length))[0][:, 0] != 0
    boxes = (noise if kind == "in_painting" else ~noise).numpy()
    boxes = boxes[boxes.any(axis=1)]
    sides, starts = boxes.sum(axis=1), boxes.argmax(axis=1)
    small, large = length // 6, length // 3
    if kind == "out_painting":
        small, large = length - 4 * length // 7, length - 3 * length // 7
    assert sides.min() == small and sides.max() == large
    assert starts.min() == 3 and (starts + sides).max() == length - 3
    # Sides are uniform, and so are the starts for each side: Pearson's statistic, mean k-1, variance 2(k-1), six
    # deviations and a little for its right tail
    samples = [(sides, small, large)]
    samples += [(starts[sides == side], 3, length - side - 3) for side in range(small, large + 1)]
    for values, low, high in samples:
        seen = np.bincount(values - low, minlength=high - low + 1)
        expected, freedom = len(values) / len(seen), len(seen) - 1
        assert len(seen) == high - low + 1
        assert ((seen - expected) ** 2 / expected).sum() < freedom + 6 * np.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_are_the_bezier_curve(dtype: torch.dtype) -> None:
    points = [((a, b), (c, d)) for a, b, c, d in np.random.RandomState(0).random_sample((60, 4)).tolist()]
    points += [((a, b), (c, d)) for a, b, c, d in itertools.product((0.0, 1.0), repeat=4)]
    points += [((1 - e, 0.0), (0.6 * e, 1.0)) for e in (0.1, 0.01, 1e-3, 1e-6)]
    tensor = torch.tensor(points, dtype=torch.float64)
    values = torch.linspace(0, 1, 4001, dtype=dtype).repeat(len(points), 1)
    exact = np.array([bezier_map(row.double().numpy(), p) for row, p in zip(values, points, strict=True)])
    for nodes in (256, 2048, 16384):
        x, y = batch_bezier_nodes(tensor, nodes)
        assert bool((x.diff() >= 0).all() and (y.diff() >= 0).all() and (x[:, -1] == 1).all() and (y[:, 0] == 0).all())
        error = np.abs(interpolate(values, x.to(dtype), y.to(dtype)).double().numpy() - exact)
        # The bound of the interpolation and rounding. Where the tangent is vertical the last bit of x counts: y changes
        # by about three times its cube root, 1.5e-5 for float64 and 1.2e-2 for float32.
        ordinary = error[:60]
        assert ordinary.max() < 25 / nodes**2 + (1e-6 if dtype == torch.float32 else 1e-9)
        assert error.max() < 25 / nodes**2 + (1.2e-2 if dtype == torch.float32 else 1.5e-5)
        assert np.quantile(error, 0.999) < 25 / nodes**2 + 2e-6


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("variant", ["autoencoder", "nonlinear", "shuffle", "out_painting", "in_painting"])
@pytest.mark.parametrize("rate", [None, 0.3, 0.0, 1.0])
def test_parts_happen_at_their_rates(variant: str, rate: float | None, device: str, backend: str) -> None:
    part = {"nonlinear": "nonlinear_prob", "shuffle": "shuffle_prob"}.get(variant, "paint_prob")
    if variant == "autoencoder" and rate is not None:
        pytest.skip("this variant has no part")
    given = {"num_blocks": 50, "seed": 3, "device": device, "backend": backend}
    deform = BatchGenesisDeform(variant, **({} if rate is None else {part: rate}), **given)
    rate = GENESIS_VARIANTS[variant][part] if rate is None else rate
    runs = 2500
    deformed, target = deform(torch.rand(1, 1, 24, 24).repeat(runs, 1, 1, 1).to(device))
    happens = (deformed != target).flatten(1).any(dim=1).double().mean().item()
    if variant == "in_painting":
        rate *= 0.95  # the first box may fail
    # binomial, five deviations
    assert abs(happens - rate) <= 5 * np.sqrt(rate * (1 - rate) / runs)


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_the_whole_chain_paints_both_ways_and_falls_at_its_rates(device: str, backend: str) -> None:
    runs = 4000
    deform = BatchGenesisDeform(flip_prob=0, shuffle_prob=0, seed=1, device=device, backend=backend)
    # the corners of an image are noise only in out-painting; the levels 0 and 1 tell the direction of the curve
    images = torch.zeros(runs, 1, 24, 24)
    images[..., 12:] = 1
    deformed, target = (result.cpu() for result in deform(images.to(device)))
    corners = deformed[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    noisy = ((corners != 0) & (corners != 1)).all(dim=1)
    rising = (corners == torch.tensor([0.0, 1.0, 0.0, 1.0])).all(dim=1)
    falling = (corners == torch.tensor([1.0, 0.0, 1.0, 0.0])).all(dim=1)
    assert bool((noisy ^ rising ^ falling).all())
    for happens, rate in ((noisy, 0.9 * 0.8), (falling[~noisy], 0.9 / 2)):
        assert abs(happens.double().mean().item() - rate) < 5 * np.sqrt(rate * (1 - rate) / len(happens))  # binomial
    in_painted = (deformed != target).flatten(1).any(dim=1) & rising
    # rising ones differ from the target by the boxes alone, as 0 and 1 map to themselves
    rate = 0.9 * 0.2 * 0.95 / (1 - 0.9 * 0.8)
    assert abs((in_painted.sum() / rising.sum()).item() - rate) < 5 * np.sqrt(rate * (1 - rate) / int(rising.sum()))


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("flip_axes", [None, (0, 2), 1, ()])
def test_flips_follow_their_law(flip_axes: Any, device: str, backend: str) -> None:
    shape, runs = (2, 3, 4), 8000
    given = {"intensity_range": (0, 23), "seed": 2, "device": device, "backend": backend}
    deform = BatchGenesisDeform("autoencoder", flip_axes=flip_axes, **given)
    images = index_batch(runs, shape)
    deformed, target = (result.cpu() for result in deform(images.to(device)))
    assert torch.equal(deformed, target)
    flips = reversed_axes(target, shape)
    for axes in itertools.product((False, True), repeat=3):
        rows = torch.from_numpy((flips == axes).all(axis=1))
        expected = images[0, 0].flip([axis for axis in range(3) if axes[axis]])
        assert torch.allclose(target[rows][:, 0], expected, atol=1e-5)
    # r rounds come with p^r (1 - p), the last with p^3; an axis, drawn with chance 1/k a round, is reversed after an
    # odd number of draws: (1 - (1 - 2/k)^r) / 2
    p, k = 0.4, {None: 3, (0, 2): 2, 1: 1, (): 0}[flip_axes]
    allowed = {None: (0, 1, 2), (0, 2): (0, 2), 1: (1,), (): ()}[flip_axes]
    law = [p**r * (1 - p) for r in range(3)] + [p**3]
    for axis in range(3):
        rate = sum(w * (1 - (1 - 2 / k) ** r) / 2 for r, w in enumerate(law)) if axis in allowed else 0.0
        assert abs(flips[:, axis].mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / runs)  # binomial
    if k == 3:
        # two axes at once: two rounds or three that draw different ones
        rate = p**2 * (1 - p) * 2 / 3 + p**3 * 0
        assert abs((flips.sum(axis=1) == 2).mean() - rate) < 5 * np.sqrt(rate / runs)


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_painting_shows_the_mapped_and_shuffled_image_and_channels_move_alike(device: str, backend: str) -> None:
    shape = (30, 40, 20)
    index = index_batch(12, shape) / 23_999
    images = torch.cat([index, index, 1 - index], dim=1)
    given = {"paint_prob": 1, "seed": 9, "device": device, "backend": backend}
    deform = BatchGenesisDeform(shuffle_prob=1, nonlinear_prob=0, **given)
    deformed, target = (result.cpu() for result in deform(images.to(device)))
    assert torch.equal(target[:, 0], target[:, 1])
    # noise differs between channels, 24 bits, so by chance a noise voxel looks like none once in 2**24
    shown = deformed[:, 0] == deformed[:, 1]
    assert 0.1 < shown.double().mean() < 0.97
    assert torch.allclose(deformed[:, 2][shown], 1 - deformed[:, 0][shown], atol=1e-6)
    here = np.stack(np.unravel_index((target[:, 0] * 23_999).round().long()[shown].numpy(), shape))
    there = np.stack(np.unravel_index((deformed[:, 0] * 23_999).round().long()[shown].numpy(), shape))
    # two voxels of one block are at most side - 1 apart, in the frame of the flipped image too
    assert np.abs(there - here).max(axis=1).tolist() == [side - 1 for side in max_block_sides(shape)]

    curved = BatchGenesisDeform(shuffle_prob=0, nonlinear_prob=1, **given)
    deformed, target = (result.cpu() for result in curved(images.to(device)))
    for before, after, visible in zip(target[:, 0], deformed[:, 0], deformed[:, 0] == deformed[:, 1], strict=True):
        steps = after[visible][before[visible].argsort()].diff()
        # a monotone map of what is visible; two interpolated values may disagree by twice the bound
        assert steps.min() > -1.2e-5 or steps.max() < 1.2e-5


@pytest.mark.parametrize("shape", [(64,), (40, 50), (20, 30, 24)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.float64])
def test_every_data_type_and_number_of_axes_gives_what_float32_gives(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    images = torch.randint(0, 121, (3, 2, *shape), generator=generator(1)).to(dtype)
    kept = images.clone()
    span: dict[str, Any] = {"intensity_range": (10, 100), "output_range": (-1, 1), "seed": 4, "num_blocks": 300}
    results = BatchGenesisDeform(**span)(images)
    expected = BatchGenesisDeform(**span)(images.float())
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == torch.float32 and result.shape == images.shape
        # noise and places are the same draws; the maps are within 6e-6 of the curve, the range is 2
        assert (result - other).abs().max() < 2 * 1.3e-5
        assert result.min() >= -1 and result.max() <= 1
    assert torch.equal(images, kept)
    strided = images.transpose(1, 2).contiguous().transpose(1, 2)
    for result, other in zip(BatchGenesisDeform(**span)(strided), results, strict=True):
        assert torch.equal(result, other)


def test_integer_table_is_exact() -> None:
    levels = torch.arange(-1100, 1101, dtype=torch.int16).repeat(50, 1, 1)
    deform = BatchGenesisDeform("nonlinear", flip_prob=0, nonlinear_prob=1, reverse_prob=0, seed=2, **HOUNSFIELD)
    deformed, target = deform(levels)
    unit = (levels[0, 0].double().clamp(-1000, 1000) + 1000) / 2000
    assert (target - unit).abs().max() < 6e-8  # rounding to float32
    draws = torch.Generator().manual_seed(2)
    deform.generator.set_state(draws.get_state())
    # the points come after the draws of the flips, which take a float and 31 bits each
    deform._draw_flips(50, (2201,))
    points = torch.rand(50, 2, 2, generator=deform.generator).double().numpy()
    for row, (first, second) in zip(deformed[:, 0].double().numpy(), points, strict=True):
        exact = bezier_map(unit.numpy(), (first.tolist(), second.tolist()))
        assert np.abs(row - exact).max() < 25 / 16384**2 + 6e-8 + 1e-8


def test_bad_values_and_wide_ranges() -> None:
    floats = torch.tensor([[[float("nan"), -float("inf"), float("inf"), 0.25]]])
    _, target = BatchGenesisDeform("nonlinear", flip_prob=0)(floats)
    assert target.flatten().tolist() == [0, 0, 1, 0.25]
    wide = torch.tensor([[[-(10**6), 0, 35_000, 70_000, 10**6]]], dtype=torch.int32)
    _, target = BatchGenesisDeform("nonlinear", flip_prob=0, intensity_range=(0, 70_000), output_range=(0, 1))(wide)
    assert torch.allclose(target.flatten(), torch.tensor([0, 0, 0.5, 1, 1]))


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_the_seed_decides_alone(device: str, backend: str) -> None:
    images = torch.rand(5, 1, 20, 24, 22, generator=generator()).to(device)
    deform = BatchGenesisDeform(seed=7, device=device, backend=backend)
    before = torch.get_rng_state()
    first = deform(images)
    torch.manual_seed(99)
    deform.generator.manual_seed(7)
    again = deform(images)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(deform(images)[0], first[0])
    assert len({tuple(sample.flatten().tolist()) for sample in first[0].cpu()}) == 5  # each sample has its own draws
    torch.set_rng_state(before)


def test_groups_bound_the_work_and_keep_the_law(monkeypatch: pytest.MonkeyPatch, check_shuffle_law: Any) -> None:
    monkeypatch.setattr(batch_deform, "_GROUP_VOXELS", 100)
    deform = BatchGenesisDeform(
        "shuffle", shuffle_prob=1, num_blocks=2, max_block_fraction=1.0, intensity_range=(0, 2), flip_prob=0
    )
    calls: list[int] = []
    original = batch_deform.draw_shuffle_sources
    monkeypatch.setattr(
        batch_deform,
        "draw_shuffle_sources",
        lambda draws, size, *rest: (calls.append(size), original(draws, size, *rest))[1],
    )
    deformed, _ = deform(index_batch(3000, (3,), torch.int16))
    # three voxels a sample, and two blocks of up to three: 6 listed; 100 // 6 = 16 samples at once
    assert calls == [16] * (3000 // 16) + [3000 % 16]
    check_shuffle_law(2, deformed[:, 0].round().int().numpy())


def test_the_list_of_blocks_is_long_enough_and_its_end_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((64, 64, 32), (128, 128, 128), (40, 50)):
        sides = max_block_sides(shape)
        expected = 10_000 * np.prod([(side + 1) / 2 for side in sides])
        assert expected < listed_voxels(sides, 10_000) < 1.15 * expected
    assert listed_voxels((5, 5), 3) == 75  # the largest possible
    # if it were too short, the last blocks would be missing; nothing else would happen
    monkeypatch.setattr(batch_shuffle, "listed_voxels", lambda sides, num_blocks: 40)
    sources = draw_shuffle_sources(generator(), 200, (30, 30), (3, 3), 50).numpy()
    here = np.indices((30, 30)).reshape(2, -1)
    for row in sources:
        assert np.abs(np.stack(np.unravel_index(row, (30, 30))) - here).max() <= 2
        assert 0 < np.count_nonzero(row != np.arange(900)) <= 40
        # the one block that the end cuts keeps its permutation to itself as well: no more than it lists move
        assert max(Counter(row.tolist()).values()) <= 40


class Recorder(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


# what reads a value back to the host, makes a shape depend on values, or copies from the host
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor", "index_put", "unique", "lift_fresh",
         "scalar_tensor", "equal.default", "is_nonzero", "repeat_interleave", "bincount")  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_nothing_makes_a_device_wait(dtype: torch.dtype) -> None:
    counts = set()
    for size, shape, blocks in ((2, (20, 30, 40), 5), (4, (20, 30, 40), 10_000), (2, (64, 64, 32), 10_000)):
        images = torch.zeros((size, 1, *shape), dtype=dtype)
        deform = BatchGenesisDeform(num_blocks=blocks, **HOUNSFIELD)
        with Recorder() as recorder:
            deform(images)
        assert [name for name in recorder.operations if any(word in name for word in WAITS)] == []
        counts.add(len(recorder.operations))
        # fake tensors have no values: whatever needed one would raise
        with FakeTensorMode():
            deformed, _ = deform(torch.zeros((size, 1, *shape), dtype=dtype))
        assert deformed.shape == images.shape
    # no loop over samples, blocks or voxels
    assert len(counts) == 1


@needs_cuda
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_a_cuda_graph_records_it(dtype: torch.dtype, backend: str) -> None:
    images = torch.randint(-1000, 1001, (6, 1, 64, 64, 32), device="cuda").to(dtype)
    deform = BatchGenesisDeform(seed=1, device="cuda", backend=backend, **HOUNSFIELD)
    deform(images)  # kernels are compiled at their first use
    deform.generator.manual_seed(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = [result.clone() for result in deform(images)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    deform.generator.manual_seed(1)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(deform.generator)
    with torch.cuda.graph(graph):
        recorded = deform(images)
    deform.generator.manual_seed(1)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(recorded, expected, strict=True))
    graph.replay()
    assert not torch.equal(recorded[0], expected[0])


def test_loader_transform_is_the_batch_of_one() -> None:
    image = torch.randint(-1100, 1101, (2, 20, 20, 20), dtype=torch.int16)
    twin = RandGenesisDeformOnDeviced(["a", "b"], ["ta", "tb"], num_blocks=100, **HOUNSFIELD).set_random_state(3)
    result = twin({"a": image, "b": image, "id": 4})
    deform = BatchGenesisDeform(num_blocks=100, seed=twin.seed, **HOUNSFIELD)
    deformed, target = deform(image.unsqueeze(0))
    for key, expected in (("a", deformed), ("b", deformed), ("ta", target), ("tb", target)):
        assert torch.equal(result[key], expected[0])
    assert result["id"] == 4
    again = twin.set_random_state(3)({"a": image, "b": image})
    assert torch.equal(again["a"], result["a"])
    assert not torch.equal(twin({"a": image, "b": image})["a"], result["a"])


@pytest.mark.parametrize("arguments", [{}, {"mask_prob": 1.0, "mask_patch": 4}])
@pytest.mark.parametrize("seed", range(4))
def test_images_of_other_channels_are_deformed_at_the_same_places(seed: int, arguments: dict[str, Any]) -> None:
    """CT and PET of one patient, say: the voxels that are mapped, shuffled, painted and masked are the same."""
    one, two = torch.zeros(1, 20, 24, 28), torch.rand(3, 20, 24, 28)
    kinds = []
    for item in ({"a": one, "b": two}, {"b": two, "a": one}):
        deform = RandGenesisDeformOnDeviced(list(item), ["ta", "tb"], kinds_key="kinds", num_blocks=50, **arguments)
        kinds.append(deform.set_random_state(seed)(item)["kinds"])  # of the last key
    assert torch.equal(*kinds)


def test_keys_that_cannot_share_a_deformation_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target_keys: expected one key for each of .*'a', 'b'"):
        RandGenesisDeformOnDeviced(["a", "b"])
    images = {"a": torch.zeros(1, 20, 20, 20), "b": torch.zeros(1, 20, 20, 21)}
    with pytest.raises(ValueError, match=r"b: expected the spatial shape of a, \(20, 20, 20\), found \(20, 20, 21\)"):
        RandGenesisDeformOnDeviced(["a", "b"], ["ta", "tb"])(images)


def test_a_seed_for_each_item() -> None:
    transform = RandDeformSeedd("s").set_random_state(0)
    seeds = [int(transform({"image": 1})["s"]) for _ in range(1000)]
    assert len(set(seeds)) == 1000
    # the 63 bits are fair: the mean of 1000 uniform numbers, five deviations
    assert abs(np.mean(seeds) / 2**63 - 0.5) < 5 * np.sqrt(1 / 12 / 1000)
    assert max(seeds) < 2**63 and min(seeds) >= 0
    assert transform.set_random_state(0)({})["s"] == seeds[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "colour"}, "variant: expected one of .* found 'colour'"),
        ({"flip_prob": 1.1}, "flip_prob: expected a probability"),
        ({"num_blocks": 0.5}, "num_blocks: expected a whole number"),
        ({"max_block_fraction": 1.5}, "max_block_fraction: expected a share in"),
        ({"intensity_range": (1, 0)}, "intensity_range: expected two finite numbers"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BatchGenesisDeform(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shape", "words"),
    [
        ({}, (2, 64), r"batch: expected \(B, C, x\[, y\[, z\]\]\) .* found shape \(2, 64\)"),
        ({}, (2, 1, 0, 5), "nothing empty"),
        ({"flip_axes": (0, 2)}, (1, 1, 20, 20), r"flip_axes: expected spatial axes in 0..1, found \(0, 2\)"),
        ({"variant": "out_painting"}, (1, 1, 64, 13), "out-painting expected axes that hold boxes"),
        ({"variant": "in_painting"}, (1, 1, 64, 7), "in-painting expected axes that hold boxes"),
        ({}, (1, 1, 64, 13), "out-painting expected axes that hold boxes"),
        ({"backend": "triton"}, (1, 1, 192, 192, 192), "expected blocks of shuffling of at most 4096 voxels"),
    ],
)
def test_wrong_batches_are_named(arguments: dict[str, Any], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BatchGenesisDeform(**arguments)(torch.zeros(shape))


def test_the_deformation_of_a_device_is_made_once() -> None:
    transform = RandGenesisDeformOnDeviced("image", "label", num_blocks=10, **HOUNSFIELD).set_random_state(0)
    made = transform.deform
    for _ in range(2):
        transform({"image": torch.zeros(1, 20, 20, dtype=torch.int16)})
    assert transform.deform is made


@pytest.mark.parametrize(
    ("cuda", "block", "triton", "hip", "capability", "expected"),
    [
        (True, 4096, True, None, (7, 0), True),
        (True, 1, True, None, (9, 0), True),
        (False, 4096, True, None, (7, 0), False),
        (True, 4097, True, None, (7, 0), False),
        (True, 4096, False, None, (7, 0), False),
        (True, 4096, True, "6.4", (7, 0), False),
        (True, 4096, True, None, (6, 1), False),
    ],
)
def test_kernels_work_on_a_gpu_that_has_them_and_for_blocks_that_fit(
    cuda: bool,
    block: int,
    triton: bool,
    hip: str | None,
    capability: tuple[int, int],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that is described here, for it needs no GPU to be asked."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    batch: Any = SimpleNamespace(is_cuda=cuda, device="cuda:0")
    assert BatchGenesisDeform()._by_kernels(batch, (block, 1, 1)) == expected
    assert BatchGenesisDeform(backend="triton")._by_kernels(batch, (block, 1, 1))
    assert not BatchGenesisDeform(backend="torch")._by_kernels(batch, (block, 1, 1))


def test_small_images_are_fine_without_large_boxes() -> None:
    deform = BatchGenesisDeform("in_painting", paint_prob=1.0)
    for _ in range(20):
        assert deform(torch.zeros(50, 1, 8, 64))[0].any()
    tiny = torch.rand(30, 1, 1, 5)
    deformed, target = BatchGenesisDeform("shuffle", shuffle_prob=1.0)(tiny)
    assert torch.equal(deformed, target)  # blocks of side 1 move nothing
