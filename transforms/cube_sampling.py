# SPDX-License-Identifier: Apache-2.0
"""Cubes cut from a scan at uniformly drawn admissible starts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, SpatialCrop
from monai.utils import ensure_tuple_rep


def cut_cube(img: NdarrayOrTensor, start: Sequence[int], cube_size: Sequence[int]) -> NdarrayOrTensor:
    """Copy one cube out of a scan.

    Args:
        img: scan of shape ``(C, X[, Y, Z])``; of a memory-mapped one only the cube is read.
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
    return np.array(img[window]) if isinstance(img, np.ndarray) else img[window].clone()


class RandTissueCube(RandomizableTransform):
    """Cut a cube that starts at one of the given starts, each as likely as any other.

    With the starts of :func:`~models_genesis.transforms.tissue_windows.admissible_starts` this is the paper's cube
    sampling (arXiv:2004.07882) without its rejected tries.

    Args:
        cube_size: size of the cube in voxels.

    Raises:
        ValueError: When a side is below 1.

    Example:
        >>> cube = RandTissueCube((2, 2))
        >>> cube(np.arange(16).reshape(1, 4, 4), starts=np.array([6]))
        array([[[ 6,  7],
                [10, 11]]])
        >>> cube.start
        (1, 2)
    """

    def __init__(self, cube_size: Sequence[int] | int) -> None:
        super().__init__(prob=1.0)
        if any(side < 1 for side in ensure_tuple_rep(cube_size, 3 if isinstance(cube_size, int) else len(cube_size))):
            raise ValueError(f"cube_size must be at least 1 along each axis, got {cube_size}.")
        self.cube_size = cube_size
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
            The cube, ``(C, *cube_size)``, a contiguous copy of the scan's kind and type.
        """
        if randomize:
            self.randomize(tuple(img.shape[1:]), starts)
        return cut_cube(img, self.start, ensure_tuple_rep(self.cube_size, img.ndim - 1))


class RandTissueCubed(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`RandTissueCube`: all keys are cut at the same start.

    The starts leave the item; the drawn start comes in, as an int64 array of voxels.

    Args:
        keys: keys of the scans, all of the same size.
        cube_size: size of the cube in voxels.
        starts_key: key of the flat start indices; where the item lacks it, every position may be drawn.
        start_key: key under which the drawn start is added.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int,
        starts_key: str = "starts",
        start_key: str = "start",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.cube = RandTissueCube(cube_size)
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
