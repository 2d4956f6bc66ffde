# SPDX-License-Identifier: Apache-2.0
"""Random numbers for a whole batch, drawn where the batch lives and from one generator."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_bits", "draw_integers", "draw_uniform"]

_BITS = 31


def draw_uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw floats uniform on [0, 1), float32 with 24 random bits: ``< p`` happens with p to within 6e-8.

    Args:
        generator: of all draws; its device is the result's.
        shape: of the result.

    Returns:
        The floats.
    """
    return torch.rand(shape, generator=generator, device=generator.device)


def draw_bits(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw 62 random bits each, as keys to sort by: two of n are equal once in 2**63 / n**2 times.

    Args:
        generator: of all draws; its device is the result's.
        shape: of the result.

    Returns:
        int64 integers, not negative.
    """
    return torch.randint(0, 1 << 62, shape, generator=generator, device=generator.device)


def draw_integers(generator: torch.Generator, low: int, high: Tensor | int, *shape: int) -> Tensor:
    """Draw integers uniform in low..high, both included.

    31 random bits are multiplied by the count, in whole numbers; among n values each one's probability 1/n is off by
    less than 2**-31.

    Args:
        generator: of all draws; its device is the result's.
        low: the smallest.
        high: the largest, which may differ from element to element; the count stays below 2**31.
        shape: of the result.

    Returns:
        int64 integers.

    Example:
        >>> drawn = draw_integers(torch.Generator().manual_seed(0), 3, 5, 1000)
        >>> drawn.unique().tolist()
        [3, 4, 5]
    """
    bits = torch.randint(0, 1 << _BITS, shape, generator=generator, device=generator.device)
    return low + (bits * (high - low + 1) >> _BITS)
