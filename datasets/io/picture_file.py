# SPDX-License-Identifier: Apache-2.0
"""Gray pictures, PNG and JPEG, as scans of one slice: their values as shares of the full scale that the file states."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .scan_geometry import LPS_TO_RAS, BadScanError, ScanHeader

__all__ = ["MOST_PIXELS", "PICTURE_SUFFIXES", "flat_header", "mapped_file", "open_picture"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")

MOST_PIXELS = 2**26
"""Pixels of a picture up to which its header is believed; no detector makes more."""

_FORMATS = ("PNG", "JPEG")
_PNG_GRAY, _PNG_DEPTH, _PNG_COLOUR = 0, 24, 25  # colour type of gray; places of depth and colour type in the file
_ORIENTATION = 0x0112  # of EXIF


@contextmanager
def mapped_file(path: str) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a file and map it, for readers that ask for as many bytes as its header claims.

    Of a map they get what there is, where a stream would first make room for the claim.

    Args:
        path: the file, which is not empty.

    Yields:
        The stream and the map, both at their beginning.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield stream, content


def flat_header(shape: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0), **facts: Any) -> ScanHeader:
    """Describe a picture as a scan of one slice, columns to the patient's left and rows to the back.

    So a picture lies as an axial slice does that is shown the same way, and as ITK places it.

    Args:
        shape: columns and rows.
        spacing: mm between columns and between rows; 1 where the file does not say.
        facts: see :class:`~models_genesis.datasets.io.scan_header.ScanHeader`.

    Returns:
        The header, of three axes.
    """
    affine = np.asarray(LPS_TO_RAS @ np.diag([*spacing, 1.0, 1.0]), np.float64)
    return ScanHeader(shape=(*shape, 1), spacing=(*spacing, 1.0), affine=affine, **facts)


def open_picture(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read a picture's header and check that its values can only mean one thing.

    Colours are refused, but for pictures whose three channels are the same in every pixel, which are gray.

    Args:
        scan: path of a PNG or JPEG file.

    Returns:
        The header, and a function that reads the pixels: (columns, rows, 1), float32, 0 for the darkest and 1 for the
        brightest value that the file's bit depth can state.

    Raises:
        BadScanError: When the file is no such picture, is cut off, coloured, transparent, or rotated by EXIF.
    """
    from PIL import Image

    try:
        with mapped_file(scan) as (_, content), Image.open(content, formats=_FORMATS) as picture:
            shape, mode, info = picture.size, picture.mode, dict(picture.info)
            frames = getattr(picture, "n_frames", 1)
            head = bytes(content[: _PNG_COLOUR + 1]) if picture.format == "PNG" else b""
            # the base class's, for a PNG's own would decode all pixels to look behind them
            orientation = Image.Image.getexif(picture).get(_ORIENTATION, 1)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise _unreadable(scan, error) from error
    if shape[0] * shape[1] > MOST_PIXELS:
        raise BadScanError(scan, "too large", f"expected at most {MOST_PIXELS:,} pixels, found {shape[0]} x {shape[1]}")
    if frames > 1:
        raise BadScanError(scan, "several pictures", f"expected one picture, found {frames}")
    _check_orientation(scan, orientation)
    if "transparency" in info:
        raise BadScanError(scan, "transparent", "expected a picture without transparent values, found some")
    depth = _check_kind(scan, head, mode)
    if mode not in ("L", "I;16"):
        _gray(scan, depth)  # whether its channels are alike only the pixels say
    return flat_header(shape), lambda: _gray(scan, depth)


def _check_orientation(scan: str, orientation: int) -> None:
    if orientation not in (0, 1):
        detail = f"expected an upright picture, found orientation {orientation} in EXIF or XMP: rotate its pixels first"
        raise BadScanError(scan, "rotated by EXIF", detail)


def _check_kind(scan: str, head: bytes, mode: str) -> int:
    """Refuse kinds of which PIL would not give all bits, or that cannot be gray; give the bits of a value.

    ``head`` is the beginning of a PNG file, empty of a JPEG, whose values have 8 bits.
    """
    depth = head[_PNG_DEPTH] if head else 8
    if depth == 16 and head[_PNG_COLOUR] != _PNG_GRAY:
        detail = "expected one gray value a pixel where it has 16 bits, found colours or transparency"
        raise BadScanError(scan, "colour", detail)
    if mode not in ("L", "I;16", "LA", "RGB", "RGBA", "P"):
        raise BadScanError(scan, "colour", f"expected gray values of 2 to 16 bits, found the kind {mode}")
    return 16 if depth == 16 else 8  # PIL spreads 2 and 4 bits over 8


def _gray(scan: str, depth: int) -> NDArray:
    """Read the pixels as shares of full scale, (columns, rows, 1)."""
    from PIL import Image

    try:
        with mapped_file(scan) as (_, content), Image.open(content, formats=_FORMATS) as picture:
            picture.load()
            orientation = picture.getexif().get(_ORIENTATION, 1)  # in a PNG it may stand behind the pixels
            mode = picture.mode
            values = np.asarray(picture.convert("RGBA") if mode not in ("L", "I;16") else picture)
    except Exception as error:
        raise _unreadable(scan, error) from error
    _check_orientation(scan, orientation)
    if values.ndim == 3:
        if (values[..., 3] != 255).any():
            raise BadScanError(scan, "transparent", "expected a picture without transparent pixels, found some")
        apart = int(np.ptp(values[..., :3].astype(np.int16), axis=-1).max())
        if apart:
            detail = f"expected gray, the three channels alike in every pixel, found them up to {apart} of 255 apart"
            raise BadScanError(scan, "colour", detail)
        values = values[..., 0]
    shares = values.astype(np.float32) / np.float32(2**depth - 1)
    return np.ascontiguousarray(shares.T)[..., None]


def _unreadable(scan: str, error: Exception) -> BadScanError:
    # PIL's message, not that of the error below it, which tells of bytes to be unpacked
    found = f"{type(error).__name__}: {error}"[:300]
    return BadScanError(scan, "unreadable", f"expected a whole PNG or JPEG file, found {found}")
