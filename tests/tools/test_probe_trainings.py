# SPDX-License-Identifier: Apache-2.0
"""``tools/probe_trainings.py``: areas as sklearn has them, and intervals for other patients and other trainings."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("all_1", "all_2", "one_1", "one_2", "other_1")


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("probe_trainings")


@pytest.fixture
def cases(tmp_path):
    """Two folds of six patients with three cases each, two seeds, ties among the scores."""
    rng = np.random.default_rng(3)
    rows = [
        {"weights": name, "labels": "all", "case": f"c{number}", "patient": f"p{number // 3}", "fold": number // 18,
         "class": int(number % 3 == 0), "seed 0": round(rng.normal(), 1), "seed 1": round(rng.normal(), 1)}
        for name in (*NAMES, "random, as all_1") for number in range(36)
    ]  # fmt: skip
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "cases.csv", rows


def test_areas_are_the_means_of_sklearns(tool, cases):
    path, rows = cases
    areas, draws = tool.areas_of(path, 400)
    assert tuple(areas) == NAMES
    for name in NAMES:
        parts = [
            roc_auc_score([row["class"] for row in own], [row[seed] for row in own])
            for fold in (0, 1) for seed in ("seed 0", "seed 1")
            for own in [[row for row in rows if row["weights"] == name and row["fold"] == fold]]
        ]  # fmt: skip
        assert areas[name] == pytest.approx(np.mean(parts))
        # the draws lie about the area: five standard errors of 400
        assert abs(draws[name].mean() - areas[name]) < 5 * draws[name].std() / 20 + 0.02


def test_both_variances_are_added_and_tasks_count_the_same(tool):
    areas = {"all_1": 0.80, "all_2": 0.84, "one_1": 0.70, "one_2": 0.72, "other_1": 0.90}
    tasks = {"all": ["all_1", "all_2"], "one": ["one_1", "one_2"], "other": ["other_1"]}
    spread, pairs = tool.spread_of_trainings(areas, tasks)
    assert pairs == 2 and spread == pytest.approx(np.sqrt((0.04**2 + 0.02**2) / 2 / 2))
    draws = {name: np.array([0.0, 1.0]) * (name == "other_1") for name in areas}
    found = tool.contrast(areas, draws, tasks, ["one", "other"], "all", spread, pairs)
    assert found["difference"] == pytest.approx((0.71 + 0.90) / 2 - 0.82)
    assert found["se_patients"] == pytest.approx(np.std([0, 0.5], ddof=1))
    assert found["se_trainings"] == pytest.approx(spread * np.sqrt((1 / 2 + 1) / 4 + 1 / 2))
    half = student.ppf(0.975, 2) * np.hypot(found["se_patients"], found["se_trainings"])
    assert (found["low"], found["high"]) == pytest.approx((found["difference"] - half, found["difference"] + half))
