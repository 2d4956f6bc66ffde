# SPDX-License-Identifier: Apache-2.0
"""Scans come out of memory and out of files alike; bad ones are named; broken files are written again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, Flip, LoadImaged, MapTransform, Spacingd

from models_genesis.datasets import BadScanError, ScanCache
from models_genesis.datasets.loading.mapped_scans import MappedScan, check_free_space, preprocessing_key, scan_key
from models_genesis.datasets.loading.memory_budget import available_memory, cache_budget
from models_genesis.datasets.loading.prepare_scan import PrepareScan
from models_genesis.datasets.loading.scan_cache import default_cache_dir
from models_genesis.datasets.store.describe import describe


def entries(folder):
    return [{"image": str(path), "patient": path.parent.name} for path in sorted(folder.rglob("*.nii*"))]


class FailsOn(MapTransform):
    """Fails on one scan at once, while the others take their time."""

    def __init__(self, scan):
        super().__init__("image")
        self.scan = scan

    def __call__(self, data):
        if data["image"] == self.scan:
            raise RuntimeError("broken")
        time.sleep(0.3)
        return data


@pytest.fixture
def make(scan_folder, tmp_path, tools):
    def make_cache(**settings):
        settings = {"cache_dir": tmp_path / "cache", "progress": False, **settings}
        data = settings.pop("data", None) or entries(scan_folder)
        return ScanCache(data, settings.pop("preprocessing", None) or tools.preprocessing(), **settings)

    return make_cache


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name])


def test_memory_and_disk_hold_the_same(make, tools, scan_folder, tmp_path):
    memory, disk = make(cache_gib=0.1), make(cache_gib=0)
    assert memory.in_memory and not disk.in_memory
    assert memory.data == disk.data == entries(scan_folder) and len(memory) == len(disk) == 5
    for first, second in zip(memory, disk, strict=False):
        assert_same(first, second)
        assert isinstance(second["image"], np.memmap) and not second["image"].flags.writeable
    # int16 and nothing more than starts and affine besides
    scan = memory[0]
    assert scan["image"].dtype == np.int16 and scan["image"].shape == (1, 24, 20, 16)
    np.testing.assert_array_equal(scan["image"][0], tools.make_scan(0))
    np.testing.assert_allclose(scan["image_affine"], np.diag([*tools.spacing, 1.0]))
    assert set(scan) == {"image", "image_affine", "starts"}
    starts = sum(len(memory[index]["starts"]) for index in range(5))
    assert memory.nbytes == disk.nbytes == 5 * (2 * 24 * 20 * 16 + 8 * 16) + 4 * starts
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_the_budget_decides_and_says_so(make, caplog):
    with caplog.at_level(logging.INFO):
        # 5 scans of 24 x 20 x 16 voxels at 2 bytes are 76,800 bytes; their starts come on top
        assert make(cache_gib=120_000 / 2**30).in_memory
        assert "5 scans fit in memory" in caplog.text and "0.0 MB a scan" in caplog.text
        caplog.clear()
        assert not make(cache_gib=76_799 / 2**30).in_memory
        assert "5 scans go to disk" in caplog.text and "0 of 5 prepared scans were there already" in caplog.text
        caplog.clear()
        assert not make(cache_gib=0).in_memory
        assert "5 of 5 prepared scans were there already" in caplog.text


def test_scans_larger_than_their_headers_say_go_to_disk(make, tools, caplog):
    finer = tools.preprocessing()
    finer.insert(2, Spacingd("image", pixdim=(1.0, 1.0, 1.0)))
    cache = make(preprocessing=finer, cache_gib=200_000 / 2**30)
    assert not cache.in_memory and "exceed the budget" in caplog.text
    assert cache[0]["image"].shape[1] > 40


def test_the_next_run_reads_no_scan_again(make, tools, scan_folder):
    class Count(MapTransform):
        calls = 0

        def __call__(self, data):
            Count.calls += 1
            return dict(data)

    transforms = [*tools.preprocessing(), Count("image")]
    make(preprocessing=transforms, cache_gib=0)
    assert Count.calls == 5
    make(preprocessing=transforms, cache_gib=0)
    assert Count.calls == 5
    # another setting, a changed scan, or a copy of the cache with other times
    make(preprocessing=[*tools.preprocessing(threshold=-151.0), Count("image")], cache_gib=0)
    assert Count.calls == 10
    tools.write_nifti(scan_folder / "b/only.nii", tools.make_scan(77))
    cache = make(preprocessing=transforms, cache_gib=0)
    assert Count.calls == 11
    np.testing.assert_array_equal(cache[2]["image"][0], tools.make_scan(77))
    for path in cache.cache_dir.iterdir():
        os.utime(path, (1, 1))
    make(preprocessing=transforms, cache_gib=0)
    assert Count.calls == 11


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("cache_gib", [0.1, 0])
def test_an_error_leaves_no_thread_behind(make, scan_folder, cache_gib):
    """A thread that still decodes when the process ends would abort it, and with it the message of the error."""
    before = set(threading.enumerate())
    failing = Compose([FailsOn(entries(scan_folder)[0]["image"])])
    with pytest.raises(BadScanError, match="broken"):
        make(cache_gib=cache_gib, preprocessing=failing, num_workers=2)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("image.npy", flip_a_byte),
        ("image.npy", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("image.npy", lambda path: path.unlink()),
        ("starts.npy", lambda path: path.write_bytes(b"")),
        ("json", lambda path: path.write_text("{")),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.unlink()),
    ],
)
def test_a_broken_file_is_written_anew(name, damage, make, caplog):
    good = make(cache_gib=0)
    expected = [{key: np.array(array) for key, array in good[index].items()} for index in range(5)]
    damage(next(good.cache_dir.glob(f"*.{name}")))
    with caplog.at_level(logging.INFO):
        again = make(cache_gib=0)
    assert "4 of 5 prepared scans were there already" in caplog.text
    for index in range(5):
        assert_same(again[index], expected[index])


def test_a_bad_scan_raises_or_is_left_out(make, bad_scan, scan_folder, caplog):
    path, message = bad_scan
    good = [entry for entry in entries(scan_folder) if entry["image"] != path][:2]
    data = [*good, {"image": path, "patient": "bad"}]
    for gib in (0.1, 0):
        with pytest.raises(BadScanError, match=message) as caught:
            make(data=data, cache_gib=gib)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 400
        caplog.clear()
        cache = make(data=data, cache_gib=gib, on_bad_scan="skip")
        assert len(cache) == len(data) - 1 and path not in [entry["image"] for entry in cache.data]
        assert [scan.scan for scan in cache.left_out] == [path]
        assert f"1 of {len(data)} scans are left out" in caplog.text and path in caplog.text
        with pytest.raises(ValueError, match=f"none of the 1 scans can be used.*{message}"):
            make(data=data[-1:], cache_gib=gib, on_bad_scan="skip")


def test_a_scan_without_starts_is_left_out_from_an_old_cache_too(make, tools, scan_folder):
    solid = tools.write_nifti(scan_folder / "solid.nii", np.zeros((24, 20, 16), np.int16))
    for _ in range(2):
        cache = make(cache_gib=0, preprocessing=tools.preprocessing(on_empty="warn"), on_bad_scan="skip")
        assert [scan.scan for scan in cache.left_out] == [solid] and len(cache) == 5
        assert "no cubes: expected an admissible start" in cache.left_out[0].reason


def test_a_full_disk_is_noticed_before_anything_is_written(make, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 1000))
    with pytest.raises(OSError, match="GiB free for prepared scans, found"):
        make(cache_gib=0)
    assert list((tmp_path / "cache").iterdir()) == []
    check_free_space(tmp_path, 1000)


def test_a_disk_that_fills_up_leaves_no_half_file_and_is_no_bad_scan(make, monkeypatch, tmp_path):
    def fill(stream, array, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        make(cache_gib=0, on_bad_scan="skip", num_workers=1)
    assert list((tmp_path / "cache").iterdir()) == []


def test_real_scans_of_all_formats(shared, tools, tmp_path):
    data = [{"image": str(path)} for path in sorted((shared / "data/ct").glob("t*.nii.gz"))]
    cache = ScanCache(data, tools.preprocessing((32, 32, 16)), cache_gib=1, progress=False)
    assert [scan["image"].dtype for scan in cache] == [np.int16, np.int16]  # one of them is int32 on disk
    assert cache.nbytes < 2.5 * sum(scan["image"].size for scan in cache)


def test_channels_from_several_files(make, scan_folder):
    first, second = entries(scan_folder)[:2]
    cache = make(data=[{"image": [first["image"], second["image"]]}], cache_gib=0)
    assert cache[0]["image"].shape == (2, 24, 20, 16)


def test_one_file_holds_the_channels_or_each_has_its_own(tools, tmp_path):
    several = tools.write_nifti(tmp_path / "all.nii.gz", np.stack([tools.make_scan(0)] * 3, -1))
    single = [tools.write_nifti(tmp_path / f"{number}.nii.gz", tools.make_scan(number)) for number in range(2)]
    of_one, of_three = (PrepareScan([], "image", "starts", "raise", channels) for channels in (1, 3))
    scan = 2 * 24 * 20 * 16  # bytes
    assert of_three.predicted_bytes({"image": several}) == of_three.predicted_bytes({"image": [several]}) == 3 * scan
    assert of_one.predicted_bytes({"image": single[0]}) == scan
    assert of_one.predicted_bytes({"image": single}) == of_three.predicted_bytes({"image": single}) == 2 * scan
    for prepare, image, message in (
        (of_three, single[0], r"0\.nii\.gz: channels missing: expected 3 volumes .*, found 24 x 20 x 16$"),
        (of_one, several, r"all\.nii\.gz: not 3D: expected three axes, found 24 x 20 x 16 x 3$"),
        (of_three, [single[0], several], r"all\.nii\.gz: not 3D"),
    ):
        assert prepare.predicted_bytes({"image": image}) == 0
        with pytest.raises(BadScanError, match=message):
            prepare({"image": image})


def test_settings_tell_preprocessings_apart(tools, scan_folder):
    path = entries(scan_folder)[0]["image"]
    keys = [
        scan_key({"image": path}, preprocessing_key(preprocessing))
        for preprocessing in (
            Compose(tools.preprocessing()),
            Compose(tools.preprocessing()),
            Compose(tools.preprocessing(score_range=(0.0, 0.2))),
            Compose(tools.preprocessing((8, 8, 8))),
            Compose(tools.preprocessing()[:-1]),
            lambda item: {**item, "a": 1},
            lambda item: {**item, "a": 2},
        )
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 6
    assert describe(Flip(1)) != describe(Flip(0))
    used = Compose(tools.preprocessing())
    before = json.dumps(describe(used))
    used({"image": path})
    assert json.dumps(describe(used)) == before


@pytest.mark.parametrize("label", [0, 1, [0, 1], None])
def test_a_label_that_is_no_file_does_not_stop_the_disk(label, make, scan_folder):
    data = [{**entry, "label": label} for entry in entries(scan_folder)]
    cache = make(data=data, cache_gib=0)
    assert len(cache) == 5 and cache.data == data


LOAD = LoadImaged(["image", "mask"], reader="NibabelReader", ensure_channel_first=True)


def rewrite(path, value):
    """Write a mask again; its time is another even where the clock of the file system is coarse."""
    before = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    nib.save(nib.Nifti1Image(np.full((24, 20, 16), value, np.uint8), np.eye(4)), path)
    os.utime(path, ns=(before + 10**9, before + 10**9))
    return str(path)


@pytest.mark.parametrize("several", [False, True])
def test_every_file_of_an_entry_counts(several, make, scan_folder, tmp_path):
    """A mask that was written again, or another mask, is read; what was prepared with the same files is taken."""

    def masks(*values):
        cache = make(data=[{**first, "mask": [path, other] if several else path}], preprocessing=[LOAD], cache_gib=0)
        assert set(cache[0]["mask"][0].ravel()) == set(values)
        return len(list((tmp_path / "cache").glob("*.json")))

    first = entries(scan_folder)[0]
    other = rewrite(tmp_path / "m0.nii", 1)
    path = rewrite(tmp_path / "m1.nii", 1)
    assert masks(1) == masks(1) == 1
    rewrite(path, 2)
    assert masks(2) == 2
    path = rewrite(tmp_path / "m2.nii", 3)
    assert masks(3) == masks(3) == 3


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"patient": "a", "seriesuid": "1.2", "fold": 1}, {"patient": "b", "seriesuid": "1.3", "fold": 2}, True),
        ({"patient": "a"}, {}, True),
        ({}, {"candidates": 7, "positives": 1, "prediction": "a.nii.gz"}, True),
        ({"label": 0}, {"label": 1}, False),
        ({"label": [0, 1]}, {"label": [1, 0]}, False),
        ({"box": np.array([1, 2])}, {"box": np.array([1, 3])}, False),
        ({"window": "lung"}, {"window": "bone"}, False),
        ({"window": {"low": -1000}}, {"window": {"low": 0}}, False),
        ({"a": "x", "b": "y"}, {"a": "y", "b": "x"}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ],
)
def test_values_that_a_transform_could_read_count_and_names_do_not(before, after, same, scan_folder):
    image = entries(scan_folder)[0]["image"]
    keys = [scan_key({"image": image, **facts}, "") for facts in (before, after)]
    assert (keys[0] == keys[1]) == same


def test_files_behind_a_value_count(scan_folder, tmp_path, tools, monkeypatch):
    """The voxel file of a header, the slices of a series, the parts of an array of many files, by text or path."""
    image = entries(scan_folder)[0]["image"]
    (tmp_path / "mask.raw").write_bytes(bytes(8))
    (tmp_path / "mask.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
        "ElementDataFile = mask.raw\n"
    )
    tools.write_series(tmp_path / "series", tools.make_scan(0))
    (tmp_path / "array.zarr" / "c" / "0").mkdir(parents=True)
    (tmp_path / "array.zarr" / "c" / "0" / "1").write_bytes(b"abc")
    one_slice = sorted((tmp_path / "series").iterdir())[0]
    for value, file in [
        (str(tmp_path / "mask.mhd"), tmp_path / "mask.raw"),
        (str(tmp_path / "series"), one_slice),
        ([{"in": str(tmp_path / "series")}], one_slice),
        (tmp_path / "array.zarr", tmp_path / "array.zarr" / "c" / "0" / "1"),
        (tmp_path / "mask.mhd", tmp_path / "mask.raw"),
    ]:
        before = scan_key({"image": image, "more": value}, "")
        assert scan_key({"image": image, "more": value}, "") == before
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 10**9))
        assert scan_key({"image": image, "more": value}, "") != before
    (tmp_path / "study").mkdir()
    before = scan_key({"image": image, "root": str(tmp_path / "study")}, "")
    (tmp_path / "study" / "prediction.txt").write_text("of another day")  # a folder is no scan for what lies in it
    assert scan_key({"image": image, "root": str(tmp_path / "study")}, "") == before
    with pytest.raises(FileNotFoundError):
        scan_key({"image": str(tmp_path / "gone.nii")}, "")
    assert scan_key({"scan": image}, "", "scan") == scan_key({"scan": Path(image)}, "", "scan")


def test_a_value_without_a_description_is_refused_by_name(make, scan_folder):
    data = [{**entry, "reader": memoryview(b"a")} for entry in entries(scan_folder)]
    assert make(data=data, cache_gib=1).in_memory
    with pytest.raises(ValueError, match=r"reader: expected a plain value.* found builtins\.memoryview"):
        make(data=data, cache_gib=0)


def test_mapped_scan_of_empty_and_small_arrays(tmp_path):
    arrays = {"image": np.arange(5000, dtype=np.int16).reshape(1, 50, 100), "starts": np.empty(0, np.int32)}
    MappedScan(tmp_path, "key").write(arrays)
    assert_same(MappedScan(tmp_path, "key").arrays(), arrays)


def test_the_budget_is_half_of_what_is_free_shared_by_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = cache_budget()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    # what is free changes as others run: by less than half
    assert 0.5 < 4 * cache_budget() / alone < 2
    assert 2**28 < available_memory() < 2**46
    assert cache_budget(1.5) == 3 * 2**29
    with pytest.raises(ValueError, match="cache_gib"):
        cache_budget(-1)


@pytest.mark.parametrize(("bad", "more"), [(1, 0), (10, 0), (11, 1), (13, 3)])
def test_ten_scans_left_out_are_named_and_the_others_counted(bad, more, make, scan_folder, tmp_path, caplog):
    data = [*entries(scan_folder), *({"image": str(tmp_path / f"none{number}.nii")} for number in range(bad))]
    with caplog.at_level(logging.WARNING):
        make(data=data, on_bad_scan="skip")
    report = next(record.getMessage() for record in caplog.records if "scans are left out" in record.message)
    lines = report.splitlines()
    assert lines[0] == f"{bad} of {bad + 5} scans are left out:"
    assert [f"none{number}.nii" in line for number, line in enumerate(lines[1:11])] == [True] * min(bad, 10)
    assert lines[11:] == ([f"  and {more} more"] if more else [])


@pytest.mark.parametrize("gib", [1, 0])
def test_the_log_tells_how_much_the_scans_take(gib, make, caplog):
    with caplog.at_level(logging.INFO):
        cache = make(cache_gib=gib)
    first, last = (record.args for record in caplog.records if "MB a scan" in record.msg)
    # five scans of 24 x 20 x 16 voxels, at 2 bytes a voxel
    sizes = {"all": 76_800 / 2**30, "each": 15_360 / 1e6, "budget": gib}
    assert [number for number in first if not isinstance(number, os.PathLike)] == pytest.approx(
        [5, *sizes.values()], rel=1e-12
    )
    assert last[0] == 5 and last[2:] == pytest.approx((cache.nbytes / 2**30, cache.nbytes / 5 / 1e6), rel=1e-12)
    assert last[1] == ("in memory" if gib else f"in {cache.cache_dir}")


@pytest.mark.parametrize(
    ("num_workers", "cpus", "expected"), [(None, None, 1), (None, 2, 2), (None, 64, 4), (1, 64, 1), (7, 2, 7)]
)
def test_as_many_threads_decode_as_are_asked_for_or_as_there_are_processors(
    num_workers, cpus, expected, make, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert make(num_workers=num_workers).num_workers == expected


def test_no_more_threads_decode_than_are_asked_for(make, scan_folder):
    class Count(MapTransform):
        lock, now, most = threading.Lock(), 0, 0

        def __call__(self, data):
            with Count.lock:
                Count.now += 1
                Count.most = max(Count.most, Count.now)
            time.sleep(0.1)
            with Count.lock:
                Count.now -= 1
            return {"image": np.zeros(1)}

    make(preprocessing=[Count("image")], num_workers=2)
    assert Count.most == 2  # of five scans, each of which takes longer than a thread takes to start


def test_arguments(make, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="empty data list"):
        ScanCache([], "")
    with pytest.raises(ValueError, match="on_bad_scan"):
        make(on_bad_scan="ignore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "models_genesis" / "scans"
