# SPDX-License-Identifier: Apache-2.0
"""What share of an image local pixel shuffling moves, and how many blocks move a given share (arXiv:2004.07882)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .local_shuffle import max_block_sides

__all__ = ["PAPER_MOVED_SHARE", "blocks_for_share", "expected_moved_share"]

_MOST_BLOCKS = 10_000_000


def expected_moved_share(shape: Sequence[int], num_blocks: int = 10_000, max_block_fraction: float = 0.1) -> float:
    """Expected share of the voxels that :func:`.local_shuffle.local_pixel_shuffle` puts in another place.

    Exact, in closed form. A block has sides uniform in ``1..m`` along each axis (``m`` by :func:`max_block_sides`) and
    a corner uniform where it fits, independent along the axes. With side ``a`` it covers coordinate ``x`` of an axis of
    ``L`` voxels for ``min(x + 1, a, L - x, L - a + 1)`` of its ``L - a + 1`` corners; call that share ``q_a(x)``. One
    block covers a voxel with probability ``p``, the product over the axes of the mean over ``a`` of ``q_a(x)``, and one
    of ``num_blocks`` covers it with ``1 - (1 - p)**num_blocks``. The last block that covers a voxel decides what it
    shows: any of that block's ``v`` voxels, each as likely, so its own with ``1 / v``. Over the blocks that cover the
    voxel the mean of ``1 / v`` is ``r / p``, with ``r`` as ``p`` but of ``q_a(x) / a``. The share is the mean over all
    voxels of ``(1 - (1 - p)**num_blocks) * (1 - r / p)``.

    Args:
        shape: spatial shape in voxels, one to three axes.
        num_blocks: number of blocks.
        max_block_fraction: largest share of an axis that a block takes, in (0, 1].

    Returns:
        The share, in [0, 1).

    Example:
        >>> round(expected_moved_share((64, 64, 32)), 3)
        0.785
        >>> expected_moved_share((8, 8))  # no block has more than one voxel
        0.0
    """
    covers, keeps = np.ones(1), np.ones(1)
    for length, side in zip(shape, max_block_sides(shape, max_block_fraction), strict=True):
        sides = np.arange(1, side + 1)[:, None]
        place = np.arange(length)[None]
        corners = length - sides + 1
        share = np.minimum.reduce(np.broadcast_arrays(place + 1, sides, length - place, corners)) / corners
        covers = np.multiply.outer(covers, share.mean(axis=0))
        keeps = np.multiply.outer(keeps, (share / sides).mean(axis=0))
    reached = -np.expm1(num_blocks * np.log1p(-np.minimum(covers, 1 - 1e-12)))
    return float(np.mean(reached * (1 - keeps / covers)))


PAPER_MOVED_SHARE = expected_moved_share((64, 64, 32))
"""What the paper's 10,000 blocks move of a cube of 64 x 64 x 32: 0.785."""


def blocks_for_share(shape: Sequence[int], share: float = PAPER_MOVED_SHARE, max_block_fraction: float = 0.1) -> int:
    """Number of blocks with which local pixel shuffling moves a given share of an image, as nearly as can be.

    The paper's 10,000 blocks are for a cube. A slice has far fewer voxels, of which they would leave none in its place;
    this many blocks, with sides of up to a tenth of an axis as in the paper, move as much of a slice as the paper moves
    of a cube. See :func:`expected_moved_share`, which is solved for the number.

    Args:
        shape: spatial shape in voxels, one to three axes.
        share: share to be moved, in (0, 1); by default :data:`PAPER_MOVED_SHARE`.
        max_block_fraction: largest share of an axis that a block takes, in (0, 1].

    Returns:
        The number of blocks.

    Raises:
        ValueError: When no number of blocks moves so much, such as of a slice with sides below 40 voxels.

    Example:
        >>> blocks = blocks_for_share((128, 128))
        >>> blocks, round(expected_moved_share((128, 128), blocks), 3)
        (686, 0.785)
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number in (0, 1), found {share}")
    low, high = 0, 1
    while expected_moved_share(shape, high, max_block_fraction) < share:
        low, high = high, 2 * high
        if high > _MOST_BLOCKS:
            most = expected_moved_share(shape, _MOST_BLOCKS, max_block_fraction)
            sides = max_block_sides(shape, max_block_fraction)
            raise ValueError(
                f"shape: expected one of which shuffling can move {share:.3f}, found {tuple(shape)}, of which blocks "
                f"of up to {' x '.join(map(str, sides))} voxels move at most {most:.3f}; larger sides, or a larger "
                "max_block_fraction, move more"
            )
    while high - low > 1:
        middle = (low + high) // 2
        if expected_moved_share(shape, middle, max_block_fraction) < share:
            low = middle
        else:
            high = middle
    nearest = min((low, high), key=lambda number: abs(expected_moved_share(shape, number, max_block_fraction) - share))
    return int(nearest)
