# SPDX-License-Identifier: Apache-2.0
"""The Bezier intensity map: closed forms, error against a brute-force root, the measured distribution."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from models_genesis.transforms import RandNonlinearIntensity, RandNonlinearIntensityd, bezier_curve, bezier_map, kernels
from models_genesis.transforms.nonlinear_intensity import NUM_NODES, IntensityMap

NdArray = np.ndarray[Any, Any]
BACKENDS = ("numba", "numpy")
DIAGONAL = ((0.3, 0.3), (0.6, 0.6))
STEEP = ((0.0, 1.0), (0.0, 1.0))  # x = t^3: a vertical tangent at 0
# ordinary curves, every corner of the unit squares, and near misses of a vertical tangent in the middle
CURVES = [((a, b), (c, d)) for a, b, c, d in np.random.RandomState(0).random_sample((60, 4)).tolist()]
CURVES += [((a, b), (c, d)) for a, b, c, d in itertools.product((0.0, 1.0), repeat=4)]
CURVES += [((1 - e, 0.5), (e, 0.4)) for e in (0.1, 0.01, 1e-3, 1e-4, 1e-6)]
CURVES += [((1 - e, 0.0), (0.6 * e, 1.0)) for e in (0.1, 0.01, 1e-3, 1e-4, 1e-6)]
CURVES += [((e, 1.0), (0.5, 0.2)) for e in (0.1, 0.01, 1e-3, 1e-4, 1e-6)]


def root_solved(values: NdArray, points: Any) -> NdArray:
    """The curve by bisection for the parameter, in Bernstein form."""
    (x1, y1), (x2, y2) = points
    low, high = np.zeros_like(values), np.ones_like(values)
    for _ in range(80):
        t = (low + high) / 2
        over = 3 * x1 * t * (1 - t) ** 2 + 3 * x2 * t**2 * (1 - t) + t**3 > values
        low, high = np.where(over, low, t), np.where(over, t, high)
    t = (low + high) / 2
    return 3 * y1 * t * (1 - t) ** 2 + 3 * y2 * t**2 * (1 - t) + t**3


def probing_values() -> NdArray:
    """float32 values in 0..1, many of them where tangents may be vertical."""
    draw = np.random.RandomState(1).random_sample
    middle = 0.5 + 0.5 * (2 * draw(800) - 1) ** 5
    values = [draw(2000), draw(800) ** 9, 1 - draw(800) ** 9, middle, np.arange(2001) / 2000, [0.0, 1.0]]
    return np.clip(np.concatenate(values).astype(np.float32), 0, 1)


def mapped(values: NdArray, points: Any, reverse: bool, span: tuple[float, float], backend: str) -> NdArray:
    return IntensityMap(points, reverse, span, span, backend)(values)


@pytest.mark.parametrize("nodes", [256, NUM_NODES])
def test_interpolation_between_nodes_keeps_its_bound(nodes: int) -> None:
    values = probing_values().astype(np.float64)
    worst = 0.0
    for points in CURVES:
        x, y = bezier_curve(points, nodes)
        assert np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0)
        assert x[0] == y[0] == 0 and x[-1] == y[-1] == 1 and len(x) == len(y) == nodes
        worst = max(worst, float(np.abs(np.interp(values, x, y) - root_solved(values, points)).max()))
    assert worst < 25 / nodes**2  # derived in _node_parameters
    assert worst > 1 / nodes**2  # the values do probe the hard places


def test_the_newton_step_never_leaves_its_two_nodes() -> None:
    values = np.sort(probing_values()).astype(np.float64)
    for points in CURVES:
        exact = root_solved(values, points)
        (x1, y1), (x2, y2) = points
        assert np.abs(kernels.tabulate(x1, y1, x2, y2, values, NUM_NODES)[0] - exact).max() < 6e-6
        assert np.abs(bezier_map(values, points) - exact).max() < 6e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_float_map_is_within_1e_5_of_the_root(backend: str, reverse: bool) -> None:
    values = probing_values()
    for points in CURVES:
        exact = root_solved(values.astype(np.float64), points)
        exact = 1 - exact if reverse else exact
        # the derived bounds: 6e-6 of the nodes + float32 rounding, or 8e-6 + rounding where a bucket is one line
        assert np.abs(mapped(values, points, reverse, (0.0, 1.0), backend) - exact).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_integer_table_is_exact(backend: str) -> None:
    levels = np.arange(-1000, 1001, dtype=np.int16)
    unit = (levels.astype(np.float64) + 1000) / 2000
    for points in CURVES:
        exact = root_solved(unit, points)
        table = IntensityMap(points, False, (-1000.0, 1000.0), (0.0, 1.0), backend)(levels)
        error = np.abs(table - exact)
        # float32 rounds to 6e-8; a level that meets a vertical tangent in the middle (|x1 - 1|, |x2| tiny) only keeps
        # the nodes' bound
        assert np.all(error < (2e-7 if points in CURVES[:60] else 6e-6))
        assert np.median(error) < 1e-7
        as_float = IntensityMap(points, False, (-1000.0, 1000.0), (0.0, 1.0), backend)(levels.astype(np.float32))
        assert np.abs(as_float - table).max() < 1e-5
        assert np.abs(bezier_map(unit, points) - exact).max() < (1e-7 if points in CURVES[:60] else 6e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.uint16, np.float32, np.float64])
def test_diagonal_points_give_the_identity(backend: str, dtype: Any) -> None:
    image = np.arange(0, 101, dtype=dtype)
    result = mapped(image, DIAGONAL, False, (0.0, 100.0), backend)
    assert result.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.abs(result - image).max() < 1e-5 * 100
    assert np.abs(mapped(image, DIAGONAL, True, (0.0, 100.0), backend) - (100 - image.astype(float))).max() < 1e-5 * 100


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("points", [DIAGONAL, STEEP, ((0.9, 0.1), (0.05, 0.7))])
def test_ends_stay_values_outside_are_clipped_and_the_map_is_monotone(backend: str, points: Any) -> None:
    image = np.array([-np.inf, -5.0, -2.0, 6.0, 9.0, np.inf, np.nan], np.float32)
    assert mapped(image, points, False, (-2.0, 6.0), backend).tolist() == [-2, -2, -2, 6, 6, 6, -2]
    assert mapped(image, points, True, (-2.0, 6.0), backend).tolist() == [6, 6, 6, -2, -2, -2, 6]
    ramp = np.linspace(-2, 6, 5001, dtype=np.float64)
    # two neighbouring pieces may disagree by twice their error
    assert np.diff(mapped(ramp, points, False, (-2.0, 6.0), backend)).min() > -2e-5 * 8
    assert np.diff(mapped(ramp, points, True, (-2.0, 6.0), backend)).max() < 2e-5 * 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_range_between_whole_numbers(backend: str) -> None:
    # integers with a range such as (0.5, 9.5): the table covers the whole numbers around it, clipped to it
    result = mapped(np.arange(12, dtype=np.int16), None, False, (0.5, 9.5), backend)
    assert np.allclose(result, np.clip(np.arange(12), 0.5, 9.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_curves_follow_the_reference(reference: dict[str, Any], check_curves: Any, backend: str) -> None:
    grid = np.array(reference["nonlinear"]["grid"], np.float32)
    transform = RandNonlinearIntensity(prob=1.0, backend=backend).set_random_state(11)
    check_curves(np.array([transform(grid[None])[0] for _ in range(4000)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rates(backend: str) -> None:
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None]
    transform = RandNonlinearIntensity(prob=0.7, reverse_prob=0.2, backend=backend).set_random_state(0)
    runs = 3000
    results = np.array([transform(ramp)[0] for _ in range(runs)])
    changed = np.abs(results - ramp).max(axis=1) > 1e-4  # a drawn curve is this close to the identity once in 1e6 runs
    # binomial, five deviations
    assert abs(changed.mean() - 0.7) < 5 * np.sqrt(0.7 * 0.3 / runs)
    assert abs((results[changed, 0] > 0.5).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / changed.sum())


def test_transform_reproduces_and_keeps_kinds() -> None:
    image = np.random.RandomState(0).randint(-1200, 1200, (2, 8, 9), np.int16)
    kept = image.copy()
    transform = RandNonlinearIntensity(prob=1.0, intensity_range=(-1000, 1000))
    first = transform.set_random_state(3)(image)
    assert first.dtype == np.float32 and np.array_equal(transform.set_random_state(3)(image), first)
    tensor = transform.set_random_state(3)(torch.from_numpy(image))
    assert type(tensor) is torch.Tensor and tensor.dtype == torch.float32 and np.array_equal(tensor.numpy(), first)
    meta = transform.set_random_state(3)(MetaTensor(image, meta={"name": "scan"}))
    assert isinstance(meta, MetaTensor) and meta.meta["name"] == "scan" and np.array_equal(meta.numpy(), first)
    assert np.array_equal(image, kept)
    whole = RandNonlinearIntensity(prob=1.0, intensity_range=(-1000, 1000), dtype=None).set_random_state(3)(image)
    assert whole.dtype == np.int16 and np.abs(whole - first).max() < 1
    twin = RandNonlinearIntensityd("image", prob=1.0, intensity_range=(-1000, 1000)).set_random_state(3)
    assert np.array_equal(twin({"image": image})["image"], first)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RandNonlinearIntensity(prob=-0.1), "prob: expected a probability"),
        (lambda: RandNonlinearIntensity(reverse_prob=2), "reverse_prob: expected a probability"),
        (lambda: RandNonlinearIntensity(intensity_range=(1, 1)), "intensity_range: expected two finite numbers"),
        (lambda: RandNonlinearIntensity(intensity_range=(0, np.inf)), "intensity_range: expected two finite numbers"),
        (lambda: bezier_curve([(0, 0), (1.1, 1)]), "control_points: expected two points"),
        (lambda: bezier_curve([(0, 0), (np.nan, 1)]), "control_points: expected two points"),
        (lambda: bezier_curve([(0, 0)]), "control_points: expected two points"),
        (lambda: bezier_curve(DIAGONAL, 3), "num_nodes: expected at least 8, found 3"),
    ],
)
def test_wrong_arguments_are_named(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
