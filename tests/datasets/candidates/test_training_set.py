# SPDX-License-Identifier: Apache-2.0
"""Cubes around candidates: balanced, the same for the same index, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged, Orientationd, Spacingd
from torch.utils.data import DataLoader

from models_genesis.datasets import BadScanError, CandidateDataset, CandidateSet, EpochSampler, scan_candidates
from models_genesis.transforms import CandidateCubed, ClipHounsfieldd, RandCandidateCubed

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")


def preprocessing(spacing: Sequence[float] | None = None) -> list:
    resample = [] if spacing is None else [Spacingd("image", pixdim=spacing, mode="bilinear")]
    return [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        *resample,
        ClipHounsfieldd("image", round_values=True),
    ]


def dataset(data: CandidateSet, **options: Any) -> CandidateDataset:
    cut = options.pop("cut", CandidateCubed("image", (5, 5, 5)))
    return CandidateDataset(data, preprocessing(), cut, progress=False, cache_gib=1, **options)


def test_each_cube_shows_its_candidate(study: Any) -> None:
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


def test_candidate_stays_centred_after_resampling(study: Any) -> None:
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


def test_an_epoch_takes_each_positive_once_and_negatives_at_the_ratio(
    tmp_path: Path, tools: SimpleNamespace, write_table: Any
) -> None:
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


def test_samples_per_epoch_keep_the_mix(study: Any) -> None:
    data = dataset(study.load(), negatives_per_positive=2.0, samples_per_epoch=30)
    assert len(data) == 30
    labels = np.array([data[index]["label"][0] for index in range(30)])
    assert labels.sum() == 10
    # three positives ten times: each at least three times, and over three epochs each ten times
    counts = np.bincount([data.row(index) for index in range(90) if data.row(index) % 3 == 0], minlength=9)
    assert counts[[0, 3, 6]].tolist() == [10, 10, 10]


def test_hard_negatives_come_as_often_as_their_probability_says(
    tmp_path: Path, tools: SimpleNamespace, write_table: Any
) -> None:
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
def test_same_index_same_sample_in_any_worker(study: Any, num_workers: int) -> None:
    data = dataset(study.load(), samples_per_epoch=12, cut=RandCandidateCubed("image", 5, max_shift=2))
    sampler = EpochSampler(data, seed=3)
    sampler.set_epoch(1)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=num_workers)
    batches = list(loader)
    images = torch.cat([batch["image"] for batch in batches]).numpy()
    expected = np.stack([data[index]["image"] for index in sampler])
    assert np.array_equal(images, expected)
    assert not np.array_equal(expected, np.stack([data[index - 12]["image"] for index in sampler]))


def test_scans_from_disk_give_the_same(study: Any, tmp_path: Path) -> None:
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
def test_arguments_out_of_range(study: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(study.load(), **options)


@pytest.mark.parametrize(("label", "kind"), [(0, "positive"), (1, "negative")])
def test_a_training_split_of_one_class_is_refused(study: Any, label: int, kind: str, write_table: Any) -> None:
    write_table(study.root / "candidates.csv", [[*row[:4], label] for row in study.rows])
    with pytest.raises(ValueError, match=f"expected {kind} candidates to train on, found none in 3 scans"):
        dataset(study.load())


def test_no_positives_in_validation_is_said(study: Any, caplog: pytest.LogCaptureFixture, write_table: Any) -> None:
    write_table(study.root / "candidates.csv", [[*row[:4], int(row[4] and row[0] != "s3")] for row in study.rows])
    data = study.load("validation")
    assert (len(data.positives), len(data.negatives)) == (0, 3)
    assert "no positive candidates" in caplog.text


def test_candidates_outside_their_scan_are_named_and_the_rest_goes_on(study: Any, write_table: Any) -> None:
    rows = [*study.rows, ["s0", 1000.0, 0, 500, 0]]
    write_table(study.root / "candidates.csv", rows)
    data = dataset(study.load(), samples_per_epoch=60)
    (bad,) = data.table.bad_rows()
    assert (bad.line, bad.reason) == (14, "outside its scan")
    assert "24 x 20 x 16 voxels" in bad.detail
    assert {data.row(index) for index in range(60)} == set(range(9))


def test_a_scan_that_cannot_be_read(study: Any) -> None:
    path = study.root / "s1.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadScanError, match=r"s1\.nii\.gz"):
        dataset(study.load())
    data = dataset(study.load(), on_bad_scan="skip", samples_per_epoch=40)
    assert data.table.counts() == {"scan cannot be read": 3}
    assert {data.row(index) for index in range(40)} == {0, 1, 2, 6, 7, 8}
    assert data[0]["image"][0, 2, 2, 2] == 10 * (data.row(0) // 3) + data.row(0) % 3
