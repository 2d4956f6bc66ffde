# SPDX-License-Identifier: Apache-2.0
"""The numbers of docs/scale.md are those that the benchmark computes, and it computes them rightly."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from models_genesis.networks import GenesisUNet

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "scale.md"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.scale")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_document_has_the_table_that_is_computed(scale: ModuleType) -> None:
    assert scale.table() in DOCUMENT.read_text(encoding="utf-8")


def test_the_document_names_every_assumption_with_its_value(scale: ModuleType) -> None:
    parts = DOCUMENT.read_text(encoding="utf-8").split("\n## ")
    (measured,) = [part for part in parts if part.startswith("Long lists, measured")]
    lines = [line for part in parts if part is not measured for line in part.splitlines()]
    rows = [cells(line) for line in lines if line.startswith("| `")]
    written = {row[0].strip("`"): row[1] for row in rows}
    values: dict[str, Any] = {**asdict(scale.Assumed()), **asdict(scale.Measured())}
    assert {name: text(value) for name, value in values.items()} == written


def text(value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def test_measured_figures_are_those_of_the_code_and_of_the_documents(scale: ModuleType) -> None:
    measured = scale.Measured()
    assert sum(parameter.numel() for parameter in GenesisUNet().parameters()) == measured.parameters
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for figure in ("| step | 4 | 6 | 23.2 | 259 |", "| store | 504 ", " 2.04 |", "0.549 of the bytes", "| 0.87 | 78.7"):
        assert figure in performance, figure
    assert "takes 0.4 s" in (ROOT / "docs" / "how-to" / "long-runs.md").read_text(encoding="utf-8")
    assert (measured.cubes_per_second, measured.step_seconds) == (259, 0.0232)
    assert 6 / measured.step_seconds == pytest.approx(measured.cubes_per_second, rel=0.01)


def test_a_plan_of_one_gpu_is_plain_arithmetic(scale: ModuleType) -> None:
    """100 scans: 3,200 cubes at 259 a second; 12 bytes a weight; nobody to wait for."""
    found = scale.plan(scale.Case(100, 1))
    assert found.efficiency == 1 and found.exchange_seconds == 0 and found.cubes == 3200
    assert found.epoch_seconds == pytest.approx(3200 / 259)
    assert found.gpu_hours == pytest.approx(100 * 3200 / 259 / 3600)
    assert found.raw_bytes == 100 * 512 * 512 * 300 * 2 and found.state_bytes == 12 * 19_073_665
    assert found.node_read_bytes == pytest.approx(259 * (262_144 * 2.04 + 40_000))
    epoch = 3200 / 259  # shorter than 30 minutes, so a state is written after each
    assert found.lost_share == pytest.approx(0.4 / epoch + (epoch / 2 + 300) / (50_700 * 3600))
    long = scale.plan(scale.Case(100_000, 1))
    assert long.epoch_seconds > 1800 and long.lost_share == pytest.approx(0.4 / 1800 + (900 + 300) / (50_700 * 3600))


def loss(interval: np.ndarray, save: float, mtbf: float) -> np.ndarray:
    """Time of a long run over its useful time, by Daly's model of failures, without restarts."""
    return mtbf * (np.exp((interval + save) / mtbf) - 1) / interval


@pytest.mark.parametrize(("save", "mtbf"), [(0.4, 3600.0), (60.0, 7200.0), (300.0, 3600.0)])
def test_the_interval_loses_least(scale: ModuleType, save: float, mtbf: float) -> None:
    best = scale.daly_interval(save, mtbf)
    intervals = np.linspace(0.05 * best, 5 * best, 20_000)
    least = loss(intervals, save, mtbf).min()
    assert loss(np.array([best]), save, mtbf)[0] <= 1.0005 * least
    assert scale.daly_interval(2 * mtbf, mtbf) == mtbf


def test_efficiency_falls_with_gpus_with_jitter_and_with_slow_networks(scale: ModuleType) -> None:
    measured, assumed = scale.Measured(), scale.Assumed()
    found = [scale.simulate_efficiency(gpus, measured, assumed) for gpus in (1, 2, 8, 64, 512)]
    assert found == sorted(found, reverse=True) and found[0] == 1 > found[1]
    # the mean of the larger of two normal numbers is 1/sqrt(pi) deviations above their own
    assert 1 / found[1] == pytest.approx(1 + assumed.jitter / math.sqrt(math.pi), abs=3 * 0.03 / math.sqrt(2000))
    steady = replace(assumed, jitter=0.0)
    assert scale.simulate_efficiency(64, measured, steady) == 1  # the exchange is hidden
    slow = replace(steady, node_bytes_per_second=assumed.node_bytes_per_second / 20)
    shown = scale.exchange_seconds(64, measured, slow) / measured.step_seconds - assumed.hidden_share
    assert scale.simulate_efficiency(64, measured, slow) == pytest.approx(1 / (1 + shown)) and shown > 1


def test_charts_are_drawn(scale: ModuleType, tmp_path: Path) -> None:
    scale.draw_efficiency(tmp_path / "efficiency.png")
    numbers = {key: {"median": 5.0} for key in ("cubes_per_second", "cubes_per_core_second")}
    machine = {"cores": 2, "load_1_min": 1.0}
    scale.draw_readers(tmp_path / "readers.png", {"machine": machine, "readers": {"1": numbers, "2": numbers}})
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("efficiency.png", "readers.png"))


def test_the_order_of_an_epoch_takes_the_memory_that_is_counted(scale: ModuleType) -> None:
    """Two int64 a cube: the numbers, and the permutation of them."""
    assert scale.Measured().order_bytes == 2 * torch.tensor(0).element_size()


@pytest.fixture(autouse=True)
def no_pictures_left() -> Iterator[None]:
    before = set((ROOT / "docs").glob("*.png"))
    yield
    assert set((ROOT / "docs").glob("*.png")) == before
