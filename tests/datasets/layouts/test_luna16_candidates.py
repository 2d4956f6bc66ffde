# SPDX-License-Identifier: Apache-2.0
"""LUNA16's candidates from its raw layout: folds, flipped scans, the real scan, and any CT folder with a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from monai.transforms import LoadImaged, Orientationd, Spacingd
from scipy import ndimage

from models_genesis.datasets import (
    BadRowError,
    CandidateStream,
    list_candidates,
    list_luna16_candidates,
    load_candidates,
    write_datalist,
    write_luna16_phantom,
)
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.luna16_candidates import ten_fold
from models_genesis.transforms import CandidateCubed, ClipHounsfieldd

SHAPE = (72, 60, 56)


def preprocessing(spacing: tuple[float, ...] | None = None) -> list:
    resample = [] if spacing is None else [Spacingd("image", pixdim=spacing, mode="bilinear")]
    return [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        *resample,
        ClipHounsfieldd("image", round_values=True),
    ]


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom chests in LUNA16's layout, one in each of the subsets 0 to 5."""
    return write_luna16_phantom(tmp_path_factory.mktemp("luna") / "raw", 6, shape=SHAPE)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_phantom_has_the_layout_of_luna16(luna: Path) -> None:
    images = sorted(luna.glob("subset*/*.mhd"))
    assert [path.parent.name for path in images] == [f"subset{number}" for number in range(6)]
    flips = ["-1 0 0 0 -1 0 0 0 1" in path.read_text() for path in images]
    assert flips == [False, True, False, False, True, False]
    candidates, nodules = rows_of(luna / "candidates_V2.csv"), rows_of(luna / "annotations.csv")
    assert list(candidates[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "class"]
    assert list(nodules[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
    for uid in {row["seriesuid"] for row in candidates}:
        own = np.array(
            [
                [float(row[key]) for key in ("coordX", "coordY", "coordZ", "class")]
                for row in candidates
                if row["seriesuid"] == uid
            ]
        )
        centers = np.array(
            [
                [float(row[key]) for key in ("coordX", "coordY", "coordZ", "diameter_mm")]
                for row in nodules
                if row["seriesuid"] == uid
            ]
        )
        distance = np.linalg.norm(own[:, None, :3] - centers[None, :, :3], axis=2)
        hits = distance <= centers[:, 3] / 2
        # a positive is a hit of the challenge's rule, each nodule has one, and no negative is one
        assert np.array_equal(hits.any(1), own[:, 3] == 1)
        assert hits.any(0).all()
        assert (own[:, 3] == 0).sum() == 24
    excluded = rows_of(luna / "annotations_excluded.csv")
    assert len(excluded) == 12
    assert all(row["diameter_mm"] == "-1" for row in excluded)


def test_phantom_is_written_once(luna: Path, tmp_path: Path) -> None:
    before = (luna / "candidates_V2.csv").stat().st_mtime_ns
    assert write_luna16_phantom(luna, 6, shape=SHAPE) == luna
    assert (luna / "candidates_V2.csv").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another phantom"):
        write_luna16_phantom(luna, 7, shape=SHAPE)
    with pytest.raises(ValueError, match="num_patients"):
        write_luna16_phantom(tmp_path / "none", 0)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_nodules_lie_in_the_middle_of_their_cubes(
    luna: Path, tmp_path: Path, spacing: tuple[float, ...] | None
) -> None:
    """In flipped scans too: the nodule's own centre shows tissue, negatives in the lung show lung."""
    summary = list_luna16_candidates(luna, folds={"training": tuple(range(6)), "validation": (), "testing": ()})
    nodules = rows_of(luna / "annotations.csv")
    with open(tmp_path / "nodules.csv", "w", encoding="utf-8") as stream:
        stream.write("seriesuid,coordX,coordY,coordZ,class\n")
        for row in nodules:
            stream.write(f"{row['seriesuid']},{row['coordX']},{row['coordY']},{row['coordZ']},1\n")
    write_datalist(tmp_path / "list.json", summary.datalist())
    data = load_candidates(tmp_path / "list.json", luna, candidates=tmp_path / "nodules.csv")
    items = list(CandidateStream(data, preprocessing(spacing), CandidateCubed("image", (9, 9, 9))))
    assert len(items) == len(nodules)
    middles = np.array([item["image"][0, 4, 4, 4] for item in items])
    # part-solid nodules are about -560 HU at their rim and 5 HU in the middle, lung is below -800
    assert (middles > -650).mean() > 0.95
    corners = np.array([item["image"][0, ::8, ::8, ::8].astype(float).mean() for item in items])
    assert (middles > corners).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"training": {0, 1, 2, 3, 4}, "validation": {5}, "testing": set()}),
        (["--fold", "4"], {"training": {0, 1, 2, 3}, "validation": {5}, "testing": {4}}),
        (
            ["--train", "0-1", "--validation", "2", "--test", "3-5"],
            {"training": {0, 1}, "validation": {2}, "testing": {3, 4, 5}},
        ),
    ],
)
def test_folds(luna: Path, tmp_path: Path, options: list[str], expected: dict[str, set[int]]) -> None:
    out = tmp_path / "list.json"
    assert main(["luna16-candidates", "--root", str(luna), "--out", str(out), *options]) == 0
    content = json.loads(out.read_text())
    for split, folds in expected.items():
        assert {int(entry["image"][6]) for entry in content[split]} == folds
    assert content["candidates"] == "candidates_V2.csv"
    assert content["annotations"] == "annotations.csv"
    assert content["annotations_excluded"] == "annotations_excluded.csv"
    rows = rows_of(luna / "candidates_V2.csv")
    for entry in content["training"]:
        own = [row for row in rows if row["seriesuid"] == entry["seriesuid"]]
        assert (entry["candidates"], entry["positives"]) == (len(own), sum(row["class"] == "1" for row in own))


