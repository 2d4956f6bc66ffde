# SPDX-License-Identifier: Apache-2.0
"""The tables of ``docs/evidence.md`` say what the runs' tables say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "evidence.md").read_text(encoding="utf-8")
RESULTS = DOCS / "evidence" / "results"


def rows_of(study: str, name: str = "runs.csv") -> list[dict[str, str]]:
    """Rows of a study's table."""
    with (RESULTS / study / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mean_over_folds(study: str) -> dict[tuple[str, str], float]:
    """Mean score of five folds by arm and seed."""
    scores_of: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(study):
        scores_of.setdefault((row["arm"], row["seed"]), []).append(float(row["score"]))
    return {run: sum(found) / len(found) for run, found in scores_of.items() if len(found) == 5}


def trials_of(study: str) -> dict[tuple[str, str], list[float]]:
    """Scores of the trials that chose a rate, by arm and rate."""
    trials: dict[tuple[str, str], list[float]] = {}
    for row in rows_of(study):
        assert row["status"] == "done"
        if row["stage"] == "tune":
            trials.setdefault((row["arm"], row["rate"]), []).append(float(row["score"]))
    return trials


def scores(study: str) -> dict[tuple[str, int, str], float]:
    """Dice by arm, seed and learning rate."""
    rows = [row for row in rows_of(study) if row["stage"] == "main"]
    assert all(row["status"] == "done" for row in rows)
    return {(row["arm"], int(row["seed"]), row["rate"]): float(row["score"]) for row in rows}


def part_of(heading: str) -> str:
    """What stands below a heading, up to the next one."""
    return TEXT.split(heading, 1)[1].split("\n#", 1)[0]


def lines_of(heading: str) -> list[list[str]]:
    """Cells of the tables below a heading."""
    lines = part_of(heading).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def check_differences(heading: str, rows: list[dict[str, str]]) -> None:
    """Each contrast stands below the heading with its interval."""
    part = part_of(heading).replace("95 % interval ", "").replace(" over patients", "")
    for row in rows:
        difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
        assert f"{difference} ({low} to {high}" in part, f"{row['arm']} against {row['against']}"


def never_found(study: str) -> str:
    """What the study's report says of regions that a run does not find, empty where there is none."""
    page = (RESULTS / study / "report.html").read_text(encoding="utf-8")
    found = re.search(r"a region is not found in any test case[^<]*", page)
    return found[0] if found else ""


def check(cell: str, value: float, lost: bool) -> None:
    assert cell == (f"**{value:.3f}**" if lost else f"{value:.3f}")


@pytest.mark.parametrize("arm", ["scratch", "pretrained", "rescaled", "permuted"])
def test_hippocampus_by_person(arm):
    study = "hippocampus_people"
    found, lost = scores(study), never_found(study)
    (cells,) = [line for line in lines_of("## Hippocampus, split by person") if line[0] == arm]
    own = cells[4]
    for seed in range(3):
        check(cells[1 + seed], found[arm, seed, "0.003"], f"{arm}-n5-f0-s{seed}-r0.003" in lost)
        check(cells[5 + seed], found[arm, seed, own], f"{arm}-n5-f0-s{seed}-r{own}" in lost)


def test_dose_response():
    study = "hippocampus_people_dose"
    found, lost = scores(study), never_found(study)
    lines = {line[0]: line[1:] for line in lines_of("### Dose-response")}
    for seed in range(3):
        cells = lines[f"Dice, seed {seed}"]
        for arm, cell in zip(("scratch", "sixteenth", "eighth", "quarter", "half", "all"), cells, strict=True):
            check(cell, found[arm, seed, "0.003"], f"{arm}-n5-f0-s{seed}-r0.003" in lost)


def test_more_steps():
    study = "hippocampus_people_steps"
    found, lost = scores(study), never_found(study)
    lines = {line[0]: line[1:] for line in lines_of("### The collapse ends with more steps")}
    assert not lost
    for arm, seed, rate in found:
        check(lines[arm][seed], found[arm, seed, rate], False)
    assert sum(cell == "-" for arm in ("scratch", "rescaled", "pretrained") for cell in lines[arm]) == 9 - len(found)


@pytest.mark.parametrize("arm", ["scratch", "rescaled", "permuted"])
def test_new_seeds_at_720_steps(arm):
    study = "hippocampus_people_confirm"
    found = scores(study)
    assert not never_found(study)
    (cells,) = [line for line in lines_of("### New seeds at 720 steps") if line[0] == arm]
    for seed in range(3, 7):
        check(cells[seed - 2], found[arm, seed, "0.003"], False)


def test_a_third_of_the_rate():
    found, part = scores("hippocampus_people_slow"), TEXT.split("### New seeds at 720 steps", 1)[1]
    values = [found["scratch", seed, "0.001"] for seed in range(3, 7)]
    assert "{:.3f}, {:.3f}, **{:.3f}**, {:.3f}".format(*values) in part


@pytest.mark.parametrize(
    ("study", "heading"),
    [
        ("candidates", "## Lung nodules or other bright spots"),
        ("candidates_confirm", "### Five new seeds"),
        ("candidates_longer", "### A pretraining seven times longer"),
    ],
)
def test_candidates_by_fold_and_seed(study, heading):
    found = {
        (row["arm"].replace("_", " and "), int(row["seed"]), int(row["fold"])): float(row["score"])
        for row in rows_of(study)
    }
    lines = {line[0]: line[1:] for line in lines_of(heading)[2:] if len(line) == 7}
    assert set(lines) == {f"{arm}, {seed}" for arm, seed, _ in found}
    for name, cells in lines.items():
        arm, seed = name.split(", ")
        values = [found[arm, int(seed), fold] for fold in range(5)]
        assert cells == [f"{value:.3f}" for value in (*values, sum(values) / 5)]


@pytest.mark.parametrize(
    ("study", "heading"),
    [
        ("hippocampus_people_confirm", "### New seeds at 720 steps"),
        ("candidates_seed0", "## Lung nodules or other bright spots"),
        ("candidates_confirm", "### Five new seeds"),
    ],
)
def test_differences_and_intervals(study, heading):
    rows = [row for row in rows_of(study, "contrasts.csv") if row["rate_kind"] == "common" and row["difference"]]
    assert len(rows) == 3
    check_differences(heading, rows)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/evidence.md", "bundles/genesis_chest_ct_pretraining/docs/README.md"]
)
def test_what_is_quoted_of_the_gain_is_the_primary_contrast(page):
    (row,) = [row for row in rows_of("candidates_longer", "contrasts.csv") if row["primary"] == "True"]
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    difference, low, high = (f"{float(row[key]):.3f}" for key in ("difference", "low", "high"))
    assert re.search(rf"AUC of {difference}\b[^.]*", text)
    assert f"95 % interval {low} to {high}" in text


