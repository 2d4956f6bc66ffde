# SPDX-License-Identifier: Apache-2.0
"""Comparison with the measured distributions, for every implementation of a deformation."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NdArray = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def reference(shared: Path) -> dict[str, Any]:
    """The measured distributions."""
    return json.loads((shared / "reference" / "transform_reference.json").read_text())


def law_on_three_voxels(blocks: int) -> dict[tuple[int, ...], float]:
    """Probability of each outcome for an image of three voxels and full-sized blocks, by enumeration."""
    single = []
    for side in (1, 2, 3):
        for corner in range(4 - side):
            permutations = list(itertools.permutations(range(corner, corner + side)))
            single += [(corner, p, 1 / 3 / (4 - side) / len(permutations)) for p in permutations]
    law: Counter[tuple[int, ...]] = Counter()
    for chosen in itertools.product(single, repeat=blocks):
        image, weight = [0, 1, 2], 1.0
        for corner, permutation, probability in chosen:
            image[corner : corner + len(permutation)] = (
                permutation  # reads the undeformed image: its voxels are 0, 1, 2
            )
            weight *= probability
        law[tuple(image)] += weight
    return dict(law)


@pytest.fixture(scope="session")
def check_shuffle_law() -> Callable[[int, Iterable[NdArray]], None]:
    """Compares shuffled index images of three voxels, blocks as large as the image, with their exact law."""

    def check(blocks: int, outcomes: Iterable[NdArray]) -> None:
        law = law_on_three_voxels(blocks)
        assert sum(law.values()) == pytest.approx(1.0)
        seen = Counter(tuple(outcome.tolist()) for outcome in outcomes)
        runs = sum(seen.values())
        assert set(seen) <= set(law)
        # Pearson's statistic has mean k-1 and variance close to 2(k-1); six deviations and a little for its right tail
        chi_square = sum((seen[outcome] - runs * p) ** 2 / (runs * p) for outcome, p in law.items())
        freedom = len(law) - 1
        assert chi_square < freedom + 6 * np.sqrt(2 * freedom) + 10

    return check


def displacement_statistics(shuffled: NdArray, shape: tuple[int, ...]) -> NdArray:
    """Changed share, distinct share, changed share of two planes, then for each axis the shares of |displacement|."""
    voxels = shuffled.size
    source = shuffled.reshape(shape)
    places = np.arange(voxels).reshape(shape)
    changed = source != places
    row = [changed.mean(), np.count_nonzero(np.bincount(source.ravel(), minlength=voxels)) / voxels]
    row += [changed[0].mean(), changed[shape[0] // 2].mean()]
    for axis, (here, there) in enumerate(
        zip(np.unravel_index(places, shape), np.unravel_index(source, shape), strict=True)
    ):
        moved = np.abs(there - here).ravel()
        row += (np.bincount(moved, minlength=shape[axis] // 10)[: shape[axis] // 10] / voxels).tolist()
    return np.array(row)


@pytest.fixture(scope="session")
def check_displacements(reference: dict[str, Any]) -> Callable[[int, int, Callable[[NdArray, int], NdArray]], None]:
    """Compares ``runs`` calls of ``shuffle(image, run)`` with the reference of that number."""

    def check(number: int, runs: int, shuffle: Callable[[NdArray, int], NdArray]) -> None:
        entry = reference["local_pixel_shuffling"][number]
        shape = tuple(entry["shape"])
        # each voxel holds its own flat index, so that a shuffled image tells the source of each
        image = np.arange(np.prod(shape), dtype=np.int32).reshape((1, *shape))
        ours = np.array([displacement_statistics(shuffle(image, run), shape) for run in range(runs)])
        names = ["changed_fraction_mean", "distinct_source_fraction_mean"]
        names += ["changed_fraction_first_plane", "changed_fraction_middle_plane"]
        theirs = np.array(
            [entry[name] for name in names] + [f for axis in entry["abs_displacement_frequency"] for f in axis]
        )
        # Difference of two means: s sqrt(1/n + 1/m), s estimated from our few runs (relative error about 1/sqrt(2n),
        # under a third), about 25 comparisons a case: 6 s leaves room for both. The reference is rounded to 5e-7.
        bound = 6 * ours.std(axis=0, ddof=1) * np.sqrt(1 / runs + 1 / entry["runs"]) + 5e-7
        assert np.all(np.abs(ours.mean(axis=0) - theirs) < bound)
        for column, name in enumerate(("changed_fraction_std", "distinct_source_fraction_std")):
            # a standard deviation of n runs has the relative error 1/sqrt(2n)
            relative = 5 * np.sqrt(1 / (2 * runs) + 1 / (2 * entry["runs"]))
            assert abs(ours[:, column].std(ddof=1) / entry[name] - 1) < relative

    return check


@pytest.fixture(scope="session")
def check_curves(reference: dict[str, Any]) -> Callable[[NdArray], None]:
    """Compares curves (runs, values at the grid) with the reference."""

    def check(curves: NdArray) -> None:
        entry = reference["nonlinear"]
        runs = len(curves)
        falls = curves[:, 0] > 0.5
        share = entry["decreasing_fraction"]
        # shares of n and m runs: sqrt(p(1-p)(1/n + 1/m)); five deviations
        assert abs(falls.mean() - share) < 5 * np.sqrt(0.25 * (1 / runs + 1 / entry["runs"]))
        for name, ours, theirs_runs in (
            ("increasing", curves[~falls], entry["runs"] * (1 - share)),
            ("decreasing", curves[falls], entry["runs"] * share),
        ):
            weight = 1 / len(ours) + 1 / theirs_runs
            # five deviations of a difference of means, plus the error of the original's own curve and rounding, 1e-5
            bound = 5 * ours.std(axis=0, ddof=1) * np.sqrt(weight) + 2e-5
            assert np.all(np.abs(ours.mean(axis=0) - entry[f"{name}_mean"]) < bound)
            for q, values in entry[f"{name}_quantiles"].items():
                # inner grid points have no atoms: the share of ours below their quantile is q within five deviations
                below = (ours <= np.array(values) + 1e-5)[:, 1:-1].mean(axis=0)
                assert np.all(np.abs(below - float(q)) < 5 * np.sqrt(float(q) * (1 - float(q)) * weight) + 2e-3)

    return check


@pytest.fixture(scope="session")
def check_noise(reference: dict[str, Any]) -> Callable[[str, int, int, Callable[[NdArray], NdArray]], None]:
    """Compares ``runs`` calls of ``paint(image)`` with the reference of that kind and number."""

    def check(kind: str, number: int, runs: int, paint: Callable[[NdArray], NdArray]) -> None:
        entry = reference[kind][number]
        shape = tuple(entry["shape"])
        image = np.zeros((1, *shape), np.float32)  # noise is 0 itself once in 2**24 voxels
        noisy, values = np.empty(runs), np.empty(runs)
        planes: list[list[NdArray]] = [[], [], []]
        for run in range(runs):
            painted = paint(image)[0]
            noise = painted != 0
            noisy[run] = noise.mean()
            values[run] = painted.sum(dtype=np.float64)
            for axis in range(3):
                planes[axis].append(noise.mean(axis=tuple({0, 1, 2} - {axis})))
        weight = 1 / runs + 1 / entry["runs"]
        # difference of two means of n and m runs: s sqrt(1/n + 1/m), five deviations
        assert abs(noisy.mean() - entry["noise_fraction_mean"]) < 5 * entry["noise_fraction_std"] * np.sqrt(weight)
        # The variance of a sample variance is (kurtosis - 1) s^4 / n. The kurtosis is under 12 (the few runs with one
        # box or none), so s is off by at most sqrt(11/4 (1/n + 1/m)) of itself, times five.
        assert abs(noisy.std(ddof=1) / entry["noise_fraction_std"] - 1) < 5 * np.sqrt(11 / 4 * weight)
        untouched = entry["untouched_runs_fraction"]
        rate = 0.05 if kind == "in_painting" else 0.0
        assert abs((noisy == 0).mean() - untouched) <= 5 * np.sqrt(rate * (1 - rate) * weight)
        for q, value in entry["noise_fraction_quantiles"].items():
            # the share of our runs at or below their q-quantile is q within five binomial deviations; the value may be
            # an atom (no noise at all), so the share below it counts too
            bound = 5 * np.sqrt(float(q) * (1 - float(q)) * weight)
            assert (noisy < value - 1e-9).mean() < float(q) + bound
            assert (noisy <= value + 1e-9).mean() > float(q) - bound
        # uniform noise has variance 1/12; the reference's own mean has its error too
        voxels = noisy.sum() * image.size
        ours = values.sum() / voxels
        bound = 5 * np.sqrt((1 / voxels + 1 / (entry["noise_fraction_mean"] * image.size * entry["runs"])) / 12)
        assert abs(ours - entry["noise_value_mean"]) < bound
        for axis in range(3):
            sample = np.array(planes[axis])
            theirs = np.array(entry["noise_frequency_by_plane"][axis])
            # five deviations of a difference of means; about 200 planes, and planes next to the border are rarely hit,
            # so their s is uncertain: one more; rounding 5e-6
            bound = 6 * sample.std(axis=0, ddof=1) * np.sqrt(weight) + 1e-5
            assert np.all(np.abs(sample.mean(axis=0) - theirs) < bound)

    return check
