# SPDX-License-Identifier: Apache-2.0
"""The DICOM series of a folder: which files belong together, whether they make a regular grid, and their voxels."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .dicom_slice import DicomSlice, SliceError, is_dicom, padded, read_slices, read_voxels
from .scan_geometry import (
    LPS_TO_RAS,
    SCAN_SUFFIXES,
    SERIES_SEPARATOR,
    TOLERANCE,
    BadScanError,
    ScanHeader,
    check_geometry,
    split_series,
)

logger = logging.getLogger(__name__)

AIR_HU = -1000.0
"""What lies outside of what was scanned is air, as far as any network is concerned."""

UNNAMED = "unnamed"
"""Name of a series whose files have no identifier."""

ROUNDING_MM = 0.06
"""How far the writing of positions with one decimal may put a slice off its place."""

Folder = tuple[tuple[str, int, int], ...]
"""Name, size and time of each file."""

_LOOKING = tuple(threading.Lock() for _ in range(64))
"""Each is held by who looks through one of the folders that are its own."""


class FoundSeries:
    """The series of one folder.

    Args:
        folder: the folder.
        files: its regular files.
    """

    def __init__(self, folder: str, files: Folder) -> None:
        self.series: dict[str, list[DicomSlice]] = {}
        self.strays: list[DicomSlice] = []
        names, unread = [], []
        for name, _, _ in files:
            path = Path(folder) / name
            if name.lower().endswith(SCAN_SUFFIXES) or name.upper() == "DICOMDIR":
                continue
            try:
                found = read_slices(str(path)) if is_dicom(path) else None
            except SliceError as error:
                self.strays.append(DicomSlice(str(path), error.reason, error.detail))
                continue
            if found is None:
                unread.append(name)
                continue
            names.append(name)
            for each in found:
                if each.reason and not each.series:  # cut off before it says whose it is
                    self.strays.append(each)
                else:
                    self.series.setdefault(each.series or UNNAMED, []).append(each)
        # a file called as the slices are, but for its number, may be one of them that was damaged
        patterns = {_pattern(name) for name in names}
        for name in unread:
            path = Path(folder) / name
            if _pattern(name) in patterns and not is_dicom(path):
                detail = "expected a DICOM file, as those called alike are, found another"
                self.strays.append(DicomSlice(str(path), "unreadable", detail))
        for name, slices in self.series.items():
            self.series[name] = _in_order(slices)


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _in_order(slices: list[DicomSlice]) -> list[DicomSlice]:
    """Sort slices along their normal; those without a place, which make the series a bad one, by their names."""
    placed = [each for each in slices if not each.reason]
    if not placed:
        return sorted(slices, key=lambda each: each.file)
    normal = np.cross(placed[0].row, placed[0].column)
    return sorted(placed, key=lambda each: (float(np.dot(each.position, normal)), each.file)) + [
        each for each in slices if each.reason
    ]


def regular_files(folder: str) -> Folder:
    """List the files of a folder that may be slices, in order of their names; hidden ones are left out.

    Args:
        folder: the folder; subfolders are not looked at.
    """
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                state = entry.stat()
            except OSError:
                continue
            if stat.S_ISREG(state.st_mode) and not entry.name.startswith("."):
                files.append((entry.name, state.st_size, state.st_mtime_ns))
    return tuple(sorted(files))


def find_series(folder: str) -> FoundSeries:
    """Look through a folder for DICOM series; what was found is remembered until a file changes.

    Args:
        folder: the folder; subfolders are not looked at.
    """
    with _LOOKING[hash(folder) % len(_LOOKING)]:  # several threads may want series of one folder
        return _find_series(str(folder), regular_files(folder))


@lru_cache(maxsize=32)
def _find_series(folder: str, files: Folder) -> FoundSeries:
    return FoundSeries(folder, files)


def list_series(folder: str) -> dict[str, list[str]]:
    """List the DICOM series in a folder.

    Args:
        folder: folder with DICOM files; subfolders are not looked at.

    Returns:
        Files of each series in the order of their slices, by the series' DICOM identifier; empty where the folder holds
        no DICOM image. A series may be listed and yet be broken, which reading it says.
    """
    found = find_series(folder).series
    return {name: list(dict.fromkeys(each.file for each in slices)) for name, slices in sorted(found.items())}


def series_name(found: Iterable[str], wanted: str) -> str | None:
    """Find the series that a name means.

    Identifiers often begin alike (``1.2.3.1`` and ``1.2.3.12``), so only the whole one counts.

    Args:
        found: the identifiers of a folder.
        wanted: the identifier; ``""`` for the only one.

    Returns:
        The identifier, ``None`` where there is none, or several and no name.

    Example:
        >>> series_name(["1.2.1", "1.2.12"], "1.2.12"), series_name(["1.2.1"], "1.2.12"), series_name(["1.2"], "")
        ('1.2.12', None, '1.2')
    """
    names = list(found)
    if not wanted:
        return names[0] if len(names) == 1 else None
    return wanted if wanted in names else None


def chosen_slices(scan: str) -> list[DicomSlice]:
    """Give the slices of the series that a scan's name means, in order.

    Args:
        scan: folder, or ``folder::series``.

    Returns:
        The slices, checked to make one regular grid.

    Raises:
        BadScanError: When there is no such series, or several and none is named, or it is broken.
    """
    folder, wanted = split_series(scan)
    found = find_series(folder)
    name = series_name(found.series, wanted)
    if name is None:
        expected = f"the DICOM series {wanted}" if wanted else f"one DICOM series, or a name behind {SERIES_SEPARATOR}"
        names = list(found.series)
        if not names and found.strays:
            raise _bad_slice(scan, found.strays[0])
        raise BadScanError(scan, "series missing", f"expected {expected}, found {len(names)} series: {names[:3]}")
    slices = _without_localizers(scan, found.series[name])
    # a file that cannot be read may be a slice of any series here
    for each in (*slices, *found.strays):
        if each.reason:
            raise _bad_slice(scan, each)
    _check_alike(scan, slices)
    return slices


def _bad_slice(scan: str, each: DicomSlice) -> BadScanError:
    return BadScanError(scan, each.reason, f"{Path(each.file).name}: {each.detail}")


def _without_localizers(scan: str, slices: list[DicomSlice]) -> list[DicomSlice]:
    """Leave out the localizers that some scanners put into the series of the slices, and say so."""
    kept = [each for each in slices if not each.localizer]
    if not kept or len(kept) == len(slices):
        return slices
    names = [Path(each.file).name for each in slices if each.localizer]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    logger.warning("%s: %d localizers in the series are left out: %s", scan, len(names), shown)
    return kept


def _check_alike(scan: str, slices: list[DicomSlice]) -> None:
    """Refuse a series whose slices are not of one volume. Description, date and thickness may differ."""
    shared: dict[str, list[object]] = {
        "patient": [each.patient for each in slices],
        "study": [each.study for each in slices],
        "frame of reference": [each.space for each in slices],
        "number of columns and rows": [each.shape for each in slices],
        "modality": [each.modality for each in slices],
    }
    for what, found_values in shared.items():
        values = Counter(found_values)
        if len(values) > 1:
            found = ", ".join(f"{number} of {value}" for value, number in values.most_common(3))
            raise BadScanError(scan, "mixed slices", f"expected one {what} in the series, found {found}")
    first = slices[0]
    for each in slices:
        turned = np.abs(np.subtract([*each.row, *each.column], [*first.row, *first.column])).max()
        scaled = np.abs(np.subtract(each.spacing, first.spacing)).max()
        extent = max(first.shape) * max(first.spacing)
        limit = TOLERANCE * min(first.spacing)
        if turned * extent > limit or scaled * max(first.shape) > limit:
            names = f"{Path(first.file).name} and {Path(each.file).name}"
            found = f"{first.row + first.column + first.spacing} and {each.row + each.column + each.spacing}"
            detail = f"expected one orientation and pixel spacing in the series, found {found} in {names}"
            raise BadScanError(scan, "mixed slices", detail)


def open_series(scan: str) -> tuple[ScanHeader, Callable[[], NDArray]]:
    """Read and check the headers of a series.

    Args:
        scan: folder, or ``folder::series``.

    Returns:
        The header, and a function that reads the voxels, (columns, rows, slices).

    Raises:
        BadScanError: When there is no such series, or it does not make a regular grid at right angles.
    """
    slices = chosen_slices(scan)
    first = slices[0]
    origin, step = _line(scan, slices)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.row, first.spacing[0])
    affine[:3, 1] = np.multiply(first.column, first.spacing[1])
    affine[:3, 2] = step
    affine[:3, 3] = origin
    affine = np.asarray(LPS_TO_RAS @ affine, np.float64)
    header = ScanHeader(
        shape=(*first.shape, len(slices)),
        spacing=(*first.spacing, float(np.linalg.norm(step))),
        affine=affine,
        modality=first.modality,
        patient=first.patient,
        image_type=first.image_type,
        series=first.series,
        slices=tuple(each.instance for each in slices),
    )
    check_geometry(scan, header)
    return header, lambda: load_slices(scan, slices)


def _line(scan: str, slices: list[DicomSlice]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the first slice's place and the way from one to the next, mm, LPS.

    Slices that are not evenly placed along one line, and along their normal, are refused.
    """
    first = slices[0]
    normal = np.cross(first.row, first.column)
    normal = normal / np.linalg.norm(normal)
    if len(slices) == 1:
        if first.thickness is None:
            detail = "expected a slice thickness of the only slice, found none"
            raise BadScanError(scan, "bad spacing", detail)
        return np.array(first.position), np.asarray(normal * first.thickness)
    positions = np.array([each.position for each in slices])
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    found = f"found {gaps.min():g} to {gaps.max():g} mm"
    if gaps.min() < max(0.01, 0.01 * typical):
        place = int(gaps.argmin())
        names = " and ".join(Path(each.file).name for each in slices[place : place + 2])
        raise BadScanError(scan, "repeated slices", f"expected one slice a position, {found} between {names}")
    if gaps.max() > 1.5 * typical:
        raise BadScanError(scan, "missing slices", f"expected even slice distances, {found}")
    numbers = np.arange(len(slices)) - (len(slices) - 1) / 2
    # the line that fits best, so that no slice is further off than the rounding of its own position
    step = numbers @ positions / (numbers @ numbers)
    line = positions.mean(0) + numbers[:, None] * step
    off = float(np.linalg.norm(positions - line, axis=1).max())
    if off > max(TOLERANCE * min(*first.spacing, typical), ROUNDING_MM):
        detail = f"expected slices evenly placed on a line, {found}, and slices up to {off:.3g} mm off their place"
        raise BadScanError(scan, "uneven slices", detail)
    way = positions[-1] - positions[0]
    drift = float(np.linalg.norm(way - way @ normal * normal))
    if drift > max(TOLERANCE * min(first.spacing), ROUNDING_MM):
        angle = np.degrees(np.arctan2(drift, float(gaps.sum())))
        detail = (
            f"expected slices above each other, found the last {drift:.3g} mm off the first, {angle:.2g} degrees of"
            " gantry tilt: resample it to a grid at right angles first, which dcm2niix does"
        )
        raise BadScanError(scan, "tilted gantry", detail)
    return line[0], np.asarray(step)


