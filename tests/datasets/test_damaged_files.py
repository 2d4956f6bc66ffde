# SPDX-License-Identifier: Apache-2.0
"""Files damaged at random: each is read in the shape that its header says, or refused by name, and nothing else."""

from __future__ import annotations

import gzip
import random

import nibabel as nib
import numpy as np
import pytest

from models_genesis.datasets import BadScanError, open_scan

MUTATIONS = 120
HEADER = 420

META = b"""ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 2 2 3
DimSize = 8 7 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = b"""NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 8 7 6
space directions: (2,0,0) (0,2,0) (0,0,3)
endian: little
encoding: raw
space origin: (0,0,0)

"""


def damaged(content, rng, head):
    """Flip, overwrite, insert, delete or cut off bytes of the header."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(min(head, len(found)))
        kind = rng.randrange(6)
        if kind == 0:
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[place] = rng.choice([0, 255, 127, 128, 37, 10, 32, 57, 45])
        elif kind == 2:
            del found[place : place + rng.choice([1, 2, 4, 8])]
        elif kind == 3:
            found[place:place] = rng.randbytes(rng.choice([1, 4, 40]))
        elif kind == 4:
            del found[place + 1 :]
        else:
            number = rng.choice([0, 1, 65535, 10**6, 2**31 - 1, 2**32 - 1])
            found[place : place + 4] = number.to_bytes(4, "little")
        found = found or bytearray(b"x")
    return bytes(found)


def check(path):
    """Read a scan; the only error that may come names it."""
    try:
        header, load = open_scan(path)
        assert load().shape[:3] == header.shape
    except BadScanError as error:
        assert error.scan == path
        return False
    return True


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_damaged_files_are_read_or_refused(name, tmp_path, tools):
    scan = tools.make_scan(0, (8, 7, 6))
    nifti = nib.Nifti1Image(scan, np.diag([1, 1, 2, 1.0])).to_bytes()
    voxels = scan.tobytes("F")
    seeds = {"a.nii": nifti, "a.nii.gz": gzip.compress(nifti), "a.mha": META + voxels, "a.nrrd": NRRD + voxels}
    rng = random.Random(name)
    read = 0
    for _ in range(MUTATIONS):
        (tmp_path / name).write_bytes(damaged(seeds[name], rng, HEADER))
        read += check(str(tmp_path / name))
    assert 0 < read < MUTATIONS
    (tmp_path / name).write_bytes(seeds[name])
    assert check(str(tmp_path / name))


def test_damaged_slices_are_read_or_refused(tmp_path, tools):
    tools.write_series(tmp_path / "s", tools.make_scan(0, (8, 7, 6)))
    files = sorted((tmp_path / "s").iterdir())
    rng = random.Random("slices")
    for _ in range(MUTATIONS):
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng, 900))
        check(str(tmp_path / "s"))
        file.write_bytes(content)
    assert check(str(tmp_path / "s"))
