# SPDX-License-Identifier: Apache-2.0
"""Local pixel shuffling of a whole batch in tensor operations of fixed shape (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch_draws import draw_integers

__all__ = ["draw_shuffle_sources", "listed_voxels"]

# -ln of the probability that the blocks of a sample do not fit their list
_OVERFLOW_EXPONENT = math.log(1e18)


def listed_voxels(sides: Sequence[int], num_blocks: int) -> int:
    """Length of the list that holds the voxels of all blocks of a sample, block after block.

    The blocks' volumes are independent, so Bernstein's inequality bounds their sum: with probability below 1e-18 a
    sample's blocks have more voxels than this, and then its last blocks are left out.

    Args:
        sides: largest side along each axis; a side is uniform in 1..that.
        num_blocks: number of blocks.

    Returns:
        Number of voxels, about 1.1 times what is expected for 10,000 blocks.

    Example:
        >>> listed_voxels((6, 6, 3), 10_000), listed_voxels((6, 6, 3), 1)
        (266354, 108)
    """
    largest = math.prod(sides)
    mean = math.prod((side + 1) / 2 for side in sides)
    variance = math.prod((side + 1) * (2 * side + 1) / 6 for side in sides) - mean**2
    linear = largest * _OVERFLOW_EXPONENT / 3
    excess = linear + math.sqrt(linear**2 + 2 * num_blocks * variance * _OVERFLOW_EXPONENT)
    return min(math.ceil(num_blocks * mean + excess), num_blocks * largest)


def draw_shuffle_sources(
    generator: torch.Generator, size: int, shape: Sequence[int], sides: Sequence[int], num_blocks: int
) -> Tensor:
    """Draw for each voxel the one that shuffling brings there.

    A voxel is written by the last block that covers it: a scatter-maximum over the list of all blocks' voxels finds
    its place in the list. One sort of random keys, blocks kept apart, permutes each block.

    Args:
        generator: of all draws; its device is the result's.
        size: number of samples.
        shape: spatial shape in voxels.
        sides: largest block side along each axis.
        num_blocks: number of blocks of a sample, at least 1.

    Returns:
        Flat voxel indices (size, voxels), int64.

    Example:
        >>> sources = draw_shuffle_sources(torch.Generator().manual_seed(0), 2, (4,), (4,), 1)
        >>> sources.sort().values.tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    device, voxels = generator.device, math.prod(shape)
    block, places = _list_blocks(generator, size, shape, sides, num_blocks)
    number = torch.arange(places.shape[1], device=device)
    # Blocks are listed in order, so the largest number is that of the last block.
    writer = torch.full((size, voxels + 1), -1, device=device).scatter_reduce(
        1, places, number.expand(size, -1), "amax"
    )[:, :voxels]
    order = _permute_within_blocks(generator, block, num_blocks)
    row = torch.arange(size, device=device).unsqueeze(1) * places.shape[1]
    source = places.take(order.take(writer.clamp_min(0) + row))
    return torch.where(writer >= 0, source, torch.arange(voxels, device=device))


def _list_blocks(
    generator: torch.Generator, size: int, shape: Sequence[int], sides: Sequence[int], num_blocks: int
) -> tuple[Tensor, Tensor]:
    """Draw blocks and list their voxels: the block of each entry (int32), and its voxel (int64).

    Entries behind the last block belong to a block ``num_blocks`` and to a spare voxel behind the image.
    """
    device, length = generator.device, listed_voxels(sides, num_blocks)
    side = [draw_integers(generator, 1, largest, size, num_blocks) for largest in sides]
    corner = [draw_integers(generator, 0, n - s, size, num_blocks) for n, s in zip(shape, side, strict=True)]
    volume, start = torch.ones_like(side[0]), torch.zeros_like(side[0])
    for s, c, n in zip(side, corner, shape, strict=True):
        volume, start = volume * s, start * n + c
    end = volume.cumsum(dim=1)
    # an entry's block is the number of blocks that end at it or before
    ends = torch.zeros((size, length + 1), dtype=torch.int32, device=device)
    block = ends.scatter_(1, end.clamp_max(length), 1)[:, :length].cumsum(dim=1, dtype=torch.int32)
    owner = block.clamp_max(num_blocks - 1).long()
    within = torch.arange(length, dtype=torch.int32, device=device) - (end - volume).int().gather(1, owner)
    places, stride = start.int().gather(1, owner), 1
    for axis in range(len(shape) - 1, 0, -1):
        s = side[axis].int().gather(1, owner)
        places += within.remainder(s) * stride
        within = within.div(s, rounding_mode="floor")
        stride *= shape[axis]
    places += within * stride
    return block, places.masked_fill_(block == num_blocks, math.prod(shape)).long()


def _permute_within_blocks(generator: torch.Generator, block: Tensor, num_blocks: int) -> Tensor:
    """Permute each block's entries of the flattened list: the i-th entry takes what the result's i-th entry names.

    The key of an entry is its sample and block, which are in order already, above random bits: 40 or more for 400
    samples of 10,000 blocks. Two keys of one block are alike once in 2**40 pairs.
    """
    size = len(block)
    bits = 62 - (size * (num_blocks + 1)).bit_length()
    keys = torch.randint(0, 1 << bits, block.shape, generator=generator, device=block.device)
    keys += block.long() << bits
    keys += torch.arange(size, device=block.device).unsqueeze(1) * ((num_blocks + 1) << bits)
    return keys.flatten().argsort()
