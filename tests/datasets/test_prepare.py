# SPDX-License-Identifier: Apache-2.0
"""A store holds the scans that a training would prepare from files, whole ones only, and says what is in it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet
import pytest
import tensorstore
from monai.bundle import ConfigParser
from monai.transforms import Compose, Flipd

from models_genesis.datasets import CubeDataset, EpochSampler, PrefetchDataLoader, ScanCache, load_datalist
from models_genesis.datasets import prepare as prepare_module
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.io.root_cause import root_cause
from models_genesis.datasets.prepare import Preparation, add_arguments, preparation_of, prepare_store
from models_genesis.datasets.store.location import Location
from models_genesis.datasets.store.manifest import Store
from models_genesis.datasets.store.scan_arrays import content_hash
from models_genesis.datasets.store.settings import differences, fingerprint, settings_of_steps

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "genesis_chest_ct_pretraining" / "configs" / "train.json"
SMALL = Preparation(cube_size=(8, 8, 4), border=None)
COMMAND = ["--cube_size", "8", "8", "4", "--border", "none"]


def write_list(folder: Path, names: list[str], validation: int = 1, name: str = "datalist.json") -> Path:
    entries = [{"image": each, "patient": each.split("/")[0]} for each in names]
    content = {"training": entries[:-validation], "validation": entries[-validation:]}
    (folder / name).write_text(json.dumps(content))
    return folder / name


@pytest.fixture
def datalist(scan_folder: Path) -> Path:
    """Five scans, one of them turned round and one of other voxel sides, so that orientation counts."""
    scan = nib.load(scan_folder / "a" / "first.nii.gz")
    turned = np.diag([-1.5, -1.5, 2.5, 1.0])
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), turned), scan_folder / "a" / "first.nii.gz")
    return write_list(scan_folder, ["a/first.nii.gz", "b/only.nii", "a/second.nii.gz", "c/deep/y.nii.gz", "c/x.nii.gz"])


@pytest.fixture
def store(datalist: Path, tmp_path: Path) -> str:
    prepare_store(datalist, str(tmp_path / "store"), preparation=SMALL, progress=False)
    return str(tmp_path / "store")


@pytest.fixture
def make(datalist, tools, tmp_path):
    def make_dataset(store: str | None = None, key: str = "training", **settings):
        steps = settings.pop("preprocessing", None) or Compose([*SMALL.steps(), SMALL.windows()])
        data = load_datalist(datalist, key=key, store=store)
        settings = {"cubes_per_scan": 3, "progress": False, "seed": 2, **settings}
        return CubeDataset(data, steps, tools.random_transform(), store=store, **settings)

    return make_dataset


def contents(samples):
    return [
        (int(each["scan"]), np.asarray(each["start"]).tolist(), np.asarray(each["image"]).tobytes()) for each in samples
    ]


def objects(store: str) -> dict[str, int]:
    """Times of all files of a store, by name."""
    return {str(path.relative_to(store)): path.stat().st_mtime_ns for path in Path(store).rglob("*") if path.is_file()}


def read_by_path(store: str, name: str) -> np.ndarray:
    """Read an array with TensorStore alone, by what its own metadata say; what is missing is an error."""
    kvstore = {"driver": "file", "path": f"{store}/{name}/"}
    return (
        tensorstore.open({"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False})
        .result()
        .read()
        .result()
    )


@pytest.mark.parametrize("tier", ["memory", "mapped", "store"])
def test_the_same_cubes_as_from_files(tier, make, store, tmp_path):
    settings = {
        "memory": {"cache_gib": 0.1},
        "mapped": {"cache_gib": 0, "cache_dir": tmp_path / "hot"},
        "store": {"cache_gib": 0},
    }[tier]
    for key in ("training", "validation"):
        files = make(key=key, cache_gib=0.1)
        stored = make(store, key, **settings)
        assert (stored.scans.in_memory, stored.scans.reads_store) == (tier == "memory", tier == "store")
        indices = range(3 * len(files))  # three epochs
        assert contents(stored[index] for index in indices) == contents(files[index] for index in indices)
        assert [each["image"] for each in stored.data] == [each["image"] for each in files.data]
        for number in range(len(files.data)):
            np.testing.assert_array_equal(stored.affine(number), files.affine(number))
            for name, array in files.scans[number].items():
                found = np.asarray(stored.scans[number][name])
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype
    if tier == "mapped":
        made = objects(tmp_path / "hot")
        make(store, **settings)
        assert objects(tmp_path / "hot") == made


@pytest.mark.parametrize("cache_gib", [0, 0.1])
def test_workers_do_not_matter(cache_gib, make, store):
    """They are started after this process has read the store, which a forked one could not do any more."""
    dataset = make(store, cache_gib=cache_gib)
    sampler = EpochSampler(dataset, seed=3)
    expected = contents(dataset[index] for index in sampler)
    loader = PrefetchDataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2)
    found = [{key: batch[key][number] for key in batch} for batch in loader for number in range(len(batch["scan"]))]
    assert contents(found) == expected


def test_a_forked_process_says_what_to_do(make, store):
    dataset = make(store, cache_gib=0)
    dataset[0]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            dataset[0]
        except RuntimeError as error:
            os.write(write, str(root_cause(error)).encode())  # MONAI's Compose says where
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert b"multiprocessing_context='forkserver'" in os.read(read, 1000)


def test_the_files_need_not_be_there(make, store, scan_folder, datalist, tools):
    expected = contents(make(cache_gib=0.1))
    entries = load_datalist(datalist, store=store)
    for path in scan_folder.rglob("*.nii*"):
        path.unlink()
    datalist.unlink()
    assert load_datalist(None, store=store) == entries
    steps = [*SMALL.steps(), SMALL.windows()]
    dataset = CubeDataset(entries, steps, tools.random_transform(), 3, 2, cache_gib=0, store=store)
    assert contents(dataset) == expected


def test_the_manifest_says_what_is_in_the_store(store, datalist, scan_folder):
    (path,) = Path(store).glob("manifest/*/*/0-of-1.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [Path(row["source"]).name for row in rows] == [
        "first.nii.gz", "only.nii", "second.nii.gz", "y.nii.gz", "x.nii.gz",
    ]  # fmt: skip
    assert [(row["split"], row["number"]) for row in rows] == [*(("training", n) for n in range(4)), ("validation", 0)]
    for row in rows:
        scan = nib.load(row["source"])
        canonical = nib.as_closest_canonical(scan)
        voxels = np.asarray(canonical.dataobj).clip(-1000, 1000).astype(np.int16)[None]
        assert row["orientation"] == "".join(nib.aff2axcodes(scan.affine))
        assert row["shape"] == list(voxels.shape) and row["skipped"] == ""
        assert (row["low"], row["high"]) == (voxels.min(), voxels.max())
        np.testing.assert_allclose(row["spacing"], canonical.header.get_zooms())
        np.testing.assert_allclose(np.reshape(row["affine"], (4, 4)), canonical.affine)
        assert row["hash"] == content_hash(voxels)
        digest = subprocess.run(["sha256sum", row["source"]], capture_output=True, text=True, check=True).stdout
        assert row["sha256"] == digest.split()[0]


def test_others_read_the_scans_by_their_metadata_alone(store):
    """TensorStore with nothing but the path; the array is one object."""
    row = Store(Location(store)).rows()[0]
    voxels = np.asarray(nib.as_closest_canonical(nib.load(row.source)).dataobj).clip(-1000, 1000)
    np.testing.assert_array_equal(read_by_path(store, row.image_name)[0], voxels)
    files = [path for path in (Path(store) / row.image_name).rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["0", "zarr.json"]


def test_the_bundle_prepares_scans_in_the_same_way():
    """The store's steps and those of ``train.json`` are one, whatever the keys."""
    for keys, preparation in [
        ({}, Preparation()),
        ({"cube_size": [96, 96], "slice_axis": 1}, Preparation(cube_size=(96, 96), slice_axis=1)),
        ({"normalise": "zscore", "modality": "MR"}, Preparation(normalise="zscore", modality="MR")),
        ({"axcodes": "LPS", "border": 4, "tissue_threshold": -500}, Preparation(
            axcodes="LPS", border=4, tissue_threshold=-500
        )),
    ]:  # fmt: skip
        parser = ConfigParser()
        parser.read_config(str(CONFIG))
        parser.update({"device": "cpu", **keys})
        wanted = settings_of_steps(parser.get_parsed_content("train#preprocessing").transforms)
        assert differences(settings_of_steps([*preparation.steps(), preparation.windows()]), wanted) == ""


