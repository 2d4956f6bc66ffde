# SPDX-License-Identifier: Apache-2.0
"""Compiled loops that flip, map and paint (numba, one thread, without the GIL); shuffling has its own file.

Indices are unsigned where a loop should vectorise: numba lets signed ones count from the end, which costs a test each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .random_bits import GOLDEN, compile_loop, mix

__all__ = ["bucket_curve", "fill", "paint", "render", "tabulate"]

NdArray = np.ndarray[Any, Any]
Bits = Any  # numpy.uint64

_U40 = np.uint64(40)
# how render maps an intensity, and what it paints
TABLE, LINEAR, CURVE = 0, 1, 2
NO_PAINT, IN_PAINT, OUT_PAINT = 0, 1, 2

_TO_UNIT = np.float32(2.0**-24)

# these stand in where no table and no curve is wanted
NO_TABLE: NdArray = np.empty(0, np.float32)
NO_CURVE: tuple[NdArray, ...] = (
    np.empty(0, np.float32),
    np.empty(0, np.float32),
    np.empty(0, np.int32),
    np.empty(0),
    np.empty(0),
)


@compile_loop
def _cubic(first: float, second: float, t: float) -> float:
    """One coordinate of the Bezier curve with ends 0 and 1 at parameter t."""
    return (((1.0 + 3.0 * (first - second)) * t + 3.0 * (second - 2.0 * first)) * t + 3.0 * first) * t


@compile_loop
def _trace(x1: float, y1: float, x2: float, y2: float, parameters: NdArray, curve_x: NdArray, curve_y: NdArray) -> None:
    """Fill in the nodes of :func:`..nonlinear_intensity.bezier_curve` and their parameters."""
    nodes = parameters.size
    cube = 1.0 + 3.0 * (x1 - x2)
    square = 3.0 * (x2 - 2.0 * x1)
    split = -square / (3.0 * cube) if cube > 0.0 else 0.0
    if not 0.0 < split < 1.0:
        split = 0.0
    left = 0
    if split > 0.0:
        share = np.sqrt(split) / (np.sqrt(split) + np.sqrt(1.0 - split))
        left = min(max(int(np.rint(nodes * share)), 2), nodes - 2)
    for i in range(nodes):
        if i < left:
            u = i / left
            t = split * (u * u * (3.0 - 2.0 * u))
        else:
            u = (i - left) / (nodes - 1 - left)
            t = split + (1.0 - split) * (u * u * (3.0 - 2.0 * u))
        parameters[i] = t
        curve_x[i] = _cubic(x1, x2, t)
        curve_y[i] = _cubic(y1, y2, t)
        if i > 0:  # rounding must not make it turn back
            curve_x[i] = max(curve_x[i], curve_x[i - 1])
            curve_y[i] = max(curve_y[i], curve_y[i - 1])
    curve_x[nodes - 1] = 1.0
    curve_y[nodes - 1] = 1.0


@compile_loop
def tabulate(
    x1: float, y1: float, x2: float, y2: float, values: NdArray, num_nodes: int
) -> tuple[NdArray, NdArray, NdArray]:
    """The curve at ascending values in 0..1, and its nodes: one Newton step from the linear guess between two nodes."""
    parameters = np.empty(num_nodes)
    curve_x = np.empty(num_nodes)
    curve_y = np.empty(num_nodes)
    _trace(x1, y1, x2, y2, parameters, curve_x, curve_y)
    cube = 1.0 + 3.0 * (x1 - x2)
    square = 3.0 * (x2 - 2.0 * x1)
    result = np.empty(values.size)
    node = 0
    for i in range(values.size):
        value = values[i]
        while node < num_nodes - 2 and curve_x[node + 1] <= value:
            node += 1
        t_low = parameters[node]
        t_high = parameters[node + 1]
        width = curve_x[node + 1] - curve_x[node]
        t = t_low + (t_high - t_low) * ((value - curve_x[node]) / width) if width > 0.0 else t_high
        slope = (3.0 * cube * t + 2.0 * square) * t + 3.0 * x1
        if slope > 0.0:
            t -= (_cubic(x1, x2, t) - value) / slope
            t = min(max(t, t_low), t_high)
        result[i] = _cubic(y1, y2, t) if value < 1.0 else 1.0
    return result, curve_x, curve_y


@compile_loop
def bucket_curve(
    edges: NdArray, curve_x: NdArray, curve_y: NdArray, offset: float, gain: float, tolerance: float
) -> tuple[NdArray, ...]:
    """Prepare a curve for :func:`_map_run`: a straight line per bucket where that is close enough.

    `edges` are the curve's values at the edges of equal buckets. Where the second difference at an edge exceeds the
    tolerance, both buckets there start with NaN, which sends their values to the nodes.
    """
    buckets = edges.size - 1
    starts = np.empty(buckets, np.float32)
    rises = np.empty(buckets, np.float32)
    first_node = np.empty(buckets + 1, np.int32)
    node = 0
    for i in range(buckets + 1):
        while node < curve_x.size - 2 and curve_x[node + 1] <= i / buckets:
            node += 1
        first_node[i] = node
    for i in range(buckets):
        before = i > 0 and abs(edges[i - 1] - 2.0 * edges[i] + edges[i + 1]) > tolerance
        after = i + 2 <= buckets and abs(edges[i] - 2.0 * edges[i + 1] + edges[i + 2]) > tolerance
        starts[i] = np.nan if before or after else offset + gain * edges[i]
        rises[i] = gain * (edges[i + 1] - edges[i])
    return starts, rises, first_node, curve_x, offset + gain * curve_y


@compile_loop
def _from_nodes(value: float, bucket: Any, curve: tuple[NdArray, ...]) -> float:
    """Interpolate between the two nodes around a value in 0..1."""
    _, _, first_node, curve_x, curve_y = curve
    if value == 0.0:  # air, clipped: many voxels of a CT, and the curve is often steep there
        return curve_y[0]
    low = np.int64(first_node[bucket])
    high = np.int64(first_node[bucket + 1]) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if curve_x[middle] <= value:
            low = middle
        else:
            high = middle
    width = curve_x[high] - curve_x[low]
    share = (value - curve_x[low]) / width if width > 0.0 else 1.0
    return curve_y[low] + share * (curve_y[high] - curve_y[low])


@compile_loop
def _to_unit(value: Any, low: float, high: float) -> Any:
    """An intensity's place in its range, 0..1; NaN counts as low."""
    # a division, as 1 must come out exactly: the tangent may be vertical there
    return min((value - low) / (high - low), 1.0) if value > low else 0.0


