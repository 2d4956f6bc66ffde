# SPDX-License-Identifier: Apache-2.0
"""Folder trees: links are followed alike by all commands, loops end, special files are passed over with a word."""

from __future__ import annotations

import logging
import os
import socket

import pytest

from models_genesis.datasets import BadScanError, list_folder, list_lits, list_luna16, open_scan
from models_genesis.datasets.cases import load_cases
from models_genesis.datasets.io.file_walk import find_files, walk_folders
from models_genesis.datasets.io.find_scans import find_scans
from models_genesis.datasets.layouts.brats import find_cases
from models_genesis.datasets.layouts.lidc import find_readings

SMALL = {"min_size": (8, 8, 4)}


def test_special_files_are_passed_over_with_a_word(tmp_path, tools, caplog):
    tools.write_nifti(tmp_path / "good.nii.gz", tools.make_scan(0))
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "self.nii").symlink_to(tmp_path / "self.nii")
    (tmp_path / "null.mhd").symlink_to("/dev/null")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as unix:
        os.chdir(tmp_path)
        unix.bind("sock.nrrd")
    with caplog.at_level(logging.WARNING):
        assert list(find_scans(tmp_path)) == ["good.nii.gz"]
    for name in ("pipe.nii.gz", "pipe", "pipe.dcm", "self.nii", "null.mhd", "zero", "sock.nrrd"):
        assert f"{tmp_path / name}: passed over" in caplog.text
    assert [scan.image for scan in list_folder(tmp_path, **SMALL).scans] == ["good.nii.gz"]
    assert [entry["image"] for entry in load_cases("lits", None, tmp_path)] == [str(tmp_path / "good.nii.gz")]


@pytest.mark.parametrize("name", ["pipe.nii.gz", "pipe.nii", "pipe.mhd", "pipe.nrrd"])
def test_a_fifo_that_is_named_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadScanError, match=f"{name}: not a file: expected a regular file, found a FIFO"):
        open_scan(str(tmp_path / name))


def test_voxels_in_a_fifo_are_refused(tmp_path):
    os.mkfifo(tmp_path / "v.raw")
    (tmp_path / "a.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 4 4 4\nElementType = MET_SHORT\n"
        "ElementDataFile = v.raw\n"
    )
    with pytest.raises(BadScanError, match=r"not a file: v.raw: expected a regular file"):
        open_scan(str(tmp_path / "a.mhd"))


def test_a_fifo_in_a_series_folder_is_not_waited_for(tmp_path, tools):
    tools.write_series(tmp_path / "s", tools.make_scan(0))
    os.mkfifo(tmp_path / "s/slice999_999.dcm")
    assert open_scan(str(tmp_path / "s"))[0].shape == (24, 20, 16)


def test_links_of_missing_files_are_named(tmp_path):
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    assert list(find_scans(tmp_path)) == ["gone.nii.gz"]
    with pytest.raises(BadScanError, match=r"gone.nii.gz: missing"):
        open_scan(str(tmp_path / "gone.nii.gz"))


def test_linked_folders_are_followed_by_all_commands(tmp_path, tools):
    store, root = tmp_path / "store", tmp_path / "root"
    root.mkdir()
    scan, label = tools.make_scan(0), (tools.make_scan(0) > -500).astype("uint8")
    tools.write_nifti(store / "volume-0.nii", scan)
    tools.write_nifti(store / "segmentation-0.nii", label)
    tools.write_nifti(store / "p1/p1_flair.nii.gz", scan)
    (store / "notes.xml").write_text("<broken")
    (root / "linked").symlink_to(store)
    (root / "linked/loop").symlink_to(root)
    assert sorted(find_scans(root)) == [
        "linked/p1/p1_flair.nii.gz", "linked/segmentation-0.nii", "linked/volume-0.nii",
    ]  # fmt: skip
    assert [found.image for found in list_lits(root).scans] == ["linked/volume-0.nii"]
    assert len(find_cases(root)) == 1
    assert any("notes.xml" in note for note in find_readings(root)[1])
    assert len(list(walk_folders(root))) == 3 and len(find_files(root, ".XML")) == 1


def test_linked_subsets_of_luna16_are_found(tmp_path, tools):
    scan = tools.make_scan(0)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "1.2.3.raw").write_bytes(scan.T.tobytes())
    (folder / "1.2.3.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 24 20 16\nElementType = MET_SHORT\n"
        "ElementDataFile = 1.2.3.raw\n"
    )
    (tmp_path / "luna").mkdir()
    (tmp_path / "luna/subset0").symlink_to(folder)
    assert [found.image for found in list_luna16(tmp_path / "luna").scans] == ["subset0/1.2.3.mhd"]


def test_scans_passed_over_by_their_names_are_named_and_counted(tmp_path, tools, caplog):
    names = ["done/a.nii.gz", "to_label/b.nii.gz", "Patient_GT_07.nii.gz"]
    for name in names:
        tools.write_nifti(tmp_path / name, tools.make_scan(0))
    with caplog.at_level(logging.WARNING):
        found = load_cases("lits", None, tmp_path)
    assert [entry["image"] for entry in found] == [str(tmp_path / names[0])]
    assert "2 of 3 scans are passed over" in caplog.text and all(name in caplog.text for name in names[1:])
