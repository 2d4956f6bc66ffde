# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: which of sform, qform and pixdim counts, sizes that fit the file, and the voxels.

The rule is the one by which nibabel and ITK agree; where they would lay the same file at two places it is refused.
``docs/geometry.md`` has it in words.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from .scan_geometry import (
    TOLERANCE,
    BadScanError,
    ScanHeader,
    check_geometry,
    check_regular_file,
    corner_distance,
    root_cause_message,
)

MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""By NIfTI's code: metre, millimetre, micrometre. Other codes count as millimetre, as for ITK."""

SCANNER = 1
"""NIfTI's code of scanner coordinates: with it ITK, as nibabel always, prefers the sform."""

QUATERNION_EXCESS = 1e-3
"""How much longer than 1 rounding may make a quaternion's three parts; what is longer is damage."""

WRITTEN_LENGTH = 1 + 1e-7
"""Of a quaternion's three parts where they are all of it: the fourth comes out as 0, not as the root of a rounding."""

ITK_ORTHONORMAL = 1e-4
"""How far from orthonormal ITK lets the axes of an sform be before it looks at the qform instead."""

DEFLATE_RATIO = 1032
"""A deflated byte holds at most so many."""


def read_nifti_header(scan: str) -> Any:
    """Read the 348 or 540 bytes of a header, without mending them.

    Args:
        scan: path of the file.

    Returns:
        nibabel's header, in the file's own byte order.

    Raises:
        BadScanError: When it is not a NIfTI file with its voxels in it.
    """
    check_regular_file(scan)
    try:
        with nib.openers.ImageOpener(scan) as stream:
            content = stream.read(540)
        sizes = (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
        size = next((size for size in sizes if size in (348, 540)), None)
        if size is None:
            raise ValueError("no 348 or 540 in its first four bytes")
        if len(content) < size:
            raise ValueError(f"{len(content)} of {size} bytes of a header")
        header: Any = (nib.Nifti1Header if size == 348 else nib.Nifti2Header)(content[:size], check=False)
        if bytes(header["magic"].tobytes())[:4] not in (b"n+1\0", b"n+2\0"):
            raise ValueError(f"the magic {bytes(header['magic'].tobytes())!r}: damaged, or voxels in another file")
    except Exception as error:
        raise BadScanError(scan, "unreadable", f"expected a NIfTI file, found {root_cause_message(error)}") from error
    return header


def open_nifti(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read and check a header.

    Args:
        scan: path of the file.

    Returns:
        The header, and a function that reads the voxels: (X, Y, Z), with volumes along a fourth axis where there are
        several.

    Raises:
        BadScanError: When the file is not NIfTI, not of three axes, of several values a voxel, shorter than it says, or
            does not say, or contradicts itself, where its voxels are.
    """
    raw = read_nifti_header(scan)
    shape = _shape(scan, raw)
    try:
        dtype = np.dtype(raw.get_data_dtype())
    except Exception as error:
        raise BadScanError(
            scan, "unreadable", f"expected a known data type, found {root_cause_message(error)}"
        ) from error
    if dtype.names or dtype.kind not in "iuf":
        raise BadScanError(scan, "not one value a voxel", f"expected whole or real numbers, found {dtype}")
    offset = float(raw["vox_offset"])
    if not (math.isfinite(offset) and offset.is_integer() and raw["sizeof_hdr"] + 4 <= offset < 2**40):
        raise BadScanError(scan, "unreadable", f"expected voxels behind the header, found them at byte {offset:g}")
    _check_size(scan, int(offset) + math.prod(shape) * dtype.itemsize)
    slope, inter = _scaling(scan, raw)
    affine = nifti_affine(scan, raw, shape)
    spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    header = ScanHeader(shape[:3], spacing, affine, shape[3] if len(shape) == 4 else 1)
    check_geometry(scan, header, may_shear=True)

    def load() -> NDArray:
        try:
            proxy: Any = ArrayProxy(scan, (shape, dtype, int(offset), slope, inter), mmap=False)
            voxels = np.asanyarray(proxy, order="C")
        except Exception as error:
            raise BadScanError(
                scan, "unreadable", f"expected {shape} voxels, found {root_cause_message(error)}"
            ) from error
        # torch knows the machine's own byte order only, and no floats of more than 64 bits
        native = np.dtype(np.float64) if voxels.dtype.itemsize > 8 else voxels.dtype.newbyteorder("=")
        return voxels.astype(native, copy=False)

    return header, load


def _shape(scan: str, raw: Any) -> tuple[int, ...]:
    """Read the voxels along each axis; trailing axes of length 1 beyond the third are dropped."""
    dims = [int(size) for size in raw["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise BadScanError(scan, "unreadable", f"expected one to seven axes, each with voxels, found {dims}")
    shape = tuple(dims[1 : dims[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        found = " x ".join(map(str, shape))
        raise BadScanError(scan, "not 3D", f"expected three axes, or a fourth of volumes, found {found}")
    return shape


def _scaling(scan: str, raw: Any) -> tuple[float, float]:
    """Read slope and intercept; a slope of zero means none, by NIfTI's standard."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    # nibabel itself writes NaN for "none" into headers that it has not scaled
    if slope == 0 or (math.isnan(slope) and (math.isnan(inter) or inter == 0)):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(inter):
        raise BadScanError(scan, "bad scaling", f"expected finite numbers, found slope {slope:g}, intercept {inter:g}")
    return slope, inter


def _check_size(scan: str, needed: int) -> None:
    """Compare the bytes that the header claims with the file, before memory is allocated for them."""
    size = os.path.getsize(scan)
    if not scan.lower().endswith(".gz"):
        if size < needed:
            raise BadScanError(scan, "too short", f"expected {needed:,} bytes as its header says, found {size:,}")
        return
    if needed > DEFLATE_RATIO * size:
        raise BadScanError(
            scan, "too short", f"expected {needed:,} bytes as its header says, found {size:,} compressed"
        )
    with open(scan, "rb") as stream:
        stream.seek(max(size - 4, 0))
        # the last four bytes of a whole file of one member hold its size, modulo 2 ** 32
        if int.from_bytes(stream.read(4), "little") == needed % 2**32:
            return
    found = _uncompressed_size(scan, needed)
    if found < needed:
        raise BadScanError(scan, "too short", f"expected {needed:,} bytes as its header says, found {found:,}")


def _uncompressed_size(scan: str, needed: int) -> int:
    """Count bytes by decompressing, with little memory, up to the number that is needed."""
    found = 0
    try:
        with gzip.open(scan, "rb") as stream:
            while found < needed and (block := stream.read(min(2**20, needed - found))):
                found += len(block)
    except Exception as error:
        raise BadScanError(
            scan, "unreadable", f"expected {needed:,} bytes, found {root_cause_message(error)}"
        ) from error
    return found


def nifti_affine(scan: str, raw: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Decide where the voxels are, see ``docs/geometry.md``.

    Args:
        scan: path of the file, for messages.
        raw: the header as it is in the file.
        shape: voxels along each axis.

    Returns:
        ``(4, 4)``, voxels to mm in RAS.

    Raises:
        BadScanError: When the header does not say, or says it twice in different ways.
    """
    sides = np.asarray(raw["pixdim"], np.float64)[1:4]
    unit = MM_PER_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        found = " x ".join(f"{side:g}" for side in sides)
        raise BadScanError(scan, "bad spacing", f"expected finite spacings above zero, found {found} mm")
    sform = _sform(scan, raw) if raw["sform_code"] > 0 else None
    qform = _qform(scan, raw, sides) if raw["qform_code"] > 0 else None
    if sform is None and qform is None:
        raise BadScanError(
            scan,
            "no orientation",
            "expected an sform_code or a qform_code above 0, found none: nothing says where its voxels are",
        )
    limit = TOLERANCE * float(sides.min())
    if sform is not None:
        lengths = np.linalg.norm(sform[:3, :3], axis=0)
        if float(np.abs((lengths - sides) * np.maximum(np.array(shape[:3]) - 1, 1)).max()) > limit:
            detail = f"expected an sform with the voxel sides {sides.round(4).tolist()} of pixdim"
            raise BadScanError(scan, "contradictory header", f"{detail}, found {lengths.round(4).tolist()}")
        if qform is not None and (apart := corner_distance(shape, sform, qform)) > limit:
            if raw["sform_code"] != SCANNER or not _orthonormal(sform):
                detail = f"expected sform (code {raw['sform_code']}) and qform (code {raw['qform_code']}) at one place"
                raise BadScanError(scan, "contradictory header", f"{detail}, found voxels up to {apart:.3g} apart")
    affine = sform if sform is not None else qform
    assert affine is not None
    return np.diag([unit, unit, unit, 1.0]) @ affine


def _sform(scan: str, raw: Any) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = [raw["srow_x"], raw["srow_y"], raw["srow_z"]]
    if not np.isfinite(affine).all() or not np.linalg.norm(affine[:3, :3], axis=0).all():
        raise BadScanError(scan, "bad affine", f"expected three axes in the sform, found {affine[:3].tolist()}")
    return affine


def _qform(scan: str, raw: Any, sides: NDArray[np.float64]) -> NDArray[np.float64]:
    parts = np.array([raw["quatern_b"], raw["quatern_c"], raw["quatern_d"]], np.float64)
    origin = np.array([raw["qoffset_x"], raw["qoffset_y"], raw["qoffset_z"]], np.float64)
    length = float(np.linalg.norm(parts))
    if not (np.isfinite(parts).all() and np.isfinite(origin).all()) or length > 1 + QUATERNION_EXCESS:
        found = f"{parts.tolist()} and {origin.tolist()}"
        raise BadScanError(scan, "bad affine", f"expected a quaternion of length 1 at most in the qform, found {found}")
    parts = parts / max(length, 1.0)
    b, c, d = parts
    a = math.sqrt(max(1.0 - float(parts @ parts), 0.0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * sides * [1, 1, -1 if raw["pixdim"][0] < 0 else 1]
    affine[:3, 3] = origin
    return affine


def _orthonormal(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < ITK_ORTHONORMAL)


def copy_geometry(source: Any, target: Any) -> None:
    """Write into a header where another file's voxels are, in that file's own words: forms, codes, sides and unit.

    Args:
        source: header of the file that was read.
        target: header of the file that is written.
    """
    names = ["sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"]
    for name in [*names, "xyzt_units"]:
        target[name] = source[name]
    target["pixdim"][:4] = source["pixdim"][:4]
    parts = np.array([source[name] for name in ("quatern_b", "quatern_c", "quatern_d")], np.float64)
    length = np.linalg.norm(parts)
    if length > 1:
        # nibabel refuses a hair more; for this length both libraries take the fourth part to be zero, in float32 too
        parts = parts / length * WRITTEN_LENGTH
    target["quatern_b"], target["quatern_c"], target["quatern_d"] = parts
