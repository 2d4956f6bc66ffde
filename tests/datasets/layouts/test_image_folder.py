# SPDX-License-Identifier: Apache-2.0
"""Any folder of scans: each scan once, patients together, what is left out with its reason."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImage, SaveImage

from models_genesis.datasets import ScanReader, ScanWriter, build_datalist, list_folder, load_datalist
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.io import dicom_series
from models_genesis.datasets.io.find_scans import find_scans
from models_genesis.datasets.splits import SPLITS

SMALL = {"min_size": (8, 8, 4)}


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
    summary = list_folder(scan_folder, **SMALL)
    name = path.split("/")[-1]
    scan = next((scan for scan in summary.scans if scan.image == name), None)
    if "found none" in message:
        assert scan is None
    elif "cannot" in message or "finite" in message or "admissible" in message:
        assert scan.split  # headers tell nothing of it; the cache finds out
    elif name in ("small.nii.gz", "slice.nii.gz"):
        assert (scan.reason, scan.split) == ("too small" if name.startswith("small") else "too few slices", "")
    else:
        assert scan.reason in message and not scan.split
        assert f"left out, {scan.reason}" in summary.table() and name in summary.table()
    assert sum(bool(scan.split) for scan in summary.scans if scan.image != name) == 5


def test_label_maps_are_left_out_by_name(scan_folder, tools):
    for name in [
        "a/first_seg.nii.gz",
        "labelsTr/a.nii.gz",
        "segmentation-3.nii",
        "b/Mask.nii.gz",
        "segmented/d.nii.gz",
    ]:
        tools.write_nifti(scan_folder / name, tools.make_scan(9))
    left_out = [scan.image for scan in list_folder(scan_folder, **SMALL).scans if scan.reason == "name excluded"]
    assert sorted(left_out) == ["a/first_seg.nii.gz", "b/Mask.nii.gz", "labelsTr/a.nii.gz", "segmentation-3.nii"]
    assert not [scan for scan in list_folder(scan_folder, exclude="", **SMALL).scans if scan.reason]


def test_what_a_bundle_wrote_is_no_scan(scan_folder, tools):
    """A restored scan in the folder of scans would be trained on, while its original validates."""
    before = sum(bool(scan.split) for scan in list_folder(scan_folder, **SMALL).scans)
    scan = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(scan_folder / "b" / "only.nii"))
    for postfix in ("restored", "deformed"):
        save = SaveImage(scan_folder / "out", postfix, writer=ScanWriter, resample=False, print_log=False)
        save(scan)
    found = list_folder(scan_folder, **SMALL)
    assert sum(bool(scan.split) for scan in found.scans) == before
    assert [scan.image for scan in found.scans if scan.reason == "written by a bundle"] == [
        "out/only/only_deformed.nii.gz", "out/only/only_restored.nii.gz",
    ]  # fmt: skip


def test_size_is_measured_along_the_body(tmp_path, tools):
    # the file's first axis points upward: 24 slices of 20 x 16
    affine = np.array([[0.0, 2, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    tools.write_nifti(tmp_path / "a.nii", tools.make_scan(0), affine)
    assert not list_folder(tmp_path, min_size=(20, 16, 24)).scans[0].reason
    assert list_folder(tmp_path, min_size=(20, 16, 25)).scans[0].reason == "too few slices"
    assert list_folder(tmp_path, min_size=(20, 17, 24)).scans[0].reason == "too small"


def test_dicom_one_entry_a_series_and_split_by_patient_identifier(tmp_path, tools):
    scan = tools.make_scan(0)
    tools.write_series(tmp_path / "one", scan, patient="P1")
    tools.write_series(tmp_path / "more", scan, "s", patient="P1")
    tools.write_series(tmp_path / "more", scan[..., :8], "t", patient="P2")
    tools.write_series(tmp_path / "pet", scan, patient="P3", modality="PT")
    tools.write_series(tmp_path / "scout", scan[..., :5], patient="P4", image_type="LOCALIZER")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("nothing")
    summary = list_folder(tmp_path, **SMALL)
    kept = {scan.image.split("::")[0]: [] for scan in summary.scans}
    for found in summary.scans:
        kept[found.image.split("::")[0]].append((found.patient, found.reason))
    assert sorted(kept.pop("more")) == [("P1", ""), ("P2", "")]
    assert kept == {"one": [("P1", "")], "pet": [("", "other modality")], "scout": [("", "localizer")]}
    splits = {scan.patient: scan.split for scan in summary.scans if scan.split}
    assert sorted(splits.values()) == ["training", "validation"]
    assert sum(not scan.reason for scan in list_folder(tmp_path, modality="any", **SMALL).scans) == 4
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
    scans = list_folder(tmp_path, patient_pattern=pattern, **SMALL).scans
    assert [scan.patient for scan in sorted(scans, key=lambda scan: scan.image)] == patients


def test_one_patient_is_pointed_out(tmp_path, tools):
    for number in range(3):
        tools.write_nifti(tmp_path / f"x_{number}.nii", tools.make_scan(0))
    summary = list_folder(tmp_path, patient_pattern="(x)", **SMALL)
    assert "--patient-pattern" in summary.table() and "one patient (x)" in summary.table()
    with pytest.raises(ValueError, match="expected the patient as first group"):
        list_folder(tmp_path, patient_pattern="(y)", **SMALL)


def test_loops_of_links_end(scan_folder):
    (scan_folder / "a/loop").symlink_to(scan_folder)
    assert len(list(find_scans(scan_folder))) == 5


def test_real_folder_of_scans(shared):
    summary = list_folder(shared / "data/ct")
    assert len(summary.scans) == 6 and not [scan for scan in summary.scans if scan.reason]
    assert len(build_datalist(shared / "data/ct")["validation"]) == 1
    lits = list_folder(shared / "data/lits", min_size=(64, 64, 16)).scans
    assert {scan.image: scan.reason for scan in lits} == {
        "segmentation-0.nii.gz": "name excluded",
        "segmentation-1.nii.gz": "name excluded",
        "volume-0.nii.gz": "",
        "volume-1.nii.gz": "",
    }


@pytest.fixture
def picture_folder(tmp_path):
    """Two pictures of each of three patients, among them what is no picture to learn from."""
    from PIL import Image

    rows = np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8)
    root = tmp_path / "pictures"
    for patient in ("00001", "00002", "00003"):
        for number in (0, 1):
            path = root / f"{patient}_{number:03}.{'png' if number else 'jpg'}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rows).save(path)
    Image.fromarray(np.stack([rows, rows, 255 - rows], -1)).save(root / "photo.png")
    Image.fromarray(rows[:60]).save(root / "small.png")
    Image.fromarray(rows).save(root / "lung_mask.png")
    return root


def test_pictures_are_listed_each_by_itself(picture_folder, tmp_path, capsys):
    line = ["folder", "--root", str(picture_folder), "--out", str(tmp_path / "list.json"), "--spatial-dims", "2"]
    assert main([*line, "--patient-pattern", r"(\d+)_\d+\."]) == 0
    datalist = json.loads((tmp_path / "list.json").read_text())
    listed = {split: {entry["patient"] for entry in datalist[split]} for split in SPLITS}
    assert [len(listed[split]) for split in SPLITS] == [2, 1, 0] and datalist["numTraining"] == 4
    printed = capsys.readouterr().out
    for reason in ("colour", "too small", "name excluded"):
        assert f"left out, {reason}" in printed
    assert "expected at least 64 x 64 voxels, found 80 x 60" in printed


def test_radiographs_that_come_with_pydicom_are_listed_and_nothing_else_is():
    from pydicom.data.data_manager import DATA_ROOT

    summary = list_folder(DATA_ROOT, spatial_dims=2, min_size=(8, 8), exclude="")
    kept = [scan.image for scan in summary.scans if scan.split]
    assert kept == [f"test_files/dicomdirtests/77654033/{name}" for name in ("CR1/6154", "CR2/6247", "CR3/6278")]
    assert {scan.patient for scan in summary.scans if scan.split} == {"77654033"}
    assert not any(scan.image.endswith("/DICOMDIR") for scan in summary.scans)
    only = list_folder(DATA_ROOT, spatial_dims=2, min_size=(8, 8), exclude="", modality="DX")
    assert {scan.reason for scan in only.scans if scan.image in kept} == {"other modality"}


def test_pictures_among_scans_need_to_be_asked_for(picture_folder, scan_folder):
    with pytest.raises(
        ValueError, match=r"found none, but .*: images of two dimensions are listed with --spatial-dims 2"
    ):
        list_folder(picture_folder)
    (picture_folder / "photo.png").rename(scan_folder / "photo.png")
    assert not any(scan.image.endswith(".png") for scan in list_folder(scan_folder, **SMALL).scans)
    with pytest.raises(ValueError, match=r"min_size: expected 2 sizes, found \[8, 8, 4\]"):
        list_folder(picture_folder, spatial_dims=2, **SMALL)


@pytest.mark.parametrize("series", [1, 2])
def test_a_folder_that_is_a_series_without_a_patient_is_a_patient(tmp_path, tools, series):
    """As an anonymised study is: its files lie in the folder that is listed."""
    for number in range(series):
        tools.write_series(tmp_path / "study", tools.make_scan(number), f"s{number}_", edit=without_patient)
    summary = list_folder(tmp_path / "study", validation_fraction=0, **SMALL)
    assert [scan.patient for scan in summary.scans] == ["study"] * series
    assert len(load_datalist(None, tmp_path / "study", validation_fraction=0, **SMALL)) == series


def without_patient(dataset, number):
    dataset.PatientID = ""


def test_patients_that_are_named_by_files_are_pointed_out(tmp_path, tools):
    """Two scans of a patient would else train and validate without a word."""
    for patient in range(2):
        for visit in range(2):
            tools.write_nifti(tmp_path / f"P{patient}_t{visit}.nii.gz", tools.make_scan(visit))
    (note,) = list_folder(tmp_path, **SMALL).notes
    assert note.startswith(
        "4 scans count as a patient each, named by their files; name patients with --patient-pattern"
    )
    assert list_folder(tmp_path, patient_pattern=r"(P\d)", **SMALL).notes == []
    for patient in range(2):
        (tmp_path / f"in/P{patient}").mkdir(parents=True)
        for path in list(tmp_path.glob(f"P{patient}_*")):
            path.rename(tmp_path / f"in/P{patient}/{path.name}")
    assert list_folder(tmp_path, **SMALL).notes == []


def test_headers_of_dicom_are_read_once(tmp_path, tools, read):
    """With more folders than are remembered."""
    number = dicom_series._find_series.cache_info().maxsize + 3
    for patient in range(number):
        tools.write_series(tmp_path / f"p{patient}", tools.make_scan(0, (8, 8, 4)), patient=f"p{patient}")
    found = list_folder(tmp_path, **SMALL)
    assert sum(bool(scan.split) for scan in found.scans) == number
    assert len(read) == 4 * number and set(read.values()) == {1}
