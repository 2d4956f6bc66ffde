# SPDX-License-Identifier: Apache-2.0
"""Headers tell what loading gives, and bad ones are named."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImage, Orientation

from models_genesis.datasets import BadScanError, ScanReader, read_scan_header
from models_genesis.datasets.io.scan_header import SERIES_SEPARATOR, list_series, scan_files


def load(path):
    return LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(path)


def agrees_with_loading(path):
    header, image = read_scan_header(str(path)), load(path)
    assert header.shape == tuple(image.shape[1:])
    np.testing.assert_allclose(header.affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(header.spacing, image.pixdim, rtol=1e-5)
    assert header.ras_shape == tuple(Orientation("RAS", labels=None)(image).shape[1:])
    return header, image


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".nhdr"])
def test_header_of_each_format_agrees_with_loading(suffix, tmp_path, tools):
    scan = tools.make_scan(0)
    image = itk.image_from_array(np.ascontiguousarray(scan.T))
    image.SetSpacing([1.5, 2.0, 3.0])
    image.SetOrigin([10.0, -20.0, 30.0])
    # the axes of the file point to front, below and right
    image.SetDirection(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
    path = tmp_path / f"scan{suffix}"
    itk.imwrite(image, str(path))
    header, loaded = agrees_with_loading(path)
    assert header.shape == (24, 20, 16) and header.ras_shape == (16, 24, 20)
    np.testing.assert_array_equal(loaded[0].numpy(), scan)
    assert len(scan_files(str(path))) == (2 if suffix in (".mhd", ".nhdr") else 1)
    assert all(file.is_file() for file in scan_files(str(path)))


def test_headers_of_the_real_scans(shared):
    for path in sorted((shared / "data/ct").glob("*.nii.gz")):
        agrees_with_loading(path)
    path = next((shared / "data/luna16/subset0").glob("*.mhd"))
    header = read_scan_header(str(path))
    assert header.shape == (256, 212, 270) and header.spacing == (1, 1, 1)
    assert [file.suffix for file in scan_files(str(path))] == [".mhd", ".zraw"]


def test_a_trailing_axis_of_one_volume_is_none(tmp_path, tools):
    path = tools.write_nifti(tmp_path / "scan.nii.gz", tools.make_scan(0)[..., None])
    assert read_scan_header(path).shape == (24, 20, 16)
    assert load(path).shape == (1, 24, 20, 16)


def test_a_nifti_whose_axes_are_not_orthogonal_loads(tmp_path, tools):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 0.7
    agrees_with_loading(tools.write_nifti(tmp_path / "tilted.nii.gz", tools.make_scan(0), affine))


def test_bad_headers_are_named(bad_scan):
    path, message = bad_scan
    if any(word in message for word in ("not 3D", "spacing", "unreadable", "voxel file", "missing")):
        with pytest.raises(BadScanError, match=message) as caught:
            read_scan_header(path)
        assert str(caught.value).startswith(f"{path}: {caught.value.reason}: expected ")
    else:
        read_scan_header(path)  # what is wrong shows in the voxels only


def test_a_truncated_header_is_named(tmp_path, tools):
    whole = nib.Nifti1Image(tools.make_scan(0), np.eye(4)).to_bytes()
    (tmp_path / "head.nii").write_bytes(whole[:200])
    with pytest.raises(BadScanError, match=r"head.nii: unreadable"):
        read_scan_header(str(tmp_path / "head.nii"))


def test_dicom_series_of_a_real_scan(shared, tmp_path, tools):
    volume = np.asarray(nib.load(shared / "data/ct/lidc_idri_0314.nii.gz").dataobj)[60:84, 50:70, 40:56]
    tools.write_series(tmp_path / "series", volume, patient="P7 ")
    header, image = agrees_with_loading(tmp_path / "series")
    assert (header.patient, header.modality, header.spacing) == ("P7", "CT", tools.spacing)
    np.testing.assert_array_equal(image[0].numpy(), volume)
    # a folder with one series is plain MONAI
    stock = LoadImage(reader="ITKReader", dtype=None, ensure_channel_first=True)(tmp_path / "series")
    np.testing.assert_array_equal(stock[0].numpy(), volume)


def test_two_series_in_one_folder(tmp_path, tools):
    scans = {"P1": tools.make_scan(1), "P2": tools.make_scan(2)[..., :9]}
    for patient, scan in scans.items():
        tools.write_series(tmp_path, scan, prefix=patient, patient=patient)
    with pytest.raises(BadScanError, match="found 2 series"):
        read_scan_header(str(tmp_path))
    with pytest.raises(BadScanError, match="found 2 series"):
        load(tmp_path)
    names = list_series(str(tmp_path))
    assert len(names) == 2
    for name in names:
        header, image = agrees_with_loading(f"{tmp_path}{SERIES_SEPARATOR}{name}")
        np.testing.assert_array_equal(image[0].numpy(), scans[header.patient])
        assert len(scan_files(f"{tmp_path}{SERIES_SEPARATOR}{name}")) == scans[header.patient].shape[2]
    with pytest.raises(BadScanError, match=r"expected the DICOM series 1\.2"):
        read_scan_header(f"{tmp_path}{SERIES_SEPARATOR}1.2")


@pytest.mark.parametrize(
    ("positions", "message"), [([0, 3, 3, 6], "repeated slices"), ([0, 3, 6, 15, 18], "missing slices.*3 to 9 mm")]
)
def test_uneven_dicom_slices_are_named(positions, message, tmp_path, tools):
    tools.write_series(tmp_path, tools.make_scan(0)[..., : len(positions)], positions=np.array(positions))
    with pytest.raises(BadScanError, match=message):
        read_scan_header(str(tmp_path))


def test_monai_joins_the_names_of_series_to_a_folder(tmp_path):
    (tmp_path / "list.json").write_text('{"training": [{"image": "a/b::1.2.3", "patient": "P"}]}')
    entry = load_decathlon_datalist(tmp_path / "list.json", False, "training", tmp_path)[0]
    assert entry["image"] == str(tmp_path / "a/b::1.2.3")
