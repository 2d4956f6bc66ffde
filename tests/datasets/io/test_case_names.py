# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random

import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from models_genesis.datasets import CaseDataset, OutputName, output_names
from models_genesis.datasets.io.case_names import PredictionLayout


def test_a_scan_alone_of_its_name_gives_its_name():
    assert output_names(["/d/a/x.nii.gz", "/d/b/y.NII", "/d/c/z.mhd", "/d/dicom"]) == ["x", "y", "z", "dicom"]


def test_scans_of_one_name_keep_their_path_below_the_data_set():
    images = ["/data/s0000/ct.nii.gz", "/data/s0001/ct.nii.gz", "/data/other.nii.gz"]
    assert output_names(images, "/data") == ["s0000/ct", "s0001/ct", "other"]
    assert output_names([image.replace("/data", "/data/deep") for image in images[:2]], "/data") == [
        "deep/s0000/ct",
        "deep/s0001/ct",
    ]


def test_scans_elsewhere_keep_their_path_below_what_they_have_in_common():
    assert output_names(["/x/a/ct.nii", "/x/b/ct.nii"], "/data") == ["a/ct", "b/ct"]


def test_the_last_part_of_a_uid_is_no_suffix():
    folders = ["/d/1.2.840.467.4", "/d/1.2.840.467.5"]
    assert output_names(folders) == ["1.2.840.467.4", "1.2.840.467.5"]
    assert output_names(["/d/p::1.2.3.4", "/d/p::1.2.3.5", "/d/q::1.2.3.5"], "/d") == [
        "1.2.3.4",
        "p/1.2.3.5",
        "q/1.2.3.5",
    ]


@pytest.mark.parametrize(
    "images",
    [
        ["/d/ct.nii", "/d/ct.nii.gz"],
        ["/d/ct.nii.gz", "/d/ct.nii.gz"],
        ["/d/a/CT.nii.gz", "/d/A/ct.nii.gz"],
        ["/d/scan", "/d/scan.mha"],
    ],
)
def test_what_would_still_have_one_name_is_refused_naming_both(images):
    with pytest.raises(ValueError) as error:
        output_names(images, "/d")
    assert all(image in str(error.value) for image in images)


def test_names_are_always_different_and_stay_inside():
    """Over random trees: either a refusal, or as many names as scans, none of which leaves the output's folder."""
    rng = random.Random(0)
    parts, files = ["a", "B", "b", "1.2.3", "1.2.4"], ["ct.nii.gz", "ct.nii", "CT.mhd", "1.2.3", "x.nrrd"]
    refused = 0
    for _ in range(500):
        images = ["/".join(["/d", *rng.choices(parts, k=rng.randrange(3)), rng.choice(files)]) for _ in range(4)]
        root = rng.choice(["/d", "/d/a", "/elsewhere", None])
        try:
            names = output_names(images, root)
        except ValueError:
            refused += 1
            continue
        assert len({name.casefold() for name in names}) == len(images)
        assert all(os.path.normpath(name) == name and not name.startswith(("/", "..")) for name in names)
    assert 0 < refused < 400


def entries(tmp_path, names):
    return [{"image": str(tmp_path / name)} for name in names]


def load(item):
    return {"image": MetaTensor(np.ones((1, 3, 4, 5), np.float32), meta={"filename_or_obj": item["image"]})}


def test_predictions_are_saved_under_those_names(tmp_path):
    names = ["s0/ct.nii.gz", "s1/ct.nii.gz", "1.2.467.4", "1.2.467.5"]
    data = CaseDataset(entries(tmp_path, names), load, root=tmp_path)
    save = SaveImaged(
        "image", output_dir=tmp_path / "out", output_postfix="seg", data_root_dir=".",
        output_name_formatter=OutputName(), print_log=False,
    )  # fmt: skip
    for index in range(len(data)):
        assert data[index]["output_name"] == data.output_names[index]
        save(data[index])
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert found == {
        "s0/ct/ct_seg.nii.gz",
        "s1/ct/ct_seg.nii.gz",
        "1.2.467.4/1.2.467.4_seg.nii.gz",
        "1.2.467.5/1.2.467.5_seg.nii.gz",
    }


def test_a_data_set_that_would_overwrite_is_refused_before_anything_is_read(tmp_path):
    def read(item):
        raise AssertionError("read")

    with pytest.raises(ValueError, match=r"ct\.nii .*ct\.nii\.gz"):
        CaseDataset(entries(tmp_path, ["ct.nii", "ct.nii.gz"]), read)


def test_without_a_data_set_the_name_is_the_scans():
    name = OutputName()
    assert name({"filename_or_obj": "/d/1.2.467.4"}, None)["subject"] == "1.2.467.4.nii.gz"
    assert name({"filename_or_obj": "/d/ct.mhd"}, None)["subject"] == "ct.nii.gz"


@pytest.mark.parametrize("file", ["case.nii.gz", "fold/case.nii.gz", "task/fold/case.nii.gz"])
def test_a_file_of_the_data_list_gets_its_folders(file, tmp_path):
    layout = PredictionLayout(tmp_path / "out")
    for _ in range(2):  # the second file of a folder finds it made
        assert layout.filename("case.nii.gz", file=file) == str(tmp_path / "out" / file)
    assert (tmp_path / "out" / file).parent.is_dir()
