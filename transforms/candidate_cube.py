# SPDX-License-Identifier: Apache-2.0
"""Cubes around candidates: the candidate in the middle, air beyond the edge of the scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple_rep
from numpy.typing import NDArray

CENTER_KEY = "center"
"""Key of a candidate's place in its scan, three voxels, not rounded."""

AFFINE_KEY = "image_affine"
"""Key of the ``(4, 4)`` affine of the scan, voxels to mm in RAS."""


def candidate_cube(
    img: NdarrayOrTensor, center: Sequence[float], cube_size: Sequence[int], fill: float = -1000.0
) -> NdarrayOrTensor:
    """Cut a cube whose voxel ``cube_size // 2`` is the one nearest to a place.

    Args:
        img: scan, ``(C, X, Y, Z)``; an array mapped from disk is read where the cube is.
        center: the place in voxels.
        cube_size: sides of the cube in voxels.
        fill: value of what lies beyond the scan, that of air for CT in HU.

    Returns:
        The cube, ``(C, *cube_size)``, a copy of the scan's kind and type.

    Example:
        >>> candidate_cube(np.arange(1, 5)[None, :, None, None], (0, 0, 0), (4, 1, 1), fill=0).ravel().tolist()
        [0, 0, 1, 2]
    """
    # an array mapped from disk must stay one here
    volume: np.ndarray = img if isinstance(img, np.ndarray) else convert_data_type(img, np.ndarray)[0]
    sides = tuple(int(side) for side in cube_size)
    start = [int(np.floor(place + 0.5)) - side // 2 for place, side in zip(center, sides, strict=True)]
    # part of the cube that lies in the scan, in voxels of the scan; empty where the place is far outside
    low = [min(max(first, 0), size) for first, size in zip(start, volume.shape[1:], strict=True)]
    high = [min(max(first + side, 0), size) for first, side, size in zip(start, sides, volume.shape[1:], strict=True)]
    inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    if all(b - a == side for a, b, side in zip(low, high, sides, strict=True)):
        cube = np.array(volume[(slice(None), *inner)], order="C")
    else:
        cube = np.full((volume.shape[0], *sides), fill, dtype=volume.dtype)
        target = tuple(slice(a - first, b - first) for a, b, first in zip(low, high, start, strict=True))
        cube[(slice(None), *target)] = volume[(slice(None), *inner)]
    return cube if isinstance(img, np.ndarray) else convert_to_dst_type(cube, dst=img, dtype=cube.dtype)[0]


class CandidateCubed(MapTransform):
    """Cut the cube around the candidate that an item names; its place and the scan's affine leave the item.

    Args:
        keys: keys of the scans.
        cube_size: sides of the cube in voxels; the paper takes 64x64x32 for nodules and 64x64x64 for emboli
            (arXiv:2004.07882, section on target tasks).
        fill: value beyond the scan, see :func:`candidate_cube`.
        center_key: key of the place in voxels.
        affine_key: key of the affine.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: When a side is below 1.

    Example:
        >>> item = {"image": np.arange(8).reshape(1, 2, 2, 2), "center": np.array([1.0, 1.0, 1.0])}
        >>> CandidateCubed("image", cube_size=1)(item)["image"].ravel().tolist()
        [7]
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int = (64, 64, 32),
        fill: float = -1000.0,
        center_key: str = CENTER_KEY,
        affine_key: str = AFFINE_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.cube_size = check_cube_size(cube_size)
        self.fill = fill
        self.center_key = center_key
        self.affine_key = affine_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes instead of scans."""
        return self.cut(data, np.zeros(3))

    def cut(self, data: Mapping[Hashable, Any], shift: np.ndarray) -> dict[Hashable, Any]:
        """Cut around a point next to the candidate.

        Args:
            data: the item.
            shift: how far from it, in voxels.

        Returns:
            A copy of the item with cubes instead of scans.
        """
        item = {key: value for key, value in data.items() if key not in (self.center_key, self.affine_key)}
        center = np.asarray(data[self.center_key], dtype=np.float64) + shift
        for key in self.key_iterator(item):
            item[key] = candidate_cube(item[key], center.tolist(), self.cube_size, self.fill)
        return item


class RandCandidateCubed(RandomizableTransform, MapTransform):
    """:class:`CandidateCubed` around a place drawn near the candidate: the shift of an augmentation, without padding.

    Args:
        keys: keys of the scans.
        cube_size: sides of the cube in voxels.
        max_shift: largest shift along each axis, in voxels, both ways; every whole shift is equally likely.
        prob: probability of a shift.
        fill: value beyond the scan.
        center_key: key of the place in voxels.
        affine_key: key of the affine.
        allow_missing_keys: whether an item may lack a key.
        slice_axes: axes across which slices are taken of the cube later. The sides are odd then, see
            :func:`odd_sides`, and there is no shift that could move the candidate out of a slice, see
            :func:`shifts_within_slices`. The draws are those for a cube of which no slices are taken.

    Raises:
        ValueError: When a side is below 1, or a shift negative or as large as half of its side.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int = (64, 64, 32),
        max_shift: Sequence[int] | int = 4,
        prob: float = 1.0,
        fill: float = -1000.0,
        center_key: str = CENTER_KEY,
        affine_key: str = AFFINE_KEY,
        allow_missing_keys: bool = False,
        slice_axes: Sequence[int] | None = None,
    ) -> None:
        RandomizableTransform.__init__(self, prob=prob)
        MapTransform.__init__(self, keys, allow_missing_keys)
        sides = check_cube_size(cube_size)
        self.cube = CandidateCubed(
            keys,
            odd_sides(sides, slice_axes),
            fill=fill,
            center_key=center_key,
            affine_key=affine_key,
            allow_missing_keys=allow_missing_keys,
        )
        self.max_shift = tuple(int(shift) for shift in ensure_tuple_rep(max_shift, 3))
        # further out the candidate would leave the cube
        if any(not 0 <= 2 * shift < side for shift, side in zip(self.max_shift, sides, strict=True)):
            raise ValueError(f"max_shift must lie in 0 to below half of each side of {sides}, got {self.max_shift}.")
        self.free = shifts_within_slices(slice_axes)
        self.shift: NDArray[np.float64] = np.zeros(3)

    def randomize(self, data: Any = None) -> None:
        """Draw the shift."""
        super().randomize(None)
        drawn = np.array([self.R.randint(-shift, shift + 1) for shift in self.max_shift], dtype=np.float64)
        self.shift = drawn * self.free if self._do_transform else np.zeros(3)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes instead of scans."""
        self.randomize()
        return self.cube.cut(data, self.shift)


def check_cube_size(cube_size: Sequence[int] | int) -> tuple[int, ...]:
    """Give three sides of a cube, or raise.

    Args:
        cube_size: sides in voxels, or one for all.

    Returns:
        The sides.

    Raises:
        ValueError: When they are not three, or below 1.
    """
    sides = tuple(int(side) for side in ensure_tuple_rep(cube_size, 3))
    if min(sides) < 1:
        raise ValueError(f"cube_size must be three sides of at least 1 voxel, got {cube_size}.")
    return sides


def odd_sides(cube_size: Sequence[int], slice_axes: Sequence[int] | None) -> tuple[int, ...]:
    """Give the sides of a cube that is augmented before slices are taken of it.

    A flip or a turn moves voxel ``side // 2``, where the candidate is, to another one if the side is even. With odd
    sides it stays. The cube that is asked for is the part from the first voxel on, as ``CenterSpatialCrop`` cuts it.

    Args:
        cube_size: sides of the cube in voxels.
        slice_axes: axes across which slices are taken; None if none are.

    Returns:
        The sides, where slices are taken with one more voxel along those that are even.

    Example:
        >>> odd_sides((64, 64, 32), None), odd_sides((64, 64, 31), [2])
        ((64, 64, 32), (65, 65, 31))
    """
    return tuple(int(side) if slice_axes is None else int(side) | 1 for side in cube_size)


def shifts_within_slices(slice_axes: Sequence[int] | None) -> NDArray[np.float64]:
    """Tell along which axes a candidate may be shifted, so that slices through the middle of its cube still show it.

    Across a slice it may not. A candidate that is off the middle along x leaves the middle along y in a turn about z,
    and the other way round: with slices across either it is shifted along neither.

    Args:
        slice_axes: axes across which slices are taken; None if none are.

    Returns:
        (3,) 1 along each axis along which it may, else 0.

    Example:
        >>> [shifts_within_slices(axes).tolist() for axes in (None, [2], [1], [2, 1, 0])]
        [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    across = set(slice_axes or ())
    across |= {0, 1} if across & {0, 1} else set()
    return np.array([float(axis not in across) for axis in range(3)])


def may_turn(cube_size: Sequence[int], slice_axes: Sequence[int] | None) -> bool:
    """Tell whether a cube may be turned by 90 degrees about z: with equal sides, and no slice becomes another kind.

    Args:
        cube_size: sides of the cube in voxels.
        slice_axes: axes across which slices are taken; None if none are.

    Returns:
        False where the sides along x and y differ, or slices are taken across one of x and y alone: a turn makes
        sagittal slices of coronal ones.

    Example:
        >>> [may_turn((64, 64, 32), axes) for axes in (None, [2], [1], [2, 1, 0])]
        [True, True, False, True]
    """
    return cube_size[0] == cube_size[1] and len({0, 1} & set(slice_axes or ())) != 1