@pytest.mark.parametrize("study", ["candidates_confirm", "candidates_longer"])
def test_differences_by_seed(study):
    mean = mean_over_folds(study)
    by_seed = ", ".join(f"{mean['rescaled', seed] - mean['scratch', seed]:+.3f}" for seed in "23456")
    assert f"By seed {by_seed}" in TEXT


def test_rates_of_the_longer_pretraining():
    lines = {line[0]: line[1:] for line in lines_of("### A pretraining seven times longer") if len(line) == 4}
    means = {
        f"{arm}, {rate}": {seed: mean for (each, seed), mean in mean_over_folds(study).items() if each == arm}
        for study, rate in (
            ("candidates_longer", "0.001"),
            ("candidates_longer_slow", "0.0003"),
            ("candidates_longer_fast", "0.003"),
        )
        for arm in ("scratch", "rescaled")
    }
    for run, by_seed in means.items():
        if by_seed:
            assert lines[run] == [f"{by_seed[seed]:.3f}" for seed in "234"]


def test_each_start_at_its_best_rate():
    study, heading = "candidates_rates", "### Each start at its best rate"
    lines = {line[0]: line[1:] for line in lines_of(heading)}
    means = {run: sum(found) / 3 for run, found in trials_of(study).items() if len(found) == 3}
    best = {
        arm: max((rate for each, rate in means if each == arm), key=lambda rate: means[arm, rate]) for arm, _ in means
    }
    for arm in ("scratch", "rescaled"):
        cells = [f"{means[arm, rate]:.3f}" for rate in ("0.0001", "0.0003", "0.001", "0.003")]
        assert lines[f"{arm}, trials"] == [
            f"**{cell}**" if rate == best[arm] else cell
            for cell, rate in zip(cells, ("0.0001", "0.0003", "0.001", "0.003"), strict=True)
        ]
    for row in rows_of(study, "scores.csv"):
        name = f"{row['arm']}, {row['rate']}" + (" (its best)" if row["rate"] == best[row["arm"]] else "")
        assert lines[name] == [f"{float(score):.3f}" for score in (*row["by_seed"].split(), row["score"])]
    check_differences(heading, rows_of(study, "contrasts.csv"))


