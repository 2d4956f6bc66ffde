# SPDX-License-Identifier: Apache-2.0
"""Two folders become a list: partners by name, patients and folds by a table, and whatever does not fit is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from models_genesis.datasets import check_cases, list_pairs, load_labelled_cases, msd_task
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.case_table import plain_fold
from models_genesis.datasets.layouts.fold_column import split_folds

VOI = Path(__file__).resolve().parents[4] / "shared" / "data" / "lidc" / "voi"


def write(path: Path, values: Any = (0, 1), shape: tuple[int, ...] = (6, 5, 4), dtype: Any = np.int16, **shift: float):
    """Write an array whose values go round in ``values``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1, 2, 1])
    affine[0, 3] = shift.get("x", 0.0)
    nib.save(nib.Nifti1Image(np.resize(np.array(values, dtype), shape), affine), path)


def write_pair(root: Path, name: str, values: Any = (0, 1), **label: Any) -> None:
    write(root / "ct" / f"{name}.nii.gz", (-1000, 40))
    write(root / "seg" / f"{name}.nii.gz", values, **label)


def survey(folder: Path, **rules: Any):
    return list_pairs(folder / "ct", folder / "seg", **rules)


def write_table(root: Path, *rows: dict[str, Any]) -> Path:
    path = root / "cases.csv"
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def splits_of(summary: Any) -> dict[str, str]:
    return {Path(scan.name).name.split(".")[0]: scan.split or scan.reason for scan in summary.scans}


def test_the_command_writes_a_list_that_the_bundles_read(tmp_path):
    for number in range(6):
        write_pair(tmp_path, f"deep/case{number}", (0, 1, 2))
    out = tmp_path / "list.json"
    command = ["pairs", "--images", str(tmp_path / "ct"), "--labels", str(tmp_path / "seg"), "--out", str(out)]
    assert main([*command, "--label-names", "1=liver", "2=tumour"]) == 0
    content = json.loads(out.read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert (content["in_channels"], content["out_channels"], content["modality"]) == (1, 3, {"0": "CT"})
    assert [content[key] for key in ("numTraining", "numValidation", "numTest")] == [5, 1, 0]
    # the list is the task's description too, and says the same of the labels
    task = msd_task(str(out))
    assert (task["labels"], task["modality"], task["in_channels"]) == (content["labels"], "CT", 1)
    for layout in ("msd", "lidc"):
        cases = [
            case
            for key in ("training", "validation")
            for case in load_labelled_cases(layout, out, tmp_path, key, {"labels": task["labels"]})
        ]
        assert len(check_cases(cases, task["labels"], "CT", 1)) == 6
        assert all(case["label"] == case["image"].replace("/ct/", "/seg/") for case in cases)


def test_absolute_paths_and_another_root(tmp_path):
    for number in range(3):
        write_pair(tmp_path / "data", f"case{number}")
    given = survey(tmp_path / "data", root=tmp_path)
    assert given.datalist()["training"][0]["image"].startswith("data/ct/")
    assert given.datalist(absolute=True)["training"][0]["label"].startswith(str(tmp_path.resolve() / "data/seg/"))
    with pytest.raises(ValueError, match=r"a folder that holds images and label maps, found .*ct outside"):
        survey(tmp_path / "data", root=tmp_path / "data" / "seg")


def test_what_does_not_fit_is_left_out_by_name(tmp_path):
    for name in ("good1", "good2", "alone", "shape", "space", "half", "nan", "empty", "twice"):
        write_pair(tmp_path, name)
    (tmp_path / "seg/alone.nii.gz").unlink()
    write(tmp_path / "seg/lonely.nii.gz")
    write(tmp_path / "seg/shape.nii.gz", shape=(6, 5, 3))
    write(tmp_path / "seg/space.nii.gz", x=0.5)
    write(tmp_path / "seg/half.nii.gz", (0, 0.5), dtype=np.float32)
    write(tmp_path / "seg/nan.nii.gz", (0, 1, np.nan), dtype=np.float32)
    write(tmp_path / "seg/empty.nii.gz", (0,))
    write(tmp_path / "ct/twice.nii")
    write_pair(tmp_path, "cut")
    (tmp_path / "seg/cut.nii.gz").write_bytes((tmp_path / "seg/cut.nii.gz").read_bytes()[:60])
    found = survey(tmp_path)
    reasons = {scan.name: (scan.reason, scan.detail) for scan in found.scans if scan.reason}
    assert reasons["ct/alone.nii.gz"] == (
        "label missing", "expected seg/alone with the suffix of a scan, found none",
    )  # fmt: skip
    assert reasons["seg/lonely.nii.gz"][0] == "image missing"
    assert reasons["ct/shape.nii.gz"] == (
        "label of another shape", "seg/shape.nii.gz: expected 6 x 5 x 4 voxels as the image, found 6 x 5 x 3",
    )  # fmt: skip
    assert reasons["ct/space.nii.gz"][0] == "label in another space"
    assert reasons["ct/half.nii.gz"] == (
        "label not whole", "seg/half.nii.gz: expected whole numbers, found [0.5]",
    )  # fmt: skip
    assert reasons["ct/nan.nii.gz"] == ("label not whole", "seg/nan.nii.gz: expected whole numbers, found [nan]")
    assert reasons["ct/empty.nii.gz"][0] == "no foreground"
    assert reasons["ct/cut.nii.gz"][0].startswith("label ")
    assert reasons["ct/twice.nii"][0] == reasons["ct/twice.nii.gz"][0] == "repeated"
    kept = sorted(scan.name for scan in found.scans if scan.split)
    assert kept == ["ct/good1.nii.gz", "ct/good2.nii.gz"]


def test_label_maps_among_their_images(tmp_path):
    for number in range(3):
        write(tmp_path / f"p{number}" / "scan.nii.gz", (-1000, 40))
        write(tmp_path / f"p{number}" / "scan_seg.nii.gz")
    found = list_pairs(tmp_path, tmp_path, label_suffix="_seg", patient_pattern=r"(p\d)/")
    assert sorted((scan.name, scan.label, scan.patient) for scan in found.scans) == [
        (f"p{k}/scan.nii.gz", f"p{k}/scan_seg.nii.gz", f"p{k}") for k in range(3)
    ]
    with pytest.raises(ValueError, match="expected two folders, or --label-suffix"):
        list_pairs(tmp_path, tmp_path)
    # one folder inside the other
    for number in range(3):
        write(tmp_path / "in" / f"c{number}.nii.gz")
        write(tmp_path / "in" / "labels" / f"c{number}.nii.gz")
    found = list_pairs(tmp_path / "in", tmp_path / "in" / "labels")
    assert {scan.reason for scan in found.scans} == {""} and len(found.scans) == 3


def test_no_pairs_at_all(tmp_path):
    write(tmp_path / "ct" / "a_0000.nii.gz")
    write(tmp_path / "seg" / "a.nii.gz")
    with pytest.raises(ValueError, match=r"expected images and label maps of one name, found none .*a_0000.*nnU-Net"):
        survey(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the folder of the label maps"):
        list_pairs(tmp_path / "ct", tmp_path / "none")


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 3), (-1, 0, 1)])
def test_label_values_with_a_gap_are_refused_with_the_file(values, tmp_path):
    write_pair(tmp_path, "a", values)
    with pytest.raises(ValueError, match=r"expected label values 0, 1, 2, .* \(in seg/a.nii.gz\)"):
        survey(tmp_path)


