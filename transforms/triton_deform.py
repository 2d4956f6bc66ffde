# SPDX-License-Identifier: Apache-2.0
"""The deformations of a batch as four Triton kernels (arXiv:2004.07882, section 3): a tenth of the time on a GPU.

Written out as tensor operations the deformations are 420 kernels of a few microseconds each. Here a sample's parameters
are drawn by one program, each block of shuffling is drawn and marked by one, sorted by one, and each voxel is then
computed once: read, map, paint, write.

All draws are counters of Philox under a key for each sample, drawn by a torch generator. What a counter stands for:

- ``(number, 0, stream)`` with ``_PARAMETERS``: the parameters of a sample;
- ``(block, half, stream)`` with ``_BLOCKS``: sides and corners of a block, drawn again where they are needed;
- ``(lane, block, stream)`` with ``_KEYS``: the keys that permute a block;
- ``(voxel, channel, stream)`` with ``_NOISE``: the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KernelSettings", "deform_batch"]

_PARAMETERS = tl.constexpr(0)
_BLOCKS = tl.constexpr(1)
_KEYS = tl.constexpr(2)
_NOISE = tl.constexpr(3)

# a sample's parameters: three flips, three switches, two switches of painting, then start and stop of five boxes
_FLIP = tl.constexpr(0)
_SHUFFLES = tl.constexpr(3)
_MAPS = tl.constexpr(4)
_FALLS = tl.constexpr(5)
_PAINTS = tl.constexpr(6)
_OUTSIDE = tl.constexpr(7)
_BOXES = tl.constexpr(8)
_NUM_BOXES = tl.constexpr(5)
_NUM_PARAMETERS = tl.constexpr(64)
_BOX_PROB = tl.constexpr(0.95)
_MARGIN = tl.constexpr(3)
_HALVINGS = tl.constexpr(50)
_VOXELS = 1024

# numbers of voxels kinds, see voxel_kinds
_MAPPED = tl.constexpr(1)
_SHUFFLED = tl.constexpr(2)
_PAINTED = tl.constexpr(3)


@dataclass(frozen=True)
class KernelSettings:
    """What the kernels need of :class:`.batch_deform.BatchGenesisDeform`; probabilities as there.

    Args:
        flip_prob: that another round of flipping follows.
        max_flips: rounds at most.
        flip_axes: spatial axes that may be flipped.
        shuffle_prob: of shuffling.
        nonlinear_prob: of a curve.
        reverse_prob: that it falls.
        paint_prob: of painting.
        out_paint_prob: that painting is out-painting.
        num_blocks: blocks of shuffling.
        intensity_range: of the images.
        output_range: of the results.
    """

    flip_prob: float
    max_flips: int
    flip_axes: tuple[int, ...]
    shuffle_prob: float
    nonlinear_prob: float
    reverse_prob: float
    paint_prob: float
    out_paint_prob: float
    num_blocks: int
    intensity_range: tuple[float, float]
    output_range: tuple[float, float]


def _lanes(sides: tuple[int, ...]) -> int:
    """Lanes of a program that sorts a block of the largest sides: a power of two, at least 16."""
    volume = 1
    for side in sides:
        volume *= side
    return max(16, 1 << (volume - 1).bit_length())


def deform_batch(
    images: Tensor,
    generator: torch.Generator,
    settings: KernelSettings,
    sides: tuple[int, ...],
    deformed: Tensor,
    target: Tensor,
    kinds: Tensor | None,
) -> None:
    """Deform a batch into tensors that are there.

    Args:
        images: (B, C, X[, Y[, Z]]), integers or floats.
        generator: draws one key a sample.
        settings: rates and ranges.
        sides: largest side of a shuffled block along each axis; their product is at most 4096.
        deformed: float32 like the images.
        target: float32 like the images.
        kinds: (B, 1, X[, Y[, Z]]), uint8, for what became of each voxel; None: not needed.
    """
    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    images = images.contiguous()
    size, channels, *shape = images.shape
    spatial = len(shape)
    ahead = (1,) * (3 - spatial)
    lengths, largest = (*ahead, *shape), (*ahead, *sides)
    voxels = images[0, 0].numel()
    device = images.device
    keys = torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator, device=device)
    numbers = torch.empty((size, _NUM_PARAMETERS.value), dtype=torch.int32, device=device)
    points = torch.empty((size, 4), dtype=torch.float64, device=device)
    flips = [len(ahead) + axis for axis in settings.flip_axes]
    names = ("flip_prob", "shuffle_prob", "nonlinear_prob", "reverse_prob", "paint_prob", "out_paint_prob")
    rates = [float(getattr(settings, name)) for name in names]  # an integer 0 or 1 would be another kernel
    _draw_parameters[(size,)](
        keys, numbers, points, *lengths, *rates,
        *(*flips, 0, 0, 0)[:3], len(flips), MAX_FLIPS=settings.max_flips, AHEAD=len(ahead), num_warps=1,
    )  # fmt: skip
    shuffles = settings.shuffle_prob > 0 and settings.num_blocks > 0 and max(sides) > 1
    owner = source = numbers
    if shuffles:
        owner = torch.full((size, voxels), -1, dtype=torch.int32, device=device)
        source = torch.empty((size, voxels), dtype=torch.int32, device=device)
        lanes = _lanes(sides)
        grid, warps = (settings.num_blocks, size), max(1, min(8, lanes // 128))
        _mark_blocks[grid](keys, numbers, owner, voxels, *lengths, *largest, LANES=lanes, num_warps=warps)
        _permute_blocks[grid](keys, numbers, owner, source, voxels, *lengths, *largest, LANES=lanes, num_warps=warps)
    low, high = settings.intensity_range
    out_low, out_high = settings.output_range
    _render[(triton.cdiv(voxels, _VOXELS), size, channels)](
        images, keys, numbers, points, owner, source, deformed, target, numbers if kinds is None else kinds,
        voxels, channels, *lengths, float(low), float(high), float(out_low), float(out_high),
        SHUFFLES=shuffles, KINDS=kinds is not None, VOXELS=_VOXELS, num_warps=4,
    )  # fmt: skip


@triton.jit
def _share(word):
    """A word as a float32 uniform on [0, 1) with 24 bits."""
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _below(word, count):
    """A word as an integer uniform in 0..count - 1; each one's probability is off by less than 2**-32."""
    return ((word.to(tl.uint32, bitcast=True).to(tl.uint64) * count.to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def _words(key, first, second, stream):
    """Four words of 32 random bits."""
    counter = first * 0
    return tl.philox(key, first, counter + second, counter + stream, counter)


@triton.jit
def _draw_parameters(
    keys, numbers, points, X, Y, Z, flip_prob, shuffle_prob, nonlinear_prob, reverse_prob, paint_prob, out_paint_prob,
    axis0, axis1, axis2, num_axes, MAX_FLIPS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Draw the parameters of a sample."""
    sample = tl.program_id(0)
    key = tl.load(keys + sample)
    here = numbers + sample * _NUM_PARAMETERS
    zero = sample * 0
    a, b, c, d = _words(key, zero, 0, _PARAMETERS)
    tl.store(here + _SHUFFLES, (_share(a) < shuffle_prob).to(tl.int32))
    tl.store(here + _MAPS, (_share(b) < nonlinear_prob).to(tl.int32))
    tl.store(here + _FALLS, (_share(c) < reverse_prob).to(tl.int32))
    paints = (_share(d) < paint_prob).to(tl.int32)
    tl.store(here + _PAINTS, paints)
    a, b, c, d = _words(key, zero + 1, 0, _PARAMETERS)
    tl.store(points + sample * 4 + 0, _share(a).to(tl.float64))
    tl.store(points + sample * 4 + 1, _share(b).to(tl.float64))
    tl.store(points + sample * 4 + 2, _share(c).to(tl.float64))
    tl.store(points + sample * 4 + 3, _share(d).to(tl.float64))
    a, _, _, _ = _words(key, zero + 2, 0, _PARAMETERS)
    outside = (_share(a) < out_paint_prob).to(tl.int32)
    tl.store(here + _OUTSIDE, outside)

    flip0 = zero
    flip1 = zero
    flip2 = zero
    goes_on = (zero + num_axes > 0).to(tl.int32)  # a count of 1 would be a constant
    for number in tl.static_range(MAX_FLIPS):
        a, b, _, _ = _words(key, zero + 16 + number, 0, _PARAMETERS)
        goes_on = goes_on * (_share(a) < flip_prob).to(tl.int32)
        chosen = _below(b, zero + num_axes)
        axis = tl.where(chosen == 0, axis0, tl.where(chosen == 1, axis1, axis2))
        flip0 = flip0 ^ (goes_on * (axis == 0).to(tl.int32))
        flip1 = flip1 ^ (goes_on * (axis == 1).to(tl.int32))
        flip2 = flip2 ^ (goes_on * (axis == 2).to(tl.int32))
    tl.store(here + _FLIP + 0, flip0)
    tl.store(here + _FLIP + 1, flip1)
    tl.store(here + _FLIP + 2, flip2)

    goes_on = zero + 1
    for box in tl.static_range(_NUM_BOXES):
        a, _, _, _ = _words(key, zero + 4096 + 4 * box, 0, _PARAMETERS)
        drawn = (_share(a) < _BOX_PROB).to(tl.int32)
        if box == 0:  # out-painting always has a first box
            drawn = drawn | outside
        goes_on = goes_on * drawn
        for axis in tl.static_range(3):
            length = X if axis == 0 else (Y if axis == 1 else Z)
            # an axis that the images do not have lies inside each box
            start = zero
            stop = goes_on
            if axis >= AHEAD:
                a, b, _, _ = _words(key, zero + 4096 + 4 * box + 1 + axis, 0, _PARAMETERS)
                smallest = tl.where(outside == 1, length - 4 * length // 7, length // 6)
                longest = tl.where(outside == 1, length - 3 * length // 7, length // 3)
                side = smallest + _below(a, longest - smallest + 1)
                start = _MARGIN + _below(b, tl.maximum(length - side - 2 * _MARGIN, 0) + 1)
                stop = start + side * goes_on
            tl.store(here + _BOXES + 6 * box + 2 * axis, start)
            tl.store(here + _BOXES + 6 * box + 2 * axis + 1, stop)


@triton.jit
def _draw_block(key, block, X, Y, Z, side_x, side_y, side_z):
    """Sides and corner of a block."""
    a, b, c, d = _words(key, block, 0, _BLOCKS)
    e, f, _, _ = _words(key, block, 1, _BLOCKS)
    zero = block * 0
    x = 1 + _below(a, zero + side_x)
    y = 1 + _below(b, zero + side_y)
    z = 1 + _below(c, zero + side_z)
    return x, y, z, _below(d, X - x + 1), _below(e, Y - y + 1), _below(f, Z - z + 1)


@triton.jit
def _voxel_of(lane, y, z, corner_x, corner_y, corner_z, Y, Z):
    """Flat index in the image of a block's voxel number `lane`."""
    plane = y * z
    return ((corner_x + lane // plane) * Y + corner_y + lane % plane // z) * Z + corner_z + lane % z


@triton.jit
def _mark_blocks(keys, numbers, owner, voxels, X, Y, Z, side_x, side_y, side_z, LANES: tl.constexpr):
    """Mark for each voxel the last block that covers it."""
    block = tl.program_id(0)
    sample = tl.program_id(1)
    if tl.load(numbers + sample * _NUM_PARAMETERS + _SHUFFLES) == 1:
        key = tl.load(keys + sample)
        x, y, z, corner_x, corner_y, corner_z = _draw_block(key, block, X, Y, Z, side_x, side_y, side_z)
        lane = tl.arange(0, LANES)
        voxel = _voxel_of(lane, y, z, corner_x, corner_y, corner_z, Y, Z)
        here = owner + sample.to(tl.int64) * voxels
        tl.atomic_max(here + voxel, tl.zeros_like(lane) + block, mask=lane < x * y * z, sem="relaxed")


@triton.jit
def _permute_blocks(keys, numbers, owner, source, voxels, X, Y, Z, side_x, side_y, side_z, LANES: tl.constexpr):
    """Permute a block's voxels by sorting random keys, and note the source of those that no later block covers."""
    block = tl.program_id(0)
    sample = tl.program_id(1)
    if tl.load(numbers + sample * _NUM_PARAMETERS + _SHUFFLES) == 1:
        key = tl.load(keys + sample)
        x, y, z, corner_x, corner_y, corner_z = _draw_block(key, block, X, Y, Z, side_x, side_y, side_z)
        lane = tl.arange(0, LANES)
        voxel = _voxel_of(lane, y, z, corner_x, corner_y, corner_z, Y, Z)
        inside = lane < x * y * z
        first = sample.to(tl.int64) * voxels
        mine = inside & (tl.load(owner + first + voxel, mask=inside, other=-1) == block)
        if tl.max(mine.to(tl.int32)) == 1:
            a, b, _, _ = _words(key, lane, block, _KEYS)
            # 51 random bits above the lane's number; lanes outside the block come last
            bits = (a.to(tl.uint32, bitcast=True).to(tl.int64) << 31) ^ b.to(tl.uint32, bitcast=True).to(tl.int64)
            drawn = (bits & 0x7FFFFFFFFFFFF000) | lane
            drawn = tl.where(inside, drawn, 0x7FFFFFFFFFFFF000 | lane.to(tl.int64))
            taken = (tl.sort(drawn) & 0xFFF).to(tl.int32)
            there = _voxel_of(taken, y, z, corner_x, corner_y, corner_z, Y, Z)
            tl.store(source + first + voxel, there, mask=mine)


@triton.jit
def _bezier(x1, y1, x2, y2, value):
    """The curve at values in [0, 1]: the parameter by halving, so that a vertical tangent does no harm."""
    low = tl.zeros_like(value)
    width = low + 1.0
    cube = 1.0 + 3.0 * (x1 - x2)
    square = 3.0 * (x2 - 2.0 * x1)
    line = 3.0 * x1
    for _ in range(_HALVINGS):
        width = width * 0.5
        t = low + width
        low = tl.where(((cube * t + square) * t + line) * t <= value, t, low)
    t = low + 0.5 * width
    mapped = (((1.0 + 3.0 * (y1 - y2)) * t + 3.0 * (y2 - 2.0 * y1)) * t + 3.0 * y1) * t
    mapped = tl.minimum(tl.maximum(mapped, 0.0), 1.0)
    return tl.where(value <= 0.0, 0.0, tl.where(value >= 1.0, 1.0, mapped))


@triton.jit
def _flipped(voxel, flip0, flip1, flip2, X, Y, Z):
    """Flat index that a flip brings to a voxel."""
    x = voxel // (Y * Z)
    y = voxel // Z % Y
    z = voxel % Z
    x = tl.where(flip0 == 1, X - 1 - x, x)
    y = tl.where(flip1 == 1, Y - 1 - y, y)
    z = tl.where(flip2 == 1, Z - 1 - z, z)
    return (x * Y + y) * Z + z


@triton.jit
def _unit(value, low, high):
    """The intensity range as [0, 1], float64; values outside count as its nearest end, NaN as low."""
    value = value.to(tl.float64)
    value = tl.where(value == value, value, low)
    return (tl.minimum(tl.maximum(value, low), high) - low) / (high - low)


@triton.jit
def _render(
    images, keys, numbers, points, owner, source, deformed, target, kinds, voxels, channels, X, Y, Z,
    low, high, out_low, out_high, SHUFFLES: tl.constexpr, KINDS: tl.constexpr, VOXELS: tl.constexpr,
):  # fmt: skip
    """Compute voxels of one channel: flip, shuffle, map and paint."""
    sample = tl.program_id(1)
    channel = tl.program_id(2)
    here = numbers + sample * _NUM_PARAMETERS
    voxel = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    inside = voxel < voxels
    flip0 = tl.load(here + _FLIP)
    flip1 = tl.load(here + _FLIP + 1)
    flip2 = tl.load(here + _FLIP + 2)
    kind = tl.zeros_like(voxel)
    maps = tl.load(here + _MAPS)
    if maps == 1:
        kind = tl.zeros_like(voxel) + _MAPPED

    taken = voxel
    if SHUFFLES:
        if tl.load(here + _SHUFFLES) == 1:
            first = sample.to(tl.int64) * voxels
            covered = inside & (tl.load(owner + first + voxel, mask=inside, other=-1) >= 0)
            taken = tl.where(covered, tl.load(source + first + voxel, mask=covered, other=0), voxel)
            kind = tl.where(taken != voxel, _SHUFFLED, kind)

    begin = (sample.to(tl.int64) * channels + channel) * voxels
    # float64 constants: the kernel's arguments are float32
    bottom = tl.zeros_like(voxel).to(tl.float64) + low
    top = tl.zeros_like(voxel).to(tl.float64) + high
    original = _unit(tl.load(images + begin + _flipped(voxel, flip0, flip1, flip2, X, Y, Z), mask=inside), bottom, top)
    value = original
    if SHUFFLES:
        there = _flipped(taken, flip0, flip1, flip2, X, Y, Z)
        value = _unit(tl.load(images + begin + there, mask=inside), bottom, top)
    if maps == 1:
        corner = points + sample * 4
        value = _bezier(tl.load(corner), tl.load(corner + 1), tl.load(corner + 2), tl.load(corner + 3), value)
        if tl.load(here + _FALLS) == 1:
            value = 1.0 - value
    scale = out_high - out_low
    tl.store(target + begin + voxel, (original * scale + out_low).to(tl.float32), mask=inside)

    if tl.load(here + _PAINTS) == 1:
        x = voxel // (Y * Z)
        y = voxel // Z % Y
        z = voxel % Z
        boxed = voxel < 0
        for box in tl.static_range(_NUM_BOXES):
            edges = here + _BOXES + 6 * box
            along_x = (x >= tl.load(edges)) & (x < tl.load(edges + 1))
            along_y = (y >= tl.load(edges + 2)) & (y < tl.load(edges + 3))
            along_z = (z >= tl.load(edges + 4)) & (z < tl.load(edges + 5))
            boxed = boxed | (along_x & along_y & along_z)
        painted = boxed ^ (tl.load(here + _OUTSIDE) == 1)
        a, _, _, _ = _words(tl.load(keys + sample), voxel, channel, _NOISE)
        value = tl.where(painted, _share(a).to(tl.float64), value)
        kind = tl.where(painted, _PAINTED, kind)
    tl.store(deformed + begin + voxel, (value * scale + out_low).to(tl.float32), mask=inside)
    if KINDS:
        if channel == 0:
            tl.store(kinds + sample.to(tl.int64) * voxels + voxel, kind.to(tl.uint8), mask=inside)
