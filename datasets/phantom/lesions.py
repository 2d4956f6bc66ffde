# SPDX-License-Identifier: Apache-2.0
"""Focal liver lesions: metastases, cysts, and lesions that light up in the arterial phase."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, ellipsoid, smoothstep
from .labels import Label, Lesion
from .patient import Patient
from .texture import FloatArray, stream


def paint_lesions(canvas: Canvas, patient: Patient, liver: FloatArray) -> list[Lesion]:
    """Place lesions in the liver.

    Args:
        canvas: where to; the liver is painted already.
        patient: whose.
        liver: signed distance to the liver, mm.

    Returns:
        the lesions; fewer than drawn where the field of view holds little liver.
    """
    rng = stream(patient.seed, "lesions")
    wanted = int(rng.integers(3, 9))
    made: list[Lesion] = []
    for _ in range(30 * wanted):
        if len(made) == wanted:
            break
        radius = float(np.clip(rng.lognormal(np.log(10), 0.5), max(3.5, 1.6 * canvas.edge), 24))
        kind = str(rng.choice(["metastasis", "metastasis", "cyst", "hypervascular"]))
        flat = np.flatnonzero(liver < -(0.75 * radius + 2))
        if not len(flat):
            continue
        index = np.array(np.unravel_index(int(rng.choice(flat)), canvas.shape))
        centre = canvas.origin + index * canvas.spacing
        reach = np.rint(radius / canvas.spacing).astype(int)
        if (index < reach).any() or (index >= np.array(canvas.shape) - reach).any():
            continue
        if any(np.linalg.norm(centre - m.center_mm) < radius + m.diameter_mm / 2 + 6 for m in made):
            continue
        made.append(_paint_lesion(canvas, patient, liver, centre, radius, kind, rng))
    return made


def _paint_lesion(
    canvas: Canvas,
    patient: Patient,
    liver: FloatArray,
    centre: FloatArray,
    radius: float,
    kind: str,
    rng: np.random.Generator,
) -> Lesion:
    box = canvas.box((centre - 2 * radius) / canvas.scale, (centre + 2 * radius) / canvas.scale, 4)
    x, y, z = np.ix_(*[axis[s] - np.float32(c) for axis, s, c in zip(canvas.axes, box, centre, strict=True)])
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turned = [np.float32(t[0]) * x + np.float32(t[1]) * y + np.float32(t[2]) * z for t in turn]
    shape = ellipsoid(turned, [float(radius * f) for f in rng.uniform(0.85, 1.2, 3)])
    rough = {"cyst": 0.04, "metastasis": 0.12, "hypervascular": 0.08}[kind]
    wave = canvas.middle[box] - float(canvas.middle[box].mean())
    shape = shape + np.float32(rough * radius) * wave * smoothstep(np.sqrt(x * x + y * y + z * z), 0.2 * radius, radius)
    inside = canvas.label[box] == Label.LIVER
    blood = patient.blood
    hu = 6.0 if kind == "cyst" else blood[kind] + float(rng.uniform(-6, 6))
    cover = canvas.coverage(shape) * inside
    canvas.paint(cover, hu + (1.0 if kind == "cyst" else 4.0) * wave, None, box)
    if kind == "metastasis" and radius > 7:
        # Large metastases die in the middle and enhance at the rim.
        canvas.paint(canvas.coverage(shape + 0.55 * radius), 0.55 * hu, None, box)
        canvas.paint(canvas.coverage(np.abs(shape + 0.5) - 1.5) * inside * 0.5, blood["liver"] + 8, None, box)
    mask = (cover > 0.5) & inside
    canvas.label[box][mask] = Label.LESION
    volume = float(mask.sum() * np.prod(canvas.spacing))
    x0, y0, z0 = (float(c) for c in centre)
    return Lesion((x0, y0, z0), 2 * (0.75 * volume / np.pi) ** (1 / 3), kind)
