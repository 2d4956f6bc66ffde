# SPDX-License-Identifier: Apache-2.0
"""Readers' outlines to nodules: the voxels inside, which outlines are of one nodule, and the readers' consensus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .lidc_xml import Contour, Reading

RULE = (
    "outlines of two readers are one nodule where they come closer than the slice distance; a group with a reader twice"
    " is split at 0.9 of the distance, again and again, until none is or they touch; one vote a reader"
)
"""How outlines are matched, in words."""


@dataclass(frozen=True)
class Outline:
    """What one reader outlined, in voxels.

    Attributes:
        reader: number of the reader.
        inside: (N, 3), column, row and slice of the voxels inside.
        border: (M, 3), those of the outlines themselves.
        ratings: as in ``Reading``.
    """

    reader: int
    inside: NDArray[np.int64]
    border: NDArray[np.int64]
    ratings: Mapping[str, int]


@dataclass(frozen=True)
class Nodule:
    """One nodule.

    Attributes:
        voxels: (N, 3), column, row and slice of the consensus; may be empty.
        readers: number of readers who outlined it.
        ratings: median of their ratings.
    """

    voxels: NDArray[np.int64]
    readers: int
    ratings: dict[str, float]


def fill_contour(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """List the pixels inside an outline, without the outline.

    The outlines of LIDC are the first pixels outside of the nodule, and of a part excluded from it, so neither belongs
    to the nodule (Armato et al., Medical Physics 38, 2011, doi 10.1118/1.3528204).

    Args:
        points: (N, 2), whole numbers, in the order along the outline, which closes by itself.

    Returns:
        (M, 2), in no special order.

    Example:
        >>> fill_contour(np.array([[0, 0], [3, 0], [3, 2], [0, 2]])).tolist()
        [[1, 1], [2, 1]]
    """
    if len(points) < 3:
        return np.empty((0, 2), dtype=np.int64)
    low, high = points.min(0), points.max(0)
    columns, rows = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    grid = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = _winding(points, grid) != 0
    inside[np.ravel_multi_index(tuple((_edges(points) - low).T), columns.shape)] = False
    return grid[inside]


def _winding(points: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count how often an outline goes round each pixel; 0 is outside, whatever the outline's direction.

    Where an outline is traced twice, or overlaps itself, a pixel it goes round twice is inside all the same; a rule of
    odd and even would call it outside.
    """
    count = np.zeros(len(pixels), dtype=np.int64)
    x, y = pixels[:, 0], pixels[:, 1]
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        count += ((y0 <= y) & (y1 > y) & (side > 0)).astype(np.int64)
        count -= ((y1 <= y) & (y0 > y) & (side < 0)).astype(np.int64)
    return count


def _edges(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """List the pixels whose centres lie on the closed outline: its points, and those between two that are apart."""
    steps = np.roll(points, -1, axis=0) - points
    parts = np.gcd(steps[:, 0], steps[:, 1]).clip(1)
    index = np.repeat(np.arange(len(points)), parts)
    along = np.arange(len(index)) - np.repeat(np.cumsum(parts) - parts, parts)
    return points[index] + steps[index] // parts[index, None] * along[:, None]


def outline(reading: Reading, slices: Mapping[str, int]) -> Outline:
    """Fill the outlines of a reading.

    Args:
        reading: the reading.
        slices: index of each slice by its DICOM instance identifier.

    Returns:
        The voxels inside the including outlines, without those on or inside the excluding ones.

    Raises:
        ValueError: When an outline lies on a slice that is not there.
    """
    missing = [contour.slice for contour in reading.contours if contour.slice not in slices]
    if missing:
        raise ValueError(f"expected the slice {missing[0]} of a reading in the series, found none such.")

    def voxels(contour: Contour, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.column_stack([pixels, np.full(len(pixels), slices[contour.slice])])

    inside: set[tuple[int, ...]] = set()
    outside: set[tuple[int, ...]] = set()
    for contour in reading.contours:
        filled = map(tuple, voxels(contour, fill_contour(contour.points)).tolist())
        (inside if contour.inclusion else outside).update(filled)
        if not contour.inclusion:
            # an outline is the first pixels that do not belong, those between two of its points included
            outside.update(map(tuple, voxels(contour, _edges(contour.points)).tolist()))
    return Outline(
        reading.reader,
        np.array(sorted(inside - outside), dtype=np.int64).reshape(-1, 3),
        np.concatenate([voxels(contour, contour.points) for contour in reading.contours]),
        reading.ratings,
    )


def match_outlines(outlines: Sequence[Outline], spacing: Sequence[float]) -> list[list[int]]:
    """Find which outlines are of one nodule, see :data:`RULE`.

    Args:
        outlines: those of one series.
        spacing: voxel sides, mm; the third is the distance of the slices.

    Returns:
        Indices of the outlines of each nodule, by their lowest index.
    """
    trees = [cKDTree(np.concatenate([each.inside, each.border]) * np.asarray(spacing, float)) for each in outlines]
    reach = float(spacing[2])
    near: dict[tuple[int, int], float] = {}
    for i, tree in enumerate(trees):
        for j in range(i):
            if (np.maximum(tree.mins, trees[j].mins) - np.minimum(tree.maxes, trees[j].maxes)).max() <= reach:
                near[j, i] = float(trees[j].query(tree.data, distance_upper_bound=reach + 1e-6)[0].min())
    return sorted(_split(list(range(len(outlines))), near, reach, [each.reader for each in outlines]))


def _split(
    members: list[int], near: Mapping[tuple[int, int], float], reach: float, readers: list[int]
) -> list[list[int]]:
    """Part a group into those linked within a reach, and go on with less reach where a reader is there twice."""
    links = [(i, j) for i, j in near if i in members and j in members and near[i, j] <= reach]
    rows, columns = (np.array([members.index(link[end]) for link in links], dtype=int) for end in (0, 1))
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(len(members),) * 2)
    part = connected_components(graph, directed=False)[1]
    groups = [[member for member, at in zip(members, part, strict=True) if at == number] for number in np.unique(part)]
    done = []
    for group in groups:
        twice = len({readers[member] for member in group}) < len(group)
        # below a tenth of a millimetre only overlapping outlines are linked, which stay one nodule
        done += _split(group, near, 0.9 * reach, readers) if twice and reach > 0.1 else [group]
    return done


def consensus(outlines: Sequence[Outline], level: float = 0.5) -> Nodule:
    """Take the voxels that enough of the readers who outlined a nodule hold for part of it.

    Args:
        outlines: those of one nodule; two of one reader are one vote.
        level: share of the readers that a voxel needs, in (0, 1].

    Returns:
        The nodule. With two readers and a level of 0.5 it is the union of both, with four what two of them share.
    """
    readers = sorted({each.reader for each in outlines})
    votes = [
        np.unique(np.concatenate([each.inside for each in outlines if each.reader == reader]), axis=0)
        for reader in readers
    ]
    voxels, counts = np.unique(np.concatenate(votes), axis=0, return_counts=True)
    names = sorted({name for each in outlines for name in each.ratings})
    ratings = {
        name: float(np.median([each.ratings[name] for each in outlines if name in each.ratings])) for name in names
    }
    return Nodule(voxels[counts >= level * len(readers) - 1e-9], len(readers), ratings)
