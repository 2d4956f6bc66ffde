# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage, SaveImage
from monai.utils import ensure_tuple

from models_genesis.datasets import (
    MSD_TASKS,
    ScanReader,
    ScanWriter,
    load_cases,
    load_datalist,
    load_labelled_cases,
    msd_task,
)


def save(path, shape=(40, 40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), path)


@pytest.fixture
def lits(tmp_path):
    for number in (0, 1, 100):
        save(tmp_path / f"volume-{number}.nii")
        save(tmp_path / f"segmentation-{number}.nii")
    return tmp_path


@pytest.fixture
def brats(tmp_path):
    for patient in range(5):
        for part in ("flair", "t1", "t1ce", "t2", "seg"):
            save(tmp_path / f"P{patient}" / f"P{patient}_{part}.nii.gz")
    return tmp_path


def test_lits_is_surveyed_where_there_is_no_list(lits):
    cases = load_labelled_cases("lits", None, lits, "training")
    assert [(case["image"][-12:], case["label"][-18:]) for case in cases] == [
        ("volume-0.nii", "segmentation-0.nii"), ("volume-1.nii", "segmentation-1.nii")
    ]  # fmt: skip
    assert len(load_labelled_cases("lits", None, lits, "validation")) == 1
    with pytest.raises(ValueError, match="labelled cases for testing"):
        load_labelled_cases("lits", None, lits, "testing")


def test_the_list_must_mean_what_the_bundle_means(lits):
    listed = {"label_convention": "2023", "training": [{"image": "volume-0.nii", "label": "segmentation-0.nii"}]}
    (lits / "list.json").write_text(json.dumps(listed))
    assert load_labelled_cases("brats", lits / "list.json", lits, "training", {"label_convention": "2023"})
    with pytest.raises(ValueError, match=r"list\.json: expected label_convention '2018'.*found '2023'"):
        load_labelled_cases("brats", lits / "list.json", lits, "training", {"label_convention": "2018"})


def test_images_alone_are_predicted_broken_ones_included(lits):
    (lits / "volume-1.nii").write_bytes(b"no image")
    cases = load_cases("lits", None, lits)
    assert sorted(case["image"].rsplit("/")[-1] for case in cases) == ["volume-0.nii", "volume-1.nii", "volume-100.nii"]
    assert not any("label" in case for case in cases)


@pytest.mark.parametrize("channels", [["flair"], ["t2", "t1"], ["flair", "t1", "t1ce", "t2"]])
def test_channels_are_chosen_by_name_with_a_list_or_without(brats, channels):
    expected = [[f"P0_{name}.nii.gz" for name in channels]]

    def names(cases):
        paths = [ensure_tuple(case["image"]) for case in cases]
        return [[Path(each).name for each in image] for image in paths if "P0_" in image[0]]

    assert names(load_cases("brats", None, brats, channels=channels)) == expected
    order = ["t1", "t2", "flair", "t1ce"]
    listed = {
        "modality": {str(number): name for number, name in enumerate(order)},
        "training": [{"image": [f"P0/P0_{name}.nii.gz" for name in order], "label": "P0/P0_seg.nii.gz"}],
    }
    (brats / "list.json").write_text(json.dumps(listed))
    assert names(load_labelled_cases("brats", brats / "list.json", brats, channels=channels)) == expected
    with pytest.raises(ValueError, match="without \\['pet'\\]"):
        load_labelled_cases("brats", brats / "list.json", brats, channels=["pet"])


