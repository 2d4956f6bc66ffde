# SPDX-License-Identifier: Apache-2.0
"""A Decathlon task is taken from its dataset.json: channels, labels, splits, and files that are not as it says."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from models_genesis.datasets import list_msd, load_datalist
from models_genesis.datasets.__main__ import main

TASKS = {
    "Task01_BrainTumour": (
        ["FLAIR", "T1w", "t1gd", "T2w"], ["background", "edema", "non-enhancing tumor", "enhancing tumour"],
    ),
    "Task02_Heart": (["MRI"], ["background", "left atrium"]),
    "Task03_Liver": (["CT"], ["background", "liver", "cancer"]),
    "Task04_Hippocampus": (["MRI"], ["background", "Anterior", "Posterior"]),
    "Task05_Prostate": (["T2", "ADC"], ["background", "PZ", "TZ"]),
    "Task06_Lung": (["CT"], ["background", "cancer"]),
    "Task07_Pancreas": (["CT"], ["background", "pancreas", "cancer"]),
    "Task08_HepaticVessel": (["CT"], ["background", "Vessel", "Tumour"]),
    "Task09_Spleen": (["CT"], ["background", "spleen"]),
    "Task10_Colon": (["CT"], ["background", "colon cancer primaries"]),
}  # fmt: skip


def write_task(root, task, cases=5, tests=2):
    """Write a task as it is published, files of 6 x 5 x 4 voxels."""
    modality, labels = TASKS[task]
    name = task.split("_")[1].lower()
    for number in range(cases + tests):
        folder = "imagesTr" if number < cases else "imagesTs"
        shape = (6, 5, 4) if len(modality) == 1 else (6, 5, 4, len(modality))
        for place, array in ((folder, np.full(shape, number)), ("labelsTr", np.zeros((6, 5, 4)))):
            path = root / place / f"{name}_{number:03d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < cases or place != "labelsTr":
                nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([1.0, 1, 2, 1])), path)
    content = {
        "name": name, "description": "d", "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D" if len(modality) > 1 else "3D",
        "modality": {str(k): each for k, each in enumerate(modality)},
        "labels": {str(k): each for k, each in enumerate(labels)},
        "numTraining": cases, "numTest": tests,
        "training": [
            {"image": f"./imagesTr/{name}_{k:03d}.nii.gz", "label": f"./labelsTr/{name}_{k:03d}.nii.gz"}
            for k in range(cases)
        ],
        "test": [f"./imagesTs/{name}_{k:03d}.nii.gz" for k in range(cases, cases + tests)],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return content


@pytest.mark.parametrize("task", list(TASKS))
def test_all_ten_tasks(task, tmp_path):
    published = write_task(tmp_path / task, task)
    assert main(["msd", "--root", str(tmp_path / task), "--out", str(tmp_path / "list.json")]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    modality, labels = TASKS[task]
    for key in ("name", "licence", "modality", "labels", "tensorImageSize"):
        assert content[key] == published[key]
    assert (content["in_channels"], content["out_channels"]) == (len(modality), len(labels))
    assert [content[key] for key in ("numTraining", "numValidation", "numTest")] == [4, 1, 2]
    listed = [entry for split in ("training", "validation") for entry in content[split]]
    assert sorted(f"./{entry['image']}" for entry in listed) == [entry["image"] for entry in published["training"]]
    assert all(entry["label"] == entry["image"].replace("imagesTr", "labelsTr") for entry in listed)
    assert [f"./{entry['image']}" for entry in content["testing"]] == published["test"]
    assert not any("label" in entry for entry in content["testing"])
    # as MONAI loads it, image and label agree and the channels are those listed
    entry = load_datalist(tmp_path / "list.json", tmp_path / task)[0]
    item = LoadImaged(["image", "label"], ensure_channel_first=True)(entry)
    assert tuple(item["image"].shape) == (len(modality), 6, 5, 4) and tuple(item["label"].shape) == (1, 6, 5, 4)


def test_the_seed_splits_the_training_list(tmp_path):
    write_task(tmp_path, "Task09_Spleen", cases=20)
    lists = [list_msd(tmp_path, 0.25, seed).datalist() for seed in (0, 0, 1)]
    names = [{entry["patient"] for entry in each["validation"]} for each in lists]
    assert len(names[0]) == 5 and names[0] == names[1] != names[2]


def test_files_that_are_not_as_described_are_left_out(tmp_path):
    write_task(tmp_path, "Task05_Prostate", cases=6)
    (tmp_path / "imagesTr/prostate_000.nii.gz").unlink()
    (tmp_path / "labelsTr/prostate_001.nii.gz").unlink()
    nib.save(
        nib.Nifti1Image(np.zeros((6, 5, 4, 3), np.int16), np.diag([1.0, 1, 2, 1])),
        tmp_path / "imagesTr/prostate_002.nii.gz",
    )
    nib.save(
        nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.diag([1.0, 1, 2, 1])),
        tmp_path / "imagesTr/prostate_003.nii.gz",
    )
    nib.save(
        nib.Nifti1Image(np.zeros((6, 5, 3), np.int16), np.diag([1.0, 1, 2, 1])),
        tmp_path / "labelsTr/prostate_004.nii.gz",
    )
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "numTraining": 32}))
    summary = list_msd(tmp_path)
    found = {scan.patient: (scan.reason, scan.detail) for scan in summary.scans if scan.reason}
    assert found == {
        "prostate_000": ("missing", "expected an existing file or folder, found none"),
        "prostate_001": (
            "label missing", "labelsTr/prostate_001.nii.gz: expected an existing file or folder, found none",
        ),
        "prostate_002": ("channels missing", "expected 2 volumes along a fourth axis, found 6 x 5 x 4 x 3"),
        "prostate_003": ("channels missing", "expected 2 volumes along a fourth axis, found 6 x 5 x 4"),
        "prostate_004": (
            "label of another shape",
            "labelsTr/prostate_004.nii.gz: expected 6 x 5 x 4 voxels as the image, found 6 x 5 x 3",
        ),
    }  # fmt: skip
    assert any("numTraining is 32, but 'training' lists 6" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": {}}, "expected 'modality' as names by number, found {}"),
        ({"labels": {"liver": 1}}, "expected 'labels' as names by number"),
        ({"training": []}, "expected 'training' as a list"),
        ({"training": [{"image": "a"}]}, "expected 'training' as a list"),
    ],
)
def test_broken_descriptions_are_named(change, message, tmp_path):
    content = write_task(tmp_path, "Task09_Spleen", 1, 0)
    (tmp_path / "dataset.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=f"dataset.json: {message}"):
        list_msd(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "in JSON, found"), ("[]", "found list"), ("[" * 100_000, "nested too deeply")]
)
def test_no_description(text, message, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the description of a task"):
        list_msd(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list_msd(tmp_path)