@compile_loop
def _map_curve(
    source: NdArray,
    start: int,
    count: int,
    out: NdArray,
    at: int,
    low: float,
    high: float,
    curve: tuple[NdArray, ...],
    buckets: NdArray,
    shares: NdArray,
) -> None:
    """Write the curve's values of source[start:start + count] to out[at:at + count]; the last two are scratch."""
    starts, rises = curve[0], curve[1]
    first = np.uint64(start)
    first_out = np.uint64(at)
    scale = starts.size / (high - low)
    for i in range(count):  # apart from the look-up this loop vectorises
        value = np.float64(source[first + np.uint64(i)])
        above = value - low if value > low else 0.0  # NaN is not above low either
        place = min(above, high - low) * scale
        bucket = min(np.int32(place), np.int32(starts.size - 1))
        buckets[np.uint64(i)] = bucket
        shares[np.uint64(i)] = np.float32(place - bucket)
    for i in range(count):
        chosen = np.uint64(buckets[np.uint64(i)])
        mapped = starts[chosen] + rises[chosen] * shares[np.uint64(i)]
        if mapped != mapped:
            value = _to_unit(np.float64(source[first + np.uint64(i)]), low, high)
            mapped = np.float32(_from_nodes(value, chosen, curve))
        out[first_out + np.uint64(i)] = mapped


@compile_loop
def _map_run(
    source: NdArray,
    start: int,
    count: int,
    out: NdArray,
    at: int,
    kind: int,
    ranges: tuple[float, ...],
    table: tuple[NdArray, int],
    curve: tuple[NdArray, ...],
    buckets: NdArray,
    shares: NdArray,
) -> None:
    """Write the mapped values of source[start:start + count] to out[at:at + count]."""
    low, high, out_low, out_high = ranges
    if kind == CURVE:
        _map_curve(source, start, count, out, at, low, high, curve, buckets, shares)
        return
    first = np.uint64(start)
    first_out = np.uint64(at)
    if kind == TABLE:
        values = table[0]
        level_low = np.int32(table[1])
        level_high = np.int32(table[1] + values.size - 1)
        for i in range(count):
            level = min(max(np.int32(source[first + np.uint64(i)]), level_low), level_high) - level_low
            out[first_out + np.uint64(i)] = values[np.uint32(level)]
        return
    scale = (out_high - out_low) / (high - low)
    for i in range(count):
        value = np.float64(source[first + np.uint64(i)])
        above = value - low if value > low else 0.0  # NaN is not above low either
        out[first_out + np.uint64(i)] = out_low + min(above, high - low) * scale


