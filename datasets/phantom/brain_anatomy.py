# SPDX-License-Identifier: Apache-2.0
"""The healthy brain of the phantom: folded cortex, white matter, ventricles, deep nuclei, brainstem, cerebellum.

Body coordinates are mm in a standard brain, x to the right hand, y to the front, z to the head, 0 between the thalami.
Both hemispheres have the same plan; folds and the canvas's warp make them differ. Distances are signed, negative
inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from .canvas import Canvas, ellipsoid, profile, smooth_max, smooth_min, smoothstep
from .texture import FloatArray, lattice_noise, stream

TISSUES = ("fluid", "grey", "white", "nucleus", "vessel", "gliosis", "necrosis", "solid", "enhancing", "oedema")
"""What a voxel can hold: cerebrospinal fluid, cortex, white matter, deep grey matter, contrast-filled vessels, gliosis
around the ventricles, and the parts of a tumour (``solid`` does not enhance)."""

CORTEX_MM = 3.1

_VENTRICLE = (
    ((7, 33, 3), (9, 16, 13), 3.5, 5.5),
    ((9, 16, 13), (8.5, -14, 19), 5.5, 5.0),
    ((8.5, -14, 19), (22, -36, 12), 5.0, 8.0),
    ((22, -36, 12), (24, -58, 6), 7.0, 3.0),
    ((22, -36, 12), (33, -18, -12), 6.0, 3.0),
    ((33, -18, -12), (31, 0, -18), 3.0, 2.0),
)
"""The right lateral ventricle as tapered tubes: ends in body mm and their radii."""


@dataclass
class Mixture:
    """Share of each tissue in each voxel, adding up to 1 inside the brain and to 0 outside.

    Args:
        share: (tissues, X, Y, Z), in the order of ``TISSUES``.
    """

    share: FloatArray

    def paint(self, tissue: str, cover: FloatArray) -> None:
        """Lay a tissue over what is there; ``cover`` is the share of each voxel that it takes, in [0, 1]."""
        np.clip(cover, 0, 1, out=cover)
        self.share *= 1 - cover
        self.share[TISSUES.index(tissue)] += cover

    def of(self, *tissues: str) -> FloatArray:
        """Return the share of some tissues together."""
        return np.asarray(sum(self.share[TISSUES.index(tissue)] for tissue in tissues), np.float32)


def tube(
    x: FloatArray, y: FloatArray, z: FloatArray, a: Sequence[float], b: Sequence[float], ra: float, rb: float
) -> FloatArray:
    """Return the signed distance to a tapered tube from ``a`` to ``b``, mm."""
    along = [end - start for start, end in zip(a, b, strict=True)]
    dx, dy, dz = x - np.float32(a[0]), y - np.float32(a[1]), z - np.float32(a[2])
    length = float(sum(step * step for step in along))
    share = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length, 0, 1).astype(np.float32)
    squared = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2
    return np.asarray(np.sqrt(squared) - (ra + share * (rb - ra)), np.float32)


def blunt_ellipsoid(offsets: Sequence[FloatArray], radii: Sequence[float | FloatArray], power: float) -> FloatArray:
    """Return the distance along the ray from the centre to an ellipsoid, for powers above 2 with blunter ends, mm."""
    total = sum(np.abs(o / r) ** np.float32(power) for o, r in zip(offsets, radii, strict=True))
    f = np.maximum(total, 1e-6) ** np.float32(1 / power)
    away = np.sqrt(sum(np.square(o) for o in offsets))
    return np.asarray(away * (1 - 1 / np.maximum(f, 0.02)), np.float32)


def hemisphere_distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Return the distance to the outer surface of the cerebrum; the cleft between its halves is not part of it."""
    side = np.abs(x)
    # the skull is wider behind the ears than at the forehead
    wide = profile(y, ((-100, 62), (-40, 69), (0, 68), (40, 61), (72, 54)))
    dome = blunt_ellipsoid((side, y + 15, z - 8), (wide, 85.0, 64.0), 2.35)
    floor = profile(y, ((-100, -8), (-60, -13), (-38, -20), (5, -21), (28, -24), (50, -20), (70, -10)))
    dome = smooth_max(dome, floor - z, 8)
    temporal = blunt_ellipsoid((side - 43, y + 8 + 0.2 * (z + 20), z + 21), (22.0, 46.0, 23.0), 2.3)
    return smooth_min(dome, temporal, 4)


