# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's raw layout: read as its dataset.json says, split as nnU-Net would, predictions named as nnU-Net's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged
from sklearn.model_selection import KFold

from models_genesis.datasets import (
    CaseDataset,
    OutputName,
    PredictionLayout,
    ScanReader,
    list_msd,
    list_nnunet,
    load_cases,
    load_labelled_cases,
    msd_task,
)
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.nnunet_splits import cross_validation

DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "FLAIR", "1": "T1w"},
    "labels": {"background": 0, "edema": 1, "tumor": 2},
    "numTraining": 6,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
    "licence": "CC-BY-SA 4.0",
}


def write(path: Path, values: Any, shape: tuple[int, ...] = (6, 5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.resize(np.array(values, np.int16), shape), np.diag([1.0, 1, 2, 1])), path)


def write_dataset(root: Path, cases: int = 6, tests: int = 2, **changes: Any) -> Path:
    """Write a data set of two channels: ``Dataset007_Glioma`` with cases ``BR_000`` and so on."""
    content = {**DESCRIPTION, **changes}
    folder = root / "Dataset007_Glioma"
    for number in range(cases + tests):
        images, labels = ("imagesTr", "labelsTr") if number < cases else ("imagesTs", "labelsTs")
        for channel in range(len(content["channel_names"])):
            write(folder / images / f"BR_{number:03d}_{channel:04d}.nii.gz", (number, channel))
        if number < cases:
            write(folder / labels / f"BR_{number:03d}.nii.gz", (0, 1, 2))
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def found(summary: Any) -> dict[str, tuple[str, str]]:
    return {scan.name: (scan.reason, scan.detail) for scan in summary.scans if scan.reason}