def load_slices(scan: str, slices: list[DicomSlice]) -> NDArray:
    """Read slices in their order.

    Args:
        scan: the scan, for messages.
        slices: slices of one series, or some of them.

    Returns:
        (columns, rows, slices), rescaled; padding is air in a CT, and the least value in other modalities.

    Raises:
        BadScanError: When the pixels of a slice cannot be read.
    """
    by_file: dict[str, list[int]] = {}
    for number, each in enumerate(slices):
        by_file.setdefault(each.file, []).append(number)
    planes: dict[int, NDArray] = {}
    for numbers in by_file.values():
        try:
            planes.update(zip(numbers, read_voxels([slices[number] for number in numbers]), strict=True))
        except SliceError as error:
            raise BadScanError(scan, error.reason, f"{Path(slices[numbers[0]].file).name}: {error.detail}") from error
    dtype = np.result_type(*(plane.dtype for plane in planes.values()))
    columns, rows = slices[0].shape
    # slice by slice as in the files, and seen as (columns, rows, slices)
    volume = np.empty((len(slices), rows, columns), dtype).T
    for number in range(len(slices)):
        volume[..., number] = planes.pop(number)
    return _fill_padding(volume, slices)


def _fill_padding(volume: NDArray, slices: list[DicomSlice]) -> NDArray:
    """Write air, or the least value that is not padding, where nothing was scanned."""
    marked = {number: padded(volume[..., number], each) for number, each in enumerate(slices)}
    marks = {number: mark for number, mark in marked.items() if mark is not None}
    if not marks:
        return volume
    if slices[0].modality == "CT" and all(each.rescale is not None for each in slices):
        fill = AIR_HU
    else:
        rest = [volume[..., number][~mark] for number, mark in marks.items()]
        rest += [volume[..., number].ravel() for number in range(len(slices)) if number not in marks]
        least = [float(part.min()) for part in rest if part.size]
        fill = min(least, default=0.0)
    for number, mark in marks.items():
        volume[..., number][mark] = fill
    return volume
