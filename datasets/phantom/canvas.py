# SPDX-License-Identifier: Apache-2.0
"""A volume to paint anatomy on: soft-edged shapes given by signed distances, tubes, and warped body coordinates.

Anatomy is described in *body coordinates*: mm in a standard patient, x to the right hand, y to the front, z to the
head, z = 0 at the dome of the right diaphragm. A patient's size and a smooth random warp map them to world coordinates,
so that organs keep their order but no two patients and no two sides are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

from .texture import FloatArray, lattice_noise, stream

FAR = 1000.0
"""Distance of what is too far away to matter, mm."""

Box = tuple[slice, slice, slice]
Knots = Sequence[tuple[float, float]]


def profile(z: ArrayLike, knots: Knots) -> FloatArray:
    """Interpolate (z, value) knots monotonically between them and constantly outside."""
    at, value = np.asarray(knots, float).T
    return np.asarray(PchipInterpolator(at, value)(np.clip(np.asarray(z, float), at[0], at[-1])), np.float32)


def smoothstep(x: ArrayLike, low: float, high: float) -> FloatArray:
    """Rise smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def smooth_max(a: FloatArray, b: FloatArray, k: float) -> FloatArray:
    """Intersect two signed distances with an edge rounded over ``k`` mm."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.asarray(np.maximum(a, b) + h * h * np.float32(k / 4), np.float32)


def smooth_min(a: FloatArray, b: FloatArray, k: float) -> FloatArray:
    """Unite two signed distances with a fillet of ``k`` mm."""
    return -smooth_max(-a, -b, k)


def ellipsoid(offsets: Sequence[FloatArray], radii: Sequence[float | FloatArray]) -> FloatArray:
    """Return the approximate signed distance to an ellipsoid (an ellipse for two offsets), mm, negative inside.

    Args:
        offsets: coordinates relative to the centre, mm, broadcastable.
        radii: semi-axes, mm.
    """
    first = sum((o / r) ** 2 for o, r in zip(offsets, radii, strict=True))
    second = sum((o / (r * r)) ** 2 for o, r in zip(offsets, radii, strict=True))
    # The small terms keep the exact centre, where both are 0, at minus the radius.
    k0, k1 = np.sqrt(first + 1e-6), np.sqrt(second + 1e-6 / float(np.min(radii[0])) ** 2)
    return np.asarray(k0 * (k0 - 1) / k1, np.float32)


def oval(x: FloatArray, y: FloatArray, a: FloatArray, b: FloatArray, squareness: float) -> FloatArray:
    """Return the signed distance along the ray from the centre to an oval between ellipse (0) and rectangle (1).

    Args:
        x: offset from the centre, mm.
        y: offset from the centre, mm.
        a: half widths, mm.
        b: half depths, mm.
        squareness: in [0, 1).
    """
    u, v = (x / a) ** 2, (y / b) ** 2
    total = u + v
    root = np.sqrt(np.maximum(total * total - np.float32(4 * squareness) * u * v, 0))
    f = np.sqrt((total + root) * np.float32(0.5))
    return np.asarray(np.sqrt(x * x + y * y) * (1 - 1 / np.maximum(f, 1e-3)), np.float32)


def curve(points: ArrayLike, step: float = 4.0) -> NDArray[np.float64]:
    """Return a smooth curve through (N, D) points, resampled about every ``step`` mm of its first three columns."""
    knots = np.asarray(points, float)
    chord = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))))
    return np.asarray(CubicSpline(chord, knots)(np.linspace(0, chord[-1], max(2, int(chord[-1] / step) + 1))))


class Canvas:
    """HU and labels of a volume under construction.

    Args:
        shape: voxels along x, y, z.
        spacing: voxel sides, mm.
        origin: world coordinates of the first voxel's centre, mm, RAS.
        scale: size of the patient relative to the standard one along x, y, z.
        seed: seed of the patient; decides the warp and the textures.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float],
        scale: Sequence[float],
        seed: int,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.spacing: NDArray[np.float64] = np.asarray(spacing, float)
        self.origin = np.asarray(origin, float)
        self.scale = np.asarray(scale, float)
        self.edge = float(self.spacing.mean())
        self.axes = [
            (o + s * np.arange(n)).astype(np.float32)
            for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]
        self.hu: FloatArray = np.full(self.shape, -1000, np.float32)
        self.label: NDArray[np.uint8] = np.zeros(self.shape, np.uint8)
        rng = stream(seed, "canvas")
        self.warp = [lattice_noise(self.axes, 85, rng) * np.float32(amount) for amount in (2.2, 1.8, 2.2)]
        open_axes = np.ix_(*self.axes)
        self.x, self.y, self.z = (
            (axis + warp) / np.float32(s) for axis, warp, s in zip(open_axes, self.warp, self.scale, strict=True)
        )
        self.level: FloatArray = (self.axes[2] / np.float32(self.scale[2])).astype(np.float32)
        """Body z of each slice before the warp, for what changes slowly along the body."""
        self.fine, self.middle, self.coarse = (lattice_noise(self.axes, w, rng) for w in (3.2, 10, 32))

    def crop(self, box: Box) -> Canvas:
        """Return a canvas that shows, and paints on, a part of this one."""
        part = copy(self)
        part.shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
        part.origin = self.origin + self.spacing * [s.start for s in box]
        part.axes = [axis[s] for axis, s in zip(self.axes, box, strict=True)]
        part.level = self.level[box[2]]
        part.warp = [warp[box] for warp in self.warp]
        for name in ("hu", "label", "x", "y", "z", "fine", "middle", "coarse"):
            setattr(part, name, getattr(self, name)[box])
        return part

    def local(
        self,
        low: Sequence[float],
        high: Sequence[float],
        distance: Callable[[Canvas], FloatArray],
        margin: float = 20.0,
    ) -> FloatArray:
        """Evaluate a signed distance in a box of body coordinates and a margin in mm; it is ``FAR`` elsewhere."""
        field = np.full(self.shape, FAR, np.float32)
        box = self.box(low, high, margin)
        if field[box].size:
            field[box] = distance(self.crop(box))
        return field

    @property
    def affine(self) -> NDArray[np.float64]:
        """Map from voxel indices to world mm, RAS."""
        matrix = np.diag([*self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    def box(self, low: Sequence[float], high: Sequence[float], margin: float = 12.0) -> Box:
        """Return the slices that hold a box of body coordinates with a margin in mm; empty where it lies outside."""
        slices = []
        for axis in range(3):
            ends = np.array([low[axis], high[axis]]) * self.scale[axis] + np.array([-margin, margin])
            first, last = (ends - self.origin[axis]) / self.spacing[axis]
            start = int(np.clip(np.floor(first), 0, self.shape[axis]))
            slices.append(slice(start, int(np.clip(np.ceil(last) + 1, start, self.shape[axis]))))
        return slices[0], slices[1], slices[2]

    def place(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map body coordinates (N, 3) to world coordinates, the warp included."""
        world = np.asarray(points, float)[:, :3] * self.scale
        index = tuple(self.index(world).T)
        return world - np.stack([warp[index] for warp in self.warp], 1)

    def index(self, world: ArrayLike) -> NDArray[np.int64]:
        """Return the nearest voxel (N, 3) of each world point, clipped to the volume."""
        nearest = np.rint((np.asarray(world, float) - self.origin) / self.spacing).astype(np.int64)
        return np.clip(nearest, 0, np.array(self.shape) - 1)

    def coverage(self, distance: FloatArray) -> FloatArray:
        """Return how much of a voxel lies inside, from its signed distance in mm: the partial-volume effect."""
        return np.clip(np.float32(0.5) - distance * np.float32(1 / self.edge), 0, 1)

    def paint(
        self, cover: FloatArray, hu: float | FloatArray, label: int | None = None, box: Box = np.s_[:, :, :]
    ) -> None:
        """Blend a value over the canvas.

        Args:
            cover: share of each voxel that is painted, in [0, 1].
            hu: what is painted, HU; one number or one a voxel.
            label: label of the voxels covered by more than a half, None to leave labels alone.
            box: where the arrays lie.
        """
        view = self.hu[box]
        view += cover * (np.asarray(hu, np.float32) - view)
        if label is not None:
            self.label[box][cover > 0.5] = label

    def paint_sheet(
        self, distance: FloatArray, thickness: float, hu: float | FloatArray, weight: FloatArray | float
    ) -> None:
        """Blend a thin sheet, ``thickness`` mm thick, around the zero of a distance; labels stay."""
        cover = self.coverage(np.abs(distance) - np.float32(thickness / 2)) * np.float32(
            min(1.0, thickness / self.edge)
        )
        self.paint(cover * weight, hu)

    def tube(self, points: ArrayLike, radii: ArrayLike, reach: float = 10.0) -> FloatArray:
        """Return the signed distance to a tube along a polyline of body coordinates.

        Args:
            points: (N, 3), body coordinates.
            radii: one radius or N, body mm.
            reach: distance up to which the result is exact, mm; beyond, it may be ``FAR``.
        """
        world = self.place(points)
        radius = np.broadcast_to(np.asarray(radii, float), len(world)) * self.scale.mean()
        field = np.full(self.shape, FAR, np.float32)
        for i in range(len(world) - 1):
            self._capsule(field, world[i], world[i + 1], radius[i], radius[i + 1], reach)
        return field

    def _capsule(
        self, field: FloatArray, a: NDArray[np.float64], b: NDArray[np.float64], ra: float, rb: float, reach: float
    ) -> None:
        """Lower ``field`` to the distance of the tapered capsule from ``a`` to ``b``, where that is less."""
        margin = max(ra, rb) + reach
        first = np.ceil((np.minimum(a, b) - margin - self.origin) / self.spacing).astype(int)
        last = np.floor((np.maximum(a, b) + margin - self.origin) / self.spacing).astype(int) + 1
        box = tuple(slice(max(f, 0), max(min(e, n), 0)) for f, e, n in zip(first, last, self.shape, strict=True))
        if any(s.start >= s.stop for s in box):
            return
        offset = [axis[s] - np.float32(p) for axis, s, p in zip(self.axes, box, a, strict=True)]
        x, y, z = np.ix_(*offset)
        along = (b - a).astype(np.float32)
        share = np.clip((x * along[0] + y * along[1] + z * along[2]) / max(float(along @ along), 1e-6), 0, 1)
        squared = (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2 + (z - share * along[2]) ** 2
        distance = np.sqrt(squared) - (np.float32(ra) + share * np.float32(rb - ra))
        np.minimum(field[box], distance, out=field[box])

    def sweep(self, world: FloatArray, radii: FloatArray, solid: bool = False) -> FloatArray:
        """Return the share of each voxel that lies in balls along thin branches, thinner than a voxel included.

        A branch of radius r much thinner than a voxel covers pi r^2 of each voxel's cross-section: the cone that stands
        for it is lowered accordingly, so that its mass is right at every spacing, on average over where it runs.

        Args:
            world: (N, 3) centres, world mm, at most half a voxel apart along a branch.
            radii: (N,) mm.
            solid: whether what is thicker than a voxel covers its inside wholly, as contrast in a vessel does.
        """
        out = np.zeros(self.shape, np.float32)
        bounds = (0.0, 1.0, 2.0, 4.0, 8.0, np.inf)
        for low, high in pairwise(bounds):
            chosen = (radii >= low) & (radii < high)
            for part in _chunks(np.flatnonzero(chosen), 4000):
                self._stamp(out, world[part], radii[part], solid)
        return out

    def _stamp(self, out: FloatArray, world: FloatArray, radii: FloatArray, solid: bool) -> None:
        """Raise ``out`` to the cover of balls of similar radius."""
        outer = (radii + self.edge / 2).astype(np.float32)
        # Below half a voxel the cone (outer - d) / edge would hold more than pi r^2; above it rises to the full value.
        wide = np.clip(0.5 + 0.5 * radii / self.edge, 0.75, 1)
        height = np.minimum(wide, 3 * radii**2 * self.edge / outer**3).astype(np.float32)
        if solid:
            height = np.where(radii > self.edge / 2, wide, height).astype(np.float32)
        centre = np.rint((world - self.origin) / self.spacing).astype(np.int64)
        squares, places = [], []
        for axis in range(3):
            half = int(np.ceil(outer.max() / self.spacing[axis]))
            index = centre[:, axis, None] + np.arange(-half, half + 1)
            offset = index * self.spacing[axis] + self.origin[axis] - world[:, axis, None]
            inside = (index >= 0) & (index < self.shape[axis])
            squares.append(np.where(inside, offset**2, np.inf).astype(np.float32))
            places.append(np.clip(index, 0, self.shape[axis] - 1))
        squared = squares[0][:, :, None, None] + squares[1][:, None, :, None] + squares[2][:, None, None, :]
        flat = (places[0][:, :, None, None] * self.shape[1] + places[1][:, None, :, None]) * self.shape[2]
        flat = flat + places[2][:, None, None, :]
        near = squared < (outer**2)[:, None, None, None]
        ball = np.nonzero(near)[0]
        cover = height[ball] * np.minimum(1, (outer[ball] - np.sqrt(squared[near])) / np.float32(self.edge))
        np.maximum.at(out.reshape(-1), flat[near], cover)


def _chunks(items: NDArray[np.int64], size: int) -> Iterable[NDArray[np.int64]]:
    return (items[i : i + size] for i in range(0, len(items), size))