def test_a_named_value_may_occur_in_no_case_and_no_other_may(tmp_path):
    write_pair(tmp_path, "a", (0, 1, 3))
    write_pair(tmp_path, "b", (0, 4))
    names = {1: "x", 2: "y", 3: "z"}
    found = survey(tmp_path, label_names=names, validation_fraction=0.2)
    assert found.header["labels"] == {"0": "background", "1": "x", "2": "y", "3": "z"}
    (other,) = (scan for scan in found.scans if scan.reason)
    assert (other.reason, other.detail) == (
        "undeclared label", "seg/b.nii.gz: expected values of [0, 1, 2, 3], found [4]",
    )  # fmt: skip


def test_patients_of_a_table_stay_together(tmp_path):
    rows = []
    for number in range(12):
        write_pair(tmp_path, f"case{number}")
        rows.append({"file": f"case{number}.nii.gz", "age": number, "who": f"P{number // 3}"})
    found = survey(tmp_path, table=write_table(tmp_path, *rows), patient="who", validation_fraction=0.25)
    of_patient: dict[str, set[str]] = {}
    for scan in found.scans:
        of_patient.setdefault(scan.patient, set()).add(scan.split)
    assert {patient: len(each) for patient, each in of_patient.items()} == {f"P{k}": 1 for k in range(4)}
    assert sorted(len(each) for each in of_patient.values()) == [1] * 4
    assert any("the column file of cases.csv names the files" in note for note in found.notes)


