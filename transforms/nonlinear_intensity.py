# SPDX-License-Identifier: Apache-2.0
"""Non-linear intensity map along a cubic Bezier curve (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_intensity_range, check_probability
from .backend import resolve_backend

__all__ = [
    "NUM_NODES",
    "IntensityMap",
    "RandNonlinearIntensity",
    "RandNonlinearIntensityd",
    "bezier_curve",
    "bezier_map",
    "draw_control_points",
]

NdArray = np.ndarray[Any, Any]
Points = Sequence[Sequence[float]]

NUM_NODES = 2048
"""Nodes of a curve: linear interpolation between them is then off by less than 6e-6 of the range."""

_NUM_BUCKETS = 2048
# A bucket becomes one straight line where the second difference of the curve is below this; the line is then off by an
# eighth of it on a smooth stretch, and by at most all of it where the curve has a vertical tangent inside the bucket.
_BUCKET_TOLERANCE = 8e-6
_PART_VALUES = 2**15
_BUCKET_EDGES = np.arange(_NUM_BUCKETS + 1) / _NUM_BUCKETS


def _cubic(first: float, second: float, t: NdArray) -> NdArray:
    """One coordinate of the Bezier curve with ends 0 and 1 at the parameters t."""
    return (((1 + 3 * (first - second)) * t + 3 * (second - 2 * first)) * t + 3 * first) * t


def _node_parameters(x1: float, x2: float, num_nodes: int) -> NdArray:
    """Parameters of the nodes: dense, like a square, at both ends and where x(t) is slowest between them.

    There x(t) can stand still, which makes the tangent vertical. With d the distance of a parameter to the nearest such
    place, |x''/x'| <= 2/d, and linear interpolation between parameters dt apart is off by
    dt^2/8 (|y''| + |y'| |x''/x'|) <= dt^2/8 (12 + 6/d). On a stretch of length L with n steps t = L (3u^2 - 2u^3) gives
    dt <= 1.5 L/n and dt^2/d <= 12 L/n^2. For one stretch this is at most 12.4/n^2; for two that share the nodes by the
    square roots of their lengths, at most twice that: 24.8/num_nodes^2.
    """
    cube, square = 1 + 3 * (x1 - x2), 3 * (x2 - 2 * x1)
    split = -square / (3 * cube) if cube > 0 else 0.0
    if not 0 < split < 1:
        split = 0.0
    left = 0
    if split > 0:
        share = math.sqrt(split) / (math.sqrt(split) + math.sqrt(1 - split))
        left = min(max(round(num_nodes * share), 2), num_nodes - 2)
    u = np.arange(left) / max(left, 1)
    v = np.arange(num_nodes - left) / (num_nodes - 1 - left)
    return np.concatenate([split * (u * u * (3 - 2 * u)), split + (1 - split) * (v * v * (3 - 2 * v))])


def bezier_curve(control_points: Points, num_nodes: int = NUM_NODES) -> tuple[NdArray, NdArray]:
    """Nodes of the cubic Bezier curve through (0, 0), the two control points and (1, 1).

    Linear interpolation between them is off by less than ``25 / num_nodes**2`` anywhere, vertical tangents included.

    Args:
        control_points: two points ``((x1, y1), (x2, y2))`` in the unit square, so that both coordinates are monotone.
        num_nodes: number of nodes, at least 8.

    Returns:
        x and y of the nodes, both ascending from 0 to 1, float64.

    Raises:
        ValueError: for points outside the unit square or fewer nodes.

    Example:
        >>> x, y = bezier_curve([(0.2, 0.2), (0.7, 0.7)])
        >>> bool(np.allclose(x, y))
        True
    """
    (x1, y1), (x2, y2) = _check_points(control_points)
    if num_nodes < 8:
        raise ValueError(f"num_nodes: expected at least 8, found {num_nodes}")
    t = _node_parameters(x1, x2, num_nodes)
    # rounding must not make the curve turn back
    x, y = (np.maximum.accumulate(_cubic(first, second, t)) for first, second in ((x1, x2), (y1, y2)))
    x[-1] = y[-1] = 1.0
    return x, y


def bezier_map(values: NdArray, control_points: Points) -> NdArray:
    """Apply the curve to values in [0, 1], to about the precision of float64 where the tangent is not vertical.

    Args:
        values: any shape, in [0, 1].
        control_points: see :func:`bezier_curve`.

    Returns:
        float64 in [0, 1], the values' shape.

    Example:
        >>> bezier_map(np.array([0.0, 0.5, 1.0]), [(0.5, 0.0), (0.5, 1.0)]).round(6).tolist()
        [0.0, 0.5, 1.0]
    """
    (x1, y1), (x2, y2) = _check_points(control_points)
    parameters = _node_parameters(x1, x2, NUM_NODES)
    x, _ = bezier_curve(control_points)
    values = np.asarray(values, np.float64)
    node = np.clip(np.searchsorted(x, values, side="right") - 1, 0, NUM_NODES - 2)
    low, high = parameters[node], parameters[node + 1]
    width = x[node + 1] - x[node]
    share = np.divide(values - x[node], width, out=np.ones_like(values), where=width > 0)
    t = low + (high - low) * share
    # one Newton step, kept between the nodes
    slope = (3 * (1 + 3 * (x1 - x2)) * t + 6 * (x2 - 2 * x1)) * t + 3 * x1
    step = np.divide(_cubic(x1, x2, t) - values, slope, out=np.zeros_like(values), where=slope > 0)
    return np.where(values < 1, _cubic(y1, y2, np.clip(t - step, low, high)), 1.0)


def _check_points(control_points: Points) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the control points as floats."""
    points = np.asarray(control_points, np.float64)
    if points.shape != (2, 2) or not (points.min() >= 0 and points.max() <= 1):
        raise ValueError(f"control_points: expected two points (x, y) in the unit square, found {control_points}")
    (x1, y1), (x2, y2) = points.tolist()
    return (x1, y1), (x2, y2)


