# SPDX-License-Identifier: Apache-2.0
"""Cubes, or slices, cut from a scan at uniformly drawn admissible starts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, SpatialCrop, SqueezeDim
from monai.utils import ensure_tuple_rep
from torch import Tensor


def window_size(cube_size: Sequence[int] | int, slice_axis: int | None = None) -> Sequence[int] | int:
    """Voxels that are cut from a scan: the cube, or for a slice one voxel along its axis.

    Args:
        cube_size: size of the cube in voxels, or with ``slice_axis`` of the slice, along the two other axes in order.
        slice_axis: axis that slices stand across: of a scan in RAS 0 for sagittal, 1 for coronal, 2 for axial ones;
            ``None`` for cubes.

    Returns:
        The size: of a cube as it was given, of a slice along all three axes.

    Raises:
        ValueError: When a slice has not two sides, or its axis is none of three.

    Example:
        >>> window_size((128, 96), slice_axis=1), window_size((64, 64, 32))
        ((128, 1, 96), (64, 64, 32))
    """
    if slice_axis is None:
        return cube_size
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis: expected 0, 1, 2 or None, found {slice_axis!r}.")
    sides = ensure_tuple_rep(cube_size, 2) if isinstance(cube_size, int) else tuple(cube_size)
    if len(sides) != 2:
        raise ValueError(f"cube_size: expected two sides of a slice across axis {slice_axis}, found {list(sides)}.")
    return (*sides[:slice_axis], 1, *sides[slice_axis:])


def cut_cube(img: NdarrayOrTensor, start: Sequence[int], cube_size: Sequence[int]) -> NdarrayOrTensor:
    """Copy one cube out of a scan.

    Args:
        img: scan of shape ``(C, X[, Y, Z])``; of a memory-mapped one, or one in a store, only the cube is read.
        start: first voxel of the cube.
        cube_size: size of the cube in voxels.

    Returns:
        The cube, ``(C, *cube_size)``, contiguous, of the scan's kind and type; a MetaTensor's affine is the cube's.

    Example:
        >>> cut_cube(np.arange(16).reshape(1, 4, 4), (1, 2), (2, 2))
        array([[[ 6,  7],
                [10, 11]]])
    """
    if isinstance(img, MetaTensor):
        end = [first + side for first, side in zip(start, cube_size, strict=True)]
        return SpatialCrop(roi_start=list(start), roi_end=end)(img).clone()
    window = (slice(None), *(slice(first, first + side) for first, side in zip(start, cube_size, strict=True)))
    # a copy, not a view: workers would else send the whole scan, and a view keeps it mapped
    return img[window].clone() if isinstance(img, Tensor) else np.array(img[window])


def drop_axis(img: NdarrayOrTensor, axis: int) -> NdarrayOrTensor:
    """Take out a spatial axis of one voxel.

    Args:
        img: shape ``(C, X, Y, Z)``.
        axis: the spatial axis, counted from 0.

    Returns:
        The same values of shape ``(C, ...)`` with one axis less, of the same kind; of a MetaTensor the affine loses row
        and column of that axis.

    Example:
        >>> drop_axis(np.zeros((1, 4, 1, 3)), 1).shape
        (1, 4, 3)
    """
    # MONAI's transform makes a MetaTensor of an array
    return SqueezeDim(axis + 1)(img) if isinstance(img, MetaTensor) else img.squeeze(axis + 1)


class RandTissueCube(RandomizableTransform):
    """Cut a cube that starts at one of the given starts, each as likely as any other.

    With the starts of :func:`~models_genesis.transforms.tissue_windows.admissible_starts` this is the paper's cube
    sampling (arXiv:2004.07882) without its rejected tries.

    Args:
        cube_size: size of the cube in voxels; with ``slice_axis`` of the slice.
        slice_axis: axis that slices stand across, which they do not have any more; ``None`` for cubes. See
            :func:`window_size`.

    Raises:
        ValueError: When a side is below 1, or a slice has not two.

    Example:
        >>> cube = RandTissueCube((2, 2))
        >>> cube(np.arange(16).reshape(1, 4, 4), starts=np.array([6]))
        array([[[ 6,  7],
                [10, 11]]])
        >>> cube.start
        (1, 2)
        >>> RandTissueCube((2, 2), slice_axis=2)(np.zeros((1, 4, 4, 3))).shape
        (1, 2, 2)
    """

    def __init__(self, cube_size: Sequence[int] | int, slice_axis: int | None = None) -> None:
        super().__init__(prob=1.0)
        if any(side < 1 for side in ensure_tuple_rep(cube_size, 3 if isinstance(cube_size, int) else len(cube_size))):
            raise ValueError(f"cube_size must be at least 1 along each axis, got {cube_size}.")
        self.cube_size = window_size(cube_size, slice_axis)
        self.slice_axis = slice_axis
        self.start: tuple[int, ...] = ()

    def randomize(self, spatial_shape: Sequence[int], starts: np.ndarray | None = None) -> None:
        """Draw a start.

        Args:
            spatial_shape: size of the scan in voxels.
            starts: flat indices to draw from; ``None`` for all positions where the cube fits.

        Raises:
            ValueError: When there is no start, or the drawn one's cube leaves the scan.
        """
        cube = ensure_tuple_rep(self.cube_size, len(spatial_shape))
        spare = [size - side for size, side in zip(spatial_shape, cube, strict=True)]
        if min(spare) < 0 or (starts is not None and len(starts) == 0):
            raise ValueError(f"no cube of {cube} voxels to be drawn from a scan of {tuple(spatial_shape)} voxels.")
        if starts is None:
            self.start = tuple(int(self.R.randint(axis + 1)) for axis in spare)
            return
        chosen = int(starts[self.R.randint(len(starts))])
        self.start = tuple(int(first) for first in np.unravel_index(chosen, tuple(spatial_shape)))
        if any(first > axis for first, axis in zip(self.start, spare, strict=True)):
            raise ValueError(
                f"the cube of {cube} voxels at {self.start} leaves the scan of {tuple(spatial_shape)} voxels."
            )

    def __call__(
        self, img: NdarrayOrTensor, starts: np.ndarray | None = None, randomize: bool = True
    ) -> NdarrayOrTensor:
        """Cut a cube.

        Args:
            img: scan of shape ``(C, X[, Y, Z])``.
            starts: flat indices to draw from; ``None`` for all positions where the cube fits.
            randomize: whether to draw a start, else the last one is used again.

        Returns:
            The cube, ``(C, *cube_size)``, a contiguous copy of the scan's kind and type; a slice has two axes.
        """
        if randomize:
            self.randomize(tuple(img.shape[1:]), starts)
        cube = cut_cube(img, self.start, ensure_tuple_rep(self.cube_size, img.ndim - 1))
        return cube if self.slice_axis is None else drop_axis(cube, self.slice_axis)


class RandTissueCubed(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`RandTissueCube`: all keys are cut at the same start.

    The starts leave the item; the drawn start comes in, as an int64 array of voxels.

    Args:
        keys: keys of the scans, all of the same size.
        cube_size: size of the cube in voxels.
        starts_key: key of the flat start indices; where the item lacks it, every position may be drawn.
        start_key: key under which the drawn start is added.
        allow_missing_keys: whether an item may lack a key.
        slice_axis: see :class:`RandTissueCube`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int,
        starts_key: str = "starts",
        start_key: str = "start",
        allow_missing_keys: bool = False,
        slice_axis: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.cube = RandTissueCube(cube_size, slice_axis)
        self.starts_key = starts_key
        self.start_key = start_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandTissueCubed:
        """Seed the draws, see :class:`monai.transforms.Randomizable`."""
        super().set_random_state(seed, state)
        self.cube.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes for scans.

        Raises:
            ValueError: When the scans of an item differ in size.
        """
        item = dict(data)
        starts = item.pop(self.starts_key, None)
        shape: tuple[int, ...] | None = None
        for key in self.key_iterator(item):
            spatial_shape = tuple(item[key].shape[1:])
            if shape is None:
                shape = spatial_shape
                self.cube.randomize(shape, starts)
            elif spatial_shape != shape:
                raise ValueError(
                    f"{key}: expected a scan of {shape} voxels like the other keys, found {spatial_shape}."
                )
            item[key] = self.cube(item[key], randomize=False)
        item[self.start_key] = np.asarray(self.cube.start, dtype=np.int64)
        return item
