# SPDX-License-Identifier: Apache-2.0
"""What differs between two patients of the brain phantom: head, age, tumour, scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .brain_anatomy import hemisphere_distance, ventricle_distance
from .texture import stream


@dataclass(frozen=True)
class Tumour:
    """The tumour of one patient.

    Args:
        center: its middle, body mm.
        radius_mm: mean radius of the core.
        oedema_mm: how far the oedema reaches beyond the core in white matter, mm.
        rim_mm: mean thickness of the enhancing rim; 0 for a tumour that does not enhance.
        push: how far tissue gives way, as a share of the radius.
    """

    center: tuple[float, float, float]
    radius_mm: float
    oedema_mm: float
    rim_mm: float
    push: float


@dataclass(frozen=True)
class BrainPatient:
    """One patient and the examination made of them.

    Args:
        seed: seed of everything random.
        scale: size relative to the standard brain along x, y, z.
        age: years; widens ventricles and sulci.
        ventricle: size of the ventricles relative to the standard.
        sulcus_mm: half width of the sulci at the surface, mm.
        tumour: the tumour.
        noise: standard deviation of the noise relative to white matter in T1.
        bias: standard deviation of the logarithm of the bias field.
        gain: values of a voxel per unit of signal, by contrast.
    """

    seed: int
    scale: tuple[float, float, float]
    age: float
    ventricle: float
    sulcus_mm: float
    tumour: Tumour
    noise: float
    bias: float
    gain: dict[str, float]


def draw_brain_patient(seed: int, enhancing: bool | None = None) -> BrainPatient:
    """Draw a patient.

    Args:
        seed: >= 0.
        enhancing: whether the tumour enhances; None draws it (four of five do).

    Returns:
        the patient, the same for the same arguments.
    """
    rng = stream(seed, "brain patient")
    build = rng.normal(0, 0.03)
    scale = [float(np.clip(1 + build + rng.normal(0, 0.025), 0.9, 1.1)) for _ in range(3)]
    age = float(rng.uniform(28, 80))
    ventricle = float(0.75 + 0.006 * (age - 28) + rng.uniform(0, 0.2))
    gain = {name: float(rng.uniform(250, 900)) for name in ("flair", "t1", "t1ce", "t2")}
    # drawn in any case, so that the choice changes nothing else
    enhances = bool(rng.random() < 0.8)
    return BrainPatient(
        seed=seed,
        scale=(scale[0], scale[1], scale[2]),
        age=age,
        ventricle=ventricle,
        sulcus_mm=float(0.5 + 0.008 * (age - 28) + rng.uniform(0, 0.2)),
        tumour=_draw_tumour(seed, enhances if enhancing is None else enhancing, ventricle),
        noise=float(rng.uniform(0.012, 0.03)),
        bias=float(rng.uniform(0.06, 0.14)),
        gain=gain,
    )


def _draw_tumour(seed: int, enhancing: bool, ventricle: float) -> Tumour:
    """Draw a tumour that lies in the white matter of a hemisphere, most of it inside."""
    rng = stream(seed, "tumour")
    radius = float(rng.uniform(10, 20))
    rim = float(rng.uniform(2.5, 5.0))
    side = -1.0 if rng.random() < 0.5 else 1.0
    places = rng.uniform((20, -70, -8), (52, 48, 52), (400, 3)).astype(np.float32)
    x, y, z = places.T
    depth = -hemisphere_distance(x, y, z)
    good = (depth > 0.75 * radius) & (ventricle_distance(x, y, z, ventricle) > 0.75 * radius)
    first = places[np.argmax(good)] if good.any() else np.array([34.0, -15.0, 30.0])
    return Tumour(
        center=(side * float(first[0]), float(first[1]), float(first[2])),
        radius_mm=radius,
        oedema_mm=float(rng.uniform(8, 20)),
        rim_mm=rim if enhancing else 0.0,
        push=float(rng.uniform(0.15, 0.4)),
    )
