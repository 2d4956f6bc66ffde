# SPDX-License-Identifier: Apache-2.0
"""How much is the task of a pretraining, and how much the training? Several trainings of each task, compared."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from ..datasets.io.csv_file import write_csv
from .analysis import Analysis
from .contrast import NUM_RESAMPLES, Scores
from .results import Protocol, Results
from .statistics import FloatArray, two_level_bootstrap
from .study import Labels

__all__ = ["TaskContrast", "Trainings", "compare_trainings", "read_trainings"]


@dataclass(frozen=True)
class TaskContrast:
    """What some tasks' mean score exceeds another task's by, for other patients and other trainings.

    Attributes:
        of: the tasks, each of which counts the same, joined by ``+``.
        against: the other one.
        difference: of the scores.
        low: lower end of the 95 % interval.
        high: upper end.
        se_patients: standard error for other patients.
        se_trainings: standard error for other trainings.
        df: degrees of freedom of the spread between trainings.
    """

    of: str
    against: str
    difference: float
    low: float
    high: float
    se_patients: float
    se_trainings: float
    df: int


class Trainings:
    """Scores of several trainings of each of several tasks.

    The variance between trainings of one task is pooled over the tasks that have several. That of patients is from a
    bootstrap of whole patients within folds. Both are added, and the interval has Student's quantiles for the degrees
    of freedom of the former, which are few: so many trainings more than tasks.

    Args:
        scores: scores of the same cases and seeds by name, ``TASK_NUMBER`` for each training of a task.
        num_resamples: bootstrap samples.
        seed: of the samples.

    Attributes:
        tasks: names of each task's trainings.
        values: mean score of each training.
        spread: standard deviation between trainings of one task.
        df: its degrees of freedom.

    Raises:
        ValueError: when no task has several trainings, or cases or seeds differ.
    """

    def __init__(self, scores: Mapping[str, Scores], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> None:
        first = next(iter(scores.values()))
        if other := next((name for name, each in scores.items() if not _alike(each, first)), None):
            raise ValueError(f"expected scores of the same cases and seeds of all trainings, found others of {other}")
        self.tasks: dict[str, list[str]] = defaultdict(list)
        for name in scores:
            self.tasks[_task(name)].append(name)
        self.num_resamples, self.seed = num_resamples, seed
        self._strata = first.strata
        self._seeds = len(first.seeds)
        self._estimators = {name: each.estimator() for name, each in scores.items()}
        ones = np.ones((1, self._seeds)), np.ones((1, len(self._strata)))
        self.values = {name: float(estimate(*ones)[0]) for name, estimate in self._estimators.items()}
        own = [np.array([self.values[name] for name in names]) for names in self.tasks.values()]
        self.df = sum(len(values) - 1 for values in own)
        if not self.df:
            raise ValueError(f"expected several trainings of a task, called TASK_1, TASK_2, found {', '.join(scores)}")
        self.spread = float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in own) / self.df))

    def contrast(self, of: Sequence[str], against: str) -> TaskContrast:
        """Compare the mean of some tasks with another task.

        Args:
            of: the tasks.
            against: the other one.

        Raises:
            ValueError: when there is no such task, one is there twice, or there are too few patients.
        """
        if missing := [task for task in (*of, against) if task not in self.tasks]:
            raise ValueError(f"expected tasks of {', '.join(self.tasks)}, found {', '.join(missing)}")
        if len({*of, against}) <= len(of):
            found = ", ".join((*of, against))
            raise ValueError(f"expected each task once, and another one to compare with, found {found}")
        weights = {name: 1 / len(of) / len(self.tasks[task]) for task in of for name in self.tasks[task]}
        weights |= {name: -1 / len(self.tasks[against]) for name in self.tasks[against]}

        def estimate(_: FloatArray, patients: FloatArray) -> FloatArray:
            seeds = np.ones((len(patients), self._seeds))
            parts = [weight * self._estimators[name](seeds, patients) for name, weight in weights.items()]
            return np.asarray(np.sum(parts, axis=0))

        drawn = two_level_bootstrap(estimate, 1, self._strata, self.num_resamples, self.seed)
        if drawn.se is None:
            raise ValueError("expected two patients or more in each fold, found one")
        trainings = self.spread * float(np.sqrt(sum(weight**2 for weight in weights.values())))
        half = float(student.ppf(0.975, self.df)) * float(np.hypot(drawn.se, trainings))
        ends = drawn.value - half, drawn.value + half
        return TaskContrast("+".join(of), against, drawn.value, *ends, drawn.se, trainings, self.df)


def compare_trainings(
    folder: str | Path, against: str, of: Sequence[str], labels: Labels = "all", num_resamples: int = NUM_RESAMPLES
) -> str:
    """Compare tasks by several trainings of each, and write ``trainings.csv`` into the folder.

    Args:
        folder: results of a probe, whose weights are called ``TASK_NUMBER``, or of a study whose arms are.
        against: the task that others are compared with.
        of: tasks whose mean is the first contrast; then come all tasks by themselves.
        labels: number of labelled patients, or ``"all"``.
        num_resamples: bootstrap samples.

    Returns:
        The comparisons as text.

    Raises:
        FileNotFoundError: when the folder has neither.
        ValueError: see :class:`Trainings`.
    """
    trainings = Trainings(read_trainings(folder, labels), num_resamples)
    groups = [tuple(of), *((task,) for task in trainings.tasks if task != against and (task,) != tuple(of))]
    rows = [trainings.contrast(group, against) for group in groups]
    table = [asdict(row) for row in rows]
    write_csv(Path(folder) / "trainings.csv", list(table[0]), table)
    lines = [f"standard deviation between trainings: {trainings.spread:.4f}, {trainings.df} degrees of freedom"]
    for task, names in trainings.tasks.items():
        lines.append(f"{task}: " + ", ".join(f"{name} {trainings.values[name]:.4f}" for name in names))
    for row in rows:
        lines.append(f"{row.of} - {row.against}: {row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f})")
    return "\n".join(lines)


def read_trainings(folder: str | Path, labels: Labels = "all") -> dict[str, Scores]:
    """Read the scores of all weights of a probe, but for random ones, or of all arms of a study at its common rate.

    Args:
        folder: the results.
        labels: number of labelled patients, or ``"all"``.

    Returns:
        Scores by name, of the seeds that all have.

    Raises:
        FileNotFoundError: when the folder has neither.
        ValueError: when an arm has no seed with all its folds, or the arms have none in common.
    """
    if (Path(folder) / "probe.json").is_file():
        return _of_probe(Path(folder) / "cases.csv", labels)
    results = Results(folder)
    protocol = Protocol(results)
    content = protocol.read()
    if content is None:
        raise FileNotFoundError(f"{folder}: expected the results of a probe or of a study, found neither")
    study = protocol.study(content)
    if labels not in study.labels:
        raise ValueError(f"{folder}: expected --labels of {', '.join(map(str, study.labels))}, found {labels}")
    analysis = Analysis(study, results)
    found = {arm: analysis.cell(arm, labels, "common").scores for arm in study.arms}
    scores = {arm: each for arm, each in found.items() if each is not None}
    if missing := [arm for arm in found if arm not in scores]:
        raise ValueError(f"{folder}: expected a seed with all folds of each arm, found none of {', '.join(missing)}")
    shared = [seed for seed in study.seeds if all(seed in each.seeds for each in scores.values())]
    if not shared:
        raise ValueError(f"{folder}: expected a seed that all arms have, found none")
    return {arm: each.of_seeds(shared) for arm, each in scores.items()}


def _of_probe(path: Path, labels: Labels) -> dict[str, Scores]:
    """Read the scores of a probe's cases."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["labels"] == str(labels)]
    names = dict.fromkeys(row["weights"] for row in rows if not row["weights"].startswith("random"))
    if not names:
        raise ValueError(f"{path}: expected scores with {labels} labelled patients, found none")
    return {name: _scores([row for row in rows if row["weights"] == name]) for name in names}


def _scores(rows: Sequence[Mapping[str, Any]]) -> Scores:
    columns = [key for key in rows[0] if key.startswith("seed ")]
    return Scores(
        seeds=tuple(int(key.removeprefix("seed ")) for key in columns),
        cases=tuple(row["case"] for row in rows),
        patients=tuple(row["patient"] for row in rows),
        folds=np.array([int(row["fold"]) for row in rows]),
        labels=np.array([int(row["class"]) for row in rows]),
        values=np.array([[float(row[key]) for row in rows] for key in columns]),
    )


def _task(name: str) -> str:
    """Take the number off a training's name.

    Example:
        >>> _task("in_painting_2"), _task("scratch")
        ('in_painting', 'scratch')
    """
    task, separator, number = name.rpartition("_")
    return task if separator and number.isdigit() else name


def _alike(first: Scores, second: Scores) -> bool:
    same = (first.seeds, first.cases, first.patients) == (second.seeds, second.cases, second.patients)
    return same and np.array_equal(first.folds, second.folds) and np.array_equal(first.labels, second.labels)  # type: ignore[arg-type]
