# SPDX-License-Identifier: Apache-2.0
"""Predictions outlive the process, damage changes none of them, and tables keep their form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models_genesis.datasets import PredictionStore, read_candidates, write_probabilities, write_submission
from models_genesis.datasets.candidates.predictions import holds_only


def test_predictions_survive_and_are_taken_up(study: Any, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([3, 0], [-2.25, 1.0])
        store.add([5], [1e-7])
    # a process that was killed leaves half a line
    with open(tmp_path / "p.part", "a", encoding="utf-8") as file:
        file.write("7,0.")
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert store.done.tolist() == [0, 3, 5]
        assert store.values[[0, 3, 5]].tolist() == [1.0, -2.25, 1e-7]
        store.add([7], [0.5])
    assert any(line.startswith("7,0.5,") for line in (tmp_path / "p.part").read_text().splitlines())
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert np.flatnonzero(~np.isnan(store.values)).tolist() == [0, 3, 5, 7]


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "row -1": lambda lines: [*lines, "-1,0.9"],
    "row -1 with the checksum of another": lambda lines: [*lines, "-1," + lines[1].split(",", 1)[1]],
    "another value": lambda lines: [lines[0], lines[1].replace(",1.0,", ",9.0,"), *lines[2:]],
    "another row": lambda lines: [lines[0], "4" + lines[1][1:], *lines[2:]],
    "no number": lambda lines: [lines[0], "x,y,z", *lines[1:]],
    "too large a row": lambda lines: [*lines, "99999999999999999999999,0.5"],
    "nothing": lambda lines: [*lines, "", ",", ",,"],
    "other characters": lambda lines: [*lines, "\udcff\u2028\x0b\u0663,0.5,00000000"],
    "no checksums": lambda lines: [lines[0], *(line.rpartition(",")[0] for line in lines[1:])],
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_damaged_or_edited_store_changes_no_prediction(
    kind: str, study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line counts as it was written or not at all; its row is scored again."""
    table = study.load().table
    right = np.full(len(table), np.nan)
    right[[0, 3, 5]] = 1.0, -2.25, 1e-7
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([0, 3], right[[0, 3]].tolist())
        store.add([5], [1e-7])
    lines = (tmp_path / "p.part").read_text().splitlines()
    edited = "\n".join(EDITS[kind](lines)) + "\n"
    (tmp_path / "p.part").write_bytes(edited.encode(errors="surrogateescape"))
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert np.isin(store.done, [0, 3, 5]).all()
        np.testing.assert_array_equal(store.values[store.done], right[store.done])
        missing = [row for row in (0, 3, 5) if row not in store.done]
        store.add(missing, right[missing].tolist())
    assert "damaged, cut off or were edited" in caplog.text and str(tmp_path / "p.part") in caplog.text
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        np.testing.assert_array_equal(store.values, right)


def test_of_flipped_bits_in_a_store_none_changes_a_prediction(study: Any, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([0, 3, 5], [1.0, -2.25, 1e-7])
    whole, right = (tmp_path / "p.part").read_bytes(), {0: 1.0, 3: -2.25, 5: 1e-7}
    for bit in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / "p.part").write_bytes(content)
        with PredictionStore(tmp_path / "p.part", table, "weights") as store:
            assert all(store.values[row] == right[int(row)] for row in store.done), bit


def test_a_second_process_does_not_write_to_the_same_store(study: Any, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table) as store:
        store.add([3], [0.5])
        with pytest.raises(OSError, match=r"p\.part: another process"):
            PredictionStore(tmp_path / "p.part", table, "other weights")
        store.add([4], [0.5])
    with PredictionStore(tmp_path / "p.part", table) as store:
        assert store.done.tolist() == [3, 4]


