# SPDX-License-Identifier: Apache-2.0
"""Candidate tables: what is read, what is bad and named, and that the rest goes on."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from models_genesis.datasets import BadRowError, read_candidates
from models_genesis.datasets.candidates import table as table_module
from models_genesis.datasets.candidates.table import inside, voxels_of

HEADER = "seriesuid,coordX,coordY,coordZ,class\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_and_order_are_kept(tmp_path: Path) -> None:
    table = read_candidates(write(tmp_path / "c.csv", HEADER + "b,1,2,3,0\na,-4.5,5e1,6,1\nb,7,8,9,0\n"))
    assert len(table) == 3
    assert table.good.all()
    assert [table.series[code] for code in table.series_code] == ["b", "a", "b"]
    assert table.world.tolist() == [[1, 2, 3], [-4.5, 50, 6], [7, 8, 9]]
    assert table.label.tolist() == [0, 1, 0]
    assert table.line.tolist() == [2, 3, 4]
    assert np.isnan(table.probability).all()


def test_optional_columns_in_any_order(tmp_path: Path) -> None:
    text = "patient,coordZ,coordY,coordX,class,seriesuid,probability,note\np1,3,2,1,1.0,s,0.25,x\n,6,5,4,0,s,,y\n"
    table = read_candidates(write(tmp_path / "c.csv", text))
    assert table.good.all()
    assert table.world.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert table.label.tolist() == [1, 0]
    assert table.probability[0] == 0.25
    assert np.isnan(table.probability[1])
    assert table.patients == ("p1",)
    assert table.patient_code.tolist() == [0, -1]


BAD_ROWS = {
    "too few fields": ("a,1,2,3", "malformed row", "expected 5 fields, found 4"),
    "too many fields": ("a,1,2,3,0,9", "malformed row", "expected 5 fields, found 6"),
    "no series": (",1,2,3,0", "malformed row", "expected a seriesuid"),
    "unclosed quote": ('"a,1,2,3,0', "malformed row", "found 1"),
    "NUL": ("a\0b,1,2,3,0", "malformed row", "expected 5 fields, found 1"),
    "NaN": ("a,nan,2,3,0", "bad coordinate", "nan, 2, 3"),
    "infinite": ("a,1,inf,3,0", "bad coordinate", "1, inf, 3"),
    "opposite infinities": ("a,-inf,inf,3,0", "bad coordinate", "-inf"),
    "no number": ("a,1,2,x,0", "bad coordinate", "1, 2, x"),
    "empty": ("a,1,,3,0", "bad coordinate", "1, , 3"),
    "class 2": ("a,1,2,3,2", "bad class", "found '2'"),
    "class empty": ("a,1,2,3,", "bad class", "found ''"),
    "class text": ("a,1,2,3,yes", "bad class", "found 'yes'"),
    "duplicate": ("b,7,8,9,0", "duplicate", "found that of line 2"),
    "duplicate of another class": ("b,7,8,9.0,1", "duplicate", "of class 0 there and 1 here"),
    "no UTF-8": ("a,1,2,\udcff,0", "bad coordinate", r"1, 2, \udcff"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    row, reason, detail = BAD_ROWS[name]
    path = tmp_path / "c.csv"
    path.write_bytes(f"{HEADER}b,7,8,9,0\n{row}\nb,1,1,1,1\n".encode("utf-8", errors="surrogateescape"))
    table = read_candidates(path)
    assert table.good.tolist() == [True, False, True]
    (bad,) = table.bad_rows()
    assert (bad.file, bad.line, bad.row, bad.reason) == (str(path), 3, 1, reason)
    assert detail in bad.detail
    assert table.counts() == {reason: 1}
    assert f"1 {reason}" in caplog.text
    assert "line 3" in caplog.text
    assert table.write_bad_rows(tmp_path / "bad.csv") == 1
    caplog.text.encode("utf-8")
    with pytest.raises(BadRowError, match=r"c\.csv, line 3: .*\(1 bad rows in all\)"):
        read_candidates(path, on_bad_row="raise")


def test_bad_rows_are_written(tmp_path: Path) -> None:
    table = read_candidates(write(tmp_path / "c.csv", f"{HEADER}a,1,2,3,0\na,1,2\na,1,2,3,0\na,nan,2,3,0\n"))
    assert table.write_bad_rows(tmp_path / "bad.csv") == 3
    with open(tmp_path / "bad.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    found = [(row["line"], row["row"], row["reason"]) for row in rows]
    assert found == [("3", "1", "malformed row"), ("4", "2", "duplicate"), ("5", "3", "bad coordinate")]
    assert "1 of 4 rows are good" in table.summary()


def test_blank_lines_windows_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEADER.replace("\n", "\r\n").encode() + b"\r\na,1,2,3,1\r\n\r\n\r\n")
    table = read_candidates(path)
    assert table.good.tolist() == [True]
    assert table.line.tolist() == [3]


def test_class_may_lack_for_inference(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "seriesuid,coordX,coordY,coordZ\na,1,2,3\n")
    with pytest.raises(ValueError, match=r"expected each of the columns .*class once, found seriesuid"):
        read_candidates(path)
    table = read_candidates(path, with_class=False)
    assert table.good.all()
    assert table.label.tolist() == [-1]
    partly = write(tmp_path / "d.csv", HEADER + "a,1,2,3,\na,2,2,3,1\n")
    assert read_candidates(partly, with_class=False).label.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected each of the columns"),
        ("seriesuid,coordX,coordY,class\na,1,2,0\n", "coordZ"),
        ("seriesuid,coordX,coordY,coordZ,coordZ,class\n", "once"),
        (HEADER, "expected candidates, found a header alone"),
    ],
)
def test_no_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_candidates(write(tmp_path / "c.csv", text))


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_candidates(tmp_path / "nowhere.csv")


def test_world_to_voxel_through_flips_shears_and_lps() -> None:
    """A point that is built from a voxel by the scan's geometry in LPS comes back to that voxel."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        direction = np.linalg.qr(rng.standard_normal((3, 3)))[0]  # rotations and reflections
        lps = np.eye(4)
        lps[:3, :3] = direction * rng.uniform(0.5, 3, 3)
        lps[:3, 3] = rng.uniform(-300, 300, 3)
        voxels = rng.uniform(-10, 500, (5, 3))
        world = voxels @ lps[:3, :3].T + lps[:3, 3]
        assert np.allclose(voxels_of(world, np.diag([-1.0, -1, 1, 1]) @ lps), voxels, atol=1e-9)


