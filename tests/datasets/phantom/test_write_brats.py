# SPDX-License-Identifier: Apache-2.0
"""The brain phantom's data set has the layout of BraTS, and is written whole or not at all."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from models_genesis.datasets import check_cases, list_brats, load_datalist, write_brain_phantom
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.phantom import write_brats as writing


def test_the_data_set_is_that_of_brats(tmp_path, capsys):
    arguments = ["phantom-brain", "--out", str(tmp_path / "set"), "--patients", "6", "--validation-fraction", "0.34"]
    arguments += ["--shape", "40", "48", "44", "--spacing", "4.6", "4.6", "4.6"]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "set/dataset.json").read_text())
    assert (content["numTraining"], content["numValidation"], content["label_convention"]) == (4, 2, "2018")
    cases = [
        case for key in ("training", "validation") for case in load_datalist(tmp_path / "set/dataset.json", key=key)
    ]
    assert check_cases(cases, content["labels"], "MR", 4) == cases
    assert [case["patient"] for case in cases] == [f"Phantom_{number:03d}" for number in range(6)]
    labels = [set(np.unique(np.asarray(nib.load(case["label"]).dataobj)).tolist()) for case in cases]
    assert labels == [{0, 1, 2, 4}] * 4 + [{0, 1, 2}] + [{0, 1, 2, 4}]
    # the raw layout says the same as the data list
    scans = list_brats(tmp_path / "set").scans
    assert sorted(scan.entry()["image"] for scan in scans) == [
        case["image"] for key in ("training", "validation") for case in content[key]
    ]
    # a second call writes nothing; another data set is not overwritten
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds another phantom data set" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(writing.nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_brain_phantom(tmp_path / "set", 1, shape=(32, 32, 32), spacing=(6, 6, 6))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected num_patients >= 1"):
        write_brain_phantom(tmp_path / "set", 0)
