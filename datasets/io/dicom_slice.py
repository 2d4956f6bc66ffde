# SPDX-License-Identifier: Apache-2.0
"""One DICOM image file: what its header says, whether it can be true, and its voxels."""

from __future__ import annotations

import io
import math
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .scan_geometry import root_cause_message

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, the table of contents of a medium."""

IMAGE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2", "4", "128", "7", "20", "1"))
"""SOP classes of CT, MR, PET, secondary captures, nuclear medicine and radiographs, with their enhanced kin: a file of
theirs without pixels is a broken one. Other objects may have none."""

NOT_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "DOC", "REG", "FID")
"""Modalities of what is derived from scans and stored next to them."""

LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

PIXEL_TAG = 0x7FE00010
"""Of whole numbers; those of floats have other tags and are not read here."""

UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

MOST_PIXELS = 2**26
"""Pixels of a compressed frame up to which its header is believed; no scanner makes more."""

KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "AcquisitionNumber", "InstanceNumber", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "PhotometricInterpretation",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


HEADER_BYTES = 2**14
"""Read at once; the header of most images is shorter."""

WARNINGS = threading.Lock()


class SliceError(ValueError):
    """A fault of one file; the series that it belongs to says which.

    Args:
        reason: short reason.
        detail: what was expected and what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class DicomSlice:
    """One slice: a file, or one frame of a file.

    Attributes:
        file: path of the file.
        reason: short reason why it cannot be used; ``""`` for a good one.
        detail: what was expected and what was found.
        series: identifier of the series, as are the following of theirs.
        instance: of the image.
        patient: of the patient.
        study: of the study.
        space: of the frame of reference.
        modality: DICOM modality.
        image_type: DICOM image type, joined by backslashes.
        shape: columns and rows.
        position: mm, LPS, of the first pixel's middle.
        row: direction in which the columns count.
        column: direction in which the rows count.
        spacing: mm between columns and between rows.
        thickness: mm of the slice, or between slices; ``None`` where it is not said.
        frame: number in a file of several frames, counted from 0; ``None`` for a file of one.
        rescale: slope and intercept; ``None`` where there are none.
        padding: first and last stored value that mean "outside"; ``None`` where there is none.
        stored: bits allocated, stored, highest bit, and whether signed.
        syntax: identifier of the transfer syntax.
        start: where the pixels begin in the file.
    """

    file: str
    reason: str = ""
    detail: str = ""
    series: str = ""
    instance: str = ""
    patient: str = ""
    study: str = ""
    space: str = ""
    modality: str = ""
    image_type: str = ""
    shape: tuple[int, int] = (0, 0)
    position: tuple[float, ...] = ()
    row: tuple[float, ...] = ()
    column: tuple[float, ...] = ()
    spacing: tuple[float, float] = (0.0, 0.0)
    thickness: float | None = None
    frame: int | None = None
    rescale: tuple[float, float] | None = None
    padding: tuple[int, int] | None = None
    stored: tuple[int, int, int, bool] = (16, 16, 15, False)
    syntax: str = ""
    start: int = 0

    @property
    def localizer(self) -> bool:
        """Whether the scanner calls it a localizer."""
        return "LOCALIZER" in self.image_type.upper().split("\\")


def read_slices(file: str) -> list[DicomSlice] | None:
    """Read the header of a DICOM file.

    Args:
        file: path of the file, which is a regular one.

    Returns:
        Its slice, or one for each of its frames; one with a ``reason`` where the file is an image that cannot be used;
        ``None`` where it is DICOM but no image of a scan, such as a DICOMDIR or a segmentation.

    Raises:
        SliceError: When the file cannot be read as DICOM at all.
    """
    try:
        with io.BufferedReader(io.FileIO(file), HEADER_BYTES) as stream:
            stream.peek(1)  # other threads may wait for their files at the same time, but not below
            # the filters of warnings belong to the whole process: threads must not mix them up
            with WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _read(file, stream)
    except Exception as error:
        raise SliceError("unreadable", f"expected a DICOM file, found {root_cause_message(error)}") from error


