# SPDX-License-Identifier: Apache-2.0
"""Diaphragm, heart, great vessels, airways, and lungs with their trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .body import Wall
from .canvas import FAR, Canvas, curve, ellipsoid, profile, smooth_max, smooth_min, smoothstep
from .emboli import Emboli, paint_emboli
from .labels import Label, Nodule
from .nodules import paint_nodules
from .patient import Patient
from .texture import FloatArray, lattice_noise, stream
from .vessel_tree import Arteries, Tree, grow_tree

AORTA = [
    (3, 12, 66, 14), (10, 20, 84, 15), (14, 21, 104, 15), (10, 13, 124, 14), (0, -4, 136, 13.5), (-13, -24, 133, 13),
    (-21, -40, 117, 12.5), (-22, -46, 92, 12), (-20, -46, 50, 11.5), (-15, -40, 5, 11), (-8, -29, -50, 10.5),
    (-6, -17, -100, 9.5), (-7, -11, -160, 9), (-6, -8, -215, 8.5), (-6, -10, -270, 8),
]  # fmt: skip
TRACHEA = [(2, 2, 235, 9), (1, -6, 205, 9), (1, -14, 170, 9), (2, -24, 135, 9), (3, -27, 116, 9)]
BRONCHI = {
    1: [(3, -26, 118, 8), (15, -28, 106, 7.5), (30, -27, 94, 7), (43, -24, 85, 6)],
    -1: [(3, -26, 118, 8), (-12, -28, 108, 6.5), (-29, -29, 97, 6), (-45, -26, 87, 5.5)],
}
CAVAE = [
    [(27, 8, 60, 9), (28, 8, 90, 9), (27, 9, 120, 8.5), (25, 12, 150, 8), (30, 18, 180, 7.5), (34, 15, 225, 7)],
    [
        (22, -4, 32, 11), (24, -12, 8, 12), (26, -18, -30, 12), (24, -17, -90, 11.5), (20, -12, -160, 11),
        (19, -8, -270, 10.5),
    ],
    [(25, 14, 146, 7), (8, 24, 152, 6.5), (-14, 22, 160, 6.5), (-34, 12, 180, 6.5), (-40, 6, 225, 6)],
]  # fmt: skip
ARCH_BRANCHES = [
    [(8, 8, 136, 6.5), (14, 6, 158, 6), (24, 0, 182, 5), (30, -4, 225, 4)],
    [(-2, -4, 138, 4.5), (-9, 0, 162, 4), (-20, -2, 190, 4), (-26, -4, 225, 4)],
    [(-11, -18, 138, 5.5), (-22, -20, 164, 5), (-36, -24, 190, 5), (-62, -10, 206, 5)],
]
PULMONARY_TRUNK = [(-16, 38, 74, 13), (-17, 24, 90, 14), (-14, 6, 102, 13)]
MAIN_ARTERIES = {
    1: [(-14, 6, 101, 12), (4, -6, 101, 11), (24, -12, 98, 10.5), (42, -14, 93, 9)],
    -1: [(-14, 6, 102, 12), (-26, -10, 106, 11), (-38, -20, 103, 9.5), (-46, -24, 98, 9)],
}
OESOPHAGUS = [
    (-4, -12, 225, 6),
    (-5, -22, 180, 6.5),
    (-4, -36, 130, 7),
    (-4, -39, 90, 6),
    (-5, -38, 40, 6),
    (-16, -16, 0, 7.5),
]


def diaphragm_distance(canvas: Canvas, patient: Patient) -> FloatArray:
    """Return the signed distance to the two domes of the diaphragm, mm, positive above."""
    x = canvas.axes[0][:, None] / np.float32(canvas.scale[0])
    y = canvas.axes[1][None, :] / np.float32(canvas.scale[1])
    ripple = lattice_noise([*canvas.axes[:2], canvas.axes[2][:1]], 45, stream(patient.seed, "diaphragm"))[:, :, 0]
    behind = 55 * np.clip((-12 - y) / 80, 0, None) ** 2
    right = -58 * ((x - 58) / 72) ** 2 - 26 * ((y - 12) / 85) ** 2 - behind
    left = -13 - 58 * ((x + 62) / 70) ** 2 - 26 * ((y - 8) / 85) ** 2 - behind
    middle = -20 - 30 * (x / 60) ** 2 - 26 * ((y - 16) / 85) ** 2 - 1.2 * behind
    dome = smooth_max(smooth_max(right, left, 16), middle, 16)
    surface = dome - np.float32(patient.inspiration_mm) + 2.0 * ripple
    dx, dy = np.gradient(surface, canvas.axes[0], canvas.axes[1])
    slope = np.sqrt(1 + dx**2 + dy**2)
    return (canvas.z - surface[:, :, None]) / np.minimum(slope, 3)[:, :, None]


def heart_distance(canvas: Canvas, patient: Patient) -> tuple[FloatArray, list[FloatArray]]:
    """Return the signed distance to the heart, and coordinates along its long axis, across it and up, mm."""
    size = patient.organ["heart"]
    low = -0.8 * patient.inspiration_mm
    x, y, z = canvas.x + 24, canvas.y - 22, canvas.z - (36 + low)
    axis = np.array([-0.74, 0.52, -0.42])
    up = np.array([-0.30, 0.44, 0.85])
    up = up - axis * (axis @ up)
    up /= np.linalg.norm(up)
    side = np.cross(up, axis)
    along, across, above = (
        np.float32(v[0] / size) * x + np.float32(v[1] / size) * y + np.float32(v[2] / size) * z
        for v in (axis, side, up)
    )
    # The base is blunt and the apex pointed: the radius shrinks along the axis.
    taper = 1 - 0.26 * np.clip(along / 60, -1, 1)
    heart = ellipsoid((along, across / taper, above / taper), (70.0, 48.0, 44.0)) * np.float32(size)
    return heart + 1.2 * canvas.coarse, [along, across, above]


def _paint_heart(canvas: Canvas, patient: Patient, heart: FloatArray, axes: list[FloatArray]) -> None:
    along, across, above = axes
    blood = patient.blood
    canvas.paint(canvas.coverage(heart - 3.5), -95, None)
    canvas.paint(canvas.coverage(heart), blood["myocardium"] + 3 * canvas.middle + 3 * canvas.fine, Label.HEART)
    wobble = 2.0 * canvas.middle
    chambers = [
        ("left_heart", (along - 14, across + 14, above - 5), (33.0, 18.0, 18.0)),
        ("right_heart", (along - 4, across - 22, above + 2), (38.0, 17.0, 26.0)),
        ("left_heart", (along + 38, across + 16, above - 12), (20.0, 25.0, 22.0)),
        ("right_heart", (along + 36, across - 22, above + 12), (23.0, 22.0, 27.0)),
    ]
    for name, offsets, radii in chambers:
        pool = np.maximum(ellipsoid(offsets, radii) + wobble, heart + 3)
        canvas.paint(canvas.coverage(pool), blood[name] + 0.04 * abs(blood[name]) * canvas.coarse)
    # Fat with the coronary vessels fills the groove between atria and ventricles.
    groove = np.maximum(np.abs(along + 15 + 0.1 * across) - 3.0, -(heart + 5))
    canvas.paint(canvas.coverage(groove) * canvas.coverage(heart - 2), -70)


def _mediastinum(
    canvas: Canvas, patient: Patient, heart: FloatArray, spine_y: FloatArray, vessels: FloatArray
) -> FloatArray:
    x, y, level = canvas.x, canvas.y, canvas.level
    depth = smoothstep(y, 12, 50)
    narrow = profile(level, [(-40, 34), (0, 28), (40, 19), (80, 8), (120, 5), (150, 20), (200, 30)])
    broad = profile(level, [(-60, 18), (40, 17), (90, 20), (125, 27), (150, 29), (180, 31), (208, 34)])
    centre = -3 - 12 * profile(level, [(60, 1), (110, 0)]) * depth
    slab = np.abs(x - centre) - (narrow * depth + broad * (1 - depth))
    column = ellipsoid((x, y - spine_y), (24.0, 22.0))
    around = np.minimum(heart - 4 - 5 * smoothstep(patient.fat_mm + 0 * level, 5, 30), vessels - 2.0)
    return smooth_min(smooth_min(slab, column, 14), around, 10)


@dataclass(frozen=True)
class Chest:
    """What a chest was given.

    Args:
        nodules: the lung nodules.
        emboli: emboli and their look-alikes, in a pulmonary angiogram only.
    """

    nodules: list[Nodule]
    emboli: Emboli | None


def paint_chest(canvas: Canvas, patient: Patient, wall: Wall, diaphragm: FloatArray) -> Chest:
    """Paint mediastinum, heart, great vessels, airways and lungs with vessels and nodules.

    Args:
        canvas: where to; the wall is painted already.
        patient: whose.
        wall: what the lungs are fitted to.
        diaphragm: signed distance to the diaphragm, mm, positive above it.

    Returns:
        the nodules, and in a pulmonary angiogram the emboli.
    """
    heart, axes = heart_distance(canvas, patient)
    aorta, great, airway = _great_tubes(canvas)
    mediastinum = _mediastinum(canvas, patient, heart, wall.spine_y, np.minimum(np.minimum(aorta, great), airway))
    lung = smooth_max(wall.cavity + 1.0, -mediastinum, 7)
    lung = smooth_max(lung, 1.5 - diaphragm, 5)
    muscle = np.abs(diaphragm + 0.5) - (1.4 + 0.3 * canvas.coarse)
    canvas.paint(canvas.coverage(np.maximum(muscle, wall.cavity)), patient.blood["muscle"], Label.BODY)
    _paint_nodes(canvas, mediastinum, wall)
    canvas.paint(canvas.coverage(lung), _parenchyma(canvas, patient, lung), Label.LUNG)
    box = canvas.box((-120, -70, -50), (80, 95, 125))
    if canvas.hu[box].size:
        _paint_heart(canvas.crop(box), patient, heart[box], [axis[box] for axis in axes])
    # Branches bend through the lung, but never through heart, ribs or diaphragm.
    free = canvas.coverage(1 - heart) * canvas.coverage(np.maximum(wall.cavity + 2, 2 - diaphragm))
    trees, arteries = _paint_lung_trees(canvas, patient, lung, free)
    _paint_great_vessels(canvas, patient, aorta, airway)
    emboli = paint_emboli(canvas, patient, arteries) if patient.phase == "pulmonary" else None
    return Chest(paint_nodules(canvas, patient, lung, trees), emboli)


def _great_tubes(canvas: Canvas) -> tuple[FloatArray, FloatArray, FloatArray]:
    aorta = _smooth_tube(canvas, AORTA, 14)
    great = np.full(canvas.shape, FAR, np.float32)
    paths: list[ArrayLike] = [*CAVAE, PULMONARY_TRUNK, MAIN_ARTERIES[1][:-1], MAIN_ARTERIES[-1][:-1]]
    for path in paths:
        np.minimum(great, _smooth_tube(canvas, path, 14), out=great)
    airway = _smooth_tube(canvas, TRACHEA, 14)
    for side in (1, -1):
        np.minimum(airway, _smooth_tube(canvas, BRONCHI[side], 14), out=airway)
    return aorta, great, airway


def _smooth_tube(canvas: Canvas, path: ArrayLike, reach: float = 10.0) -> FloatArray:
    bent = curve(path, 8)
    return canvas.tube(bent, bent[:, 3], reach)


def _paint_nodes(canvas: Canvas, mediastinum: FloatArray, wall: Wall) -> None:
    """Scatter small lymph nodes and strands over the fat of the mediastinum."""
    nodes = smoothstep(canvas.middle - 0.3 * canvas.coarse, 0.9, 1.5)
    inside = canvas.coverage(mediastinum + 2) * canvas.coverage(wall.cavity + 3)
    upper = smoothstep(canvas.level, 20, 70)
    canvas.paint(inside * nodes * upper, 38)


def _parenchyma(canvas: Canvas, patient: Patient, lung: FloatArray) -> FloatArray:
    """Return the HU of the lung without its trees: denser at the back and at the bottom, mottled, with fissures."""
    gravity = 34 * np.clip(-(canvas.y + 12) / 80, -1, 1) + 8 * np.clip((60 - canvas.level) / 120, -1, 1)
    lobules = 9 * canvas.fine + 7 * canvas.middle + 9 * canvas.coarse
    rim = 22 * np.exp(-((np.minimum(lung, 0) / 5) ** 2))
    hu = patient.lung_hu + gravity + lobules + rim
    oblique = 0.66 * (canvas.y + 30) + 0.75 * (canvas.z - 66) + 2.5 * canvas.coarse + 0.0008 * canvas.y**2
    transverse = canvas.z - 74 - 0.06 * canvas.y + 2.5 * canvas.coarse
    edge = np.float32(canvas.edge)
    sheets = [(oblique, None), (transverse, (canvas.x > 0) & (oblique > 0))]
    for distance, where in sheets:
        thin = np.exp(-((distance / (0.75 * edge)) ** 2)) * np.float32(min(1.0, 0.9 / canvas.edge)) * 240
        # Next to a fissure vessels end: the lung is darker there over a finger's breadth.
        change = thin - 14 * np.exp(-((distance / 9) ** 2))
        hu = hu + (change if where is None else change * where)
    return hu


def _targets(
    canvas: Canvas, distance: FloatArray, side: int, depth: float, count: int, rng: np.random.Generator
) -> FloatArray:
    """Draw points spread evenly over the part of an organ at least ``depth`` mm below its surface, world mm."""
    inside = distance < -depth
    sign = canvas.x > 0 if side > 0 else canvas.x < 0
    flat = np.flatnonzero(inside & sign) if side else np.flatnonzero(inside)
    if not len(flat):
        return np.zeros((0, 3))
    picked = flat[np.minimum((np.sort(rng.random(count)) * len(flat)).astype(int), len(flat) - 1)]
    index = np.stack(np.unravel_index(picked, canvas.shape), 1)
    return canvas.origin + (index + rng.uniform(-0.5, 0.5, index.shape)) * canvas.spacing


def _paint_lung_trees(
    canvas: Canvas, patient: Patient, lung: FloatArray, free: FloatArray
) -> tuple[list[Tree], Arteries]:
    blood = patient.blood["pulmonary"]
    trees, balls, walls, lumens, arteries = [], [], [], [], []
    for side in (1, -1):
        rng = stream(patient.seed, f"trees {side}")
        body = np.array(BRONCHI[side])
        root = canvas.place(body)
        total = int(14000 * np.prod(canvas.scale))
        targets = _targets(canvas, lung, side, 2.5, total, rng)
        share = min(1.0, len(targets) / max(total, 1))
        airway = grow_tree(root[-1], root[-1] - root[-2], targets, 6.6 * share, rng, 3, 0.48, 0.315)
        veins = grow_tree(
            canvas.place([(30 * side, -14, 62)])[0],
            np.array([side, -0.1, -0.1]),
            _targets(canvas, lung, side, 3.0, int(0.8 * total), rng),
            6.2 * share,
            rng,
            3,
            0.48,
            0.315,
            normal=(0.0, 0.5, 0.9),
        )
        # Each artery runs next to its bronchus, on the upper and outer side.
        centres, tangents, radii, generation = airway.sample(canvas.edge * 0.45)
        beside = np.array([0.25 * side, 0.45, 0.85])
        beside = beside - tangents * (tangents @ beside)[:, None]
        beside /= np.maximum(np.linalg.norm(beside, axis=1, keepdims=True), 0.3)
        lumen, outer = 0.66 * radii, 0.66 * radii * 1.2 + 0.3
        seen = (lumen > 0.7) & (generation < 9)
        shift = np.where(seen, outer + radii * 0.9, 0)[:, None] * beside
        balls.append((centres + shift, radii * 0.93))
        branch = airway.branch_of(canvas.edge * 0.45)
        # a branch ends where it forks, unless its children had too little to supply
        fork = np.append(branch[1:] != branch[:-1], True)[: len(branch)] & (radii > 0.5)
        arteries.append(Arteries(centres + shift, tangents, radii * 0.93, branch, fork))
        walls.append((centres[seen], outer[seen]))
        lumens.append((centres[seen], lumen[seen]))
        vein_centres, _, vein_radii, _ = veins.sample(canvas.edge * 0.45)
        balls.append((vein_centres, vein_radii))
        trees += [airway, veins]
    hilum = np.concatenate([curve(MAIN_ARTERIES[side], 2) for side in (1, -1)] + [curve(PULMONARY_TRUNK, 2)])
    balls.append((canvas.place(hilum), hilum[:, 3]))
    arteries.append(_main_arteries(canvas))
    for side in (1, -1):
        stem = curve([(10 * side, -12, 60, 7), (22 * side, -14, 61, 6.5), (34 * side, -14, 62, 6)], 2)
        balls.append((canvas.place(stem), stem[:, 3]))
    vessel = _sweep(canvas, balls, solid=patient.phase == "pulmonary") * free
    canvas.paint(vessel, blood * np.float32(1) + 0.02 * blood * canvas.coarse, None)
    _label_tree(canvas, vessel, Label.VESSEL)
    wall, lumen = _sweep(canvas, walls) * free, _sweep(canvas, lumens) * free
    canvas.paint(wall, np.maximum(canvas.hu, 5), None)
    canvas.paint(lumen, -985, Label.AIRWAY)
    return trees, Arteries.join(arteries)


def _main_arteries(canvas: Canvas) -> Arteries:
    """List points along the pulmonary trunk and its two branches."""
    parts = []
    for path in (MAIN_ARTERIES[1], MAIN_ARTERIES[-1], PULMONARY_TRUNK):
        bent = curve(path, canvas.edge * 0.45)
        center = canvas.place(bent)
        tangent = np.gradient(center, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        alone = np.zeros(len(bent), np.int64)
        parts.append(Arteries(center, tangent, bent[:, 3], alone, alone > 0))
    return Arteries.join(parts)


def _sweep(canvas: Canvas, balls: Sequence[tuple[FloatArray, FloatArray]], solid: bool = False) -> FloatArray:
    centres = np.concatenate([c for c, _ in balls])
    return canvas.sweep(centres, np.concatenate([r for _, r in balls]), solid)


def _label_tree(canvas: Canvas, cover: FloatArray, label: Label) -> None:
    """Label vessels, but leave heart and aorta, which they enter, their own."""
    free = (canvas.label == Label.LUNG) | (canvas.label == Label.BODY)
    canvas.label[(cover > 0.5) & free] = label


def _paint_great_vessels(canvas: Canvas, patient: Patient, aorta: FloatArray, airway: FloatArray) -> None:
    blood, old = patient.blood, max(patient.age - 50, 0) / 32
    for name, paths in (("vena_cava", CAVAE), ("aorta", ARCH_BRANCHES)):
        for path in paths:
            tube = _smooth_tube(canvas, path, 5)
            canvas.paint(canvas.coverage(tube), blood[name] * (1 + 0.03 * canvas.coarse), None)
            _label_tree(canvas, canvas.coverage(tube), Label.VESSEL)
    azygos = curve([(8, -38, -40, 3), (8, -42, 40, 3.5), (10, -40, 100, 4), (20, -30, 116, 4.5), (27, 4, 116, 4.5)], 6)
    canvas.paint(canvas.coverage(canvas.tube(azygos, azygos[:, 3], 4)), blood["vena_cava"])
    gullet = _smooth_tube(canvas, OESOPHAGUS, 6)
    canvas.paint(canvas.coverage(gullet), patient.blood["gut_wall"], Label.GUT)
    canvas.paint(canvas.coverage(gullet + 4.5) * smoothstep(canvas.coarse, 0.2, 1.0), -700)
    canvas.paint(canvas.coverage(aorta - 1.2), 40)
    canvas.paint(canvas.coverage(aorta), blood["aorta"] * (1 + 0.02 * canvas.coarse), Label.AORTA)
    plaque = np.abs(aorta + 0.3) - 1.3
    spots = smoothstep(canvas.middle + 0.6 * canvas.coarse, 2.2 - 0.9 * old, 2.8 - 0.9 * old) * float(old > 0)
    canvas.paint(canvas.coverage(plaque) * spots, 620)
    # Cartilage makes the wall of the large airways stiff and visible against the lung.
    canvas.paint(canvas.coverage(airway - 1.3) * (canvas.label != Label.AIRWAY), 30)
    canvas.label[(airway < 1.3) & (canvas.label == Label.LUNG)] = Label.BODY
    canvas.paint(canvas.coverage(airway), -990, Label.AIRWAY)