def test_the_command_of_the_documents_prepares_radiographs_as_the_bundle_does():
    page = (CONFIG.parents[3] / "docs" / "how-to" / "large-corpora.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("python") and "--modality any" in line]
    command = argparse.ArgumentParser()
    add_arguments(command)
    preparation = preparation_of(command.parse_args(shlex.split(line)[4:]))
    parser = ConfigParser()
    parser.read_config([str(CONFIG.with_name(name)) for name in ("train.json", "2d.json", "radiographs.json")])
    parser.update({"device": "cpu"})
    wanted = settings_of_steps(parser.get_parsed_content("train#preprocessing").transforms)
    assert differences(settings_of_steps([*preparation.steps(), preparation.windows()]), wanted) == ""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([*Preparation(intensity_range=(-1000, 600)).steps(), SMALL.windows()],
         r"prepared otherwise .*intensity_range: \[-1000.0, 1000.0\] in the store, \[-1000.0, 600.0\] wanted"),
        ([*SMALL.steps(), Flipd("image", 0), SMALL.windows()], "prepared otherwise .*6 Flipd"),
        ([*SMALL.steps()[:-1], SMALL.windows()], r"prepared otherwise .*ClipHounsfieldd.*\(none\) wanted"),
        ([*SMALL.steps(), Preparation(cube_size=(8, 8, 8), border=None).windows()], "run prepare with yours"),
    ],
)  # fmt: skip
def test_a_store_that_was_prepared_otherwise_is_refused(steps, message, make, store):
    with pytest.raises(ValueError, match=message):
        make(store, preprocessing=steps)
    with pytest.raises(ValueError, match=r"prepared otherwise: .*axcodes: RAS in the store, LPS wanted"):
        prepare_store(load_path(store), store, preparation=Preparation(axcodes="LPS"), progress=False)


