# SPDX-License-Identifier: Apache-2.0
"""Compares tasks of pretraining by the probe of several trainings of each: how much is the task, how much the training.

``python tools/probe_trainings.py PROBE --against genesis --of nonlinear shuffle in_painting out_painting`` reads
``cases.csv`` of ``python -m models_genesis.transfer probe``, whose weights are called ``TASK_SEED``, and writes
``trainings.csv`` next to it.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from models_genesis.datasets.io.csv_file import write_csv

Tasks = Mapping[str, Sequence[str]]
"""Names of the weights of each task."""


def main() -> int:
    """Compare, print and write.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe", type=Path, help="the --out folder of the probe")
    parser.add_argument("--against", required=True, help="the task that others are compared with")
    parser.add_argument("--of", nargs="+", required=True, help="tasks whose mean is the primary contrast")
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    areas, draws = areas_of(arguments.probe / "cases.csv", arguments.resamples)
    tasks: dict[str, list[str]] = defaultdict(list)
    for name in areas:
        tasks[name.rpartition("_")[0]].append(name)
    spread, pairs = spread_of_trainings(areas, tasks)
    print(f"standard deviation between trainings of one task {spread:.4f}, from {pairs} pairs")
    rows = []
    for of in (arguments.of, *([task] for task in tasks if task != arguments.against)):
        rows.append(contrast(areas, draws, tasks, of, arguments.against, spread, pairs))
        print("{of} - {against}: {difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**rows[-1]))
    write_csv(arguments.probe / "trainings.csv", list(rows[0]), rows)
    return 0


def areas_of(path: Path, resamples: int) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Give the AUC of each weights, the mean over folds and seeds, and those of patients that are drawn again."""
    with path.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["labels"] == "all" and not row["weights"].startswith("random")
        ]
    folds: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["patient"] not in folds[row["fold"]]:
            folds[row["fold"]].append(row["patient"])
    rng = np.random.default_rng(0)
    drawn = {
        fold: rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
        for fold, names in folds.items()
    }
    areas, draws = {}, {}
    for name in dict.fromkeys(row["weights"] for row in rows):
        own = [row for row in rows if row["weights"] == name]
        parts = [wins_by_patient([row for row in own if row["fold"] == fold], folds[fold]) for fold in folds]
        ones = [np.ones((1, len(names))) for names in folds.values()]
        areas[name] = float(_mean_area(parts, ones)[0])
        draws[name] = _mean_area(parts, [drawn[fold] for fold in folds])
    return areas, draws


def wins_by_patient(rows: Sequence[Mapping[str, str]], patients: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Count, over patients, the pairs that positive cases win, the mean of the seeds, and all pairs."""
    seeds = [key for key in rows[0] if key.startswith("seed ")]
    scores = np.array([[float(row[seed]) for row in rows] for seed in seeds])
    positive = np.array([row["class"] == "1" for row in rows])
    of = np.eye(len(patients))[[patients.index(row["patient"]) for row in rows]]
    high, low = scores[:, positive, None], scores[:, None, ~positive]
    wins = ((high > low) + 0.5 * (high == low)).mean(axis=0)
    return of[positive].T @ wins @ of[~positive], of[positive].T @ np.ones_like(wins) @ of[~positive]


def _mean_area(parts: Sequence[tuple[NDArray[Any], NDArray[Any]]], weights: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Give the mean over the folds; a draw without a class in one has the mean of the others."""
    areas = []
    for (wins, pairs), weight in zip(parts, weights, strict=True):
        won, all_pairs = (np.einsum("rp,pq,rq->r", weight, each, weight, optimize=True) for each in (wins, pairs))
        areas.append(np.where(all_pairs > 0, won / np.maximum(all_pairs, 1), np.nan))
    return np.asarray(np.nanmean(areas, axis=0))


def spread_of_trainings(areas: Mapping[str, float], tasks: Tasks) -> tuple[float, int]:
    """Estimate the standard deviation between two trainings of one task, and say from how many pairs."""
    pairs = [areas[names[0]] - areas[names[1]] for names in tasks.values() if len(names) == 2]
    return float(np.sqrt(np.mean(np.square(pairs)) / 2)), len(pairs)


def contrast(
    areas: Mapping[str, float], draws: Mapping[str, NDArray[Any]], tasks: Tasks, of: Sequence[str], against: str,
    spread: float, pairs: int,
) -> dict[str, Any]:  # fmt: skip
    """Compare the mean of tasks, each counting the same, with a task; the interval is for patients and trainings."""

    def mean(values: Mapping[str, Any]) -> Any:
        first, second = (np.mean([np.mean([values[name] for name in tasks[task]], axis=0) for task in group], axis=0)
                         for group in (of, [against]))  # fmt: skip
        return first - second

    share = sum(1 / len(tasks[task]) for task in of) / len(of) ** 2 + 1 / len(tasks[against])
    patients, trainings = float(np.std(mean(draws), ddof=1)), float(spread * np.sqrt(share))
    half = float(student.ppf(0.975, pairs)) * np.hypot(patients, trainings)
    difference = float(mean(areas))
    return {
        "of": "+".join(of), "against": against, "difference": difference, "low": difference - half,
        "high": difference + half, "se_patients": patients, "se_trainings": trainings, "pairs": pairs,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