def test_ten_folds_test_each_subset_once() -> None:
    splits = [ten_fold(fold) for fold in range(10)]
    assert [split["testing"] for split in splits] == [(fold,) for fold in range(10)]
    for split in splits:
        assert sorted(sum(split.values(), ())) == list(range(10))
    with pytest.raises(ValueError, match="0 to 9"):
        ten_fold(10)


def test_by_patient_for_a_part(luna: Path, tmp_path: Path) -> None:
    out = tmp_path / "list.json"
    command = ["luna16-candidates", "--root", str(luna), "--out", str(out), "--by-patient", "--seed", "1"]
    assert main([*command, "--validation-fraction", "0.34", "--test-fraction", "0.17"]) == 0
    content = json.loads(out.read_text())
    assert [len(content[split]) for split in ("training", "validation", "testing")] == [3, 2, 1]


def test_older_table_and_missing_tables(luna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "raw"
    (root / "CSVFILES").mkdir(parents=True)
    for number in range(6):
        (root / f"subset{number}").symlink_to(luna / f"subset{number}", target_is_directory=True)
    command = ["luna16-candidates", "--root", str(root), "--out", str(tmp_path / "list.json")]
    assert main(command) == 2
    assert "expected candidates_V2.csv or candidates.csv, found neither" in capsys.readouterr().err
    (root / "CSVFILES" / "candidates.csv").write_text((luna / "candidates_V2.csv").read_text())
    assert main(command) == 0
    assert "annotations.csv is missing: no FROC" in capsys.readouterr().out
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["candidates"] == "CSVFILES/candidates.csv"
    assert "annotations" not in content


def test_bad_rows_are_named_counted_and_written(luna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (luna / "candidates_V2.csv").read_text().splitlines()
    uid = lines[1].split(",")[0]
    lines[3:3] = [f"{uid},1e4,0,0,0", "1.2.3.4,0,0,0,1", f"{uid},nan,0,0,0", f"{uid},0,0", lines[1]]
    table = tmp_path / "bad_table.csv"
    table.write_text("\n".join(lines) + "\n")
    command = ["luna16-candidates", "--root", str(luna), "--out", str(tmp_path / "l.json"), "--candidates", str(table)]
    assert main([*command, "--bad-rows", str(tmp_path / "bad.csv")]) == 0
    found = [(row["line"], row["reason"]) for row in rows_of(tmp_path / "bad.csv")]
    assert found == [
        ("4", "outside its scan"),
        ("5", "unknown seriesuid"),
        ("6", "bad coordinate"),
        ("7", "malformed row"),
        ("8", "duplicate"),
    ]
    printed = capsys.readouterr().out
    assert "1 outside its scan" in printed
    assert "line 5: 1.2.3.4" in printed
    assert main([*command, "--on-bad-row", "raise"]) == 2
    assert "line 4: outside its scan" in capsys.readouterr().err
    with pytest.raises(BadRowError, match=r"5 bad rows in all"):
        list_luna16_candidates(luna, candidates=table, on_bad_row="raise")


def test_a_broken_scan_is_left_out_with_its_candidates(luna: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for path in luna.rglob("*"):
        if path.is_file():
            (root / path.relative_to(luna)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(luna)).symlink_to(path)
    broken = next(root.glob("subset2/*.mhd"))
    broken.unlink()
    broken.write_text("no image")
    summary = list_luna16_candidates(root)
    (left_out,) = summary.header["left_out"].items()
    assert left_out[0] == broken.stem
    assert left_out[1].startswith("unreadable")
    number = sum(row["seriesuid"] == broken.stem for row in rows_of(luna / "candidates_V2.csv"))
    assert f"{number} scan left out" in summary.table()
    write_datalist(tmp_path / "list.json", summary.datalist())
    assert load_candidates(tmp_path / "list.json", root).table.counts() == {"scan left out": number}


def test_no_positives_in_a_fold_is_said(luna: Path, tmp_path: Path) -> None:
    rows = rows_of(luna / "candidates_V2.csv")
    last = next(luna.glob("subset5/*.mhd")).stem
    table = tmp_path / "c.csv"
    with open(table, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "class": "0" if row["seriesuid"] == last else row["class"]} for row in rows)
    notes = list_luna16_candidates(luna, candidates=table).notes
    assert any(note.endswith("0 positive; without positives AUC and sensitivity are undefined") for note in notes)


def test_the_real_nodule_is_in_the_middle_of_its_cube(shared: Path, tmp_path: Path) -> None:
    """The annotated nodule of 15.5 mm at voxel (72, 65, 159) of the file is whole and in the middle of its cube."""
    root = shared / "data" / "luna16"
    write_datalist(tmp_path / "list.json", list_luna16_candidates(root).datalist())
    data = load_candidates(tmp_path / "list.json", root)
    assert (len(data.positives), len(data.negatives)) == (1, 18)
    items = list(CandidateStream(data, preprocessing(), CandidateCubed("image", (64, 64, 32))))
    assert len(items) == 19
    (nodule,) = (item for item in items if item["label"] == 1)
    cube = nodule["image"][0].astype(float)
    # the scan's axes point to left, back and head; the prepared scan's to right, front and head
    raw = LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None)({"image": data.data[0]["image"]})
    file_cube = np.asarray(raw["image"])[72 - 31 : 72 + 33, 65 - 31 : 65 + 33, 159 - 16 : 159 + 16].clip(-1000, 1000)
    assert np.array_equal(cube, file_cube[::-1, ::-1])
    # the part that is brighter than -300 HU around the middle is the nodule: its centre of mass, weighted by brightness
    parts, _ = ndimage.label(ndimage.binary_opening(cube > -300, iterations=2))
    own = parts == parts[32, 32, 16]
    assert parts[32, 32, 16] > 0
    middle = np.array(ndimage.center_of_mass((cube + 1000) * own))
    assert np.linalg.norm(middle - (32, 32, 16)) < 2.5
    diameter = 2 * (0.75 * own.sum() / np.pi) ** (1 / 3)
    assert diameter == pytest.approx(15.5, abs=4)


# any CT folder


def test_any_folder_in_any_format(tmp_path: Path, tools: SimpleNamespace) -> None:
    root = tmp_path / "ct"
    tools.write_nifti(root / "p1" / "first.nii.gz", tools.make_scan(0))
    tools.write_nifti(root / "p2" / "second.nii", tools.make_scan(1))
    tools.write_series(root / "third", tools.make_scan(2), patient="P3")
    tools.write_nifti(root / "p4" / "other.nii.gz", tools.make_scan(3))
    table = tmp_path / "table.csv"
    table.write_text(
        "seriesuid,coordX,coordY,coordZ,class,patient\n"
        "first,-3,-4,6,1,anna\np2/second,-3,-4,6,1,anna\nthird,3,4,6,0,\nthird,-900,4,6,0,\nfourth,0,0,0,0,\n"
    )
    out = tmp_path / "list.json"
    command = ["candidates", "--root", str(root), "--candidates", str(table), "--out", str(out)]
    assert main([*command, "--validation-fraction", "0.5", "--bad-rows", str(tmp_path / "bad.csv")]) == 0
    content = json.loads(out.read_text())
    entries = [entry for split in ("training", "validation", "testing") for entry in content[split]]
    assert {entry["image"]: entry["patient"] for entry in entries} == {
        "p1/first.nii.gz": "anna", "p2/second.nii": "anna", "third": "P3",
    }  # fmt: skip
    assert {entry["seriesuid"]: (entry["candidates"], entry["positives"]) for entry in entries} == {
        "first": (1, 1), "p2/second": (1, 1), "third": (1, 0),
    }  # fmt: skip
    assert [row["reason"] for row in rows_of(tmp_path / "bad.csv")] == ["outside its scan", "unknown seriesuid"]
    # both of anna's scans are in one split
    assert {len(content["training"]), len(content["validation"])} == {1, 2}


def test_dicom_by_its_series_identifier(tmp_path: Path, tools: SimpleNamespace) -> None:
    pydicom = pytest.importorskip("pydicom")
    root = tmp_path / "ct"
    tools.write_series(root / "x", tools.make_scan(2))
    uid = pydicom.dcmread(next((root / "x").iterdir())).SeriesInstanceUID
    table = tmp_path / "table.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ,class\n{uid},3,4,6,1\n")
    (scan,) = list_candidates(root, table).scans
    assert (scan.image, scan.facts["seriesuid"], scan.facts["positives"]) == ("x", uid, 1)


