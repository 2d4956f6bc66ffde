# SPDX-License-Identifier: Apache-2.0
"""Random fields of the phantom: smooth anatomical variation and the noise of a CT scanner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

FloatArray = NDArray[np.floating[Any]]
"""What fields are made of; float32 in practice, for speed."""

# A cubic B-spline averages white lattice noise; these are the mean squares of its weights along one axis.
_BSPLINE_POWER = 151.0 / 315.0


def stream(seed: int, name: str) -> np.random.Generator:
    """Return an independent random stream for one part of the phantom.

    Every part draws from its own stream, so that a part added later leaves all others as they were.

    Args:
        seed: seed of the patient, >= 0.
        name: what the numbers are for.

    Returns:
        a generator that depends on the two arguments alone.
    """
    return np.random.default_rng([seed, *name.encode()])


def _bspline_matrix(axis: FloatArray, wavelength: float) -> FloatArray:
    """Return the (len(axis), nodes) weights that evaluate a uniform cubic B-spline at the points of ``axis`` (mm)."""
    t = (axis - axis[0]) / wavelength
    node = np.floor(t).astype(int)
    u = t - node
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    matrix = np.zeros((axis.size, int(node[-1]) + 4), np.float32)
    for offset, weight in enumerate(weights):
        matrix[np.arange(axis.size), node + offset] = weight / 6
    return matrix


def lattice_noise(axes: Sequence[FloatArray], wavelength: float, rng: np.random.Generator) -> FloatArray:
    """Return smooth random variation of unit variance: a cubic B-spline through random numbers on a lattice.

    Args:
        axes: voxel centres along each of the three axes, mm.
        wavelength: distance of the lattice's nodes, mm; structures are about twice as wide.
        rng: where the lattice's numbers come from.

    Returns:
        (X, Y, Z) float32.
    """
    x, y, z = (_bspline_matrix(axis, wavelength) for axis in axes)
    lattice = rng.standard_normal((x.shape[1], y.shape[1], z.shape[1]), dtype=np.float32)
    partial = np.matmul(y, lattice @ z.T)
    return (x @ partial.reshape(x.shape[1], -1)).reshape(len(x), len(y), len(z)) / np.float32(_BSPLINE_POWER**1.5)


def ct_noise(
    shape: Sequence[int],
    spacing: Sequence[float] | NDArray[np.float64],
    correlation_mm: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Return stationary noise of unit variance with the power spectrum of a reconstructed CT.

    In the slice the spectrum rises with frequency (the ramp filter) and rolls off with the kernel; along z it is that
    of neighbouring slices which share data. Both together leave no streaks and no grain of single voxels.

    Args:
        shape: voxels along x, y, z.
        spacing: voxel sides, mm.
        correlation_mm: width of the kernel, mm; larger is smoother.
        rng: where the white noise comes from.

    Returns:
        (X, Y, Z) float32.
    """
    padded = [fft.next_fast_len(int(n), real=True) for n in shape]
    fx, fy = (np.fft.fftfreq(n, d).astype(np.float32) for n, d in zip(padded[:2], spacing[:2], strict=True))
    fz = np.fft.rfftfreq(padded[2], spacing[2]).astype(np.float32)
    radial = np.sqrt(fx[:, None] ** 2 + fy[None, :] ** 2)
    nyquist = 0.5 / float(max(spacing[:2]))
    # The ramp keeps a floor at frequency 0: beam hardening and scatter correction leave slow variation in every scan.
    in_plane = np.sqrt(0.12 + radial / nyquist) * np.exp(-((np.pi * correlation_mm * radial) ** 2) / 2)
    axial = np.exp(-((np.pi * correlation_mm * fz) ** 2) / 2)
    spectrum = fft.rfftn(rng.standard_normal(padded, dtype=np.float32))
    spectrum *= (in_plane[:, :, None] * axial).astype(np.float32)
    noise = fft.irfftn(spectrum, padded)[tuple(slice(n) for n in shape)]
    return np.asarray(noise / noise.std(), np.float32)


def noise_level(hu: FloatArray, spacing: Sequence[float] | NDArray[np.float64]) -> FloatArray:
    """Return the relative noise of each voxel, 1 in the mean of the body.

    The noise of a voxel grows with the attenuation along the rays through it: it is high in the middle of the abdomen
    and between the shoulders, and low in the lungs and in the air.

    Args:
        hu: noiseless image, HU.
        spacing: voxel sides, mm.

    Returns:
        (X, Y, Z) float32, > 0.
    """
    step = [max(1, round(12 / s)) for s in spacing]
    coarse = np.maximum(hu[:: step[0], :: step[1], :: step[2]] / 1000 + 1, 0)
    sigma = [50 / (s * k) for s, k in zip(spacing, step, strict=True)]
    smooth = ndimage.gaussian_filter(coarse, (sigma[0], sigma[1], sigma[2] / 3), mode="constant")
    level = 0.35 + smooth / max(float(smooth[coarse > 0.5].mean()), 1e-3) * 0.65
    zoomed = level
    for axis, (n, k) in enumerate(zip(hu.shape, step, strict=True)):
        position = np.minimum(np.arange(n) / k, zoomed.shape[axis] - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, zoomed.shape[axis] - 1)
        part = np.expand_dims(position - low, tuple(i for i in range(3) if i != axis)).astype(np.float32)
        zoomed = np.take(zoomed, low, axis) * (1 - part) + np.take(zoomed, high, axis) * part
    return np.asarray(zoomed, np.float32)
