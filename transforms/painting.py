# SPDX-License-Identifier: Apache-2.0
"""In-painting and out-painting: noise inside, or outside, a few boxes (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_intensity_range, check_probability, check_whole_number
from .local_shuffle import draw_seed

__all__ = [
    "RandInPainting",
    "RandInPaintingd",
    "RandOutPainting",
    "RandOutPaintingd",
    "draw_in_painting_boxes",
    "draw_out_painting_boxes",
    "paint",
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
    sizes = np.array(shape)
    go_on = R.random_sample(max_boxes) < box_prob
    count = max_boxes if go_on.all() else int(np.argmin(go_on))
    return _draw_boxes("in-painting", sizes, sizes // 6, sizes // 3, count, max_boxes, margin, R)


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
    sizes = np.array(shape)
    go_on = R.random_sample(max_boxes) < box_prob
    go_on[:1] = True
    count = max_boxes if go_on.all() else int(np.argmin(go_on))
    return _draw_boxes(
        "out-painting", sizes, sizes - 4 * sizes // 7, sizes - 3 * sizes // 7, count, max_boxes, margin, R
    )


def _draw_boxes(
    what: str,
    sizes: NdArray,
    smallest: NdArray,
    largest: NdArray,
    count: int,
    max_boxes: int,
    margin: int,
    R: np.random.RandomState,
) -> NdArray:
    """Draw boxes with sides in smallest..largest and corners in margin..size-side-margin, all ends included."""
    if (smallest < 1).any() or (largest > sizes - 2 * margin).any():
        raise ValueError(
            f"img: {what} expected axes that hold boxes of {smallest.tolist()} to {largest.tolist()} voxels, at least "
            f"1, {margin} voxels from the border, found spatial shape {tuple(sizes.tolist())}"
        )
    # one draw for all, used or not: a call of R costs more than the numbers
    draws = R.random_sample((2, max_boxes, len(sizes)))[:, :count]
    sides = smallest + (draws[0] * (largest - smallest + 1)).astype(np.int64)
    starts = margin + (draws[1] * (sizes - sides - 2 * margin + 1)).astype(np.int64)
    return np.stack([starts, starts + sides], axis=-1)


def paint(img: NdArray, noise: NdArray, boxes: NdArray, spare: bool) -> None:
    """Put boxes of one image into another, in place.

    Args:
        img: channel-first image.
        noise: noise of the same shape.
        boxes: see :func:`draw_in_painting_boxes`.
        spare: False: the boxes of ``img`` become noise (in-painting). True: everything of ``img`` but the boxes does.
    """
    if not spare:
        for box in boxes:
            inside = (slice(None), *(slice(start, stop) for start, stop in box.tolist()))
            img[inside] = noise[inside]
        return
    outside = np.ones(img.shape[1:], bool)
    for box in boxes:
        outside[tuple(slice(start, stop) for start, stop in box.tolist())] = False
    np.copyto(img, noise, where=outside)


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
    ) -> None:
        RandomizableTransform.__init__(self, check_probability("prob", prob))
        self.max_boxes = check_whole_number("max_boxes", max_boxes, minimum=1)
        self.box_prob = check_probability("box_prob", box_prob)
        self.intensity_range = check_intensity_range("intensity_range", intensity_range)
        self.dtype = dtype
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
        painted = array.astype(array.dtype if self.dtype is None else self.dtype)
        if self.boxes is not None:
            low, high = self.intensity_range
            generator = np.random.Generator(np.random.SFC64(self.seed))
            noise = np.asarray(generator.random(painted.shape, np.float32))
            noise *= high - low
            noise += low
            if painted.dtype.kind in "iu":
                np.floor(noise, out=noise)
            paint(painted, noise.astype(painted.dtype, copy=False), self.boxes, self.spare)
        return convert_to_dst_type(painted, dst=img, dtype=painted.dtype)[0]


class RandInPainting(_RandPainting):
    """Fill a few boxes with noise (arXiv:2004.07882, section 3.2): the network must continue what surrounds them.

    The noise comes from a stream of its own, named by one 64-bit number that :meth:`randomize` draws from ``self.R``.

    Args:
        prob: probability of painting; with 0.05 of it there is still no box, as the first one may fail.
        max_boxes: largest number of boxes.
        box_prob: probability of each box; the first failure ends the drawing.
        intensity_range: (low, high), the noise is uniform on [low, high).
        dtype: data type of the result; None keeps the input's, integer noise is rounded down.

    Raises:
        ValueError: for an argument outside its range; at the call for an axis under 8 voxels.
    """


class RandOutPainting(_RandPainting):
    """Turn everything but a few boxes into noise (arXiv:2004.07882, section 3.2).

    The noise comes from a stream of its own, named by one 64-bit number that :meth:`randomize` draws from ``self.R``.

    Args:
        prob: probability of painting.
        max_boxes: largest number of spared boxes.
        box_prob: probability of each box after the first; the first failure ends the drawing.
        intensity_range: (low, high), the noise is uniform on [low, high).
        dtype: data type of the result; None keeps the input's, integer noise is rounded down.

    Raises:
        ValueError: for an argument outside its range; at the call for an axis under 14 voxels.
    """

    spare = True


class _RandPaintingd(RandomizableTransform, MapTransform):
    """What the two dictionary twins share."""

    backend = _RandPainting.backend
    painting: type[_RandPainting]

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.9,
        max_boxes: int = 5,
        box_prob: float = 0.95,
        intensity_range: Sequence[float] = (0.0, 1.0),
        dtype: DtypeLike = np.float32,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.painter = self.painting(prob, max_boxes, box_prob, intensity_range, dtype)

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
        prob: see :class:`RandInPainting`.
        max_boxes: see :class:`RandInPainting`.
        box_prob: see :class:`RandInPainting`.
        intensity_range: see :class:`RandInPainting`.
        dtype: see :class:`RandInPainting`.
        allow_missing_keys: whether a missing key is passed over.
    """

    painting = RandInPainting


class RandOutPaintingd(_RandPaintingd):
    """Dictionary twin of :class:`RandOutPainting`; all keys share the boxes and the noise.

    Args:
        keys: keys of the images, all of one spatial shape.
        prob: see :class:`RandOutPainting`.
        max_boxes: see :class:`RandOutPainting`.
        box_prob: see :class:`RandOutPainting`.
        intensity_range: see :class:`RandOutPainting`.
        dtype: see :class:`RandOutPainting`.
        allow_missing_keys: whether a missing key is passed over.
    """

    painting = RandOutPainting
