# SPDX-License-Identifier: Apache-2.0
"""A folder of scans whose voxels tell their candidates."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models_genesis.datasets import CandidateSet, load_candidates, write_datalist

SHAPE, SPACING = (24, 20, 16), (1.0, 2.0, 3.0)
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")


class Study(SimpleNamespace):
    """A folder of scans, in each of which a voxel's value tells the candidate: 10 * scan + its number."""

    root: Path
    json: Path
    rows: list[list[Any]]

    def load(self, key: str = "training", **options: Any) -> CandidateSet:
        return load_candidates(self.json, self.root, key, **options)


def _write_table(path: Path, rows: Sequence[Sequence[Any]], columns: Sequence[str] = COLUMNS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.fixture
def write_table() -> Callable[..., Path]:
    """Write a candidate table: path, rows, and columns other than those of LUNA16."""
    return _write_table


@pytest.fixture
def study(tmp_path: Path, tools: SimpleNamespace, write_table: Callable[..., Path]) -> Study:
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
