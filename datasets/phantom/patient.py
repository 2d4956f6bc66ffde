# SPDX-License-Identifier: Apache-2.0
"""What differs between two patients of the phantom: build, organs, contrast phase, scanner."""

from __future__ import annotations

from dataclasses import dataclass

from .texture import stream

PHASES: dict[str, dict[str, float]] = {
    "none": {
        "aorta": 42, "left_heart": 42, "right_heart": 43, "pulmonary": 43, "vena_cava": 42, "portal": 40, "hepatic": 39,
        "liver": 58, "spleen": 49, "cortex": 34, "medulla": 31, "myocardium": 46, "muscle": 54, "pancreas": 42,
        "gut_wall": 40, "hypervascular": 48, "metastasis": 38,
    },
    "arterial": {
        "aorta": 290, "left_heart": 275, "right_heart": 150, "pulmonary": 190, "vena_cava": 75, "portal": 95,
        "hepatic": 62, "liver": 72, "spleen": 112, "cortex": 185, "medulla": 75, "myocardium": 105, "muscle": 58,
        "pancreas": 98, "gut_wall": 75, "hypervascular": 125, "metastasis": 50,
    },
    "portal": {
        "aorta": 160, "left_heart": 150, "right_heart": 148, "pulmonary": 148, "vena_cava": 135, "portal": 175,
        "hepatic": 162, "liver": 105, "spleen": 118, "cortex": 175, "medulla": 150, "myocardium": 108, "muscle": 62,
        "pancreas": 86, "gut_wall": 74, "hypervascular": 92, "metastasis": 68,
    },
    "pulmonary": {
        "aorta": 180, "left_heart": 210, "right_heart": 320, "pulmonary": 340, "vena_cava": 230, "portal": 45,
        "hepatic": 42, "liver": 60, "spleen": 56, "cortex": 50, "medulla": 36, "myocardium": 62, "muscle": 55,
        "pancreas": 46, "gut_wall": 44, "hypervascular": 54, "metastasis": 40,
    },
}  # fmt: skip
"""HU of blood pools and organs by contrast phase: native, late arterial, portal venous, pulmonary angiogram."""


@dataclass(frozen=True)
class Patient:
    """One patient and the scan made of them.

    Args:
        seed: seed of everything random.
        scale: size relative to the standard patient along x, y, z.
        fat_mm: thickness of the subcutaneous fat at the side of the waist, mm.
        visceral: share of fat between the bowel loops, in [0, 1].
        breast: volume of the breasts relative to the standard, 0 for a man.
        age: years; decides bone density and calcified vessel walls.
        inspiration_mm: how far the diaphragm lies below its standard height, mm.
        organ: size of heart, liver, spleen and kidneys relative to the standard.
        lung_hu: HU of the lung's middle without vessels.
        phase: key of ``PHASES``.
        blood: HU of blood pools and organs.
        noise_hu: standard deviation of the noise in the middle of the body at 2 mm voxels, HU.
        kernel_mm: correlation of the noise, mm.
    """

    seed: int
    scale: tuple[float, float, float]
    fat_mm: float
    visceral: float
    breast: float
    age: float
    inspiration_mm: float
    organ: dict[str, float]
    lung_hu: float
    phase: str
    blood: dict[str, float]
    noise_hu: float
    kernel_mm: float


def draw_patient(seed: int, phase: str | None = None) -> Patient:
    """Draw a patient.

    Args:
        seed: >= 0.
        phase: contrast phase, a key of ``PHASES``; drawn where None.

    Returns:
        the patient, the same for the same arguments.

    Raises:
        ValueError: for an unknown phase.
    """
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase must be one of {sorted(PHASES)} or None, got {phase!r}")
    rng = stream(seed, "patient")
    drawn = ("none", "arterial", "portal")[int(rng.integers(3))]
    phase = phase or drawn
    female = rng.random() < 0.5
    build = rng.normal(0, 0.045)
    scale = tuple(float(min(max(1 + build + rng.normal(0, s), 0.86), 1.16)) for s in (0.03, 0.035, 0.03))
    blood = {}
    for organ, hu in PHASES[phase].items():
        spread = 2.0 if hu < 80 else 0.05 * hu
        # Contrast organs vary with the injection, but never so far that liver and spleen leave their usual range.
        blood[organ] = float(hu + spread * min(max(rng.normal(), -1.5), 1.5))
    return Patient(
        seed=seed,
        scale=(scale[0], scale[1], scale[2]),
        fat_mm=float(rng.uniform(6, 20) + 14 * rng.random() ** 3),
        visceral=float(rng.uniform(0.25, 0.9)),
        breast=float(rng.uniform(0.75, 1.25)) if female else 0.0,
        age=float(rng.uniform(35, 82)),
        inspiration_mm=float(rng.uniform(-10, 14)),
        organ={
            "heart": float(rng.uniform(0.92, 1.12)),
            "liver": float(rng.uniform(-14, 14)),
            "spleen": float(rng.uniform(0.85, 1.2)),
            "kidney": float(rng.uniform(0.9, 1.12)),
        },
        lung_hu=float(rng.uniform(-885, -845)),
        phase=phase,
        blood=blood,
        noise_hu=float(rng.uniform(7, 18)),
        kernel_mm=float(rng.uniform(1.4, 2.6)),
    )
