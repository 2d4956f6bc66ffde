# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of the deformations (numba, one thread, without the GIL).

Random bits come from splitmix64, inlined: a counter advanced by an odd constant and hashed, so that a stream is named
by one 64-bit seed and noise can be drawn at any place without order. A bounded draw multiplies 32 random bits by the
bound and keeps the upper half; its bias is below bound / 2**32.

Indices are unsigned where a loop should vectorise: numba lets signed ones count from the end, which costs a test each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["bucket_curve", "cover", "render", "shuffle_blocks", "tabulate"]

NdArray = np.ndarray[Any, Any]
Bits = Any  # numpy.uint64

logger = logging.getLogger(__name__)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)
_ALL_64 = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint64(1)
_U2, _U3, _U4, _U27, _U30, _U31, _U32, _U40 = (np.uint64(n) for n in (2, 3, 4, 27, 30, 31, 32, 40))
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


def _compile(function: Callable[..., Any]) -> Any:
    """Compile on first use and keep the machine code on disk; without a writable place for it, compile each time."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        logger.info("%s: compiled code is not cached (%s)", function.__name__, error)
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compile
def _mix(state: Bits) -> Bits:
    """Hash 64 bits (the output function of splitmix64)."""
    z = (state ^ (state >> _U30)) * _MIX_1
    z = (z ^ (z >> _U27)) * _MIX_2
    return z ^ (z >> _U31)


@_compile
def _bounded(bits: Bits, bound: int) -> Any:
    """Turn 32 random bits into a whole number in 0..bound-1."""
    return np.int64((bits * np.uint64(bound)) >> _U32)


@_compile
def cover(covered: NdArray, shape: tuple[int, ...], boxes: NdArray, inside: bool) -> None:
    """Mark the voxels inside (or outside) the boxes as covered, one bit a voxel, so that nothing is shuffled there."""
    covered[:] = np.uint64(0) if inside else _ALL_64
    for box in range(boxes.shape[0]):
        start = boxes[box, 2, 0]
        stop = boxes[box, 2, 1]
        for word in range(start >> 6, ((stop - 1) >> 6) + 1):
            low = max(start - 64 * word, 0)
            high = min(stop - 64 * word, 64)
            mask = (_ALL_64 >> np.uint64(64 - (high - low))) << np.uint64(low)
            for x in range(boxes[box, 0, 0], boxes[box, 0, 1]):
                for row in range(x * shape[1] + boxes[box, 1, 0], x * shape[1] + boxes[box, 1, 1]):
                    if inside:
                        covered[row, word] |= mask
                    else:
                        covered[row, word] &= ~mask


@_compile
def shuffle_blocks(
    source: NdArray,
    target: NdArray,
    covered: NdArray,
    shape: tuple[int, ...],
    max_sides: tuple[int, ...],
    num_blocks: int,
    seed: Bits,
) -> None:
    """Shuffle voxels in random blocks, last block first, so that a voxel is written once.

    A block writes only the voxels that no later block covers, each from a different voxel of the block: the first steps
    of a Fisher-Yates shuffle, which draw a uniform injection.
    """
    size_y, size_z = shape[1], shape[2]
    # what is written four at a time may run over by three
    capacity = max_sides[0] * max_sides[1] * max_sides[2] + 3
    pool = np.empty(capacity, np.int32)
    drawn = np.empty(capacity, np.int32)
    free_voxels = np.empty(capacity + 1, np.int32)
    open_lines = np.empty(max_sides[0] * max_sides[1] + 1, np.int32)
    open_bits = np.empty(max_sides[0] * max_sides[1] + 1, np.uint64)
    state = np.uint64(seed)
    for _ in range(num_blocks):
        bits_x = _mix(state + _GOLDEN)
        bits_y = _mix(state + _U2 * _GOLDEN)
        bits_z = _mix(state + _U3 * _GOLDEN)
        state += _U3 * _GOLDEN
        side_x = 1 + _bounded(bits_x & _LOW_32, max_sides[0])
        side_y = 1 + _bounded(bits_y & _LOW_32, max_sides[1])
        side_z = 1 + _bounded(bits_z & _LOW_32, max_sides[2])
        x0 = _bounded(bits_x >> _U32, shape[0] - side_x + 1)
        y0 = _bounded(bits_y >> _U32, size_y - side_y + 1)
        z0 = _bounded(bits_z >> _U32, size_z - side_z + 1)
        first_line = x0 * size_y + y0
        lines = side_x * side_y
        skip = size_y - side_y + 1

        # The loops avoid what a processor cannot foresee: one loop over all lines of the block, no branch on a voxel.
        count: Any = 0
        for word in range(z0 >> 6, ((z0 + side_z - 1) >> 6) + 1):
            low = max(z0 - 64 * word, 0)
            width = min(z0 + side_z - 64 * word, 64) - low
            mask = (_ALL_64 >> np.uint64(64 - width)) << np.uint64(low)
            found = 0
            line = first_line
            y = 0
            for _ in range(lines):
                before = covered[line, word]
                covered[line, word] = before | mask
                open_lines[found] = line
                open_bits[found] = (mask & ~before) >> np.uint64(low)
                found += (mask & ~before) != 0
                y += 1
                line += 1 if y < side_y else skip
                y = y if y < side_y else 0
            for i in range(found):
                free = open_bits[i]
                voxel = open_lines[i] * size_z + 64 * word + low
                for _ in range(0, width, 4):
                    free_voxels[count] = voxel
                    count += np.int64(free & _ONE)
                    free_voxels[count] = voxel + 1
                    count += np.int64((free >> _ONE) & _ONE)
                    free_voxels[count] = voxel + 2
                    count += np.int64((free >> _U2) & _ONE)
                    free_voxels[count] = voxel + 3
                    count += np.int64((free >> _U3) & _ONE)
                    free >>= _U4
                    voxel += 4
        if count == 0:
            continue

        volume = 0
        line = first_line
        y = 0
        for _ in range(lines):
            voxel = line * size_z + z0
            for i in range(0, side_z, 4):
                pool[volume + i] = voxel + i
                pool[volume + i + 1] = voxel + i + 1
                pool[volume + i + 2] = voxel + i + 2
                pool[volume + i + 3] = voxel + i + 3
            volume += side_z
            y += 1
            line += 1 if y < side_y else skip
            y = y if y < side_y else 0
        # three short loops instead of one: the first vectorises, the last overlaps its cache misses
        for i in range(count):
            drawn[i] = i + _bounded(_mix(state + np.uint64(i + 1) * _GOLDEN) >> _U32, volume - i)
        state += np.uint64(count) * _GOLDEN
        for i in range(count):
            j = drawn[i]
            drawn[i] = pool[j]
            pool[j] = pool[i]
        for channel in range(source.shape[0]):
            for i in range(count):
                target[channel, free_voxels[i]] = source[channel, drawn[i]]


@_compile
def _cubic(first: float, second: float, t: float) -> float:
    """One coordinate of the Bezier curve with ends 0 and 1 at parameter t."""
    return (((1.0 + 3.0 * (first - second)) * t + 3.0 * (second - 2.0 * first)) * t + 3.0 * first) * t


@_compile
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


@_compile
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


@_compile
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


@_compile
def _from_nodes(value: float, bucket: Any, curve: tuple[NdArray, ...]) -> float:
    """Interpolate between the two nodes around a value in 0..1."""
    _, _, first_node, curve_x, curve_y = curve
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


@_compile
def _to_unit(value: Any, low: float, high: float) -> Any:
    """An intensity's place in its range, 0..1; NaN counts as low."""
    # a division, as 1 must come out exactly: the tangent may be vertical there
    return min((value - low) / (high - low), 1.0) if value > low else 0.0