def test_the_task_of_the_pretraining():
    study, heading = "candidates_proxies", "### Is it the task of the pretraining?"
    folds: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows_of(study):
        assert row["status"] == "done" and row["rate"] == "0.001"
        folds.setdefault((row["arm"], row["seed"]), {})[row["fold"]] = float(row["score"])
    lines = lines_of(heading)[2:]
    assert len(lines) == len(folds) == 12
    for run, *cells, mean in lines:
        found = folds[tuple(run.split(", "))]  # type: ignore[index]
        assert cells == [f"{found[fold]:.3f}" for fold in "01234"]
        assert mean == f"{sum(found.values()) / 5:.3f}"
    part = part_of(heading).replace("95 % interval ", "")
    for row in rows_of(study, "contrasts.csv"):
        difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
        assert f"{difference} ({low} to {high})" in part, f"{row['arm']} - {row['against']}"
        assert row["primary"] != "True" or f"{difference} ({low} to {high})" in TEXT.split("## Lung nodules", 1)[0]


def test_nodules_with_each_start_at_its_best_rate():
    study, heading = "nodules_rates", "## Lung nodules in crops"
    lines = {line[0]: line[1:] for line in lines_of(heading)}
    rates = ("0.0003", "0.001", "0.003", "0.01")
    trials = trials_of(study)
    assert {len(found) for found in trials.values()} == {2}
    means = {run: sum(found) / 2 for run, found in trials.items()}
    best = {arm: max(rates, key=lambda rate, arm=arm: means[arm, rate]) for arm in ("scratch", "rescaled")}
    for arm, own in best.items():
        cells = [f"{means[arm, rate]:.3f}" for rate in rates]
        assert lines[f"{arm}, trials"] == [f"**{c}**" if r == own else c for c, r in zip(cells, rates, strict=True)]
    for row in rows_of(study, "scores.csv"):
        label = "{labels}, {arm}, {rate}".format(**row) + (" (its best)" if row["rate"] == best[row["arm"]] else "")
        by_seed = dict(zip(row["seeds"].split(), row["by_seed"].split(), strict=True))
        cells = [f"{float(by_seed[seed]):.3f}" if seed in by_seed else "-" for seed in "0123"]
        assert lines[label] == [*cells, f"{float(row['score']):.3f}"]
    (primary,) = [row for row in rows_of(study, "contrasts.csv") if row["primary"] == "True"]
    low, high = (f"{float(primary[key]):+.4f}" for key in ("low", "high"))
    assert f"{float(primary['difference']):+.3f} Dice (95 % interval {low} to {high}" in part_of(heading)
    check_differences(heading, [row for row in rows_of(study, "contrasts.csv") if row["primary"] != "True"])


QUOTING = ["README.md", "docs/evidence.md", "bundles/genesis_chest_ct_pretraining/docs/README.md"]


@pytest.mark.parametrize("page", QUOTING)
def test_what_is_quoted_of_nodules_is_the_planned_contrast(page):
    (row,) = [row for row in rows_of("nodules_rates", "contrasts.csv") if row["primary"] == "True"]
    difference, low, high = float(row["difference"]), float(row["low"]), float(row["high"])
    text = (DOCS.parent / page).read_text(encoding="utf-8").replace("is gained (95 % interval ", "(")
    assert f"Dice of {difference:.3f} ({low:.4f} to {high:.4f}, four seeds)" in text


