# SPDX-License-Identifier: Apache-2.0
"""The wall of the trunk: skin, fat, muscle, ribs, sternum, shoulder girdle, spine, and the table below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Box, Canvas, Knots, curve, ellipsoid, oval, profile, smooth_max, smooth_min, smoothstep
from .labels import Label
from .patient import Patient
from .texture import FloatArray, lattice_noise, stream

# Half widths and depths by height (body mm): the cavity inside the ribs, and the muscular outline of the trunk.
CAVITY_WIDTH = [
    (-260, 114), (-150, 115), (-90, 120), (-40, 126), (0, 127), (50, 124), (100, 114), (140, 99), (170, 79), (190, 56),
    (203, 28), (208, 4),
]  # fmt: skip
CAVITY_DEPTH = [
    (-260, 84),
    (-150, 84),
    (-60, 90),
    (0, 93),
    (50, 93),
    (100, 86),
    (140, 71),
    (170, 54),
    (190, 37),
    (208, 4),
]
CAVITY_CENTRE = [(-260, 4), (0, 1), (60, -2), (100, -9), (140, -19), (175, -28), (208, -31)]
OUTLINE_WIDTH = [
    (-260, 134),
    (-150, 131),
    (-60, 138),
    (0, 144),
    (60, 144),
    (110, 148),
    (150, 158),
    (180, 166),
    (215, 158),
]
OUTLINE_DEPTH = [(-260, 100), (0, 108), (60, 107), (110, 102), (150, 92), (180, 80), (215, 66)]
OUTLINE_CENTRE = [(-260, -3), (0, -4), (60, -5), (110, -11), (150, -17), (180, -21), (215, -24)]
SPINE_Y = [
    (-260, -38),
    (-200, -32),
    (-150, -34),
    (-65, -48),
    (0, -56),
    (50, -59),
    (110, -60),
    (165, -52),
    (205, -42),
    (260, -30),
]

RIB_PITCH = 23.6
FIRST_RIB_Z = 196.0
# Where each rib's bone ends, from 0 at the spine to 1 at the sternum; ribs 11 and 12 float.
RIB_END = np.array([0.80, 0.80, 0.80, 0.80, 0.80, 0.79, 0.77, 0.73, 0.68, 0.62, 0.40, 0.27], np.float32)
CARTILAGE_END = np.array([0.95] * 7 + [0.90, 0.80, 0.70, 0.41, 0.28], np.float32)


@dataclass(frozen=True)
class Wall:
    """Signed distances that the organs inside are fitted to, mm, negative inside.

    Args:
        cavity: inner surface of the ribs and of the abdominal wall.
        skin: surface of the body.
        spine_y: body y of the vertebral bodies' middle, for each slice.
    """

    cavity: FloatArray
    skin: FloatArray
    spine_y: FloatArray

    def crop(self, box: Box) -> Wall:
        """Return the part of the surfaces in a box."""
        return Wall(self.cavity[box], self.skin[box], self.spine_y[box[2]])


def paint_wall(canvas: Canvas, patient: Patient) -> Wall:
    """Paint table, skin, fat, muscle and all bones; the cavity is left full of fat.

    Args:
        canvas: where to.
        patient: whose.

    Returns:
        the surfaces that the organs are fitted to.
    """
    level = canvas.level
    x, y = canvas.x, canvas.y
    spine_y = profile(level, SPINE_Y)
    cavity = _trunk_oval(canvas, CAVITY_WIDTH, CAVITY_DEPTH, CAVITY_CENTRE, 0.32)
    # The spine with its muscles stands into the cavity: behind it lie the gutters that the lungs fill.
    ridge = canvas.local(
        (-75, -140, -400), (75, 10, 400), lambda c: ellipsoid((c.x, c.y - (spine_y - 44)), (40.0, 26.0)), margin=40
    )
    cavity = smooth_max(cavity, -ridge, 18)
    outline = _trunk_oval(canvas, OUTLINE_WIDTH, OUTLINE_DEPTH, OUTLINE_CENTRE, 0.5)
    outline = outline + 5 * np.exp(-((x / 13) ** 2)) * (y < 0) + 1.6 * canvas.coarse
    skin = _skin(canvas, patient, outline)
    _paint_table(canvas, patient, skin)
    _paint_fat(canvas, skin)
    _paint_muscle(canvas, patient, cavity, outline)
    canvas.paint(canvas.coverage(cavity), -102 + 7 * canvas.middle, Label.BODY)
    _paint_ribs(canvas, patient, cavity)
    _paint_sternum(canvas, patient, cavity)
    _paint_shoulders(canvas, patient, cavity, outline)
    _paint_spine(canvas, patient, spine_y)
    return Wall(cavity, skin, spine_y)


def _trunk_oval(canvas: Canvas, width: Knots, depth: Knots, centre: Knots, squareness: float) -> FloatArray:
    a, b, y0 = (profile(canvas.level, knots) for knots in (width, depth, centre))
    # Where the outline narrows with height, the distance across is longer than the distance to the slanted surface.
    slope = np.gradient(a, canvas.level) if len(a) > 1 else np.zeros_like(a)
    return oval(canvas.x, canvas.y - y0, a, b, squareness) / np.sqrt(1 + np.minimum(slope**2, 9))


def _skin(canvas: Canvas, patient: Patient, outline: FloatArray) -> FloatArray:
    x, y, level = canvas.x, canvas.y, canvas.level
    amount = profile(level, [(-260, 1.25), (-120, 1.2), (0, 0.95), (120, 0.75), (200, 0.85)])
    front = np.clip(y / 100, -1, 1)
    fat = patient.fat_mm * amount * (1 + 0.25 * front + 0.12 * canvas.coarse) - 3 * np.exp(-((x / 12) ** 2)) * (y < 0)
    skin = outline - np.maximum(fat, 3)
    if patient.breast:
        size = patient.breast
        radii = (58.0 * size, (30 + patient.fat_mm) * size, 52.0 * size)
        breasts = canvas.local(
            (-160, 20, -10),
            (160, 180, 155),
            lambda c: ellipsoid((np.abs(c.x) - 72, c.y - 84, c.z - 72), radii),
            margin=30,
        )
        skin = smooth_min(skin, breasts, 28)
    return skin


def _paint_fat(canvas: Canvas, skin: FloatArray) -> None:
    inside = canvas.coverage(skin)
    canvas.paint(inside, 15 + 20 * canvas.fine, Label.BODY)
    # Fibrous septa run through the fat as thin bright ridges: the zeros of a smooth field.
    septa = np.exp(-((canvas.middle * 9) ** 2)) + 0.6 * np.exp(-(((canvas.middle - canvas.coarse) * 7) ** 2))
    canvas.paint(canvas.coverage(skin + 2.0), -108 + 3 * canvas.coarse + 38 * septa)


def _paint_muscle(canvas: Canvas, patient: Patient, cavity: FloatArray, outline: FloatArray) -> None:
    x, y, level = canvas.x, canvas.y, canvas.level
    spine_y = profile(level, SPINE_Y)
    inner = cavity - (13 + 2 * canvas.coarse)
    coat = profile(level, [(-260, 30), (-20, 30), (60, 15), (130, 13), (215, 15)])
    outer = -outline - coat - 3 * canvas.coarse
    # Between the muscles on the ribs and those under the skin lies the fat of the axilla.
    muscle = np.minimum(inner, outer)
    erector = canvas.local(
        (-52, -125, -400), (52, -30, 400), lambda c: ellipsoid((np.abs(c.x) - 25, c.y - (spine_y - 41)), (24.0, 21.0))
    )
    muscle = np.minimum(muscle, erector)
    scapular = canvas.local(
        (-145, -95, 80),
        (145, -30, 218),
        lambda c: ellipsoid((np.abs(c.x) - 104, c.y + 62, c.z - 150), (34.0, 26.0, 62.0)),
    )
    muscle = smooth_max(np.minimum(muscle, scapular), outline, 4)
    marbling = 0.5 + 3.2 * (patient.age - 30) / 50
    streaks = np.clip(np.abs(canvas.fine + canvas.middle) - 2.0, 0, 2) * 18 * marbling
    canvas.paint(canvas.coverage(muscle), patient.blood["muscle"] + 5 * canvas.fine + 3 * canvas.middle - streaks)
    planes = smoothstep(canvas.coarse, -0.6, 0.4)
    canvas.paint_sheet(cavity - (14 + 2 * canvas.middle), 2.2, -85, planes * (outline < -5))
    below = profile(level, [(-40, 1), (0, 0)]) * (np.abs(x) > 42) * (outline < -3)
    for depth in (6.0, 11.5):
        canvas.paint_sheet(cavity - (depth + 0.8 * canvas.coarse), 1.3, -80, below)
    canvas.paint_sheet(erector - 1.0, 1.4, -80, (outline < -4) * (cavity > 3) * 1.0)
    # The linea alba parts the two straight muscles of the belly.
    canvas.paint_sheet(
        np.abs(x) - 0.5 + 0 * y,
        4.0,
        -60,
        profile(level, [(-30, 1), (-5, 0)]) * ((y > 40) & (outline < -3) & (cavity > 3)),
    )


def _paint_bone(
    canvas: Canvas, patient: Patient, distance: FloatArray, cortex_mm: float, box: Box = np.s_[:, :, :]
) -> None:
    """Paint a bone: a bright cortex around trabecular marrow that thins with age."""
    fine, middle = canvas.fine[box], canvas.middle[box]
    density = 1.15 - 0.45 * (patient.age - 35) / 47
    canvas.paint(canvas.coverage(distance), 700 + 180 * density + 60 * middle, Label.BONE, box)
    canvas.paint(canvas.coverage(distance + cortex_mm), 45 + 150 * density + 38 * fine + 22 * middle, None, box)


def _paint_ribs(canvas: Canvas, patient: Patient, cavity: FloatArray) -> None:
    chest = (canvas.level > -90)[None, None, :]
    flat = np.flatnonzero((cavity > -3) & (cavity < 14) & chest)
    x, y, z, shell = (field.reshape(-1)[flat] for field in (canvas.x, canvas.y, canvas.z, cavity))
    level = canvas.level[flat % canvas.shape[2]]
    a, b, y0 = (np.interp(level, *np.asarray(k, float).T) for k in (CAVITY_WIDTH, CAVITY_DEPTH, CAVITY_CENTRE))
    around = (np.arctan2(np.abs(x) / a, -(y - y0) / b) / np.pi).astype(np.float32)
    # Ribs slope down from the spine to their end; the cartilages climb back to the sternum.
    drop = 74 * smoothstep(around, 0.0, 0.86) - 20 * smoothstep(around, 0.78, 1.0)
    drop = drop * (1 - 0.5 * smoothstep(z, 60, 215)) + 0.6 * canvas.coarse.reshape(-1)[flat]
    number = (FIRST_RIB_Z - z - drop) / RIB_PITCH
    rib = np.clip(np.rint(number), 0, 11).astype(int)
    across = np.abs(number - rib) * RIB_PITCH * (0.92 - 0.12 * smoothstep(around, 0.1, 0.5))
    half = np.where(rib == 0, 4.6, 6.2).astype(np.float32) * (1 - 0.15 * (rib > 9))
    depth = 3.6 + 0.5 * np.sin(np.pi * around)
    band = ellipsoid((shell - 5.2, across), (depth, half))
    bone = np.maximum(band, np.maximum(around - RIB_END[rib], 0.075 - around) * 260)
    gristle = np.maximum(band - 0.8, np.maximum(around - CARTILAGE_END[rib], RIB_END[rib] - around) * 260)
    field = np.full(canvas.shape, 9.0, np.float32)
    field.reshape(-1)[flat] = gristle
    old = max(patient.age - 45, 0) / 40
    chalk = np.clip(canvas.fine + 0.5 * canvas.middle - 1.2, 0, 1) * 260 * old
    canvas.paint(canvas.coverage(field), 95 + chalk)
    field.reshape(-1)[flat] = bone
    _paint_bone(canvas, patient, field, 1.2)


def _paint_sternum(canvas: Canvas, patient: Patient, cavity: FloatArray) -> None:
    box = canvas.box((-40, 0, -20), (40, 110, 185))
    x, z, shell = canvas.x[box], canvas.z[box], cavity[box]
    width = profile(canvas.level[box[2]], [(-12, 5), (0, 12), (40, 19), (110, 14), (128, 16), (150, 29), (176, 27)])
    plate = smooth_max(np.abs(shell - 7.5) - 5.0, np.abs(x) - width, 5)
    ends = np.maximum(-10 - z, z - (172 + 0.02 * x * x)) * (canvas.y[box] > 0) + 99 * (canvas.y[box] <= 0)
    _paint_bone(canvas, patient, smooth_max(plate, ends, 3), 1.3, box)
    angle = np.abs(z - 126) - 1.0
    canvas.paint(canvas.coverage(np.maximum(np.maximum(angle, plate), ends)), 90, Label.BODY, box)


def _paint_shoulders(canvas: Canvas, patient: Patient, cavity: FloatArray, outline: FloatArray) -> None:
    for side in (-1, 1):
        box = canvas.box((min(52 * side, 150 * side), -120, 84), (max(52 * side, 150 * side), -10, 218))
        x, y, z = (field[box] for field in (canvas.x, canvas.y, canvas.z))
        height = smoothstep(z, 88, 185)
        lateral, medial = 108 + 26 * height, 92 - 26 * smoothstep(z, 88, 130)
        middle, half = (lateral + medial) / 2, (lateral - medial) / 2
        along = (x * side - middle) / np.maximum(half, 3)
        # The blade lies on the ribs behind and turns forward at its outer border.
        sheet = y + 72 - 10 * height - 14 * np.maximum(along, -1) - 5 * along**2
        blade = np.abs(sheet) * 0.8 - (1.8 + 1.8 * smoothstep(np.abs(along), 0.6, 1.0))
        edge = np.maximum(np.maximum((np.abs(along) - 1) * np.maximum(half, 3), 88 - z), z - 200)
        shape = np.maximum(np.maximum(blade, edge), 12.5 - cavity[box])
        _paint_bone(canvas, patient, smooth_max(shape, outline[box] + 3, 2), 1.1, box)
        collar = curve([(20 * side, 38, 172), (52 * side, 46, 181), (95 * side, 22, 196), (140 * side, -14, 205)])
        _paint_bone(canvas, patient, canvas.tube(collar, 5.6, 4.0), 1.3)


def _levels() -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of the vertebrae's borders, rising, and each vertebra's height."""
    height = np.array([36.0, 36, 36, 35, 33, 31] + [RIB_PITCH] * 12 + [18.0] * 4)
    border = FIRST_RIB_Z + 10 - 12 * RIB_PITCH - height[:6].sum() + np.concatenate(([0.0], np.cumsum(height)))
    return border, height


