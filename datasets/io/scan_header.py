# SPDX-License-Identifier: Apache-2.0
"""The one place where a scan is opened: its geometry, and its voxels, for every format that is read here.

Whatever needs to know where a voxel is, or what it holds, asks here: listings, training, validation, inference,
candidate tables, the DICOM segmentation, and MONAI Label's app, most of them through
:class:`~models_genesis.datasets.ScanReader`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .dicom_series import list_series, open_series, regular_files, series_name
from .dicom_slice import is_dicom
from .metaimage_scan import metaimage_voxels, open_metaimage
from .nifti_scan import open_nifti
from .nrrd_scan import nrrd_voxels, open_nrrd
from .picture_file import PICTURE_SUFFIXES, open_picture
from .radiograph import open_radiograph
from .scan_geometry import (
    META_SUFFIXES,
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    SCAN_SUFFIXES,
    SERIES_SEPARATOR,
    BadScanError,
    ScanHeader,
    check_regular_file,
    root_cause_message,
    split_series,
)

__all__ = [
    "NIFTI_SUFFIXES",
    "SCAN_SUFFIXES",
    "SERIES_SEPARATOR",
    "BadScanError",
    "ScanHeader",
    "file_states",
    "list_series",
    "listed_files",
    "open_scan",
    "paths_of",
    "read_scan_header",
    "root_cause_message",
    "scan_files",
    "split_series",
]


def open_scan(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read a scan's header and check that it can be true.

    Args:
        scan: NIfTI, MetaImage or NRRD file, or a folder with a DICOM series, with ``::`` and the series identifier
            behind it where the folder holds several; or a gray picture (PNG, JPEG) or a radiograph (one DICOM file),
            which is a scan of one slice.

    Returns:
        The header, and a function that reads the voxels along the axes that the header describes: (X, Y, Z), with
        volumes along a fourth axis where the header has several components.

    Raises:
        BadScanError: When the scan is missing, no regular file, unreadable, not three-dimensional, of several values a
            voxel, shorter than it says, or does not say where its voxels are; the function raises it for voxels that
            cannot be read.
    """
    folder = split_series(scan)[0]
    if not os.path.lexists(folder):
        raise BadScanError(scan, "missing", "expected an existing file or folder, found none")
    if Path(folder).is_dir():
        return open_series(scan)
    check_regular_file(scan)
    for suffixes, read in ((NIFTI_SUFFIXES, open_nifti), (META_SUFFIXES, open_metaimage), (NRRD_SUFFIXES, open_nrrd)):
        if scan.lower().endswith(suffixes):
            return read(scan)
    if scan.lower().endswith(PICTURE_SUFFIXES):
        return open_picture(scan)
    if is_dicom(Path(scan)):
        return open_radiograph(scan)
    formats = ", ".join(SCAN_SUFFIXES + PICTURE_SUFFIXES)
    detail = f"expected an image ({formats}, a DICOM folder or a radiograph in DICOM), found another file"
    raise BadScanError(scan, "unreadable", detail)


def read_scan_header(scan: str, channels: int = 1) -> ScanHeader:
    """Read the header of a scan, as :func:`open_scan` does, and check its number of channels.

    Args:
        scan: file, or folder with a DICOM series.
        channels: volumes that the file must hold along its fourth axis; 1 for a file without one.

    Returns:
        The header, of three axes.

    Raises:
        BadScanError: See :func:`open_scan`; or when the scan has another number of channels.
    """
    header = open_scan(scan)[0]
    if header.components == channels:
        return header
    found = " x ".join(map(str, (*header.shape, *([header.components] if header.components > 1 else []))))
    if channels == 1:
        raise BadScanError(scan, "not 3D", f"expected three axes, found {found}")
    raise BadScanError(scan, "channels missing", f"expected {channels} volumes along a fourth axis, found {found}")


def paths_of(value: Any) -> list[str]:
    """List the paths that a value of an entry holds; a value that is neither text nor a list of texts holds none.

    Example:
        >>> paths_of("a.nii.gz"), paths_of(["t1.nii.gz", "t2.nii.gz"]), paths_of(1), paths_of([0, 1])
        (['a.nii.gz'], ['t1.nii.gz', 't2.nii.gz'], [], [])
    """
    parts = list(value) if isinstance(value, list | tuple) else [value]
    return parts if all(isinstance(part, str) and part for part in parts) else []


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
        name = series_name(found, series)
        return [Path(file) for files in ([found[name]] if name else found.values()) for file in files]
    return [Path(scan), *_voxel_files(scan)]


def listed_files(scan: str) -> list[Path]:
    """List the files in which a scan is, without reading them: :func:`scan_files`, but of a folder all its files."""
    folder = split_series(scan)[0]
    return [Path(folder) / name for name, _, _ in regular_files(folder)] if Path(folder).is_dir() else scan_files(scan)


def file_states(files: Iterable[Path]) -> list[list[Any]]:
    """Describe files by their absolute paths, sizes and times, by which a changed one is known without being read.

    Raises:
        OSError: When one is missing.
    """
    states = [(str(file.absolute()), file.stat()) for file in files]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


def _voxel_files(scan: str) -> tuple[Path, ...]:
    """List the files in which a MetaImage or NRRD header keeps its voxels, other than itself."""
    try:
        if scan.lower().endswith(META_SUFFIXES):
            files = metaimage_voxels(scan)[1].files
        elif scan.lower().endswith(NRRD_SUFFIXES):
            files = nrrd_voxels(scan)[1].files
        else:
            return ()
    except BadScanError:
        return ()  # opening the scan says why
    return tuple(file for file in files if file != Path(scan))
