# SPDX-License-Identifier: Apache-2.0
"""Bad cases of a data list stop the work or are skipped, as stated, and are named either way."""

from __future__ import annotations

import json
import logging

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from models_genesis.datasets import CaseDataset, ScanReader, check_cases
from models_genesis.datasets.__main__ import main
from models_genesis.transforms import BadCaseError

LABELS = {"0": "background", "1": "liver"}


@pytest.fixture
def cases(tmp_path):
    """Five cases of which three are bad, each in its own way."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(5):
        image, label = rng.integers(-1000, 100, (8, 7, 6)).astype(np.int16), np.zeros((8, 7, 6), np.uint8)
        label[2:5, 2:5, 2:5] = 2 if number == 1 else 1
        image = abs(image) if number == 3 else image
        entry = {"image": str(tmp_path / f"image{number}.nii"), "label": str(tmp_path / f"label{number}.nii")}
        nib.save(nib.Nifti1Image(image, np.eye(4)), entry["image"])
        nib.save(nib.Nifti1Image(label, np.eye(4)), entry["label"])
        entries.append({**entry, "patient": f"P{number}"})
    (tmp_path / "label4.nii").write_text("no image")
    return entries


def test_the_first_bad_case_is_an_error(cases):
    with pytest.raises(BadCaseError, match=r"image1\.nii: undeclared label: expected values of \[0, 1\], found \[2\]"):
        check_cases(cases, LABELS, "CT")
    with pytest.raises(BadCaseError, match=r"image3\.nii: not CT"):
        check_cases(cases[2:], LABELS, "CT")
    with pytest.raises(
        BadCaseError, match=r"image4\.nii: unreadable: expected an image and its label, found .*label4\.nii"
    ):
        check_cases(cases[4:], LABELS, "CT")


def test_bad_cases_can_be_skipped(cases, caplog):
    with caplog.at_level(logging.WARNING):
        assert check_cases(cases, LABELS, "CT", on_bad_case="skip") == [cases[0], cases[2]]
    messages = [record.message for record in caplog.records if record.message.startswith("left out")]
    assert [message.split("image")[1][0] for message in messages] == ["1", "3", "4"]
    assert check_cases(cases[:4], [1, 2], on_bad_case="skip") == cases[:4]
    with pytest.raises(ValueError, match=r"none of the 1 cases can be used; the first: .*image3\.nii: not CT"):
        check_cases(cases[3:4], LABELS, "CT", on_bad_case="skip")
    with pytest.raises(ValueError, match="on_bad_case must be 'raise' or 'skip'"):
        check_cases(cases, LABELS, on_bad_case="ignore")
    assert check_cases([], LABELS) == []


def test_the_command_names_all(cases, tmp_path, capsys):
    path = tmp_path / "list.json"
    unlabelled = {key: cases[0][key] for key in ("image", "patient")}
    path.write_text(
        json.dumps({"labels": LABELS, "training": cases[:3], "validation": cases[3:], "testing": [unlabelled]})
    )
    assert main(["check", "--datalist", str(path), "--modality", "CT"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["training", "validation", "validation", "3 of 6 cases are good"]
    path.write_text(json.dumps({"labels": LABELS, "training": [cases[0], cases[2]]}))
    assert main(["check", "--datalist", str(path), "--channels", "1"]) == 0
    assert main(["check", "--datalist", str(path), "--channels", "4"]) == 1
    path.write_text("{")
    assert main(["check", "--datalist", str(path)]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_case_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "text.nii").write_text("no image")
    cases = CaseDataset([{"image": str(tmp_path / "text.nii")}], LoadImaged("image", ScanReader), "skip")
    assert cases[0]["error"].startswith(f"{tmp_path / 'text.nii'}: unreadable: expected a NIfTI file, found ")
    with pytest.raises(BadCaseError, match=r"text.nii: unreadable: expected a NIfTI file"):
        CaseDataset(cases.data, LoadImaged("image", ScanReader))[0]
