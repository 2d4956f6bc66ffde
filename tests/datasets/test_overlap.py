# SPDX-License-Identifier: Apache-2.0
"""Scans in two places are found by their voxels, their bytes and their names, and by nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models_genesis.datasets import load_datalist
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.overlap import find_overlap
from models_genesis.datasets.prepare import Preparation, prepare_store
from models_genesis.datasets.store.location import Location
from models_genesis.datasets.store.manifest import Store

SMALL = Preparation(cube_size=(8, 8, 4), border=None)


@pytest.fixture
def store(tmp_path: Path, tools) -> str:
    """Scans 0 to 3 of patients a and b; scan 1 is there a second time, compressed and turned round, for validation."""
    folder = tmp_path / "scans"
    for number in range(4):
        tools.write_nifti(folder / f"scan{number}.nii", tools.make_scan(number))
    scan = nib.load(folder / "scan1.nii")
    turned = np.asarray(scan.dataobj)[::-1, ::-1]
    affine = scan.affine @ np.diag([-1.0, -1, 1, 1])
    affine[:2, 3] = (scan.affine @ [turned.shape[0] - 1, turned.shape[1] - 1, 0, 1])[:2]
    tools.write_nifti(folder / "again.nii.gz", turned, affine)
    training = [{"image": f"scan{number}.nii", "patient": "ab"[number % 2]} for number in range(4)]
    validation = [{"image": "again.nii.gz", "patient": "c"}]
    (folder / "list.json").write_text(json.dumps({"training": training, "validation": validation}))
    prepare_store(folder / "list.json", str(tmp_path / "store"), preparation=SMALL, progress=False)
    return str(tmp_path / "store")


def task(folder: Path, entries: list[dict]) -> Path:
    (folder / "task.json").write_text(json.dumps({"training": [], "validation": [], "testing": entries}))
    return folder / "task.json"


def test_each_kind_is_found_by_itself(store, tmp_path, tools):
    folder = tmp_path / "task"
    scan = np.asarray(nib.load(tmp_path / "scans" / "scan2.nii").dataobj)
    affine = np.diag([*tools.spacing, 1.0])
    tools.write_nifti(folder / "clipped.nii.gz", np.where(scan < -950, -1024, scan).astype(np.int16), affine)
    tools.write_nifti(folder / "other.nii.gz", tools.make_scan(50))
    tools.write_nifti(folder / "compressed.nii.gz", scan)
    (folder / "copy.nii").write_bytes((tmp_path / "scans" / "scan3.nii").read_bytes())
    listed = task(
        folder,
        [
            {"image": "compressed.nii.gz", "patient": "x"},
            {"image": "copy.nii", "patient": "y"},
            {"image": "other.nii.gz", "patient": "b"},
            {"image": "clipped.nii.gz", "patient": "z"},
        ],
    )
    rows = Store(Location(store)).rows()
    found, not_compared = find_overlap(rows, listed, preparation=Preparation(modality=None), progress=False)
    kinds = [(each.kind, [Path(scan).name for scan in each.stored], [Path(scan).name for scan in each.listed])
             for each in found]  # fmt: skip
    assert kinds == [
        ("scan", ["scan2.nii"], ["compressed.nii.gz"]),
        ("scan", ["scan3.nii"], ["copy.nii"]),
        ("file", ["scan3.nii"], ["copy.nii"]),
        ("patient", ["scan1.nii", "scan3.nii"], ["other.nii.gz"]),
    ]
    assert all(each.listed[0].startswith("testing ") and each.stored[0].startswith("training ") for each in found)
    assert not_compared == []
    names, _ = find_overlap(rows, listed, progress=False)
    assert [each.kind for each in names] == ["file", "patient"]
    other = task(folder, [{"image": "other.nii.gz", "patient": "new"}])
    assert find_overlap(rows, other, preparation=Preparation(modality=None), progress=False) == ([], [])


def test_the_command_says_which_and_how_many(store, tmp_path, capsys):
    assert main(["overlap", "--store", store]) == 1
    printed = capsys.readouterr().out
    assert "1 of 4 scans are in it twice or more" in printed
    assert f"training {tmp_path}/scans/scan1.nii = validation {tmp_path}/scans/again.nii.gz" in printed
    out = tmp_path / "found.json"
    listed = task(tmp_path / "scans", [{"image": "scan0.nii"}])
    assert main(["overlap", "--store", store, "--datalist", str(listed), "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "1 scans in common" in printed and "1 files in common" in printed and "0 patients in common" in printed
    content = json.loads(out.read_text())
    assert [each["kind"] for each in content["overlap"]] == ["scan", "file"] and len(content["duplicates"]) == 1


def test_what_cannot_be_compared_is_no_clean_answer(tmp_path, tools, capsys):
    for number in range(3):
        tools.write_nifti(tmp_path / "scans" / f"scan{number}.nii", tools.make_scan(number))
    (tmp_path / "scans" / "list.json").write_text(json.dumps({"training": [{"image": "scan0.nii"}]}))
    store = str(tmp_path / "store")
    prepare_store(tmp_path / "scans" / "list.json", store, preparation=SMALL, progress=False)
    whole = (tmp_path / "scans" / "scan2.nii").read_bytes()
    (tmp_path / "scans" / "scan2.nii").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "found.json"
    for images, code, count in [(["scan1.nii"], 0, 0), (["scan1.nii", "scan2.nii"], 3, 1),
                                (["scan0.nii", "scan2.nii"], 1, 1)]:  # fmt: skip
        listed = task(tmp_path / "scans", [{"image": image} for image in images])
        line = ["overlap", "--store", store, "--datalist", str(listed), "--out", str(out)]
        assert main(line) == code
        printed = capsys.readouterr().out
        assert f"{count} not compared" in printed and ("scan2.nii: " in printed) == (count == 1)
        assert len(json.loads(out.read_text())["not_compared"]) == count
        assert main([*line, "--names_only"]) == (1 if code == 1 else 0)
        assert "not compared" not in capsys.readouterr().out


def test_a_scan_counts_if_any_way_to_find_starts_has_it(store, tmp_path, capsys):
    """Too small for the larger cubes, in use for the smaller ones."""
    large = Preparation(cube_size=(40, 40, 40), border=None)
    rows = prepare_store(tmp_path / "scans" / "list.json", store, preparation=large, progress=False)
    assert all(row.skipped for row in rows)
    listed = task(tmp_path / "scans", [{"image": "scan0.nii"}])
    assert main(["overlap", "--store", store, "--datalist", str(listed)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 4 scans are in it twice" in printed
    assert "1 scans in common" in printed and "1 files in common" in printed


def test_arguments_that_nobody_knows_are_no_overlap(store, tmp_path, capsys):
    path = Path(store) / "store.json"
    content = json.loads(path.read_text())
    content["arguments"]["colour"] = "red"
    path.write_text(json.dumps(content))
    listed = task(tmp_path / "scans", [{"image": "scan0.nii"}])
    assert main(["overlap", "--store", store, "--datalist", str(listed)]) == 2
    assert "store.json: expected the arguments axcodes, " in capsys.readouterr().err


def test_the_test_images_of_the_decathlon_count(store, tmp_path, capsys, caplog):
    """Its own list names them as bare paths, in "test"; other lists may be of any name."""
    listed = tmp_path / "scans" / "dataset.json"
    listed.write_text(json.dumps({"training": [], "test": ["./scan0.nii"], "fold_1": [{"image": "scan2.nii"}],
                                  "tensorImageSize": ["3D"], "labels": {"0": "background"}}))  # fmt: skip
    assert main(["overlap", "--store", store, "--datalist", str(listed)]) == 1
    printed = capsys.readouterr().out
    assert "2 scans in common" in printed
    assert f"test {tmp_path}/scans/scan0.nii" in printed and f"fold_1 {tmp_path}/scans/scan2.nii" in printed
    assert "ignored, since no entry has an image: tensorImageSize" in caplog.text
    rows = prepare_store(listed, str(tmp_path / "other"), preparation=SMALL, progress=False)
    assert [(row.split, Path(row.source).name) for row in rows] == [("test", "scan0.nii"), ("fold_1", "scan2.nii")]
    assert [Path(each["image"]).name for each in load_datalist(listed, store=str(tmp_path / "other"), key="test")] == [
        "scan0.nii"
    ]
    listed.write_text(json.dumps({"training": [], "names": ["a"]}))
    for command in ("overlap", "prepare"):
        assert main([command, "--store", store, "--datalist", str(listed)]) == 2
        assert "expected scans in one of training, validation, testing, test, found none" in capsys.readouterr().err


def test_a_training_is_warned_of_what_it_validates_on(store, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_datalist(None, store=store, key="validation")
    assert f"scan1.nii = validation {tmp_path}/scans/again.nii.gz" in caplog.text
    caplog.clear()
    entries = [{"image": f"scan{number}.nii", "patient": "p"} for number in range(4)]
    clean = tmp_path / "scans" / "clean.json"
    clean.write_text(json.dumps({"training": entries[:1], "validation": [{**entries[2], "patient": "q"}]}))
    prepare_store(clean, store, preparation=SMALL, progress=False)
    load_datalist(clean, store=store, key="validation")
    assert [record for record in caplog.records if record.name.startswith("models_genesis")] == []
    shared = tmp_path / "scans" / "shared.json"
    shared.write_text(json.dumps({"training": entries[:1], "validation": entries[2:]}))
    prepare_store(shared, store, preparation=SMALL, progress=False)
    load_datalist(shared, store=store, key="validation")
    assert "1 patients are in several splits: p" in caplog.text