def load_path(store: str) -> Path:
    return Path(store).parent / "scans" / "datalist.json"


def test_starts_for_other_cubes_are_added_without_decoding(make, store, datalist, scan_folder):
    before = objects(store)
    other = Preparation(cube_size=(12, 8, 4), border=None)
    for path in scan_folder.rglob("*.nii*"):  # same size and time, but no scan any more
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    rows = prepare_store(datalist, store, preparation=other, progress=False)
    assert not any(row.skipped for row in rows)
    assert before.items() <= objects(store).items()
    for row in rows:
        opened = ScanCache(
            load_datalist(datalist, key=row.split, store=store), [*other.steps(), other.windows()],
            cache_gib=0, progress=False, store=store,
        )  # fmt: skip
        arrays = opened[row.number]
        starts = other.windows()({"image": np.asarray(arrays["image"])})["starts"]
        np.testing.assert_array_equal(np.asarray(arrays["starts"]), starts)
        assert [arrays["starts"][number] for number in range(0, len(starts), 7)] == starts[::7].tolist()


def test_a_second_run_changes_nothing_and_shards_add_up(store, datalist, tmp_path):
    before = objects(store)
    prepare_store(datalist, store, preparation=SMALL, progress=False)
    after = objects(store)
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "manifest" in name}
    assert set(before) == set(after)
    parts = str(tmp_path / "parts")
    for index in (2, 0):
        prepare_store(datalist, parts, shard=(index, 3), preparation=SMALL, progress=False)
    with pytest.raises(ValueError, match="expected 5 scans, found 3 prepared; run prepare to its end"):
        load_datalist(None, store=parts)
    prepare_store(datalist, parts, shard=(1, 3), preparation=SMALL, progress=False)
    assert Store(Location(parts)).rows() == Store(Location(store)).rows()


def test_a_changed_scan_is_prepared_again(store, datalist, scan_folder, tools, make):
    tools.write_nifti(scan_folder / "b" / "only.nii", tools.make_scan(99, (30, 20, 16)))
    rows = prepare_store(datalist, store, preparation=SMALL, progress=False)
    assert rows[1].shape == (1, 30, 20, 16)
    assert contents(make(store, cache_gib=0)) == contents(make(cache_gib=0.1))
    tools.write_nifti(scan_folder / "b" / "only.nii", tools.make_scan(99, (30, 20, 18)))
    for index in range(2):  # divided otherwise, which leaves no old row behind
        prepare_store(datalist, store, shard=(index, 2), preparation=SMALL, progress=False)
    assert contents(make(store, cache_gib=0)) == contents(make(cache_gib=0.1))


