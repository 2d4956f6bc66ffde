# SPDX-License-Identifier: Apache-2.0
"""Lung nodules: free, on a vessel, on the pleura; solid, part-solid, calcified."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, ellipsoid, smoothstep
from .labels import Label, Nodule
from .patient import Patient
from .texture import FloatArray, stream
from .vessel_tree import Tree


def paint_nodules(canvas: Canvas, patient: Patient, lung: FloatArray, trees: list[Tree]) -> list[Nodule]:
    """Place nodules in the lungs: free, on a vessel, on the pleura by turns; solid, part-solid or calcified.

    Args:
        canvas: where to; lungs and vessels are painted already.
        patient: whose.
        lung: signed distance to the lungs, mm.
        trees: vessels of the lungs.

    Returns:
        the nodules; fewer than drawn where the field of view holds little lung.
    """
    rng = stream(patient.seed, "nodules")
    wanted = int(rng.integers(3, 8))
    bumps = [0.75 * canvas.middle + 0.3 * canvas.fine, 0.5 * canvas.coarse + 0.5 * canvas.middle]
    made: list[Nodule] = []
    parenchyma = lung < 0
    for attempt in range(40 * wanted):
        if len(made) == wanted:
            break
        attachment = ("isolated", "vessel", "pleura")[len(made) % 3]
        kind = str(rng.choice(["solid"] * 4 + ["part_solid"] * 2 + ["calcified"]))
        radius = float(np.clip(rng.lognormal(np.log(5.2), 0.42), max(2.2, 1.1 * canvas.edge), 13))
        if kind == "part_solid":
            radius = max(radius, 5.0)
        if kind == "calcified":
            radius = min(radius, 5.0)
        centre = _nodule_site(canvas, lung, trees, attachment, radius, rng)
        if centre is None or any(np.linalg.norm(centre - n.center_mm) < 25 + radius for n in made):
            continue
        index = tuple(int(i) for i in canvas.index(centre[None])[0])
        if canvas.label[index] in (Label.AIRWAY, Label.BODY, Label.HEART, Label.AORTA):
            continue
        nodule = _paint_nodule(canvas, parenchyma, centre, radius, kind, attachment, bumps[attempt % 2], rng)
        if nodule is not None:
            made.append(nodule)
    return made


def _nodule_site(
    canvas: Canvas, lung: FloatArray, trees: list[Tree], attachment: str, radius: float, rng: np.random.Generator
) -> FloatArray | None:
    """Draw a place for a nodule, world mm; None where the draw does not fit."""
    inner = np.array(canvas.shape) - 2
    if attachment == "vessel":
        tree = trees[int(rng.integers(len(trees)))]
        fit = np.flatnonzero((tree.radius > 0.9) & (tree.radius < 2.4))
        if not len(fit):
            return None
        branch = int(rng.choice(fit))
        away = rng.standard_normal(3)
        centre = tree.end[branch] + away / np.linalg.norm(away) * (radius * 0.8 + tree.radius[branch])
        low, high = -np.inf, -radius - 1
    else:
        depth = (0.55 * radius, 0.8 * radius) if attachment == "pleura" else (radius + 5, 60.0)
        low, high = -depth[1], -depth[0]
        flat = np.flatnonzero((lung > low) & (lung < high))
        if not len(flat):
            return None
        index = np.array(np.unravel_index(int(rng.choice(flat)), canvas.shape))
        centre = canvas.origin + index * canvas.spacing
    index = np.rint((centre - canvas.origin) / canvas.spacing).astype(int)
    if (index < 2).any() or (index >= inner).any():
        return None
    # The root of the lung is crowded with large vessels, where a nodule would not be told apart.
    body = centre / canvas.scale
    if abs(body[0]) < 52 and 50 < body[2] < 120 and body[1] > -60:
        return None
    value = float(lung[tuple(index)])
    return centre if low <= value <= high else None


def _paint_nodule(
    canvas: Canvas,
    parenchyma: NDArray[np.bool_],
    centre: FloatArray,
    radius: float,
    kind: str,
    attachment: str,
    bumps: FloatArray,
    rng: np.random.Generator,
) -> Nodule | None:
    box = canvas.box((centre - 2.2 * radius) / canvas.scale, (centre + 2.2 * radius) / canvas.scale, 4)
    offset = [axis[s] - np.float32(c) for axis, s, c in zip(canvas.axes, box, centre, strict=True)]
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    x, y, z = np.ix_(*offset)
    turned = [np.float32(t[0]) * x + np.float32(t[1]) * y + np.float32(t[2]) * z for t in turn]
    shape = ellipsoid(turned, [float(radius * f) for f in rng.uniform(0.85, 1.2, 3)])
    distance = np.sqrt(x * x + y * y + z * z)
    wave = bumps[box] - float(bumps[box].mean())
    shape = shape + np.float32(0.13 * radius) * wave * smoothstep(distance, 0.2 * radius, radius)
    # Inside the lung only: the pleura stays smooth under an attached nodule.
    cover = canvas.coverage(shape) * (parenchyma[box] | (canvas.label[box] == Label.VESSEL))
    mask = (cover > 0.5) & np.isin(canvas.label[box], (Label.LUNG, Label.VESSEL))
    middle = tuple(int(i) - s.start for i, s in zip(canvas.index(centre[None])[0], box, strict=True))
    if not mask[middle]:
        return None
    tissue = {"solid": 32.0, "part_solid": -560.0, "calcified": 230.0}[kind] + float(rng.uniform(-14, 14))
    if kind == "solid":
        _paint_spicules(canvas, centre, radius, parenchyma, rng)
    canvas.paint(cover, tissue + (40 if kind == "part_solid" else 8) * wave, None, box)
    if kind == "part_solid":
        canvas.paint(canvas.coverage(shape + 0.5 * radius), 5 + 10 * wave, None, box)
    elif kind == "calcified":
        canvas.paint(canvas.coverage(shape + 0.45 * radius), 520, None, box)
    canvas.label[box][mask] = Label.NODULE
    volume = float(mask.sum() * np.prod(canvas.spacing))
    x0, y0, z0 = (float(c) for c in centre)
    return Nodule((x0, y0, z0), 2 * (0.75 * volume / np.pi) ** (1 / 3), kind, attachment)


def _paint_spicules(
    canvas: Canvas, centre: FloatArray, radius: float, parenchyma: NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Paint the strands that pull the lung towards a malignant nodule; small nodules have few."""
    count = int(rng.integers(0, 3) + radius / 1.2)
    ways = rng.standard_normal((count, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    length = radius * rng.uniform(1.2, 2.0, count)
    steps = np.linspace(0, 1, 24)
    points = centre + (ways * length[:, None])[:, None, :] * steps[None, :, None]
    radii = np.broadcast_to(0.9 * (1 - 0.75 * steps), (count, 24))
    cover = canvas.sweep(points.reshape(-1, 3), radii.reshape(-1).copy())
    canvas.paint(cover * parenchyma * 0.8, 10)