@_compile
def _map_curve(
    line: NdArray,
    start: int,
    stop: int,
    out: NdArray,
    at: int,
    low: float,
    high: float,
    curve: tuple[NdArray, ...],
    buckets: NdArray,
    shares: NdArray,
) -> None:
    """Write the curve's values of line[start:stop] to out[at + start:at + stop]; the last two arrays are scratch."""
    starts, rises = curve[0], curve[1]
    first = np.uint64(start)
    first_out = np.uint64(at + start)
    for i in range(stop - start):  # apart from the look-up this loop vectorises
        place = _to_unit(np.float64(line[first + np.uint64(i)]), low, high) * starts.size
        bucket = min(np.int32(place), np.int32(starts.size - 1))
        buckets[np.uint64(i)] = bucket
        shares[np.uint64(i)] = np.float32(place - bucket)
    for i in range(stop - start):
        chosen = np.uint64(buckets[np.uint64(i)])
        mapped = starts[chosen] + rises[chosen] * shares[np.uint64(i)]
        if mapped != mapped:
            value = _to_unit(np.float64(line[first + np.uint64(i)]), low, high)
            mapped = np.float32(_from_nodes(value, chosen, curve))
        out[first_out + np.uint64(i)] = mapped


@_compile
def _map_run(
    line: NdArray,
    start: int,
    stop: int,
    out: NdArray,
    at: int,
    kind: int,
    ranges: tuple[float, ...],
    table: NdArray,
    curve: tuple[NdArray, ...],
    buckets: NdArray,
    shares: NdArray,
) -> None:
    """Write the mapped values of line[start:stop] to out[at + start:at + stop]."""
    low, high, out_low, out_high = ranges
    if kind == CURVE:
        _map_curve(line, start, stop, out, at, low, high, curve, buckets, shares)
        return
    first = np.uint64(start)
    first_out = np.uint64(at + start)
    if kind == TABLE:
        level_low = np.int32(low)
        level_high = np.int32(high)
        for i in range(stop - start):
            level = min(max(np.int32(line[first + np.uint64(i)]), level_low), level_high) - level_low
            out[first_out + np.uint64(i)] = table[np.uint32(level)]
        return
    scale = (out_high - out_low) / (high - low)
    for i in range(stop - start):
        value = np.float64(line[first + np.uint64(i)])
        above = value - low if value > low else 0.0  # NaN is not above low either
        out[first_out + np.uint64(i)] = out_low + min(above, high - low) * scale


