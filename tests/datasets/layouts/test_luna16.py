# SPDX-License-Identifier: Apache-2.0
"""LUNA16 is split by its folds; missing subsets and scans are named, and a report is written whole or not at all."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from models_genesis.datasets import build_datalist, list_luna16, load_datalist
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.luna16 import parse_folds
from models_genesis.datasets.splits import SPLITS

SMALL = {"min_size": (8, 8, 4)}


def luna16_tree(root, tools, folds=range(10)):
    for fold in folds:
        for number in range(2):
            path = root / f"subset{fold}" / f"1.2.{fold}.{number}.mhd"
            path.parent.mkdir(parents=True, exist_ok=True)
            scan = tools.make_scan(0)
            raw = path.with_suffix(".raw")
            raw.write_bytes(scan.T.tobytes())
            path.write_text(
                "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 24 20 16\n"
                f"ElementType = MET_SHORT\nElementDataFile = {raw.name}\n"
            )


def test_luna16_by_fold(tmp_path, tools, capsys):
    luna16_tree(tmp_path / "raw", tools)
    (tmp_path / "raw/subset3/1.2.3.1.raw").unlink()
    assert main(["luna16", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "list.json")]) == 0
    datalist = json.loads((tmp_path / "list.json").read_text())
    folds = {split: sorted({int(entry["image"][6]) for entry in datalist[split]}) for split in SPLITS}
    assert folds == {"training": [0, 1, 2, 3, 4], "validation": [5, 6], "testing": [7, 8, 9]}
    assert [datalist[name] for name in ("numTraining", "numValidation", "numTest")] == [9, 4, 6]
    assert "subset3/1.2.3.1.mhd: expected 1.2.3.1.raw next to it, found none" in capsys.readouterr().out
    assert len(load_datalist(tmp_path / "list.json", tmp_path / "raw", "testing")) == 6
    # a complete tree is recognised, a part of it is split by scan
    assert build_datalist(tmp_path / "raw")["training"] == datalist["training"]
    for fold in range(1, 10):
        shutil.rmtree(tmp_path / f"raw/subset{fold}")
    part = build_datalist(tmp_path / "raw", **SMALL)
    assert (part["numTraining"], part["numValidation"]) == (1, 1)


def test_without_a_data_list_the_whole_of_luna16_is_read_by_fold_as_the_bundles_ask(tmp_path, tools):
    luna16_tree(tmp_path, tools)
    for split, scans in (("training", 10), ("validation", 4)):
        assert len(load_datalist(None, tmp_path, split, **SMALL)) == scans
    header = tmp_path / "subset2" / "1.2.2.0.mhd"
    header.write_text(header.read_text().replace("24 20 16", "24 20 3"))
    header.with_suffix(".raw").write_bytes(bytes(24 * 20 * 3 * 2))
    (left_out,) = [scan for scan in list_luna16(tmp_path, **SMALL).scans if scan.reason]
    assert (left_out.image, left_out.detail) == (
        "subset2/1.2.2.0.mhd", "expected at least 8 x 8 x 4 voxels, found 24 x 20 x 3",
    )  # fmt: skip
    assert len(load_datalist(None, tmp_path, **SMALL)) == 9 and not [s for s in list_luna16(tmp_path).scans if s.reason]


def test_rules_of_a_folder_are_refused_for_luna16(tmp_path, tools):
    luna16_tree(tmp_path, tools)
    with pytest.raises(ValueError, match=r"expected training, validation, testing or min_size, found exclude, seed"):
        build_datalist(tmp_path, seed=1, exclude="x")
    assert build_datalist(tmp_path, layout="folder", seed=1, patient_pattern=r"([^/]+)\.mhd$", **SMALL)["seed"] == 1


def test_luna16_reports_missing_subsets_and_selects_folds(shared, tmp_path, capsys):
    root = shared / "data/luna16"
    arguments = ["luna16", "--root", str(root), "--out", str(tmp_path / "list.json")]
    assert main([*arguments, "--train", "0,2", "--validation", "", "--test", "4-5"]) == 0
    assert "subsets missing" in (output := capsys.readouterr().out) and "2, 4, 5" in output
    assert load_datalist(tmp_path / "list.json", root)[0]["image"].endswith(".mhd")
    assert main([*arguments, "--train", "1-4"]) == 2
    assert "expected scans to train on, found no scans at all" in capsys.readouterr().err
    assert main([*arguments, "--train", "0-5"]) == 2
    assert "found fold 5 in training and validation" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a", "3-1", "10", "1,,x"])
def test_wrong_folds_are_refused(text):
    with pytest.raises(ValueError, match="expected folds"):
        parse_folds(text)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, tools):
    luna16_tree(tmp_path / "raw", tools, [0])
    summary = list_luna16(tmp_path / "raw", (0,), (), ())
    report = tmp_path / "out" / "report.csv"
    summary.write_report(report)
    before = report.read_text()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        summary.write_report(report)
    assert report.read_text() == before and [path.name for path in report.parent.iterdir()] == ["report.csv"]