def test_the_command_writes_a_list_for_the_msd_bundle(tmp_path):
    folder, out = write_dataset(tmp_path), tmp_path / "list.json"
    assert main(["nnunet", "--root", str(folder), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["name"] == "Dataset007_Glioma" and content["licence"] == "CC-BY-SA 4.0"
    assert content["modality"] == {"0": "FLAIR", "1": "T1w"}
    assert content["labels"] == {"0": "background", "1": "edema", "2": "tumor"}
    assert [content[key] for key in ("numTraining", "numValidation", "numTest")] == [5, 1, 2]
    for key in ("training", "validation", "testing"):
        for entry in content[key]:
            name = entry["patient"]
            images, labels = ("imagesTs", None) if key == "testing" else ("imagesTr", "labelsTr")
            assert entry["image"] == [f"{images}/{name}_{channel:04d}.nii.gz" for channel in range(2)]
            assert entry.get("label") == (labels and f"{labels}/{name}.nii.gz")
            assert entry["prediction"] == f"{name}.nii.gz"
    # what the bundle makes of it, whichever file names the task
    for task in (folder / "dataset.json", out):
        facts = msd_task(str(task))
        assert (facts["labels"], facts["modality"], facts["in_channels"]) == (content["labels"], "MR", 2)
    (case,) = load_labelled_cases("msd", out, folder, "validation", {"labels": facts["labels"]})
    item = LoadImaged(["image", "label"], ScanReader, None, ensure_channel_first=True)(case)
    number = int(case["patient"].split("_")[1])
    assert item["image"].shape == (2, 6, 5, 4) and item["label"].shape == (1, 6, 5, 4)
    assert {int(value) for value in np.unique(item["image"][0])} == {0, number}
    # without a list the folder itself will do
    assert len(load_labelled_cases("msd", None, folder, "training", {"labels": facts["labels"]})) == 5
    assert [case["prediction"] for case in load_cases("msd", None, folder)] == ["BR_006.nii.gz", "BR_007.nii.gz"]


def test_one_channel_is_one_path(tmp_path):
    folder = write_dataset(tmp_path, channel_names={"0": "CT"})
    summary = list_nnunet(folder)
    assert all(isinstance(scan.image, str) for scan in summary.scans)
    assert msd_task(str(folder / "dataset.json"))["modality"] == "CT"
    content = {**DESCRIPTION, "channel_names": {"0": "ct"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert msd_task(str(folder / "dataset.json"))["modality"] == "CT"


def test_known_labels_of_test_images_are_taken(tmp_path):
    folder = write_dataset(tmp_path)
    write(folder / "labelsTs" / "BR_006.nii.gz", (0, 2))
    testing = list_nnunet(folder).datalist()["testing"]
    assert [entry.get("label") for entry in testing] == ["labelsTs/BR_006.nii.gz", None]


def test_predictions_have_nnunets_names(tmp_path):
    """As the bundle's inference saves them: below the output folder itself, without channel and postfix."""
    folder, out = write_dataset(tmp_path), tmp_path / "list.json"
    assert main(["nnunet", "--root", str(folder), "--out", str(out)]) == 0
    config = Path(__file__).resolve().parents[3] / "bundles/genesis_msd_segmentation/configs/inference.json"
    steps = json.loads(config.read_text())["postprocessing"]["transforms"]
    (saver,) = (step for step in steps if step["_target_"] == "SaveImaged")
    assert saver["folder_layout"]["_target_"] == "models_genesis.datasets.PredictionLayout"

    def predict(entries, target):
        save = SaveImaged(
            "image", output_dtype=np.uint8, writer="models_genesis.datasets.ScanWriter", resample=False,
            output_name_formatter=OutputName(), folder_layout=PredictionLayout(target), print_log=False,
        )  # fmt: skip
        for item in CaseDataset(entries, LoadImaged("image", ScanReader, None, ensure_channel_first=True), root=folder):
            save({"image": item["image"][:1]})
        return sorted(path.relative_to(target).as_posix() for path in target.rglob("*.nii*"))

    cases = load_cases("msd", out, folder, "testing")
    assert predict(cases, tmp_path / "nnunet") == ["BR_006.nii.gz", "BR_007.nii.gz"]
    image = nib.load(tmp_path / "nnunet" / "BR_007.nii.gz")
    assert set(np.unique(image.dataobj)) == {0, 7}
    np.testing.assert_array_equal(image.affine, np.diag([1, 1, 2, 1]))
    # other lists keep the names that they had
    others = [{"image": case["image"][0]} for case in cases]
    assert predict(others, tmp_path / "others") == [
        f"BR_00{k}_0000/BR_00{k}_0000_seg.nii.gz" for k in (6, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../x.nii.gz", "/x.nii.gz", "x.mha", "x", "a/./x.nii", ".nii.gz", 7])
def test_predictions_stay_inside(name):
    with pytest.raises(ValueError, match=r"scan.nii: expected its prediction as a NIfTI file below the output folder"):
        CaseDataset([{"image": "scan.nii", "prediction": name}], lambda item: item)


def test_two_predictions_of_one_name_are_refused():
    entries = [{"image": f"{k}.nii", "prediction": "a.nii.gz"} for k in range(2)]
    with pytest.raises(ValueError, match=r"0\.nii and 1\.nii"):
        CaseDataset(entries, lambda item: item)
    named = CaseDataset([{"image": "0.nii", "prediction": "sub/a.nii"}], lambda item: {"image": MetaTensor([1.0])})
    assert named[0]["image"].meta["output_file"] == "sub/a.nii" and named[0]["output_name"] == "sub/a"


def test_files_that_fit_no_case_are_named(tmp_path):
    folder = write_dataset(tmp_path, cases=8, numTraining=9)
    (folder / "imagesTr/BR_000_0001.nii.gz").unlink()
    (folder / "labelsTr/BR_001.nii.gz").unlink()
    write(folder / "labelsTr/BR_002.nii.gz", (0, 3))
    write(folder / "labelsTr/BR_003.nii.gz", (0,))
    write(folder / "labelsTr/BR_004.nii.gz", (0, 1), (6, 5, 3))
    write(folder / "imagesTr/BR_005_0002.nii.gz", (0,))
    write(folder / "imagesTr/plain.nii.gz", (0,))
    write(folder / "labelsTr/alone.nii.gz", (1,))
    (folder / "imagesTr/notes.txt").write_text("x")
    summary = list_nnunet(folder)
    reasons = found(summary)
    assert reasons == {
        "imagesTr/BR_000_0000.nii.gz": (
            "missing", "imagesTr/BR_000_0001.nii.gz: expected an existing file or folder, found none",
        ),
        "imagesTr/BR_001_0000.nii.gz": (
            "label missing", "labelsTr/BR_001.nii.gz: expected an existing file or folder, found none",
        ),
        "imagesTr/BR_002_0000.nii.gz": (
            "undeclared label", "labelsTr/BR_002.nii.gz: expected values of [0, 1, 2], found [3]",
        ),
        "imagesTr/BR_003_0000.nii.gz": (
            "no foreground", "labelsTr/BR_003.nii.gz: expected voxels of a label, found background (0) only",
        ),
        "imagesTr/BR_004_0000.nii.gz": (
            "label of another shape", "labelsTr/BR_004.nii.gz: expected 6 x 5 x 4 voxels as the image, found 6 x 5 x 3",
        ),
        "imagesTr/BR_005_0002.nii.gz": (
            "channel too many", "expected the 2 channels of 'channel_names', found one more",
        ),
        "imagesTr/plain.nii.gz": ("of no case", "expected CASE_0000.nii.gz, found no case of it"),
        "labelsTr/alone.nii.gz": ("of no case", "expected CASE.nii.gz, and images of the case, found no case of it"),
    }  # fmt: skip
    assert any("numTraining is 9, but 8 cases are there" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, r"found 'whole' as the region \[1, 2\]"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, r"found the label 'ignore' \(2\)"),
        ({"labels": {"background": 0, "a": 2}}, r"without a gap, up to 255, found \[0, 2\]"),
        ({"labels": {"background": 0, **{f"l{k}": k for k in range(1, 257)}}}, "up to 255, found"),
        ({"labels": {"liver": 0, "tumor": 1}}, "expected 'background' as the label of value 0, found 'liver'"),
        ({"labels": {"0": "background", "1": "a"}}, "expected a whole number for the label '0', found 'background'"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "found 'a' and 'b' for 1"),
        ({"labels": {"background": 0, "a": 1.5}}, "expected a whole number for the label 'a', found 1.5"),
        ({"labels": {}}, "expected 'labels' as values by name"),
        ({"file_ending": ".png"}, r"expected a 'file_ending' among .nii, .* found '.png'"),
        ({"file_ending": ".tif"}, "found '.tif'"),
        ({"file_ending": None}, "found None"),
        ({"channel_names": {"0": "CT", "2": "PET"}}, r"0, 1, ... without a gap, found \[0, 2\]"),
        ({"channel_names": {}}, "expected 'channel_names' as names by number"),
        ({"channel_names": ["CT"]}, "expected 'channel_names' as names by number"),
        ({"dataset": {"a": {"images": "x", "label": "y"}}}, "expected 'dataset' as images and label by case"),
        (
            {"dataset": {k: {"images": ["same.nii.gz", f"{k}.nii.gz"], "label": "y.nii.gz"} for k in "ab"}},
            "expected each image once in 'dataset', found same.nii.gz several times",
        ),
        ({"dataset": []}, "expected 'dataset' as images and label by case"),
    ],
)
def test_descriptions_that_cannot_be_used(changes, message, tmp_path):
    folder = write_dataset(tmp_path, 1, 0)
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, **changes}))
    with pytest.raises(ValueError, match=f"dataset.json: .*{message}"):
        list_nnunet(folder)


def test_the_two_kinds_of_dataset_json_point_to_each_other(tmp_path):
    folder = write_dataset(tmp_path, 1, 0)
    with pytest.raises(ValueError, match="it is of nnU-Net v2, try `nnunet`"):
        list_msd(folder)
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background"}}))
    with pytest.raises(ValueError, match="it is one of the Decathlon's, try `msd`"):
        list_nnunet(folder)


def test_a_task_has_no_more_labels_than_a_byte_holds(tmp_path):
    path = tmp_path / "dataset.json"
    for number, fits in ((256, True), (257, False)):
        path.write_text(json.dumps({"modality": {"0": "CT"}, "labels": {str(k): f"l{k}" for k in range(number)}}))
        if fits:
            assert msd_task(path)["out_channels"] == number
        else:
            with pytest.raises(ValueError, match="expected up to 256 labels, which are kept as bytes, found 257"):
                msd_task(path)


def test_a_single_value_in_a_list_is_a_label(tmp_path):
    folder = write_dataset(tmp_path, labels={"background": [0], "a": [1], "b": 2})
    assert list_nnunet(folder).header["labels"] == {"0": "background", "1": "a", "2": "b"}


def test_cases_that_the_description_lists(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path, 4, 0)
    (folder / "imagesTr").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    listed = {
        f"case_{k}": {
            "images": [f"../elsewhere/BR_{k:03d}_0000.nii.gz", f"${{SCANS}}/BR_{k:03d}_0001.nii.gz"],
            "label": f"labelsTr/BR_{k:03d}.nii.gz",
        }
        for k in range(4)
    }
    listed["case_3"]["images"].pop()
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, "numTraining": 4, "dataset": listed}))
    summary = list_nnunet(folder)
    (bad,) = (scan for scan in summary.scans if scan.reason)
    assert (bad.patient, bad.reason) == ("case_3", "channels missing")
    entries = summary.datalist()
    kept = {entry["prediction"]: entry for key in ("training", "validation") for entry in entries[key]}
    assert sorted(kept) == [f"case_{k}.nii.gz" for k in range(3)]
    assert kept["case_1.nii.gz"]["image"] == [str(tmp_path / f"elsewhere/BR_001_000{k}.nii.gz") for k in range(2)]
    assert kept["case_1.nii.gz"]["label"] == "labelsTr/BR_001.nii.gz"


