# SPDX-License-Identifier: Apache-2.0
"""A built-in phantom of brain MR with a tumour of three parts, in the four contrasts and the labels of BraTS 2018.

It is to the brain what :mod:`.chest_abdomen_ct` is to chest and abdomen: for a demonstration, for tests,
and no substitute for real scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .brain_anatomy import TISSUES, Mixture, paint_brain
from .brain_patient import BrainPatient, Tumour, draw_brain_patient
from .canvas import Canvas, smoothstep
from .texture import FloatArray, lattice_noise, stream

BRAIN_VERSION = 1
"""Rises whenever the same seed gives other voxels."""

BRAIN_SHAPE = (96, 112, 88)
"""Voxels of the default field of view, of 2 mm."""

SIGNAL: dict[str, dict[str, float]] = {
    "flair": {
        "fluid": 0.12, "grey": 0.80, "white": 0.66, "nucleus": 0.76, "vessel": 0.25, "gliosis": 1.12, "necrosis": 0.62,
        "solid": 1.20, "enhancing": 1.05, "oedema": 1.32,
    },
    "t1": {
        "fluid": 0.22, "grey": 0.66, "white": 1.00, "nucleus": 0.78, "vessel": 0.35, "gliosis": 0.85, "necrosis": 0.38,
        "solid": 0.56, "enhancing": 0.62, "oedema": 0.74,
    },
    "t1ce": {
        "fluid": 0.22, "grey": 0.69, "white": 1.00, "nucleus": 0.80, "vessel": 1.70, "gliosis": 0.86, "necrosis": 0.40,
        "solid": 0.58, "enhancing": 1.45, "oedema": 0.75,
    },
    "t2": {
        "fluid": 1.75, "grey": 0.68, "white": 0.48, "nucleus": 0.56, "vessel": 0.20, "gliosis": 0.75, "necrosis": 1.35,
        "solid": 1.05, "enhancing": 0.85, "oedema": 1.00,
    },
}  # fmt: skip
"""Signal of each tissue by contrast, relative to white matter in T1: fluid is dark in FLAIR and bright in T2, oedema
bright in both, the enhancing rim bright in T1 after contrast only."""


@dataclass(frozen=True)
class BrainPhantom:
    """One synthetic examination.

    Args:
        images: ``flair``, ``t1``, ``t1ce`` and ``t2``, int16, (X, Y, Z), RAS, 0 outside of the brain.
        label: 1 necrosis and non-enhancing tumour, 2 oedema, 4 enhancing tumour, uint8, of the same shape.
        affine: (4, 4), voxel indices to world mm, RAS.
        mixture: share of each tissue in each voxel, noiseless and without blur.
        seed: what it was made from.
        enhancing: whether the tumour enhances; if not there is no label 4.
    """

    images: dict[str, NDArray[np.int16]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    mixture: Mixture
    seed: int
    enhancing: bool


def make_brain_phantom(
    seed: int,
    shape: Sequence[int] = BRAIN_SHAPE,
    spacing: Sequence[float] = (2.0, 2.0, 2.0),
    enhancing: bool | None = None,
    noise: float = 1.0,
) -> BrainPhantom:
    """Make the examination of one synthetic patient.

    Args:
        seed: decides the patient, the tumour, the scanner and the noise; >= 0.
        shape: voxels along x, y, z, each >= 32.
        spacing: voxel sides, mm; the field of view of the default is cut or padded around its middle.
        enhancing: whether the tumour enhances (label 4); drawn where None: four of five do.
        noise: factor on the drawn noise level; 0 gives noiseless images.

    Returns:
        four images and their label.

    Raises:
        ValueError: for a negative seed or noise, or sides that are too small.

    Example:
        >>> phantom = make_brain_phantom(0, shape=(48, 56, 44), spacing=(4, 4, 4))
        >>> sorted(phantom.images), phantom.label.shape, phantom.images["t1"].dtype.name
        (['flair', 't1', 't1ce', 't2'], (48, 56, 44), 'int16')
    """
    if seed < 0 or noise < 0:
        raise ValueError(f"seed and noise must not be negative, got {seed} and {noise}")
    if len(shape) != 3 or min(shape) < 32:
        raise ValueError(f"shape must be three sides of at least 32 voxels, got {tuple(shape)}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    patient = draw_brain_patient(seed, enhancing)
    origin = np.array([0.0, -14.0, 8.0]) - np.asarray(spacing) * (np.asarray(shape) - 1) / 2
    canvas = Canvas(shape, spacing, origin, patient.scale, seed)
    core = _core_distance(canvas, seed, patient.tumour)
    _give_way(canvas, patient.tumour)
    mixture = paint_brain(canvas, seed, patient.ventricle, patient.sulcus_mm, gliosis=0.02 * patient.age)
    label = _paint_tumour(canvas, seed, mixture, patient.tumour, core)
    images = {name: _scan(canvas, mixture, patient, name, noise) for name in SIGNAL}
    return BrainPhantom(images, label, canvas.affine, mixture, seed, patient.tumour.rim_mm > 0)


def _core_distance(canvas: Canvas, seed: int, tumour: Tumour) -> FloatArray:
    """Return the signed distance to the bumpy surface of the tumour's core, mm."""
    offsets = [at - np.float32(c) for at, c in zip((canvas.x, canvas.y, canvas.z), tumour.center, strict=True)]
    rng = stream(seed, "core")
    bumps = 0.16 * lattice_noise(canvas.axes, 14, rng) + 0.10 * lattice_noise(canvas.axes, 7, rng)
    stretch = rng.uniform(0.85, 1.2, 3)
    radius = np.sqrt(sum((offset * s) ** 2 for offset, s in zip(offsets, stretch, strict=True)))
    return np.asarray(radius - np.float32(tumour.radius_mm) * (1 + bumps), np.float32)