def ventricle_distance(x: FloatArray, y: FloatArray, z: FloatArray, size: float) -> FloatArray:
    """Return the distance to the lateral ventricles; ``size`` is relative to the standard."""
    side = np.abs(x)
    field = np.full(np.broadcast(x, y, z).shape, 99, np.float32)
    for a, b, ra, rb in _VENTRICLE:
        field = smooth_min(field, tube(side, y, z, a, b, ra * size, rb * size), 4)
    return field


def paint_brain(canvas: Canvas, seed: int, ventricle: float, sulcus_mm: float, gliosis: float) -> Mixture:
    """Make the healthy brain.

    Args:
        canvas: gives the coordinates; its HU and labels are not used.
        seed: seed of the patient; decides the folds.
        ventricle: size of the ventricles relative to the standard.
        sulcus_mm: half width of the sulci at the surface, mm.
        gliosis: thickness of the bright seam around the ventricles in FLAIR, mm.

    Returns:
        the share of each tissue.
    """
    x, y, z = canvas.x, canvas.y, canvas.z
    side = np.abs(x)
    mixture = Mixture(np.zeros((len(TISSUES), *canvas.shape), np.float32))
    cerebrum = hemisphere_distance(x, y, z)
    cerebellum = _cerebellum_distance(side, y, z)
    stem = _stem_distance(x, y, z)
    # the cisterns between the temporal lobes belong to what is left after skull stripping
    cistern = ellipsoid((x, y - 2, z + 12), (27.0, 34.0, 14.0))
    hull = smooth_min(smooth_min(cerebrum, cerebellum, 6), smooth_min(stem - 2, cistern, 6), 8) + np.float32(0.3)
    inside = canvas.coverage(hull)
    mixture.share[TISSUES.index("fluid")] = 1
    _paint_cerebrum(canvas, seed, mixture, cerebrum, sulcus_mm)
    _paint_cerebellum(canvas, mixture, cerebellum)
    mixture.paint("white", canvas.coverage(stem))
    mixture.paint("nucleus", canvas.coverage(stem + 3) * (np.float32(0.35) + np.float32(0.1) * canvas.middle))
    lateral = ventricle_distance(x, y, z, ventricle)
    _paint_nuclei(canvas, mixture, side)
    mixture.paint("gliosis", canvas.coverage(np.abs(lateral - gliosis / 2) - gliosis / 2) * np.float32(0.75))
    mixture.paint("fluid", canvas.coverage(lateral))
    _paint_midline(canvas, mixture, hull, ventricle)
    mixture.share *= inside
    return mixture


