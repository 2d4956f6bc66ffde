# SPDX-License-Identifier: Apache-2.0
"""Emboli in the contrast-filled pulmonary arteries of the phantom, and what looks like them but is not one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .canvas import Box, Canvas
from .labels import Label, VesselFinding
from .patient import Patient
from .texture import FloatArray, stream
from .vessel_tree import Arteries

MIN_RADIUS_MM = 2.0
"""Arteries thinner than this have no finding: segmental ones still do."""

APART_MM = 14.0
"""Least distance of two findings, so that a cube's middle shows one of them."""


@dataclass(frozen=True)
class Emboli:
    """What was painted.

    Args:
        emboli: filling defects; kind ``"central"`` (contrast flows around it) or ``"occlusive"``.
        lookalikes: ``"branching"``, ``"node"`` (a lymph node next to an artery), ``"mixing"`` (blood that has taken up
            less contrast), and ``"vessel"`` (an artery with nothing in it).
        mask: number of the embolus from 1 in each voxel, 0 elsewhere, uint8, of the canvas's shape.
    """

    emboli: tuple[VesselFinding, ...]
    lookalikes: tuple[VesselFinding, ...]
    mask: NDArray[np.uint8]


def paint_emboli(canvas: Canvas, patient: Patient, arteries: Arteries) -> Emboli:
    """Place three to seven emboli, and look-alikes of four kinds by turns, twice as many.

    Args:
        canvas: where to; the vessels are painted already.
        patient: whose.
        arteries: points along the arteries.

    Returns:
        What was painted; fewer where the field of view holds few arteries, or the voxels are too coarse for them.
    """
    rng = stream(patient.seed, "emboli")
    wanted = int(rng.integers(3, 8))
    mask = np.zeros(canvas.shape, np.uint8)
    sites = _Sites(canvas, patient, arteries, rng)
    emboli: list[VesselFinding] = []
    for _ in range(20 * wanted):
        if len(emboli) == wanted:
            break
        found = _paint_embolus(canvas, arteries, sites.draw(arteries.radius > 0), mask, len(emboli) + 1, rng)
        if found is not None:
            emboli.append(found)
            sites.take(found.center_mm)
    lookalikes: list[VesselFinding] = []
    painters: list[Callable[[], VesselFinding | None]] = [
        lambda: _branching(arteries, sites.draw(arteries.fork)),
        lambda: _paint_node(canvas, arteries, sites.draw(arteries.radius > 0), rng),
        lambda: _paint_mixing(canvas, arteries, sites.draw(~arteries.fork), rng),
        lambda: _vessel(arteries, sites.draw(~arteries.fork)),
    ]
    for attempt in range(40 * wanted):
        if len(lookalikes) == 2 * wanted:
            break
        found = painters[attempt % 4]()
        if found is not None:
            lookalikes.append(found)
            sites.take(found.center_mm)
    return Emboli(tuple(emboli), tuple(lookalikes), mask)


class _Sites:
    """Places on arteries that are visible, filled with contrast and not yet taken."""

    def __init__(self, canvas: Canvas, patient: Patient, arteries: Arteries, rng: np.random.Generator) -> None:
        index = canvas.index(arteries.center)
        inside = (np.abs(canvas.origin + index * canvas.spacing - arteries.center) <= canvas.spacing).all(1)
        margin = ((index > 3) & (index < np.array(canvas.shape) - 4)).all(1)
        filled = canvas.hu[tuple(index.T)] > 0.85 * patient.blood["pulmonary"]
        own = canvas.label[tuple(index.T)] == Label.VESSEL
        self.center = arteries.center
        self.free = inside & margin & filled & own & (arteries.radius > max(MIN_RADIUS_MM, 0.9 * canvas.edge))
        self.rng = rng

    def draw(self, chosen: NDArray[np.bool_]) -> int | None:
        """Draw a point of a kind; ``None`` where none is left."""
        fit = np.flatnonzero(self.free & chosen)
        return int(self.rng.choice(fit)) if len(fit) else None

    def take(self, center: tuple[float, float, float]) -> None:
        """Keep the surroundings of a finding for it alone."""
        self.free &= np.linalg.norm(self.center - np.array(center), axis=1) > APART_MM


def _along(arteries: Arteries, point: int, length: float) -> NDArray[np.int64]:
    """List the points of the same branch within a length around one of them."""
    same = np.flatnonzero(arteries.branch == arteries.branch[point])
    distance = np.linalg.norm(arteries.center[same] - arteries.center[point], axis=1)
    return same[distance <= max(length / 2, 1e-6)]