def splits(summary: Any) -> dict[str, str]:
    return {scan.patient: scan.split or scan.reason for scan in summary.scans}


def test_splits_final_is_respected(tmp_path, monkeypatch, capsys):
    folder = write_dataset(tmp_path, 6, 0)
    names = [f"BR_{k:03d}" for k in range(6)]
    folds = [{"train": names[2:], "val": names[:2]}, {"train": [*names[:3], "gone"], "val": names[3:5]}]
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    file = tmp_path / "preprocessed" / folder.name / "splits_final.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(folds))
    summary = list_nnunet(folder)
    assert splits(summary) == {name: "validation" if name in names[:2] else "training" for name in names}
    assert summary.header["split_rule"] == {"splits": "splits_final.json", "fold": 0}
    assert splits(list_nnunet(folder, fold=1)) == {
        **dict.fromkeys(names[:3], "training"), **dict.fromkeys(names[3:5], "validation"), names[5]: "in no split",
        "gone": "case missing",
    }  # fmt: skip
    command = ["nnunet", "--root", str(folder), "--out", str(tmp_path / "list.json"), "--fold", "2"]
    assert main(command) == 2
    assert "splits_final.json: expected a fold from 0 to 1, found 2" in capsys.readouterr().err
    # one in the raw folder too, and they differ
    (folder / "splits_final.json").write_text(json.dumps(folds[1:]))
    with pytest.raises(ValueError, match="expected the same splits, found others: name one with --splits"):
        list_nnunet(folder)
    assert splits(list_nnunet(folder, splits=folder / "splits_final.json"))["BR_003"] == "validation"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a file of splits in JSON"),
        ('{"train": []}', "expected a list of folds"),
        ('[{"train": ["a"]}]', "expected a list of folds"),
        ('[{"train": ["BR_000", "BR_001"], "val": ["BR_001"]}]', "found BR_001 in it twice"),
    ],
)
def test_broken_splits_are_named(content, message, tmp_path):
    folder = write_dataset(tmp_path, 2, 0)
    (folder / "splits_final.json").write_text(content)
    with pytest.raises(ValueError, match=f"splits_final.json: .*{message}"):
        list_nnunet(folder)
    with pytest.raises(FileNotFoundError, match="expected a file of splits"):
        list_nnunet(folder, splits=tmp_path / "none.json")


