# SPDX-License-Identifier: Apache-2.0
"""Tasks by several trainings of each: areas as sklearn has them, intervals for other patients and trainings."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from models_genesis.transfer.__main__ import main
from models_genesis.transfer.contrast import Scores
from models_genesis.transfer.trainings import Trainings, compare_trainings, read_trainings

NAMES = ("all_1", "all_2", "one_1", "one_2", "other_1")


@pytest.fixture
def probe(tmp_path):
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
    (tmp_path / "probe.json").write_text("{}")
    return tmp_path, rows


def scores_of(value: float, patients: int = 40, folds: int = 2, seed: int = 0, effect: float = 0.0) -> Scores:
    """Scores that are averaged, about a value; each patient has an effect of its own."""
    effects, noise = (np.random.default_rng(each).normal(size=(1, patients)) for each in (9, seed))
    values = value + effect * effects + 1e-6 * noise
    names = tuple(f"p{number:02d}" for number in range(patients))
    return Scores((0,), names, names, np.arange(patients) % folds, None, values)


def test_areas_of_a_probe_are_the_means_of_sklearns(probe):
    folder, rows = probe
    trainings = Trainings(read_trainings(folder), num_resamples=10)
    assert tuple(trainings.values) == NAMES and list(trainings.tasks) == ["all", "one", "other"]
    for name in NAMES:
        parts = [
            roc_auc_score([row["class"] for row in own], [row[seed] for row in own])
            for fold in (0, 1) for seed in ("seed 0", "seed 1")
            for own in [[row for row in rows if row["weights"] == name and row["fold"] == fold]]
        ]  # fmt: skip
        assert trainings.values[name] == pytest.approx(np.mean(parts))


@pytest.mark.parametrize(
    ("values", "variance", "df"),
    [
        ({"all_1": 0.80, "all_2": 0.84, "one_1": 0.70, "one_2": 0.72, "other_1": 0.9}, (0.04**2 + 0.02**2) / 2 / 2, 2),
        ({"all_1": 0.1, "all_2": 0.2, "all_3": 0.6, "one_1": 0.5}, np.var([0.1, 0.2, 0.6], ddof=1), 2),
        ({"all_1": 0.1, "all_2": 0.3, "all_3": 0.5, "one_1": 0.5, "one_2": 0.5}, (2 * 0.2**2 + 0) / 3, 3),
        ({"all_1": 0.1, "all_2": 0.3, "scratch": 0.5}, 0.02, 1),
    ],
)  # fmt: skip
def test_the_spread_is_pooled_over_tasks_with_several_trainings(values, variance, df):
    scores = {name: scores_of(value) for name, value in values.items()}
    trainings = Trainings(scores, num_resamples=10)
    assert trainings.spread**2 == pytest.approx(variance, abs=1e-7) and trainings.df == df


def test_both_variances_are_added_and_tasks_count_the_same():
    values = {"all_1": 0.80, "all_2": 0.84, "one_1": 0.70, "one_2": 0.72, "other_1": 0.90}
    scores = {name: scores_of(value, effect=0.3 * (name == "other_1")) for name, value in values.items()}
    trainings = Trainings(scores, num_resamples=4000)
    found = trainings.contrast(["one", "other"], "all")
    effects = scores["other_1"].values[0]
    assert found.difference == pytest.approx((0.71 + effects.mean()) / 2 - 0.82, abs=1e-5)
    assert found.se_trainings == pytest.approx(trainings.spread * np.sqrt((1 / 2 + 1) / 4 + 1 / 2))
    # the standard error of half a mean over patients, within folds; 4,000 samples know it to 1.1 %, taken five times
    within = np.sqrt(np.mean([effects[fold::2].var(ddof=1) for fold in (0, 1)]) / len(effects)) / 2
    assert found.se_patients == pytest.approx(within, rel=0.06)
    half = student.ppf(0.975, 2) * np.hypot(found.se_patients, found.se_trainings)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.df == 2 and found.of == "one+other"


def test_intervals_hold_the_truth_as_often_as_they_say():
    """No difference between tasks, a spread between trainings: 95 % of 300, within three standard errors."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        values = {f"{task}_{number}": rng.normal(0.8, 0.03) for task in "abcd" for number in (1, 2)}
        trainings = Trainings({name: scores_of(value, 12) for name, value in values.items()}, num_resamples=20)
        found = trainings.contrast(["b", "c", "d"], "a")
        held += found.low <= 0 <= found.high
    assert abs(held / 300 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300)


def test_the_command_line_writes_what_it_prints(probe, capsys):
    folder, _ = probe
    words = ["trainings", str(folder), "--against", "all", "--of", "one", "other", "--resamples", "50"]
    assert main(words) == 0
    said = capsys.readouterr().out
    with (folder / "trainings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["of"] for row in rows] == ["one+other", "one", "other"]
    for row in rows:
        numbers = (float(row[key]) for key in ("difference", "low", "high"))
        assert "{} - all: {:+.4f} ({:+.4f} to {:+.4f})".format(row["of"], *numbers) in said
    assert "2 degrees of freedom" in said


def test_what_cannot_be_compared_is_refused(probe, tmp_path, capsys):
    folder, _ = probe
    with pytest.raises(ValueError, match="expected tasks of all, one, other, found some"):
        compare_trainings(folder, "all", ["some"], num_resamples=10)
    for of, against in ((["one", "one"], "all"), (["all", "one"], "all"), (["all"], "all")):
        with pytest.raises(ValueError, match="expected each task once, and another one to compare with"):
            compare_trainings(folder, against, of, num_resamples=10)
    with pytest.raises(ValueError, match="expected scores with 5 labelled patients, found none"):
        read_trainings(folder, 5)
    with pytest.raises(FileNotFoundError, match="expected the results of a probe or of a study, found neither"):
        read_trainings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected several trainings of a task, called TASK_1, TASK_2, found a_1, b_1"):
        Trainings({"a_1": scores_of(0.1), "b_1": scores_of(0.2)})
    with pytest.raises(ValueError, match="found others of b_1"):
        Trainings({"a_1": scores_of(0.1), "a_2": scores_of(0.2), "b_1": scores_of(0.2, patients=8)})
    assert main(["trainings", str(folder), "--against", "gone", "--of", "one"]) == 2
    assert "found gone" in capsys.readouterr().err and not (folder / "trainings.csv").exists()