def _folds(canvas: Canvas, seed: int) -> FloatArray:
    """Return the distance to the sheets in which the cortex folds, mm.

    The sheets are where a band of random waves crosses zero, which meanders as sulci do. The waves are looked up below
    the surface point nearest to a voxel rather than at the voxel, so that the sheets stand upright in the surface.
    """
    rng = stream(seed, "folds")
    step, half = 2.4, 44
    noise = rng.standard_normal((2 * half + 1,) * 3, dtype=np.float32)
    waves = ndimage.gaussian_filter(noise, 3.6 / step) - ndimage.gaussian_filter(noise, 5.0 / step)
    middle = [
        np.sign(canvas.x) * np.float32(20),
        np.clip(canvas.y, -55, 28) * np.float32(0.8),
        np.clip(canvas.z, -12, 22) * np.float32(0.6) + np.float32(4),
    ]
    away = [at - start for at, start in zip((canvas.x, canvas.y, canvas.z), middle, strict=True)]
    length = np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2 + 1)
    stretch = (np.float32(42) / length) ** np.float32(0.8)
    # sulci bend on their way down
    bend = [np.float32(4) * lattice_noise(canvas.axes, 14, rng) for _ in range(3)]
    points = np.stack([start + way * stretch + turn for start, way, turn in zip(middle, away, bend, strict=True)])
    field = ndimage.map_coordinates(waves, points / np.float32(step) + half, order=1, mode="nearest")
    field = ndimage.gaussian_filter(field, [1.2 / side for side in canvas.spacing])
    slope = np.sqrt(sum(each**2 for each in np.gradient(field, *canvas.spacing.tolist())))
    distance = np.abs(field) / np.maximum(slope, 0.35 * float(slope.mean()))
    # in the middle of a half all look-ups meet, which gives no folds but grain
    return np.asarray(np.minimum(distance + np.maximum(14 - length, 0), 20), np.float32)


