# SPDX-License-Identifier: Apache-2.0
"""Centre slices of a cube as channels of a 2D image: one for 2D, three orthogonal ones for 2.5D."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple


class CentreSlices(Transform):
    """Take the slices through the middle of a cube, across one axis or several, as channels.

    The middle is voxel ``side // 2``, where :class:`~models_genesis.transforms.CandidateCubed` puts its candidate. One
    axis gives the 2D form of a cube; three orthogonal slices are what the literature calls 2.5D (Roth et al., MICCAI
    2014, arXiv:1406.2639), for which the voxels should have equal sides.

    Args:
        axes: axes that the slices stand across, in the order of the channels: of a scan in RAS 0 for sagittal, 1 for
            coronal, 2 for axial ones. The default is axial, coronal, sagittal.

    Raises:
        ValueError: When there is no axis, one occurs twice, or is none of three.

    Example:
        >>> cube = np.arange(27).reshape(1, 3, 3, 3)
        >>> CentreSlices((2, 0))(cube)[:, 0].tolist()
        [[1, 4, 7], [9, 10, 11]]
    """

    def __init__(self, axes: Sequence[int] | int = (2, 1, 0)) -> None:
        self.axes = ensure_tuple(axes)
        if not self.axes or len(set(self.axes)) < len(self.axes) or not set(self.axes) <= {0, 1, 2}:
            raise ValueError(f"axes: expected different ones of 0, 1 and 2, found {list(self.axes)}.")

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Take the slices.

        Args:
            img: cube of shape ``(C, X, Y, Z)``; with several axes the slices must have equal sides.

        Returns:
            A copy of shape ``(C * number of axes, ...)`` with two sides, the channels of the first axis first, of the
            cube's type and kind; a MetaTensor becomes a tensor, for slices across several axes share no affine.

        Raises:
            ValueError: When the cube has not three spatial axes, or its slices differ in size.
        """
        if img.ndim != 4:
            raise ValueError(f"expected a cube of shape (C, X, Y, Z), found {tuple(img.shape)}.")
        planes = [_plane(img, axis) for axis in self.axes]
        if len({tuple(plane.shape) for plane in planes}) > 1:
            found = ", ".join(f"{tuple(p.shape[1:])} across {axis}" for p, axis in zip(planes, self.axes, strict=True))
            raise ValueError(f"expected slices of equal sides, as of a cube whose sides are equal, found {found}.")
        if isinstance(img, np.ndarray):
            return np.concatenate(planes)
        return torch.cat([plane.as_tensor() if isinstance(plane, MetaTensor) else plane for plane in planes])


def _plane(img: NdarrayOrTensor, axis: int) -> Any:
    """View the slice through the middle across a spatial axis."""
    index: list[Any] = [slice(None)] * img.ndim
    index[axis + 1] = img.shape[axis + 1] // 2
    return img[tuple(index)]


class CentreSlicesd(MapTransform):
    """Dictionary form of :class:`CentreSlices`.

    Args:
        keys: keys of the cubes.
        axes: see :class:`CentreSlices`.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self, keys: KeysCollection, axes: Sequence[int] | int = (2, 1, 0), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.slices = CentreSlices(axes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with slices instead of cubes."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.slices(item[key])
        return item