def test_a_way_that_is_not_done_hides_none_that_is(datalist, tmp_path, make, scan_folder, tools):
    """Whichever of the two names comes first: once the larger cubes are done in part, once the smaller."""
    large = Preparation(cube_size=(40, 40, 40), border=None)  # no scan is as large
    medium = Preparation(cube_size=(12, 8, 4), border=None)
    for number, (whole, part) in enumerate([(SMALL, large), (SMALL, medium), (medium, SMALL)]):
        store = str(tmp_path / f"store{number}")
        expected = prepare_store(datalist, store, preparation=whole, progress=False)
        prepare_store(datalist, store, shard=(0, 2), preparation=part, progress=False)
        assert Store(Location(store)).rows() == Store(Location(store)).rows_of_all_ways() == expected
        steps = Compose([*whole.steps(), whole.windows()])
        found = make(store, preprocessing=steps, cache_gib=0)
        assert contents(found) == contents(make(preprocessing=steps, cache_gib=0.1))
        with pytest.raises(ValueError, match="expected 5 scans, found 3 prepared"):
            make(store, preprocessing=[*part.steps(), part.windows()])
    # a scan that one way leaves out and another keeps is kept, and its hash is that of the way which is asked for
    tools.write_nifti(scan_folder / "b" / "only.nii", tools.make_scan(99))
    for whole in (SMALL, large):
        prepare_store(datalist, str(tmp_path / "both"), preparation=whole, progress=False)
        tools.write_nifti(scan_folder / "b" / "only.nii", tools.make_scan(98, (44, 44, 44)))
    rows = {way: Store(Location(str(tmp_path / "both"))).rows(windows=way) for way in window_names(SMALL, large)}
    small, big = rows.values()
    assert [bool(row.skipped) for row in big] == [True, False, True, True, True]
    assert not any(row.skipped for row in Store(Location(str(tmp_path / "both"))).rows())
    both = Store(Location(str(tmp_path / "both"))).rows_of_all_ways()
    assert sorted(row.hash for row in both) == sorted([*(row.hash for row in small), big[1].hash])
    for whole, row in ((SMALL, small[1]), (large, big[1])):
        steps = [*whole.steps(), whole.windows()]
        opened = make(str(tmp_path / "both"), preprocessing=steps, cache_gib=0, on_bad_scan="skip")
        hashes = {each["image"]: each["stored"]["sha256"] for each in opened.data}
        assert hashes[row.source] == row.sha256
    assert small[1].sha256 != big[1].sha256


def window_names(*preparations: Preparation) -> list[str]:
    return [fingerprint(settings_of_steps([each.windows()])) for each in preparations]


def test_two_runs_that_begin_at_once_with_other_settings(datalist, tmp_path, monkeypatch):
    """The second finds no store.json and writes its own while the first prepares; each has its own voxels."""
    narrow = Preparation(cube_size=(8, 8, 4), border=None, intensity_range=(-900, 50))
    store = str(tmp_path / "store")
    prepare, done = prepare_module._in_processes, []

    def second_run(*arguments):
        monkeypatch.setattr(prepare_module, "_in_processes", prepare)
        done.extend(prepare(*arguments))
        (Path(store) / "store.json").unlink()
        prepare_store(datalist, store, preparation=narrow, progress=False)
        return done

    monkeypatch.setattr(prepare_module, "_in_processes", second_run)
    with pytest.raises(ValueError, match=r"prepared otherwise: .*intensity_range: \[-900.0, 50.0\] in the store"):
        prepare_store(datalist, store, preparation=SMALL, progress=False)
    rows = Store(Location(store)).rows()
    assert len(done) == len(rows) == 5
    for row, other in zip(rows, done, strict=True):
        voxels = np.asarray(nib.as_closest_canonical(nib.load(row.source)).dataobj)
        np.testing.assert_array_equal(read_by_path(store, row.image_name)[0], voxels.clip(-900, 50))
        np.testing.assert_array_equal(read_by_path(store, other.image_name)[0], voxels.clip(-1000, 1000))
    Store(Location(store)).write_manifest(done, 0, 1)  # between the check and the manifest
    with pytest.raises(ValueError, match=r"first.nii.gz was prepared by \w+, expected \w+, that of store.json"):
        load_datalist(None, store=store)


