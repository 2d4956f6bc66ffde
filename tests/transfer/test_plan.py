# SPDX-License-Identifier: Apache-2.0
"""In which order the runs of a study are done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models_genesis.transfer.plan import to_do
from models_genesis.transfer.study import load_study

ARMS = {
    "other": {"pretrained": "none"},
    "scratch": {"pretrained": "none"},
    "pretrained": {"pretrained": "weights.pt"},
}


def test_after_the_trials_comes_the_primary_contrast_seed_by_seed(make_study: Callable[..., Path]) -> None:
    primary = {"arm": "pretrained", "against": "scratch", "labels": [2], "rate": "best"}
    study = load_study(make_study(arms=ARMS, labels=[2, 4], seeds=[5, 3, 4], primary=primary))
    trials = to_do(study, {})
    assert {run.stage for run in trials.runs[:6]} == {"tune"} and trials.waiting == 18  # three arms, two rates
    done: dict[str, Any] = {
        run.name: {"status": "done", "score": 1.0 if run.rate == 0.01 else 0.0}
        for run in trials.runs
        if run.stage == "tune"
    }
    left = to_do(study, done)
    assert (left.waiting, len(left.runs)) == (0, 3 * 2 * 2 * 3)  # arms, label counts, rates, seeds
    assert [(run.seed, run.arm) for run in left.runs[:6]] == [
        (seed, arm) for seed in (3, 4, 5) for arm in ("scratch", "pretrained")
    ]
    assert {(run.labels, run.rate) for run in left.runs[:6]} == {(2, 0.01)}
    seeds = [run.seed for run in left.runs[6:]]
    assert seeds == sorted(seeds) and {run.arm for run in left.runs[6:]} == set(ARMS)


def test_a_primary_contrast_at_the_common_rate_comes_before_other_arms(make_study: Callable[..., Path]) -> None:
    primary = {"arm": "pretrained", "against": "scratch", "labels": [2, 4], "rate": "common"}
    study = load_study(make_study(arms=ARMS, labels=[2, 4], seeds=[0, 1], primary=primary))
    runs = [run for run in to_do(study, {}).runs if run.stage == "main"]
    first = runs[:8]  # two arms, two label counts, two seeds
    assert {run.arm for run in first} == {"pretrained", "scratch"} and {run.rate for run in first} == {0.001}
    assert {run.arm for run in runs[8:]} == {"other"}
