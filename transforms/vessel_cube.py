# SPDX-License-Identifier: Apache-2.0
"""Cubes aligned with the vessel around a candidate, after the vessel-oriented representation of the PE-CAD papers.

Tajbakhsh, Gotway, Liang, "Computer-aided pulmonary embolism detection using a novel vessel-aligned multi-planar image
representation and convolutional neural networks" (MICCAI 2015), lay planes along the vessel, so that an embolus looks
alike in every artery. Here the whole cube is turned: its last axis follows the vessel.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple_rep
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .candidate_cube import AFFINE_KEY, CENTER_KEY, check_cube_size, odd_sides, shifts_within_slices

MIN_VOXELS = 10
"""Contrast-filled voxels that an axis needs."""


def vessel_axis(
    volume: NDArray,
    center: ArrayLike,
    affine: ArrayLike,
    min_hu: float = 150.0,
    radius_mm: float = 12.0,
    reach_mm: float = 6.0,
) -> NDArray[np.float64] | None:
    """Find the principal axis of the contrast-filled voxels around a place.

    Those are the voxels of at least ``min_hu`` in a ball, in connected parts that come near the place: a clot itself is
    dark, so the place need not be filled, and both ends of a blocked artery count. Voxels weigh less towards the
    surface of the ball, so that a vessel at its edge turns the axis little.

    Args:
        volume: scan in HU, (X, Y, Z).
        center: the place in voxels.
        affine: (4, 4), voxels to mm.
        min_hu: least HU of contrast.
        radius_mm: radius of the ball.
        reach_mm: how near a part must come.

    Returns:
        Unit vector in mm along the scan's world axes, its last component not negative; ``None`` where there are fewer
        than ``MIN_VOXELS`` such voxels.
    """
    linear = np.asarray(affine, np.float64)[:3, :3]
    # the ball's extent along each voxel axis
    half = np.ceil(radius_mm * np.linalg.norm(np.linalg.inv(linear), axis=1)).astype(int)
    middle = np.floor(np.asarray(center, np.float64) + 0.5).astype(int)
    low = np.clip(middle - half, 0, volume.shape)
    high = np.clip(middle + half + 1, low, volume.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), -1)
    offset = (grid - np.asarray(center)) @ linear.T
    distance = np.linalg.norm(offset, axis=-1)
    filled = (volume[box] >= min_hu) & (distance <= radius_mm)
    parts, _ = ndimage.label(filled, structure=np.ones((3, 3, 3)))
    near = np.unique(parts[filled & (distance <= reach_mm)])
    chosen = np.isin(parts, near[near > 0])
    if chosen.sum() < MIN_VOXELS:
        return None
    points, weights = offset[chosen], 1 - (distance[chosen] / (1.001 * radius_mm)) ** 2
    points = points - np.average(points, axis=0, weights=weights)
    axis: NDArray[np.float64] = np.linalg.eigh((points * weights[:, None]).T @ points)[1][:, -1]
    return axis if axis[2] >= 0 else -axis


def turn_to(axis: ArrayLike | None) -> NDArray[np.float64]:
    """Turn the last axis onto a direction, and the others no more than that takes.

    Args:
        axis: (3,) unit vector; ``None`` for no turn.

    Returns:
        (3, 3) rotation whose last column is the direction.

    Example:
        >>> turn_to([0.0, 1.0, 0.0]).round(6).tolist()[1]
        [0.0, 0.0, 1.0]
    """
    if axis is None:
        return np.eye(3)
    x, y, z = np.asarray(axis, np.float64)
    angle = np.arctan2(np.hypot(x, y), z)
    way = np.array([-y, x, 0.0])
    length = np.linalg.norm(way)
    # against the last axis any half turn does
    way = way / length if length > 1e-9 else np.array([1.0, 0.0, 0.0])
    return np.asarray(Rotation.from_rotvec(way * angle).as_matrix() + 0.0)


def turned_cube(
    img: NdarrayOrTensor,
    center: ArrayLike,
    affine: ArrayLike,
    turn: ArrayLike,
    cube_size: Sequence[int],
    voxel_mm: Sequence[float],
    fill: float = -1000.0,
) -> NdarrayOrTensor:
    """Cut a cube whose axes point in any direction, by linear interpolation.

    Args:
        img: scan, (C, X, Y, Z).
        center: the place in voxels that comes to lie in voxel ``cube_size // 2``.
        affine: (4, 4), voxels to mm.
        turn: (3, 3) rotation; its columns are the directions of the cube's axes in the world.
        cube_size: sides of the cube in voxels.
        voxel_mm: sides of the cube's voxels.
        fill: value of what lies beyond the scan.

    Returns:
        The cube, ``(C, *cube_size)``, float32, of the scan's kind.
    """
    volume: np.ndarray = img if isinstance(img, np.ndarray) else convert_data_type(img, np.ndarray)[0]
    size = np.array(cube_size)
    matrix = np.linalg.inv(np.asarray(affine, np.float64)[:3, :3]) @ np.asarray(turn) * np.asarray(voxel_mm)
    first = np.asarray(center, np.float64) - matrix @ (size // 2)
    corners = (
        first + np.stack(np.meshgrid(*((0, side - 1) for side in size), indexing="ij"), -1).reshape(-1, 3) @ matrix.T
    )
    # only what the cube covers is read, with one voxel around it
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, volume.shape[1:])
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low, volume.shape[1:])
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    cube = np.full((volume.shape[0], *size), fill, np.float32)
    if (high > low).all():
        for channel, target in zip(volume, cube, strict=True):
            part = channel[box].astype(np.float32)
            ndimage.affine_transform(
                part, matrix, first - low, tuple(size), target, order=1, mode="constant", cval=fill, prefilter=False
            )
    return cube if isinstance(img, np.ndarray) else convert_to_dst_type(cube, dst=img, dtype=cube.dtype)[0]


class VesselCubed(MapTransform):
    """Cut the cube around a candidate so that its last axis follows the vessel; elsewhere as ``CandidateCubed``.

    Without contrast around the candidate the cube keeps the scan's directions.

    Args:
        keys: keys of the scans, the first of which shows the vessel.
        cube_size: sides of the cube in voxels; the paper takes 64x64x64 (arXiv:2004.07882, section on target tasks).
        voxel_mm: sides of the cube's voxels, mm.
        min_hu: least HU of contrast, see :func:`vessel_axis`.
        radius_mm: radius of the ball whose contrast counts.
        reach_mm: how near the candidate contrast must come.
        fill: value beyond the scan.
        center_key: key of the place in voxels.
        affine_key: key of the scan's affine.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: When a side or a length is not above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int = (64, 64, 64),
        voxel_mm: Sequence[float] | float = 1.0,
        min_hu: float = 150.0,
        radius_mm: float = 12.0,
        reach_mm: float = 6.0,
        fill: float = -1000.0,
        center_key: str = CENTER_KEY,
        affine_key: str = AFFINE_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.cube_size = check_cube_size(cube_size)
        self.voxel_mm = tuple(float(side) for side in ensure_tuple_rep(voxel_mm, 3))
        if min(*self.voxel_mm, radius_mm, reach_mm) <= 0:
            raise ValueError(
                f"voxel_mm, radius_mm and reach_mm must be above 0, got {self.voxel_mm}, {radius_mm} and {reach_mm}."
            )
        self.min_hu = min_hu
        self.radius_mm = radius_mm
        self.reach_mm = reach_mm
        self.fill = fill
        self.center_key = center_key
        self.affine_key = affine_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes instead of scans."""
        return self.cut(data, np.eye(3), np.zeros(3))

    def cut(
        self, data: Mapping[Hashable, Any], spin: NDArray[np.float64], shift_mm: NDArray[np.float64]
    ) -> dict[Hashable, Any]:
        """Cut a cube that is turned further and moved.

        Args:
            data: the item.
            spin: (3, 3) rotation in the cube, before it is laid along the vessel.
            shift_mm: (3,) how far from the candidate, along the cube's axes.

        Returns:
            A copy of the item with cubes instead of scans.
        """
        item = {key: value for key, value in data.items() if key not in (self.center_key, self.affine_key)}
        center, affine = np.asarray(data[self.center_key], np.float64), np.asarray(data[self.affine_key])
        first: np.ndarray = convert_data_type(data[self.first_key(dict(data))], np.ndarray)[0]
        axis = vessel_axis(first[0], center, affine, self.min_hu, self.radius_mm, self.reach_mm)
        turn = turn_to(axis) @ spin
        place = center + np.linalg.solve(affine[:3, :3], turn @ shift_mm)
        for key in self.key_iterator(item):
            item[key] = turned_cube(item[key], place, affine, turn, self.cube_size, self.voxel_mm, self.fill)
        return item


class RandVesselCubed(RandomizableTransform, MapTransform):
    """:class:`VesselCubed`, turned at random about the vessel's axis, end for end, and moved a little.

    None of these changes what a vessel-oriented cube means: how a vessel is turned about itself, and which of its ends
    comes first, is arbitrary.

    Args:
        keys: keys of the scans.
        cube_size: sides of the cube in voxels.
        voxel_mm: sides of the cube's voxels, mm.
        prob: probability of a turn about the axis, uniform over all angles, and apart from it of the ends being swapped
            half of the times.
        max_shift_mm: largest shift along each of the cube's axes, mm, uniform both ways.
        slice_axes: axes across which slices are taken of the cube later, see
            :class:`~models_genesis.transforms.RandCandidateCubed`.
        rules: the others of :class:`VesselCubed`.

    Raises:
        ValueError: When a shift is negative; also see :class:`VesselCubed`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int = (64, 64, 64),
        voxel_mm: Sequence[float] | float = 1.0,
        prob: float = 1.0,
        max_shift_mm: Sequence[float] | float = 0.0,
        slice_axes: Sequence[int] | None = None,
        **rules: Any,
    ) -> None:
        RandomizableTransform.__init__(self, prob=prob)
        self.cube = VesselCubed(keys, odd_sides(check_cube_size(cube_size), slice_axes), voxel_mm, **rules)
        MapTransform.__init__(self, keys, self.cube.allow_missing_keys)
        self.max_shift_mm = np.array(ensure_tuple_rep(max_shift_mm, 3), np.float64)
        if not (self.max_shift_mm >= 0).all():
            raise ValueError(f"max_shift_mm must be 0 or more, got {max_shift_mm}.")
        self.free = shifts_within_slices(slice_axes)
        self.spin = np.eye(3)
        self.shift_mm: NDArray[np.float64] = np.zeros(3)

    def randomize(self, data: Any = None) -> None:
        """Draw turn and shift."""
        super().randomize(None)
        angle, swapped = self.R.uniform(0, 2 * np.pi), self.R.random() < 0.5
        self.shift_mm = self.R.uniform(-1, 1, 3) * self.max_shift_mm * self.free
        # a half turn about the first axis swaps the ends
        ends = np.diag([1.0, -1.0, -1.0]) if swapped else np.eye(3)
        spin = np.asarray(Rotation.from_euler("z", angle).as_matrix() @ ends)
        self.spin = spin if self._do_transform else np.eye(3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes instead of scans."""
        self.randomize()
        return self.cube.cut(data, self.spin, self.shift_mm)
