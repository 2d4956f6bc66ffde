# SPDX-License-Identifier: Apache-2.0
"""NRRD files (``.nrrd``, ``.nhdr``), read strictly by their own header (teem.sourceforge.net/nrrd/format.html).

ITK's reader passes over units, takes unnamed spaces for the patient's, and ends the process at some long lines. What is
read here is what ITK reads of a sound file; the tests compare both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .scan_geometry import BadScanError, ScanHeader, check_geometry, check_regular_file
from .voxel_files import VoxelFiles, name_files

HEADER_BYTES = 2**20
LINE_BYTES = 4096
"""Longest line of a field; comments and the key/value pairs of other programs may take the whole header."""

TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}

TO_RAS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}

ENCODINGS: dict[str, Literal["raw", "deflate", "text"]] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("text", "txt", "ascii"), "text"),
}

SAME_NAMES = {"datafile": "data file", "spaceunits": "space units", "lineskip": "line skip", "byteskip": "byte skip"}


def open_nrrd(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read and check a header.

    Args:
        scan: path of the ``.nrrd`` or ``.nhdr``.

    Returns:
        The header, and a function that reads the voxels, (X, Y, Z).

    Raises:
        BadScanError: When the header is not one of three axes in the patient's space, or does not fit the files.
    """
    fields, voxels = nrrd_voxels(scan)
    voxels.check()
    affine = _affine(scan, fields, len(fields["sizes"].split()))
    spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    header = ScanHeader(voxels.shape, spacing, affine)
    check_geometry(scan, header)
    return header, voxels.read


def nrrd_voxels(scan: str) -> tuple[dict[str, str], VoxelFiles]:
    """Read a header and say where its voxels are, without looking for them.

    Raises:
        BadScanError: See :func:`open_nrrd`.
    """
    fields, listed, end = read_fields(scan)
    return fields, _voxels(scan, fields, listed, _shape(scan, fields), end)


def read_fields(scan: str) -> tuple[dict[str, str], list[str], int]:
    """Read the lines of a header up to the empty one.

    Args:
        scan: path of the file.

    Returns:
        The fields by name, the names of voxel files listed after them, and the number of the header's bytes.

    Raises:
        BadScanError: When it does not begin as NRRD, a line is too long or not ``name: value``, or a name comes twice.
    """
    check_regular_file(scan)
    fields: dict[str, str] = {}
    listed: list[str] = []
    with open(scan, "rb") as file:
        magic = file.readline(32)
        if not re.fullmatch(rb"NRRD000[1-5]\r?\n", magic):
            raise BadScanError(
                scan, "unreadable", f"expected the first line NRRD0004 or the like, found {magic[:20]!r}"
            )
        while line := file.readline(HEADER_BYTES):
            text = line.decode("latin-1").rstrip("\r\n")
            if file.tell() > HEADER_BYTES:
                raise BadScanError(scan, "unreadable", f"expected a header of {HEADER_BYTES} bytes, found a longer one")
            if not text:
                break
            if text.startswith("#") or re.match(r"[^:]+:=", text):
                continue
            if len(line) > LINE_BYTES:
                detail = f"expected lines of {LINE_BYTES} bytes at most, found {text[:40]!r}... of {len(line)}"
                raise BadScanError(scan, "unreadable", detail)
            if fields.get("data file", "").startswith("LIST"):
                listed.append(text.strip())
                continue
            name, separator, value = text.partition(":")
            name = SAME_NAMES.get(name.strip().lower(), name.strip().lower())
            if not separator or name in fields:
                found = f"{name[:40]} twice" if separator else repr(text[:40])
                raise BadScanError(scan, "unreadable", f"expected lines name: value, each once, found {found}")
            fields[name] = value.strip()
        return fields, listed, file.tell()


