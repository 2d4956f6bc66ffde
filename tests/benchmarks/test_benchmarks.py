# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and their ratios are far enough above a regression."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


Python = Callable[..., subprocess.CompletedProcess[str]]
RunQuick = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run_quick(forked_python: Python, tmp_path: Path) -> RunQuick:
    """Run a benchmark with small sizes, on one thread; gives its results and what it printed."""

    def run(name: str, *options: str, python: Python = forked_python) -> tuple[dict[str, Any], str]:
        out = tmp_path / "results.json"
        line = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(out), *options]
        done = python(line, ROOT, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text()), done.stdout

    return run


def real_python(line: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command that forked processes are not for: the loader's workers end a moment after the benchmark."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def reference_code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.reference")


def test_deformations_are_many_times_faster_than_the_plain_ones(run_quick: RunQuick, tmp_path: Path) -> None:
    results, printed = run_quick("deformations", "--chart", str(tmp_path / "chart.png"))
    times = results["sizes"]["64x64x32"]["chain"]
    ratios = {name: times["reference"] / seconds for name, seconds in times.items()}
    # the targets are 40 and 5; a busy machine costs less than the rest
    assert ratios["numba int16"] > 15 and ratios["numba float32"] > 15
    assert ratios["numpy int16"] > 2 and ratios["numpy float32"] > 2
    parts = results["sizes"]["64x64x32"]["parts"]
    assert parts["shuffle"]["reference"] > 8 * parts["shuffle"]["numba"]
    assert parts["map"]["reference"] > 8 * parts["map"]["int16"]
    assert parts["out-painting"]["reference"] > 0.5 * parts["out-painting"]["numba"]
    assert "| numba int16" in printed and (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
    assert results["machine"]["cores"] >= 1 and "--quick" in results["machine"]["command"]


def test_the_loader_is_no_limit(run_quick: RunQuick) -> None:
    results, _ = run_quick("loader", "--steps", "2", python=real_python)
    assert results["extraction"]["times_faster_than_published_try"] > 1e4  # the target is 1,000
    cache = results["cache"]
    # two bytes a voxel, and starts of four bytes for at most all voxels
    assert 2 * cache["voxels"] < cache["bytes_per_scan"] < 6.1 * cache["voxels"]
    assert results["loader"]["per core"] > 20
    training = results["training"]
    fed = [rate for name, rate in training.items() if name != "step alone"]
    assert len(fed) == 3 and max(fed) > 0.5 * training["step alone"]


def test_the_network_benchmark_counts_and_profiles(run_quick: RunQuick) -> None:
    results, _ = run_quick("network", "--steps", "1")
    # two levels of 8 and 16 channels: 2 * 27 * inputs * outputs * voxels for each convolution, three times for training
    # but for the gradient of the input; see the table in the network's description
    voxels = 32 * 32 * 16
    products = [(1, 4, 1), (4, 8, 1), (8, 8, 8), (8, 16, 8), (24, 8, 1), (8, 8, 1)]
    forward = sum(2 * 27 * a * b * voxels / shrink for a, b, shrink in products)
    forward += 2 * 8 * 16 * 16 * voxels / 8 + 2 * 8 * voxels
    backward = 2 * forward - 2 * 27 * 1 * 4 * voxels
    assert results["gflop_per_cube"] == pytest.approx((forward + backward) / 1e9, rel=1e-6)
    assert {step["precision"].split(",")[0] for step in results["steps"]} <= {"float32", "bfloat16", "float16"}
    shares = [row[3] for row in results["profile"]]
    assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.001


def test_the_device_benchmark_says_what_it_did_not_run(run_quick: RunQuick) -> None:
    results, printed = run_quick("device")
    first, six = (row["peak_bytes"] for row in results["memory"])
    # two float32 results and the list of the blocks' voxels at least; six take no more than six times one
    assert 8 * 64 * 64 * 32 < first < six < 6.5 * first
    assert ("no CUDA device" in printed) == (not torch.cuda.is_available())
    assert (results["gpu"] is None) == (not torch.cuda.is_available())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_on_a_gpu_deforming_is_a_small_part_of_a_step(run_quick: RunQuick) -> None:
    results, _ = run_quick("device")
    assert all(row["percent_of_step"] < 100 for row in results["gpu"])


def test_the_plain_shuffle_is_the_specified_one(reference_code: ModuleType, shared: Path) -> None:
    measured = json.loads((shared / "reference" / "transform_reference.json").read_text())["local_pixel_shuffling"][0]
    R, runs = np.random.default_rng(0), 12
    image = np.arange(np.prod(measured["shape"])).reshape(measured["shape"])
    shuffled = [reference_code.shuffle(image, R) for _ in range(runs)]
    for name, shares in (
        ("changed_fraction", [(result != image).mean() for result in shuffled]),
        ("distinct_source_fraction", [len(np.unique(result)) / image.size for result in shuffled]),
    ):
        # difference of two means, five deviations
        bound = 5 * measured[f"{name}_std"] * np.sqrt(1 / runs + 1 / measured["runs"])
        assert abs(np.mean(shares) - measured[f"{name}_mean"]) < bound


def test_the_plain_map_and_painting_are_the_specified_ones(reference_code: ModuleType) -> None:
    image = np.random.RandomState(0).random_sample((20, 20, 20))
    straight = ((0.3, 0.3), (0.6, 0.6))
    assert np.abs(reference_code.map_intensity(image, straight, False) - image).max() < 1e-9
    assert np.abs(reference_code.map_intensity(image, straight, True) - (1 - image)).max() < 1e-9
    box = np.array([[[3, 8], [4, 12], [5, 15]]])
    inside = np.zeros(image.shape, bool)
    inside[3:8, 4:12, 5:15] = True
    for outside in (False, True):
        painted = reference_code.paint(image, box, outside, np.random.default_rng(1))
        assert np.array_equal(painted != image, inside != outside)


def test_a_whole_scan_is_measured_from_file_to_file(run_quick: RunQuick) -> None:
    results, printed = run_quick("whole_scan")
    assert results["shape"] == [96, 80, 48]
    assert results["windows"] == 2 * 2 * 2  # of 64 x 64 x 32 voxels, half overlapping
    for clock, share in results["share_of_windows"].items():
        assert 0 < share < 1
        assert share == pytest.approx(results["seconds_in_windows"][clock] / results["seconds"][clock])
    assert results["resident_gib_peak"] >= results["resident_gib_before"]
    assert "% in windows" in printed


def test_both_layouts_are_timed_in_training_and_inference(run_quick: RunQuick) -> None:
    results, printed = run_quick("layouts")
    assert [len(case["shape"]) for case in results["cases"]] == [5, 4]
    names = {f"{kind}, {layout}" for kind in ("training", "inference") for layout in ("contiguous", "channels last")}
    for case in results["cases"]:
        assert set(case["seconds_a_sample"]) == names
        assert all(seconds > 0 for seconds in case["seconds_a_sample"].values())
    assert "times faster" in printed


def test_the_store_reads_little_and_is_small(run_quick: RunQuick) -> None:
    results, printed = run_quick("store", python=real_python)
    # an eighth of the mapped cache's speed on real CT, in the same run
    speeds = {way: found["cubes_per_core_second"]["median"] for way, found in results["warm"].items()}
    assert speeds["store"] > speeds["mapped cache"] / 40
    for state in ("warm", "cold"):
        found = results[state]
        assert {"store", "mapped cache", "PersistentDataset"} <= set(found)
        # chunks of 32 x 32 x 32 of scans of 72 x 64 x 48 voxels: a cube of 32 x 32 x 16 meets at most 2 x 2 x 2
        assert found["store"]["requested_per_byte"]["highest"] < 8 * 2 * 0.9
        # PersistentDataset reads all 221,184 voxels for a cube of 16,384, 13.5 times as many
        assert found["PersistentDataset"]["requested_per_byte"]["median"] > 13
    assert results["size"]["share"] < 0.7 and results["size"]["share_of_starts"] < 1
    memory = results["memory"]
    assert memory["scans"] == 12 and len(memory["mib_after_each_epoch"]) == 2
    assert all(0 < size < 1536 for sizes in memory["mib_after_each_epoch"] for size in sizes)
    assert "memory of the loader's processes" in printed


def test_long_lists_are_measured_step_by_step(run_quick: RunQuick) -> None:
    results, printed = run_quick("lists", python=real_python)
    sizes, steps, workers = results["sizes"], results["steps"], results["workers"]
    assert (sizes["scans"], sizes["rows"], sizes["series"]) == (160, 3000, 12)
    assert len(steps) == 12 and all(costs["seconds"] > 0 for costs in steps.values())
    assert all(costs["peak_mib"] >= costs["kept_mib"] - 1 for costs in steps.values())
    assert {name.split(", ")[1] for name in workers} == {"fork", "spawn"}
    for name, costs in workers.items():
        # each scan once; of candidates 0.8 * 40 positives in the mean, and as many negatives
        assert costs["indices"] == 160 if "`CubeDataset`" in name else 30 < costs["indices"] < 80
        assert 0 < costs["pickled_mib"] < 1
    assert all(step in printed for step in (*steps, *workers))
