# SPDX-License-Identifier: Apache-2.0
"""The XML files of LIDC-IDRI: what up to four readers outlined on the slices of a CT series.

pylidc is not used: its masks need ``numpy.float`` and ``numpy.int``, gone since numpy 1.24 (seen with pylidc 0.2.3 on
numpy 2.4), and it reads its own database, not the XML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Contour:
    """One outline on one slice.

    Attributes:
        slice: DICOM instance identifier of the slice.
        inclusion: whether it outlines the nodule, or a part inside that does not belong to it.
        points: (N, 2), column and row of each pixel of the outline, from 0.
    """

    slice: str
    inclusion: bool
    points: NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """What one reader outlined as one nodule.

    Attributes:
        reader: number of the reading session, from 0.
        contours: the outlines.
        ratings: ``malignancy``, ``spiculation`` and the like, 1 to 5 (``internalStructure`` and ``calcification`` have
            their own scales).
    """

    reader: int
    contours: tuple[Contour, ...]
    ratings: dict[str, int]


@dataclass(frozen=True)
class Readings:
    """All nodules of 3 mm and more that were outlined in a series.

    Attributes:
        series: DICOM series identifier.
        readers: number of reading sessions.
        nodules: the outlined nodules, one a reader and nodule.
        notes: what was left out, such as a rating that its scale does not have.
    """

    series: str
    readers: int
    nodules: tuple[Reading, ...]
    notes: tuple[str, ...] = ()


SCALES = {"internalStructure": 4, "calcification": 6}
"""Highest value of the ratings that have another scale than 1 to 5 (McNitt-Gray et al. 2007)."""

MAX_READERS = 4

LARGEST_SIDE = 65535
"""Columns and rows that a DICOM image can have."""


def read_lidc_xml(path: str | Path) -> Readings | None:
    """Read the nodules of a CT series from an XML file of LIDC-IDRI.

    Readers outlined nodules of 3 mm and more, and marked smaller ones and other findings by one point; an outline has
    three points or more on at least one slice.

    Args:
        path: the file.

    Returns:
        The readings; ``None`` for an XML file of another kind, such as those of the chest radiographs.

    Raises:
        ValueError: When it is no XML, or a reading lacks what it must have.
    """
    try:
        root = ElementTree.parse(path).getroot()
    # of an unknown encoding expat says LookupError, of a broken one ValueError
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected XML, found {error}.") from error
    if _local(root) != "LidcReadMessage":
        return None
    series = _text(path, root, "ResponseHeader", "SeriesInstanceUid")
    sessions = list(_children(root, "readingSession"))
    notes: list[str] = []
    nodules = [
        reading
        for reader, session in enumerate(sessions)
        for element in _children(session, "unblindedReadNodule")
        if (reading := _reading(path, reader, element, notes))
    ]
    if len(sessions) > MAX_READERS:
        raise ValueError(f"{path}: expected up to {MAX_READERS} reading sessions, found {len(sessions)}.")
    return Readings(series, len(sessions), tuple(nodules), tuple(notes))


def _reading(path: str | Path, reader: int, nodule: ElementTree.Element, notes: list[str]) -> Reading | None:
    """Read one nodule; ``None`` for a smaller one."""
    contours = tuple(_contour(path, roi) for roi in _children(nodule, "roi"))
    if not any(len(contour.points) > 2 for contour in contours):
        return None
    ratings = {}
    for group in _children(nodule, "characteristics"):
        for element in group:
            name, text = _local(element), (element.text or "").strip()
            if not text:
                continue
            value, highest = _whole(text), SCALES.get(name, 5)
            if value is None or not 1 <= value <= highest:
                notes.append(
                    f"{path}, reader {reader}: expected {name} from 1 to {highest}, found {text[:40]!r}: left out"
                )
                continue
            ratings[name] = value
    return Reading(reader, contours, ratings)


def _whole(text: str) -> int | None:
    """Read a whole number, also where it is written as 44.0; None for anything else.

    Example:
        >>> _whole("44"), _whole(" 44.0"), _whole("44.5"), _whole("4" * 5000)
        (44, 44, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else None


def _pixel(path: str | Path, edge: ElementTree.Element, name: str) -> int:
    """Read a column or row."""
    text = _text(path, edge, name)
    value = _whole(text)
    if value is None or not 0 <= value <= LARGEST_SIDE:
        raise ValueError(f"{path}: expected {name} as a whole number from 0 to {LARGEST_SIDE}, found {text[:40]!r}.")
    return value


def _contour(path: str | Path, roi: ElementTree.Element) -> Contour:
    inclusion = _text(path, roi, "inclusion").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError(f"{path}: expected inclusion TRUE or FALSE, found {inclusion!r}.")
    points = [(_pixel(path, edge, "xCoord"), _pixel(path, edge, "yCoord")) for edge in _children(roi, "edgeMap")]
    return Contour(
        _text(path, roi, "imageSOP_UID"), inclusion == "TRUE", np.array(points, dtype=np.int64).reshape(-1, 2)
    )


def _local(element: ElementTree.Element) -> str:
    """Name an element without its namespace; the files differ in it."""
    return element.tag.rpartition("}")[2]


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _local(child) == name)


def _text(path: str | Path, element: ElementTree.Element, *names: str) -> str:
    """Return the text of a descendant."""
    for name in names:
        child = next(_children(element, name), None)
        if child is None:
            raise ValueError(f"{path}: expected {name} in {_local(element)}, found none.")
        element = child
    return (element.text or "").strip()