def _shape(scan: str, fields: dict[str, str]) -> tuple[int, int, int]:
    """Read the voxels along each axis; a fourth of length 1 is dropped."""
    axes = fields.get("dimension", "")
    words = fields.get("sizes", "").split()
    if axes not in ("3", "4"):
        raise BadScanError(scan, "not 3D", f"expected three axes (dimension), found {axes[:20]!r}")
    if len(words) != int(axes) or not all(re.fullmatch(r"[1-9]\d{0,6}", word) for word in words):
        raise BadScanError(scan, "bad header", f"expected {axes} sizes, found {fields.get('sizes', '')[:60]!r}")
    shape = tuple(map(int, words))
    if len(shape) == 4 and shape[3] != 1:
        found = " x ".join(words)
        raise BadScanError(scan, "not 3D", f"expected three axes, one value a voxel, found {found}")
    return shape[0], shape[1], shape[2]


def _voxels(scan: str, fields: dict[str, str], listed: list[str], shape: tuple[int, int, int], end: int) -> VoxelFiles:
    kind, encoding = fields.get("type", "").lower(), fields.get("encoding", "").lower()
    if kind not in TYPES or encoding not in ENCODINGS:
        detail = (
            f"expected a type of {', '.join(sorted(set(TYPES)))[:200]}... and an encoding of {', '.join(ENCODINGS)}"
        )
        raise BadScanError(scan, "bad header", f"{detail}, found {kind[:40]!r} and {encoding[:40]!r}")
    dtype, endian = np.dtype(TYPES[kind]), fields.get("endian", "").lower()
    if endian not in ("little", "big", "") or (not endian and dtype.itemsize > 1 and ENCODINGS[encoding] != "text"):
        raise BadScanError(scan, "bad header", f"expected the endian little or big, found {endian[:20]!r}")
    skip = fields.get("byte skip", "0")
    if (
        not re.fullmatch(r"-1|\d{1,9}", skip)
        or fields.get("line skip", "0") != "0"
        or (skip != "0" and ENCODINGS[encoding] != "raw")
    ):
        found = f"{skip[:20]!r} and {fields.get('line skip', '0')[:20]!r}"
        raise BadScanError(scan, "bad header", f"expected a byte skip of raw voxels, and no line skip, found {found}")
    named = fields.get("data file", "").split()
    files: tuple[Path, ...]
    if not named:
        files, skip = (Path(scan),), str(end + int(skip)) if skip != "-1" else skip
    elif named[0] == "LIST":
        files = tuple(Path(scan).parent / name for name in listed)
    else:
        files = name_files(scan, named)
    return VoxelFiles(
        scan, files, int(skip), shape, dtype.newbyteorder(">" if endian == "big" else "<"), ENCODINGS[encoding]
    )


def _affine(scan: str, fields: dict[str, str], axes: int) -> NDArray[np.float64]:
    space = fields.get("space", "").lower()
    if space not in TO_RAS:
        detail = "expected a space such as left-posterior-superior, which says where the patient's left and front are"
        raise BadScanError(scan, "no orientation", f"{detail}, found {space[:40]!r}")
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.strip().lower() not in ("mm", "millimeter", "millimeters", "") for unit in units):
        raise BadScanError(scan, "bad header", f"expected the space units mm, found {units[:3]}")
    vectors = re.findall(r"none|\([^()]*\)", fields.get("space directions", ""))
    if axes == 4 and len(vectors) == 4:
        vectors = vectors[:3]
    origin = re.findall(r"\([^()]*\)", fields.get("space origin", ""))
    if len(vectors) != 3 or len(origin) != 1:
        found = f"{fields.get('space directions', '')[:80]!r} and {fields.get('space origin', '')[:40]!r}"
        raise BadScanError(scan, "bad affine", f"expected three space directions and a space origin, found {found}")
    try:
        rows = [[float(number) for number in vector.strip("()").split(",")] for vector in (*vectors, *origin)]
        affine = np.eye(4)
        affine[:3] = np.array(rows, np.float64).reshape(4, 3).T
    except ValueError as error:
        found = " ".join(vectors)[:120]
        raise BadScanError(scan, "bad affine", f"expected vectors of three numbers, found {found}") from error
    return np.asarray(np.diag([*TO_RAS[space], 1.0]) @ affine, np.float64)
