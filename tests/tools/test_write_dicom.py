# SPDX-License-Identifier: Apache-2.0
"""A scan that is written as DICOM is the same scan when it is read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from models_genesis.datasets import ScanReader

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script(ROOT / "tools" / "write_dicom.py")


def volume(modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of the whole range, tilted about all axes, with three different spacings and extents."""
    low = -1024 if modality == "CT" else 0
    values = np.random.default_rng(0).integers(low, 3000, (7, 6, 5)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = (-31.25, 17.5, 203.125)
    return values, affine


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_values_and_places_are_kept(tool, tmp_path, modality):
    values, affine = volume(modality)
    tool.write_series(tmp_path, values, affine, modality, "P", "test")
    reader = ScanReader()
    found, header = reader.get_data(reader.read(str(tmp_path)))
    np.testing.assert_array_equal(found, values)
    np.testing.assert_allclose(header["affine"], affine, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_slices_are_numbered_against_their_normal(tool, tmp_path, order):
    """The way that OHIF stores segmentations right; in an axial scan that is from the head down."""
    values, _ = volume("CT")
    affine = np.diag([-0.7, -0.9, 2.5 * order, 1.0])
    tool.write_series(tmp_path, values, affine, "CT", "P", "test")
    slices = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert [int(each.InstanceNumber) for each in slices] == [1, 2, 3, 4, 5]
    heights = [float(each.ImagePositionPatient[2]) for each in slices]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 5
    columns, rows = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    np.testing.assert_allclose(np.cross(columns, rows), [0, 0, 1], atol=1e-9)


def test_the_same_scan_has_the_same_identifiers(tool, tmp_path):
    values, affine = volume("CT")
    first = tool.write_series(tmp_path / "a", values, affine, "CT", "P", "test")
    assert tool.write_series(tmp_path / "b", values, affine, "CT", "P", "test") == first
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert tool.write_series(tmp_path / "c", values + np.int16(1), affine, "CT", "P", "test") != first


def test_what_would_be_changed_is_refused(tool, tmp_path):
    values, affine = volume("CT")
    with pytest.raises(ValueError, match=r"expected whole numbers that int16 can hold, found float64 from"):
        tool.write_series(tmp_path / "a", values + 0.5, affine, "CT", "P", "test")
    with pytest.raises(ValueError, match=r"found int32 from 0 to 40000"):
        tool.write_series(tmp_path / "a", np.array([[[0, 40000]]], np.int32), affine, "CT", "P", "test")
    sheared = affine.copy()
    sheared[0, 2] += 1
    with pytest.raises(ValueError, match="expected axes at right angles"):
        tool.write_series(tmp_path / "a", values, sheared, "CT", "P", "test")
    assert not (tmp_path / "a").exists()


def test_files_of_one_name_are_of_different_patients(tool, tmp_path):
    """An archive takes scans of one identifier for one patient's."""
    values, affine = volume("MR")
    found = {}
    for name in ("p1/ct", "p2/ct", "東京"):
        scan = tmp_path / f"{name}.nii.gz"
        scan.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(values + np.int16(len(found)), affine), scan)
        for number, words in enumerate(((), (), ("--patient", "Müller"))):
            folder = tmp_path / "dicom" / name / str(number)
            assert tool.main([str(scan), str(folder), "--modality", "MR", *words]) == 0
            found[name, number] = str(pydicom.dcmread(folder / "0001.dcm").PatientID)
    assert len(set(found.values())) == 4
    assert all(found[name, 0] == found[name, 1] and found[name, 2] == "Müller" for name in ("p1/ct", "p2/ct", "東京"))
    assert found["東京", 0].startswith("東京-")


def test_a_folder_that_has_files_is_refused(tool, tmp_path):
    """A second scan in it would become slices of the first in a viewer."""
    values, affine = volume("CT")
    tool.write_series(tmp_path / "a", values, affine, "CT", "P", "first")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(ValueError, match=r"a: expected an empty folder, found 0001.dcm in it"):
        tool.write_series(tmp_path / "a", values, affine, "CT", "P", "second")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


@pytest.mark.parametrize("content", [None, b"", b"no scan", b"\x1f\x8b\x08broken"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_scan_that_cannot_be_read_is_named(tool, tmp_path, capsys, content, suffix):
    scan = tmp_path / f"scan{suffix}"
    if content is not None:
        scan.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        tool.main([str(scan), str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count(f"{scan}:") == 1
    assert not (tmp_path / "out").exists()