class IntensityMap:
    """A map of an intensity range to an output range: a Bezier curve, possibly reversed, or a straight line.

    Values outside the intensity range count as its nearest end, NaN as its low end.

    Args:
        control_points: see :func:`bezier_curve`; None: a straight line.
        reverse: whether the curve is mirrored, ``1 - y``, so that it falls from 1 to 0.
        intensity_range: (low, high) of the input.
        output_range: (low, high) of the output.
        backend: ``"numba"`` or ``"numpy"``.

    Example:
        >>> hounsfield = IntensityMap(None, False, (-1000, 1000), (0, 1), "numpy")
        >>> hounsfield(np.array([-2000, 0, 500, 1000])).tolist()
        [0.0, 0.5, 0.75, 1.0]
    """

    def __init__(
        self,
        control_points: Points | None,
        reverse: bool,
        intensity_range: tuple[float, float],
        output_range: tuple[float, float],
        backend: str,
    ) -> None:
        self.control_points = None if control_points is None else _check_points(control_points)
        self.intensity_range = intensity_range
        self.output_range = output_range
        self.backend = backend
        low, high = output_range
        falls = reverse and control_points is not None
        self.offset, self.gain = (high, low - high) if falls else (low, high - low)

    def levels(self) -> tuple[int, int]:
        """The whole numbers that enclose the intensity range."""
        return math.floor(self.intensity_range[0]), math.ceil(self.intensity_range[1])

    def table(self) -> NdArray:
        """The map at every whole number of :meth:`levels`, float32: what integer images need, exact."""
        first, last = self.levels()
        low, high = self.intensity_range
        values = np.clip((np.arange(first, last + 1) - low) / (high - low), 0.0, 1.0)
        return (self.offset + self.gain * self._curve(values)).astype(np.float32)

    def _curve(self, values: NdArray) -> NdArray:
        """The curve at ascending values in [0, 1]."""
        if self.control_points is None:
            return values
        if self.backend == "numba":
            from . import kernels

            (x1, y1), (x2, y2) = self.control_points
            return kernels.tabulate(x1, y1, x2, y2, values, NUM_NODES)[0]
        return bezier_map(values, self.control_points)

    def bucketed(self) -> tuple[NdArray, ...]:
        """The curve for :func:`.kernels.render`: a line per bucket of [0, 1], nodes for where that is too coarse."""
        from . import kernels

        if self.control_points is None:
            return kernels.NO_CURVE
        (x1, y1), (x2, y2) = self.control_points
        curve = kernels.tabulate(x1, y1, x2, y2, _BUCKET_EDGES, NUM_NODES)
        return kernels.bucket_curve(*curve, self.offset, self.gain, _BUCKET_TOLERANCE)

    def __call__(self, img: NdArray) -> NdArray:
        """Map an image of any shape and data type.

        Args:
            img: the image.

        Returns:
            float32 (float64 for float64), the image's shape; within 1e-5 of the output range's width, and for integers
            within its rounding to float32 but for a vertical tangent.
        """
        first, last = self.levels()
        part: Callable[[NdArray], NdArray]
        if img.dtype.kind in "iu" and last - first < 2**16:
            kind: type[np.floating[Any]] = np.float32
            part = partial(_look_up, table=self.table(), first=first, last=last)
        else:
            kind = np.float64 if img.dtype == np.float64 else np.float32
            part = partial(self._stretch, kind=kind) if self.control_points is None else self._prepare_curve(kind)
        mapped = np.empty(img.shape, kind)
        # in parts of the second-level cache: a dozen passes over main memory would take most of the time
        with np.nditer(
            [img, mapped],
            flags=["external_loop", "buffered", "zerosize_ok"],
            op_flags=[["readonly"], ["writeonly"]],
            buffersize=_PART_VALUES,
        ) as parts:
            for values, results in parts:
                results[...] = part(values)
        return mapped

    def _stretch(self, values: NdArray, kind: DtypeLike) -> NdArray:
        """Map floats along the straight line."""
        low, high = self.intensity_range
        # fmin and fmax prefer a number to NaN
        stretched = np.fmin(np.fmax(values.astype(kind, copy=False), low), high)
        stretched -= low
        stretched *= self.gain / (high - low)
        stretched += self.offset
        return stretched

    def _prepare_curve(self, kind: type[np.floating[Any]]) -> Callable[[NdArray], NdArray]:
        """A function that maps floats by a line per bucket, and by the nodes where that is too coarse."""
        assert self.control_points is not None
        low, high = self.intensity_range
        # where the tangent is vertical the last bit counts, so only [0, 1], which needs no arithmetic, stays float32
        already_unit = self.intensity_range == (0.0, 1.0)
        work = kind if already_unit else np.float64
        edges = self._curve(_BUCKET_EDGES)
        bend = np.abs(np.diff(edges, 2)) > _BUCKET_TOLERANCE
        coarse = np.concatenate([bend, [False]]) | np.concatenate([[False], bend])
        starts = np.where(coarse, np.nan, self.offset + self.gain * edges[:-1]).astype(kind)
        rises = (self.gain * np.diff(edges)).astype(kind)
        nodes_x, nodes_y = bezier_curve(self.control_points)
        nodes_y = self.offset + self.gain * nodes_y

        def follow(values: NdArray) -> NdArray:
            unit = np.fmin(np.fmax(values.astype(work, copy=False), low), high)
            if not already_unit:
                unit -= low
                unit /= high - low
            place = unit * np.asarray(_NUM_BUCKETS, work)
            bucket = place.astype(np.intp)
            np.minimum(bucket, _NUM_BUCKETS - 1, out=bucket)
            mapped = np.take(rises, bucket, mode="clip")
            mapped *= np.subtract(place, bucket, dtype=work)
            mapped += np.take(starts, bucket, mode="clip")
            rest = np.isnan(mapped)
            if rest.any():
                mapped[rest] = np.interp(unit[rest], nodes_x, nodes_y)
            return mapped

        return follow