def _read(file: str, stream: BinaryIO) -> list[DicomSlice] | None:
    """Read the header of an open file, see :func:`read_slices`."""
    import pydicom

    dataset: Any = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(KEYWORDS), force=True)
    start = stream.tell()
    meta = getattr(dataset, "file_meta", {})
    known = str(meta.get("MediaStorageSOPClassUID", "")) or _text(dataset, "SOPClassUID")
    if known == DIRECTORY_CLASS or _text(dataset, "Modality") in NOT_SCANS:
        return None
    if not known and "Rows" not in dataset:
        raise ValueError("no SOP class and no image")
    base = DicomSlice(
        file,
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        space=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        image_type=_text(dataset, "ImageType"),
    )
    if "Rows" not in dataset and not _image_class(known):
        return None  # a report, a plan: DICOM without pixels
    try:
        return _describe(base, dataset, stream, start)
    except SliceError as error:
        return [replace(base, reason=error.reason, detail=error.detail)]


def _image_class(known: str) -> bool:
    """Say whether a SOP class is one of images, or the beginning of one that was cut off."""
    return any(known == kind or known.startswith(f"{kind}.") or kind.startswith(known) for kind in IMAGE_CLASSES)


def _text(dataset: Any, keyword: str) -> str:
    """Read a text, its parts joined by backslashes; ``""`` where it is missing or broken."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    parts = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    return "\\".join(str(part) for part in parts).strip().strip("\0")


def _numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Read finite numbers; ``None`` where they are missing.

    Raises:
        SliceError: When they are broken or not so many.
    """
    try:
        value = dataset.get(keyword)
        if value is None or str(value).strip() in ("", "[]"):
            return None
        parts = [value] if count == 1 else list(value)
        numbers = tuple(float(part) for part in parts)
    except Exception as error:
        raise SliceError(
            "bad header", f"expected {count} numbers as {keyword}, found {root_cause_message(error)}"
        ) from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise SliceError("bad header", f"expected {count} finite numbers as {keyword}, found {numbers[:8]}")
    return numbers


def _whole(dataset: Any, keyword: str, default: int | None = None) -> int:
    found = _numbers(dataset, keyword, 1)
    if found is None and default is not None:
        return default
    if found is None or not found[0].is_integer():
        raise SliceError(
            "bad header", f"expected a whole number as {keyword}, found {None if found is None else found[0]}"
        )
    return int(found[0])


def _describe(base: DicomSlice, dataset: Any, stream: BinaryIO, start: int) -> list[DicomSlice]:
    """Check one image and read what its slices have in common."""
    samples, allocated = _whole(dataset, "SamplesPerPixel", 1), _whole(dataset, "BitsAllocated")
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    stored = _whole(dataset, "BitsStored", allocated)
    high, sign = _whole(dataset, "HighBit", stored - 1), _whole(dataset, "PixelRepresentation", 0)
    frames = _whole(dataset, "NumberOfFrames", 1)
    if samples != 1:
        raise SliceError("not one value a voxel", f"expected 1 sample a pixel, found {samples}")
    if allocated not in (8, 16, 32) or not 0 < stored <= high + 1 <= allocated or sign not in (0, 1):
        found = f"{allocated} bits allocated, {stored} stored up to bit {high}, representation {sign}"
        raise SliceError("bad header", f"expected pixels of 8, 16 or 32 bits, found {found}")
    if min(rows, columns, frames) < 1:
        raise SliceError("bad header", f"expected rows, columns and frames, found {rows}, {columns}, {frames}")
    kind = _text(dataset, "PhotometricInterpretation")
    if kind != "MONOCHROME2":
        detail = f"expected MONOCHROME2, in which more is brighter, found {kind or 'none'}"
        raise SliceError("other photometric interpretation", detail)
    if "ModalityLUTSequence" in dataset:
        raise SliceError("bad scaling", "expected a rescale slope and intercept, found a table of values")
    syntax = read_syntax(dataset)
    pixels = check_pixels(stream, start, syntax, rows * columns * allocated // 8, frames)
    described = replace(
        base,
        shape=(columns, rows),
        stored=(allocated, stored, high, bool(sign)),
        syntax=syntax,
        start=pixels,
        padding=padding_ends(dataset, bool(sign), allocated),
    )
    if frames > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
        return _frames(described, dataset, frames)
    return [_place(described, dataset, dataset, dataset, dataset)]


def read_syntax(dataset: Any) -> str:
    """Read the transfer syntax of a file's pixels, that of DICOM's default where the file states none.

    Args:
        dataset: header of the image.

    Raises:
        SliceError: When the whole file is deflated.
    """
    syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "") or LITTLE_ENDIAN[0])
    if syntax == DEFLATED:
        raise SliceError("unreadable", "expected pixels that are not deflated as a whole file, found such")
    return syntax


