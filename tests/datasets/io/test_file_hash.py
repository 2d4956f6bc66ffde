# SPDX-License-Identifier: Apache-2.0
"""The hash of a scan counts every file of it, and no other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from models_genesis.datasets.io.file_hash import hash_of_files
from models_genesis.datasets.io.scan_header import list_series

MHD = """ObjectType = Image
NDims = 3
ElementSpacing = 1 1 1
DimSize = 4 4 4
ElementType = MET_SHORT
ElementDataFile = scan.raw
"""

NHDR = """NRRD0005
type: short
dimension: 3
sizes: 4 4 4
space: left-posterior-superior
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
endian: little
encoding: raw
data file: scan.raw
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def together(paths: list[Path]) -> str:
    return hashlib.sha256("\n".join(f"{path.name} {sha256(path)}" for path in sorted(paths)).encode()).hexdigest()


@pytest.mark.parametrize(("name", "header"), [("scan.mhd", MHD), ("scan.nhdr", NHDR)])
def test_voxels_beside_a_header_count(name, header, tmp_path):
    scan, voxels = tmp_path / name, tmp_path / "scan.raw"
    scan.write_text(header)
    voxels.write_bytes(np.arange(64, dtype="<i2").tobytes())
    (tmp_path / "other.raw").write_bytes(b"other")
    before = hash_of_files(scan)
    assert before == together([scan, voxels])
    voxels.write_bytes(np.arange(1, 65, dtype="<i2").tobytes())
    assert hash_of_files(scan) == together([scan, voxels]) != before
    voxels.unlink()  # what is missing is another's to say
    assert hash_of_files(scan) == sha256(scan)


def test_of_several_series_in_a_folder_the_one_that_is_named_counts(tmp_path, tools):
    for number in range(2):
        tools.write_series(tmp_path / "both", tools.make_scan(number, (8, 8, 4)), prefix=f"s{number}_")
    (tmp_path / "both" / "notes.txt").write_text("no image")
    hashes = set()
    for series, files in list_series(str(tmp_path / "both")).items():
        found = hash_of_files(f"{tmp_path}/both::{series}")
        assert len(files) == 4 and found == together([Path(file) for file in files])
        hashes.add(found)
    assert len(hashes) == 2
    assert hash_of_files(tmp_path / "nowhere") is None


def test_one_file_has_its_own_hash_and_a_folder_of_anything_else_that_of_all(tmp_path):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_text(name)
    assert hash_of_files(tmp_path / "a.nii") == sha256(tmp_path / "a.nii")
    assert hash_of_files(tmp_path) == together([tmp_path / "a.nii", tmp_path / "b.nii"])