@pytest.mark.parametrize("change", ["key", "table", "resume"])
def test_predictions_of_something_else_are_not_taken_up(
    study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, write_table: Any
) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([3], [0.25])
    if change == "table":
        write_table(study.root / "candidates.csv", [[*row[:4], 0] for row in study.rows])
        table = read_candidates(study.root / "candidates.csv")
    key = "other weights" if change == "key" else "weights"
    with PredictionStore(tmp_path / "p.part", table, key, resume=change != "resume") as store:
        assert len(store.done) == 0
    assert ("belongs to another table or other scans" in caplog.text) == (change != "resume")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(study: Any, tmp_path: Path, value: float) -> None:
    with (
        PredictionStore(tmp_path / "p.part", study.load().table) as store,
        pytest.raises(ValueError, match="line 6: expected a finite prediction"),
    ):
        store.add([4], [value])


def test_rows_order_and_columns_are_kept_with_probabilities(tmp_path: Path) -> None:
    text = (
        "seriesuid,coordX,coordY,coordZ,note,class\n"
        'a,1.50,2,3,"x, y",1\n'
        "a,1,2\n"
        "b,9,9,9,z,0\n"
        "\n"
        "a,1.5,2.0,3,again,1\n"
        "b,nan,0,0,,0\n"
    )
    path = tmp_path / "c.csv"
    path.write_text(text, encoding="utf-8")
    table = read_candidates(path)
    probabilities = np.full(len(table), np.nan)
    probabilities[0] = 0.125
    assert write_probabilities(tmp_path / "out.csv", table, probabilities) == 2
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "seriesuid,coordX,coordY,coordZ,note,class,probability",
        'a,1.50,2,3,"x, y",1,0.125',
        "a,1,2",
        "b,9,9,9,z,0,",
        "a,1.5,2.0,3,again,1,0.125",
        "b,nan,0,0,,0,",
    ]
    assert write_submission(tmp_path / "s.csv", table, probabilities) == 1
    assert (tmp_path / "s.csv").read_text() == "seriesuid,coordX,coordY,coordZ,probability\na,1.5,2.0,3.0,0.125\n"
    # it is known as this table's result, and as that of a table which has grown; no other table's
    assert holds_only(tmp_path / "out.csv", table)
    grown = tmp_path / "grown.csv"
    grown.write_text(text + "c,1,2,3,,0\n", encoding="utf-8")
    assert holds_only(tmp_path / "out.csv", read_candidates(grown))
    for before, after in (("b,9", "b,8"), ("note", "remark"), ("a,1,2\n", ""), ("1.50", "1.5")):
        other = tmp_path / "other.csv"
        other.write_text(text.replace(before, after), encoding="utf-8")
        assert not holds_only(tmp_path / "out.csv", read_candidates(other))
    assert not holds_only(path, table)
    # what was written can be read, scored again, and keeps its form
    again = read_candidates(tmp_path / "out.csv")
    assert again.probability[0] == 0.125 and holds_only(tmp_path / "out.csv", again)
    probabilities[0] = 0.5
    write_probabilities(tmp_path / "out.csv", again, probabilities)
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == 'a,1.50,2,3,"x, y",1,0.5'
    with pytest.raises(ValueError, match="expected a probability for each of 5 rows"):
        write_probabilities(tmp_path / "out.csv", again, np.zeros(2))


def test_a_table_that_has_changed_is_not_written(tmp_path: Path) -> None:
    text = "seriesuid,coordX,coordY,coordZ,class\na,1,2,3,1\na,2,2,3,0\n"
    path, out = tmp_path / "c.csv", tmp_path / "out.csv"
    path.write_text(text)
    out.write_text("as before")
    table = read_candidates(path)
    for changed, rows in ((text + "a,3,2,3,0\n", 3), (text[: text.index("a,2")], 1), ("", 0)):
        path.write_text(changed)
        with pytest.raises(ValueError, match=rf"c\.csv: expected 2 rows as before, found {rows}: it has changed"):
            write_probabilities(out, table, np.zeros(2))
        assert out.read_text() == "as before" and {file.name for file in tmp_path.iterdir()} == {"c.csv", "out.csv"}
