# SPDX-License-Identifier: Apache-2.0
"""What a scan's header says, for every format that is read here, without reading its voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np

SERIES_SEPARATOR = "::"
"""Between a folder and the series identifier, where a DICOM folder holds several series."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
SCAN_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class BadScanError(ValueError):
    """A scan that cannot be used; the message names the file, what was expected and what was found.

    Args:
        scan: path of the scan.
        reason: short reason, the same for all scans with the same fault.
        detail: what was expected and what was found.
    """

    def __init__(self, scan: str, reason: str, detail: str) -> None:
        super().__init__(scan, reason, detail)
        self.scan = scan
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """Say which scan is bad and why."""
        return f"{self.scan}: {self.reason}: {self.detail}"


@dataclass(frozen=True)
class ScanHeader:
    """Geometry and origin of a scan.

    Attributes:
        shape: voxels along each axis of the file.
        spacing: mm along each axis, as the file says.
        affine: ``(4, 4)``, voxels to mm in RAS.
        components: values per voxel, or volumes along a fourth axis.
        modality: DICOM modality, ``""`` for files that do not say.
        patient: DICOM patient identifier, ``""`` for files that do not say.
        image_type: DICOM image type, ``""`` for files that do not say.
        series: DICOM series identifier, ``""`` for files that do not say.
        slices: DICOM instance identifiers of the slices, in the order of the third axis.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray
    components: int = 1
    modality: str = ""
    patient: str = ""
    image_type: str = ""
    series: str = ""
    slices: tuple[str, ...] = ()

    @property
    def ras_shape(self) -> tuple[int, ...]:
        """Voxels to the right, forward and upward: the shape after ``Orientationd(axcodes="RAS")``."""
        axes = nib.io_orientation(self.affine)[:, 0].astype(int)
        return tuple(self.shape[list(axes).index(axis)] for axis in range(3))


def read_scan_header(scan: str, channels: int = 1) -> ScanHeader:
    """Read the header of a scan and check that it describes a three-dimensional one with one value a voxel.

    Args:
        scan: NIfTI, MetaImage or NRRD file, or a folder with a DICOM series, with ``::`` and the series identifier
            behind it where the folder holds several.
        channels: volumes that a NIfTI file must hold along its fourth axis; 1 for a file without one.

    Returns:
        The header, of three axes. A trailing fourth axis of one volume is dropped.

    Raises:
        BadScanError: When the scan is missing, unreadable, not three-dimensional, of several values a voxel, of another
            number of channels, or has a spacing that is zero, negative or not finite.
    """
    folder = split_series(scan)[0]
    if not Path(folder).exists():
        raise BadScanError(scan, "missing", "expected an existing file or folder, found none")
    if Path(folder).is_dir():
        header = _read_series(scan)
    elif scan.lower().endswith(NIFTI_SUFFIXES):
        header = _read_nifti(scan)
    else:
        header = _read_itk(scan)
    if channels > 1:
        header = _fold_channels(scan, header, channels)
    _check(scan, header, channels)
    return header


def _fold_channels(scan: str, header: ScanHeader, channels: int) -> ScanHeader:
    """Turn the fourth axis into components."""
    if len(header.shape) != 4 or header.shape[3] != channels:
        found = " x ".join(map(str, header.shape))
        raise BadScanError(scan, "channels missing", f"expected {channels} volumes along a fourth axis, found {found}")
    return replace(header, shape=header.shape[:3], spacing=header.spacing[:3], components=channels)


def _check(scan: str, header: ScanHeader, channels: int) -> None:
    if len(header.shape) != 3 or min(header.shape) < 2:
        shape = " x ".join(map(str, header.shape))
        raise BadScanError(scan, "not 3D", f"expected three axes of at least 2 voxels, found {shape}")
    if header.components != channels:
        raise BadScanError(scan, "not one value a voxel", f"expected {channels}, found {header.components}")
    if not all(np.isfinite(side) and side > 0 for side in header.spacing) or not np.isfinite(header.affine).all():
        spacing = " x ".join(f"{side:g}" for side in header.spacing)
        raise BadScanError(scan, "bad spacing", f"expected finite spacings above zero, found {spacing} mm")
    axes = header.affine[:3, :3] / np.maximum(np.linalg.norm(header.affine[:3, :3], axis=0), 1e-12)
    if abs(np.linalg.det(axes)) < 1e-3:
        found = header.affine[:3, :3].round(4).tolist()
        raise BadScanError(scan, "bad affine", f"expected three independent axes, found {found}")


def _read_nifti(scan: str) -> ScanHeader:
    try:
        image: Any = nib.load(scan)
        # nibabel mends a zero spacing as it loads; the file's own numbers are wanted
        with nib.openers.ImageOpener(scan) as stream:
            raw = type(image.header).from_fileobj(stream, check=False)
    except Exception as error:
        raise BadScanError(scan, "unreadable", f"expected a NIfTI file, found {brief(error)}") from error
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    spacing = tuple(float(side) for side in raw["pixdim"][1 : len(shape) + 1])
    components = len(image.get_data_dtype().names or (1,))
    return ScanHeader(shape, spacing, np.asarray(image.affine, dtype=np.float64), components)


def _read_itk(scan: str) -> ScanHeader:
    io = itk.ImageIOFactory.CreateImageIO(scan, itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        formats = ", ".join(SCAN_SUFFIXES)
        raise BadScanError(scan, "unreadable", f"expected an image ({formats} or a DICOM folder), found another file")
    io.SetFileName(scan)
    try:
        io.ReadImageInformation()
    except RuntimeError as error:
        raise BadScanError(scan, "unreadable", f"expected an image header, found {brief(error)}") from error
    _check_companion(scan)
    axes = range(io.GetNumberOfDimensions())
    spacing = tuple(float(io.GetSpacing(axis)) for axis in axes)
    affine = np.eye(4)
    if len(axes) == 3:
        affine[:3, :3] = np.array([io.GetDirection(axis) for axis in axes]).T * spacing
        affine[:3, 3] = [io.GetOrigin(axis) for axis in axes]
    shape = tuple(int(io.GetDimensions(axis)) for axis in axes)
    return ScanHeader(shape, spacing, LPS_TO_RAS @ affine, io.GetNumberOfComponents())


def companion_file(scan: str) -> Path | None:
    """Name the file in which a ``.mhd`` or ``.nhdr`` header keeps its voxels; ``None`` where it keeps them itself."""
    if not scan.lower().endswith((".mhd", ".nhdr")):
        return None
    text = Path(scan).read_bytes()[:65536].decode("latin-1")
    found = re.search(r"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    if found is None or found[1].startswith("LIST") or found[1] == "LOCAL" or "%" in found[1]:
        return None
    return Path(scan).parent / found[1]


def _check_companion(scan: str) -> None:
    companion = companion_file(scan)
    if companion is not None and not companion.is_file():
        raise BadScanError(scan, "voxel file missing", f"expected {companion.name} beside it, found none")


def split_series(scan: str) -> tuple[str, str]:
    """Split ``folder::series`` into both; the series is ``""`` where none is named.

    Example:
        >>> split_series("ct/patient1::1.2.840.1")
        ('ct/patient1', '1.2.840.1')
    """
    folder, _, series = scan.partition(SERIES_SEPARATOR)
    return folder, series


def list_series(folder: str) -> dict[str, list[str]]:
    """List the DICOM series in a folder.

    Args:
        folder: folder with DICOM files; subfolders are not looked at.

    Returns:
        Files of each series in the order of their slices, by the identifier that MONAI's ``ITKReader`` gives the
        series; empty where the folder holds no DICOM image.
    """
    return _list_series(folder, Path(folder).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _list_series(folder: str, modified: int) -> dict[str, list[str]]:
    # the same settings as monai.data.ITKReader, so that the identifiers are the same
    generator = itk.GDCMSeriesFileNames.New()
    generator.SetUseSeriesDetails(True)
    generator.AddSeriesRestriction("0008|0021")
    generator.SetDirectory(folder)
    return {identifier: list(generator.GetFileNames(identifier)) for identifier in generator.GetSeriesUIDs()}


def _read_series(scan: str) -> ScanHeader:
    folder, series = split_series(scan)
    found = list_series(folder)
    if not series and len(found) == 1:
        series = next(iter(found))
    if series not in found:
        expected = f"the DICOM series {series}" if series else f"one DICOM series, or a name behind {SERIES_SEPARATOR}"
        raise BadScanError(scan, "series missing", f"expected {expected}, found {len(found)} series: {list(found)[:3]}")
    headers = [_read_slice(scan, file) for file in found[series]]
    first, tags = headers[0]
    if len(headers) == 1:
        return first
    normal = np.cross(first.affine[:3, 0], first.affine[:3, 1])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-12)
    positions = np.array([header.affine[:3, 3] for header, _ in headers])
    gaps = np.diff(positions @ normal)
    if np.abs(gaps).min() < 0.01:
        raise BadScanError(scan, "repeated slices", "expected one slice a position, found two at the same one")
    if np.abs(gaps).max() > 1.5 * np.median(np.abs(gaps)):
        raise BadScanError(
            scan,
            "missing slices",
            f"expected even slice distances, found {np.abs(gaps).min():g} to {np.abs(gaps).max():g} mm",
        )
    affine = first.affine.copy()
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(headers) - 1)
    return ScanHeader(
        shape=(*first.shape[:2], len(headers)),
        spacing=(*first.spacing[:2], float(np.abs(gaps).mean())),
        affine=affine,
        components=first.components,
        **{**tags, "slices": tuple(header.slices[0] for header, _ in headers)},
    )


def _read_slice(scan: str, file: str) -> tuple[ScanHeader, dict[str, Any]]:
    """Read the header of one DICOM file, and its tags."""
    io = itk.GDCMImageIO.New()
    io.SetFileName(file)
    try:
        io.ReadImageInformation()
    except RuntimeError as error:
        raise BadScanError(
            scan, "unreadable", f"expected a DICOM image in {Path(file).name}, found {brief(error)}"
        ) from error
    dictionary = io.GetMetaDataDictionary()

    def tag(name: str) -> str:
        return str(dictionary[name]).strip() if dictionary.HasKey(name) else ""

    tags: dict[str, Any] = {
        "modality": tag("0008|0060"),
        "patient": tag("0010|0020"),
        "image_type": tag("0008|0008"),
        "series": tag("0020|000e"),
        "slices": (tag("0008|0018"),),
    }
    shape = tuple(int(io.GetDimensions(axis)) for axis in range(3))
    spacing = tuple(float(io.GetSpacing(axis)) for axis in range(3))
    affine = np.eye(4)
    affine[:3, :3] = np.array([io.GetDirection(axis) for axis in range(3)]).T * spacing
    affine[:3, 3] = [io.GetOrigin(axis) for axis in range(3)]
    return ScanHeader(shape, spacing, LPS_TO_RAS @ affine, io.GetNumberOfComponents(), **tags), tags


def scan_files(scan: str | Sequence[str]) -> list[Path]:
    """List the files that a scan, or several scans that make up its channels, consists of.

    Example:
        >>> [path.name for path in scan_files(["t1.nii.gz", "t2.nii.gz"])]
        ['t1.nii.gz', 't2.nii.gz']
    """
    if not isinstance(scan, str):
        return [path for part in scan for path in scan_files(part)]
    folder, series = split_series(scan)
    if Path(folder).is_dir():
        found = list_series(folder)
        return [Path(file) for files in ([found[series]] if series in found else found.values()) for file in files]
    companion = companion_file(scan) if Path(scan).is_file() else None
    return [Path(scan)] if companion is None else [Path(scan), companion]


def brief(error: BaseException) -> str:
    """Name an error in one line: the first cause of a chain, and of a reader's long report the line that tells."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if re.match(r"(ITK ERROR|itk::ERROR)|((\w+\.)*\w*(Error|Exception): (?!/\S+:$))", line)
    ]
    text = (telling or lines or ["no message"])[0]
    return f"{type(error).__name__}: {text[:300]}"