def _paint_spine(canvas: Canvas, patient: Patient, spine_y: FloatArray) -> None:
    box = canvas.box((-52, -130, -300), (52, -5, 300))
    border, height = _levels()
    z = canvas.z[box]
    t = np.interp(z, border, np.arange(len(border))).astype(np.float32)
    number = np.clip(t.astype(int), 0, len(height) - 1)
    part, tall = t - number, height.astype(np.float32)[number]
    x, y = canvas.x[box], canvas.y[box] - spine_y[box[2]]
    level = canvas.level[box[2]]
    rx = profile(level, [(-250, 26), (-70, 20), (50, 16), (150, 14), (205, 13)])
    ry = profile(level, [(-250, 18), (-70, 16), (50, 15), (150, 12), (205, 10)])
    to_disc = np.minimum(part, 1 - part) * tall
    half_disc = profile(level, [(-250, 5.2), (-70, 3.4), (50, 2.2), (205, 1.9)])
    waist = 1 - 0.12 * np.sin(np.pi * part)
    column = ellipsoid((x, y), (rx * waist, ry * waist))
    disc = np.maximum(ellipsoid((x, y), (rx * 0.97, ry * 0.97)), to_disc - half_disc)
    body = smooth_max(column, half_disc - to_disc, 1.5)
    behind = y + ry + 6.5
    canal = ellipsoid((x, behind), (10.5, 8.0))
    arch = np.maximum(ellipsoid((x, behind + 1.5), (17.0, 13.5)), -canal)
    arch = smooth_max(arch, (np.abs(part - 0.55) - 0.33) * tall, 2)
    reach = np.clip(np.abs(x), 12, profile(level, [(-250, 38), (-70, 26), (100, 30), (205, 24)]))
    wing = (
        np.sqrt((np.abs(x) - reach) ** 2 + (behind + 6 + 0.3 * (reach - 12)) ** 2 + ((part - 0.62) * tall) ** 2) - 4.3
    )
    back = np.clip(behind, profile(level, [(-250, -36), (-20, -30), (205, -24)]), -10)
    lean = profile(level, [(-150, 0.1), (-20, 0.45), (100, 0.75), (205, 0.5)])
    height_off = (part - 0.5) * tall - lean * (behind + 12)
    height_off = (height_off + tall / 2) % tall - tall / 2
    spine = np.sqrt((x * 1.1) ** 2 + (behind - back) ** 2 + (np.maximum(np.abs(height_off) - 5, 0)) ** 2) - 3.6
    bone = np.minimum(np.minimum(smooth_min(body, arch, 3), spine), wing)
    canvas.paint(canvas.coverage(disc), 82 + 6 * canvas.middle[box], Label.BODY, box)
    _paint_bone(canvas, patient, np.maximum(bone, -canal), 1.4, box)
    # Veins enter the vertebral body from behind: a dark cleft at half height.
    vein = np.maximum(np.maximum(np.abs(part - 0.5) * tall - 1.2, np.abs(x) - 4), np.maximum(y, -y - ry))
    canvas.paint(canvas.coverage(vein) * 0.6, 60, None, box)
    canvas.paint(canvas.coverage(canal), 18 + 4 * canvas.middle[box], Label.BODY, box)
    canvas.paint(canvas.coverage(ellipsoid((x, behind), (5.5, 4.5))), 38, None, box)