@pytest.mark.parametrize("page", QUOTING)
def test_what_is_quoted_says_what_the_best_rates_show(page):
    (row,) = [row for row in rows_of("candidates_rates", "contrasts.csv") if row["primary"] == "True"]
    difference, low, high = (f"{float(row[key]):.3f}" for key in ("difference", "low", "high"))
    assert f"{difference} ({low} to {high})" in (DOCS.parent / page).read_text(encoding="utf-8")


def test_random_weights_with_more_steps_against_fewer():
    part = part_of("### Each start at its best rate")
    (more,) = [
        row
        for row in rows_of("candidates_rates", "scores.csv")
        if (row["arm"], row["rate_kind"]) == ("scratch", "best")
    ]
    (fewer,) = [row for row in rows_of("candidates_longer", "scores.csv") if row["arm"] == "scratch"]
    assert f"reach {float(more['score']):.3f}" in part and f"had {float(fewer['score']):.3f} at 0.001" in part


def test_flips():
    heading = "### Flips in training cost more than any start gains"
    found = {**scores("hippocampus_flips"), **scores("hippocampus_flips_axes")}
    arms = {"all axes": "", "none": "_unflipped", "front to back": "_front_to_back"}
    arms["left to right, top to bottom"] = "_two_axes"
    lines = lines_of(heading)[2:]
    assert len(lines) == 7
    for start, flips, *cells, mean in lines:
        values = [found[start + arms[flips], seed, "0.003"] for seed in (2, 10, 11, 12, 13)]
        assert mean == f"{sum(values) / len(values):.3f}"
        for value, cell in zip(values, cells, strict=True):
            check(cell, value, value < 0.5)
    for start in ("scratch", "rescaled"):
        gains = [
            found[f"{start}_unflipped", seed, "0.003"] - found[start, seed, "0.003"] for seed in (2, 10, 11, 12, 13)
        ]
        assert min(gains) > 0.045 and max(gains) < 0.565
    part = part_of(heading).replace("95 % interval ", "")
    rows = rows_of("hippocampus_flips", "contrasts.csv") + rows_of("hippocampus_flips_axes", "contrasts.csv")[:1]
    for row in rows:
        difference, low, high = (float(row[key]) for key in ("difference", "low", "high"))
        assert f"{difference:.3f} ({low:+.3f} to {high:+.3f})" in part, row["arm"]


def test_25_people_without_flips():
    heading, found = "### 25 people without flips", scores("hippocampus_controls")
    lines = lines_of(heading)[2:]
    assert len(lines) == 5 and len(found) == 25
    for start, *cells, mean in lines:
        values = [found[start.replace(" and ", "_"), seed, "0.003"] for seed in range(14, 19)]
        assert mean == f"{sum(values) / len(values):.3f}"
        for value, cell in zip(values, cells, strict=True):
            check(cell, value, value < 0.5)
    assert sum(value < 0.5 for value in found.values()) == 8
    part = part_of(heading).replace("95 % interval ", "")
    for row in rows_of("hippocampus_controls", "contrasts.csv"):
        difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
        assert f"{difference} ({low} to {high})" in part, f"{row['arm']} - {row['against']}"


def test_a_head_that_learns_faster():
    heading, found = "### A likely cause of the collapses: the head", scores("hippocampus_head")
    lines = lines_of(heading)[2:]
    assert len(lines) == 4 and len(found) == 20
    for start, rate, *cells, mean in lines:
        values = [found[start + ("_head" if rate == "0.03" else ""), seed, "0.003"] for seed in range(20, 25)]
        assert mean == f"{sum(values) / len(values):.3f}"
        for value, cell in zip(values, cells, strict=True):
            check(cell, value, value < 0.5)
    part = part_of(heading).replace("95 % interval ", "")
    for row in rows_of("hippocampus_head", "contrasts.csv") + rows_of("nodules_head", "contrasts.csv"):
        difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
        assert f"{difference} ({low} to {high})" in part, f"{row['arm']} - {row['against']}"


