# SPDX-License-Identifier: Apache-2.0
"""MetaImage files (``.mhd``, ``.mha``), read strictly by their own header.

ITK's reader trusts what a header says: some short ones end the process, others name a unit or a scaling that it passes
over. What is read here is what ITK reads of a sound file; the tests compare both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .scan_geometry import LPS_TO_RAS, BadScanError, ScanHeader, check_geometry, check_regular_file
from .voxel_files import VoxelFiles, name_files

HEADER_BYTES = 2**18
LINE_BYTES = 4096
DATA_FIELD = "ElementDataFile"

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

OFFSETS = ("Offset", "Position", "Origin")
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
"""Names of the same field, of which one may be given."""

NEUTRAL = {
    "DistanceUnits": ("mm", "?", ""),
    "ElementNumberOfChannels": ("1",),
    "ElementToIntensityFunctionSlope": (1.0,),
    "ElementToIntensityFunctionOffset": (0.0,),
    "ObjectType": ("Image",),
}
"""Fields that ITK passes over or that mean another kind of file, and the values that change nothing."""

KNOWN = {*OFFSETS, *DIRECTIONS, *NEUTRAL, DATA_FIELD, "NDims", "DimSize", "ElementType", "ElementSpacing", "HeaderSize",
         "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"}  # fmt: skip


def open_metaimage(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read and check a header.

    Args:
        scan: path of the ``.mhd`` or ``.mha``.

    Returns:
        The header, and a function that reads the voxels, (X, Y, Z), with volumes along a fourth axis where there are
        several.

    Raises:
        BadScanError: When the header is not one of three or four axes, or does not fit the files.
    """
    fields, voxels = metaimage_voxels(scan)
    voxels.check()
    shape = voxels.shape
    affine = _affine(scan, fields, len(fields["DimSize"].split()))
    spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    header = ScanHeader(shape[:3], spacing, affine, shape[3] if len(shape) == 4 else 1)
    check_geometry(scan, header)
    return header, voxels.read


def metaimage_voxels(scan: str) -> tuple[dict[str, str], VoxelFiles]:
    """Read a header and say where its voxels are, without looking for them.

    Raises:
        BadScanError: See :func:`open_metaimage`.
    """
    fields, end = read_fields(scan)
    return fields, _voxels(scan, fields, _shape(scan, fields), end)


def read_fields(scan: str) -> tuple[dict[str, str], int]:
    """Read the lines of a header up to the one that names the voxels.

    Args:
        scan: path of the file.

    Returns:
        The fields by name, and the number of the header's bytes.

    Raises:
        BadScanError: When a line is too long or not ``Name = value``, a name comes twice, or the end is missing.
    """
    check_regular_file(scan)
    fields: dict[str, str] = {}
    with open(scan, "rb") as file:
        while DATA_FIELD not in fields:
            line = file.readline(LINE_BYTES + 1)
            if len(line) > LINE_BYTES or file.tell() > HEADER_BYTES:
                raise BadScanError(
                    scan, "unreadable", f"expected lines of {LINE_BYTES} bytes at most, found a longer one"
                )
            if not line:
                raise BadScanError(scan, "unreadable", f"expected a MetaImage header up to {DATA_FIELD}, found its end")
            name, separator, value = line.decode("latin-1").partition("=")
            if not separator and not line.strip():
                continue
            name = name.strip()
            if not separator or not re.fullmatch(r"[ -~]{1,80}", name):
                raise BadScanError(scan, "unreadable", f"expected lines Name = value, found {line[:40]!r}")
            spelt = next((known for known in KNOWN if known.lower() == name.lower()), name)
            if spelt != name or name in fields:
                kind = f"{name} for {spelt}" if spelt != name else f"{name} twice"
                raise BadScanError(scan, "bad header", f"expected each field once and by its name, found {kind}")
            fields[name] = value.strip()
        return fields, file.tell()


def _shape(scan: str, fields: dict[str, str]) -> tuple[int, ...]:
    axes = fields.get("NDims", "")
    if axes not in ("3", "4"):
        raise BadScanError(scan, "not 3D", f"expected three axes (NDims), or a fourth of volumes, found {axes[:20]!r}")
    words = fields.get("DimSize", "").split()
    if len(words) != int(axes) or not all(re.fullmatch(r"[1-9]\d{0,6}", word) for word in words):
        raise BadScanError(
            scan, "bad header", f"expected {axes} sizes in DimSize, found {fields.get('DimSize', '')[:60]!r}"
        )
    shape = tuple(map(int, words))
    for name, values in NEUTRAL.items():
        if name in fields and not _means(fields[name], values):
            found = fields[name][:40]
            raise BadScanError(scan, "bad header", f"expected {name} {values[0]} or none, found {found!r}")
    return shape[:3] if len(shape) == 4 and shape[3] == 1 else shape