def check_pixels(stream: BinaryIO, start: int, syntax: str, frame_bytes: int, frames: int) -> int:
    """Compare the pixels in a file with what its header claims.

    Args:
        stream: the file.
        start: where the header ends.
        syntax: identifier of the transfer syntax.
        frame_bytes: of each frame, decoded.
        frames: how many.

    Returns:
        The place where the pixels begin.

    Raises:
        SliceError: When there are none, too few, or more than one frame's.
    """
    size = os.fstat(stream.fileno()).st_size
    stream.seek(start)
    head = stream.read(12)
    order: Any = "big" if syntax == BIG_ENDIAN else "little"
    if len(head) < 8 or (int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)) != PIXEL_TAG:
        raise SliceError("no pixels", "expected pixel data, found none")
    explicit = head[4:6].isalpha() and syntax != LITTLE_ENDIAN[0]
    wide = explicit and head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN")
    length = int.from_bytes(head[8:12] if wide else head[6:8] if explicit else head[4:8], order)
    begin = start + (12 if wide else 8)
    needed = frame_bytes * frames
    if length == UNDEFINED_LENGTH:
        found = _fragments(stream, begin, size)
        if frame_bytes > 4 * MOST_PIXELS or frames > found:
            raise SliceError(
                "too short", f"expected {frames} frames of {frame_bytes:,} bytes, found {found:,} compressed"
            )
        return begin
    if syntax not in (*LITTLE_ENDIAN, BIG_ENDIAN):
        raise SliceError("unreadable", f"expected compressed fragments for {syntax}, found a plain length {length:,}")
    found = min(length, max(size - begin, 0))
    if found < needed:
        raise SliceError("too short", f"expected {needed:,} bytes of pixels, found {found:,}")
    if length >= 2 * needed:
        raise SliceError("bad header", f"expected {needed:,} bytes of pixels, found {length:,}: more than one frame")
    return begin


def _fragments(stream: BinaryIO, begin: int, size: int) -> int:
    """Walk over the fragments of compressed pixels, which must end before the file does; count their bytes."""
    place = begin
    found = 0
    while place + 8 <= size:
        stream.seek(place)
        head = stream.read(8)
        if head[:4] == SEQUENCE_END:
            return found
        length = int.from_bytes(head[4:], "little")
        if head[:4] != ITEM or length == UNDEFINED_LENGTH:
            break
        found += length
        place += 8 + length
    raise SliceError("too short", f"expected compressed pixels to their end, found {found:,} bytes and no end")


def padding_ends(dataset: Any, signed: bool, allocated: int) -> tuple[int, int] | None:
    """Read the stored values that mean "outside".

    Args:
        dataset: header of the image.
        signed: whether the pixels are.
        allocated: bits of a pixel.

    Returns:
        The first and the last such value, in the sign of the pixels; ``None`` where there is none.
    """
    first, last = _numbers(dataset, "PixelPaddingValue", 1), _numbers(dataset, "PixelPaddingRangeLimit", 1)
    if first is None:
        return None
    ends = sorted((int(first[0]), int(first[0] if last is None else last[0])))
    turn, half = 2**allocated, 2 ** (allocated - 1)
    if signed:
        ends = sorted(end - turn if end >= half else end for end in ends)
    else:
        ends = sorted(end + turn if end < 0 else end for end in ends)
    return ends[0], ends[1]


