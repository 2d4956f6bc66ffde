# SPDX-License-Identifier: Apache-2.0
"""LiTS is paired by index, split as the paper has it, and what does not fit is named."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from models_genesis.datasets import list_lits, load_datalist
from models_genesis.datasets.__main__ import main

SPLITS = ("training", "validation", "testing")


def write(path, shape=(6, 5, 4), affine=None, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(
        nib.Nifti1Image(np.full(shape, value, np.int16), np.diag([1.0, 1, 2, 1]) if affine is None else affine), path
    )


@pytest.fixture(scope="module")
def lits(tmp_path_factory):
    """All 131 volumes in the two batches of the download, and three of the challenge's test."""
    root = tmp_path_factory.mktemp("lits")
    for index in range(131):
        batch = root / f"Training Batch {1 if index < 28 else 2}"
        affine = np.eye(4) if 28 <= index < 48 else None
        write(batch / f"volume-{index}.nii", affine=affine)
        write(batch / f"segmentation-{index}.nii", affine=affine)
    for index in range(3):
        write(root / "test" / f"test-volume-{index}.nii.gz")
    return root


def test_the_paper_s_split_by_index(lits, tmp_path, capsys):
    assert main(["lits", "--root", str(lits), "--out", str(tmp_path / "list.json")]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    labelled = {split: [entry for entry in content[split] if "label" in entry] for split in SPLITS}
    indices = {split: [int(entry["patient"]) for entry in labelled[split]] for split in SPLITS}
    assert indices == {
        "training": list(range(100)), "validation": list(range(100, 115)), "testing": list(range(115, 130)),
    }  # fmt: skip
    for entry in labelled["training"]:
        assert entry["label"] == entry["image"].replace("volume", "segmentation")
    assert [entry["patient"] for entry in content["testing"] if "label" not in entry] == ["test-0", "test-1", "test-2"]
    assert content["labels"] == {"0": "background", "1": "liver", "2": "tumour"} and content["modality"] == {"0": "CT"}
    table = capsys.readouterr().out
    assert "volume-130.nii: expected up to 129, found 130" in table
    assert "20 volumes have voxels of 1 x 1 x 1 mm" in table and "3 volumes have no segmentation" in table
    # MONAI reads the same
    ours = load_datalist(tmp_path / "list.json", lits)
    stock = load_decathlon_datalist(tmp_path / "list.json", True, "training", lits)
    assert [(e["image"], e["label"]) for e in ours] == [(str(e["image"]), str(e["label"])) for e in stock]
    assert len(load_datalist(tmp_path / "list.json", lits, "testing")) == 18
    assert len(load_datalist(tmp_path / "list.json", lits, "testing", with_label=True)) == 15


def test_a_split_by_seed_uses_all(lits):
    first = list_lits(lits, "patient", 0.1, 0.2, seed=3)
    counts = {split: sum(bool(scan.label) and scan.split == split for scan in first.scans) for split in SPLITS}
    assert counts == {"training": 131 - 13 - 26, "validation": 13, "testing": 26}
    other = list_lits(lits, "patient", 0.1, 0.2, seed=4)
    assert [scan.split for scan in first.scans] != [scan.split for scan in other.scans]


def test_what_does_not_fit_is_left_out(tmp_path):
    for index in range(7):
        write(tmp_path / f"volume-{index}.nii")
        write(tmp_path / f"segmentation-{index}.nii")
    write(tmp_path / "segmentation-1.nii", shape=(6, 5, 3))
    shifted = np.diag([1.0, 1, 2, 1])
    shifted[0, 3] = 0.2
    write(tmp_path / "segmentation-2.nii", affine=shifted)
    shifted[0, 3] = 0.05  # within the tolerance of 0.1 voxels
    write(tmp_path / "segmentation-3.nii", affine=shifted)
    (tmp_path / "segmentation-4.nii").write_text("no image")
    (tmp_path / "volume-5.nii").unlink()
    write(tmp_path / "more/volume-6.nii.gz")
    write(tmp_path / "liver.nii")  # another name, not of LiTS
    scans = {scan.name: scan for scan in list_lits(tmp_path).scans}
    assert {name: scan.reason for name, scan in scans.items()} == {
        "volume-0.nii": "",
        "volume-1.nii": "label of another shape",
        "volume-2.nii": "label in another space",
        "volume-3.nii": "",
        "volume-4.nii": "label unreadable",
        "segmentation-5.nii": "volume missing",
        "more/volume-6.nii.gz": "",
        "volume-6.nii": "repeated",
    }
    assert scans["volume-1.nii"].detail == (
        "segmentation-1.nii: expected 6 x 5 x 4 voxels as the image, found 6 x 5 x 3"
    )
    assert "found voxels 0.2 apart" in scans["volume-2.nii"].detail
    assert scans["volume-4.nii"].detail.startswith("segmentation-4.nii: expected a NIfTI file")


def test_real_cases(shared, tmp_path):
    root = shared / "data/lits"
    arguments = ["lits", "--root", str(root), "--out", str(tmp_path / "list.json"), "--split", "patient"]
    assert main(arguments) == 0
    entries = [entry for split in SPLITS for entry in load_datalist(tmp_path / "list.json", root, split)]
    assert sorted(entry["patient"] for entry in entries) == ["0", "1"]
    assert main(["check", "--datalist", str(tmp_path / "list.json"), "--root", str(root), "--modality", "CT"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "expected volume-N.nii"), ({"split": "fold"}, "split: expected 'index' or 'patient', found 'fold'")],
)
def test_wrong_folders_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list_lits(tmp_path, **arguments)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        list_lits(tmp_path / "nowhere")
