# SPDX-License-Identifier: Apache-2.0
"""Cubes around candidates: centred, balanced, the same for the same index; and streams that can be resumed."""

from __future__ import annotations

import csv
import json
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged, Orientationd, Spacingd
from torch.utils.data import DataLoader

from models_genesis.datasets import (
    BadRowError,
    BadScanError,
    CandidateDataset,
    CandidateSet,
    CandidateStream,
    EpochSampler,
    PredictionStore,
    load_candidates,
    read_candidates,
    scan_candidates,
    write_datalist,
    write_probabilities,
    write_submission,
)
from models_genesis.datasets.loading.scan_cache import PrepareScan
from models_genesis.transforms import CandidateCubed, ClipHounsfieldd, RandCandidateCubed, candidate_cube

SHAPE, SPACING = (24, 20, 16), (1.0, 2.0, 3.0)
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")


def preprocessing(spacing: Sequence[float] | None = None) -> list:
    resample = [] if spacing is None else [Spacingd("image", pixdim=spacing, mode="bilinear")]
    return [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        *resample,
        ClipHounsfieldd("image", round_values=True),
    ]


class Study(SimpleNamespace):
    """A folder of scans, in each of which a voxel's value tells the candidate: 10 * scan + its number."""

    root: Path
    json: Path
    rows: list[list[Any]]

    def load(self, key: str = "training", **options: Any) -> CandidateSet:
        return load_candidates(self.json, self.root, key, **options)


@pytest.fixture
def study(tmp_path: Path, tools: SimpleNamespace) -> Study:
    """Four scans of three candidates, the first positive; 0 to 2 for training, 3 for validation; scan 1 is flipped."""
    rng = np.random.default_rng(0)
    root = tmp_path / "ct"
    rows: list[list[Any]] = []
    for number in range(4):
        affine = np.diag([*SPACING, 1.0])
        affine[:3, 3] = (-30, 12, 500)
        if number == 1:
            affine[:3, :2] *= -1
        scan = np.full(SHAPE, -900, np.int16)
        for place in range(3):
            voxel = rng.integers(0, SHAPE)
            scan[tuple(voxel)] = 10 * number + place
            x, y, z, _ = affine @ [*voxel, 1]
            rows.append([f"s{number}", -x, -y, z, int(place == 0)])
        tools.write_nifti(root / f"s{number}.nii.gz", scan, affine)
    entries = [
        {"image": f"s{number}.nii.gz", "patient": f"p{number}", "seriesuid": f"s{number}"} for number in range(4)
    ]
    made = Study(root=root, json=tmp_path / "list.json", rows=rows)
    write_table(root / "candidates.csv", rows)
    content = {"candidates": "candidates.csv", "training": entries[:3], "validation": entries[3:], "testing": []}
    write_datalist(made.json, content)
    return made


