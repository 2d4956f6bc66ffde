# SPDX-License-Identifier: Apache-2.0
"""Local pixel shuffling: voxels change places inside many small blocks (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_probability, check_whole_number
from .backend import resolve_backend

__all__ = ["RandLocalPixelShuffle", "RandLocalPixelShuffled", "draw_seed", "local_pixel_shuffle", "max_block_sides"]

NdArray = np.ndarray[Any, Any]

_PART_VOXELS = 2**19


def draw_seed(R: np.random.RandomState) -> int:
    """Draw the one number that names a kernel's own stream of random bits.

    Args:
        R: a transform's random state.

    Returns:
        A whole number in 0..2**64-1.
    """
    return int.from_bytes(R.bytes(8), "little")


def max_block_sides(shape: Sequence[int], max_block_fraction: float = 0.1) -> tuple[int, ...]:
    """Largest block side along each axis.

    Args:
        shape: spatial shape in voxels.
        max_block_fraction: largest share of an axis that a block may take, in (0, 1]; the paper's code has a tenth.

    Returns:
        ``max(1, int(size * max_block_fraction))`` for each axis: an axis shorter than ten voxels keeps its order, as
        blocks of side 1 move nothing along it.

    Example:
        >>> max_block_sides((64, 32, 8))
        (6, 3, 1)
    """
    # the small number undoes products such as 100 * 0.29 = 28.999999999999996
    return tuple(max(1, int(size * max_block_fraction + 1e-9)) for size in shape)


def local_pixel_shuffle(
    img: NdArray,
    seed: int,
    num_blocks: int = 10_000,
    max_block_fraction: float = 0.1,
    backend: str = "auto",
    regions: NdArray | None = None,
) -> NdArray:
    """Shuffle the voxels inside random blocks.

    Each block reads the undeformed image, permutes its voxels uniformly and writes them; where blocks overlap the last
    one wins. All channels move alike.

    Args:
        img: channel-first image with one to three spatial axes, any data type.
        seed: 64-bit seed of the blocks and permutations.
        num_blocks: number of blocks.
        max_block_fraction: see :func:`max_block_sides`; each side is uniform in 1..that, the corner uniform where the
            block fits.
        backend: see :func:`.backend.resolve_backend`; the same distribution from either, not the same image.
        regions: boxes ``(n, spatial axes, 2)``, start and stop in voxels: what lies outside them will not be looked at,
            so the work may be left out there. ``None``: the whole image is wanted.

    Returns:
        A new array of the same shape and data type.

    Raises:
        ValueError: for an image of another number of axes, or too many voxels.

    Example:
        >>> row = np.arange(40).reshape(1, 40)
        >>> shuffled = local_pixel_shuffle(row, seed=1, num_blocks=50, backend="numpy")
        >>> bool(np.all(abs(shuffled - row) <= 3))
        True
    """
    spatial = check_image_shape(img.shape)
    if np.prod(spatial, dtype=np.int64) >= 2**31:
        raise ValueError(f"img: expected fewer than 2**31 voxels a channel, found spatial shape {spatial}")
    # one kernel serves one to three axes: missing ones have size 1 and come first
    missing = 3 - len(spatial)
    shape = (1,) * missing + spatial
    sides = (1,) * missing + max_block_sides(spatial, max_block_fraction)
    if regions is not None and missing:
        regions = np.concatenate([np.tile(np.array([0, 1]), (len(regions), missing, 1)), regions], axis=1)
    source = np.ascontiguousarray(img).reshape(len(img), -1)
    target = source.copy()
    if num_blocks > 0 and max(sides) > 1:
        if resolve_backend(backend) == "numba":
            _shuffle_compiled(source, target, shape, sides, num_blocks, seed, regions)
        else:
            _shuffle_vectorised(source, target, shape, sides, num_blocks, seed, regions)
    return target.reshape(img.shape)


def _shuffle_compiled(
    source: NdArray,
    target: NdArray,
    shape: tuple[int, ...],
    sides: tuple[int, ...],
    num_blocks: int,
    seed: int,
    regions: NdArray | None,
) -> None:
    """Shuffle with the compiled kernel; it moves bits, so it knows four widths instead of all data types."""
    from . import shuffle_kernels

    if source.dtype.itemsize not in (1, 2, 4, 8):
        raise ValueError(f"img: expected a data type of 1, 2, 4 or 8 bytes, found {source.dtype}")
    bits = np.dtype(f"u{source.dtype.itemsize}")
    # the axes may take any order, as a block looks the same along each: long lines come with few of them
    longest = max(range(3), key=lambda axis: (sides[axis], axis))
    axes = [*(axis for axis in range(3) if axis != longest), longest]
    strides: tuple[int, ...] = (shape[1] * shape[2], shape[2], 1)
    shape, strides, sides = (tuple(of[axis] for axis in axes) for of in (shape, strides, sides))
    covered = np.zeros((shape[0] * shape[1], (shape[2] + 31) // 32 + 1), np.uint32)
    if regions is not None:
        shuffle_kernels.cover(covered, shape, np.ascontiguousarray(regions[:, axes]))
    shuffle_kernels.shuffle_blocks(
        source.view(bits), target.view(bits), covered, shape, strides, sides, num_blocks, np.uint64(seed)
    )


def _shuffle_vectorised(
    source: NdArray,
    target: NdArray,
    shape: tuple[int, ...],
    sides: tuple[int, ...],
    num_blocks: int,
    seed: int,
    regions: NdArray | None,
) -> None:
    """Shuffle with numpy alone: sorting random keys gives each block its permutation."""
    generator = np.random.Generator(np.random.SFC64(seed))
    side = generator.integers(1, np.array(sides), size=(num_blocks, 3), endpoint=True)
    corner = generator.integers(0, np.array(shape) - side, endpoint=True)
    if regions is not None:
        meets: NdArray = (corner[:, None] < regions[..., 1]) & (corner[:, None] + side[:, None] > regions[..., 0])
        wanted = np.any(np.all(meets, axis=2), axis=1)
        side, corner = side[wanted], corner[wanted]
    # in parts, so that the lists of voxels stay small; the order of the blocks is kept
    part = np.cumsum(side.prod(axis=1)) // _PART_VOXELS
    cuts = np.flatnonzero(np.diff(part)) + 1
    for part_corner, part_side in zip(np.split(corner, cuts), np.split(side, cuts), strict=True):
        places = _block_voxels(part_corner, part_side, shape)
        drawn = _permute_within_blocks(places, part_side.prod(axis=1), generator)
        for channel in range(len(source)):
            target[channel][places] = np.take(source[channel], drawn, mode="clip")  # of repeated places the last stays


def _permute_within_blocks(places: NdArray, volume: NdArray, generator: np.random.Generator) -> NdArray:
    """Permute each block's part of a list of voxels uniformly."""
    # The lower half of a key is a voxel, the upper half is random. Two random halves of one block are alike about once
    # in 2**33 / volume**2 blocks, far below what any number of runs could show.
    keys = np.empty((places.size, 2), np.uint32)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    keys[:, low] = places
    keys[:, high] = generator.integers(0, 2**32, size=places.size, dtype=np.uint32)
    flat = keys.view(np.uint64)[:, 0]
    start = np.cumsum(volume) - volume
    order = np.argsort(volume, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(volume[order])) + 1):
        if len(group):
            rows = start[group][:, None] + np.arange(volume[group[0]])
            permuted = flat[rows]
            permuted.sort(axis=1)
            flat[rows] = permuted
    return keys[:, low].astype(np.intp)


