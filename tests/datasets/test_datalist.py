# SPDX-License-Identifier: Apache-2.0
"""Data lists are read as MONAI reads them; wrong ones are named, and so is what is wrong on the command line."""

from __future__ import annotations

import json
import re
import sys

import pytest

from models_genesis.datasets import load_datalist, load_labelled_cases
from models_genesis.datasets.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--root", "{}/empty"], "expected scans .* found none"),
        (["folder", "--root", "{}/nowhere"], "no such folder"),
        (["luna16", "--root", "{}/empty"], "expected the folders subset0"),
        (["luna16", "--root", "{}/nowhere"], "no such folder"),
        (["folder", "--root", "{}/text"], "expected scans to train on, found 1 unreadable"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.nii").write_text("no image")
    assert main([*(part.format(tmp_path) for part in arguments), "--out", str(tmp_path / "list.json")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == 1 and re.search(f"^error: .*{message}", errors[0])
    assert not (tmp_path / "list.json").exists()


def test_the_module_runs(forked_python, tmp_path):
    command = [sys.executable, "-m", "models_genesis.datasets", "folder", "--root", str(tmp_path), "--out", "list.json"]
    result = forked_python(command, tmp_path, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: {tmp_path}: expected scans" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "expected a data list, found no such file"),
        ("{", ValueError, "expected a data list in JSON"),
        ("[1, 2]", ValueError, "expected a data list, found list"),
        ('{"validation": []}', ValueError, r"expected a list named 'training', found \['validation'\]"),
        ('{"training": [{"label": "a"}]}', ValueError, "expected an 'image' in entry 0"),
        ('{"training": [{"image": 7}]}', ValueError, "expected an 'image' in entry 0"),
        ('{"training": [{"image": ["a", 7]}]}', ValueError, "expected an 'image' in entry 0"),
        ('{"training": [{"image": ["a", ""]}]}', ValueError, "expected an 'image' in entry 0"),
        ('{"training": [{"image": "gone%d.nii"}]}', FileNotFoundError, "7 of 7 images are missing"),
    ],
)
def test_wrong_data_lists_are_named(content, error, message, tmp_path):
    path = tmp_path / "list.json"
    if content is not None:
        if "gone" in content:
            content = json.dumps({"training": [{"image": f"gone{number}.nii"} for number in range(7)]})
        path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        load_datalist(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("gone") in (0, 5)


def test_neither_list_nor_folder_is_refused():
    with pytest.raises(ValueError, match="found neither"):
        load_datalist(None)


def test_bare_paths_and_lists_of_channels(scan_folder):
    (scan_folder / "list.json").write_text(
        json.dumps({"test": ["a/first.nii.gz"], "training": [{"image": ["a/first.nii.gz", "b/only.nii"]}]})
    )
    assert load_datalist(scan_folder / "list.json", key="test") == [{"image": str(scan_folder / "a/first.nii.gz")}]
    channels = [str(scan_folder / "a/first.nii.gz"), str(scan_folder / "b/only.nii")]
    assert load_datalist(scan_folder / "list.json") == [{"image": channels}]


def test_entries_without_a_label_are_named_where_labels_are_needed(tmp_path, caplog):
    """A misspelt key would make a measurement of fewer cases, which nothing else tells."""
    (tmp_path / "a.nii").write_bytes(b"")
    entry = {"image": "a.nii", "label": "a.nii"}
    others = [{"image": f"{number}.nii", "lable": "a.nii", "patient": str(number)} for number in range(7)]
    (tmp_path / "list.json").write_text(json.dumps({"testing": [entry, *others, {"image": "7.nii", "label": ""}]}))
    assert len(load_datalist(tmp_path / "list.json", key="testing", with_label=True)) == 1
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "8 of 9 entries have no 'label' and are left out" in record.message
    assert "4.nii, whose keys are image, lable, patient" in record.message
    assert "and 3 more" in record.message
    assert "5.nii" not in record.message
    with pytest.raises(FileNotFoundError):  # as images they count
        load_datalist(tmp_path / "list.json", key="testing")


@pytest.mark.parametrize("label", [0, 1, 0.5, True, [0, 1], {"size": 3}])
def test_a_label_that_is_no_file_is_given_as_it_is(label, scan_folder):
    """Classes are numbers, 0 too; a missing file is still named."""
    path = scan_folder / "list.json"
    entry = {"image": "a/first.nii.gz", "label": label}
    path.write_text(json.dumps({"training": [entry, {"image": "b/only.nii"}]}))
    labelled = {"image": str(scan_folder / "a/first.nii.gz"), "label": label}
    assert load_datalist(path) == [labelled, {"image": str(scan_folder / "b/only.nii")}]
    assert load_datalist(path, with_label=True) == [labelled]
    with pytest.raises(ValueError, match=r"first\.nii\.gz: expected a label map, found "):
        load_labelled_cases("msd", path, scan_folder, "training")
    path.write_text(json.dumps({"training": [entry, {"image": "gone.nii"}]}))
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        load_datalist(path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b", "\ud800.nii"])
def test_names_that_no_file_can_have_are_missing(tmp_path, name):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": name}]}))
    with pytest.raises(FileNotFoundError, match=r"list.json \(training\): 1 of 1 images are missing") as caught:
        load_datalist(path)
    str(caught.value).encode()