def _deep_distance(side: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Return the distance to the core of nuclei and callosum, into which no cortex folds."""
    return ellipsoid((side, y + 3, z - 3), (27.0, 33.0, 21.0))


def _callosum_distance(side: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Return the distance to the corpus callosum, an arch that joins both halves."""
    arch = np.full(y.shape, 99, np.float32)
    points = ((34, -2, 4), (38, 10, 5), (28, 22, 4), (4, 29, 3.5), (-24, 26, 3.5), (-40, 16, 5.5))
    for (ya, za, ra), (yb, zb, rb) in pairwise(points):
        arch = np.minimum(arch, tube(np.zeros_like(side), y, z, (0, ya, za), (0, yb, zb), ra, rb))
    return smooth_max(arch, side - 16, 4)


def _paint_cerebrum(canvas: Canvas, seed: int, mixture: Mixture, cerebrum: FloatArray, sulcus_mm: float) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    side = np.abs(x)
    deep = _deep_distance(side, y, z)
    callosum = _callosum_distance(side, y, z)
    # the cleft between the halves, closed where callosum and nuclei join them
    cleft = side - np.float32(0.2 + sulcus_mm / 3)
    below = np.minimum(callosum, deep)
    medial = np.maximum(cleft, np.minimum(np.float32(3) - below, 30))
    # skull stripping takes the fluid around the brain but for that in the sulci
    outer = np.float32(0.1) - cerebrum
    surface = np.minimum(outer, medial)
    reach = (np.float32(24) + 7 * lattice_noise(canvas.axes, 13, stream(seed, "sulcal depth"))).clip(5, 36)
    sheet = np.hypot(_folds(canvas, seed), np.maximum(surface - reach, 0))
    sheet = np.minimum(sheet, _sylvian_distance(side, y, z + 3 * canvas.coarse))
    width = np.float32(sulcus_mm) * np.clip(1.3 - surface * np.float32(0.12), 0.2, 1.3)
    tissue = np.minimum(surface, sheet - width)
    # towards the nuclei the sheets end, whatever their depth
    tissue = np.maximum(tissue, np.minimum(np.float32(4) - deep, 12))
    tissue = np.minimum(tissue, outer)
    mixture.paint("grey", canvas.coverage(-tissue))
    thick = np.float32(CORTEX_MM) + np.float32(0.35) * canvas.middle
    mixture.paint("white", canvas.coverage(thick - tissue))
    mixture.paint("white", canvas.coverage(callosum))


def _sylvian_distance(side: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Return the distance to the fissure between the temporal lobe and those above it, down to the insula."""
    height = np.float32(-9) + np.float32(0.3) * (np.float32(15) - y) + np.float32(0.35) * (side - 45)
    ends = np.maximum(np.maximum(np.float32(36) - side, y - 26), -36 - y)
    return np.asarray(np.hypot(np.abs(z - height) * np.float32(0.75), np.maximum(ends, 0)), np.float32)


def _paint_nuclei(canvas: Canvas, mixture: Mixture, side: FloatArray) -> None:
    """Paint thalamus, caudate, putamen and pallidum."""
    y, z = canvas.y, canvas.z
    thalamus = ellipsoid((side - 11, y + 16, z - 4), (9.0, 15.0, 9.0))
    caudate = tube(side, y, z, (13, 20, 4), (15, -8, 19), 6.5, 3.0)
    lens = ellipsoid((side - 24 + 0.25 * (y - 4), y - 4, z - 1), (7.5, 19.0, 11.0))
    mixture.paint("white", canvas.coverage(ellipsoid((side - 19, y - 2, z - 4), (16.0, 26.0, 17.0))))
    for distance, share in ((thalamus, 0.75), (caudate, 1.0), (lens, 0.95)):
        mixture.paint("nucleus", canvas.coverage(distance) * np.float32(share))
    pallidum = ellipsoid((side - 19 + 0.25 * (y - 2), y - 2, z + 1), (4.0, 10.0, 6.0))
    mixture.paint("white", canvas.coverage(pallidum) * np.float32(0.6))


def _paint_midline(canvas: Canvas, mixture: Mixture, hull: FloatArray, ventricle: float) -> None:
    """Paint the third and fourth ventricle, the choroid plexus, and the sinus in the cleft at the top."""
    x, y, z = canvas.x, canvas.y, canvas.z
    side = np.abs(x)
    third = ellipsoid((x, y + 6, z + 2), (2.0 * ventricle, 16.0, 11.0))
    fourth = ellipsoid((x, y + 42, z + 30), (7.0 * ventricle, 4.0 * ventricle, 9.0))
    mixture.paint("fluid", canvas.coverage(np.minimum(third, fourth)))
    plexus = ellipsoid((side - 21, y + 36, z - 11), (2.6, 5.5, 3.2))
    mixture.paint("vessel", canvas.coverage(plexus) * np.float32(0.7))
    upper = smoothstep(z - np.float32(0.5) * y, 10, 50)
    sinus = np.hypot(x, np.minimum(hull + np.float32(1.5), 30)) - np.float32(2.2)
    mixture.paint("vessel", canvas.coverage(sinus) * upper)


def _cerebellum_distance(side: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    half = ellipsoid((side - 22, y + 61 - 0.25 * (z + 34), z + 34 + 0.2 * (side - 22)), (31.0, 32.0, 25.0))
    vermis = ellipsoid((side, y + 59, z + 31), (14.0, 30.0, 25.0))
    return smooth_min(half, vermis, 6)


def _paint_cerebellum(canvas: Canvas, mixture: Mixture, distance: FloatArray) -> None:
    """Paint the cerebellum: fine leaves of cortex on branches of white matter."""
    y, z = canvas.y, canvas.z
    depth = -distance
    turn = np.arctan2(z + 34, -(y + 44)) + np.float32(0.12) * canvas.coarse
    leaves = np.cos(turn * 22 + np.float32(0.8) * canvas.middle)
    cover = canvas.coverage(distance)
    mixture.paint("grey", cover.copy())
    mixture.paint("fluid", cover * smoothstep(-leaves, 0.75, 1.0) * smoothstep(-depth, -7, -1) * np.float32(0.6))
    branch = smoothstep(leaves, 0.2, 0.9) * smoothstep(depth, 3, 7)
    mixture.paint("white", cover * np.maximum(branch, smoothstep(depth, 9, 13)))


def _stem_distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    midbrain = tube(x, y, z, (0, -16, -6), (0, -22, -20), 14, 12)
    pons = ellipsoid((x, y + 24, z + 30), (17.0, 14.0, 14.0))
    medulla = tube(x, y, z, (0, -30, -40), (0, -38, -66), 10, 7)
    return smooth_min(smooth_min(midbrain, pons, 5), medulla, 6)