def _block_voxels(corner: NdArray, side: NdArray, shape: tuple[int, ...]) -> NdArray:
    """Flat index of every voxel of every block, block after block."""
    lines = side[:, 0] * side[:, 1]
    block = np.repeat(np.arange(len(side)), lines)
    line = np.arange(block.size) - np.repeat(np.cumsum(lines) - lines, lines)
    x, y = np.divmod(line, side[block, 1])
    start = ((corner[block, 0] + x) * shape[1] + corner[block, 1] + y) * shape[2] + corner[block, 2]
    length = side[block, 2]
    return np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())


class RandLocalPixelShuffle(RandomizableTransform):
    """Shuffle voxels locally (arXiv:2004.07882, section 3.2): texture is lost, shapes and boundaries stay.

    The block sizes, corners and permutations come from a separate stream, named by one 64-bit number that
    :meth:`randomize` draws from ``self.R``; so the result depends on the random state alone.

    Args:
        prob: probability of shuffling at all.
        num_blocks: number of blocks; 0 changes nothing.
        max_block_fraction: largest share of an axis that a block takes, in (0, 1]. Axes shorter than
            ``1 / max_block_fraction`` voxels are not shuffled along.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`.

    Raises:
        ValueError: for an argument outside its range.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        prob: float = 0.5,
        num_blocks: int = 10_000,
        max_block_fraction: float = 0.1,
        backend: str = "auto",
    ) -> None:
        RandomizableTransform.__init__(self, check_probability("prob", prob))
        self.num_blocks = check_whole_number("num_blocks", num_blocks, minimum=0)
        if not 0.0 < max_block_fraction <= 1.0:
            raise ValueError(f"max_block_fraction: expected a share in (0, 1], found {max_block_fraction}")
        self.max_block_fraction = float(max_block_fraction)
        self.code_path = resolve_backend(backend)
        self.seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to shuffle, and the seed of the blocks."""
        super().randomize(None)
        if self._do_transform:
            self.seed = draw_seed(self.R)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Apply the transform.

        Args:
            img: channel-first image, shape (channels, x[, y[, z]]).
            randomize: whether to draw new parameters first.

        Returns:
            The shuffled image, of the input's kind and data type.
        """
        check_image_shape(img.shape)
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        array, *_ = convert_data_type(img, np.ndarray)
        shuffled = local_pixel_shuffle(array, self.seed, self.num_blocks, self.max_block_fraction, self.code_path)
        return convert_to_dst_type(shuffled, dst=img)[0]


class RandLocalPixelShuffled(RandomizableTransform, MapTransform):
    """Dictionary twin of :class:`RandLocalPixelShuffle`; all keys are shuffled alike.

    Args:
        keys: keys of the images.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandLocalPixelShuffle`.
    """

    backend = RandLocalPixelShuffle.backend

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.shuffle = RandLocalPixelShuffle(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandLocalPixelShuffled:
        """Set the random state of the transform, as in MONAI."""
        super().set_random_state(seed, state)
        self.shuffle.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the transform to each key."""
        d = dict(data)
        self.shuffle.randomize()
        for key in self.key_iterator(d):
            d[key] = self.shuffle(d[key], randomize=False)
        return d