@pytest.mark.parametrize(
    ("modality", "channels", "fits"),
    [
        (["t1", "flair"], ["flair", "t1"], False),
        (["flair", "t1"], ["flair", "t1"], True),
        (["t1", "flair"], ["t2", "t1ce"], False),
        (["T1"], ["flair"], False),
        (["FLAIR", "T1w", "t1gd", "T2w"], ["flair", "t1", "t1ce", "t2"], True),  # as the Decathlon calls them
        (["t1gd", "FLAIR", "T1w", "T2w"], ["flair", "t1", "t1ce", "t2"], False),
        (["MRI"], ["flair"], True),  # which sequence it is the list does not say
        ([], ["flair"], True),
    ],
)
def test_channels_of_one_file_must_be_those_of_the_bundle(lits, modality, channels, fits):
    """Nothing in the file tells them apart, so that others would be learned, or predicted from, without a word."""
    entries = [{"image": "volume-0.nii", "label": "segmentation-0.nii"}, {"image": "volume-1.nii"}]
    numbered = dict(reversed([(str(number), name) for number, name in enumerate(modality)]))
    (lits / "list.json").write_text(json.dumps({"modality": numbered, "training": entries[:1], "testing": entries}))
    for load, key in ((load_labelled_cases, "training"), (load_cases, "testing")):
        if fits:
            assert load("brats", lits / "list.json", lits, key, channels=channels)[0]["image"].endswith("volume-0.nii")
            continue
        with pytest.raises(ValueError, match=r"list\.json: expected the channels .* in this order"):
            load("brats", lits / "list.json", lits, key, channels=channels)


def test_files_of_channels_go_by_number_and_none_may_lack(brats):
    files = [f"P0/P0_{name}.nii.gz" for name in ("t1", "flair")]
    listed = {"modality": {"1": "flair", "0": "t1"}, "testing": [{"image": files}]}
    (brats / "list.json").write_text(json.dumps(listed))
    assert load_cases("brats", brats / "list.json", brats, channels=["flair"])[0]["image"][0].endswith(
        "P0_flair.nii.gz"
    )
    (brats / "list.json").write_text(json.dumps({**listed, "testing": [{"image": files[:1]}]}))
    with pytest.raises(ValueError, match="expected a file for each"):
        load_cases("brats", brats / "list.json", brats, channels=["t1"])


