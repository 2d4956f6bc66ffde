# SPDX-License-Identifier: Apache-2.0
"""Hits, bad rows and what becomes of them, on tables small enough to be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import IterableDataset

from models_genesis.datasets import CandidateSet, PredictionStore, load_candidates
from models_genesis.training import (
    CandidateEvaluator,
    CandidateLoss,
    CandidateReport,
    CandidatesNotScoredError,
    CandidateWriter,
    mark_candidates,
    read_lesions,
    rows_not_scored,
    thin_candidates,
)
from models_genesis.training.metrics.lesions import hit_rule

HEADER = "seriesuid,coordX,coordY,coordZ,class"
ANNOTATIONS = "seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,0,6\nb,0,0,0,6\nb,50,0,0,6\nz,0,0,0,6\n"
EXCLUDED = "seriesuid,coordX,coordY,coordZ,diameter_mm\na,80,0,0,-1\n"
TABLE = ["a,0,0,1,1", "a,0,0,2,1", "a,80,0,0,0", "a,90,0,0,0", "b,0,1,0,1", "b,99,0,0,0"]
LOGITS = np.array([1.0, 2.0, 5.0, 3.0, -1.0, 0.0])


@pytest.fixture
def make(tmp_path):
    """Three scans, the last without candidates."""

    def make_set(rows: list[str], header: str = HEADER, annotations: str | None = ANNOTATIONS) -> CandidateSet:
        for name in "abc":
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
        (tmp_path / "candidates.csv").write_text("\n".join([header, *rows]) + "\n")
        content = {"candidates": "candidates.csv", "training": [], "testing": []}
        content["validation"] = [{"image": f"{name}.nii.gz", "patient": name, "seriesuid": name} for name in "abc"]
        if annotations is not None:
            (tmp_path / "annotations.csv").write_text(annotations)
            (tmp_path / "excluded.csv").write_text(EXCLUDED)
            content |= {"annotations": "annotations.csv", "annotations_excluded": "excluded.csv"}
        (tmp_path / "list.json").write_text(json.dumps(content))
        return load_candidates(tmp_path / "list.json", key="validation")

    return make_set


def test_hits_by_the_radius(make):
    data = make(TABLE)
    assert hit_rule(data) == "radius"
    series, marks = mark_candidates(data, LOGITS)
    assert series == ["a", "b", "c"]
    assert [scan.found.tolist() for scan in marks[:1]] == [[2.0]] and marks[0].false_positives.tolist() == [3.0]
    assert (marks[0].repeated, marks[0].ignored) == (1, 1)
    np.testing.assert_equal(marks[1].found, [-1.0, np.nan])
    assert len(marks[2].found) == len(marks[2].false_positives) == 0  # counts among the scans all the same


def test_hits_by_name(make):
    """Two candidates of one embolus count once; one without a candidate is missed; a nameless one is its own."""
    rows = ["a,0,0,1,1,1", "a,9,0,2,1,1", "a,80,0,0,0,", "b,0,1,0,1,2", "b,3,1,0,1,", "b,99,0,0,0,"]
    listed = "seriesuid,lesion,coordX,coordY,coordZ,diameter_mm\na,1,0,0,0,2\nb,2,0,0,0,2\nb,3,9,0,0,2\n"
    data = make(rows, HEADER + ",lesion", listed)
    assert hit_rule(data) == "lesion"
    _, marks = mark_candidates(data, LOGITS)
    assert marks[0].found.tolist() == [2.0] and marks[0].repeated == 1
    np.testing.assert_equal(np.sort(marks[1].found), [-1.0, 3.0, np.nan])
    assert marks[1].false_positives.tolist() == [0.0]


def test_without_annotations_each_positive_is_a_lesion(make):
    data = make(TABLE, annotations=None)
    assert hit_rule(data) == "candidate"
    _, marks = mark_candidates(data, LOGITS)
    assert sorted(marks[0].found.tolist()) == [1.0, 2.0] and sorted(marks[0].false_positives.tolist()) == [3.0, 5.0]


def test_a_candidate_without_a_score_was_not_proposed(make):
    data = make(TABLE)
    _, marks = mark_candidates(data, np.where(np.arange(6) < 2, np.nan, LOGITS))
    assert np.isnan(marks[0].found).all()


def test_a_scan_that_cannot_be_read_is_left_out(make):
    data = make(TABLE)
    data.table.mark([0, 1, 2, 3], "scan cannot be read")
    assert mark_candidates(data, LOGITS)[0] == ["b", "c"]
    assert rows_not_scored(data).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seriesuid,coordX\na,1\n", "without"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,nan,4\n", "line 2"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3\n", "line 2"),
    ],
)
def test_broken_annotations_are_refused(text, found, tmp_path):
    (tmp_path / "annotations.csv").write_text(text)
    with pytest.raises(ValueError, match=found):
        read_lesions(tmp_path / "annotations.csv")
    with pytest.raises(FileNotFoundError, match="expected annotations"):
        read_lesions(tmp_path / "none.csv")


class Stream(IterableDataset):
    """Items of the rows of a set, fewer than its length says."""

    def __init__(self, data: CandidateSet, claimed: int) -> None:
        self.data = data
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self):
        for row in np.concatenate(self.data.rows).tolist():
            value = torch.tensor([LOGITS[row]], dtype=torch.float32)
            yield {"image": value, "label": np.float32([self.data.table.label[row]]), "row": row}


def evaluator(data: CandidateSet, handlers: list, **kwargs) -> CandidateEvaluator:
    loader = DataLoader(Stream(data, 100), batch_size=4, num_workers=0)
    network = torch.nn.Identity()
    return CandidateEvaluator(torch.device("cpu"), loader, network, val_handlers=handlers, **kwargs)


def test_the_end_of_the_stream_ends_the_epoch_whatever_its_length_says(make):
    """Otherwise ignite starts it again to fill up the promised length."""
    seen: list[int] = []
    engine = evaluator(make(TABLE), [])
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda run: seen.extend(int(i["row"]) for i in run.state.batch)
    )
    for epoch in (1, 2):
        engine.run(epoch)
    assert seen == [*range(6)] * 2


def run_report(data: CandidateSet, folder: Path, **options) -> dict:
    store = PredictionStore(folder / "unfinished.csv", data.table)
    evaluator(data, [CandidateReport(folder, data, store, ckpt_dir=folder, num_resamples=20, **options)]).run()
    assert not (folder / "unfinished.csv").exists()
    return json.loads((folder / "classification.json").read_text())


def test_a_report_by_hand(make, tmp_path):
    """Of 3 x 3 pairs two are in order: the positives of 1 and 2 beat the negative of 0."""
    summary = run_report(make(TABLE), tmp_path / "out")
    assert summary["ranking"]["auc"] == pytest.approx(2 / 9)
    assert (summary["scans"], summary["candidates"], summary["froc"]["lesions"]) == (3, 6, 3)
    # false positives 3 and 0, of three scans: at 1/3 a scan the nodule of 2, at 2/3 that of -1 too; one is missed
    assert summary["froc"]["sensitivity"][3:] == pytest.approx([2 / 3] * 4)
    assert summary["froc"]["sensitivity"][2] == pytest.approx(1 / 3)
    assert summary["froc"]["missed"] == 1


def test_without_positives_what_can_be_told_is_told(make, tmp_path):
    rows = [row[:-1] + "0" for row in TABLE]
    summary = run_report(make(rows, annotations=None), tmp_path / "out")
    assert summary["ranking"]["auc"] is None and summary["froc"] is None
    assert summary["ranking"]["negatives"] == 6
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 7
    with pytest.raises(ValueError, match="expected positive candidates to validate on, found none in 3 scans"):
        thin_candidates(make(rows, annotations=None))


def test_a_temperature_is_not_fitted_on_the_test(make, tmp_path):
    data = make(TABLE)
    store = PredictionStore(tmp_path / "unfinished.csv", data.table)
    with pytest.raises(ValueError, match="must stay unseen"):
        CandidateReport(tmp_path, data, store, calibrate="temperature", split="testing")
    with pytest.raises(ValueError, match="expected 'temperature'"):
        CandidateReport(tmp_path, data, store, calibrate="platt")


def test_bad_rows_are_an_error_in_the_end(make, tmp_path):
    data = make([*TABLE, "a,0,0,1,1", "nobody,0,0,0,0", "a,1,2"])
    folder = tmp_path / "out"
    store = PredictionStore(folder / "unfinished.csv", data.table)
    writer = CandidateWriter(folder, data, store)
    with pytest.raises(CandidatesNotScoredError, match="2 candidates could not be scored") as failure:
        evaluator(data, [writer], candidates=data, whole_table=True).run()
    assert "nobody" in str(failure.value) and "malformed row" in str(failure.value)
    lines = (folder / "candidates.csv").read_text().splitlines()
    assert len(lines) == 10 and lines[7].startswith("a,0,0,1,1,0.73") and lines[8] == "nobody,0,0,0,0,"
    # within a split rows of no scan are reported, and no error
    assert len(rows_not_scored(data)) == 0
    again = PredictionStore(tmp_path / "unfinished.csv", data.table)
    with pytest.raises(ValueError, match="expected another folder"):
        CandidateWriter(tmp_path, data, again)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_thinning_keeps_all_positives_and_its_choice(ratio, make):
    rows = [f"{name},{x},0,0,{int(x == 0)}" for name in "ab" for x in range(20)]
    data = make(rows)
    thin = thin_candidates(data, ratio, seed=3)
    assert thin.positives.tolist() == data.positives.tolist()
    assert len(thin.negatives) == round(2 * ratio) and set(thin.negatives) <= set(data.negatives)
    assert thin.negatives.tolist() == thin_candidates(data, ratio, seed=3).negatives.tolist()
    assert len(data.negatives) == 38 and thin_candidates(data) is data
    with pytest.raises(ValueError, match="above 0"):
        thin_candidates(data, 0)


def test_the_loss_is_binary_cross_entropy_with_two_options():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 1, generator=generator)
    target = (torch.rand(64, 1, generator=generator) < 0.5).float()
    expected = binary_cross_entropy_with_logits(logits, target)
    assert float(CandidateLoss()(logits, target)) == pytest.approx(float(expected), rel=1e-5)
    smooth = binary_cross_entropy_with_logits(logits, target * 0.8 + 0.1)
    assert float(CandidateLoss(label_smoothing=0.2)(logits, target)) == pytest.approx(float(smooth), rel=1e-5)
    # Lin et al.: (1 - p)^gamma, p the probability of the true class
    probability = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    focal = ((1 - probability) ** 2 * -probability.log()).mean()
    assert float(CandidateLoss(focal_gamma=2)(logits, target)) == pytest.approx(float(focal), rel=1e-4)
    with pytest.raises(ValueError, match="label_smoothing"):
        CandidateLoss(label_smoothing=1)