@_compile
def _noise_run(
    noisy: NdArray, start: int, stop: int, out: NdArray, at: int, low: float, scale: float, seed: Bits
) -> None:
    """Write uniform noise where `noisy` says so; each value depends on the seed and on its place alone."""
    first = np.uint64(start)
    first_out = np.uint64(at + start)
    for i in range(stop - start):
        place = first_out + np.uint64(i)
        bits = _mix(seed + place * _GOLDEN)
        value = low + scale * (np.float32(np.int32(bits >> _U40)) * _TO_UNIT)
        out[place] = value if noisy[first + np.uint64(i)] else out[place]


@_compile
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


@_compile
def _copy_plane(source: NdArray, at: int, size_y: int, size_z: int, flip_y: bool, flip_z: bool, plane: NdArray) -> None:
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


@_compile
def render(
    original: NdArray,
    shuffled: NdArray,
    shape: tuple[int, ...],
    flips: tuple[bool, ...],
    boxes: NdArray,
    paint: int,
    kind: int,
    ranges: tuple[float, ...],
    tables: tuple[NdArray, NdArray],
    curve: tuple[NdArray, ...],
    seed: Bits,
    deformed: NdArray,
    target: NdArray,
) -> None:
    """Flip, map and paint plane by plane: `shuffled` becomes `deformed`, `original` becomes `target`.

    All images are flat; `shuffled` may be `original`. Boxes count voxels of the flipped image.
    """
    size_x, size_y, size_z = shape
    table, target_table = tables
    area = size_y * size_z
    plane = np.empty(area, original.dtype)
    buckets = np.empty(area if kind == CURVE else 0, np.int32)
    shares = np.empty(area if kind == CURVE else 0, np.float32)
    noisy = np.zeros(area, np.bool_)
    edges = np.zeros(size_x + 1, np.bool_)  # where the boxes of a plane differ from those of the plane before
    edges[0] = True
    for box in range(boxes.shape[0]):
        edges[boxes[box, 0, 0]] = True
        edges[boxes[box, 0, 1]] = True
    image_first, image_stop, noise_first, noise_stop = 0, size_y, 0, 0
    noise_low = np.float32(ranges[2])
    noise_scale = np.float32(ranges[3] - ranges[2])
    target_kind = LINEAR if kind == CURVE else kind
    for i in range(original.size // area):
        x = i % size_x
        at = i * area
        source_at = (i - x + (size_x - 1 - x if flips[0] else x)) * area
        _copy_plane(original, source_at, size_y, size_z, flips[1], flips[2], plane)
        _map_run(plane, 0, area, target, at, target_kind, ranges, target_table, curve, buckets, shares)
        if paint != NO_PAINT and edges[x]:
            image_first, image_stop, noise_first, noise_stop = _mark_noise(boxes, paint, x, size_y, size_z, noisy)
        if image_first < image_stop:
            _copy_plane(shuffled, source_at, size_y, size_z, flips[1], flips[2], plane)
            start, stop = image_first * size_z, image_stop * size_z
            _map_run(plane, start, stop, deformed, at, kind, ranges, table, curve, buckets, shares)
        if noise_first < noise_stop:
            start, stop = noise_first * size_z, noise_stop * size_z
            _noise_run(noisy, start, stop, deformed, at, noise_low, noise_scale, seed)
