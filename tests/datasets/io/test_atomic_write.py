# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import logging
import os
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from models_genesis.datasets.io.atomic_write import (
    STALE_SECONDS,
    atomic_path,
    atomic_text,
    atomic_write,
    sweep_temporary,
)


@pytest.mark.parametrize("writer", [atomic_write, atomic_text, atomic_path])
def test_a_failure_leaves_the_old_file_alone(tmp_path, writer):
    path = tmp_path / "new" / "table.csv"
    with atomic_text(path) as file:
        file.write("old")
    with pytest.raises(KeyboardInterrupt), writer(path) as file:
        if writer is atomic_path:
            file.write_text("half")
        else:
            file.write("half" if writer is atomic_text else b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_text(path) as first:
        first.write("first\n" * 9)
        with atomic_text(path) as second:
            second.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first\n" * 9
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_it_is(tmp_path):
    with atomic_text(tmp_path / "table.csv", errors="surrogateescape") as file:
        file.write("Müller\r\n\udcff\n")
    assert (tmp_path / "table.csv").read_bytes() == "Müller\r\n".encode() + b"\xff\n"


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "scan.nii.gz"):
        pass
    assert not list(tmp_path.iterdir())


LEFTOVERS = (".tmp.0123abcd.a.csv", ".a.csv.4711.tmp", ".tmp.89abcdef.b.csv")
OTHERS = ("a.csv", ".tmp.mine.csv", ".tmp.0123abcd.", ".a.csv.tmp", "x.tmp.0123abcd.a.csv")


@pytest.mark.parametrize(("names", "removed"), [(None, LEFTOVERS), (["a.csv"], LEFTOVERS[:2]), ([], ())])
def test_only_stale_files_of_the_given_names_are_swept(names, removed, tmp_path):
    now = time.time()
    for name in (*LEFTOVERS, *OTHERS):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (now, now - STALE_SECONDS + 60))
    assert sweep_temporary(tmp_path, names) == []
    for name in (*LEFTOVERS, *OTHERS):
        os.utime(tmp_path / name, (now, now - STALE_SECONDS - 60))
    assert {path.name for path in sweep_temporary(tmp_path, names)} == set(removed)
    assert {path.name for path in tmp_path.iterdir()} == {*LEFTOVERS, *OTHERS} - set(removed)


def test_a_folder_that_cannot_be_read_is_not_swept(tmp_path):
    assert sweep_temporary(tmp_path / "nowhere") == []


def test_the_first_write_to_a_folder_sweeps_it(tmp_path):
    stale, fresh = (tmp_path / f".tmp.{number:08x}.a.csv" for number in range(2))
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    with atomic_text(tmp_path / "b.csv") as file:
        file.write("whole")
    assert sorted(tmp_path.iterdir()) == [fresh, tmp_path / "b.csv"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_bytes(number, tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(
        OSError, match=rf"{path} needs more than the 4 bytes that were written; \d+ bytes are free"
    ) as error:
        with atomic_write(path) as file:
            file.write(b"half")
            file.flush()
            raise OSError(number, "full")
    assert error.value.errno == number
    assert not list(tmp_path.iterdir())


def save(folder, labels, affine):
    image = MetaTensor(torch.as_tensor(labels)[None], affine=affine, meta={"filename_or_obj": "scan.nii.gz"})
    transform = SaveImage(
        folder,
        output_postfix="seg",
        output_dtype="uint8",
        resample=False,
        separate_folder=False,
        writer="models_genesis.datasets.ScanWriter",
        print_log=True,
    )
    transform(image)


def test_a_label_map_is_replaced_as_a_whole(tmp_path, monkeypatch, caplog):
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    affine = np.diag([2.0, -1, 3, 1])
    affine[:3, 3] = 5, 6, 7
    path = tmp_path / "scan_seg.nii.gz"
    with caplog.at_level(logging.INFO):
        save(tmp_path, labels, affine)
    assert f"wrote {path}" in caplog.text and ".tmp" not in caplog.text
    written = nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), labels)
    assert np.array_equal(written.affine, affine)
    content = path.read_bytes()

    def half(image, filename):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(Exception, match="No space left"):
        save(tmp_path, labels + 1, affine)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