def test_one_list_of_two_folders_is_refused(tmp_path, tools):
    for number, folder in enumerate("de"):
        for scan in range(2):
            tools.write_nifti(tmp_path / folder / f"{scan}.nii", tools.make_scan(10 * number + scan))
    listed = write_list(tmp_path, ["0.nii", "1.nii"])
    store = str(tmp_path / "store")
    rows = prepare_store(listed, store, tmp_path / "d", preparation=SMALL, progress=False)
    before = objects(store)
    for other in (SMALL, Preparation(cube_size=(12, 8, 4), border=None)):
        with pytest.raises(ValueError, match=r"datalist-.* = .*/d/0.nii, expected .*/e/0.nii: give"):
            prepare_store(listed, store, tmp_path / "e", preparation=other, progress=False)
    assert objects(store) == before and Store(Location(store)).rows() == rows
    listed.rename(tmp_path / "e.json")
    renamed = prepare_store(tmp_path / "e.json", store, tmp_path / "e", preparation=SMALL, progress=False)
    assert not {row.hash for row in renamed} & {row.hash for row in rows}
    entry = {**load_datalist(tmp_path / "e.json", store=store)[0], "image": "elsewhere.nii"}
    steps = [*SMALL.steps(), SMALL.windows()]
    with pytest.raises(ValueError, match=r"expected elsewhere.nii, found it not among the 2 scans"):
        ScanCache([entry], steps, cache_gib=0, progress=False, store=store)


def test_a_changed_list_is_another_list(store, datalist, scan_folder):
    first = load_datalist(datalist, store=store)
    longer = write_list(scan_folder, ["b/only.nii", "c/x.nii.gz", "a/second.nii.gz"], name="longer.json")
    before = {name for name in objects(store) if name.startswith("scans")}
    prepare_store(longer, store, preparation=SMALL, progress=False)
    assert {name for name in objects(store) if name.startswith("scans")} == before
    assert load_datalist(datalist, store=store) == first
    assert [Path(each["image"]).name for each in load_datalist(longer, store=store)] == ["only.nii", "x.nii.gz"]
    with pytest.raises(ValueError, match=r"holds the data lists datalist-.*, longer-.*: say which"):
        load_datalist(None, store=store)
    other = write_list(scan_folder, ["b/only.nii", "c/x.nii.gz"], name="other.json")
    with pytest.raises(ValueError, match=r"expected the data list other-.* prepare it first"):
        load_datalist(other, store=store)


def test_bad_scans_are_left_out_with_the_reason(bad_scan, tools, tmp_path):
    path, message = bad_scan
    tools.write_nifti(tmp_path / "scans" / "good.nii.gz", tools.make_scan(0))
    listed = write_list(tmp_path / "scans", [Path(path).name, "good.nii.gz", "good.nii.gz"])
    strict = Preparation(modality=None, cube_size=(8, 8, 4), border=None, on_empty="raise")
    store = str(tmp_path / "store")
    if not os.path.exists(path):  # the list itself is refused
        with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
            prepare_store(listed, store, preparation=strict, progress=False)
        return
    rows = prepare_store(listed, store, preparation=strict, progress=False)
    assert [bool(row.skipped) for row in rows] == [True, False, False]
    data = load_datalist(listed, store=store)
    steps = [*strict.steps(), strict.windows()]
    for gib in (0, 0.1):
        with pytest.raises(ValueError, match=message) as stored:
            ScanCache(data, steps, cache_gib=gib, progress=False, store=store)
        with pytest.raises(ValueError, match=message) as files:
            ScanCache(load_datalist(listed), steps, cache_gib=0.1, progress=False)
        assert str(stored.value) == str(files.value)
        kept = ScanCache(data, steps, cache_gib=gib, progress=False, store=store, on_bad_scan="skip")
        assert [Path(each["image"]).name for each in kept.data] == ["good.nii.gz"]
        assert len(kept.left_out) == 1


