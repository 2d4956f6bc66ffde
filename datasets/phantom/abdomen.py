# SPDX-License-Identifier: Apache-2.0
"""Liver with its vessels, spleen, kidneys, stomach, bowel, pancreas and the large vessels of the abdomen."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .body import Wall
from .canvas import Canvas, curve, ellipsoid, profile, smooth_max, smoothstep
from .chest import AORTA, CAVAE
from .labels import Label, Lesion
from .lesions import paint_lesions
from .patient import Patient
from .texture import FloatArray, stream
from .vessel_tree import grow_tree

LIVER_EDGE = [(-80, -14), (-50, -44), (-20, -72), (10, -92), (40, -116), (75, -142), (110, -156)]
STOMACH = [
    (-26, -12, -12, 14),
    (-48, -16, -30, 25),
    (-52, 16, -62, 26),
    (-40, 42, -98, 22),
    (-8, 48, -114, 17),
    (20, 34, -98, 12),
]
COLON = [
    (86, -4, -262, 23), (90, -8, -200, 24), (92, 2, -150, 23), (84, 28, -126, 21), (50, 58, -132, 20),
    (0, 66, -146, 20), (-48, 58, -124, 20), (-84, 22, -92, 18), (-98, -18, -100, 15), (-100, -28, -150, 14),
    (-98, -26, -205, 14), (-90, -14, -262, 15),
]  # fmt: skip
PANCREAS = [
    (34, 4, -114, 12),
    (26, 14, -98, 13),
    (6, 22, -90, 8),
    (-24, 8, -84, 10),
    (-52, -14, -70, 10),
    (-70, -26, -60, 8),
]
DUODENUM = [
    (22, 34, -98, 12),
    (42, 18, -98, 12),
    (48, 0, -118, 12),
    (40, -4, -142, 12),
    (10, 4, -148, 11),
    (-22, 8, -132, 11),
]
PORTAL = [
    [(10, 14, -112, 5.5), (15, 12, -95, 6.5), (28, 6, -82, 7), (42, 0, -70, 7)],
    [(-66, -24, -56, 3.5), (-30, -2, -78, 4.5), (0, 12, -88, 5), (15, 12, -95, 6)],
    [(4, 26, -190, 3.5), (8, 20, -150, 4.5), (10, 14, -112, 5.5)],
]
KIDNEYS = {1: (57.0, -47.0, -104.0), -1: (-55.0, -48.0, -90.0)}


def paint_abdomen(canvas: Canvas, patient: Patient, wall: Wall, diaphragm: FloatArray) -> list[Lesion]:
    """Paint everything below the diaphragm.

    Args:
        canvas: where to; wall and chest are painted already.
        patient: whose.
        wall: what the organs are fitted to.
        diaphragm: signed distance to the diaphragm, mm, positive above it.

    Returns:
        the liver lesions.
    """
    base = smooth_max(wall.cavity + 4, diaphragm + 3.2, 8)
    aorta, cava = (_tube(canvas, path, 9) for path in (AORTA, CAVAE[1]))
    column = ellipsoid((canvas.x, canvas.y - wall.spine_y), (27.0, 21.0))
    kidneys = {side: smooth_max(_kidney(canvas, patient, side), base + 1, 5) for side in (1, -1)}
    psoas = _psoas(canvas)
    behind = np.minimum(np.minimum(aorta, column), psoas)
    renal = np.minimum(kidneys[1], kidneys[-1])
    # The inferior vena cava runs in a bed of the liver, without fat between.
    liver = _clear(_liver(canvas, patient, base, np.minimum(behind, renal)), [cava - 0.3], 2)
    behind = np.minimum(behind, cava)
    stomach = _clear(np.maximum(_tube(canvas, STOMACH, 30), base), [liver - 2, behind - 2, renal - 2])
    spleen = _spleen(canvas, patient, base, np.minimum(stomach, renal))
    solid = np.minimum(np.minimum(np.minimum(liver, stomach), np.minimum(spleen, renal)), behind)

    _paint_mesentery(canvas, patient, base)
    canvas.paint(
        canvas.coverage(np.maximum(psoas, wall.cavity)), patient.blood["muscle"] + 4 * canvas.fine + 2 * canvas.middle
    )
    _paint_bowel(canvas, patient, base, solid)
    _paint_stomach(canvas, patient, stomach)
    _paint_pancreas(canvas, patient, solid)
    _paint_organ(canvas, spleen, patient.blood["spleen"] + _moire(canvas, patient), Label.SPLEEN)
    for side in (1, -1):
        cx, cy, cz = KIDNEYS[side]
        box = canvas.box((cx - 60, cy - 45, cz - 200), (cx + 60, cy + 60, cz + 70))
        if canvas.hu[box].size:
            _paint_kidney(canvas.crop(box), patient, kidneys[side][box], side)
    _paint_vessels(canvas, patient, aorta, cava)
    return _paint_liver(canvas, patient, liver)


def _tube(canvas: Canvas, path: ArrayLike, reach: float) -> FloatArray:
    bent = curve(path, 7)
    return canvas.tube(bent, bent[:, 3], reach)


def _clear(shape: FloatArray, others: list[FloatArray], k: float = 4.0) -> FloatArray:
    """Cut others out of a shape, with rounded rims."""
    for other in others:
        shape = smooth_max(shape, -other, k)
    return shape


def _psoas(canvas: Canvas) -> FloatArray:
    paths = [
        [(side * 22, -36, -66, 6), (side * 30, -34, -120, 13), (side * 40, -28, -190, 18), (side * 48, -18, -262, 20)]
        for side in (1, -1)
    ]
    paths += [[(side * 56, -68, -90, 9), (side * 66, -64, -150, 13), (side * 74, -60, -225, 13)] for side in (1, -1)]
    field = _tube(canvas, paths[0], 9)
    for path in paths[1:]:
        np.minimum(field, _tube(canvas, path, 9), out=field)
    return field + 0.8 * canvas.middle


def _liver(canvas: Canvas, patient: Patient, base: FloatArray, away: FloatArray) -> FloatArray:
    x, y, z = canvas.x, canvas.y, canvas.z
    edge_x = np.linspace(-80, 120, 81)
    lower = np.interp(x, edge_x, profile(edge_x, LIVER_EDGE)).astype(np.float32) + np.float32(patient.organ["liver"])
    # The lower surface rises to the back on the left, over stomach and duodenum.
    lower += 0.32 * np.clip(30 - y, 0, 90) * (1 - smoothstep(x, 30, 80)) + 2.5 * canvas.coarse
    liver = smooth_max(base, (lower - z) * 0.78, 14)
    liver = smooth_max(liver, -(x + 80 + 3 * canvas.coarse), 14)
    hollow = np.maximum(x - 20 - 0.12 * (z + 60), y - (-2 + 4 * canvas.coarse))
    liver = smooth_max(liver, -hollow, 14)
    # The fissure of the round ligament notches the front edge between the lobes.
    notch = np.maximum(np.abs(x + 2 - 0.25 * (y - 50) + 5 * canvas.coarse) - 1.5, np.maximum(z + 48, 42 - y - 0.3 * z))
    liver = smooth_max(liver, -notch, 6)
    return _clear(liver, [away - 3], 6) + 0.5 * canvas.middle


def _spleen(canvas: Canvas, patient: Patient, base: FloatArray, away: FloatArray) -> FloatArray:
    s = patient.organ["spleen"]
    radii = (36 * s, 50 * s, 56 * s)
    body = canvas.local((-140, -100, -125), (-30, 35, 20), lambda c: ellipsoid((c.x + 86, c.y + 34, c.z + 52), radii))
    hollow = canvas.local(
        (-90, -50, -125), (10, 65, 20), lambda c: ellipsoid((c.x + 40, c.y - 8, c.z + 52), (34.0, 46.0, 62.0))
    )
    shape = smooth_max(smooth_max(body, base, 8), -hollow, 8)
    return _clear(shape, [away - 3], 5) + 1.0 * canvas.coarse


def _kidney(canvas: Canvas, patient: Patient, side: int) -> FloatArray:
    s = patient.organ["kidney"]
    cx, cy, cz = KIDNEYS[side]

    def bean(c: Canvas) -> FloatArray:
        # The upper poles lean to the spine and to the back.
        z = c.z - cz
        x, y = (c.x - cx) * side + 0.20 * z, c.y - cy + 0.12 * z
        body = ellipsoid((x, y, z), (27 * s, 23 * s, 54 * s))
        sinus = ellipsoid((x + 21 * s, y - 6, z), (19 * s, 11 * s, 24 * s))
        return smooth_max(body, -sinus, 7) + 0.9 * c.middle

    return canvas.local((cx - 50, cy - 36, cz - 64), (cx + 50, cy + 36, cz + 64), bean)


def _paint_organ(canvas: Canvas, distance: FloatArray, hu: float | FloatArray, label: Label) -> None:
    """Paint an organ and the thin fat that parts it from its neighbours."""
    inside = np.isin(canvas.label, (Label.BODY, Label.GUT, label))
    canvas.paint(canvas.coverage(distance - 1.8) * inside, -95)
    canvas.paint(canvas.coverage(distance), hu, label)


def _moire(canvas: Canvas, patient: Patient) -> FloatArray:
    """Return the texture of the spleen: in the arterial phase its pulp enhances in bands."""
    bands = 22.0 if patient.phase == "arterial" else 0.0
    return np.float32(bands) * np.sin(2.2 * canvas.coarse + 1.5 * canvas.middle) + 2 * canvas.fine + 2 * canvas.middle


def _paint_mesentery(canvas: Canvas, patient: Patient, base: FloatArray) -> None:
    """Paint vessels that fan out through the fat between the bowel loops, and strands."""
    strands = np.exp(-((canvas.middle * 6) ** 2)) * smoothstep(canvas.coarse, -0.5, 1.0)
    canvas.paint(canvas.coverage(base + 2) * 0.35 * strands, 20)
    rng = stream(patient.seed, "mesentery")
    points = np.stack([rng.uniform(-72, 72, 700), rng.uniform(-5, 70, 700), rng.uniform(-245, -120, 700)], 1)
    tree = grow_tree(canvas.place([(6, 18, -112)])[0], np.array([0, 0.4, -1.0]), canvas.place(points), 4.2, rng)
    centres, _, radii, _ = tree.sample(canvas.edge * 0.45)
    canvas.paint(canvas.sweep(centres, radii) * canvas.coverage(base + 3), patient.blood["portal"])


def _bowel_path(patient: Patient) -> FloatArray:
    """Return the small bowel's course: a walk to the nearest free place of a jittered lattice, body mm."""
    rng = stream(patient.seed, "bowel")
    grid = np.stack(np.meshgrid(np.arange(-62, 63, 31), [2, 33, 62], np.arange(-250, -120, 30), indexing="ij"), -1)
    free = grid.reshape(-1, 3) + rng.uniform(-9, 9, (grid.size // 3, 3))
    path = [int(np.argmax(free[:, 2] - free[:, 0]))]
    left = set(range(len(free))) - set(path)
    while left:
        rest = np.array(sorted(left))
        cost = np.linalg.norm((free[rest] - free[path[-1]]) * (1, 1, 1.3), axis=1) + rng.uniform(0, 14, len(rest))
        path.append(int(rest[np.argmin(cost)]))
        left.remove(path[-1])
    return free[path]


def _paint_bowel(canvas: Canvas, patient: Patient, base: FloatArray, solid: FloatArray) -> None:
    rng = stream(patient.seed, "bowel content")
    wall_hu = patient.blood["gut_wall"]
    keep = np.maximum(base + 1, 2.0 - solid)
    width = 14.5 - 4 * patient.visceral
    coil = curve(_bowel_path(patient), 6)
    caliber = width * (1 + 0.18 * np.sin(np.arange(len(coil)) * 0.55) + rng.uniform(-0.1, 0.1, len(coil)))
    duodenum = curve(DUODENUM, 6)
    for points, radii in ((coil, caliber), (duodenum, duodenum[:, 3])):
        tube = smooth_max(canvas.tube(points, radii, 6), keep, 3) + 0.6 * canvas.middle
        # Folds of the mucosa and chyme make the content uneven; gas collects in a few loops, in front.
        canvas.paint(canvas.coverage(tube), wall_hu, Label.GUT)
        content = 18 + 12 * canvas.fine + 10 * canvas.coarse
        canvas.paint(canvas.coverage(tube + 2.4), content)
        gas = canvas.coverage(np.maximum(tube + 3, 55 + 14 * (1.2 - canvas.coarse) - canvas.y))
        canvas.paint(gas, -960)
    large = curve(COLON, 4)
    length = np.arange(len(large)) * 4.0
    haustra = (
        1 + 0.13 * np.sin(length * 2 * np.pi / 31) + 0.10 * np.sin(length * 2 * np.pi / 113 + float(rng.uniform(0, 6)))
    )
    colon = smooth_max(canvas.tube(large, large[:, 3] * haustra, 6), keep, 4) + 0.6 * canvas.middle
    canvas.paint(canvas.coverage(colon - 1.5) * (canvas.label == Label.GUT), -90)
    canvas.paint(canvas.coverage(colon), wall_hu - 5, Label.GUT)
    inside = canvas.coverage(colon + 2.6)
    stool = 25 - 260 * np.clip(np.abs(canvas.fine) + 0.6 * canvas.middle - 0.75, 0, 1.2)
    canvas.paint(inside, stool)
    gas = (
        canvas.y
        + 9 * canvas.coarse
        - profile(canvas.axes[0], [(-110, 0), (-60, 62), (0, 68), (60, 66), (105, 8)])[:, None, None]
    )
    canvas.paint(np.minimum(inside, canvas.coverage(-gas)), -985)


def _paint_stomach(canvas: Canvas, patient: Patient, stomach: FloatArray) -> None:
    rng = stream(patient.seed, "stomach")
    _paint_organ(canvas, stomach, patient.blood["gut_wall"] + 3 * canvas.fine, Label.GUT)
    rugae = np.minimum(1.2 * np.abs(canvas.middle), 2.4)
    inside = canvas.coverage(stomach + 4 + rugae)
    food = float(rng.uniform(0, 1))
    canvas.paint(inside, 14 + 14 * food * canvas.fine + 10 * food * np.maximum(canvas.middle, 0))
    # The patient lies on the back: gas rises to the front and leaves a level surface.
    surface = float(rng.uniform(8, 34)) * canvas.scale[1]
    above = np.float32(surface) - canvas.axes[1][None, :, None]
    canvas.paint(np.minimum(inside, canvas.coverage(above)), -985)


def _paint_pancreas(canvas: Canvas, patient: Patient, solid: FloatArray) -> None:
    lobes = (1.2 + 1.6 * (patient.age - 35) / 47) * canvas.middle + 0.8 * canvas.fine
    gland = _clear(_tube(canvas, PANCREAS, 20) + lobes, [solid - 1.5])
    canvas.paint(canvas.coverage(gland), patient.blood["pancreas"] + 4 * canvas.fine, Label.BODY)


def _paint_kidney(canvas: Canvas, patient: Patient, kidney: FloatArray, side: int) -> None:
    blood = patient.blood
    _paint_organ(canvas, kidney, blood["cortex"] + 3 * canvas.middle, Label.KIDNEY)
    # Pyramids of the medulla, parted by columns of cortex.
    pyramids = np.maximum(kidney + 6.5, 0.25 - np.abs(canvas.middle))
    canvas.paint(canvas.coverage(pyramids), blood["medulla"] + 3 * canvas.fine)
    cx, cy, cz = KIDNEYS[side]
    s = patient.organ["kidney"]
    pelvis = ellipsoid(((canvas.x - cx) * side + 15 * s, canvas.y - cy - 4, canvas.z - cz), (9 * s, 6 * s, 15 * s))
    canvas.paint(canvas.coverage(pelvis - 2 + 1.5 * canvas.middle), -85)
    canvas.paint(canvas.coverage(pelvis + 3), 10)
    canvas.label[pelvis < 2 * s] = np.where(
        canvas.label[pelvis < 2 * s] == Label.KIDNEY, Label.BODY, canvas.label[pelvis < 2 * s]
    )
    ureter = curve(
        [
            (cx - 26 * side, cy + 8, cz, 3),
            (cx - 24 * side, cy + 22, cz - 50, 2.2),
            (cx - 20 * side, cy + 34, -262, 2.2),
        ],
        8,
    )
    canvas.paint(canvas.coverage(canvas.tube(ureter, ureter[:, 3], 3)), 15)


def _paint_vessels(canvas: Canvas, patient: Patient, aorta: FloatArray, cava: FloatArray) -> None:
    blood = patient.blood
    renal_z = {side: KIDNEYS[side][2] for side in (1, -1)}
    veins = [
        [
            (side * 4 + 16, -12, renal_z[side] + 4, 4),
            (side * 30, -26, renal_z[side] + 2, 4.5),
            (side * 42, -38, renal_z[side], 4),
        ]
        for side in (1, -1)
    ]
    arteries = [
        [
            (-6, -18, renal_z[side] + 10, 3),
            (side * 22, -30, renal_z[side] + 6, 3),
            (side * 42, -42, renal_z[side] + 3, 2.5),
        ]
        for side in (1, -1)
    ]
    arteries += [
        [(-6, -14, -88, 4), (-5, 4, -92, 3.8), (-4, 10, -120, 3.6), (0, 16, -170, 3.2), (6, 18, -215, 2.5)],
        [(-6, -18, -74, 4), (-5, 0, -72, 3.6), (14, 4, -76, 2.8), (34, 4, -72, 2.5)],
        [(-5, 0, -72, 3.2), (-30, -6, -68, 2.8), (-66, -28, -54, 2.4)],
    ]
    for name, paths in (("vena_cava", veins), ("portal", PORTAL), ("aorta", arteries)):
        for path in paths:
            bent = curve(path, 5)
            cover = canvas.coverage(canvas.tube(bent, bent[:, 3], 4))
            body = canvas.label == Label.BODY
            canvas.paint(cover * (body | (canvas.label == Label.GUT)), blood[name])
            canvas.label[(cover > 0.5) & body] = Label.VESSEL
    below = canvas.label != Label.HEART
    canvas.paint(canvas.coverage(cava) * below, blood["vena_cava"] * (1 + 0.05 * canvas.coarse))
    canvas.label[(cava < 0) & below] = Label.VESSEL
    canvas.paint(canvas.coverage(aorta) * (canvas.level < 0), blood["aorta"] * (1 + 0.02 * canvas.coarse), None)
    canvas.label[(aorta < 0) & (canvas.level < 0)] = Label.AORTA
    old = max(patient.age - 50, 0) / 32
    spots = smoothstep(canvas.middle + 0.6 * canvas.coarse, 2.0 - 0.9 * old, 2.6 - 0.9 * old) * float(old > 0)
    canvas.paint(canvas.coverage(np.abs(aorta + 0.3) - 1.3) * spots * (canvas.level < 0), 620)


def _paint_liver(canvas: Canvas, patient: Patient, liver: FloatArray) -> list[Lesion]:
    blood = patient.blood
    bladder = canvas.local(
        (15, 15, -155),
        (75, 65, -85),
        lambda c: ellipsoid((c.x - 42 - 0.3 * (c.z + 118), c.y - 40, c.z + 118), (14.0, 17.0, 27.0)),
    )
    hu = blood["liver"] + 2.2 * canvas.fine + 2.5 * canvas.middle + 1.5 * canvas.coarse
    _paint_organ(canvas, _clear(liver, [bladder], 3), hu, Label.LIVER)
    canvas.paint(canvas.coverage(bladder) * np.isin(canvas.label, (Label.BODY, Label.GUT)), 55, Label.BODY)
    canvas.label[(bladder < 0) & (canvas.label == Label.GUT)] = Label.BODY
    canvas.paint(canvas.coverage(bladder + 2), 7)
    inside = canvas.coverage(np.maximum(liver, -bladder) + 2)
    rng = stream(patient.seed, "liver")
    trees = [
        ("portal", (42, 0, -70), (1.0, 0.3, 0.35), 7.0, 1100, (0.0, 0.0, 1.0)),
        ("hepatic", (23, -8, -16), (0.5, 0.6, -0.5), 7.5, 700, (0.8, -0.4, 0.0)),
    ]
    for name, root, heading, radius, count, normal in trees:
        flat = np.flatnonzero(liver < -7)
        picked = flat[(np.sort(rng.random(count)) * len(flat)).astype(int)] if len(flat) else flat
        index = np.stack(np.unravel_index(picked, canvas.shape), 1)
        tree = grow_tree(
            canvas.place([root])[0],
            np.array(heading),
            canvas.origin + index * canvas.spacing,
            radius,
            rng,
            3,
            0.4,
            normal=normal,
        )
        if len(tree.radius):
            centres, _, radii, _ = tree.sample(canvas.edge * 0.45)
            canvas.paint(canvas.sweep(centres, radii) * inside, blood[name])
    return paint_lesions(canvas, patient, np.maximum(liver, -bladder))