def _give_way(canvas: Canvas, tumour: Tumour) -> None:
    """Push the anatomy away from the tumour: what is painted afterwards comes from nearer to its middle."""
    coordinates = (canvas.x, canvas.y, canvas.z)
    squared = sum((at - np.float32(c)) ** 2 for at, c in zip(coordinates, tumour.center, strict=True))
    pull = np.float32(tumour.push) * np.exp(-squared / np.float32(2 * (1.3 * tumour.radius_mm) ** 2))
    canvas.x, canvas.y, canvas.z = (
        at - pull * (at - np.float32(c)) for at, c in zip(coordinates, tumour.center, strict=True)
    )


def _paint_tumour(canvas: Canvas, seed: int, mixture: Mixture, tumour: Tumour, core: FloatArray) -> NDArray[np.uint8]:
    """Paint oedema, solid part, rim and necrosis, and return the label: what fills most of a voxel counts."""
    rng = stream(seed, "tumour tissue")
    brain = np.minimum(mixture.share.sum(0), 1)
    solid_tissue = smoothstep(1 - mixture.of("fluid", "vessel") / np.maximum(brain, 1e-3), 0.4, 0.7)
    white = ndimage.gaussian_filter(mixture.of("white", "gliosis"), 0.5)
    # oedema spreads along white matter in fingers and stops at the cortex
    reach = np.float32(tumour.oedema_mm) * np.clip(0.75 + 0.5 * lattice_noise(canvas.axes, 22, rng), 0.1, 1.8)
    spread = core + np.float32(1.6) * np.float32(tumour.oedema_mm) * (np.float32(0.9) - white).clip(0, 1) - reach
    middle = np.abs(canvas.x) - np.float32(2)
    other_side = canvas.x * np.float32(np.sign(tumour.center[0])) < 0
    spread = np.maximum(spread, np.where(other_side, -np.float32(0.5) * core + middle, -99).astype(np.float32))
    oedema = canvas.coverage(spread) * solid_tissue * brain
    inside = canvas.coverage(core) * np.maximum(solid_tissue, np.float32(0.999) * (core < -2)) * brain
    oedema = np.maximum(oedema, inside)
    mixture.paint("oedema", oedema.copy())
    mixture.paint("solid", inside.copy())
    enhancing = np.zeros_like(inside)
    if tumour.rim_mm > 0:
        patchy = np.float32(tumour.rim_mm) * np.clip(1 + 0.55 * lattice_noise(canvas.axes, 9, rng), 0, 2.2)
        rim = np.maximum(core, -core - patchy)
        enhancing = canvas.coverage(rim) * inside
        mixture.paint("enhancing", enhancing.copy())
        mixture.paint("necrosis", canvas.coverage(core + patchy) * inside)
    label = np.zeros(canvas.shape, np.uint8)
    label[oedema > 0.5] = 2
    label[inside > 0.5] = 1
    label[enhancing > 0.5] = 4
    return label


def _scan(canvas: Canvas, mixture: Mixture, patient: BrainPatient, contrast: str, noise: float) -> NDArray[np.int16]:
    """Give the tissues their signal, and add what a scanner and a patient add: texture, bias, blur, Rician noise."""
    rng = stream(patient.seed, f"scan {contrast}")
    signal = np.zeros(canvas.shape, np.float32)
    for tissue, share in zip(TISSUES, mixture.share, strict=True):
        signal += share * np.float32(SIGNAL[contrast][tissue] * rng.normal(1, 0.03))
    signal *= 1 + np.float32(0.025) * canvas.middle + np.float32(0.03) * canvas.coarse
    bias = lattice_noise(canvas.axes, 80, rng) * np.float32(patient.bias)
    # slices are thicker than voxels in most examinations; the blur is that of about 1.2 mm in and 2 mm across them
    blurred = ndimage.gaussian_filter(signal, [0.45 * 2 / canvas.edge, 0.45 * 2 / canvas.edge, 0.6 * 2 / canvas.edge])
    blurred *= np.exp(bias)
    if noise:
        # the magnitude of a complex signal with noise in both parts follows Rice's distribution
        sigma = np.float32(patient.noise * noise * (2.0 / canvas.edge) ** 1.5)
        real = blurred + sigma * rng.standard_normal(canvas.shape, dtype=np.float32)
        blurred = np.hypot(real, sigma * rng.standard_normal(canvas.shape, dtype=np.float32))
    brain = mixture.share.sum(0) > 0.5
    return np.where(brain, np.clip(np.rint(blurred * patient.gain[contrast]), 1, 32767), 0).astype(np.int16)