def prostate(root, modality, files=True):
    """A list of one case whose channels lie in two files, or in one."""
    for part in ("0000", "0001"):
        save(root / f"p_{part}.nii.gz")
    save(root / "p.nii.gz", (40, 40, 40, 2))
    image = ["p_0000.nii.gz", "p_0001.nii.gz"] if files else "p.nii.gz"
    content = {"modality": modality, "training": [{"image": image, "label": "p_0000.nii.gz"}]}
    (root / "list.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return root / "list.json"


@pytest.mark.parametrize(
    ("modality", "order"),
    [
        ({"0": "T2", "1": "ADC"}, (0, 1)),
        ({"1": "T2", "0": "ADC"}, (1, 0)),
        ({"0": "adc", "1": "t2w"}, (1, 0)),
        ({"0": "MRI", "1": "MRI"}, (0, 1)),  # which tells nothing
        (["ADC", "T2"], (1, 0)),
        ({"first": "ADC", "second": "T2"}, (0, 1)),  # not by number
        (None, (0, 1)),
    ],
)
@pytest.mark.parametrize("load", [load_cases, load_labelled_cases])
def test_channels_are_put_in_the_order_of_the_network(load, modality, order, tmp_path, caplog):
    listed = prostate(tmp_path, modality)
    (case,) = load("msd", listed, tmp_path, "training", channels=["T2", "ADC"])
    assert [Path(path).name for path in case["image"]] == [f"p_000{number}.nii.gz" for number in order]
    assert ("does not name its channels" in caplog.text) == (modality is None or "first" in modality)
    assert load("msd", listed, tmp_path, "training")[0]["image"][0].endswith("p_0000.nii.gz")


@pytest.mark.parametrize(
    ("modality", "channels", "message"),
    [
        ({"0": "T2", "1": "T1"}, ["T2", "ADC"], r"expected the channels \['T2', 'ADC'\], found \['T2', 'T1'\]"),
        ({"0": "T2"}, ["T2", "ADC"], "expected the channels"),
        ({"0": "CT"}, ["MRI"], "expected MR, found CT: its 'modality' is"),
        ({"0": "T2"}, ["CT"], "expected CT, found MR"),
    ],
)
def test_other_channels_and_modalities_are_refused(modality, channels, message, tmp_path):
    listed = prostate(tmp_path, modality)
    with pytest.raises(ValueError, match=rf"list\.json: {message}"):
        load_cases("msd", listed, tmp_path, "training", channels=channels)


def test_channels_of_one_file_cannot_be_put_in_order(tmp_path):
    listed = prostate(tmp_path, {"0": "ADC", "1": "T2"}, files=False)
    with pytest.raises(ValueError, match=r"for .*p\.nii\.gz holds all in one file, found \['ADC', 'T2'\]"):
        load_cases("msd", listed, tmp_path, "training", channels=["T2", "ADC"])
    assert load_cases("msd", listed, tmp_path, "training", channels=["ADC", "T2"])


def test_a_folder_of_nnunet_is_put_in_order_too(tmp_path):
    content = {"labels": {"background": 0, "PZ": 1}, "numTraining": 1, "file_ending": ".nii.gz"}
    content["channel_names"] = {"0": "ADC", "1": "T2"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for part in ("imagesTr", "imagesTs"):
        for number in range(2):
            save(tmp_path / part / f"p_000{number}.nii.gz")
    save(tmp_path / "labelsTr" / "p.nii.gz")
    for case in (
        load_cases("msd", None, tmp_path, channels=["T2", "ADC"])[0],
        *[each for key in ("training", "validation") for each in labelled(tmp_path, key)],
    ):
        assert [Path(path).name for path in case["image"]] == ["p_0001.nii.gz", "p_0000.nii.gz"]


def labelled(root, key):
    """Load the cases of a split that may be empty."""
    try:
        return load_labelled_cases("msd", None, root, key, channels=["T2", "ADC"])
    except ValueError as error:
        assert "found none" in str(error)
        return []


def test_results_among_the_scans_are_not_predicted(tmp_path, caplog):
    save(tmp_path / "a.nii.gz")
    image = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(tmp_path / "a.nii.gz"))
    SaveImage(tmp_path / "pred", "", writer=ScanWriter, resample=False, separate_folder=False)(image)
    assert (tmp_path / "pred" / "a.nii.gz").is_file()
    (case,) = load_cases("lits", None, tmp_path)
    assert case["image"] == str(tmp_path / "a.nii.gz")
    assert "1 of 2 scans are passed over, since a bundle wrote them" in caplog.text


def test_lidc_needs_its_cubes_first(tmp_path):
    with pytest.raises(ValueError, match="datasets lidc"):
        load_labelled_cases("lidc", None, tmp_path)


def test_ten_tasks():
    assert len(MSD_TASKS) == 10
    for name in MSD_TASKS:
        task = msd_task(name)
        assert task["out_channels"] == len(task["labels"]) == len(task["regions"]) + 1
        assert task["labels"]["0"] == "background"
    with pytest.raises(ValueError, match="Task09_Spleen"):
        msd_task("Task11_Kidney")


def test_any_dataset_json_is_a_task(tmp_path):
    content = {"name": "Spleen", "modality": {"0": "T2", "1": "ADC"}, "labels": {"1": "spleen", "0": "background"}}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    task = msd_task(path)
    assert (task["modality"], task["in_channels"], task["regions"]) == ("MR", 2, {"spleen": [1]})
    assert task["channels"] == ["T2", "ADC"]
    path.write_text(json.dumps({**content, "modality": {"1": "T2", "0": "ADC"}}))
    assert msd_task(path)["channels"] == ["ADC", "T2"]
    assert task["tolerance_mm"] == msd_task("Task09_Spleen")["tolerance_mm"]
    path.write_text(json.dumps({**content, "labels": {"0": "background", "2": "spleen"}}))
    with pytest.raises(ValueError, match="without a gap"):
        msd_task(path)
    with pytest.raises(FileNotFoundError):
        msd_task(tmp_path / "nowhere.json")


def test_a_split_of_a_folder_that_is_empty_is_named(tmp_path):
    """One patient cannot be in two splits."""
    save(tmp_path / "a.nii.gz")
    rules = {"min_size": (8, 8, 8)}
    (entry,) = load_datalist(None, tmp_path, "training", **rules)
    assert entry["image"] == str(tmp_path / "a.nii.gz")
    with pytest.raises(
        ValueError, match=r"expected scans for validation, found 1 in training, 0 in validation, 0 in test"
    ):
        load_datalist(None, tmp_path, "validation", **rules)