def test_two_people():
    heading = "### Two people, without flips"
    found = {
        (row["arm"], row["rate"], row["seed"]): float(row["score"])
        for row in rows_of("hippocampus_two")
        if row["stage"] == "main" and row["status"] == "done"
    }
    lines = lines_of(heading)[2:]
    assert len(lines) == 3 and len(found) == 18 and not never_found("hippocampus_two")
    for start, *cells in lines:
        arm, rate = start.removesuffix(" (its best)").split(", ")
        values = [found[arm, rate, str(seed)] for seed in range(25, 31)]
        assert cells == [f"{value:.3f}" for value in (*values, sum(values) / 6)], start
    part = part_of(heading).replace("95 % interval ", "")
    for row in rows_of("hippocampus_two", "contrasts.csv"):
        difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
        assert f"{difference} ({low} to {high})" in part


def test_cubes_against_slices():
    heading = "## Cubes against slices on the hippocampus"
    found: dict[tuple[str, str, str, str], float] = {}
    for row in rows_of("hippocampus_slices"):
        assert row["status"] == "done"
        if row["stage"] == "main":
            found[row["arm"], row["rate"], row["labels"], row["seed"]] = float(row["score"])
    lines = lines_of(heading)[2:]
    assert len(lines) == 4 and len(rows_of("hippocampus_slices")) == 48
    for start, rate, *cells in lines:
        kind, _, weights = start.partition(", ")
        arm = f"{kind}_scratch" if weights == "scratch" else kind
        expected = [found[arm, rate, labels, seed] for labels in ("5", "all") for seed in "789"]
        assert cells == [f"{value:.3f}" for value in expected], start
    part = part_of(heading).replace("95 % interval ", "")
    for row in rows_of("hippocampus_slices", "contrasts.csv"):
        if row["rate_kind"] == "best":
            difference, low, high = (f"{float(row[key]):+.3f}" for key in ("difference", "low", "high"))
            assert f"{difference} ({low} to {high})" in part, f"{row['arm']} - {row['against']}, {row['labels']}"
    assert not never_found("hippocampus_slices")
    runs = [row for row in rows_of("hippocampus_slices") if row["stage"] == "main"]
    for kind, dims in (("cubes", "3D"), ("slices", "2D")):
        times = [float(row["train_seconds"]) for row in runs if row["arm"].startswith(kind)]
        assert f"{sum(times) / len(times):.0f} s in {dims}" in part


def test_few_labelled_patients():
    """Means over folds by seed, and both differences of the primary contrast."""
    heading, best = "### With 10 and 25 labelled patients", {"scratch": "0.0003", "rescaled": "0.003"}
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows_of("candidates_few"):
        assert row["status"] == "done"
        if row["stage"] == "main" and row["rate"] == best[row["arm"]]:
            found.setdefault((row["labels"], row["arm"], row["seed"]), []).append(float(row["score"]))
    for labels, start, *cells in lines_of(heading)[2:]:
        arm = start.split(",")[0]
        scores_of = [found[labels, arm, seed] for seed in ("15", "16", "17", "18")]
        assert all(len(folds) == 5 for folds in scores_of)
        means = [sum(folds) / 5 for folds in scores_of]
        assert cells == [f"{value:.3f}" for value in (*means, sum(means) / 4)]
    check_differences(heading, [row for row in rows_of("candidates_few", "contrasts.csv") if row["primary"] == "True"])


