# SPDX-License-Identifier: Apache-2.0
"""Data lists name every scan once, keep patients together, and say what is left out."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from models_genesis.datasets import build_datalist, load_datalist, split_patients, survey_folder, survey_luna16
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.io.find_scans import find_scans
from models_genesis.datasets.layouts.luna16 import parse_folds
from models_genesis.datasets.splits import SPLITS

SMALL = {"min_size": (8, 8, 4)}


@pytest.mark.parametrize("seed", range(40))
def test_each_patient_is_in_one_split_and_fractions_are_met(seed):
    rng = np.random.default_rng(seed)
    names = [f"patient{number}" for number in range(rng.integers(1, 30))]
    validation, testing = rng.uniform(0, 0.45, 2)
    splits = split_patients([*names, *names[:3]], validation, testing, seed)
    assert sorted(splits) == sorted(names)
    counts = {split: list(splits.values()).count(split) for split in SPLITS}
    assert counts["training"] >= 1
    if len(names) > 1:
        assert counts["validation"] >= 1
    if len(names) > 4:
        assert abs(counts["testing"] - testing * len(names)) <= 0.5
        assert counts["validation"] == max(1, round(validation * len(names)))
    assert splits == split_patients(reversed(names), validation, testing, seed)


def test_the_seed_deals_differently_and_evenly():
    # each of 10 patients should be in validation in 0.2 of 500 deals: 100 +- 5 * sqrt(500 * 0.2 * 0.8) = 100 +- 45
    names = [f"p{number}" for number in range(10)]
    counts = dict.fromkeys(names, 0)
    for seed in range(500):
        for name, split in split_patients(names, seed=seed).items():
            counts[name] += split == "validation"
    assert all(55 <= count <= 145 for count in counts.values())


def test_a_patient_more_moves_few_others():
    names = [f"p{number}" for number in range(50)]
    before, after = split_patients(names), split_patients([*names, "new"])
    assert sum(before[name] != after[name] for name in names) <= 1


@pytest.mark.parametrize("fractions", [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="leave patients for training"):
        split_patients(["a", "b"], *fractions)


def test_folder_lists_every_scan_once_by_patient(scan_folder, tmp_path):
    arguments = ["folder", "--root", str(scan_folder), "--out", str(tmp_path / "list.json"), "--min-size", "8,8,4"]
    assert main([*arguments, "--report", str(tmp_path / "report.csv")]) == 0
    datalist = json.loads((tmp_path / "list.json").read_text())
    patients = {split: {entry["patient"] for entry in datalist[split]} for split in SPLITS}
    assert patients["training"] | patients["validation"] == {"a", "b", "c"} and len(patients["validation"]) == 1
    assert not patients["training"] & patients["validation"]
    images = sorted(entry["image"] for split in SPLITS for entry in datalist[split])
    assert images == ["a/first.nii.gz", "a/second.nii.gz", "b/only.nii", "c/deep/y.nii.gz", "c/x.nii.gz"]
    assert datalist["numTraining"] + datalist["numValidation"] == 5 and datalist["seed"] == 0
    with open(tmp_path / "report.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image"]: row["split"] for row in rows} == {
        entry["image"]: split for split in SPLITS for entry in datalist[split]
    }
    assert rows[0]["shape"] == "24 x 20 x 16" and rows[0]["spacing"] == "2 x 2 x 3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "report.csv", "scans"]
    # MONAI reads the same, and so do we
    for split in ("training", "validation"):
        stock = load_decathlon_datalist(tmp_path / "list.json", False, split, scan_folder)
        ours = load_datalist(tmp_path / "list.json", scan_folder, split)
        assert [entry["image"] for entry in ours] == [entry["image"] for entry in stock]
        assert ours == load_datalist(None, scan_folder, split, **SMALL)


def test_absolute_paths_need_no_folder(scan_folder, tmp_path):
    arguments = ["folder", "--root", str(scan_folder), "--out", str(tmp_path / "deep/list.json"), "--min-size", "1,1,1"]
    assert main([*arguments, "--absolute"]) == 0
    assert {entry["image"] for entry in load_datalist(tmp_path / "deep/list.json")} <= {
        str(path) for path in scan_folder.rglob("*.nii*")
    }


def test_bad_and_unwanted_scans_are_left_out_with_the_reason(scan_folder, bad_scan, tools):
    path, message = bad_scan
    survey = survey_folder(scan_folder, **SMALL)
    name = path.split("/")[-1]
    scan = next((scan for scan in survey.scans if scan.image == name), None)
    if "found none" in message:
        assert scan is None
    elif "cannot" in message or "finite" in message or "admissible" in message:
        assert scan.split  # headers tell nothing of it; the cache finds out
    elif name in ("small.nii.gz", "slice.nii.gz"):
        assert (scan.reason, scan.split) == ("too small" if name.startswith("small") else "too few slices", "")
    else:
        assert scan.reason in message and not scan.split
        assert f"left out, {scan.reason}" in survey.table() and name in survey.table()
    assert sum(bool(scan.split) for scan in survey.scans if scan.image != name) == 5


def test_label_maps_are_left_out_by_name(scan_folder, tools):
    for name in [
        "a/first_seg.nii.gz",
        "labelsTr/a.nii.gz",
        "segmentation-3.nii",
        "b/Mask.nii.gz",
        "segmented/d.nii.gz",
    ]:
        tools.write_nifti(scan_folder / name, tools.make_scan(9))
    left_out = [scan.image for scan in survey_folder(scan_folder, **SMALL).scans if scan.reason == "name excluded"]
    assert sorted(left_out) == ["a/first_seg.nii.gz", "b/Mask.nii.gz", "labelsTr/a.nii.gz", "segmentation-3.nii"]
    assert not [scan for scan in survey_folder(scan_folder, exclude="", **SMALL).scans if scan.reason]


def test_size_is_measured_along_the_body(tmp_path, tools):
    # the file's first axis points upward: 24 slices of 20 x 16
    affine = np.array([[0.0, 2, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    tools.write_nifti(tmp_path / "a.nii", tools.make_scan(0), affine)
    assert not survey_folder(tmp_path, min_size=(20, 16, 24)).scans[0].reason
    assert survey_folder(tmp_path, min_size=(20, 16, 25)).scans[0].reason == "too few slices"
    assert survey_folder(tmp_path, min_size=(20, 17, 24)).scans[0].reason == "too small"


def test_dicom_one_entry_a_series_and_split_by_patient_identifier(tmp_path, tools):
    scan = tools.make_scan(0)
    tools.write_series(tmp_path / "one", scan, patient="P1")
    tools.write_series(tmp_path / "more", scan, "s", patient="P1")
    tools.write_series(tmp_path / "more", scan[..., :8], "t", patient="P2")
    tools.write_series(tmp_path / "pet", scan, patient="P3", modality="PT")
    tools.write_series(tmp_path / "scout", scan[..., :5], patient="P4", image_type="LOCALIZER")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("nothing")
    survey = survey_folder(tmp_path, **SMALL)
    kept = {scan.image.split("::")[0]: [] for scan in survey.scans}
    for found in survey.scans:
        kept[found.image.split("::")[0]].append((found.patient, found.reason))
    assert sorted(kept.pop("more")) == [("P1", ""), ("P2", "")]
    assert kept == {"one": [("P1", "")], "pet": [("", "other modality")], "scout": [("", "localizer")]}
    splits = {scan.patient: scan.split for scan in survey.scans if scan.split}
    assert sorted(splits.values()) == ["training", "validation"]
    assert sum(not scan.reason for scan in survey_folder(tmp_path, modality="any", **SMALL).scans) == 4
    # the entries load as they are listed
    for entry in load_datalist(None, tmp_path, "training", **SMALL):
        assert tools.preprocessing()[0](entry)["image"].shape[1:3] == (24, 20)


def test_dicom_files_without_suffix_in_the_root(tmp_path, tools):
    tools.write_series(tmp_path, tools.make_scan(0), patient="P1")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    assert list(find_scans(tmp_path)) == ["."]
    entry = load_datalist(None, tmp_path, **SMALL)[0]
    assert entry == {"image": str(tmp_path), "patient": "P1"}


@pytest.mark.parametrize(
    ("names", "pattern", "patients"),
    [
        (["p1_a.nii", "p1_b.nii", "p2.nii"], "", ["p1_a", "p1_b", "p2"]),
        (["p1_a.nii", "p1_b.nii", "p2_a.nii"], r"(p\d)", ["p1", "p1", "p2"]),
        (["images/p1.nii", "images/p2.nii"], "", ["p1", "p2"]),
        (["ct/p1/a.nii", "ct/p1/b/c.nii", "ct/p2/a.nii"], "", ["p1", "p1", "p2"]),
    ],
)
def test_who_a_patient_is(names, pattern, patients, tmp_path, tools):
    for name in names:
        tools.write_nifti(tmp_path / name, tools.make_scan(0))
    scans = survey_folder(tmp_path, patient_pattern=pattern, **SMALL).scans
    assert [scan.patient for scan in sorted(scans, key=lambda scan: scan.image)] == patients


def test_one_patient_is_pointed_out(tmp_path, tools):
    for number in range(3):
        tools.write_nifti(tmp_path / f"x_{number}.nii", tools.make_scan(0))
    survey = survey_folder(tmp_path, patient_pattern="(x)", **SMALL)
    assert "--patient-pattern" in survey.table() and "one patient (x)" in survey.table()
    with pytest.raises(ValueError, match="expected the patient as first group"):
        survey_folder(tmp_path, patient_pattern="(y)", **SMALL)


def test_loops_of_links_end(scan_folder):
    (scan_folder / "a/loop").symlink_to(scan_folder)
    assert len(list(find_scans(scan_folder))) == 5


def luna16_tree(root, tools, folds=range(10)):
    for fold in folds:
        for number in range(2):
            path = root / f"subset{fold}" / f"1.2.{fold}.{number}.mhd"
            path.parent.mkdir(parents=True, exist_ok=True)
            scan = tools.make_scan(0)
            raw = path.with_suffix(".raw")
            raw.write_bytes(scan.T.tobytes())
            path.write_text(
                "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 24 20 16\n"
                f"ElementType = MET_SHORT\nElementDataFile = {raw.name}\n"
            )


def test_luna16_by_fold(tmp_path, tools, capsys):
    luna16_tree(tmp_path / "raw", tools)
    (tmp_path / "raw/subset3/1.2.3.1.raw").unlink()
    assert main(["luna16", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "list.json")]) == 0
    datalist = json.loads((tmp_path / "list.json").read_text())
    folds = {split: sorted({int(entry["image"][6]) for entry in datalist[split]}) for split in SPLITS}
    assert folds == {"training": [0, 1, 2, 3, 4], "validation": [5, 6], "testing": [7, 8, 9]}
    assert [datalist[name] for name in ("numTraining", "numValidation", "numTest")] == [9, 4, 6]
    assert "subset3/1.2.3.1.mhd: expected 1.2.3.1.raw beside it, found none" in capsys.readouterr().out
    assert len(load_datalist(tmp_path / "list.json", tmp_path / "raw", "testing")) == 6
    # a complete tree is recognised, a part of it is split by scan
    assert build_datalist(tmp_path / "raw")["training"] == datalist["training"]
    for fold in range(1, 10):
        shutil.rmtree(tmp_path / f"raw/subset{fold}")
    part = build_datalist(tmp_path / "raw", **SMALL)
    assert (part["numTraining"], part["numValidation"]) == (1, 1)


def test_luna16_reports_missing_subsets_and_selects_folds(shared, tmp_path, capsys):
    root = shared / "data/luna16"
    arguments = ["luna16", "--root", str(root), "--out", str(tmp_path / "list.json")]
    assert main([*arguments, "--train", "0,2", "--validation", "", "--test", "4-5"]) == 0
    assert "subsets missing" in (output := capsys.readouterr().out) and "2, 4, 5" in output
    assert load_datalist(tmp_path / "list.json", root)[0]["image"].endswith(".mhd")
    assert main([*arguments, "--train", "1-4"]) == 2
    assert "expected scans to train on, found no scans at all" in capsys.readouterr().err
    assert main([*arguments, "--train", "0-5"]) == 2
    assert "found fold 5 in training and validation" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a", "3-1", "10", "1,,x"])
def test_wrong_folds_are_refused(text):
    with pytest.raises(ValueError, match="expected folds"):
        parse_folds(text)


def test_real_folder_of_scans(shared):
    survey = survey_folder(shared / "data/ct")
    assert len(survey.scans) == 6 and not [scan for scan in survey.scans if scan.reason]
    assert len(build_datalist(shared / "data/ct")["validation"]) == 1
    lits = survey_folder(shared / "data/lits", min_size=(64, 64, 16)).scans
    assert {scan.image: scan.reason for scan in lits} == {
        "segmentation-0.nii.gz": "name excluded",
        "segmentation-1.nii.gz": "name excluded",
        "volume-0.nii.gz": "",
        "volume-1.nii.gz": "",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--root", "{}/empty"], "expected scans .* found none"),
        (["folder", "--root", "{}/nowhere"], "no such folder"),
        (["luna16", "--root", "{}/empty"], "expected the folders subset0"),
        (["luna16", "--root", "{}/nowhere"], "no such folder"),
        (["folder", "--root", "{}/text"], "expected scans to train on, found 1 unreadable"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.nii").write_text("no image")
    assert main([*(part.format(tmp_path) for part in arguments), "--out", str(tmp_path / "list.json")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == 1 and re.search(f"^error: .*{message}", errors[0])
    assert not (tmp_path / "list.json").exists()


def test_the_module_runs(tmp_path):
    command = [sys.executable, "-m", "models_genesis.datasets", "folder", "--root", str(tmp_path), "--out", "list.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: {tmp_path}: expected scans" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "expected a data list, found no such file"),
        ("{", ValueError, "expected a data list in JSON"),
        ("[1, 2]", ValueError, "expected a data list, found list"),
        ('{"validation": []}', ValueError, r"expected a list named 'training', found \['validation'\]"),
        ('{"training": [{"label": "a"}]}', ValueError, "expected an 'image' in entry 0"),
        ('{"training": [{"image": "gone%d.nii"}]}', FileNotFoundError, "7 of 7 images are missing"),
    ],
)
def test_wrong_data_lists_are_named(content, error, message, tmp_path):
    path = tmp_path / "list.json"
    if content is not None:
        if "gone" in content:
            content = json.dumps({"training": [{"image": f"gone{number}.nii"} for number in range(7)]})
        path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        load_datalist(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("gone") in (0, 5)


def test_neither_list_nor_folder_is_refused():
    with pytest.raises(ValueError, match="found neither"):
        load_datalist(None)


def test_bare_paths_and_lists_of_channels(scan_folder):
    (scan_folder / "list.json").write_text(
        json.dumps({"test": ["a/first.nii.gz"], "training": [{"image": ["a/first.nii.gz", "b/only.nii"]}]})
    )
    assert load_datalist(scan_folder / "list.json", key="test") == [{"image": str(scan_folder / "a/first.nii.gz")}]
    channels = [str(scan_folder / "a/first.nii.gz"), str(scan_folder / "b/only.nii")]
    assert load_datalist(scan_folder / "list.json") == [{"image": channels}]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, tools):
    luna16_tree(tmp_path / "raw", tools, [0])
    survey = survey_luna16(tmp_path / "raw", (0,), (), ())
    report = tmp_path / "out" / "report.csv"
    survey.write_report(report)
    before = report.read_text()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        survey.write_report(report)
    assert report.read_text() == before and [path.name for path in report.parent.iterdir()] == ["report.csv"]


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b", "\ud800.nii"])
def test_names_that_no_file_can_have_are_missing(tmp_path, name):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": name}]}))
    with pytest.raises(FileNotFoundError, match=r"list.json \(training\): 1 of 1 images are missing") as caught:
        load_datalist(path)
    str(caught.value).encode()