def _place(base: DicomSlice, plane: Any, orientation: Any, measures: Any, values: Any) -> DicomSlice:
    """Read where a slice is and how its values are scaled."""
    position = _numbers(plane, "ImagePositionPatient", 3)
    directions = _numbers(orientation, "ImageOrientationPatient", 6)
    spacing = _numbers(measures, "PixelSpacing", 2)
    for name, found in (
        ("ImagePositionPatient", position),
        ("ImageOrientationPatient", directions),
        ("PixelSpacing", spacing),
    ):
        if found is None:
            raise SliceError("no position", f"expected {name}, found none: nothing says where its voxels are")
    assert position is not None and directions is not None and spacing is not None
    if min(spacing) <= 0:
        raise SliceError(
            "bad spacing", f"expected finite spacings above zero, found {spacing[0]:g} x {spacing[1]:g} mm"
        )
    row, column = np.array(directions[:3]), np.array(directions[3:])
    lengths = (float(np.linalg.norm(row)), float(np.linalg.norm(column)))
    if max(abs(length - 1) for length in lengths) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise SliceError("bad affine", f"expected two directions of length 1 at right angles, found {directions}")
    return replace(
        base,
        position=position,
        row=directions[:3],
        column=directions[3:],
        spacing=(spacing[1], spacing[0]),  # DICOM names the distance of the rows first
        thickness=next(filter(None, _thicknesses(measures)), None),
        rescale=read_rescale(values),
    )


def _thicknesses(measures: Any) -> Sequence[float | None]:
    """Read the distance between slices, else their thickness; either may be negative in broken files."""
    found = [_numbers(measures, name, 1) for name in ("SpacingBetweenSlices", "SliceThickness")]
    return [None if each is None else abs(each[0]) for each in found]


def read_rescale(values: Any) -> tuple[float, float] | None:
    """Read how stored values are rescaled.

    Args:
        values: header of the image, or the functional group that has it.

    Returns:
        Slope, which is not 0, and intercept; ``None`` where there are none.

    Raises:
        SliceError: When they are broken, empty (stored values may have an offset then that is lost), or only one is
            there.
    """
    slope, intercept = _numbers(values, "RescaleSlope", 1), _numbers(values, "RescaleIntercept", 1)
    if slope is None and intercept is None:
        if "RescaleSlope" in values or "RescaleIntercept" in values:
            raise SliceError("bad scaling", "expected a slope and an intercept, found empty ones")
        return None
    if slope is None or intercept is None or slope[0] == 0:
        found = " and ".join("none" if each is None else f"{each[0]:g}" for each in (slope, intercept))
        raise SliceError("bad scaling", f"expected a slope and an intercept, found {found}")
    return slope[0], intercept[0]


def _frames(base: DicomSlice, dataset: Any, frames: int) -> list[DicomSlice]:
    """Read the functional groups of a file of several frames: one for each, or one that all share."""
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    if len(groups) != frames:
        detail = f"expected functional groups that say where each of {frames} frames is, found {len(groups)}"
        raise SliceError("multi-frame", detail)

    def group(each: Any, name: str) -> Any:
        for place in (each, *shared[:1]):
            if place.get(name):
                return place[name][0]
        return {}

    slices = []
    for number, each in enumerate(groups):
        place = _place(
            base,
            plane=group(each, "PlanePositionSequence"),
            orientation=group(each, "PlaneOrientationSequence"),
            measures=group(each, "PixelMeasuresSequence"),
            values=group(each, "PixelValueTransformationSequence"),
        )
        slices.append(replace(place, frame=number))
    return slices


def read_voxels(slices: Sequence[DicomSlice]) -> Iterator[NDArray]:
    """Read the slices of one file, one after the other.

    Args:
        slices: the slices, all of one file.

    Yields:
        (columns, rows) of rescaled values, whole numbers where slope and intercept are whole.

    Raises:
        SliceError: When the pixels cannot be decoded.
    """
    first = slices[0]
    plain = first.syntax in (*LITTLE_ENDIAN, BIG_ENDIAN)
    try:
        frames = _plain_frames(first, slices) if plain else _decoded_frames(first, slices)
        for frame, each in zip(frames, slices, strict=True):
            yield _rescaled(frame, each)
    except Exception as error:
        raise SliceError("unreadable", f"expected pixels, found {root_cause_message(error)}") from error