@pytest.mark.parametrize(
    "cell", ["case{}", "case{}.nii.gz", "ct/case{}.nii.gz", "seg/case{}", "{root}/ct/case{}.nii.gz"]
)
def test_what_a_table_may_call_a_file(cell, tmp_path):
    for number in range(3):
        write_pair(tmp_path, f"case{number}")
    rows = [{"x": cell.format(k, root=tmp_path), "fold": f"{k}.0", "note": ""} for k in range(3)]
    found = survey(tmp_path, table=write_table(tmp_path, *rows), fold="fold")
    assert splits_of(found) == {"case0": "validation", "case1": "training", "case2": "training"}
    assert found.header["split_rule"] == {
        "table": "cases.csv", "column": "fold", "training": ["1", "2"], "validation": ["0"],
    }  # fmt: skip


def test_rows_and_files_without_each_other_are_named(tmp_path):
    for number in range(5):
        write_pair(tmp_path, f"case{number}")
    rows = [{"file": f"case{k}", "patient": f"P{k}", "fold": k % 2} for k in range(6) if k != 4]
    rows[1]["patient"] = ""
    rows[2]["fold"] = ""
    found = survey(tmp_path, table=write_table(tmp_path, *rows), patient="patient", fold="fold")
    assert splits_of(found) == {
        "case0": "validation", "case1": "no patient", "case2": "no fold", "case3": "training",
        "case4": "not in the table", "case5": "file missing",
    }  # fmt: skip
    details = {Path(scan.name).name.split(".")[0]: scan.detail for scan in found.scans}
    assert "found an empty cell in row 3 of cases.csv" in details["case1"]
    assert "found it in row 6 of cases.csv only" in details["case5"]


def test_an_ambiguous_file_column_is_refused(tmp_path):
    for number in range(1, 4):
        write_pair(tmp_path, str(number))
    rows = [{"file": f"{k}.nii.gz", "visit": 4 - k, "patient": f"P{k}"} for k in range(1, 4)]
    table = write_table(tmp_path, *rows)
    with pytest.raises(ValueError, match=r"cases.csv: expected one column .*found file and visit.*give it with --file"):
        survey(tmp_path, table=table, patient="patient")
    found = survey(tmp_path, table=table, patient="patient", file="file")
    assert {Path(scan.name).name: scan.patient for scan in found.scans} == {f"{k}.nii.gz": f"P{k}" for k in range(1, 4)}
    with pytest.raises(ValueError, match="expected a column that names the files, such as '1', found none among who"):
        survey(tmp_path, table=write_table(tmp_path, {"who": "nobody"}), patient="who")


def test_a_name_of_several_files_and_contradicting_rows_are_refused(tmp_path):
    for name in ("a/ct", "b/ct", "c/other"):
        write_pair(tmp_path, name)
    rows = [{"file": "ct.nii.gz", "p": "P1"}, {"file": "other", "p": "P2"}]
    with pytest.raises(ValueError, match=r"row 2: expected a name of one case in file, found 'ct.nii.gz'.* a/ct, b/ct"):
        survey(tmp_path, table=write_table(tmp_path, *rows), patient="p", file="file")
    rows = [{"file": "a/ct", "p": "P1"}, {"file": "a/ct", "p": "P1"}, {"file": "a/ct", "p": "P2"}]
    with pytest.raises(ValueError, match=r"say the same of a/ct, found patient 'P1' .* in row 2, 'P2' .* in row 4"):
        survey(tmp_path, table=write_table(tmp_path, *rows), patient="p")
    (tmp_path / "cases.csv").write_text("p,file,p\nP1,a/ct,P2\n")
    with pytest.raises(ValueError, match="expected one column p, found several"):
        survey(tmp_path, table=tmp_path / "cases.csv", patient="p")


def test_a_patient_across_folds_is_left_out_where_it_would_leak(tmp_path):
    for number in range(6):
        write_pair(tmp_path, f"case{number}")
    patients, folds = "AABBCD", "012210"
    rows = [{"file": f"case{k}", "patient": patients[k], "fold": folds[k]} for k in range(6)]
    found = survey(tmp_path, table=write_table(tmp_path, *rows), patient="patient", fold="fold")
    assert splits_of(found) == {
        "case0": "patient across folds", "case1": "patient across folds", "case2": "training", "case3": "training",
        "case4": "training", "case5": "validation",
    }  # fmt: skip
    assert "in folds of one split, found 0 (ct/case0.nii.gz), 1 (ct/case1.nii.gz)" in found.scans[0].detail
    rows[3]["fold"] = "1"  # B is in two folds that both train
    found = survey(tmp_path, table=write_table(tmp_path, *rows), patient="patient", fold="fold")
    assert splits_of(found)["case3"] == "training"
    assert any("patients in several folds, here of one split: 1, such as B (1, 2)" in note for note in found.notes)


