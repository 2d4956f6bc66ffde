# SPDX-License-Identifier: Apache-2.0
"""Scans written on the spot: good ones, bad ones, and DICOM series."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureTyped, LoadImaged, Orientationd, RandGaussianNoised

from models_genesis.datasets.io import dicom_series
from models_genesis.datasets.io.dicom_slice import DicomSlice
from models_genesis.transforms import ClipHounsfieldd, RandTissueCubed, TissueWindowsd

CUBE = (8, 8, 4)
SPACING = (2.0, 2.0, 3.0)


def make_scan(seed: int, shape: tuple[int, ...] = (24, 20, 16)) -> np.ndarray:
    """Air with noise and a block of tissue; integers in HU."""
    rng = np.random.default_rng(seed)
    scan = rng.integers(-1000, -800, shape)
    scan[:6, :, ...] = rng.integers(0, 80, scan[:6, :, ...].shape)
    return scan.astype(np.int16)


def write_nifti(path: Path, scan: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def scan_folder(tmp_path: Path) -> Path:
    """Three patients, two of them with two scans each."""
    for number, name in enumerate(["a/first.nii.gz", "a/second.nii.gz", "b/only.nii", "c/deep/y.nii.gz", "c/x.nii.gz"]):
        write_nifti(tmp_path / "scans" / name, make_scan(number))
    return tmp_path / "scans"


def zero_spacing(path: Path) -> None:
    """Write a NIfTI file whose header has a spacing of zero, byte by byte: nibabel would mend it."""
    content = bytearray(nib.Nifti1Image(make_scan(0), np.diag([*SPACING, 1.0])).to_bytes())
    content[80:84] = np.float32(0).tobytes()
    path.write_bytes(content)


def truncated(path: Path) -> None:
    whole = gzip.compress(nib.Nifti1Image(make_scan(0), np.eye(4)).to_bytes())
    path.write_bytes(whole[: len(whole) // 2])


def non_finite(path: Path) -> None:
    scan = make_scan(0).astype(np.float32)
    scan[3, 3, 3] = np.nan
    scan[4, 4, 4] = np.inf
    write_nifti(path, scan)


BAD_SCANS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("cut.nii.gz", truncated, "unreadable.*ended before the end-of-stream"),
    "two dimensions": ("flat.nii.gz", lambda path: write_nifti(path, make_scan(0)[..., 0]), "not 3D.*24 x 20"),
    "one slice": ("slice.nii.gz", lambda path: write_nifti(path, make_scan(0)[..., :1]), r"cube's size .*\(24, 20, 1"),
    "four dimensions": ("time.nii.gz", lambda path: write_nifti(path, np.stack([make_scan(0)] * 3, -1)), "not 3D.*x 3"),
    "not finite": ("nan.nii.gz", non_finite, "expected finite voxels, found 2 of 7680"),
    "zero spacing": ("zero.nii", zero_spacing, "bad spacing.*found 0 x 2 x 3 mm"),
    "no image": ("text.nii.gz", lambda path: path.write_text("no image"), "unreadable"),
    "no MetaImage": ("text.mhd", lambda path: path.write_text("no image"), "unreadable"),
    "no voxels beside": ("gone.mhd", lambda path: path.write_text(MHD), "voxel file missing.*gone.raw"),
    "small": (
        "small.nii.gz",
        lambda path: write_nifti(path, make_scan(0, (24, 6, 16))),
        r"cube's size .*\(24, 6, 16\)",
    ),
    "solid": ("solid.nii.gz", lambda path: write_nifti(path, np.zeros((24, 20, 16), np.int16)), "no admissible cube"),
    "missing": ("nowhere.nii.gz", lambda path: None, "missing.*found none"),
}

MHD = """ObjectType = Image
NDims = 3
ElementSpacing = 1 1 1
DimSize = 4 4 4
ElementType = MET_SHORT
ElementDataFile = gone.raw
"""


def write_series(
    folder: Path,
    scan: np.ndarray,
    prefix: str = "slice",
    patient: str = "P1",
    modality: str = "CT",
    image_type: str = "AXIAL",
    positions: np.ndarray | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    edit: Callable[[Any, int], object] | None = None,
) -> None:
    """Write a volume in HU as a DICOM series, one file a slice, in an order that is not that of the slices.

    Positions are places along z, or points (N, 3) in LPS; ``edit`` changes a slice before it is written.
    """
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True, exist_ok=True)
    series, study = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    positions = np.arange(scan.shape[2]) * SPACING[2] if positions is None else positions
    for z, position in enumerate(positions):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_ = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.SeriesDate = series, study, "20200101"
        slice_.PatientID, slice_.PatientName, slice_.Modality = patient, patient, modality
        slice_.ImageType = ["ORIGINAL", "PRIMARY", image_type]
        point = [0.0, 0.0, position] if np.ndim(position) == 0 else position
        slice_.ImagePositionPatient = [round(float(side), 6) for side in point]
        slice_.ImageOrientationPatient = [round(float(side), 9) for side in orientation]
        slice_.PixelSpacing = [SPACING[1], SPACING[0]]
        slice_.Columns, slice_.Rows = scan.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.RescaleIntercept, slice_.RescaleSlope = -1024, 1
        slice_.PixelData = (scan[:, :, z].T + 1024).astype("<u2").tobytes()
        if edit is not None:
            edit(slice_, z)
        name = f"{prefix}{(7 * z + 3) % len(positions):03d}_{z:03d}.dcm"
        slice_.save_as(folder / name, enforce_file_format=True)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often the header of each file of DICOM is read."""
    counted: Counter[str] = Counter()
    read_slices = dicom_series.read_slices

    def count(file: str) -> list[DicomSlice] | None:
        counted[file] += 1
        return read_slices(file)

    monkeypatch.setattr(dicom_series, "read_slices", count)
    return counted


@pytest.fixture(params=list(BAD_SCANS))
def bad_scan(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A bad scan and a pattern of what has to be said about it."""
    name, write, message = BAD_SCANS[request.param]
    (tmp_path / "scans").mkdir(exist_ok=True)
    write(tmp_path / "scans" / name)
    return str(tmp_path / "scans" / name), message


def _preprocessing(cube: tuple[int, ...] = CUBE, **windows: object) -> list:
    return [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        ClipHounsfieldd("image"),
        TissueWindowsd("image", cube, **{"border": None, **windows}),
    ]


def _random_transform(cube: tuple[int, ...] = CUBE) -> Compose:
    # MONAI's noise gives a MetaTensor, but only where it is applied
    plain = EnsureTyped("image", dtype=np.float32, track_meta=False)
    return Compose([RandTissueCubed("image", cube), RandGaussianNoised("image", prob=0.5, std=3.0), plain])


@pytest.fixture
def tools() -> SimpleNamespace:
    """Functions that write scans, and the transforms of a pretraining."""
    return SimpleNamespace(
        cube=CUBE,
        spacing=SPACING,
        make_scan=make_scan,
        write_nifti=write_nifti,
        write_series=write_series,
        preprocessing=_preprocessing,
        random_transform=_random_transform,
    )