@compile_loop
def _noise_run(
    noisy: NdArray, start: int, stop: int, out: NdArray, at: int, low: float, scale: float, seed: Bits
) -> None:
    """Write uniform noise where `noisy` says so; each value depends on the seed and on its place alone."""
    first = np.uint64(start)
    first_out = np.uint64(at + start)
    for i in range(stop - start):
        place = first_out + np.uint64(i)
        bits = mix(seed + place * GOLDEN)
        value = low + scale * (np.float32(np.int32(bits >> _U40)) * _TO_UNIT)
        out[place] = value if noisy[first + np.uint64(i)] else out[place]


@compile_loop
def _mark_edges(boxes: NdArray, size_x: int) -> NdArray:
    """Mark the planes whose boxes differ from those of the plane before."""
    edges = np.zeros(size_x + 1, np.bool_)
    edges[0] = True
    for box in range(boxes.shape[0]):
        edges[boxes[box, 0, 0]] = True
        edges[boxes[box, 0, 1]] = True
    return edges


@compile_loop
def _mark_noise(
    boxes: NdArray, paint: int, x: int, size_y: int, size_z: int, noisy: NdArray
) -> tuple[int, int, int, int]:
    """Mark the voxels of plane x that become noise; the first and last line that hold image, and that hold noise."""
    noisy[:] = paint == OUT_PAINT
    for box in range(boxes.shape[0]):
        if boxes[box, 0, 0] <= x < boxes[box, 0, 1]:
            for y in range(boxes[box, 1, 0], boxes[box, 1, 1]):
                noisy[y * size_z + boxes[box, 2, 0] : y * size_z + boxes[box, 2, 1]] = paint == IN_PAINT
    image_first, image_last, noise_first, noise_last = size_y, -1, size_y, -1
    for y in range(size_y):
        count = np.int64(0)
        for z in range(size_z):
            count += noisy[y * size_z + z]
        if count < size_z:
            image_first, image_last = min(image_first, y), y
        if count > 0:
            noise_first, noise_last = min(noise_first, y), y
    return image_first, image_last + 1, noise_first, noise_last + 1


@compile_loop
def _reverse_plane(
    source: NdArray, at: int, size_y: int, size_z: int, flip_y: bool, flip_z: bool, plane: NdArray
) -> None:
    """Copy one plane, its lines in reverse order where y is flipped, each line reversed where z is."""
    for y in range(size_y):
        first = np.uint64(at + (size_y - 1 - y if flip_y else y) * size_z)
        first_out = np.uint64(y * size_z)
        if flip_z:
            last = first + np.uint64(size_z - 1)
            for z in range(size_z):
                plane[first_out + np.uint64(z)] = source[last - np.uint64(z)]
        else:
            for z in range(size_z):
                plane[first_out + np.uint64(z)] = source[first + np.uint64(z)]


