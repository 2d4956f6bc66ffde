# SPDX-License-Identifier: Apache-2.0
"""In-painting and out-painting: noise inside, or outside, a few boxes (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_intensity_range, check_probability, check_whole_number
from .backend import resolve_backend
from .local_shuffle import draw_seed

__all__ = [
    "RandInPainting",
    "RandInPaintingd",
    "RandOutPainting",
    "RandOutPaintingd",
    "copy_boxes",
    "draw_in_painting_boxes",
    "draw_noise",
    "draw_out_painting_boxes",
    "fill_boxes",
]

NdArray = np.ndarray[Any, Any]


def draw_in_painting_boxes(
    shape: Sequence[int],
    R: np.random.RandomState,
    max_boxes: int = 5,
    box_prob: float = 0.95,
    margin: int = 3,
) -> NdArray:
    """Draw the boxes that in-painting fills.

    Sides are uniform in ``size // 6..size // 3``, corners where the box keeps its distance to the border. There may be
    none: each box is drawn with a probability, and the first failure ends the drawing.

    Args:
        shape: spatial shape in voxels; each axis needs at least 8.
        R: a transform's random state.
        max_boxes: largest number of boxes.
        box_prob: probability of each further box.
        margin: distance to the border in voxels.

    Returns:
        Start and stop of each box in voxels, shape (boxes, spatial axes, 2), int64.

    Raises:
        ValueError: when no such box fits.

    Example:
        >>> boxes = draw_in_painting_boxes((64, 64, 32), np.random.RandomState(0))
        >>> sides = boxes[..., 1] - boxes[..., 0]
        >>> bool((sides >= (10, 10, 5)).all() and (sides <= (21, 21, 10)).all() and boxes.min() >= 3)
        True
    """
    count = _count_boxes(R, max_boxes, box_prob, sure=0)
    sides = [(size // 6, size // 3) for size in shape]
    return _draw_boxes("in-painting", shape, sides, count, max_boxes, margin, R)


def draw_out_painting_boxes(
    shape: Sequence[int],
    R: np.random.RandomState,
    max_boxes: int = 5,
    box_prob: float = 0.95,
    margin: int = 3,
) -> NdArray:
    """Draw the boxes that out-painting spares; there is always one.

    Sides are ``size - uniform(3 size // 7..4 size // 7)``; the rest is as in :func:`draw_in_painting_boxes`.

    Args:
        shape: spatial shape in voxels; each axis needs at least 14.
        R: a transform's random state.
        max_boxes: largest number of boxes, the first included.
        box_prob: probability of each further box.
        margin: distance to the border in voxels.

    Returns:
        Start and stop of each box in voxels, shape (boxes, spatial axes, 2), int64.

    Raises:
        ValueError: when no such box fits.

    Example:
        >>> len(draw_out_painting_boxes((64, 64, 32), np.random.RandomState(0), box_prob=0.0))
        1
    """
    count = _count_boxes(R, max_boxes, box_prob, sure=1)
    sides = [(size - 4 * size // 7, size - 3 * size // 7) for size in shape]
    return _draw_boxes("out-painting", shape, sides, count, max_boxes, margin, R)


def _count_boxes(R: np.random.RandomState, max_boxes: int, box_prob: float, sure: int) -> int:
    """Count boxes until the first failure, the first `sure` ones without fail."""
    tries: list[float] = R.random_sample(max_boxes).tolist()
    return next((number for number in range(sure, max_boxes) if tries[number] >= box_prob), max_boxes)


def _draw_boxes(
    what: str,
    shape: Sequence[int],
    sides: Sequence[tuple[int, int]],
    count: int,
    max_boxes: int,
    margin: int,
    R: np.random.RandomState,
) -> NdArray:
    """Draw boxes with sides between the two given and corners in margin..size-side-margin, all ends included."""
    if any(low < 1 or high > size - 2 * margin for size, (low, high) in zip(shape, sides, strict=True)):
        smallest, largest = zip(*sides, strict=True)
        raise ValueError(
            f"img: {what} expected axes that hold boxes of {list(smallest)} to {list(largest)} voxels, at least "
            f"1, {margin} voxels from the border, found spatial shape {tuple(shape)}"
        )
    # one draw for all, used or not, as a call of R costs more than the numbers; plain numbers, as there are few
    draws: list[list[list[float]]] = R.random_sample((max_boxes, len(shape), 2)).tolist()
    boxes = np.empty((count, len(shape), 2), np.int64)
    for number in range(count):
        for axis, (size, (low, high)) in enumerate(zip(shape, sides, strict=True)):
            to_side, to_start = draws[number][axis]
            side = low + int(to_side * (high - low + 1))
            start = margin + int(to_start * (size - side - 2 * margin + 1))
            boxes[number, axis] = start, start + side
    return boxes


def copy_boxes(img: NdArray, source: NdArray, boxes: NdArray) -> None:
    """Put boxes of one image into another, in place.

    Args:
        img: channel-first image.
        source: image of the same shape.
        boxes: see :func:`draw_in_painting_boxes`.
    """
    for inside in _insides(boxes):
        img[inside] = source[inside]


def fill_boxes(img: NdArray, boxes: NdArray, span: tuple[float, float], generator: np.random.Generator) -> None:
    """Fill boxes with noise, in place.

    Args:
        img: channel-first image; integers get noise rounded down.
        boxes: see :func:`draw_in_painting_boxes`.
        span: (low, high), the noise is uniform on [low, high).
        generator: source of the noise.
    """
    for inside in _insides(boxes):
        img[inside] = draw_noise(img[inside].shape, span, img.dtype, generator)


def _insides(boxes: NdArray) -> list[tuple[slice, ...]]:
    """The index of each box, all channels."""
    return [(slice(None), *(slice(start, stop) for start, stop in box)) for box in boxes.tolist()]


def draw_noise(
    shape: Sequence[int], span: tuple[float, float], dtype: DtypeLike, generator: np.random.Generator
) -> NdArray:
    """Draw uniform noise.

    Args:
        shape: of the result.
        span: (low, high), the noise is uniform on [low, high).
        dtype: of the result; integers are rounded down.
        generator: source of the noise.

    Returns:
        The noise.
    """
    low, high = span
    # half of 64 random bits a value, the upper 24 of it, as numpy does it too but drawing 32 bits at a time
    count = math.prod(shape)
    bits = generator.integers(0, 2**64, (count + 1) // 2, np.uint64).view(np.uint32)[:count]
    bits >>= np.uint32(8)
    noise = bits.astype(np.float32).reshape(tuple(shape))
    noise *= np.float32(2**-24)
    if span != (0.0, 1.0):
        noise *= high - low
        noise += low
    if np.dtype(dtype).kind in "iu":
        np.floor(noise, out=noise)
    return noise.astype(dtype, copy=False)


class _RandPainting(RandomizableTransform):
    """What the two paintings share."""

    backend = [TransformBackends.NUMPY]
    spare = False

    def __init__(
        self,
        prob: float = 0.9,
        max_boxes: int = 5,
        box_prob: float = 0.95,
        intensity_range: Sequence[float] = (0.0, 1.0),
        dtype: DtypeLike = np.float32,
        backend: str = "auto",
    ) -> None:
        RandomizableTransform.__init__(self, check_probability("prob", prob))
        self.max_boxes = check_whole_number("max_boxes", max_boxes, minimum=1)
        self.box_prob = check_probability("box_prob", box_prob)
        self.intensity_range = check_intensity_range("intensity_range", intensity_range)
        self.dtype = dtype
        self.code_path = resolve_backend(backend)
        self.boxes: NdArray | None = None
        self.seed = 0

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw whether to paint, the boxes and the seed of the noise.

        Args:
            img_size: spatial shape in voxels.
        """
        super().randomize(None)
        self.boxes = None
        if self._do_transform:
            draw = draw_out_painting_boxes if self.spare else draw_in_painting_boxes
            self.boxes = draw(img_size, self.R, self.max_boxes, self.box_prob)
            self.seed = draw_seed(self.R)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Apply the transform.

        Args:
            img: channel-first image, shape (channels, x[, y[, z]]); all channels share the boxes, each has its own
                noise.
            randomize: whether to draw new parameters first.

        Returns:
            The painted image, of the input's kind.
        """
        spatial = check_image_shape(img.shape)
        if randomize:
            self.randomize(spatial)
        array, *_ = convert_data_type(img, np.ndarray)
        dtype = np.dtype(array.dtype if self.dtype is None else self.dtype)
        painted = array.astype(dtype) if self.boxes is None else self._paint(array, self.boxes, dtype)
        return convert_to_dst_type(painted, dst=img, dtype=painted.dtype)[0]

    def _paint(self, array: NdArray, boxes: NdArray, dtype: np.dtype[Any]) -> NdArray:
        """The painted image; noise is drawn only where it lands, or for all where most of it stays."""
        if self.code_path == "numba" and dtype == np.float32 and array.dtype in (np.float32, np.int16):
            return self._paint_compiled(array, boxes)
        generator = np.random.Generator(np.random.SFC64(self.seed))
        if self.spare:
            painted = draw_noise(array.shape, self.intensity_range, dtype, generator)
            copy_boxes(painted, array, boxes)
        else:
            painted = array.astype(dtype)
            fill_boxes(painted, boxes, self.intensity_range, generator)
        return painted

    def _paint_compiled(self, array: NdArray, boxes: NdArray) -> NdArray:
        """The painted image, float32, in one pass over memory."""
        from . import kernels

        missing = 4 - array.ndim
        boxes = np.concatenate([np.tile(np.array([0, 1]), (len(boxes), missing, 1)), boxes], axis=1)
        painted = np.empty(array.shape, np.float32)
        kernels.paint(
            np.ascontiguousarray(array).reshape(-1),
            painted.reshape(-1),
            (1,) * missing + array.shape[1:],
            boxes,
            kernels.OUT_PAINT if self.spare else kernels.IN_PAINT,
            self.intensity_range,
            np.uint64(self.seed),
        )
        return painted


class RandInPainting(_RandPainting):
    """Fill a few boxes with noise (arXiv:2004.07882, section 3.2): the network must continue what surrounds them.

    The noise comes from a separate stream, named by one 64-bit number that :meth:`randomize` draws from ``self.R``.

    Args:
        prob: probability of painting; with 0.05 of it there is still no box, as the first one may fail.
        max_boxes: largest number of boxes.
        box_prob: probability of each box; the first failure ends the drawing.
        intensity_range: (low, high), the noise is uniform on [low, high).
        dtype: data type of the result; None keeps the input's, integer noise is rounded down.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`. The compiled loop serves
            float32 results of float32 and int16 images.

    Raises:
        ValueError: for an argument outside its range; at the call for an axis under 8 voxels.
    """


class RandOutPainting(_RandPainting):
    """Turn everything but a few boxes into noise (arXiv:2004.07882, section 3.2).

    The noise comes from a separate stream, named by one 64-bit number that :meth:`randomize` draws from ``self.R``.

    Args:
        prob: probability of painting.
        max_boxes: largest number of spared boxes.
        box_prob: probability of each box after the first; the first failure ends the drawing.
        intensity_range: (low, high), the noise is uniform on [low, high).
        dtype: data type of the result; None keeps the input's, integer noise is rounded down.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`. The compiled loop serves
            float32 results of float32 and int16 images.

    Raises:
        ValueError: for an argument outside its range; at the call for an axis under 14 voxels.
    """

    spare = True


class _RandPaintingd(RandomizableTransform, MapTransform):
    """What the two dictionary twins share."""

    backend = _RandPainting.backend
    painting: type[_RandPainting]

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.painter = self.painting(**kwargs)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _RandPaintingd:
        """Set the random state of the transform, as in MONAI."""
        super().set_random_state(seed, state)
        self.painter.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the transform to each key."""
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        shape = tuple(d[first].shape)
        self.painter.randomize(check_image_shape(shape))
        for key in self.key_iterator(d):
            if tuple(d[key].shape[1:]) != shape[1:]:
                raise ValueError(f"{key}: expected the spatial shape of {first}, {shape[1:]}, found {d[key].shape[1:]}")
            d[key] = self.painter(d[key], randomize=False)
        return d


class RandInPaintingd(_RandPaintingd):
    """Dictionary twin of :class:`RandInPainting`; all keys share the boxes and the noise.

    Args:
        keys: keys of the images, all of one spatial shape.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandInPainting`.
    """

    painting = RandInPainting


class RandOutPaintingd(_RandPaintingd):
    """Dictionary twin of :class:`RandOutPainting`; all keys share the boxes and the noise.

    Args:
        keys: keys of the images, all of one spatial shape.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandOutPainting`.
    """

    painting = RandOutPainting
