# SPDX-License-Identifier: Apache-2.0
"""Broken tables and JSON are named; no cell of a report is a formula."""

from __future__ import annotations

import csv
import json
import os

import pytest

from models_genesis.datasets import DatasetSummary, ScanRecord
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.io.csv_file import read_csv, safe_cell, write_csv
from models_genesis.datasets.io.json_file import read_json

FORMULAS = (
    "=cmd|' /C calc'!A0",
    "+1+cmd",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "  =1",
    "\uff1d1",
    "-case",
    "--1",
    "+",
    "-1.5 mm",
)
NUMBERS = ("-1.5", "+2", "-1e-05", "-inf", "3")


def test_a_formula_gets_an_apostrophe_and_a_number_stays():
    assert [safe_cell(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert [safe_cell(text) for text in NUMBERS] == list(NUMBERS)
    assert [safe_cell(value) for value in (-1.5, None, 3, "lung", "")] == [-1.5, None, 3, "lung", ""]


def test_reports_hold_no_formulas(tmp_path):
    scans = [ScanRecord(f"{text}/ct.nii", text, reason="unreadable", detail=text) for text in FORMULAS]
    DatasetSummary(tmp_path, scans, [], {}).write_report(tmp_path / "report.csv")
    write_csv(tmp_path / "scores.csv", ("case", "value"), [{"case": text, "value": -1.5} for text in FORMULAS])
    for name in ("report.csv", "scores.csv"):
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        assert len(rows) == len(FORMULAS)
        for cell in (cell for row in rows for cell in row):
            assert cell == "-1.5" or not cell.strip().startswith(("=", "+", "-", "@", "\uff1d")), cell


BROKEN = {
    "no JSON": b"{",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "no UTF-8": b'{"a": "\xff"}',
    "a list": b"[1]",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_json_is_named(kind, tmp_path, capsys):
    path = tmp_path / "list.json"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=rf"^{path}: expected"):
        read_json(path)
    assert main(["check", "--datalist", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    (tmp_path / "dataset.json").write_bytes(BROKEN[kind])
    assert main(["msd", "--root", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 2
    assert "dataset.json" in capsys.readouterr().err


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "list.json").write_bytes(b'\xef\xbb\xbf{"training": []}')
    assert read_json(tmp_path / "list.json") == {"training": []}


def test_broken_tables_are_named_with_the_line(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3," + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=rf"^{path}, line 3: expected rows, found field larger"):
        list(read_csv(path, ("a",), "rows"))
    path.write_bytes(b"a,b\n1,\xff\n")
    with pytest.raises(ValueError, match=rf"^{path}: expected rows in UTF-8"):
        list(read_csv(path, ("a",), "rows"))
    path.write_text("a\n1\n")
    with pytest.raises(ValueError, match="expected the columns b"):
        list(read_csv(path, ("b",), "rows"))
    path.write_text("a,b\n1\n1,2,3\n")
    assert list(read_csv(path, ("a",), "rows")) == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


@pytest.mark.parametrize("header", ["a,b,b", "b,a,b", "b,b,b,a"])
def test_a_column_that_is_there_several_times_is_refused_where_it_is_read(header, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n1,2,3,4\n")
    with pytest.raises(ValueError, match=rf"^{path}: expected one column b, found several of this name"):
        list(read_csv(path, ("a", "b"), "rows"))
    assert [row["a"] for row in read_csv(path, ("a",), "rows")] == [str(header.split(",").index("a") + 1)]


def test_a_name_that_is_not_utf_8_is_left_out_and_the_rest_goes_on(tmp_path, capsys):
    """As a directory of an old Windows share gives it."""
    import nibabel as nib
    import numpy as np

    root = tmp_path / "raw"
    volume = nib.Nifti1Image(np.zeros((80, 80, 40), np.int16), np.eye(4))
    for name in (b"a", b"b", b"Universit\xe4t"):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        nib.save(volume, tmp_path / "ct.nii")
        os.rename(tmp_path / "ct.nii", os.path.join(folder, b"ct.nii"))
    arguments = ["--out", str(tmp_path / "list.json"), "--report", str(tmp_path / "report.csv")]
    assert main(["folder", "--root", str(root), *arguments]) == 0
    out = capsys.readouterr().out
    assert "name is not UTF-8" in out and "Universit\\udce4t" in out
    content = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))
    assert sorted(each["image"] for each in content["training"] + content["validation"]) == ["a/ct.nii", "b/ct.nii"]
    assert "Universit\\udce4t" in (tmp_path / "report.csv").read_text(encoding="utf-8")


def test_a_nul_is_refused_in_a_table_and_escaped_in_a_report(tmp_path):
    """Python 3.10 cannot write one, and others end a text there."""
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,x\0y\n")
    with pytest.raises(ValueError, match=r"table\.csv, line \d: expected a table, found .*NUL"):
        list(read_csv(path, ["a"], "a table"))
    write_csv(path, ["a"], [{"a": "x\0y"}])
    assert path.read_text() == "a\nx\\x00y\n"
