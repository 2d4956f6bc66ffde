# SPDX-License-Identifier: Apache-2.0
"""Masked patches: a share of the patches of a regular grid is hidden (arXiv:2111.06377, arXiv:2111.09886).

The proxy task of masked autoencoders, next to those of Models Genesis. Unlike in-painting, how much is hidden is the
same in each image, and the hidden patches lie on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_intensity_range, check_probability, check_whole_number
from .backend import resolve_backend
from .local_shuffle import draw_seed
from .painting import fill_boxes

__all__ = [
    "RandPatchMasking",
    "RandPatchMaskingd",
    "check_patch",
    "check_value",
    "count_masked",
    "draw_masked_patches",
    "mask_patches",
    "patch_grid",
]

NdArray = np.ndarray[Any, Any]


def check_patch(name: str, patch: Sequence[int] | int) -> tuple[int, ...]:
    """Return a patch size as a tuple: one number for all axes, or one for each.

    Args:
        name: the argument's name, for the error.
        patch: in voxels.

    Returns:
        The sides.

    Raises:
        ValueError: when a side is not a whole number of at least 1.
    """
    sides = ensure_tuple(patch)
    if not 1 <= len(sides) <= 3:
        raise ValueError(f"{name}: expected one side, or one for each spatial axis, found {patch}")
    return tuple(check_whole_number(name, side, minimum=1) for side in sides)


def check_value(name: str, value: float | None, span: tuple[float, float]) -> float | None:
    """Return what masked voxels show.

    Args:
        name: the argument's name, for the error.
        value: a number, None for noise.
        span: (low, high) that the number must lie in.

    Returns:
        The number as a float, or None.

    Raises:
        ValueError: when the number lies outside.
    """
    if value is None:
        return None
    if not span[0] <= value <= span[1]:
        raise ValueError(f"{name}: expected a number in {span}, or None for noise, found {value}")
    return float(value)


def patch_grid(shape: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the grid of patches over an image, and a patch's sides.

    The grid begins at the first voxel. Where a side does not divide the axis, the last patch there is smaller; a side
    longer than the axis means one patch.

    Args:
        shape: spatial shape in voxels.
        patch: sides in voxels, one for all axes or one for each.

    Returns:
        Number of patches along each axis, and the sides.

    Raises:
        ValueError: for another number of sides.

    Example:
        >>> patch_grid((64, 64, 30), (16,))
        ((4, 4, 2), (16, 16, 16))
    """
    sides = tuple(patch) * len(shape) if len(patch) == 1 else tuple(patch)
    if len(sides) != len(shape):
        raise ValueError(
            f"mask_patch: expected one side, or {len(shape)} for spatial shape {tuple(shape)}, found {patch}"
        )
    return tuple(-(-length // side) for length, side in zip(shape, sides, strict=True)), sides


def count_masked(grid: Sequence[int], ratio: float) -> int:
    """Tell how many patches are masked: ``ratio`` of them, rounded to the nearest whole number (a half is rounded up).

    Args:
        grid: number of patches along each axis.
        ratio: in [0, 1].

    Returns:
        The number; it does not vary from image to image.

    Example:
        >>> count_masked((4, 4, 2), 0.6)
        19
    """
    return math.floor(ratio * math.prod(grid) + 0.5)


def draw_masked_patches(
    shape: Sequence[int], R: np.random.RandomState, patch: Sequence[int] = (16,), ratio: float = 0.6
) -> NdArray:
    """Draw the patches that are masked; each choice of so many patches is equally likely.

    Args:
        shape: spatial shape in voxels.
        R: a transform's random state.
        patch: see :func:`patch_grid`.
        ratio: see :func:`count_masked`.

    Returns:
        Start and stop of each masked patch in voxels, shape (patches, spatial axes, 2), int64; they do not overlap.

    Example:
        >>> draw_masked_patches((8, 6), np.random.RandomState(0), patch=(4,), ratio=0.5).tolist()
        [[[4, 8], [0, 4]], [[4, 8], [4, 6]]]
    """
    grid, sides = patch_grid(shape, patch)
    chosen = R.permutation(math.prod(grid))[: count_masked(grid, ratio)]
    corner = np.stack(np.unravel_index(chosen, grid), axis=-1) * np.array(sides)
    return np.stack([corner, np.minimum(corner + np.array(sides), np.array(shape))], axis=-1).astype(np.int64)


def mask_patches(
    img: NdArray, boxes: NdArray, value: float | None, span: tuple[float, float], seed: int, backend: str
) -> None:
    """Hide patches of an image, in place.

    Args:
        img: channel-first image; contiguous float32 for ``"numba"``.
        boxes: see :func:`draw_masked_patches`; for any number of spatial axes up to three.
        value: what the patches show; None: noise, drawn separately for each channel.
        span: (low, high), the noise is uniform on [low, high).
        seed: 64-bit seed of the noise.
        backend: ``"numba"`` or ``"numpy"``.
    """
    if value is not None:
        for box in boxes.tolist():
            img[(slice(None), *(slice(*ends) for ends in box))] = value
    elif backend == "numba":
        from . import kernels

        missing = 4 - img.ndim
        boxes = np.concatenate([np.tile(np.array([0, 1]), (len(boxes), missing, 1)), boxes], axis=1)
        kernels.fill(img.reshape(-1), (1,) * missing + img.shape[1:], boxes, span, np.uint64(seed))
    else:
        fill_boxes(img, boxes, span, np.random.Generator(np.random.SFC64([seed, 2])))


class RandPatchMasking(RandomizableTransform):
    """Hide a fixed share of the patches of a regular grid; the network must tell what they held.

    A masked voxel shows noise by default, as in painting, and not a constant: each constant in the image's range is
    also an intensity that a voxel may really have (0 is air), and the network could not tell the two apart. A constant
    is better where many hidden voxels must not change the statistics of the norms, for instance the mean of the data.

    The noise comes from a separate stream, named by one 64-bit number that :meth:`randomize` draws from ``self.R``.

    Args:
        prob: probability of masking.
        patch: sides of a patch in voxels, one for all axes or one for each. Where a side does not divide the axis, the
            last patch there is smaller.
        ratio: share of the patches that is masked, in [0, 1]; rounded to whole patches, the same for each image.
        value: what masked voxels show, in ``intensity_range``; None: noise.
        intensity_range: (low, high), the noise is uniform on [low, high).
        dtype: data type of the result; None keeps the input's, integer noise is rounded down.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`. The compiled loop serves
            float32 results.

    Raises:
        ValueError: for an argument outside its range.

    Example:
        >>> mask = RandPatchMasking(patch=4, ratio=0.5, value=0.0).set_random_state(0)
        >>> int(np.sum(mask(np.ones((1, 8, 8, 8), np.float32)) == 0))
        256
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        prob: float = 1.0,
        patch: Sequence[int] | int = 16,
        ratio: float = 0.6,
        value: float | None = None,
        intensity_range: Sequence[float] = (0.0, 1.0),
        dtype: DtypeLike = np.float32,
        backend: str = "auto",
    ) -> None:
        RandomizableTransform.__init__(self, check_probability("prob", prob))
        self.patch = check_patch("patch", patch)
        self.ratio = check_probability("ratio", ratio)
        self.intensity_range = check_intensity_range("intensity_range", intensity_range)
        self.value = check_value("value", value, self.intensity_range)
        self.dtype = dtype
        self.code_path = resolve_backend(backend)
        self.boxes: NdArray | None = None
        self.seed = 0

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw whether to mask, the patches and the seed of the noise.

        Args:
            img_size: spatial shape in voxels.
        """
        super().randomize(None)
        self.boxes = None
        if self._do_transform:
            self.boxes = draw_masked_patches(img_size, self.R, self.patch, self.ratio)
            self.seed = draw_seed(self.R)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Apply the transform.

        Args:
            img: channel-first image, shape (channels, x[, y[, z]]); all channels share the patches, each has its own
                noise.
            randomize: whether to draw new parameters first.

        Returns:
            The masked image, of the input's kind.
        """
        spatial = check_image_shape(img.shape)
        if randomize:
            self.randomize(spatial)
        array, *_ = convert_data_type(img, np.ndarray)
        masked = np.array(array, dtype=self.dtype, order="C")
        if self.boxes is not None:
            backend = self.code_path if masked.dtype == np.float32 else "numpy"
            mask_patches(masked, self.boxes, self.value, self.intensity_range, self.seed, backend)
        return convert_to_dst_type(masked, dst=img, dtype=masked.dtype)[0]


class RandPatchMaskingd(RandomizableTransform, MapTransform):
    """Dictionary twin of :class:`RandPatchMasking`; all keys share the patches and the noise.

    Args:
        keys: keys of the images, all of one spatial shape.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandPatchMasking`.
    """

    backend = RandPatchMasking.backend

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.mask = RandPatchMasking(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandPatchMaskingd:
        """Set the random state of the transform, as in MONAI."""
        super().set_random_state(seed, state)
        self.mask.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the transform to each key."""
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        shape = tuple(d[first].shape)
        self.mask.randomize(check_image_shape(shape))
        for key in self.key_iterator(d):
            if tuple(d[key].shape[1:]) != shape[1:]:
                raise ValueError(f"{key}: expected the spatial shape of {first}, {shape[1:]}, found {d[key].shape[1:]}")
            d[key] = self.mask(d[key], randomize=False)
        return d
