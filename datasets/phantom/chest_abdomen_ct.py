# SPDX-License-Identifier: Apache-2.0
"""A built-in phantom of chest and abdomen CT: anatomy-like, labelled, and the same for the same seed.

It stands in for scans that may not be shipped: for a demonstration, for tests, and to see a pipeline work before real
data are at hand. It is made from scratch in body coordinates (:mod:`.canvas`), by a wall (:mod:`.body`), organs
(:mod:`.chest`, :mod:`.abdomen`) with trees that fill them (:mod:`.vessel_tree`), and scanner noise (:mod:`.texture`).
It is no substitute for real scans: numbers measured on it say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .abdomen import paint_abdomen
from .body import paint_blanket, paint_wall
from .canvas import Canvas
from .chest import Chest, diaphragm_distance, paint_chest
from .labels import Label, Lesion, Nodule, VesselFinding
from .patient import Patient, draw_patient
from .texture import ct_noise, noise_level, stream

VERSION = 1
"""Rises whenever the same seed gives other voxels."""

REGIONS = {"chest": (-66.0, 212.0), "abdomen": (-226.0, 34.0), "chest_abdomen": (-200.0, 212.0)}
"""Lower and upper end of each region, body mm; 0 is the dome of the right diaphragm."""

SPACING = {"chest": (1.2, 1.2, 2.0), "abdomen": (2.0, 2.0, 2.5), "chest_abdomen": (2.2, 2.2, 2.7)}
"""Typical voxel sides of each region, mm; patients differ by up to 8 %."""


@dataclass(frozen=True)
class Phantom:
    """One synthetic scan.

    Args:
        image: HU, int16, (X, Y, Z), RAS: the axes point to the patient's right, front and head.
        label: values of ``Label``, uint8, of the same shape.
        affine: (4, 4), voxel indices to world mm, RAS.
        nodules: the lung nodules.
        lesions: the liver lesions.
        seed: what it was made from.
        region: what it shows.
        phase: contrast phase, a key of ``PHASES``.
        emboli: filling defects of the pulmonary arteries, in the phase ``"pulmonary"`` only.
        lookalikes: what looks like an embolus but is not one, in that phase.
        embolus_mask: number of the embolus from 1 in each of its voxels, uint8, of the image's shape, in that phase.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    nodules: tuple[Nodule, ...]
    lesions: tuple[Lesion, ...]
    seed: int
    region: str
    phase: str
    emboli: tuple[VesselFinding, ...] = ()
    lookalikes: tuple[VesselFinding, ...] = ()
    embolus_mask: NDArray[np.uint8] | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sides, mm."""
        x, y, z = (float(v) for v in np.diag(self.affine)[:3])
        return x, y, z


def make_phantom(
    seed: int,
    region: str = "chest_abdomen",
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    phase: str | None = None,
    noise: float = 1.0,
) -> Phantom:
    """Make the scan of one synthetic patient.

    Args:
        seed: decides the patient, the scanner and the noise; >= 0.
        region: ``"chest"``, ``"abdomen"`` or ``"chest_abdomen"``. The chest is shown in a field of view around the
            ribs, as lungs are reconstructed, the others with all of the skin.
        shape: voxels along x, y, z, each >= 32; what the field of view needs where None.
        spacing: voxel sides, mm; drawn around ``SPACING`` where both are None, and what spreads ``shape`` over the
            field of view where only ``shape`` is given. With both the field of view is cut or padded around its middle.
        phase: contrast phase: ``"none"``, ``"arterial"``, ``"portal"``, or ``"pulmonary"``, an angiogram of the
            pulmonary arteries with emboli; one of the first three is drawn where None.
        noise: factor on the drawn noise level; 0 gives the noiseless image.

    Returns:
        image, labels, affine, and lists of nodules and lesions.

    Raises:
        ValueError: for an unknown region or phase, a negative seed or noise, or sides that are too small.

    Example:
        >>> phantom = make_phantom(0, "chest", shape=(48, 40, 40))
        >>> phantom.image.shape, phantom.image.dtype.name, phantom.label.dtype.name
        ((48, 40, 40), 'int16', 'uint8')
    """
    if region not in REGIONS:
        raise ValueError(f"region must be one of {sorted(REGIONS)}, got {region!r}")
    if seed < 0 or noise < 0:
        raise ValueError(f"seed and noise must not be negative, got {seed} and {noise}")
    patient = draw_patient(seed, phase)
    canvas = _canvas(patient, region, shape, spacing)
    wall = paint_wall(canvas, patient)
    box = canvas.box((-134, -112, -400), (134, 104, 400))
    trunk, inner = canvas.crop(box), wall.crop(box)
    diaphragm = diaphragm_distance(trunk, patient)
    findings = Chest([], None)
    lesions: list[Lesion] = []
    chest = trunk.box((-400, -400, -112), (400, 400, 400), 0)
    if REGIONS[region][1] > 0 and trunk.hu[chest].size:
        findings = paint_chest(trunk.crop(chest), patient, inner.crop(chest), diaphragm[chest])
    belly = trunk.box((-400, -400, -400), (400, 400, 26), 0)
    if trunk.hu[belly].size:
        lesions = paint_abdomen(trunk.crop(belly), patient, inner.crop(belly), diaphragm[belly])
    paint_blanket(canvas, patient, wall)
    mask = None
    if findings.emboli is not None:
        mask = np.zeros(canvas.shape, np.uint8)
        mask[box][chest] = findings.emboli.mask
    return Phantom(
        image=_scan(canvas, patient, noise),
        label=canvas.label,
        affine=canvas.affine,
        nodules=tuple(findings.nodules),
        lesions=tuple(lesions),
        seed=seed,
        region=region,
        phase=patient.phase,
        emboli=findings.emboli.emboli if findings.emboli else (),
        lookalikes=findings.emboli.lookalikes if findings.emboli else (),
        embolus_mask=mask,
    )


def _canvas(patient: Patient, region: str, shape: Sequence[int] | None, spacing: Sequence[float] | None) -> Canvas:
    """Return an empty canvas whose field of view fits the patient."""
    if shape is not None and (len(shape) != 3 or min(shape) < 32):
        raise ValueError(f"shape must be three sides of at least 32 voxels, got {tuple(shape)}")
    if spacing is not None and (len(spacing) != 3 or not 0 < min(spacing) <= max(spacing) < np.inf):
        raise ValueError(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    rng = stream(patient.seed, "field of view")
    low, high = REGIONS[region]
    scale = np.array(patient.scale)
    if region == "chest":
        start, stop = np.array([-156.0, -128.0, low]), np.array([156.0, 112.0, high])
    else:
        side, front = 164 + patient.fat_mm, 112 + 1.2 * patient.fat_mm + 24 * patient.breast
        start, stop = np.array([-side, -126 - patient.fat_mm, low]), np.array([side, front, high])
    extent, middle = (stop - start) * scale, (start + stop) / 2 * scale
    if spacing is None and shape is not None:
        spacing = tuple(extent / np.asarray(shape, float))
    elif spacing is None:
        in_plane, axial = rng.uniform(0.92, 1.08, 2)
        spacing = tuple(np.array(SPACING[region]) * (in_plane, in_plane, axial))
    if shape is None:
        shape = tuple(int(n) for n in np.rint(extent / spacing))
        if min(shape) < 32:
            raise ValueError(f"spacing must leave at least 32 voxels a side, got {tuple(spacing)} mm and {shape}")
    origin = middle - np.asarray(spacing) * (np.asarray(shape) - 1) / 2
    return Canvas(shape, spacing, origin, patient.scale, patient.seed)


def _scan(canvas: Canvas, patient: Patient, noise: float) -> NDArray[np.int16]:
    """Blur the canvas as a reconstruction does, add the scanner's noise, and round to whole HU."""
    image = ndimage.gaussian_filter(canvas.hu, 0.42)
    if noise:
        grain = ct_noise(canvas.shape, canvas.spacing, patient.kernel_mm, stream(patient.seed, "noise"))
        # Averaging over larger voxels lowers the noise, but less than for independent photons: slices share data.
        amount = patient.noise_hu * noise * (2.0 / canvas.edge) ** 0.5
        image += grain * noise_level(canvas.hu, canvas.spacing) * np.float32(amount)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


__all__ = ["REGIONS", "VERSION", "Label", "Lesion", "Nodule", "Phantom", "make_phantom"]