def write_table(path: Path, rows: Sequence[Sequence[Any]], columns: Sequence[str] = COLUMNS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def dataset(data: CandidateSet, **options: Any) -> CandidateDataset:
    cut = options.pop("cut", CandidateCubed("image", (5, 5, 5)))
    return CandidateDataset(data, preprocessing(), cut, progress=False, cache_gib=1, **options)


# cutting


@pytest.mark.parametrize("size", [(5, 4, 3), (64, 64, 32)])
@pytest.mark.parametrize("center", [(0, 0, 0), (10.4, 9.6, 7.5), (23, 19, 15), (11, 0, 15), (-40, 3, 3)])
def test_cube_is_centred_and_padded(size: tuple[int, ...], center: tuple[float, ...]) -> None:
    """Every voxel is checked: that of the scan where there is one, else the fill."""
    scan = np.random.default_rng(0).integers(-900, 900, (2, *SHAPE)).astype(np.int16)
    cube = candidate_cube(scan, center, size, fill=-1000)
    assert cube.shape == (2, *size)
    assert cube.dtype == np.int16
    nearest = np.floor(np.array(center) + 0.5).astype(int)
    # each voxel of the cube in voxels of the scan, clipped to it and with what lies beyond replaced
    index = [middle + np.arange(side) - side // 2 for middle, side in zip(nearest, size, strict=True)]
    there = [(axis >= 0) & (axis < side) for axis, side in zip(index, SHAPE, strict=True)]
    seen = scan[np.ix_([0, 1], *(np.clip(axis, 0, side - 1) for axis, side in zip(index, SHAPE, strict=True)))]
    expected = np.where(there[0][:, None, None] & there[1][:, None] & there[2], seen, -1000)
    assert np.array_equal(cube, expected)
    assert np.array_equal(candidate_cube(torch.from_numpy(scan), center, size, fill=-1000).numpy(), cube)


def test_cube_is_a_copy() -> None:
    scan = np.zeros((1, 8, 8, 8), np.int16)
    candidate_cube(scan, (4, 4, 4), (4, 4, 4))[:] = 7
    assert not scan.any()


def test_random_shift_is_uniform_and_keeps_the_candidate() -> None:
    scan = np.zeros((1, 32, 32, 32), np.int16)
    scan[0, 16, 16, 16] = 1
    transform = RandCandidateCubed("image", 8, max_shift=(1, 1, 0))
    transform.set_random_state(0)
    item = {"image": scan, "center": np.array([16.0, 16, 16]), "image_affine": np.eye(4)}
    counts = np.zeros((8, 8, 8), int)
    for _ in range(900):
        counts += transform(item)["image"][0]
    assert counts.sum() == 900
    found = counts[3:6, 3:6, 4]
    # nine places, each expected 100 times: sd 9.4, so 5 sd are 47
    assert found.sum() == 900
    assert (np.abs(found - 100) < 47).all()


@pytest.mark.parametrize("arguments", [{"max_shift": 4}, {"max_shift": -1}, {"cube_size": (8, 0, 8)}])
def test_cut_arguments_out_of_range(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        RandCandidateCubed("image", **{"cube_size": 8, **arguments})


def test_a_core_cuts_a_thousand_cubes_a_second() -> None:
    scan = np.random.default_rng(0).integers(-1000, 1000, (1, 256, 256, 128)).astype(np.int16)
    centers = np.random.default_rng(1).uniform(0, 1, (400, 3)) * scan.shape[1:]
    for size in ((64, 64, 32), (64, 64, 64)):
        cut = CandidateCubed("image", size)
        begin = time.process_time()
        for center in centers:
            cut({"image": scan, "center": center, "image_affine": np.eye(4)})
        assert 400 / (time.process_time() - begin) > 1000


# training


def test_each_cube_shows_its_candidate(study: Study) -> None:
    data = dataset(study.load(), samples_per_epoch=18)
    seen = set()
    for index in range(36):
        item = data[index]
        row = item["row"]
        assert set(item) == {"image", "label", "row", "scan", "seriesuid"}
        assert item["image"].shape == (1, 5, 5, 5)
        assert item["image"].dtype == np.int16
        assert item["image"][0, 2, 2, 2] == 10 * (row // 3) + row % 3
        assert item["label"].tolist() == [float(row % 3 == 0)]
        assert item["label"].dtype == np.float32
        assert (item["seriesuid"], item["scan"]) == (f"s{row // 3}", row // 3)
        assert item["row"] == data.row(index)
        seen.add(row)
    assert seen == set(range(9))


def test_candidate_stays_centred_after_resampling(study: Study) -> None:
    data = CandidateDataset(
        study.load(), preprocessing((1.0, 1.0, 1.0)), CandidateCubed("image", (9, 9, 9)), samples_per_epoch=18,
        progress=False, cache_gib=1,
    )  # fmt: skip
    assert data.scans[0]["image"].dtype == np.int16
    for index in range(18):
        cube = data[index]["image"][0].astype(float)
        # linear interpolation spreads the voxel over its neighbours, with the largest share next to its place
        weight = np.clip(cube + 850, 0, None)
        brightest = np.array(np.unravel_index(weight.argmax(), weight.shape))
        assert (np.abs(brightest - 4) <= 1).all()


def test_an_epoch_takes_each_positive_once_and_negatives_at_the_ratio(tmp_path: Path, tools: SimpleNamespace) -> None:
    root = tmp_path / "ct"
    tools.write_nifti(root / "a.nii.gz", tools.make_scan(0))
    rows = [["a", -x, -y, 3.0, int(x == 0 and y < 8)] for x in range(20) for y in range(0, 40, 2)]
    write_table(tmp_path / "c.csv", rows)
    data = dataset(scan_candidates(root / "a.nii.gz", tmp_path / "c.csv", with_class=True), negatives_per_positive=3)
    positives, negatives = np.flatnonzero([row[4] for row in rows]), np.flatnonzero([1 - row[4] for row in rows])
    assert (len(positives), len(negatives), len(data)) == (4, 396, 16)
    # 33 epochs of 12 negatives go through all 396 once, and so on
    drawn = [data.row(index) for index in range(66 * 16)]
    epochs = np.array(drawn).reshape(66, 16)
    for epoch in epochs:
        assert sorted(epoch[:4]) == positives.tolist()
    for part in (epochs[:33, 4:], epochs[33:, 4:]):
        assert sorted(part.ravel()) == negatives.tolist()
    assert not np.array_equal(epochs[:33, 4:], epochs[33:, 4:])
    # another seed gives another order
    other = dataset(
        scan_candidates(root / "a.nii.gz", tmp_path / "c.csv", with_class=True), negatives_per_positive=3, seed=1
    )
    assert [other.row(index) for index in range(16)] != drawn[:16]


def test_samples_per_epoch_keep_the_mix(study: Study) -> None:
    data = dataset(study.load(), negatives_per_positive=2.0, samples_per_epoch=30)
    assert len(data) == 30
    labels = np.array([data[index]["label"][0] for index in range(30)])
    assert labels.sum() == 10
    # three positives ten times: each at least three times, and over three epochs each ten times
    counts = np.bincount([data.row(index) for index in range(90) if data.row(index) % 3 == 0], minlength=9)
    assert counts[[0, 3, 6]].tolist() == [10, 10, 10]


def test_hard_negatives_come_as_often_as_their_probability_says(tmp_path: Path, tools: SimpleNamespace) -> None:
    root = tmp_path / "ct"
    tools.write_nifti(root / "a.nii.gz", tools.make_scan(0))
    rows = [["a", -x, 0, 3, int(x == 0), "" if x == 3 else x / 10] for x in range(5)]
    write_table(tmp_path / "c.csv", rows, (*COLUMNS, "probability"))
    candidates = scan_candidates(root / "a.nii.gz", tmp_path / "c.csv", with_class=True)
    data = dataset(candidates, negatives_per_positive=10.0, samples_per_epoch=1100, hard_negatives=1.0)
    counts = np.bincount([data.row(index) for index in range(1100)], minlength=5)
    assert counts[0] == 100
    assert counts[3] == 0
    # weights 1 : 2 : 4 of 1000 draws; five standard deviations of a binomial are below 80
    assert np.allclose(counts[[1, 2, 4]], 1000 * np.array([1, 2, 4]) / 7, atol=80)
    half = dataset(candidates, negatives_per_positive=10.0, samples_per_epoch=1100, hard_negatives=0.5)
    counts = np.bincount([half.row(index) for index in range(1100)], minlength=5)
    # the other half goes evenly through all four: 125 each
    assert counts[3] == 125
    assert np.allclose(counts[[1, 2, 4]], 125 + 500 * np.array([1, 2, 4]) / 7, atol=60)
    with pytest.raises(ValueError, match="expected probabilities of the negatives"):
        dataset(
            scan_candidates(root / "a.nii.gz", write_table(tmp_path / "d.csv", [r[:5] for r in rows]), with_class=True),
            hard_negatives=0.5,
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_same_index_same_sample_in_any_worker(study: Study, num_workers: int) -> None:
    data = dataset(study.load(), samples_per_epoch=12, cut=RandCandidateCubed("image", 5, max_shift=2))
    sampler = EpochSampler(data, seed=3)
    sampler.set_epoch(1)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=num_workers)
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches]).numpy()
    expected = np.stack([data[index]["image"] for index in sampler])
    assert np.array_equal(images, expected)
    assert not np.array_equal(expected, np.stack([data[index - 12]["image"] for index in sampler]))


def test_scans_from_disk_give_the_same(study: Study, tmp_path: Path) -> None:
    here = dataset(study.load(), samples_per_epoch=12)
    there = CandidateDataset(
        study.load(), preprocessing(), CandidateCubed("image", (5, 5, 5)), samples_per_epoch=12,
        cache_gib=0, cache_dir=tmp_path / "cache", progress=False,
    )  # fmt: skip
    assert not there.scans.in_memory
    for index in range(12):
        assert np.array_equal(here[index]["image"], there[index]["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives_per_positive": 0}, "negatives_per_positive"),
        ({"samples_per_epoch": 1}, "samples_per_epoch"),
        ({"hard_negatives": 1.5}, "hard_negatives"),
    ],
)
def test_arguments_out_of_range(study: Study, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(study.load(), **options)


# bad input


@pytest.mark.parametrize(("label", "kind"), [(0, "positive"), (1, "negative")])
def test_a_training_split_of_one_class_is_refused(study: Study, label: int, kind: str) -> None:
    write_table(study.root / "candidates.csv", [[*row[:4], label] for row in study.rows])
    with pytest.raises(ValueError, match=f"expected {kind} candidates to train on, found none in 3 scans"):
        dataset(study.load())


def test_no_positives_in_validation_is_said(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    write_table(study.root / "candidates.csv", [[*row[:4], int(row[4] and row[0] != "s3")] for row in study.rows])
    data = study.load("validation")
    assert (len(data.positives), len(data.negatives)) == (0, 3)
    assert "no positive candidates" in caplog.text


def test_candidates_outside_their_scan_are_named_and_the_rest_goes_on(study: Study) -> None:
    rows = [*study.rows, ["s0", 1000.0, 0, 500, 0]]
    write_table(study.root / "candidates.csv", rows)
    data = dataset(study.load(), samples_per_epoch=60)
    (bad,) = data.table.bad_rows()
    assert (bad.line, bad.reason) == (14, "outside its scan")
    assert "24 x 20 x 16 voxels" in bad.detail
    assert {data.row(index) for index in range(60)} == set(range(9))


def test_unknown_series_are_named_but_other_splits_are_not_bad(study: Study) -> None:
    write_table(study.root / "candidates.csv", [*study.rows, ["s9", 0, 0, 0, 1]])
    data = study.load()
    (bad,) = data.table.bad_rows()
    assert (bad.line, bad.reason, bad.detail) == (14, "unknown seriesuid", "s9")
    assert [rows.tolist() for rows in data.rows] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert data.scan[9:12].tolist() == [-1] * 3
    with pytest.raises(BadRowError, match="line 14: unknown seriesuid: s9"):
        study.load(on_bad_row="raise")


def test_rows_of_scans_that_the_list_leaves_out_say_why(study: Study) -> None:
    content = json.loads(study.json.read_text())
    content["left_out"] = {"s9": "unreadable: expected an image"}
    study.json.write_text(json.dumps(content))
    write_table(study.root / "candidates.csv", [*study.rows, ["s9", 0, 0, 0, 1]])
    (bad,) = study.load().table.bad_rows()
    assert (bad.reason, bad.detail) == ("scan left out", "s9: unreadable: expected an image")


def test_a_scan_that_cannot_be_read(study: Study) -> None:
    path = study.root / "s1.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadScanError, match=r"s1\.nii\.gz"):
        dataset(study.load())
    data = dataset(study.load(), on_bad_scan="skip", samples_per_epoch=40)
    assert data.table.counts() == {"scan cannot be read": 3}
    assert {data.row(index) for index in range(40)} == {0, 1, 2, 6, 7, 8}
    assert data[0]["image"][0, 2, 2, 2] == 10 * (data.row(0) // 3) + data.row(0) % 3


def test_splits_and_tables_that_are_none(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected scans in 'testing', found none"):
        study.load("testing")
    content = json.loads(study.json.read_text())
    del content["candidates"]
    study.json.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected the name of a candidate table"):
        study.load()
    assert len(study.load(candidates=study.root / "candidates.csv").positives) == 3
    with pytest.raises(ValueError, match="luna16-candidates writes one"):
        load_candidates(None)


# evaluation


def stream(data: CandidateSet, **options: Any) -> CandidateStream:
    return CandidateStream(data, preprocessing(), CandidateCubed("image", (5, 5, 5)), **options)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_stream_gives_every_candidate_once_scan_by_scan(study: Study, prefetch: int) -> None:
    rows = [study.rows[i] for i in (0, 3, 1, 6, 4, 2, 5, 8, 7)]  # scans mixed in the table
    write_table(study.root / "candidates.csv", rows)
    items = list(stream(study.load(), prefetch=prefetch))
    assert [item["scan"] for item in items] == sorted(item["scan"] for item in items)
    for scan in range(3):
        own = [item["row"] for item in items if item["scan"] == scan]
        assert own == [number for number, row in enumerate(rows) if row[0] == f"s{scan}"]
    for item in items:
        uid, *_, label = rows[item["row"]]
        assert item["seriesuid"] == uid
        assert item["label"].tolist() == [label]
        assert item["image"][0, 2, 2, 2] // 10 == int(uid[1])


class Arrays(dict):
    """Prepared arrays whose end can be noticed."""


@pytest.mark.parametrize("prefetch", [0, 1])
def test_stream_decodes_each_scan_once_and_holds_few(
    study: Study, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    held, most = 0, 0
    prepare = PrepareScan.__call__

    def leave() -> None:
        nonlocal held
        held -= 1

    def note(self: PrepareScan, entry: dict) -> Arrays:
        nonlocal held, most
        arrays = Arrays(prepare(self, entry))
        decoded.append(entry["seriesuid"])
        held += 1
        most = max(most, held)
        weakref.finalize(arrays, leave)
        return arrays

    def slow(item: dict) -> dict:
        time.sleep(0.02)  # long enough for the thread to run ahead, if it would
        return {"row": item["row"]}

    monkeypatch.setattr(PrepareScan, "__call__", note)
    reader = CandidateStream(study.load(), preprocessing(), slow, prefetch=prefetch)
    for _ in range(2):  # a second time gives the same again
        assert [item["row"] for item in reader] == list(range(9))
        assert len(reader) == 9
    assert decoded == ["s0", "s1", "s2"] * 2
    # a scan goes only when the next is handed over, for which the thread may have begun one more
    assert most <= 2 + prefetch


def test_stream_resumes(study: Study) -> None:
    data = study.load()
    decoded: list[str] = []

    def note(item: dict) -> dict:
        decoded.append(item["seriesuid"])
        return item

    reader = CandidateStream(data, [*preprocessing(), note], CandidateCubed("image", 5), done={0, 1, 2, 4})
    assert len(reader) == 5
    assert [item["row"] for item in reader] == [3, 5, 6, 7, 8]
    assert decoded == ["s1", "s2"]
    assert list(stream(data, done=range(9))) == []
    mask = np.isin(np.arange(12), [0, 1, 2, 4])
    assert [item["row"] for item in stream(data, done=np.flatnonzero(mask))] == [3, 5, 6, 7, 8]


def test_stream_parts_make_up_the_whole(study: Study) -> None:
    parts = [[item["row"] for item in stream(study.load(), rank=rank, world_size=2)] for rank in range(2)]
    assert parts == [[0, 1, 2, 6, 7, 8], [3, 4, 5]]
    # of more processes than scans each has something to do, for a metric that waits for all of them
    parts = [[item["row"] for item in stream(study.load(), rank=rank, world_size=4)] for rank in range(4)]
    assert parts == [[0, 8], [1, 3], [2, 4, 6], [5, 7]]


def test_stream_goes_on_after_bad_rows_and_bad_scans(study: Study) -> None:
    path = study.root / "s1.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    write_table(study.root / "candidates.csv", [*study.rows, ["s0", 1000.0, 0, 500, 0]])
    reader = stream(study.load())
    assert [item["row"] for item in reader] == [0, 1, 2, 6, 7, 8]
    assert reader.table.counts() == {"outside its scan": 1, "scan cannot be read": 3}
    assert "s1.nii.gz" in next(reader.table.bad_rows()).detail
    with pytest.raises(BadScanError, match=r"s1\.nii\.gz"):
        list(stream(study.load(), on_bad_scan="raise"))


def test_stream_ends_early_without_waiting(study: Study) -> None:
    items = iter(stream(study.load(), prefetch=2))
    assert next(items)["row"] == 0
    items.close()


def test_stream_refuses_workers(study: Study) -> None:
    with pytest.raises(RuntimeError, match="num_workers=0"):
        list(DataLoader(stream(study.load()), batch_size=2, num_workers=1))
    batches = list(DataLoader(stream(study.load()), batch_size=2))
    assert [len(batch["row"]) for batch in batches] == [2, 2, 2, 2, 1]
    assert batches[0]["image"].shape == (2, 1, 5, 5, 5)
    assert batches[0]["label"].shape == (2, 1)


def test_one_scan_and_a_table_without_a_data_list(study: Study, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [row[:4] for row in study.rows], COLUMNS[:4])
    one = scan_candidates(study.root / "s2.nii.gz", table)
    assert [item["row"] for item in stream(one)] == [6, 7, 8]
    assert np.isnan(next(iter(stream(one)))["label"]).all()
    assert one.table.counts() == {"unknown seriesuid": 9}
    named = scan_candidates(study.root / "s2.nii.gz", table, seriesuid="s0")
    assert named.rows[0].tolist() == [0, 1, 2]
    folder = scan_candidates(study.root, table)
    assert [item["row"] for item in stream(folder)] == list(range(12))
    other = write_table(tmp_path / "o.csv", [["x", 1, 2, 3]], COLUMNS[:4])
    with pytest.raises(ValueError, match="found those of 1 other series: x"):
        scan_candidates(study.root / "s2.nii.gz", other)
    with pytest.raises(FileNotFoundError, match="expected a scan"):
        scan_candidates(study.root / "s7.nii.gz", table)


# predictions


def test_predictions_survive_and_are_taken_up(study: Study, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([3, 0], [-2.25, 1.0])
        store.add([5], [1e-7])
    # a process that was killed leaves half a line
    with open(tmp_path / "p.part", "a", encoding="utf-8") as file:
        file.write("7,0.")
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert store.done.tolist() == [0, 3, 5]
        assert store.values[[0, 3, 5]].tolist() == [1.0, -2.25, 1e-7]
        store.add([7], [0.5])
    assert any(line.startswith("7,0.5,") for line in (tmp_path / "p.part").read_text().splitlines())
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert np.flatnonzero(~np.isnan(store.values)).tolist() == [0, 3, 5, 7]


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "row -1": lambda lines: [*lines, "-1,0.9"],
    "row -1 with the checksum of another": lambda lines: [*lines, "-1," + lines[1].split(",", 1)[1]],
    "another value": lambda lines: [lines[0], lines[1].replace(",1.0,", ",9.0,"), *lines[2:]],
    "another row": lambda lines: [lines[0], "4" + lines[1][1:], *lines[2:]],
    "no number": lambda lines: [lines[0], "x,y,z", *lines[1:]],
    "too large a row": lambda lines: [*lines, "99999999999999999999999,0.5"],
    "nothing": lambda lines: [*lines, "", ",", ",,"],
    "other characters": lambda lines: [*lines, "\udcff\u2028\x0b\u0663,0.5,00000000"],
    "no checksums": lambda lines: [lines[0], *(line.rpartition(",")[0] for line in lines[1:])],
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_damaged_or_edited_store_changes_no_prediction(
    kind: str, study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line counts as it was written or not at all; its row is scored again."""
    table = study.load().table
    right = np.full(len(table), np.nan)
    right[[0, 3, 5]] = 1.0, -2.25, 1e-7
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([0, 3], right[[0, 3]].tolist())
        store.add([5], [1e-7])
    lines = (tmp_path / "p.part").read_text().splitlines()
    edited = "\n".join(EDITS[kind](lines)) + "\n"
    (tmp_path / "p.part").write_bytes(edited.encode(errors="surrogateescape"))
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        assert np.isin(store.done, [0, 3, 5]).all()
        np.testing.assert_array_equal(store.values[store.done], right[store.done])
        missing = [row for row in (0, 3, 5) if row not in store.done]
        store.add(missing, right[missing].tolist())
    assert "damaged, cut off or were edited" in caplog.text and str(tmp_path / "p.part") in caplog.text
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        np.testing.assert_array_equal(store.values, right)


def test_of_flipped_bits_in_a_store_none_changes_a_prediction(study: Study, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([0, 3, 5], [1.0, -2.25, 1e-7])
    whole, right = (tmp_path / "p.part").read_bytes(), {0: 1.0, 3: -2.25, 5: 1e-7}
    for bit in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / "p.part").write_bytes(content)
        with PredictionStore(tmp_path / "p.part", table, "weights") as store:
            assert all(store.values[row] == right[int(row)] for row in store.done), bit


def test_a_second_process_does_not_write_to_the_same_store(study: Study, tmp_path: Path) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table) as store:
        store.add([3], [0.5])
        with pytest.raises(OSError, match=r"p\.part: another process"):
            PredictionStore(tmp_path / "p.part", table, "other weights")
        store.add([4], [0.5])
    with PredictionStore(tmp_path / "p.part", table) as store:
        assert store.done.tolist() == [3, 4]


@pytest.mark.parametrize("change", ["key", "table", "resume"])
def test_predictions_of_something_else_are_not_taken_up(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    table = study.load().table
    with PredictionStore(tmp_path / "p.part", table, "weights") as store:
        store.add([3], [0.25])
    if change == "table":
        write_table(study.root / "candidates.csv", [[*row[:4], 0] for row in study.rows])
        table = read_candidates(study.root / "candidates.csv")
    key = "other weights" if change == "key" else "weights"
    with PredictionStore(tmp_path / "p.part", table, key, resume=change != "resume") as store:
        assert len(store.done) == 0
    assert ("belongs to another table or other weights" in caplog.text) == (change != "resume")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(study: Study, tmp_path: Path, value: float) -> None:
    with (
        PredictionStore(tmp_path / "p.part", study.load().table) as store,
        pytest.raises(ValueError, match="line 6: expected a finite prediction"),
    ):
        store.add([4], [value])


def test_rows_order_and_columns_are_kept_with_probabilities(tmp_path: Path) -> None:
    text = (
        "seriesuid,coordX,coordY,coordZ,note,class\n"
        'a,1.50,2,3,"x, y",1\n'
        "a,1,2\n"
        "b,9,9,9,z,0\n"
        "\n"
        "a,1.5,2.0,3,again,1\n"
        "b,nan,0,0,,0\n"
    )
    path = tmp_path / "c.csv"
    path.write_text(text, encoding="utf-8")
    table = read_candidates(path)
    probabilities = np.full(len(table), np.nan)
    probabilities[0] = 0.125
    assert write_probabilities(tmp_path / "out.csv", table, probabilities) == 2
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "seriesuid,coordX,coordY,coordZ,note,class,probability",
        'a,1.50,2,3,"x, y",1,0.125',
        "a,1,2",
        "b,9,9,9,z,0,",
        "a,1.5,2.0,3,again,1,0.125",
        "b,nan,0,0,,0,",
    ]
    assert write_submission(tmp_path / "s.csv", table, probabilities) == 1
    assert (tmp_path / "s.csv").read_text() == "seriesuid,coordX,coordY,coordZ,probability\na,1.5,2.0,3.0,0.125\n"
    # what was written can be read, scored again, and keeps its form
    again = read_candidates(tmp_path / "out.csv")
    assert again.probability[0] == 0.125
    probabilities[0] = 0.5
    write_probabilities(tmp_path / "out.csv", again, probabilities)
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == 'a,1.50,2,3,"x, y",1,0.5'
    with pytest.raises(ValueError, match="expected a probability for each of 5 rows"):
        write_probabilities(tmp_path / "out.csv", again, np.zeros(2))