def test_folds_are_chosen_as_luna16s_are(tmp_path):
    for number in range(6):
        write_pair(tmp_path, f"case{number}")
    rows = [{"file": f"case{k}", "fold": k} for k in range(6)]
    table = str(write_table(tmp_path, *rows))
    command = ["pairs", "--images", str(tmp_path / "ct"), "--labels", str(tmp_path / "seg"), "--out"]
    command += [str(tmp_path / "list.json"), "--table", table, "--fold", "fold"]
    assert main([*command, "--train", "0-2", "--validation", "3", "--test", "4"]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    found = {key: [case["fold"] for case in content[key]] for key in ("training", "validation", "testing")}
    assert found == {"training": ["0", "1", "2"], "validation": ["3"], "testing": ["4"]}
    assert content["split_rule"]["left out"] == ["5"]
    # a fold of which every case is left out is a fold all the same
    write(tmp_path / "seg/case4.nii.gz", (0,))
    assert splits_of(survey(tmp_path, table=table, fold="fold", testing=("4",)))["case4"] == "no foreground"


def test_words_for_folds():
    assert split_folds("c", ["Train", "VAL", "test"]) == {"Train": "training", "VAL": "validation", "test": "testing"}
    assert split_folds("c", ["10", "9", "2"]) == {"2": "validation", "9": "training", "10": "training"}
    assert plain_fold("3.5") == "3.5"
    for folds in (["A", "B"], ["0"], ["train", "0"]):
        with pytest.raises(ValueError, match="say which is which with --validation and --test"):
            split_folds("c", folds)
    assert split_folds("c", ["A", "B"], validation=["B"]) == {"A": "training", "B": "validation"}
    with pytest.raises(ValueError, match="expected folds among A, B, found 'C' for testing"):
        split_folds("c", ["A", "B"], testing=["C"])
    with pytest.raises(ValueError, match="found A in validation and testing"):
        split_folds("c", ["A", "B"], validation=["A"], testing=["A"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"patient": "p"}, "give --table"),
        ({"table": "cases.csv"}, "give --patient or --fold"),
        ({"validation": ("1",)}, "found no --fold"),
        ({"table": "t", "fold": "f", "seed": 1}, "expected a split by fold or by shares and seed"),
        ({"table": "t", "patient": "p", "patient_pattern": "(x)"}, "expected one of --patient and --patient-pattern"),
        ({"modality": ()}, "expected a name for each channel"),
        ({"patient_pattern": "(x)"}, "expected the patient as first group of"),
    ],
)
def test_options_that_contradict_each_other(rules, message, tmp_path):
    write_pair(tmp_path, "a")
    with pytest.raises(ValueError, match=message):
        survey(tmp_path, **rules)


def test_several_channels_in_one_file(tmp_path):
    for number in range(3):
        write_pair(tmp_path, f"case{number}")
        write(tmp_path / f"ct/case{number}.nii.gz", (1, 2, 3), (6, 5, 4, 2))
    found = survey(tmp_path, modality=("FLAIR", "T1"))
    assert {scan.reason for scan in found.scans} == {""}
    assert (found.header["modality"], found.header["in_channels"]) == ({"0": "FLAIR", "1": "T1"}, 2)


@pytest.mark.skipif(not VOI.is_dir(), reason="../shared/data/lidc/voi is not here")
def test_nodules_of_lidc_by_their_folds(tmp_path):
    """All 904 pairs by the folds of LUNA16; the one patient who is in two of them is found."""
    table = list(csv.DictReader((VOI / "metadata.csv").open()))
    chosen = [row for row in table if row["patient_id"] in ("LIDC-IDRI-0332", "LIDC-IDRI-0001", "LIDC-IDRI-0005")]
    for row in chosen:
        for folder in ("image", "nodule_mask"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / row["file"]).symlink_to(VOI / folder / row["file"])
    rules = {"table": VOI / "metadata.csv", "patient": "patient_id", "fold": "luna16_fold", "testing": ("6",)}
    found = list_pairs(tmp_path / "image", tmp_path / "nodule_mask", **rules)
    by_name = {Path(scan.name).name: scan for scan in found.scans}
    assert sum(scan.reason == "file missing" for scan in found.scans) == len(table) - len(chosen)
    for row in chosen:
        scan = by_name[row["file"]]
        assert scan.patient == row["patient_id"]
        expected = "patient across folds" if row["patient_id"] == "LIDC-IDRI-0332" else ""
        assert scan.reason == expected
        assert expected or scan.split == ("testing" if row["luna16_fold"] == "6" else "training")
