# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from models_genesis.transfer.__main__ import main
from models_genesis.transfer.answer import sentence
from models_genesis.transfer.figures import draw_cases
from models_genesis.transfer.plan import main_runs
from models_genesis.transfer.power import auc_standard_error
from models_genesis.transfer.results import Protocol, Results
from models_genesis.transfer.runner import Options, Runner
from models_genesis.transfer.statistics import smallest_difference
from models_genesis.transfer.study import load_study
from models_genesis.transfer.workflow import begin_row

ARMS = {
    "scratch": {"pretrained": "none", "dose": 0},
    "pretrained": {"pretrained": "weights.pt", "dose": 1},
    "permuted": {"pretrained": "weights.pt", "permute": True},
}


@pytest.fixture(scope="module")
def finished(make_shared_study):
    study = load_study(make_shared_study(arms=ARMS, rates={"common": 0.01}, seeds=[0, 1, 2]))
    out = study.path.parent / "out"
    Runner(study, Options(out, jobs=0), lambda line: None)()
    assert main(["report", str(out), "--resamples", "999"]) == 0
    return study, out, json.loads((out / "results.json").read_text())


def scores(out, study, arm, labels):
    table = []
    for run in main_runs(study, arm, labels, 0.01):
        with (out / "runs" / run.name / "cases.csv").open(newline="") as file:
            table.append([float(row["score"]) for row in csv.DictReader(file)])
    return np.array(table)


def test_the_difference_is_that_of_the_cases(finished):
    study, out, results = finished
    expected = scores(out, study, "pretrained", 2) - scores(out, study, "scratch", 2)
    (line,) = [each for each in results["contrasts"] if each["primary"]]
    assert line["difference"] == pytest.approx(expected.mean())
    assert (line["labels"], line["patients"], line["cases"], line["seeds"]) == (2, 6, 12, 3)
    # the fake's gain is 0.05; single cases of it spread by 0.1 * uniform, over two regions, both arms and three seeds
    assert line["low"] < 0.05 < line["high"]
    assert line["p"] == pytest.approx(2 / 2**6)  # all 6 patients gain: the smallest p value that there is
    ratio = np.std(scores(out, study, "pretrained", 2).mean(1)) / np.std(scores(out, study, "scratch", 2).mean(1))
    assert line["spread_ratio"] == pytest.approx(ratio)


def test_labels_saved_follow_from_the_fake_learning_curve(finished):
    _, _, results = finished
    # 0.1 * log2(n) + 0.05 is reached by the other arm at n * sqrt(2)
    line = next(each for each in results["labels_saved"] if each["labels"] == 4)
    assert line["against_needs"] == pytest.approx(4 * 2**0.5, rel=0.15)
    assert line["low"] < 4 * 2**0.5 < line["high"]
    assert results["labels_saved"][-1]["never_reached"]


