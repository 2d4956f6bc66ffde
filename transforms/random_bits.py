# SPDX-License-Identifier: Apache-2.0
"""What all compiled loops share: how they are compiled, and where their random bits come from.

Random bits come from splitmix64: a counter advanced by an odd constant and hashed, so that a stream is named by one
64-bit seed, and its numbers can be drawn at any place, in any order and many at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["GOLDEN", "bounded", "compile_loop", "mix"]

Bits = Any  # numpy.uint64

logger = logging.getLogger(__name__)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The step from one number of a stream to the next."""

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31, _U32 = (np.uint64(n) for n in (27, 30, 31, 32))


def compile_loop(function: Callable[..., Any]) -> Any:
    """Compile on first use and keep the machine code on disk; without a writable place for it, compile each time.

    Args:
        function: a loop over arrays.

    Returns:
        The compiled function; it releases the GIL and runs on one thread.
    """
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        logger.info("%s: compiled code is not cached (%s)", function.__name__, error)
        return numba.njit(nogil=True, error_model="numpy")(function)


@compile_loop
def mix(state: Bits) -> Bits:
    """Hash 64 bits (the output function of splitmix64)."""
    z = (state ^ (state >> _U30)) * _MIX_1
    z = (z ^ (z >> _U27)) * _MIX_2
    return z ^ (z >> _U31)


@compile_loop
def bounded(bits: Bits, bound: int) -> Any:
    """Turn 32 random bits into a whole number in 0..bound-1: the upper half of a product, biased by bound / 2**32."""
    return np.int64((bits * np.uint64(bound)) >> _U32)
