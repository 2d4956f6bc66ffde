# SPDX-License-Identifier: Apache-2.0
"""Radiographs, DX and CR, as scans of one slice: scaled and windowed as their DICOM file says, bright where dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dicom_slice import (
    WARNINGS,
    SliceError,
    check_pixels,
    padding_ends,
    read_rescale,
    read_syntax,
    state_syntax,
    stored_pixels,
)
from .picture_file import MOST_PIXELS, flat_header, mapped_file
from .scan_geometry import BadScanError, ScanHeader, check_geometry, root_cause_message

__all__ = ["RADIOGRAPHS", "open_radiograph"]

RADIOGRAPHS = ("DX", "CR")
"""DICOM modalities of radiographs that are read, each file as an image by itself."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_SHAPES = {"": _GRAY, "IDENTITY": ("MONOCHROME2",), "INVERSE": ("MONOCHROME1",)}  # of the presentation, by DICOM
_FOR_PROCESSING = tuple(f"1.2.840.10008.5.1.4.1.1.{kind}.1" for kind in ("1.1", "1.2", "1.3"))
"""SOP classes of raw values of the detector: of radiographs, of mammograms, and from within the mouth."""
_BEYOND = 1e12  # a value beyond any window


def open_radiograph(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read a radiograph's header and check that its values can only mean one thing.

    Args:
        scan: path of a DICOM file.

    Returns:
        The header, and a function that reads the pixels: (columns, rows, 1), float32, as shares of full scale after
        the modality LUT (or rescale slope and intercept) and the VOI LUT (or the first window): 0 is what is to be
        shown black and 1 white. MONOCHROME1, in which more is darker, is turned. Without window and VOI LUT, full scale
        is what the stored bits can hold.

    Raises:
        BadScanError: When the file is no radiograph, is damaged, coloured, of several frames, holds raw values of the
            detector, or contradicts itself.
        ImportError: When pydicom is older than 3.
    """
    import pydicom

    try:
        # the filters of warnings belong to the whole process: threads must not mix them up
        with mapped_file(scan) as (stream, content), WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset: Any = pydicom.dcmread(content, stop_before_pixels=True, force=True)
            start = content.tell()
            shape, spacing = _check(scan, dataset)
            _check_scaling(scan, dataset)
            check_pixels(stream, start, read_syntax(dataset), shape[0] * shape[1] * int(dataset.BitsAllocated) // 8, 1)
            facts = {
                "modality": str(dataset.Modality),
                "patient": str(dataset.get("PatientID") or ""),
                "image_type": "\\".join(map(str, np.atleast_1d(dataset.get("ImageType") or ""))),
                "series": str(dataset.get("SeriesInstanceUID") or ""),
            }
    except (BadScanError, ImportError):
        raise
    except SliceError as error:
        raise BadScanError(scan, error.reason, error.detail) from error
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise _unreadable(scan, error) from error
    header = flat_header(shape, spacing, **facts)
    check_geometry(scan, header)
    return header, lambda: _read(scan)


def _check(scan: str, dataset: Any) -> tuple[tuple[int, int], tuple[float, float]]:
    """Refuse what is no radiograph, or not one for viewing; give columns and rows, and their distances in mm."""
    modality = str(dataset.get("Modality") or "")
    if modality not in RADIOGRAPHS or "Rows" not in dataset:
        found = f"the modality {modality or '(none)'}" + ("" if "Rows" in dataset else " without pixels")
        detail = f"expected a radiograph ({' or '.join(RADIOGRAPHS)}) in a single file, found {found}"
        raise BadScanError(scan, "other modality", f"{detail}; for other DICOM series give the folder, not a file")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadScanError(scan, "multi-frame", f"expected one frame, found {frames}")
    samples, kind = int(dataset.get("SamplesPerPixel") or 1), str(dataset.get("PhotometricInterpretation") or "none")
    if samples != 1 or kind not in _GRAY:
        detail = f"expected one gray value a pixel ({' or '.join(_GRAY)}), found {samples} of {kind}"
        raise BadScanError(scan, "colour", detail)
    lut_shape = str(dataset.get("PresentationLUTShape") or "")
    if kind not in _SHAPES.get(lut_shape, ()):
        detail = f"expected one statement of what is bright, found {kind} with the presentation LUT {lut_shape}"
        raise BadScanError(scan, "contradiction", detail)
    intent = str(dataset.get("PresentationIntentType") or "").upper()
    if intent == "FOR PROCESSING" or str(dataset.get("SOPClassUID")) in _FOR_PROCESSING:
        detail = "expected an image FOR PRESENTATION, found raw values of the detector, FOR PROCESSING"
        raise BadScanError(scan, "raw detector values", detail)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    high, sign = int(dataset.get("HighBit", stored - 1)), int(dataset.get("PixelRepresentation") or 0)
    if allocated not in (8, 16) or not 1 < stored == high + 1 <= allocated or sign not in (0, 1):
        found = f"{allocated} allocated, {stored} stored up to bit {high}, representation {sign}"
        raise BadScanError(scan, "bad header", f"expected 8 or 16 bits, the lower ones stored, found {found}")
    columns, rows = int(dataset.get("Columns") or 0), int(dataset.Rows or 0)
    if not 0 < columns * rows <= MOST_PIXELS:
        raise BadScanError(scan, "bad header", f"expected up to {MOST_PIXELS:,} pixels, found {columns} x {rows}")
    given = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or (1.0, 1.0)
    return (columns, rows), (float(given[1]), float(given[0]))  # DICOM names the distance of the rows first


def _check_scaling(scan: str, dataset: Any) -> None:
    """Refuse scaling and windowing that say half, and what cannot be applied, before the pixels are read."""
    import pydicom

    try:
        import pydicom.pixels
    except ImportError as error:
        message = f"{scan}: expected pydicom 3 or later to read a radiograph, found {pydicom.__version__}"
        raise ImportError(message) from error
    slope = dataset.get("RescaleSlope")
    if slope is not None and not float(slope) > 0:
        raise BadScanError(scan, "bad scaling", f"expected a rescale slope above 0, found {slope}")
    read_rescale(dataset)
    window = [dataset.get(name) for name in ("WindowCenter", "WindowWidth")]
    if window.count(None) == 1 and not dataset.get("VOILUTSequence"):
        found = " and ".join("none" if each is None else str(each) for each in window)
        raise BadScanError(scan, "bad scaling", f"expected a window's center and width, found {found}")
    state_syntax(dataset)
    try:
        shares = _shares(np.zeros((1, 1), np.int32), dataset)
    except SliceError:
        raise
    except Exception as error:  # pydicom raises many kinds
        detail = f"expected a scaling and a window that can be applied, found {root_cause_message(error)}"
        raise BadScanError(scan, "bad scaling", detail) from error
    if not np.isfinite(shares).all():
        raise BadScanError(scan, "bad scaling", "expected finite values after scaling and windowing, found others")


def _read(scan: str) -> NDArray:
    """Read the pixels as shares of full scale, (columns, rows, 1)."""
    import pydicom

    try:
        with mapped_file(scan) as (_, content), WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset: Any = pydicom.dcmread(content, force=True)
            shares = _shares(stored_pixels(dataset), dataset)
    except Exception as error:
        raise _unreadable(scan, error) from error
    return np.ascontiguousarray(shares.T)[..., None]


def _shares(stored: NDArray, dataset: Any) -> NDArray[np.float32]:
    """Scale and window stored values, (rows, columns), as the file says, and turn them to shares of full scale."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    low, high = _full_scale(dataset)
    scaled = np.asarray(apply_modality_lut(stored, dataset))
    if dataset.get("VOILUTSequence"):
        scaled = _within_lut(scaled, dataset.VOILUTSequence[0])
    shown = np.asarray(apply_voi_lut(scaled, dataset), np.float64)
    shares = ((shown - low) / (high - low)).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    ends = padding_ends(dataset, bool(dataset.get("PixelRepresentation")), int(dataset.BitsAllocated))
    if ends is not None:  # not a part of the image, whatever the window makes of it
        shares[(stored >= ends[0]) & (stored <= ends[1])] = 0.0
    return shares.astype(np.float32)


def _within_lut(values: NDArray, lut: Any) -> NDArray[np.int32]:
    """Bring values into a VOI LUT's range, beyond which its ends count, and have pydicom look it up in 16 bits.

    pydicom 3.0 counts the entries in the type of what they hold: of a table of 4,096 entries of 8 bits it would take
    the wrong ones.
    """
    entries, first, _ = (int(number) for number in lut.LUTDescriptor)
    lut.LUTDescriptor = [entries, first, 16]
    return np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int32)


def _full_scale(dataset: Any) -> tuple[float, float]:
    """Give the lowest and highest value that may come out of scaling and windowing."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if dataset.get("VOILUTSequence"):
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        ends = np.asarray(apply_voi_lut(np.array([[-_BEYOND, _BEYOND]]), dataset), np.float64)
        return float(ends.min()), float(ends.max())
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.get("BitsStored") or dataset.BitsAllocated), bool(dataset.get("PixelRepresentation"))
    ends = np.array([[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]])
    scaled = np.asarray(apply_modality_lut(ends, dataset), np.float64)
    return float(scaled.min()), float(scaled.max())


def _unreadable(scan: str, error: Exception) -> BadScanError:
    return BadScanError(scan, "unreadable", f"expected a whole radiograph in DICOM, found {root_cause_message(error)}")