def test_inside_reaches_to_the_faces() -> None:
    voxels = np.array([[-0.5, -0.5, -0.5], [3.5, 4.5, 5.5], [-0.51, 0, 0], [0, 4.51, 0], [0, 0, np.nan]])
    assert inside(voxels, (4, 5, 6)).tolist() == [True, True, False, False, False]


def test_large_tables_are_read_in_seconds(tmp_path: Path) -> None:
    """A tenth of LUNA16's 754,975 rows: 75,000 took 0.3 s of processor time where this was written."""
    rng = np.random.default_rng(0)
    names = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:030d}" for number in range(888)]
    world = rng.uniform(-200, 200, (75_000, 3))
    lines = [f"{names[i % 888]},{x:.4f},{y:.4f},{z:.4f},{int(i % 485 == 0)}" for i, (x, y, z) in enumerate(world)]
    path = write(tmp_path / "c.csv", HEADER + "\n".join(lines))
    begin = time.process_time()
    table = read_candidates(path)
    assert time.process_time() - begin < 3
    assert table.good.all()
    assert np.allclose(table.world, world, atol=1e-4)
    assert int(table.label.sum()) == len(range(0, 75_000, 485))


MESSY_CELLS = (
    "a",
    " b ",
    "",
    "1",
    "0",
    "1.0",
    "2",
    "-1.5e2",
    " 3 ",
    "1_000",
    "nan",
    "inf",
    "-inf",
    "1e308",
    '"q,r"',
    '"',
    "\0",
    "\udcff",
    "x",
)
"""What cells hold that are not plain numbers and names."""


@pytest.mark.parametrize("seed", range(12))
def test_blocks_are_read_as_their_rows_would_be(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of good, odd and bad rows, in blocks of all sizes, against the same rows one by one."""
    rng = np.random.default_rng(seed)
    columns = [*rng.permutation(["seriesuid", "coordX", "coordY", "coordZ", "class"])]
    for extra in ("probability", "patient", "note"):
        if rng.random() < 0.5:
            columns.insert(int(rng.integers(len(columns) + 1)), extra)
    odd = float(rng.choice([0.0, 0.002, 0.05]))

    def row() -> str:
        good = {"seriesuid": f"s{rng.integers(5)}", "class": str(rng.integers(2)), "patient": f"p{rng.integers(3)}"}
        cells = [good.get(name, f"{rng.integers(-3, 3) / 2}") for name in columns]
        cells = [str(rng.choice(MESSY_CELLS)) if rng.random() < odd else cell for cell in cells]
        return "" if rng.random() < odd else ",".join(cells[: len(cells) - (rng.random() < odd)])

    end = str(rng.choice(["\n", "\r\n", "\r"]))
    text = (
        end * int(rng.integers(2))
        + end.join([",".join(columns), *(row() for _ in range(200))])
        + end * int(rng.integers(2))
    )
    path = tmp_path / "c.csv"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with_class = bool(rng.integers(2))
    monkeypatch.setattr(table_module, "BLOCK", int(rng.integers(1, 64)))
    found = read_candidates(path, with_class)
    monkeypatch.setattr(table_module._Reader, "_good_columns", lambda self, texts: None)
    expected = read_candidates(path, with_class)
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert getattr(found, name).dtype == value.dtype
            np.testing.assert_array_equal(getattr(found, name), value)
        else:
            assert getattr(found, name) == value
    assert list(map(str, found.bad_rows())) == list(map(str, expected.bad_rows()))


def test_plain_tables_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not row by row, or a table of LUNA16's size takes twice the time."""
    path = write(tmp_path / "c.csv", HEADER + "a,1,2,3,0\nb,-1.5, 2e1,3,1\n")
    monkeypatch.setattr(table_module._Reader, "_row", None)
    assert read_candidates(path).good.all()
    with pytest.raises(TypeError):
        read_candidates(write(tmp_path / "d.csv", HEADER + "a,1,2,3,0\nb,1,x,3,1\n"))