def test_scans_that_are_left_out_give_another_exit_code(datalist, tmp_path, scan_folder, capsys):
    line = ["prepare", "--datalist", str(datalist), "--store", str(tmp_path / "store"), "--workers", "1", *COMMAND]
    whole = (scan_folder / "b" / "only.nii").read_bytes()
    (scan_folder / "b" / "only.nii").write_bytes(whole[: len(whole) // 2])
    for more, code in [([], 1), (["--allow_left_out"], 0)]:
        assert main([*line, *more]) == code
        printed = capsys.readouterr().out
        assert re.search(r"left out +1\n", printed) and "only.nii: " in printed
    (scan_folder / "b" / "only.nii").write_bytes(whole)
    assert main(line) == 0


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_damage_is_an_error_and_never_a_cube(damage, store, make):
    dataset = make(store, cache_gib=0)
    row = Store(Location(store)).rows()[1]
    path = next((Path(store) / row.image_name / "c").rglob("0/0/0/0"))
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match="applying transform") as raised:  # MONAI's Compose says where
        for index in range(100):
            dataset[4 * index + 1]
    with pytest.raises(OSError, match=f"{row.key}/image: cannot be read"):
        raise root_cause(raised.value, OSError)
    assert contents([dataset[0]])


KILLER = """
import os, signal, sys, time
from pathlib import Path
from models_genesis.datasets.prepare import Preparation, prepare_store

datalist, store = sys.argv[1:]
for kill in range(1000):
    before = len(list(Path(store).glob("scans/*/image")))
    child = os.fork()  # this process never uses TensorStore, so its children may
    if child == 0:
        prepare_store(datalist, store, preparation=Preparation(cube_size=(8, 8, 4), border=None), progress=False)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if len(list(Path(store).glob("scans/*/image"))) > before:
            time.sleep(kill % 5 / 1000)  # from before the voxels are written to after the record
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    else:
        break
    print("killed", flush=True)
    for record in Path(store).glob("records/*.json"):
        print(record.name, record.stat().st_mtime_ns, flush=True)
"""


def test_killed_at_any_moment_a_store_is_continued(tmp_path, tools):
    """With SIGKILL, in the middle of each scan, until a run comes to its end; each record is of a whole scan."""
    for number in range(6):
        tools.write_nifti(tmp_path / "scans" / f"d{number}.nii", tools.make_scan(number, (96, 90, 60)))
    datalist = write_list(tmp_path / "scans", [f"d{number}.nii" for number in range(6)])
    store = str(tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(datalist), store], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *kills, noted = done.stdout.split("killed\n")
    assert len(kills) >= 5
    # what was noted at a kill is left as it is, so that its check at the end is one of that moment
    records = {path.name: path.stat().st_mtime_ns for path in Path(store).glob("records/*.json")}
    for line in "".join([*kills[1:], noted]).splitlines():
        assert records[line.split()[0]] == int(line.split()[1])
    rows = Store(Location(store)).rows()
    assert len(rows) == 6 and len(records) == 12
    for row in rows:
        shard = Path(store) / row.image_name / "c" / "0" / "0" / "0" / "0"
        assert shard.stat().st_mtime_ns <= records[f"{row.key}.json"]
        voxels = read_by_path(store, row.image_name)
        np.testing.assert_array_equal(voxels[0], np.asarray(nib.load(row.source).dataobj))
        assert content_hash(voxels) == row.hash


def test_several_processes_from_the_command_line(datalist, tmp_path, store, capsys):
    many = str(tmp_path / "many")
    line = ["prepare", "--datalist", str(datalist), "--store", many, "--workers", "2", *COMMAND]
    assert main(line) == 0
    assert "training" in capsys.readouterr().out
    assert Store(Location(many)).rows() == Store(Location(store)).rows()
    assert main([*line, "--shard", "3/2"]) == 2
    assert "shard must be i/n with 0 <= i < n, got 3/2" in capsys.readouterr().err


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed on Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(number, tmp_path, tools):
    """Stopped at the second of forty scans, by a scheduler or by force: no process is left, nothing is written."""
    for scan in range(2):
        tools.write_nifti(tmp_path / "scans" / f"{scan}.nii", tools.make_scan(scan, (128, 128, 100)))
    for scan in range(2, 40):
        (tmp_path / "scans" / f"{scan}.nii").symlink_to(f"{scan % 2}.nii")
    datalist = write_list(tmp_path / "scans", [f"{scan}.nii" for scan in range(40)])
    store = tmp_path / "store"
    line = ["prepare", "--datalist", str(datalist), "--store", str(store), "--workers", "2", *COMMAND]
    command = subprocess.Popen(
        [sys.executable, "-m", "models_genesis.datasets", *line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        end = time.monotonic() + 120
        while len(list(store.glob("records/*.json"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        workers = children_of(command.pid)
        assert len(workers) >= 2 and command.poll() is None
        command.send_signal(number)
        assert command.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGKILL:  # there is nobody to wait for them
            while any(map(is_running, workers)) and time.monotonic() < end:
                time.sleep(0.02)
        assert not any(map(is_running, workers))
    finally:
        command.kill()
        command.communicate()
    written = objects(str(store))
    assert sum(name.endswith("image/zarr.json") for name in written) < 20
    time.sleep(1)
    assert objects(str(store)) == written and not (store / "manifest").exists()


@pytest.mark.parametrize("package", ["tensorstore", "pyarrow"])
def test_without_the_extra_the_command_says_how_to_get_it(package, datalist, tmp_path, monkeypatch, capsys):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))
    assert main(["prepare", "--datalist", str(datalist), "--store", str(tmp_path / "none")]) == 2
    assert f"needs {package}: pip install 'models-genesis[store]'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("url", ["ftp://host/store", "s3:///store", "gs://", "file://data/store"])
def test_what_is_no_place_is_refused(url):
    with pytest.raises(ValueError, match=r"expected (a path, )?file:///path"):
        Location(url)


@pytest.mark.parametrize("url", ["s3://b/a#1", "gs://b/a?x=1", "file:///a%20b", "s3://b/a%2Fb", "file:///a#b"])
def test_a_url_of_which_a_part_would_be_dropped_is_refused(url):
    with pytest.raises(ValueError, match=rf"{re.escape(url)}: expected no [#?%] in a URL"):
        Location(url)


@pytest.mark.parametrize("password", ["secret", "#secret", "?secret", "/secret#"])
def test_a_password_is_refused_and_not_shown(password):
    with pytest.raises(ValueError, match="expected no user or password in a URL, found one") as raised:
        Location(f"s3://user:{password}@bucket/chest")
    assert "secret" not in str(raised.value) and "user:" not in str(raised.value)


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "a b", "ä"])
def test_a_folder_may_have_any_name(name, tmp_path):
    Location(f"{tmp_path}/{name}").write("store.json", b"1")
    assert (tmp_path / name / "store.json").read_bytes() == b"1"
    assert Location(f"{tmp_path}/{name}").folder / "store.json" == tmp_path / name / "store.json"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("shape"), r"\.json: expected .*shape.*, found .*hash"),
        (lambda content: content.update(colour="red"), r"\.json: expected .*, found .*colour"),
    ],
)
def test_a_record_with_other_fields_is_refused_by_name(edit, message, store, datalist, capsys):
    for path in Path(store).glob("records/*.json"):
        content = json.loads(path.read_text())
        if "shape" in content:
            edit(content)
        path.write_text(json.dumps(content))
    line = ["prepare", "--datalist", str(datalist), "--store", store, "--workers", "1", *COMMAND]
    assert main(line) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("field", ["hash", "colour"])
