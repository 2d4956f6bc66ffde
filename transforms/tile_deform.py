# SPDX-License-Identifier: Apache-2.0
"""Deforms a whole scan as the network was trained: cube by cube."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data.utils import dense_patch_slices
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple

from .cube_sampling import drop_axis, window_size
from .genesis_deform import RandGenesisDeform

__all__ = ["RandGenesisDeformTiles", "RandGenesisDeformTilesd"]


class RandGenesisDeformTiles(RandomizableTransform):
    """Cut a scan into cubes, deform each by :class:`RandGenesisDeform`, and put them together again.

    The cubes are those that ``monai.inferers.SlidingWindowInferer`` visits with ``overlap=0``, so each window of a
    restoration holds one deformed cube. At the far ends cubes overlap, and the later one is seen.

    Args:
        cube_size: size of a cube in voxels; the scan must be as large.
        deform: the deformation of a cube. Its flips must be off, or the scan would be torn.
        slice_axis: axis that slices stand across, where the tiles are slices and ``cube_size`` is theirs, see
            :func:`~models_genesis.transforms.window_size`; ``None`` for cubes.

    Raises:
        ValueError: When ``deform`` flips, or a slice has not two sides.
    """

    def __init__(self, cube_size: Sequence[int], deform: RandGenesisDeform, slice_axis: int | None = None) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        if deform.flip_prob > 0:
            raise ValueError(f"deform must have flip_prob=0, got {deform.flip_prob}: flipped cubes would tear the scan")
        self.cube_size = ensure_tuple(window_size(tuple(cube_size), slice_axis))
        self.slice_axis = slice_axis
        self.deform = deform

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandGenesisDeformTiles:
        """Seed the deformation of the cubes; see ``monai.transforms.Randomizable``."""
        super().set_random_state(seed, state)
        self.deform.set_random_state(state=self.R)
        return self

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Deform a scan.

        Args:
            img: scan of shape ``(C, X, Y, Z)`` in the deformation's ``intensity_range``; it is not changed.

        Returns:
            The deformed scan, float32, in the deformation's ``output_range``.

        Raises:
            ValueError: When the scan is smaller than a cube.
        """
        volume, *_ = convert_data_type(img, np.ndarray)
        shape = volume.shape[1:]
        if len(shape) != len(self.cube_size) or any(s < c for s, c in zip(shape, self.cube_size, strict=True)):
            raise ValueError(f"the scan has {shape} voxels, and a cube needs {self.cube_size}")
        deformed = np.empty(volume.shape, dtype=np.float32)
        for tile in dense_patch_slices(shape, self.cube_size, self.cube_size):
            where = (slice(None), *tile)
            cube = volume[where]
            seen = cube if self.slice_axis is None else drop_axis(cube, self.slice_axis)
            deformed[where] = self.deform(seen)[0].reshape(cube.shape)
        return convert_to_dst_type(deformed, img, dtype=np.float32)[0]


class RandGenesisDeformTilesd(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`RandGenesisDeformTiles`.

    Args:
        keys: keys of the scans.
        cube_size: size of a cube in voxels.
        allow_missing_keys: whether a key may be missing.
        slice_axis: see :class:`RandGenesisDeformTiles`.
        deform: arguments of :class:`RandGenesisDeform`; ``flip_prob`` is 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int],
        allow_missing_keys: bool = False,
        slice_axis: int | None = None,
        **deform: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.tiles = RandGenesisDeformTiles(cube_size, RandGenesisDeform(**{**deform, "flip_prob": 0.0}), slice_axis)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandGenesisDeformTilesd:
        """Seed the deformation; see ``monai.transforms.Randomizable``."""
        super().set_random_state(seed, state)
        self.tiles.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Return a copy of the item with the scans deformed."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.tiles(item[key])
        return item