def test_a_fold_without_a_file_is_that_of_nnunets_own_cross_validation(tmp_path):
    """Golden: what nnU-Net 2.8.1 itself gave for these ten names; ``make test-nnunet`` asks it again."""
    names = [f"BR_{k:03d}" for k in range(10)]
    folds = [cross_validation(names, fold) for fold in range(5)]
    assert sorted(name for _, validation in folds for name in validation) == names
    assert all(not set(training) & set(validation) for training, validation in folds)
    numbers = [[int(name.removeprefix("BR_")) for name in validation] for _, validation in folds]
    assert numbers == [[0, 7], [3, 9], [4, 6], [1, 8], [2, 5]]
    for number in (5, 7, 208):  # parity with what nnU-Net calls
        sorted_names = np.sort([f"case_{each}" for each in range(number)])
        theirs = [held_out for _, held_out in KFold(5, shuffle=True, random_state=12345).split(sorted_names)]
        assert [cross_validation(sorted_names, fold)[1] for fold in range(5)] == [
            sorted_names[each].tolist() for each in theirs
        ]
    folder = write_dataset(tmp_path, 10, 0)
    summary = list_nnunet(folder, fold=0)
    assert [name for name, split in splits(summary).items() if split == "validation"] == folds[0][1]
    with pytest.raises(ValueError, match="expected a fold from 0 to 4, found 5"):
        list_nnunet(folder, fold=5)
    with pytest.raises(ValueError, match="expected 5 cases or more, found 4"):
        cross_validation(names[:4], 0)


def test_patients_of_several_cases(tmp_path):
    folder = write_dataset(tmp_path, 6, 1)
    summary = list_nnunet(folder, patient_pattern=r"BR_(0\d)\d", validation_fraction=0.0)
    assert {scan.patient for scan in summary.scans} == {"00"}
    # the test case is of a patient who would train
    assert {scan.reason for scan in summary.scans} == {"patient across folds"}
    with pytest.raises(ValueError, match="BR_000: expected the patient as first group of"):
        list_nnunet(folder, patient_pattern="(XX)")


def test_other_formats_and_their_predictions(tmp_path):
    folder = write_dataset(tmp_path, 3, 1, file_ending=".nii")
    for path in folder.rglob("*.nii.gz"):
        nib.save(nib.load(path), path.with_name(path.name.removesuffix(".gz")))
        path.unlink()
    summary = list_nnunet(folder)
    assert {scan.facts["prediction"].partition(".")[2] for scan in summary.scans} == {"nii"}
    assert not any(scan.reason for scan in summary.scans)
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".mha"}))
    with pytest.raises(ValueError, match="expected scans to train on"):
        list_nnunet(folder).datalist()
    assert any("written as .nii.gz, not as .mha" in note for note in list_nnunet(folder).notes)