def test_frozen_features():
    """Each area of the probe with its interval, and the differences that the text names."""
    heading = "### Frozen features: a difference"
    lines = {line[0]: line[1:] for line in lines_of(heading)[2:]}
    tables = {name: rows_of("candidates_probe", f"{name}.csv") for name in ("own", "scans")}
    columns = {("own", "all"): 0, ("scans", "all"): 1, ("scans", "10"): 3, ("scans", "25"): 4}
    for name, rows in tables.items():
        for row in rows:
            area = f"{float(row['auc']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})"
            if name == "scans" or not row["weights"].startswith("random"):
                assert lines[row["weights"]][columns[name, row["labels"]]] == area
    differences = {
        (name, row["weights"], row["against"][:6], row["labels"]): tuple(
            float(row[key]) for key in ("difference", "difference_low", "difference_high")
        )
        for name, rows in tables.items()
        for row in rows
        if row["against"]
    }
    part = part_of(heading).replace("95 % interval ", "")
    shown = [("own", "autoencoder"), ("scans", "autoencoder"), ("scans", "enclosed"), ("scans", "wide")]
    for name, weights in shown:
        assert "{:+.3f} ({:+.3f} to {:+.3f})".format(*differences[name, weights, "genesi", "all"]) in part
    above = []
    for weights in ("genesis", "autoencoder", "masking", "wide", "enclosed"):
        value, low, high = differences["scans", weights, "random", "all"]
        assert lines[weights][2] == f"{value:+.3f} ({low:+.3f} to {high:+.3f})" and 0.03 < value < 0.065
        above.append(low > 0)
    assert sum(above) == 4


def test_each_deformation_alone():
    """Areas, differences and the spread between trainings, which are computed here once more."""
    heading = "### Each deformation alone, and each training twice"
    names = {
        "all four": "genesis", "none (autoencoder)": "autoencoder", "intensity alone": "nonlinear",
        "shuffling alone": "shuffle", "in-painting alone": "in_painting", "out-painting alone": "out_painting",
    }  # fmt: skip
    single = ("nonlinear", "shuffle", "in_painting", "out_painting")
    part = part_of(heading)
    for column, kind in ((0, "scans"), (2, "own")):
        areas: dict[str, list[float]] = {}
        for row in rows_of("candidates_singles", f"{kind}.csv"):
            if not row["weights"].startswith("random") and row["against"].startswith("random"):
                areas.setdefault(row["weights"].rpartition("_")[0], []).append(float(row["auc"]))
        mean = {task: sum(values) / len(values) for task, values in areas.items()}
        found = {row["of"]: row for row in rows_of("candidates_singles", f"{kind}_trainings.csv")}
        told = {
            of: "{:+.3f} ({:+.3f} to {:+.3f})".format(*(float(row[key]) for key in ("difference", "low", "high")))
            for of, row in found.items()
        }
        for label, *cells in lines_of(heading)[2 : 2 + len(names)]:
            task = names[label]
            assert cells[column] == ", ".join(f"{value:.3f}" for value in areas[task])
            assert cells[column + 1] == ("" if task == "genesis" else told[task])
        primary = sum(mean[task] for task in single) / 4 - mean["genesis"]
        assert abs(primary - float(found["+".join(single)]["difference"])) < 1e-9 and told["+".join(single)] in part
        pairs = [first - second for first, second in areas.values()]
        assert len(pairs) == 6
        spread = (sum(pair**2 for pair in pairs) / 6 / 2) ** 0.5
        assert f"{spread:.3f}" in part
        assert abs(spread * (1 / 2 / 4 + 1 / 2) ** 0.5 - float(found["+".join(single)]["se_trainings"])) < 1e-9
    # fine-tuned: the last table, one seed of the study
    found = {row["of"]: row for row in rows_of("candidates_singles", "trainings.csv")}
    scores = {
        row["arm"]: float(row["by_seed"].split()[row["seeds"].split().index("31")])
        for row in rows_of("candidates_singles", "scores.csv")
    }
    assert len(scores) == 12
    told = {
        of: "{:+.3f} ({:+.3f} to {:+.3f})".format(*(float(row[key]) for key in ("difference", "low", "high")))
        for of, row in found.items()
    }
    for label, trainings, difference in lines_of(heading)[-len(names) :]:
        task = names[label]
        assert trainings == f"{scores[f'{task}_1']:.3f}, {scores[f'{task}_2']:.3f}"
        assert difference == ("" if task == "genesis" else told[task])
    means = {task: (scores[f"{task}_1"] + scores[f"{task}_2"]) / 2 for task in names.values()}
    primary = sum(means[task] for task in single) / 4 - means["genesis"]
    assert abs(primary - float(found["+".join(single)]["difference"])) < 1e-5 and told["+".join(single)] in part
