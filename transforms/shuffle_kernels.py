# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of local pixel shuffling (numba, one thread, without the GIL).

Blocks are gone through from the last to the first, so that each voxel is written once: by the last block that covers
it. A bit a voxel says which are covered already; a *line* is a row of voxels along one axis, with 32 bits in a word.

Why the result has exactly the distribution of permuting 10,000 blocks one after another: each block reads the
undeformed image, so what it writes depends on its own permutation alone, and only what no later block overwrites stays.
The sources of k of the n voxels of a block, whichever k, are under a uniform permutation a uniform injection of k into
n, and so are the first k steps of a Fisher-Yates shuffle. The other n - k steps would be drawn for nothing.

What makes it fast: many blocks are listed before their sources are drawn, so that the loops are long, without branches
that a processor cannot foresee, and the drawing vectorises. Indices are unsigned in inner loops: numba lets signed ones
count from the end, which costs a test each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from .random_bits import GOLDEN, bounded, compile_loop, mix

__all__ = ["cover", "shuffle_blocks"]

NdArray = np.ndarray[Any, Any]
Bits = Any  # numpy.uint64

_LOW_32 = np.uint64(0xFFFFFFFF)
_ZERO, _ONE, _THREE, _32 = (np.uint64(n) for n in (0, 1, 3, 32))
_PERMUTATIONS = np.uint64(0x7065726D757465)  # the stream of the permutations is not that of the blocks

# blocks drawn at once, and voxels of blocks listed at once: lists that stay in the second-level cache
_BLOCKS_AT_ONCE = 256
_VOXELS_AT_ONCE = 4096

# For each of the patterns of eight bits: the places of its ones from the lowest, four bits each, and their number.
_LANES = 8
_ONES = np.array(
    [sum(bit << 4 * n for n, bit in enumerate(b for b in range(_LANES) if p >> b & 1)) for p in range(2**_LANES)],
    np.uint32,
)
_COUNT = np.array([p.bit_count() for p in range(2**_LANES)], np.uint8)
_ALL_EIGHT = np.uint32(_ONES[-1])


def _type_append(typing_context: Any, out: Any, at: Any, first: Any, step: Any, places: Any) -> Any:
    """Write ``first + step * place`` to out[at:at + 8] for eight places of four bits each, at one go.

    The same in plain numba is eight stores. A list is built by writing eight numbers and advancing by those that count.
    """
    signature = types.void(out, types.uint64, types.int32, types.int32, types.uint32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(32), _LANES)
        nothing, zeros = ir.Constant(lanes, ir.Undefined), ir.Constant(lanes, [0] * _LANES)

        def in_all_lanes(number: Any) -> Any:
            single = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(single, nothing, zeros)

        array, index, first, step, places = arguments
        shifted = builder.lshr(in_all_lanes(places), ir.Constant(lanes, [4 * lane for lane in range(_LANES)]))
        place = builder.and_(shifted, ir.Constant(lanes, [15] * _LANES))
        numbers = builder.add(builder.mul(place, in_all_lanes(step)), in_all_lanes(first))
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [index]), lanes.as_pointer())
        builder.store(numbers, pointer, align=4)
        return context.get_dummy_value()

    return signature, generate


_append: Any = intrinsic(_type_append)


@compile_loop
def cover(covered: NdArray, shape: tuple[int, ...], boxes: NdArray) -> None:
    """Mark all voxels outside the boxes as covered, so that nothing is shuffled there.

    Args:
        covered: (lines, words) of 32 bits, what is covered already; one word a line is spare.
        shape: voxels along the axes, lines along the last.
        boxes: start and stop, (boxes, 3, 2).
    """
    covered[:] = np.uint32(0xFFFFFFFF)
    for box in range(boxes.shape[0]):
        start = boxes[box, 2, 0]
        stop = boxes[box, 2, 1]
        for word in range(start >> 5, ((stop - 1) >> 5) + 1):
            low = max(start - 32 * word, 0)
            high = min(stop - 32 * word, 32)
            mask = np.uint32(((_ONE << np.uint64(high - low)) - _ONE) << np.uint64(low))
            for x in range(boxes[box, 0, 0], boxes[box, 0, 1]):
                for line in range(x * shape[1] + boxes[box, 1, 0], x * shape[1] + boxes[box, 1, 1]):
                    covered[line, word] &= ~mask


