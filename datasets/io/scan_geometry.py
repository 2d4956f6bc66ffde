# SPDX-License-Identifier: Apache-2.0
"""What is said of a scan before its voxels are read, and the error that says what is wrong with it."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .root_cause import root_cause

SERIES_SEPARATOR = "::"
"""Between a folder and the series identifier, where a DICOM folder holds several series."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")
META_SUFFIXES = (".mhd", ".mha")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
SCAN_SUFFIXES = NIFTI_SUFFIXES + META_SUFFIXES + NRRD_SUFFIXES

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

TOLERANCE = 0.1
"""How far two statements about one voxel may lie apart, in units of the smallest voxel side: far below what could be
seen, far above what headers round off."""

PLAUSIBLE_MM = (0.001, 100.0)
"""Voxel sides outside of this range are a wrong unit or a damaged header."""


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
        spacing: mm along each axis.
        affine: ``(4, 4)``, voxels to mm in RAS.
        components: volumes along a fourth axis of the file; 1 where there is none.
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


def split_series(scan: str) -> tuple[str, str]:
    """Split ``folder::series`` into both; the series is ``""`` where none is named.

    Example:
        >>> split_series("ct/patient1::1.2.840.1")
        ('ct/patient1', '1.2.840.1')
    """
    folder, _, series = scan.partition(SERIES_SEPARATOR)
    return folder, series


def check_regular_file(scan: str, path: Path | None = None) -> None:
    """Refuse what is not a regular file: to open a FIFO or a device could wait forever.

    Args:
        scan: the scan, for the message.
        path: another file of it, by default the scan itself.

    Raises:
        BadScanError: When the path is missing, a link to itself, or something else than a file.
    """
    file = Path(scan) if path is None else path
    name = "" if path is None else f"{file.name}: "
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise BadScanError(scan, "missing", f"{name}expected a file, found {root_cause_message(error)}") from error
    if not stat.S_ISREG(mode):
        raise BadScanError(scan, "not a file", f"{name}expected a regular file, found {file_kind(mode)}")


def file_kind(mode: int) -> str:
    """Name what is not a regular file.

    Example:
        >>> file_kind(stat.S_IFIFO)
        'a FIFO'
    """
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def corner_distance(shape: Sequence[int], affine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Measure how far apart two affines put the same voxel, at most, in mm.

    Example:
        >>> corner_distance((11, 5, 5), np.diag([1.0, 2, 2, 1]), np.diag([1.1, 2, 2, 1]))
        1.0
    """
    ends = np.maximum(np.asarray(shape[:3]) - 1, 0)
    corners = np.array([[*(np.array(index) * ends), 1] for index in np.ndindex(2, 2, 2)]).T
    return float(round(np.linalg.norm(((affine - other) @ corners)[:3], axis=0).max(), 9))


def check_geometry(scan: str, header: ScanHeader, may_shear: bool = False) -> None:
    """Refuse spacings and axes that no scan has.

    Args:
        scan: the scan, for the message.
        header: what was read of it.
        may_shear: whether the axes need not stand at right angles to each other.

    Raises:
        BadScanError: When a spacing is not plausible, or the axes are not independent, or not at right angles.
    """
    spacing = " x ".join(f"{side:g}" for side in header.spacing)
    if not all(np.isfinite(side) and side > 0 for side in header.spacing) or not np.isfinite(header.affine).all():
        raise BadScanError(scan, "bad spacing", f"expected finite spacings above zero, found {spacing} mm")
    low, high = PLAUSIBLE_MM
    if not low <= min(header.spacing) <= max(header.spacing) <= high:
        raise BadScanError(scan, "bad spacing", f"expected voxel sides of {low:g} to {high:g} mm, found {spacing} mm")
    axes = header.affine[:3, :3] / np.maximum(np.linalg.norm(header.affine[:3, :3], axis=0), 1e-12)
    found = header.affine[:3, :3].round(4).tolist()
    if abs(np.linalg.det(axes)) < 1e-3:
        raise BadScanError(scan, "bad affine", f"expected three independent axes, found {found}")
    apart = corner_distance(header.shape, header.affine, straightened(header.affine))
    if apart > TOLERANCE * min(header.spacing) and not may_shear:
        detail = f"expected axes at right angles, found {found}, which puts voxels {apart:.3g} mm off such a grid"
        raise BadScanError(scan, "sheared", f"{detail}: resample it first")


def straightened(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the nearest affine whose axes stand at right angles to each other, of the same voxel sides and origin.

    Example:
        >>> straightened(np.diag([2.0, -2, 3, 1])).tolist() == np.diag([2.0, -2, 3, 1]).tolist()
        True
    """
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sides)
    straight = affine.copy()
    straight[:3, :3] = left @ right * sides
    return straight


def root_cause_message(error: BaseException) -> str:
    """Name an error in one line: the first cause of a chain, a bad scan as it is, and of a long report what tells."""
    error = root_cause(error, BadScanError)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if re.match(r"(ITK ERROR|itk::ERROR)|((\w+\.)*\w*(Error|Exception): (?!/\S+:$))", line)
    ]
    text = (telling or lines or ["no message"])[0]
    return f"{type(error).__name__}: {text[:300]}"