@compile_loop
def render(
    original: NdArray,
    shuffled: NdArray,
    shape: tuple[int, ...],
    flips: tuple[bool, ...],
    boxes: NdArray,
    paint: int,
    kind: int,
    ranges: tuple[float, ...],
    table: tuple[NdArray, int],
    curve: tuple[NdArray, ...],
    seed: Bits,
    deformed: NdArray,
    target: NdArray,
) -> None:
    """Flip, map and paint in one pass over memory: `shuffled` becomes `deformed`, `original` becomes `target`.

    It goes plane by plane, so that what one step leaves the next finds in the cache.

    Args:
        original: all images are flat; int16 or float32.
        shuffled: what is deformed; may be `original`.
        shape: voxels along the three axes of one channel.
        flips: which axes are reversed.
        boxes: start and stop (boxes, 3, 2) in voxels of the flipped image.
        paint: NO_PAINT, IN_PAINT or OUT_PAINT.
        kind: how `shuffled` is mapped: TABLE, LINEAR or CURVE; `original` is always mapped linearly.
        ranges: (low, high) of the intensities, then of the results.
        table: the map at each whole number, and the first of them; only for TABLE.
        curve: of :func:`bucket_curve`; only for CURVE.
        seed: of the noise, 64 bits.
        deformed: float32, is filled.
        target: float32, is filled.
    """
    size_x, size_y, size_z = shape
    area = size_y * size_z
    reverse = flips[1] or flips[2]
    plane = np.empty(area if reverse else 0, original.dtype)
    buckets = np.empty(area if kind == CURVE else 0, np.int32)
    shares = np.empty(area if kind == CURVE else 0, np.float32)
    noisy = np.zeros(area, np.bool_)
    edges = _mark_edges(boxes, size_x)
    image_first, image_stop, noise_first, noise_stop = 0, size_y, 0, 0
    noise_low = np.float32(ranges[2])
    noise_scale = np.float32(ranges[3] - ranges[2])
    for i in range(original.size // area):
        x = i % size_x
        at = i * area
        source_at = (i - x + (size_x - 1 - x if flips[0] else x)) * area
        if reverse:
            _reverse_plane(original, source_at, size_y, size_z, flips[1], flips[2], plane)
            _map_run(plane, 0, area, target, at, LINEAR, ranges, table, curve, buckets, shares)
        else:
            _map_run(original, source_at, area, target, at, LINEAR, ranges, table, curve, buckets, shares)
        if paint != NO_PAINT and edges[x]:
            image_first, image_stop, noise_first, noise_stop = _mark_noise(boxes, paint, x, size_y, size_z, noisy)
        if image_first < image_stop:
            start = image_first * size_z
            count = image_stop * size_z - start
            if reverse:
                _reverse_plane(shuffled, source_at, size_y, size_z, flips[1], flips[2], plane)
                _map_run(plane, start, count, deformed, at + start, kind, ranges, table, curve, buckets, shares)
            else:
                _map_run(
                    shuffled,
                    source_at + start,
                    count,
                    deformed,
                    at + start,
                    kind,
                    ranges,
                    table,
                    curve,
                    buckets,
                    shares,
                )
        if noise_first < noise_stop:
            start, stop = noise_first * size_z, noise_stop * size_z
            _noise_run(noisy, start, stop, deformed, at, noise_low, noise_scale, seed)


@compile_loop
def paint(
    source: NdArray,
    painted: NdArray,
    shape: tuple[int, ...],
    boxes: NdArray,
    kind: int,
    span: tuple[float, float],
    seed: Bits,
) -> None:
    """Paint in one pass over memory; noise is drawn only in the lines that hold some.

    Args:
        source: flat, int16 or float32.
        painted: float32, is filled.
        shape: voxels along the three axes of one channel.
        boxes: start and stop (boxes, 3, 2).
        kind: IN_PAINT or OUT_PAINT.
        span: (low, high) of the noise.
        seed: of the noise, 64 bits.
    """
    size_x, size_y, size_z = shape
    area = size_y * size_z
    noisy = np.zeros(area, np.bool_)
    edges = _mark_edges(boxes, size_x)
    low = np.float32(span[0])
    scale = np.float32(span[1] - span[0])
    image_first, image_stop, noise_first, noise_stop = 0, 0, 0, 0
    for i in range(source.size // area):
        x = i % size_x
        at = i * area
        if edges[x]:
            image_first, image_stop, noise_first, noise_stop = _mark_noise(boxes, kind, x, size_y, size_z, noisy)
        first = np.uint64(at + image_first * size_z)
        for j in range((image_stop - image_first) * size_z):
            painted[first + np.uint64(j)] = source[first + np.uint64(j)]
        if noise_first < noise_stop:
            _noise_run(noisy, noise_first * size_z, noise_stop * size_z, painted, at, low, scale, seed)


@compile_loop
def fill(out: NdArray, shape: tuple[int, ...], boxes: NdArray, span: tuple[float, float], seed: Bits) -> None:
    """Fill boxes with uniform noise, in place; each value depends on the seed and on its place alone.

    Args:
        out: flat float32 image.
        shape: voxels along the three axes of one channel.
        boxes: start and stop (boxes, 3, 2).
        span: (low, high) of the noise.
        seed: of the noise, 64 bits.
    """
    size_x, size_y, size_z = shape
    low = np.float32(span[0])
    scale = np.float32(span[1] - span[0])
    for channel in range(out.size // (size_x * size_y * size_z)):
        for box in range(boxes.shape[0]):
            for x in range(boxes[box, 0, 0], boxes[box, 0, 1]):
                for y in range(boxes[box, 1, 0], boxes[box, 1, 1]):
                    line = np.uint64(((channel * size_x + x) * size_y + y) * size_z + boxes[box, 2, 0])
                    for z in range(boxes[box, 2, 1] - boxes[box, 2, 0]):
                        place = line + np.uint64(z)
                        bits = mix(seed + place * GOLDEN)
                        out[place] = low + scale * (np.float32(np.int32(bits >> _U40)) * _TO_UNIT)
