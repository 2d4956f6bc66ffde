# SPDX-License-Identifier: Apache-2.0
"""Hits of annotated lesions, on tables small enough to be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.training import match_detections, read_lesions, rows_not_scored
from models_genesis.training.metrics.lesions import hit_rule

HEADER = "seriesuid,coordX,coordY,coordZ,class"


def test_hits_by_the_radius(make_candidates, logits):
    data = make_candidates()
    assert hit_rule(data) == "radius"
    series, detections = match_detections(data, logits)
    assert series == ["a", "b", "c"]
    assert [scan.found.tolist() for scan in detections[:1]] == [[2.0]] and detections[0].false_positives.tolist() == [
        3.0
    ]
    assert (detections[0].repeated, detections[0].ignored) == (1, 1)
    np.testing.assert_equal(detections[1].found, [-1.0, np.nan])
    assert len(detections[2].found) == len(detections[2].false_positives) == 0  # counts among the scans all the same


def test_hits_by_name(make_candidates, logits):
    """Two candidates of one embolus count once; one without a candidate is missed; a nameless one is its own."""
    rows = ["a,0,0,1,1,1", "a,9,0,2,1,1", "a,80,0,0,0,", "b,0,1,0,1,2", "b,3,1,0,1,", "b,99,0,0,0,"]
    listed = "seriesuid,lesion,coordX,coordY,coordZ,diameter_mm\na,1,0,0,0,2\nb,2,0,0,0,2\nb,3,9,0,0,2\n"
    data = make_candidates(rows, f"{HEADER},lesion", listed)
    assert hit_rule(data) == "lesion"
    _, detections = match_detections(data, logits)
    assert detections[0].found.tolist() == [2.0] and detections[0].repeated == 1
    np.testing.assert_equal(np.sort(detections[1].found), [-1.0, 3.0, np.nan])
    assert detections[1].false_positives.tolist() == [0.0]


PLACED = "coordX,coordY,coordZ,diameter_mm"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (f"lesion,{PLACED}\na,1.0,0,0,0,2\n", r"to name one of the lesions of .*\['1\.0'\]; found '1'"),
        (f"{PLACED}\na,0,0,0,2\n", r"expected a name of its own for each lesion of a .* found \[''\]"),
        (f"lesion,{PLACED}\na,1,0,0,0,2\na,1,9,0,0,2\n", r"found \['1', '1'\]"),
        (f"lesion,{PLACED}\nb,1,0,0,0,2\n", r"positive candidate of a .*, \[\]; found '1'"),
    ],
)
def test_names_that_do_not_meet_are_refused(listed, message, make_candidates, logits):
    """They counted as lesions that were missed, and as others that were found."""
    rows = ["a,0,0,1,1,1", "a,9,0,2,1,1", "a,80,0,0,0,", "b,0,1,0,0,", "b,3,1,0,0,", "b,99,0,0,0,"]
    data = make_candidates(rows, f"{HEADER},lesion", f"seriesuid,{listed}")
    with pytest.raises(ValueError, match=message):
        match_detections(data, logits)


def test_without_annotations_each_positive_is_a_lesion(make_candidates, logits):
    data = make_candidates(annotations=None)
    assert hit_rule(data) == "candidate"
    _, detections = match_detections(data, logits)
    assert sorted(detections[0].found.tolist()) == [1.0, 2.0] and sorted(detections[0].false_positives.tolist()) == [
        3.0,
        5.0,
    ]


def test_a_candidate_without_a_score_was_not_proposed(make_candidates, logits):
    data = make_candidates()
    _, detections = match_detections(data, np.where(np.arange(6) < 2, np.nan, logits))
    assert np.isnan(detections[0].found).all()


def test_a_scan_that_cannot_be_read_is_left_out(make_candidates, logits):
    data = make_candidates()
    data.table.mark([0, 1, 2, 3], "scan cannot be read")
    assert match_detections(data, logits)[0] == ["b", "c"]
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
