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
            scales of their own).
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
    """

    series: str
    readers: int
    nodules: tuple[Reading, ...]


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
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: expected XML, found {error}.") from error
    if _local(root) != "LidcReadMessage":
        return None
    series = _text(path, root, "ResponseHeader", "SeriesInstanceUid")
    sessions = list(_children(root, "readingSession"))
    nodules = [
        reading
        for reader, session in enumerate(sessions)
        for element in _children(session, "unblindedReadNodule")
        if (reading := _reading(path, reader, element))
    ]
    return Readings(series, len(sessions), tuple(nodules))


def _reading(path: str | Path, reader: int, nodule: ElementTree.Element) -> Reading | None:
    """Read one nodule; ``None`` for a smaller one."""
    contours = tuple(_contour(path, roi) for roi in _children(nodule, "roi"))
    if not any(len(contour.points) > 2 for contour in contours):
        return None
    ratings = {
        _local(element): int(element.text)
        for group in _children(nodule, "characteristics")
        for element in group
        if element.text and element.text.strip().isdigit()
    }
    return Reading(reader, contours, ratings)


def _contour(path: str | Path, roi: ElementTree.Element) -> Contour:
    inclusion = _text(path, roi, "inclusion").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError(f"{path}: expected inclusion TRUE or FALSE, found {inclusion!r}.")
    points = [
        (int(_text(path, edge, "xCoord")), int(_text(path, edge, "yCoord"))) for edge in _children(roi, "edgeMap")
    ]
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