def _paint_table(canvas: Canvas, patient: Patient, skin: FloatArray) -> None:
    """Paint a curved table top under the back, a mattress on it, and outside air with a trace of noise below."""
    rng = stream(patient.seed, "table")
    x, y = canvas.axes[0][:, None], canvas.axes[1][None, :]
    columns = (skin < 0).any(axis=2)
    lowest = canvas.axes[1][np.flatnonzero(columns.any(axis=0))[0]] if columns.any() else canvas.axes[1][0]
    curvature = float(rng.uniform(0.0012, 0.0022))
    top = float(lowest) - float(rng.uniform(3, 8))
    height = y - top - curvature * x**2
    sheets = [
        (-6.0, 5.0, -910.0),
        (0.0, 1.6, float(rng.uniform(-250, 150))),
        (-26.0, 1.6, float(rng.uniform(-150, 250))),
    ]
    for offset, thickness, hu in sheets:
        cover = canvas.coverage(np.abs(height - offset) - np.float32(thickness / 2)) * min(1.0, thickness / canvas.edge)
        canvas.paint((cover * (np.abs(x) < 215))[:, :, None].astype(np.float32), hu)


def paint_blanket(canvas: Canvas, patient: Patient, wall: Wall) -> None:
    """Paint folds of a thin blanket over the patient, faint as they are in real scans."""
    folds = lattice_noise(canvas.axes, 60, stream(patient.seed, "blanket"))
    distance = wall.skin - (7 + 4 * folds)
    weight = smoothstep(folds, -0.4, 0.5) * (wall.skin > 2) * (canvas.y > -60)
    canvas.paint_sheet(distance, 1.0, -820, weight)