def test_scores_and_dose(finished):
    study, out, results = finished
    line = next(each for each in results["scores"] if (each["arm"], each["labels"]) == ("scratch", 4))
    assert line["by_seed"] == pytest.approx(scores(out, study, "scratch", 4).mean(axis=1))
    assert {each["dose"] for each in results["dose_response"]} == {0, 1}
    with (out / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(results["scores"]) == 3 * 3


def test_samples_without_positives_are_left_out_of_every_interval_of_an_auc(make_study):
    """All networks rank perfectly, so that each AUC that is defined is 1; 3 of 20 test patients have a positive."""
    study = load_study(make_study(score="auc", rates={"common": 0.01}))
    results = Results(study.path.parent / "out")
    Protocol(results).fix(study)
    cases = (f"c{number},p{number},{number < 3:d},{number < 3:d}" for number in range(20))
    lines = ["case,patient,score,label", *cases]
    for labels in study.labels:
        for arm in study.arms:
            for run in main_runs(study, arm, labels, 0.01):
                work, patients = results.begin(run), 10 if labels == "all" else labels
                (work / "result" / "cases.csv").write_text("\n".join(lines) + "\n")
                row = begin_row(run, study, patients, None, ()) | {"status": "done", "score": 1.0}
                results.finish(run, work, row | {"train_command": "", "evaluate_command": ""})
    assert main(["report", str(results.folder), "--resamples", "999"]) == 0
    found = json.loads((results.folder / "results.json").read_text())
    for line in found["scores"]:
        assert (line["score"], line["low"], line["high"]) == pytest.approx((1, 1, 1))
    for line in found["labels_saved"]:
        assert (line["against_needs"], line["low"], line["high"]) == pytest.approx((2, 2, 2))
    (left_out,) = re.findall(r"left out, (\d+) of 999 where they are most", found["method"])
    assert int(left_out) == pytest.approx(999 * (17 / 20) ** 19, abs=4 * 6.6)  # binomial, four standard deviations
    assert f"left out, {left_out} of 999" in (results.folder / "report.html").read_text()


@pytest.mark.parametrize(("count", "bars"), [(0, 0), (1, 1), (500, 500), (200_000, 500)])
def test_very_many_cases_are_drawn_at_even_distances_of_their_order(finished, count, bars):
    values = np.random.default_rng(0).normal(size=count)
    cases = [{"labels": 2, "difference": value} for value in values]
    (axes,) = draw_cases(finished[0], cases, 2).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert len(heights) == bars
    assert axes.get_xlabel().startswith(f"{count} cases, {(values > 0).sum()} above zero")
    assert axes.get_xlabel().endswith(", 500 of them drawn") == (count > bars)
    if count:
        assert (heights[0], heights[-1]) == (values.min(), values.max())
        # a bar stands at the share of cases that are below its height
        expected = np.quantile(values, np.linspace(0, 1, bars))
        np.testing.assert_allclose(heights[1:-1], expected[1:-1], rtol=0, atol=1e-3)
        assert axes.patches[-1].get_x() + axes.patches[-1].get_width() / 2 == pytest.approx(count - 1)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.opened = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def test_the_page_needs_no_other_file_and_begins_with_the_answer(finished):
    _, out, results = finished
    page = (out / "report.html").read_text()
    parser = Links()
    parser.feed(page)
    assert not parser.opened
    assert len(parser.found) >= 5
    assert all(link.startswith("data:image/") for link in parser.found)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*</style>", "", page, flags=re.S)))
    assert results["answer"][0] in text
    assert text.index(results["answer"][0]) < text.index("Score against label count")
    assert results["protocol"][0]["sha256"] in text
    assert text.count("python -m monai.bundle run") == 2 * results["runs"]["finished"]


def test_a_study_that_is_not_finished_says_so(make_study, tmp_path):
    study = load_study(make_study(rates={"common": 0.01}))
    Runner(study, Options(tmp_path / "out", jobs=0, arms=("scratch",)), lambda line: None)()
    assert main(["report", str(tmp_path / "out"), "--resamples", "99"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Preliminary: 6 of 12 runs are not done yet." in page
    assert "no finished pair of runs yet" in page


def test_no_difference_is_told_with_what_could_have_been_seen(make_study):
    study = load_study(make_study())
    line = {
        "arm": "pretrained", "against": "scratch", "labels": 2, "difference": 0.01, "low": -0.01, "high": 0.03,
        "p": 0.3, "p_holm": None, "patients": 58, "seeds": 3, "smallest_difference": 0.028,
    }  # fmt: skip
    text = sentence(study, line)
    assert text == (
        "With 2 labelled patients, pretrained against scratch: Dice +0.010 (95 % interval -0.010 to +0.030), p = 0.300,"
        " 58 test patients, 3 seeds: no difference shown. The smallest difference that this study could have shown is "
        "0.028 (80 % power)."
    )
    seeds_differ = sentence(study, {**line, "p": 0.001})
    assert "no difference shown beyond these seeds. The smallest" in seeds_differ
    worse = sentence(study, {**line, "difference": -0.05, "low": -0.07, "high": -0.03, "p": 0.0001})
    assert worse.endswith("p below 0.001, 58 test patients, 3 seeds: pretrained is worse.")


def test_power_before_a_study_is_run(make_study, capsys):
    path = make_study(assumed={"sd_patients": [0.05], "sd_seeds": [0.0]}, seeds=[0])
    assert main(["power", str(path)]) == 0
    # 6 patients: t test with 5 degrees of freedom
    assert "0.0717" in capsys.readouterr().out


def write_candidates(study, positives=1, negatives=3):
    """Name the list's scans s0 to s31, 20 of them for training, each with candidates; one of them is there twice."""
    content = json.loads(study.datalist.read_text())
    entries = [*content["training"], *content["testing"]]
    for number, entry in enumerate(entries):
        entry["seriesuid"] = f"s{number}"
    study.datalist.write_text(json.dumps(content | {"candidates": "candidates.csv"}))
    rows = [
        f"{name},{n},0,0,{int(n < positives)}"
        for name in [*(entry["seriesuid"] for entry in entries), "of_no_patient"]
        for n in range(positives + negatives)
    ]
    table = ["seriesuid,coordX,coordY,coordZ,class", *rows, "s31,0,0,0,1"]
    (study.dataset_dir / "candidates.csv").write_text("\n".join(table) + "\n")


@pytest.mark.parametrize(
    ("changes", "scans"), [({}, 12), ({"split": {"train": ["training"], "folds": 2}, "labels": [2, 4]}, 20)]
)
def test_power_of_an_auc_is_that_of_the_candidates_that_are_measured(make_study, capsys, changes, scans):
    """With a fixed split those of the test's 12 scans, with folds those of all 20 that are dealt out."""
    path = make_study(score="auc", **changes)
    write_candidates(load_study(path))
    assert main(["power", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{scans // 2} test patients" in lines[0]
    assert lines[1].startswith(f"{scans} positive and {3 * scans} negative cases of the test patients")
    error = auc_standard_error(0.8, scans, 3 * scans)
    expected = smallest_difference(error, 4 * scans - 2)  # both arms' correlation of 0.5 halves the variance of 2
    (row,) = [line.split() for line in lines if line.startswith("      0.8 ")]
    assert float(row[2]) == pytest.approx(expected, abs=5e-5)


def test_power_of_an_auc_asks_for_test_candidates_of_both_classes(make_study, capsys):
    path = make_study(score="auc")
    write_candidates(load_study(path), positives=0)
    assert main(["power", str(path)]) == 2
    assert "both classes of the test patients, found 0 positive and 36 negative" in capsys.readouterr().err


def test_power_after_it(finished, capsys):
    study, out, _ = finished
    assert main(["power", str(study.path), "--out", str(out)]) == 0
    assert "pretrained - scratch" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report nowhere", "power nowhere.json", "run nowhere.json --out x"])
def test_bad_input_gives_a_message_and_exit_code_2(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_a_region_that_a_run_never_finds_is_named(finished, tmp_path):
    study, out, results = finished
    assert results["never_found"] == []
    shutil.copytree(out, tmp_path / "out")
    run = main_runs(study, "pretrained", 2, 0.01)[1].name
    path = tmp_path / "out" / "runs" / run / "cases.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    region = [key for key in rows[0] if key not in ("case", "patient", "score")][-1]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, region: 0.0} for row in rows)
    assert main(["report", str(tmp_path / "out"), "--resamples", "99"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["never_found"] == [
        {"run": run, "region": region}
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"a region is not found in any test case, and means mix two kinds of runs: {region} in {run}." in page