def _look_up(values: NdArray, table: NdArray, first: int, last: int) -> NdArray:
    """Map whole numbers by a table of first..last."""
    wide = values if values.dtype == np.int16 and first >= -(2**15) and last < 2**15 else values.astype(np.int64)
    index = np.subtract(np.clip(wide, first, last), first, dtype=np.intp)
    return np.take(table, index, mode="clip")


def draw_control_points(R: np.random.RandomState) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draw two control points, uniform in the unit square.

    Args:
        R: a transform's random state.

    Returns:
        ``((x1, y1), (x2, y2))``.
    """
    x1, y1, x2, y2 = R.random_sample(4).tolist()
    return (x1, y1), (x2, y2)


class RandNonlinearIntensity(RandomizableTransform):
    """Map intensities along a random monotone Bezier curve (arXiv:2004.07882, section 3.2).

    Args:
        prob: probability of a curve at all.
        reverse_prob: probability that the curve falls instead of rising.
        intensity_range: (low, high), the intensities that the curve maps onto themselves as a whole, such as (0, 1), or
            (-1000, 1000) for HU. **Values outside count as its nearest end**, also where no curve is drawn; NaN as low.
        dtype: data type of the result; None keeps the input's, which rounds towards zero for integers.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`. It concerns only how
            the curve is computed.

    Raises:
        ValueError: for an argument outside its range.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        prob: float = 0.9,
        reverse_prob: float = 0.5,
        intensity_range: Sequence[float] = (0.0, 1.0),
        dtype: DtypeLike = np.float32,
        backend: str = "auto",
    ) -> None:
        RandomizableTransform.__init__(self, check_probability("prob", prob))
        self.reverse_prob = check_probability("reverse_prob", reverse_prob)
        self.intensity_range = check_intensity_range("intensity_range", intensity_range)
        self.dtype = dtype
        self.code_path = resolve_backend(backend)
        self.control_points: tuple[tuple[float, float], tuple[float, float]] | None = None
        self.reverse = False

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to map, the control points and the direction."""
        super().randomize(None)
        self.control_points = None
        if self._do_transform:
            self.control_points = draw_control_points(self.R)
            self.reverse = bool(self.R.random_sample() < self.reverse_prob)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Apply the transform.

        Args:
            img: channel-first image, shape (channels, x[, y[, z]]); all channels share the curve.
            randomize: whether to draw new parameters first.

        Returns:
            The mapped image, of the input's kind.
        """
        check_image_shape(img.shape)
        if randomize:
            self.randomize()
        array, *_ = convert_data_type(img, np.ndarray)
        span = self.intensity_range
        mapped = IntensityMap(self.control_points, self.reverse, span, span, self.code_path)(array)
        mapped = mapped.astype(array.dtype if self.dtype is None else self.dtype, copy=False)
        return convert_to_dst_type(mapped, dst=img, dtype=mapped.dtype)[0]


class RandNonlinearIntensityd(RandomizableTransform, MapTransform):
    """Dictionary twin of :class:`RandNonlinearIntensity`; all keys share the curve.

    Args:
        keys: keys of the images.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandNonlinearIntensity`.
    """

    backend = RandNonlinearIntensity.backend

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.mapper = RandNonlinearIntensity(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandNonlinearIntensityd:
        """Set the random state of the transform, as in MONAI."""
        super().set_random_state(seed, state)
        self.mapper.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the transform to each key."""
        d = dict(data)
        self.mapper.randomize()
        for key in self.key_iterator(d):
            d[key] = self.mapper(d[key], randomize=False)
        return d
