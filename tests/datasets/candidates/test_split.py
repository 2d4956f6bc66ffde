# SPDX-License-Identifier: Apache-2.0
"""The scans of a split with their candidates: what does not fit is named, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models_genesis.datasets import BadRowError, load_candidates, subsample_negatives


def test_unknown_series_are_named_but_other_splits_are_not_bad(study: Any, write_table: Any) -> None:
    write_table(study.root / "candidates.csv", [*study.rows, ["s9", 0, 0, 0, 1]])
    data = study.load()
    (bad,) = data.table.bad_rows()
    assert (bad.line, bad.reason, bad.detail) == (14, "unknown seriesuid", "s9")
    assert [rows.tolist() for rows in data.rows] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert data.scan[9:12].tolist() == [-1] * 3
    with pytest.raises(BadRowError, match="line 14: unknown seriesuid: s9"):
        study.load(on_bad_row="raise")


def test_rows_of_scans_that_the_list_leaves_out_say_why(study: Any, write_table: Any) -> None:
    content = json.loads(study.json.read_text())
    content["left_out"] = {"s9": "unreadable: expected an image"}
    study.json.write_text(json.dumps(content))
    write_table(study.root / "candidates.csv", [*study.rows, ["s9", 0, 0, 0, 1]])
    (bad,) = study.load().table.bad_rows()
    assert (bad.reason, bad.detail) == ("scan left out", "s9: unreadable: expected an image")


def test_splits_and_tables_that_are_none(study: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected scans in 'testing', found none"):
        study.load("testing")
    content = json.loads(study.json.read_text())
    del content["candidates"]
    study.json.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected the name of a candidate table"):
        study.load()
    assert len(study.load(candidates=study.root / "candidates.csv").positives) == 3
    with pytest.raises(ValueError, match="luna16-candidates writes one"):
        load_candidates(None)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_subsampling_keeps_all_positives_and_its_choice(study, write_table, ratio):
    write_table(
        study.root / "candidates.csv", [(f"s{scan}", x, 0, 0, int(x == 0)) for scan in (0, 1) for x in range(20)]
    )
    data = study.load()
    fewer = subsample_negatives(data, ratio, seed=3)
    assert fewer.positives.tolist() == data.positives.tolist() and len(data.positives) == 2
    assert len(fewer.negatives) == round(2 * ratio) and set(fewer.negatives) <= set(data.negatives)
    assert fewer.negatives.tolist() == subsample_negatives(data, ratio, seed=3).negatives.tolist()
    assert len(data.negatives) == 38 and subsample_negatives(data) is data
    with pytest.raises(ValueError, match="above 0"):
        subsample_negatives(data, 0)


@pytest.mark.parametrize(("label", "missing"), [(0, "positive"), (1, "negative")])
def test_a_validation_needs_both_classes(study, write_table, label, missing):
    write_table(study.root / "candidates.csv", [("s0", x, 0, 0, label) for x in range(4)])
    with pytest.raises(ValueError, match=f"expected {missing} candidates to validate on, found none in 3 scans"):
        subsample_negatives(study.load())