def _means(text: str, values: tuple[str | float, ...]) -> bool:
    if text in values:
        return True
    try:
        return float(text) in values
    except ValueError:
        return False


def _voxels(scan: str, fields: dict[str, str], shape: tuple[int, ...], end: int) -> VoxelFiles:
    kind = fields.get("ElementType", "")
    if kind not in TYPES:
        raise BadScanError(scan, "bad header", f"expected an ElementType of {', '.join(TYPES)}, found {kind[:40]!r}")
    binary, compressed = _flag(scan, fields, "BinaryData", True), _flag(scan, fields, "CompressedData", False)
    big = _flag(scan, fields, "BinaryDataByteOrderMSB", False) or _flag(scan, fields, "ElementByteOrderMSB", False)
    encoding: Literal["raw", "deflate", "text"] = "raw" if binary else "text"
    if compressed:
        encoding = "deflate"
    skip = fields.get("HeaderSize", "0")
    if not re.fullmatch(r"-1|\d{1,9}", skip) or (skip == "-1" and encoding != "raw"):
        raise BadScanError(scan, "bad header", f"expected a HeaderSize in bytes, found {skip[:40]!r}")
    named = fields[DATA_FIELD].split()
    files: tuple[Path, ...]
    if named and named[0].upper() == "LOCAL":
        files, skip = (Path(scan),), str(end)
    elif named and named[0] == "LIST":
        files = _listed(scan, end)
    else:
        files = name_files(scan, named)
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if big else "<")
    return VoxelFiles(scan, files, int(skip), shape, dtype, encoding)


def _listed(scan: str, end: int) -> tuple[Path, ...]:
    """Read the names of voxel files that follow the header, one a line."""
    with open(scan, "rb") as file:
        file.seek(end)
        lines = file.read(HEADER_BYTES).decode("latin-1").split("\n")
    return tuple(Path(scan).parent / line.strip() for line in lines if line.strip())


def _flag(scan: str, fields: dict[str, str], name: str, default: bool) -> bool:
    text = fields.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0", "t", "f"):
        raise BadScanError(scan, "bad header", f"expected {name} True or False, found {text[:20]!r}")
    return text[0] in "t1"


def _numbers(scan: str, fields: dict[str, str], name: str, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.array(fields[name].split(), np.float64)
    except ValueError:
        numbers = np.array([])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise BadScanError(scan, "bad header", f"expected {count} numbers in {name}, found {fields[name][:80]!r}")
    return numbers


def _affine(scan: str, fields: dict[str, str], axes: int) -> NDArray[np.float64]:
    """Put directions, spacings and offset together; the rows of the matrix are the directions of the axes."""
    if "ElementSpacing" not in fields:
        raise BadScanError(scan, "bad spacing", "expected ElementSpacing, found none")
    spacing = _numbers(scan, fields, "ElementSpacing", axes)
    if (spacing <= 0).any():
        found = " x ".join(f"{side:g}" for side in spacing)
        raise BadScanError(scan, "bad spacing", f"expected finite spacings above zero, found {found} mm")
    directions: NDArray[np.float64] = np.eye(axes)
    origin: NDArray[np.float64] = np.zeros(axes)
    for names in (OFFSETS, DIRECTIONS):
        given = [name for name in names if name in fields]
        if len(given) > 1:
            raise BadScanError(scan, "bad header", f"expected one of {', '.join(names)}, found {', '.join(given)}")
        if given and names is OFFSETS:
            origin = _numbers(scan, fields, given[0], axes)
        elif given:
            directions = _numbers(scan, fields, given[0], axes * axes).reshape(axes, axes)
    if axes == 4 and not np.allclose([*directions[3, :3], *directions[:3, 3], directions[3, 3]], [0] * 6 + [1]):
        raise BadScanError(scan, "bad affine", f"expected a separate fourth axis, found {directions.tolist()}")
    lengths = np.linalg.norm(directions[:3, :3], axis=1)
    if not math.isclose(lengths.min(), 1, abs_tol=1e-3) or not math.isclose(lengths.max(), 1, abs_tol=1e-3):
        raise BadScanError(scan, "bad affine", f"expected directions of length 1, found {lengths.round(4).tolist()}")
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * spacing[:3]
    affine[:3, 3] = origin[:3]
    return np.asarray(LPS_TO_RAS @ affine, np.float64)