@compile_loop
def _draw_blocks(
    blocks: NdArray, shape: tuple[int, ...], strides: tuple[int, ...], max_sides: tuple[int, ...], state: Bits
) -> None:
    """Draw blocks: each side uniform in 1..max, from 32 random bits, and the corner where the block fits, from 32.

    Rows of `blocks`: first and last place of the block's lines in :func:`_list_lines`, voxels of a line, number of the
    first line, first place along it, first voxel.
    """
    x_max, y_max, z_max = max_sides
    for number in range(blocks.shape[1]):
        block = np.uint64(number)
        bits_x = mix(state + (_THREE * block + _ONE) * GOLDEN)
        bits_y = mix(state + (_THREE * block + _ONE + _ONE) * GOLDEN)
        bits_z = mix(state + (_THREE * block + _THREE) * GOLDEN)
        side_x = 1 + bounded(bits_x & _LOW_32, x_max)
        side_y = 1 + bounded(bits_y & _LOW_32, y_max)
        side_z = 1 + bounded(bits_z & _LOW_32, z_max)
        x = bounded(bits_x >> _32, shape[0] - side_x + 1)
        y = bounded(bits_y >> _32, shape[1] - side_y + 1)
        z = bounded(bits_z >> _32, shape[2] - side_z + 1)
        lines = (side_y - 1) * x_max * y_max
        blocks[0, block] = lines
        blocks[1, block] = lines + side_x * side_y
        blocks[2, block] = side_z
        blocks[3, block] = x * shape[1] + y
        blocks[4, block] = z
        blocks[5, block] = x * strides[0] + y * strides[1] + z * strides[2]


@compile_loop
def _list_lines(
    size_y: int, words: int, strides: tuple[int, ...], max_sides: tuple[int, ...]
) -> tuple[NdArray, NdArray]:
    """For each side along y, the lines of a block of that side: first word and first voxel, from the block's first.

    A block takes as many of them as its side along x asks for.
    """
    x_max, y_max, _ = max_sides
    word_of = np.empty(y_max * x_max * y_max, np.int32)
    voxel_of = np.empty(y_max * x_max * y_max, np.int32)
    for side_y in range(1, y_max + 1):
        line = (side_y - 1) * x_max * y_max
        for x in range(x_max):
            for y in range(side_y):
                word_of[line] = (x * size_y + y) * words
                voxel_of[line] = x * strides[0] + y * strides[1]
                line += 1
    return word_of, voxel_of


@compile_loop
def _list_voxels(
    block: int,
    blocks: NdArray,
    covered: NdArray,
    words: int,
    lines: tuple[NdArray, NdArray],
    stride: int,
    written: NdArray,
    pool: NdArray,
    slots: NdArray,
    ends: NdArray,
) -> tuple[int, Any]:
    """Cover blocks one after another until the lists are long enough; the next block and the number of voxels written.

    All voxels of a block go to `pool`; those that were not covered go to `written`, and next to each into `slots` the
    place in the pool that its step of the shuffle starts from, into `ends` where the block ends there.
    """
    word_of, voxel_of = lines
    step = np.int32(stride)
    count = _ZERO
    fill = _ZERO
    while block < blocks.shape[1] and fill < _VOXELS_AT_ONCE:
        b = np.uint64(block)
        first_line, last_line = blocks[0, b], blocks[1, b]
        remaining: Any = np.int64(blocks[2, b])
        first_word = np.int64(blocks[3, b]) * words
        z = np.int64(blocks[4, b])
        first_voxel = blocks[5, b]
        first_count, first_slot = count, fill
        while remaining > 0:  # eight voxels of each line at a time; they lie in one word of 32 bits or in two
            width = np.uint64(min(remaining, _LANES))
            low = np.uint64(z & 31)
            mask = ((_ONE << width) - _ONE) << low
            for i in range(first_line, last_line):
                word = np.uint64(first_word + (z >> 5) + word_of[np.uint64(i)])
                before = np.uint64(covered[word]) | (np.uint64(covered[word + _ONE]) << _32)
                after = before | mask
                covered[word] = np.uint32(after)
                covered[word + _ONE] = np.uint32(after >> _32)
                free = (mask & ~before) >> low
                voxel = np.int32(first_voxel + voxel_of[np.uint64(i)])
                _append(written, count, voxel, step, _ONES[free])
                _append(pool, fill, voxel, step, _ALL_EIGHT)
                count += np.uint64(_COUNT[free])
                fill += width
            remaining -= _LANES
            z += _LANES
            first_voxel = np.int32(first_voxel + _LANES * step)
        for i in range(0, np.int64(count - first_count), _LANES):
            at = np.uint64(i)
            _append(slots, first_count + at, np.int32(first_slot + at), np.int32(1), _ALL_EIGHT)
            _append(ends, first_count + at, np.int32(fill), np.int32(0), _ALL_EIGHT)
        block += 1
    return block, count


