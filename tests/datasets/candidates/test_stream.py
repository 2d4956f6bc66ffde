# SPDX-License-Identifier: Apache-2.0
"""Streams of candidates: each once, scan by scan, few scans in memory, resumed where they stopped."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import LoadImaged, Orientationd
from torch.utils.data import DataLoader

from models_genesis.datasets import BadScanError, CandidateSet, CandidateStream, scan_candidates
from models_genesis.datasets.loading.prepare_scan import PrepareScan
from models_genesis.transforms import CandidateCubed, ClipHounsfieldd

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")


def preprocessing() -> list:
    return [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        ClipHounsfieldd("image", round_values=True),
    ]


def stream(data: CandidateSet, **options: Any) -> CandidateStream:
    return CandidateStream(data, preprocessing(), CandidateCubed("image", (5, 5, 5)), **options)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_stream_gives_every_candidate_once_scan_by_scan(study: Any, prefetch: int, write_table: Any) -> None:
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
    study: Any, prefetch: int, monkeypatch: pytest.MonkeyPatch
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


def test_stream_resumes(study: Any) -> None:
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


def test_stream_parts_make_up_the_whole(study: Any) -> None:
    parts = [[item["row"] for item in stream(study.load(), rank=rank, world_size=2)] for rank in range(2)]
    assert parts == [[0, 1, 2, 6, 7, 8], [3, 4, 5]]
    # of more processes than scans each has something to do, for a metric that waits for all of them
    parts = [[item["row"] for item in stream(study.load(), rank=rank, world_size=4)] for rank in range(4)]
    assert parts == [[0, 8], [1, 3], [2, 4, 6], [5, 7]]


def test_stream_goes_on_after_bad_rows_and_bad_scans(study: Any, write_table: Any) -> None:
    path = study.root / "s1.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    write_table(study.root / "candidates.csv", [*study.rows, ["s0", 1000.0, 0, 500, 0]])
    reader = stream(study.load())
    assert [item["row"] for item in reader] == [0, 1, 2, 6, 7, 8]
    assert reader.table.counts() == {"outside its scan": 1, "scan cannot be read": 3}
    assert "s1.nii.gz" in next(reader.table.bad_rows()).detail
    with pytest.raises(BadScanError, match=r"s1\.nii\.gz"):
        list(stream(study.load(), on_bad_scan="raise"))


def test_stream_ends_early_without_waiting(study: Any) -> None:
    items = iter(stream(study.load(), prefetch=2))
    assert next(items)["row"] == 0
    items.close()


def test_stream_refuses_workers(study: Any) -> None:
    with pytest.raises(RuntimeError, match="num_workers=0"):
        list(DataLoader(stream(study.load()), batch_size=2, num_workers=1))
    batches = list(DataLoader(stream(study.load()), batch_size=2))
    assert [len(batch["row"]) for batch in batches] == [2, 2, 2, 2, 1]
    assert batches[0]["image"].shape == (2, 1, 5, 5, 5)
    assert batches[0]["label"].shape == (2, 1)


def test_one_scan_and_a_table_without_a_data_list(study: Any, tmp_path: Path, write_table: Any) -> None:
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
