# SPDX-License-Identifier: Apache-2.0
"""A result replaces that of the same scan, never one of another scan that is called alike."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, SaveImage

from models_genesis.datasets import ScanReader, ScanWriter
from models_genesis.datasets.io.scan_writer import is_written_here


def write_scan(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((6, 7, 8), value, np.int16), np.diag([1.0, 2, 3, 1])), path)
    return path


def predict(scan, out):
    """Save an image that is twice the scan; give it."""
    image = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(scan))
    SaveImage(out, "seg", output_dtype=np.int16, writer=ScanWriter, resample=False, print_log=False)(image * 2)
    return out / "t1" / "t1_seg.nii.gz"


def test_a_scan_of_the_same_name_elsewhere_does_not_replace_a_result(tmp_path):
    first, second = (write_scan(tmp_path / f"p{number}" / "t1.nii.gz", number) for number in (1, 2))
    made = predict(first, tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"FileExistsError: .*expected a result of .*p2.*, found that of another"):
        predict(second, tmp_path / "out")
    assert np.unique(nib.load(made).get_fdata()) == [2]
    assert np.unique(nib.load(predict(second, tmp_path / "other")).get_fdata()) == [4]


def test_the_same_scan_is_predicted_again_wherever_it_lies_and_when_it_was_mended(tmp_path):
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    made = predict(scan, tmp_path / "out")
    before = made.read_bytes()
    assert predict(scan, tmp_path / "out").read_bytes() == before
    shutil.move(scan.parent, tmp_path / "moved")
    predict(tmp_path / "moved" / "t1.nii.gz", tmp_path / "out")
    predict(write_scan(tmp_path / "moved" / "t1.nii.gz", 3), tmp_path / "out")
    assert np.unique(nib.load(made).get_fdata()) == [6]


@pytest.mark.parametrize("other", [b"no image", b"", None], ids=["text", "empty", "label map"])
def test_files_of_others_are_never_replaced(other, tmp_path):
    """Such as label maps that were drawn by hand, in a folder that is named for results."""
    made = tmp_path / "out" / "t1" / "t1_seg.nii.gz"
    write_scan(made, 5) if other is None else made.parent.mkdir(parents=True)
    if other is not None:
        made.write_bytes(other)
    before = made.read_bytes()
    with pytest.raises(
        RuntimeError, match=r"FileExistsError: .*t1_seg.nii.gz: .*found one that was not written here or"
    ):
        predict(write_scan(tmp_path / "p" / "t1.nii.gz", 1), tmp_path / "out")
    assert made.read_bytes() == before and not is_written_here(made)


@pytest.mark.parametrize("of_ours", [False, True], ids=["scan", "own result"])
def test_a_scan_is_not_replaced_by_its_own_result(of_ours, tmp_path):
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    if of_ours:
        scan = predict(scan, tmp_path / "out")
    before = scan.read_bytes()
    image = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(scan))
    writer = ScanWriter(output_dtype=np.int16)
    writer.set_data_array(image)
    writer.set_metadata(image.meta, resample=False)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    for target in (scan, tmp_path / "link.nii.gz"):
        with pytest.raises(
            FileExistsError, match="found one that was not written here or was changed since, such as a scan"
        ):
            writer.write(target)
    assert scan.read_bytes() == before


def test_what_is_written_here_says_so(tmp_path):
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    assert is_written_here(predict(scan, tmp_path / "out")) and not is_written_here(scan)
    writer = ScanWriter(output_dtype=np.int16)  # of no scan
    writer.set_data_array(np.zeros((1, 2, 2, 2)))
    writer.set_metadata({"affine": np.eye(4)}, resample=False)
    writer.write(tmp_path / "own.nii")
    assert is_written_here(tmp_path / "own.nii")
    assert not is_written_here(tmp_path / "none.nii") and not is_written_here(tmp_path)


@pytest.mark.parametrize("program", ["nibabel", "itk", "truncated"])
def test_a_prediction_that_was_corrected_is_kept(program, tmp_path):
    """Programs keep the description of a file that they change."""
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    made = predict(scan, tmp_path / "out")
    if program == "nibabel":
        image = nib.load(made)
        voxels = np.array(image.dataobj)
        voxels[3, 3, 3] = 7
        nib.save(nib.Nifti1Image(voxels, image.affine, image.header), made)
    elif program == "itk":
        itk = pytest.importorskip("itk")
        image = itk.imread(str(made))
        image[3, 3, 3] = 7
        itk.imwrite(image, str(made))
    else:
        made.write_bytes(made.read_bytes()[:-20])
    before = made.read_bytes()
    with pytest.raises(RuntimeError, match=r"FileExistsError: .*or was changed since"):
        predict(scan, tmp_path / "out")
    assert made.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_result_is_known_again_in_any_type(dtype, tmp_path):
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    image = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(scan))
    image = image * 1.37 + torch.arange(8)
    for _ in range(2):
        SaveImage(tmp_path, "x", output_dtype=dtype, writer=ScanWriter, resample=False, print_log=False)(image)
    found = nib.load(tmp_path / "t1" / "t1_x.nii.gz")
    assert found.get_data_dtype() == dtype and len(bytes(found.header["descrip"]).rstrip(b"\0")) <= 79


def test_a_scan_that_is_written_is_no_result(tmp_path):
    """Such as one that was converted or resampled: it is listed, and nothing replaces it."""
    scan = write_scan(tmp_path / "p" / "t1.nii.gz", 1)
    image = LoadImage(reader=ScanReader, ensure_channel_first=True)(str(scan))
    save = SaveImage(tmp_path / "out", "seg", writer=ScanWriter, resample=False, print_log=False)
    save.set_options(init_kwargs={"mark": False})
    save(image)
    assert not is_written_here(tmp_path / "out" / "t1" / "t1_seg.nii.gz")
    with pytest.raises(RuntimeError, match="FileExistsError: "):
        predict(scan, tmp_path / "out")
