# SPDX-License-Identifier: Apache-2.0
"""What a study found, from its finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .contrast import Scores, auc_samples, interval_of
from .plan import Row, choose_rate, main_runs, rate_of, to_do
from .results import Results, failures
from .statistics import (
    Interval,
    degrees_of_freedom,
    holm,
    labels_needed,
    sign_flip_test,
    smallest_difference,
    spread_ratio,
    two_level_bootstrap,
)
from .study import Contrast, Labels, RateKind, Study


def rate_kinds(study: Study) -> tuple[RateKind, ...]:
    """Kinds of rates that a study tells apart: one where its grid has a single rate."""
    return ("best", "common") if len(study.all_rates) > 1 else (study.primary.rate,)


@dataclass(frozen=True)
class Cell:
    """An arm at a label count and a learning rate.

    Attributes:
        arm: the arm.
        labels: the label count.
        kind: whether the rate is the arm's best or the common one.
        rate: the rate, None while it is not known.
        patients: patients trained on, the mean over folds.
        scores: scores of the seeds of which all folds are done; None where there are none.
        expected: number of runs that the study asks for.
        done: number of those that are done.
        failed: names of those that failed.
    """

    arm: str
    labels: Labels
    kind: RateKind
    rate: float | None
    patients: float
    scores: Scores | None
    expected: int
    done: int
    failed: tuple[str, ...]


class Analysis:
    """Compute a study's tables.

    Args:
        study: the study.
        results: its results.
        num_resamples: permutations and bootstrap samples.
        seed: of both.

    Attributes:
        undefined: the largest number of bootstrap samples that an interval left out so far.
    """

    def __init__(self, study: Study, results: Results, num_resamples: int = 9999, seed: int = 0) -> None:
        self.study = study
        self.results = results
        self.rows: Mapping[str, Row] = results.rows()
        self.num_resamples = num_resamples
        self.seed = seed
        self.undefined = 0
        self._cells: dict[tuple[str, Labels, RateKind], Cell] = {}

    def cell(self, arm: str, labels: Labels, kind: RateKind) -> Cell:
        """Collect the scores of an arm at a label count."""
        key = arm, labels, kind
        if key not in self._cells:
            self._cells[key] = self._read(*key)
        return self._cells[key]

    def _read(self, arm: str, labels: Labels, kind: RateKind) -> Cell:
        rate = rate_of(self.study, kind, arm, labels, self.rows)
        expected = len(self.study.seeds) * self.study.folds
        if rate is None:
            return Cell(arm, labels, kind, None, math.nan, None, expected, 0, ())
        runs = [run for run in main_runs(self.study, arm, labels, rate) if run.name in self.rows]
        done = [run for run in runs if self.rows[run.name]["status"] == "done"]
        failed = tuple(run.name for run in runs if run not in done)
        by_seed = {
            seed: names
            for seed in self.study.seeds
            if len(names := [run.name for run in done if run.seed == seed]) == self.study.folds
        }
        patients = float(np.mean([self.rows[run.name]["patients"] for run in runs])) if runs else math.nan
        scores = self._scores(by_seed) if by_seed else None
        return Cell(arm, labels, kind, rate, patients, scores, expected, len(done), failed)

    def _scores(self, by_seed: Mapping[int, list[str]]) -> Scores:
        tables = []
        for names in by_seed.values():
            cases = [
                (case["case"], case["patient"], fold, int(case.get("label") or 0), float(case["score"]))
                for fold, name in enumerate(names)
                for case in self.results.cases(name)
            ]
            tables.append(sorted(cases))
        keys = [[case[:4] for case in table] for table in tables]
        if any(key != keys[0] for key in keys):
            first = next(iter(by_seed.values()))[0]
            raise ValueError(f"{self.results.folder}: expected the cases of {first} in the runs of all seeds")
        return Scores(
            seeds=tuple(by_seed),
            cases=tuple(key[0] for key in keys[0]),
            patients=tuple(key[1] for key in keys[0]),
            folds=np.array([key[2] for key in keys[0]]),
            labels=np.array([key[3] for key in keys[0]]) if self.study.score == "auc" else None,
            values=np.array([[case[4] for case in table] for table in tables]),
        )

    def interval(self, scores: Scores, against: Scores | None = None) -> Interval:
        """Give a score or a difference with its interval."""
        found = interval_of(scores, against, self.num_resamples, self.seed)
        self.undefined = max(self.undefined, found.undefined)
        return found

    @cached_property
    def score_table(self) -> list[dict[str, Any]]:
        """Mean score of each arm at each label count and kind of rate."""
        table = []
        for kind in rate_kinds(self.study):
            for arm in self.study.arms:
                for labels in self.study.labels:
                    cell = self.cell(arm, labels, kind)
                    entry: dict[str, Any] = {
                        "arm": arm, "labels": labels, "rate_kind": kind, "rate": cell.rate, "patients": cell.patients,
                        "score": None, "low": None, "high": None, "spread_over_seeds": None, "seeds": [],
                        "by_seed": [], "runs": cell.done, "runs_expected": cell.expected, "failed": list(cell.failed),
                    }  # fmt: skip
                    if cell.scores is not None:
                        found = self.interval(cell.scores)
                        by_seed = cell.scores.estimator().by_seed
                        spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
                        entry |= {"score": found.value, "low": found.low, "high": found.high}
                        entry |= {
                            "seeds": list(cell.scores.seeds),
                            "by_seed": by_seed.tolist(),
                            "spread_over_seeds": spread,
                        }
                    table.append(entry)
        return table

    @cached_property
    def contrast_table(self) -> list[dict[str, Any]]:
        """Difference of each contrast at each label count, for both kinds of rate, adjusted by Holm over counts."""
        table = []
        for contrast in self.study.contrasts:
            for kind in dict.fromkeys((contrast.rate, *rate_kinds(self.study))):
                primary = contrast == self.study.primary and kind == contrast.rate
                lines = [self._difference(contrast, labels, kind) for labels in contrast.labels or self.study.labels]
                tested = [line for line in lines if line["p"] is not None]
                for line, adjusted in zip(tested, holm([line["p"] for line in tested]), strict=True):
                    line["p_holm"] = adjusted
                table += [{"primary": primary, **line} for line in lines]
                rest = [labels for labels in self.study.labels if contrast.labels and labels not in contrast.labels]
                table += [{"primary": False, **self._difference(contrast, labels, kind)} for labels in rest]
        return table

    def pair(self, contrast: Contrast, labels: Labels, kind: RateKind) -> tuple[Scores, Scores] | None:
        """Give the scores of both arms, for the seeds that both have."""
        cells = [self.cell(arm, labels, kind).scores for arm in (contrast.arm, contrast.against)]
        if cells[0] is None or cells[1] is None:
            return None
        seeds = [seed for seed in cells[0].seeds if seed in cells[1].seeds]
        return (cells[0].of_seeds(seeds), cells[1].of_seeds(seeds)) if seeds else None

    def _difference(self, contrast: Contrast, labels: Labels, kind: RateKind) -> dict[str, Any]:
        cells = [self.cell(arm, labels, kind) for arm in (contrast.arm, contrast.against)]
        entry: dict[str, Any] = {
            "arm": contrast.arm, "against": contrast.against, "labels": labels, "rate_kind": kind,
            "rate": cells[0].rate, "rate_against": cells[1].rate, "seeds": 0, "patients": 0, "cases": 0,
            "difference": None, "low": None, "high": None, "p": None, "p_holm": None, "smallest_difference": None,
            "spread_ratio": None, "spread_ratio_low": None, "spread_ratio_high": None,
        }  # fmt: skip
        pair = self.pair(contrast, labels, kind)
        if pair is None:
            return entry
        estimator, found = pair[0].estimator(pair[1]), self.interval(*pair)
        df = degrees_of_freedom(estimator.by_patient, estimator.by_seed)
        entry |= {
            "seeds": len(pair[0].seeds),
            "patients": len(pair[0].names),
            "cases": len(pair[0].cases),
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "p": sign_flip_test(estimator.contributions, self.num_resamples, self.seed),
            "smallest_difference": None if found.se is None else smallest_difference(found.se, df),
        }
        ratio = spread_ratio(pair[0].estimator().by_seed, pair[1].estimator().by_seed)
        if ratio is not None:
            entry |= {"spread_ratio": ratio.value, "spread_ratio_low": ratio.low, "spread_ratio_high": ratio.high}
        return entry

    def label_table(self) -> list[dict[str, Any]]:
        """Labels that the arm in question saves: how many the other one needs to reach the same score."""
        contrast, kind = self.study.primary, self.study.primary.rate
        counts = [labels for labels in self.study.labels if self.pair(contrast, labels, kind) is not None]
        pairs = [pair for labels in counts if (pair := self.pair(contrast, labels, kind)) is not None]
        seeds = [seed for seed in self.study.seeds if all(seed in pair[0].seeds for pair in pairs)]
        if len(counts) < 2 or not seeds or len({pair[0].cases for pair in pairs}) > 1:
            return []
        patients = [self.cell(contrast.against, labels, kind).patients for labels in counts]
        curves = [[scores.of_seeds(seeds).estimator() for scores in pair] for pair in pairs]
        table = []
        for number, labels in enumerate(counts):

            def needed(seed_weights: Any, patient_weights: Any, number: int = number) -> Any:
                targets = curves[number][0](seed_weights, patient_weights)
                others = np.stack([curve[1](seed_weights, patient_weights) for curve in curves], axis=1)
                found = [labels_needed(patients, row, target) for row, target in zip(others, targets, strict=True)]
                defined = np.isfinite(targets) & np.isfinite(others).all(axis=1)
                return np.where(defined, np.minimum(np.array(found), 1e9), np.nan)

            scores = pairs[0][0]
            found = two_level_bootstrap(needed, len(seeds), scores.strata, min(self.num_resamples, 2000), self.seed)
            ends = [None if end is None or end >= 1e9 else end for end in (found.value, found.low, found.high)]
            table.append(
                {
                    "labels": labels,
                    "patients": patients[number],
                    "against_needs": ends[0],
                    "low": ends[1],
                    "high": ends[2],
                    "share": None if ends[0] is None else patients[number] / ends[0],
                    "never_reached": ends[0] is None,
                    "at_smallest_count": ends[0] is not None and ends[0] <= patients[0],
                }
            )
        return table

    def dose_table(self) -> list[dict[str, Any]]:
        """Scores of the arms that have a dose, by dose."""
        arms = [arm for arm in self.study.arms.values() if arm.dose is not None]
        lines = [line for line in self.score_table if any(arm.name == line["arm"] for arm in arms)]
        return sorted(
            ({"dose": self.study.arms[line["arm"]].dose, **line} for line in lines if line["score"] is not None),
            key=lambda line: (line["rate_kind"], str(line["labels"]), line["dose"]),
        )

    def rate_table(self) -> list[dict[str, Any]]:
        """The learning rates that were chosen, and the scores they were chosen by."""
        table = []
        for arm in self.study.arms:
            for labels in self.study.labels:
                choice = choose_rate(self.study, arm, labels, self.rows)
                entry: dict[str, Any] = {"arm": arm, "labels": labels, "rate": None, "at_edge": False, "scores": {}}
                if choice is not None:
                    scores = {f"{rate:g}": score for rate, score in choice.scores.items()}
                    entry |= {"rate": choice.rate, "at_edge": choice.at_edge, "scores": scores}
                table.append(entry)
        return table

    def case_table(self) -> list[dict[str, Any]]:
        """Score of each case, the mean over seeds, for both arms of the primary contrast, with their difference."""
        contrast, kind, table = self.study.primary, self.study.primary.rate, []
        for labels in self.study.labels:
            if (pair := self.pair(contrast, labels, kind)) is None:
                continue
            first, second = (scores.values.mean(axis=0) for scores in pair)
            for number, case in enumerate(pair[0].cases):
                table.append(
                    {
                        "labels": labels,
                        "case": case,
                        "patient": pair[0].patients[number],
                        contrast.arm: float(first[number]),
                        contrast.against: float(second[number]),
                        "difference": float(first[number] - second[number]),
                    }
                )
        return table

    def never_found(self) -> list[dict[str, str]]:
        """List the finished runs of the comparison in which a region scores 0 in each test case: it is never found.

        A network that has not learned to tell two labels apart gives one of them to everything. The mean over such a
        run and others is the score of neither.
        """
        found = []
        for name, row in sorted(self.rows.items()):
            if row["status"] != "done" or row["stage"] != "main" or self.study.score == "auc":
                continue
            cases = self.results.cases(name)
            for region in [key for key in cases[0] if key not in ("case", "patient", "score", "label")]:
                scores = [float(case[region]) for case in cases if case[region] != ""]
                if scores and max(scores) == 0:
                    found.append({"run": name, "region": region})
        return found

    def summary(self) -> dict[str, Any]:
        """Everything, as ``results.json`` holds it."""
        todo = to_do(self.study, self.rows)
        content = {
            "name": self.study.name,
            "title": self.study.title,
            "score": self.study.score,
            "primary": asdict(self.study.primary),
            "runs": {
                "finished": len(self.rows),
                "expected": todo.total,
                "left": len(todo.runs) + todo.waiting,
                "failed": failures(self.rows),
                "failed_before": sum(len(row.get("earlier_errors", ())) for row in self.rows.values()),
            },
            "contrasts": self.contrast_table,
            "scores": self.score_table,
            "learning_rates": self.rate_table(),
            "labels_saved": self.label_table(),
            "dose_response": self.dose_table(),
            "never_found": self.never_found(),
        }
        method = METHOD.format(resamples=self.num_resamples, seed=self.seed)
        if self.study.score == "auc":
            method += " " + auc_samples(self.undefined, self.num_resamples)
        return {**content, "method": method}


METHOD = (
    "Differences are paired by case and averaged over seeds. Intervals: 95 %, Student's quantiles of the standard "
    "error of a bootstrap in which patients (within folds) and seeds are drawn again ({resamples} samples, seed "
    "{seed}), with Satterthwaite's degrees of freedom; with one seed they tell of other patients alone. p: sign flips "
    "of whole patients, {resamples} patterns, two-sided, for the networks of these seeds; Holm over the label counts "
    "of a contrast. A difference is shown where p is below 0.05 and the interval, which is for other seeds too, leaves "
    "out zero. Spread: Pitman and Morgan. Smallest difference: the true one whose interval leaves out zero with 80 % "
    "probability, from this study's own standard error. Labels saved: percentiles of the same bootstrap."
)
