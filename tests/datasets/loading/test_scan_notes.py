# SPDX-License-Identifier: Apache-2.0
"""The second start reads no header of DICOM, and whatever changed in a folder is seen."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path

import numpy as np
import pydicom
import pytest

from models_genesis.datasets import ScanCache
from models_genesis.datasets.io import dicom_series
from models_genesis.datasets.loading import scan_notes
from models_genesis.datasets.loading.scan_notes import ScanNotes

SLICES = 40


@pytest.fixture
def scans(tools, tmp_path, monkeypatch):
    """Two series, whose identifiers have one length, so that a file's size does not tell it from another."""
    numbers = count(10**20)
    monkeypatch.setattr(pydicom.uid, "generate_uid", lambda: pydicom.uid.UID(f"1.2.{next(numbers)}"))
    made = {name: tools.make_scan(number, (40, 36, SLICES)) for number, name in enumerate("ab")}
    for name, scan in made.items():
        tools.write_series(tmp_path / "ct" / name, scan, patient=name)
    return made


@pytest.fixture
def start(tools, tmp_path, scans):
    """Makes a cache of the series, as a process does that has just begun."""

    def begin(preprocessing=None, **settings):
        dicom_series._find_series.cache_clear()
        data = [{"image": str(tmp_path / "ct" / name), "patient": name} for name in scans]
        settings = {"cache_gib": 0, "cache_dir": tmp_path / "cache", "progress": False, **settings}
        return ScanCache(data, preprocessing or tools.preprocessing(), **settings)

    return begin


def prepared_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".note.json"))


def test_the_second_start_reads_no_header(start, scans, read):
    first = start()
    assert set(read.values()) == {1}  # looked at and prepared: the folder is still known
    read.clear()
    second = start()
    assert not read
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before["image"], after["image"])
    assert start(cache_gib=1).in_memory  # with the sizes that the headers said
    sizes = [ScanNotes(first.cache_dir, "", "image")._read(path.name.partition(".")[0]) for path in notes(first)]
    assert [note.nbytes for note in sizes] == [2 * scan.size for scan in scans.values()]


def notes(cache: ScanCache) -> list[Path]:
    return sorted(cache.cache_dir.glob("*.note.json"))


def test_what_is_no_slice_of_the_scan_costs_one_look(start, read, tmp_path):
    first = start()
    before = prepared_names(first.cache_dir)
    (tmp_path / "ct/a/report.txt").write_text("nothing of note")
    read.clear()
    start()
    assert {Path(file).parent.name for file in read} == {"a"}
    assert prepared_names(first.cache_dir) == before
    read.clear()
    start()
    assert not read


@pytest.mark.parametrize("changed", ["replaced", "removed", "added"])
def test_a_changed_folder_is_another_scan(changed, start, scans, tools, tmp_path):
    start()
    folder = tmp_path / "ct/a"
    if changed == "replaced":  # by as many bytes, a second later
        files = {path.name: path.stat() for path in folder.iterdir()}
        expected = tools.make_scan(7, scans["a"].shape)
        tools.write_series(folder, expected, patient="a")
        for name, state in files.items():
            assert (folder / name).stat().st_size == state.st_size
            os.utime(folder / name, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    elif changed == "removed":
        expected = scans["a"][..., :-1]
        next(folder.glob(f"*_{SLICES - 1:03d}.dcm")).unlink()
    else:
        expected = np.concatenate([scans["a"], scans["a"][..., :1]], 2)
        for path in folder.iterdir():
            path.unlink()
        tools.write_series(folder, expected, patient="a")
    # the series lies in LPS, the prepared scan in RAS
    np.testing.assert_array_equal(start()[0]["image"][0], np.clip(expected[::-1, ::-1], -1000, 1000))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "x"}', '{"key": "x", "nbytes": "many"}'])
def test_a_broken_note_is_as_none(content, start, read):
    cache = start()
    for path in notes(cache):
        path.write_text(content)
    read.clear()
    again = start()
    assert set(read.values()) == {1}
    np.testing.assert_array_equal(again[0]["image"], cache[0]["image"])
    read.clear()
    start()
    assert not read  # it has been written again


def test_a_note_without_its_prepared_scan_prepares_it_again(start):
    cache = start()
    expected = np.array(cache[0]["image"])
    for path in cache.cache_dir.glob("*.np[yz]"):
        path.unlink()
    np.testing.assert_array_equal(start()[0]["image"], expected)


def test_no_note_is_kept_of_a_folder_that_changed_meanwhile(start, tmp_path):
    kept = ScanNotes(tmp_path / "cache", "settings", "image")
    kept.folder.mkdir()
    entry = {"image": str(tmp_path / "ct/a")}
    note = kept.look(entry, lambda entry: 5)
    (tmp_path / "ct/a/late.dcm").write_bytes(b"")
    kept.write(entry, note)
    assert not list(kept.folder.iterdir())
    kept.write(entry, kept.look(entry, lambda entry: 6))
    assert [json.loads(path.read_text())["nbytes"] for path in kept.folder.iterdir()] == [6]


def test_settings_and_other_values_have_notes_of_their_own(tmp_path, scans):
    entry = {"image": str(tmp_path / "ct/a"), "label": 1}
    found = {
        ScanNotes(tmp_path, settings, "image").look({**entry, "label": label}, lambda _: 1).name
        for settings in ("x", "y")
        for label in (0, 1, str(tmp_path / "ct/b"))
    }
    assert len(found) == 6 and "" not in found


def test_a_scan_in_one_file_needs_no_note(tools, tmp_path, start):
    tools.write_nifti(tmp_path / "a.nii", tools.make_scan(0))
    looked = ScanNotes(tmp_path, "", "image").look({"image": str(tmp_path / "a.nii")}, lambda entry: 5)
    assert (looked.nbytes, looked.key, looked.name) == (5, "", "")


def test_a_cache_that_cannot_be_written_is_used_all_the_same(start, monkeypatch, read):
    cache = start()
    for path in notes(cache):
        path.unlink()

    def refuse(*args, **settings):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(scan_notes, "atomic_path", refuse)
    np.testing.assert_array_equal(start()[0]["image"], cache[0]["image"])


def test_memory_alone_keeps_no_notes(start, tmp_path):
    start(cache_gib=1)
    assert not (tmp_path / "cache").exists()


def test_threads_look_through_a_folder_of_several_series_once(tools, tmp_path, read):
    for number in range(4):
        tools.write_series(tmp_path / "ct", tools.make_scan(number, (40, 36, SLICES)), prefix=f"s{number}_")
    series = dicom_series.list_series(str(tmp_path / "ct"))
    dicom_series._find_series.cache_clear()
    read.clear()
    data = [{"image": f"{tmp_path / 'ct'}::{name}"} for name in series]
    cache = ScanCache(
        data, tools.preprocessing(), cache_gib=0, cache_dir=tmp_path / "cache", num_workers=4, progress=False
    )
    assert len(cache) == 4
    assert len(read) == 4 * SLICES and set(read.values()) == {1}