def _box(canvas: Canvas, centers: FloatArray, margin: float) -> Box:
    return canvas.box(centers.min(0) / canvas.scale, centers.max(0) / canvas.scale, margin)


def _finding(center: FloatArray, radius: float, kind: str) -> VesselFinding:
    x, y, z = (float(side) for side in center)
    return VesselFinding((x, y, z), 2 * float(radius), kind)


def _paint_embolus(
    canvas: Canvas,
    arteries: Arteries,
    point: int | None,
    mask: NDArray[np.uint8],
    number: int,
    rng: np.random.Generator,
) -> VesselFinding | None:
    """Fill a stretch of an artery with clot; ``None`` where hardly a voxel would show it."""
    if point is None:
        return None
    radius = float(arteries.radius[point])
    kind = "occlusive" if rng.random() < 0.4 else "central"
    share = 1.05 if kind == "occlusive" else float(rng.uniform(0.6, 0.8))
    points = _along(arteries, point, float(rng.uniform(1.5, 4)) * radius)
    thick = max(share * arteries.radius[points].min(), canvas.edge)
    box = _box(canvas, arteries.center[points], thick + 2 * canvas.edge)
    part = canvas.crop(box)
    cover = part.sweep(arteries.center[points], np.full(len(points), thick), solid=True)
    # a clot lies in the lumen, not in the lung around it
    cover = cover * (part.label == Label.VESSEL)
    solid = (cover > 0.5) & (mask[box] == 0)
    if solid.sum() < 4:
        return None
    canvas.paint(cover, float(rng.uniform(25, 70)) + 4 * part.fine, None, box)
    mask[box][solid] = number
    places = np.argwhere(solid) * canvas.spacing + part.origin
    # the voxel of the clot that is nearest to its middle, which lies in it even where the artery bends
    center = places[np.linalg.norm(places - places.mean(0), axis=1).argmin()]
    volume = float(solid.sum() * np.prod(canvas.spacing))
    return _finding(center, (0.75 * volume / np.pi) ** (1 / 3), kind)


def _branching(arteries: Arteries, point: int | None) -> VesselFinding | None:
    return None if point is None else _finding(arteries.center[point], arteries.radius[point], "branching")


def _vessel(arteries: Arteries, point: int | None) -> VesselFinding | None:
    return None if point is None else _finding(arteries.center[point], arteries.radius[point], "vessel")


def _paint_node(
    canvas: Canvas, arteries: Arteries, point: int | None, rng: np.random.Generator
) -> VesselFinding | None:
    """Lay a lymph node, as dark as a clot, against the outside of an artery."""
    if point is None:
        return None
    radius = float(rng.uniform(2.5, 5.5))
    way = rng.standard_normal(3)
    way -= arteries.tangent[point] * (way @ arteries.tangent[point])
    center = arteries.center[point] + way / np.linalg.norm(way) * (arteries.radius[point] + 0.8 * radius)
    index = np.rint((center - canvas.origin) / canvas.spacing).astype(int)
    if (index < 3).any() or (index >= np.array(canvas.shape) - 3).any():
        return None
    if canvas.label[tuple(index)] not in (Label.LUNG, Label.BODY):
        return None
    box = _box(canvas, center[None], radius + 2 * canvas.edge)
    part = canvas.crop(box)
    cover = part.sweep(center[None], np.array([radius]), solid=True) * np.isin(part.label, (Label.LUNG, Label.BODY))
    canvas.paint(cover, float(rng.uniform(25, 60)) + 4 * part.fine, None, box)
    return _finding(center, radius, "node")


def _paint_mixing(
    canvas: Canvas, arteries: Arteries, point: int | None, rng: np.random.Generator
) -> VesselFinding | None:
    """Thin the contrast along a stretch of an artery: with soft ends, over its whole width, and not down to a clot."""
    if point is None:
        return None
    radius = float(arteries.radius[point])
    points = _along(arteries, point, 6 * radius)
    box = _box(canvas, arteries.center[points], radius + 2 * canvas.edge)
    part = canvas.crop(box)
    cover = part.sweep(arteries.center[points], 1.1 * arteries.radius[points], solid=True) * (
        part.label == Label.VESSEL
    )
    axes = [axis - np.float32(side) for axis, side in zip(part.axes, arteries.center[point], strict=True)]
    x, y, z = np.ix_(*axes)
    soft = np.exp(-(x * x + y * y + z * z) / np.float32(2 * (1.3 * radius) ** 2))
    left = float(rng.uniform(0.5, 0.7))
    canvas.paint(cover * soft, left * part.hu.clip(0), None, box)
    return _finding(arteries.center[point], radius, "mixing")
