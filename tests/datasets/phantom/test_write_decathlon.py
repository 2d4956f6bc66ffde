# SPDX-License-Identifier: Apache-2.0
"""The phantom's data set reads back, and is written whole or not at all."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from models_genesis.datasets.__main__ import main
from models_genesis.datasets.phantom import write_decathlon
from models_genesis.datasets.phantom.chest_abdomen_ct import Label, Phantom, make_phantom
from models_genesis.datasets.phantom.patient import PHASES
from models_genesis.datasets.phantom.write_decathlon import write_phantom

SMALL = {"shape": (48, 40, 40), "region": "chest"}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", 4, seed=3, shape=(80, 64, 72))


def test_data_set_reads_back(data_set: Path) -> None:
    content = json.loads(data_set.read_text())
    entries = content["training"] + content["validation"]
    assert (content["numTraining"], content["numValidation"]) == (3, 1) == (len(content["training"]), 1)
    assert content["labels"] == {str(int(label)): label.name.lower() for label in Label}
    assert len({entry["patient"] for entry in entries}) == 4, "a patient is in one list only"
    assert {entry["phase"] for entry in entries} == PHASES.keys() - {"pulmonary"}, "patients take turns in phase"
    with open(data_set.parent / "nodules.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = 0
    for entry in entries:
        paths = {key: str(data_set.parent / entry[key]) for key in ("image", "label")}
        loaded = LoadImaged(["image", "label"])(paths)
        image, label = loaded["image"], loaded["label"]
        np.testing.assert_array_equal(image.affine, label.affine)
        assert tuple(image.shape) == tuple(label.shape) == (80, 64, 72)
        assert (np.diag(image.affine)[:3] > 0).all() and np.count_nonzero(image.affine[:3, :3]) == 3, "RAS"
        for row in (row for row in rows if row["seriesuid"] == entry["patient"]):
            x, y, z = (float(row[f"coord{axis}"]) for axis in "XYZ")
            index = np.rint(np.linalg.inv(image.affine.numpy()) @ (-x, -y, z, 1))[:3].astype(int)
            assert label[tuple(index)] == Label.NODULE
            assert 2 < float(row["diameter_mm"]) < 40
            found += 1
    assert found == len(rows) >= 3 * len(entries)


def test_chosen_labels_alone_are_kept_and_numbered_in_their_order(data_set: Path, tmp_path: Path) -> None:
    chosen = write_phantom(tmp_path / "set", 1, seed=3, shape=(80, 64, 72), labels=["lesion", "liver"])
    assert json.loads(chosen.read_text())["labels"] == {"0": "background", "1": "lesion", "2": "liver"}
    name = "labelsTr/phantom_000.nii.gz"
    whole = np.asarray(nib.load(data_set.parent / name).dataobj)
    expected = 1 * (whole == Label.LESION) + 2 * (whole == Label.LIVER)
    np.testing.assert_array_equal(np.asarray(nib.load(chosen.parent / name).dataobj), expected)
    assert expected.max() == 2


@pytest.mark.parametrize("labels", [["brain"], ["liver", "liver"], ["background"]])
def test_unknown_or_repeated_label(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="expected labels, each once"):
        write_phantom(tmp_path / "set", 1, labels=labels)


def test_second_call_writes_nothing(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_decathlon, "make_phantom", lambda *_: pytest.fail("made again"))
    assert write_phantom(data_set.parent, 4, seed=3, shape=(80, 64, 72)) == data_set


@pytest.mark.parametrize("change", [{"num_patients": 5}, {"seed": 4}, {"shape": (81, 64, 72)}, {"region": "chest"}])
def test_another_data_set_is_never_overwritten(data_set: Path, change: dict) -> None:
    before = data_set.read_bytes()
    with pytest.raises(FileExistsError, match="another phantom data set"):
        write_phantom(data_set.parent, **{"num_patients": 4, "seed": 3, "shape": (80, 64, 72), **change})
    assert data_set.read_bytes() == before


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a phantom data set"):
        write_phantom(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_phantom
    calls = []

    def fails_at_second(*arguments: object) -> Phantom:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write_decathlon, "make_phantom", fails_at_second)
    with pytest.raises(OSError, match="No space left"):
        write_phantom(tmp_path / "set", 3, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_writers_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(write_phantom, tmp_path / "set", 2, 0, **SMALL) for _ in range(3)]
        assert {job.result() for job in jobs} == {tmp_path / "set" / "dataset.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("arguments", [{"num_patients": 0}, {"seed": -1}, {"validation_fraction": 1.0}])
def test_bad_data_set(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(ValueError, match="num_patients >= 1"):
        write_phantom(tmp_path / "set", **arguments)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["phantom", "--out", str(tmp_path / "set"), "--patients", "1", "--region", "chest", "--shape"]
    assert main([*command, "48", "40", "40"]) == 0
    assert str(tmp_path / "set" / "dataset.json") in capsys.readouterr().out
    assert write_phantom(tmp_path / "set", 1, **SMALL).is_file()