def test_a_manifest_with_other_fields_is_refused_by_name(field, store, capsys):
    (path,) = Path(store).glob("manifest/*/*/0-of-1.parquet")
    table = pyarrow.parquet.read_table(path)
    changed = table.drop_columns(field) if field == "hash" else table.append_column(field, table["key"])
    pyarrow.parquet.write_table(changed, path)
    assert main(["overlap", "--store", store]) == 2
    error = capsys.readouterr().err
    assert f"{path}: expected the fields of a scan" in error and field in error


def test_the_range_of_scans_in_fractions_is_exact(tmp_path, tools):
    scan = tools.make_scan(0).astype(np.float32) / 700
    tools.write_nifti(tmp_path / "scan.nii", scan)
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "scan.nii"}]}))
    preparation = Preparation(
        normalise="zscore", modality=None, cube_size=(8, 8, 4), border=None, intensity_range=(-1.5, 2.5)
    )
    (row,) = prepare_store(tmp_path / "list.json", str(tmp_path / "store"), preparation=preparation, progress=False)
    voxels = read_by_path(str(tmp_path / "store"), row.image_name)
    (read,) = Store(Location(str(tmp_path / "store"))).rows()
    assert (read.low, read.high) == (row.low, row.high) == (voxels.min(), voxels.max())
    assert row.low % 1 != 0 and row.dtype.startswith("float")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a store of scans with a manifest, found none"):
        load_datalist(None, store=str(tmp_path))
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match=r"expected a store of version 2, found .*99"):
        Store(Location(str(tmp_path))).preparation()


def test_what_stays_in_the_store_is_said(make, store, caplog):
    with caplog.at_level(logging.INFO):
        make(store, cache_gib=0)
    assert "4 scans stay in" in caplog.text and "4 scans ready in the store" in caplog.text
