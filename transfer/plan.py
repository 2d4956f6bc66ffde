# SPDX-License-Identifier: Apache-2.0
"""The runs of a study, and which of them can be done next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .study import Labels, RateKind, Study
from .subsets import digest

Stage = Literal["tune", "main"]
Row = Mapping[str, Any]
"""What is kept of a finished run, see :mod:`models_genesis.transfer.results`."""


@dataclass(frozen=True)
class Run:
    """One training with its evaluation.

    Attributes:
        stage: ``"tune"`` helps to choose a learning rate, ``"main"`` counts.
        arm: name of the arm.
        labels: number of labelled patients.
        fold: the fold.
        seed: the seed.
        rate: the learning rate.
    """

    stage: Stage
    arm: str
    labels: Labels
    fold: int
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Name of the run and of its folder.

        Example:
            >>> Run("main", "scratch", 5, 0, 1, 0.003).name
            'main-scratch-n5-f0-s1-r0.003'
        """
        return f"{self.stage}-{self.arm}-n{self.labels}-f{self.fold}-s{self.seed}-r{self.rate:g}"

    def fields(self) -> dict[str, Any]:
        """The attributes as a dictionary."""
        return asdict(self)


def tuning_runs(study: Study, arm: str, labels: Labels) -> list[Run]:
    """List the runs that choose an arm's learning rate for a label count; none where the grid has one rate.

    Args:
        study: the study.
        arm: the arm.
        labels: the label count.

    Returns:
        The runs.
    """
    if len(study.all_rates) < 2:
        return []
    counts: Iterable[Any] = (labels,) if study.rates.labels == ("each",) else study.rates.labels
    return [
        Run("tune", arm, count, 0, seed, rate)
        for count in counts
        for seed in study.rates.seeds
        for rate in study.all_rates
    ]


@dataclass(frozen=True)
class Choice:
    """The learning rate that an arm takes for a label count.

    Attributes:
        rate: the rate.
        scores: mean score of each rate that could be measured.
        at_edge: whether the best is the smallest or the largest of the grid, so that a better one may lie outside.
    """

    rate: float
    scores: Mapping[float, float]
    at_edge: bool


def choose_rate(study: Study, arm: str, labels: Labels, rows: Mapping[str, Row]) -> Choice | None:
    """Choose the learning rate with the highest mean score; of equal ones that nearest to the common rate.

    A rate of which a run failed is not chosen.

    Args:
        study: the study.
        arm: the arm.
        labels: the label count.
        rows: finished runs by name.

    Returns:
        The choice; None while runs are missing.
    """
    runs = tuning_runs(study, arm, labels)
    if not runs:
        return Choice(study.rates.common, {}, False)
    if any(run.name not in rows for run in runs):
        return None
    scores: dict[float, float] = {}
    for rate in study.all_rates:
        found = [rows[run.name] for run in runs if run.rate == rate]
        if all(row["status"] == "done" for row in found):
            scores[rate] = float(np.mean([row["score"] for row in found]))
    if not scores:
        return Choice(study.rates.common, {}, False)
    best = max(scores, key=lambda rate: (scores[rate], -abs(np.log(rate / study.rates.common)), -rate))
    return Choice(best, scores, len(study.all_rates) > 2 and best in (study.all_rates[0], study.all_rates[-1]))


def rate_of(study: Study, kind: RateKind, arm: str, labels: Labels, rows: Mapping[str, Row]) -> float | None:
    """Give the rate of an arm, None while its best one is not known."""
    if kind == "common":
        return study.rates.common
    choice = choose_rate(study, arm, labels, rows)
    return None if choice is None else choice.rate


def main_runs(study: Study, arm: str, labels: Labels, rate: float) -> list[Run]:
    """List the runs of an arm at a label count and a rate, seed by seed and fold by fold."""
    return [Run("main", arm, labels, fold, seed, rate) for seed in study.seeds for fold in range(study.folds)]


@dataclass(frozen=True)
class Todo:
    """What is left of a study.

    Attributes:
        runs: runs that can be done now, the most useful first.
        total: number of all runs, as far as they are known: one of two equal rates is done once.
        waiting: number of runs whose learning rate is not known yet.
    """

    runs: list[Run]
    total: int
    waiting: int


def to_do(study: Study, rows: Mapping[str, Row], arms: Sequence[str] | None = None) -> Todo:
    """Tell what is left.

    Args:
        study: the study.
        rows: finished runs by name, failed ones among them.
        arms: only these arms; None for all.

    Returns:
        Runs that choose learning rates first, then those of the primary contrast, then all others, each seed by seed:
        a study that ends early has its answer from some seeds, rather than part of everything.
    """
    known, waiting = set(), 0
    for arm in study.arms if arms is None else arms:
        for labels in study.labels:
            known.update(tuning_runs(study, arm, labels))
            known.update(main_runs(study, arm, labels, study.rates.common))
            best = rate_of(study, "best", arm, labels, rows)
            if best is None:
                waiting += len(study.seeds) * study.folds
            else:
                known.update(main_runs(study, arm, labels, best))
    names = list(study.arms)
    first = _primary_runs(study, rows)
    left = [run for run in known if run.name not in rows]
    left.sort(
        key=lambda run: (
            run.stage != "tune",
            run not in first,
            run.seed if run.stage == "main" else 0,
            run.fold,
            study.labels.index(run.labels),
            run.rate,
            names.index(run.arm),
        )
    )
    return Todo(left, len(known) + waiting, waiting)


def _primary_runs(study: Study, rows: Mapping[str, Row]) -> set[Run]:
    """List the runs of the primary contrast, as far as its rates are known."""
    primary, runs = study.primary, set()
    for arm in (primary.arm, primary.against):
        for labels in primary.labels or study.labels:
            rate = rate_of(study, primary.rate, arm, labels, rows)
            runs.update([] if rate is None else main_runs(study, arm, labels, rate))
    return runs


def of_shard(runs: Sequence[Run], shard: tuple[int, int]) -> Iterator[Run]:
    """Pick the runs of a shard.

    Args:
        runs: the runs.
        shard: its number from 1, and the number of shards.

    Yields:
        The runs whose name's hash falls to the shard, so that each shard knows its own whatever is done already.
    """
    number, count = shard
    for run in runs:
        if int(digest("shard", run.name)[:8], 16) % count == number - 1:
            yield run