def _plain_frames(first: DicomSlice, slices: Sequence[DicomSlice]) -> Iterator[NDArray]:
    """Read stored values, (columns, rows), without the bits beyond those that are stored."""
    allocated, stored, high, signed = first.stored
    dtype = np.dtype(f"u{allocated // 8}").newbyteorder(">" if first.syntax == BIG_ENDIAN else "<")
    count = math.prod(first.shape)
    with open(first.file, "rb") as stream:
        for each in slices:
            stream.seek(first.start + (each.frame or 0) * count * dtype.itemsize)
            bits = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count).astype(np.int64)
            bits = bits >> (high + 1 - stored) & (2**stored - 1)
            if signed:
                bits = np.where(bits >= 2 ** (stored - 1), bits - 2**stored, bits)
            yield bits.reshape(first.shape[::-1]).T


def _decoded_frames(first: DicomSlice, slices: Sequence[DicomSlice]) -> Iterator[NDArray]:
    """Decompress stored values with ITK's GDCM, and take back the scaling that it applies."""
    import itk

    io = itk.GDCMImageIO.New()
    io.SetFileName(first.file)
    io.ReadImageInformation()
    slope, intercept = float(io.GetRescaleSlope()), float(io.GetRescaleIntercept())
    values = np.asarray(itk.array_from_image(itk.imread(first.file, imageio=io)))
    values = values.reshape(-1, *values.shape[-2:])
    count = max((each.frame or 0) for each in slices) + 1
    if values.shape[1:] != first.shape[::-1] or len(values) < count:
        raise ValueError(f"{values.shape} pixels")
    for each in slices:
        yield np.rint((values[each.frame or 0].T.astype(np.float64) - intercept) / slope).astype(np.int64)


def state_syntax(dataset: Any) -> None:
    """Add the transfer syntax that counts where a file states none, without which pydicom decodes nothing.

    Args:
        dataset: header or whole file as pydicom read it.
    """
    if not getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"):
        from pydicom.uid import ImplicitVRLittleEndian

        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def stored_pixels(dataset: Any) -> NDArray[np.int32]:
    """Read the stored values of a file of one frame, by pydicom, or by ITK's GDCM where pydicom lacks the decoder.

    Args:
        dataset: the whole file as pydicom read it.

    Returns:
        (rows, columns), without the bits beyond those that are stored.
    """
    from pydicom.pixels import get_decoder

    state_syntax(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        values = _decoded_as_they_are(dataset)
    else:
        values = np.asarray(dataset.pixel_array)
    stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    bits = values.astype(np.int32) & (2**stored - 1)
    signed = bool(dataset.get("PixelRepresentation"))
    return np.where(bits >= 2 ** (stored - 1), bits - 2**stored, bits).astype(np.int32) if signed else bits


def _decoded_as_they_are(dataset: Any) -> NDArray:
    """Decompress a file's one frame by GDCM; as MONOCHROME2, since ITK turns the values of MONOCHROME1 around."""
    kind = dataset.PhotometricInterpretation
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "image.dcm")
        dataset.PhotometricInterpretation = "MONOCHROME2"
        try:
            dataset.save_as(path)
        finally:
            dataset.PhotometricInterpretation = kind
        each = DicomSlice(path, shape=(int(dataset.Columns), int(dataset.Rows)))
        return next(_decoded_frames(each, [each])).T


def _rescaled(frame: NDArray, each: DicomSlice) -> NDArray:
    slope, intercept = each.rescale or (1.0, 0.0)
    if float(slope).is_integer() and float(intercept).is_integer() and abs(slope) < 2**31 and abs(intercept) < 2**31:
        values = frame * int(slope) + int(intercept)
        ends = (int(values.min()), int(values.max()))
        fits = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= ends[0] <= ends[1] <= np.iinfo(kind).max)
        return values.astype(next(fits, np.int64))
    return (frame * slope + intercept).astype(np.float32)


def padded(frame: NDArray, each: DicomSlice) -> NDArray[np.bool_] | None:
    """Mark the voxels of a rescaled slice that lie outside of what was scanned.

    Args:
        frame: (columns, rows), rescaled.
        each: the slice.

    Returns:
        Where there is padding; ``None`` where the slice has none.
    """
    if each.padding is None:
        return None
    slope, intercept = each.rescale or (1.0, 0.0)
    stored = np.rint((frame.astype(np.float64) - intercept) / slope)
    found: NDArray[np.bool_] = (stored >= each.padding[0]) & (stored <= each.padding[1])
    return found if found.any() else None


def is_dicom(path: Path) -> bool:
    """Say whether a regular file is, or is called as, DICOM."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