def test_ambiguous_and_unmatched_names(tmp_path: Path, tools: SimpleNamespace) -> None:
    root = tmp_path / "ct"
    for name in ("a/scan.nii.gz", "b/scan.nii.gz", "c/only.nii.gz"):
        tools.write_nifti(root / name, tools.make_scan(0))
    table = tmp_path / "table.csv"
    header = "seriesuid,coordX,coordY,coordZ,class\n"
    table.write_text(header + "scan,-3,-4,6,1\nonly,-3,-4,6,1\n")
    summary = list_candidates(root, table)
    assert "expected one scan of this name, found a/scan.nii.gz, b/scan.nii.gz" in summary.header["left_out"]["scan"]
    assert "1 scan left out" in summary.table()
    table.write_text(header + "nothing,-3,-4,6,1\n")
    with pytest.raises(ValueError, match=r"expected scans named as in .* found none among 3"):
        list_candidates(root, table)
    table.write_text(header + "scan,-3,-4,6,1\n")
    with pytest.raises(ValueError, match=r"found several scans of one name \(scan: a/scan.nii.gz, b/scan.nii.gz\)"):
        list_candidates(root, table)
    table.write_text("seriesuid,coordX,coordY,coordZ,class,patient\nonly,-3,-4,6,1,x\nonly,-3,-5,6,1,y\n")
    with pytest.raises(ValueError, match="expected one patient for the series only, found x, y"):
        list_candidates(root, table)
