# SPDX-License-Identifier: Apache-2.0
"""Reports of candidates, bad rows and what becomes of them, on tables small enough to be counted by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from models_genesis.datasets import CandidateSet, PredictionStore
from models_genesis.training import (
    CandidateReport,
    CandidatesNotScoredError,
    CandidateWriter,
    prediction_store,
    rows_not_scored,
)


@pytest.fixture
def run_report(make_candidate_evaluator) -> Callable[..., dict]:
    def run(data: CandidateSet, folder: Path, **options) -> dict:
        store = PredictionStore(folder / "unfinished.csv", data.table)
        report = CandidateReport(folder, data, store, ckpt_dir=folder, num_resamples=20, **options)
        make_candidate_evaluator(data, [report]).run()
        assert not (folder / "unfinished.csv").exists()
        return json.loads((folder / "classification.json").read_text())

    return run


def test_a_report_by_hand(make_candidates, run_report, tmp_path):
    """Of 3 x 3 pairs two are in order: the positives of 1 and 2 beat the negative of 0."""
    summary = run_report(make_candidates(), tmp_path / "out")
    assert summary["ranking"]["auc"] == pytest.approx(2 / 9)
    assert (summary["scans"], summary["candidates"], summary["froc"]["lesions"]) == (3, 6, 3)
    # false positives 3 and 0, of three scans: at 1/3 a scan the nodule of 2, at 2/3 that of -1 too; one is missed
    assert summary["froc"]["sensitivity"][3:] == pytest.approx([2 / 3] * 4)
    assert summary["froc"]["sensitivity"][2] == pytest.approx(1 / 3)
    assert summary["froc"]["missed"] == 1


def test_without_positives_what_can_be_told_is_told(make_candidates, run_report, tmp_path):
    rows = ["a,0,0,1,0", "a,0,0,2,0", "b,0,1,0,0", "b,99,0,0,0"]
    summary = run_report(make_candidates(rows, annotations=None), tmp_path / "out")
    assert summary["ranking"]["auc"] is None and summary["froc"] is None
    assert summary["ranking"]["negatives"] == 4
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 5


def test_a_temperature_is_not_fitted_on_the_test(make_candidates, tmp_path):
    data = make_candidates()
    store = PredictionStore(tmp_path / "unfinished.csv", data.table)
    with pytest.raises(ValueError, match="must stay unseen"):
        CandidateReport(tmp_path, data, store, calibrate="temperature", split="testing")
    with pytest.raises(ValueError, match="expected 'temperature'"):
        CandidateReport(tmp_path, data, store, calibrate="platt")


def test_bad_rows_are_an_error_in_the_end(make_candidates, make_candidate_evaluator, tmp_path):
    data = make_candidates(more=["a,0,0,1,1", "nobody,0,0,0,0", "a,1,2"])
    folder = tmp_path / "out"
    store = PredictionStore(folder / "unfinished.csv", data.table)
    writer = CandidateWriter(folder, data, store)
    with pytest.raises(CandidatesNotScoredError, match="2 candidates could not be scored") as failure:
        make_candidate_evaluator(data, [writer], candidates=data, whole_table=True).run()
    assert "nobody" in str(failure.value) and "malformed row" in str(failure.value)
    lines = (folder / "candidates.csv").read_text().splitlines()
    assert len(lines) == 10 and lines[7].startswith("a,0,0,1,1,0.73") and lines[8] == "nobody,0,0,0,0,"
    # within a split rows of no scan are reported, and no error
    assert len(rows_not_scored(data)) == 0
    assert [line.split(",")[3] for line in (folder / "candidates_bad_rows.csv").read_text().splitlines()[1:]] == [
        "duplicate", "unknown seriesuid", "malformed row",
    ]  # fmt: skip
    again = PredictionStore(tmp_path / "unfinished.csv", data.table)
    with pytest.raises(ValueError, match="expected another folder"):
        CandidateWriter(tmp_path, data, again)


def test_the_result_of_another_table_is_kept(make_candidates, make_candidate_evaluator, tmp_path):
    folder = tmp_path / "out"

    def score(data: CandidateSet) -> None:
        with PredictionStore(folder / "unfinished.csv", data.table) as store:
            make_candidate_evaluator(data, [CandidateWriter(folder, data, store)]).run()

    score(make_candidates())
    score(make_candidates())  # again, such as with other weights
    score(make_candidates(more=["a,0,0,1,1"]))  # and with one candidate more
    before = (folder / "candidates.csv").read_bytes()
    with pytest.raises(FileExistsError, match="rows that it does not have; name another --output_dir"):
        score(make_candidates(["a,0,1,1,0"]))
    assert (folder / "candidates.csv").read_bytes() == before


def test_scores_go_on_for_the_same_scans_alone(make_candidates, tmp_path):
    data = make_candidates()
    weights, scan = tmp_path / "model.pt", tmp_path / "b.nii.gz"
    weights.write_bytes(b"weights")

    def scored(**settings: object) -> int:
        """Say how many are scored already, and score two."""
        with prediction_store(tmp_path / "unfinished.csv", data, weights, **settings) as store:
            found = len(store.done)
            store.add([0, 1], [0.5, 0.25])
        return found

    assert [scored(), scored(), scored(amp=True), scored(amp=True)] == [0, 2, 0, 2]
    os.utime(scan, (10**9, 10**9))  # another scan of the same size
    assert [scored(amp=True), scored(amp=True)] == [0, 2]
    scan.unlink()
    assert [scored(amp=True), scored(amp=True)] == [0, 2]
    weights.write_bytes(b"others")
    assert [scored(amp=True), scored(amp=True)] == [0, 2]