@compile_loop
def _draw_steps(slots: NdArray, ends: NdArray, count: Any, bits: NdArray, state: Bits, drawn: NdArray) -> None:
    """For each step of a shuffle draw a place from its slot to the end of its block, from 32 random bits."""
    for i in range((count + _ONE) >> _ONE):
        bits[i] = mix(state + i * GOLDEN)
    halves = bits.view(np.uint32)
    for i in range(count):
        slot = np.uint64(slots[i])
        drawn[i] = slot + ((np.uint64(halves[i]) * (np.uint64(ends[i]) - slot)) >> _32)


@compile_loop
def _take_sources(pool: NdArray, slots: NdArray, count: Any, drawn: NdArray) -> None:
    """Turn drawn places into the voxels found there, each step putting the voxel of its own slot in that place.

    The slot itself is not read again: later steps draw from later slots on.
    """
    for i in range(count):
        place = np.uint64(drawn[i])
        voxel = pool[place]
        pool[place] = pool[np.uint64(slots[i])]
        drawn[i] = voxel


@compile_loop
def shuffle_blocks(
    source: NdArray,
    target: NdArray,
    covered: NdArray,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    max_sides: tuple[int, ...],
    num_blocks: int,
    seed: Bits,
) -> None:
    """Shuffle voxels in random blocks.

    Args:
        source: (channels, voxels), bits of any width.
        target: the same; only what is shuffled is written.
        covered: (lines, words) of 32 bits, voxels to leave alone; one word a line is spare.
        shape: voxels along the axes, lines along the last.
        strides: distance in voxels of neighbours along the axes.
        max_sides: largest sides of a block.
        num_blocks: number of blocks.
        seed: 64 bits.
    """
    words = covered.shape[1]
    flat_covered = covered.reshape(-1)
    lines = _list_lines(shape[1], words, strides, max_sides)
    # the last block may run over what is listed at once, and what is written eight at a time by seven
    capacity = _VOXELS_AT_ONCE + max_sides[0] * max_sides[1] * max_sides[2] + _LANES
    pool = np.empty(capacity, np.int32)
    written = np.empty(capacity, np.int32)
    slots = np.empty(capacity, np.int32)
    ends = np.empty(capacity, np.int32)
    drawn = np.empty(capacity, np.int32)
    bits = np.empty(capacity // 2 + 1, np.uint64)
    state = np.uint64(seed)
    steps_state = mix(state ^ _PERMUTATIONS)
    for first in range(0, num_blocks, _BLOCKS_AT_ONCE):
        blocks = np.empty((6, min(_BLOCKS_AT_ONCE, num_blocks - first)), np.int32)
        _draw_blocks(blocks, shape, strides, max_sides, state)
        state += np.uint64(3 * _BLOCKS_AT_ONCE) * GOLDEN
        block = 0
        while block < blocks.shape[1]:
            block, count = _list_voxels(
                block, blocks, flat_covered, words, lines, strides[2], written, pool, slots, ends
            )
            _draw_steps(slots, ends, count, bits, steps_state, drawn)
            steps_state += ((count + _ONE) >> _ONE) * GOLDEN
            _take_sources(pool, slots, count, drawn)
            for channel in range(source.shape[0]):
                for i in range(count):
                    target[channel, np.uint64(written[i])] = source[channel, np.uint64(drawn[i])]
