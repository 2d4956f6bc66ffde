# SPDX-License-Identifier: Apache-2.0
"""Admissible starts of a scan as runs of consecutive numbers, of which the one that is drawn is found in two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .location import Location
from .scan_arrays import read_array, write_array

__all__ = ["StoredStarts", "expand_runs", "runs_of_starts", "starts_before_blocks", "write_runs"]

BLOCK = 2048
"""Runs that are read for one draw, 16 KiB before compression."""


def runs_of_starts(starts: np.ndarray) -> np.ndarray:
    """Write sorted flat indices as runs: of a scan the starts along the last axis mostly follow one another.

    Args:
        starts: sorted, without repetition, see :func:`~models_genesis.transforms.admissible_starts`.

    Returns:
        ``(2, R)``, of the type of the starts: first start and length of each run.

    Example:
        >>> runs_of_starts(np.array([4, 5, 6, 9, 11, 12], dtype=np.int32))
        array([[ 4,  9, 11],
               [ 3,  1,  2]], dtype=int32)
    """
    if len(starts) == 0:
        return np.empty((2, 0), dtype=starts.dtype)
    first = np.flatnonzero(np.diff(starts, prepend=starts[0] - 2) != 1)
    lengths = np.diff(first, append=len(starts))
    return np.stack([starts[first], lengths.astype(starts.dtype)])


def expand_runs(runs: np.ndarray) -> np.ndarray:
    """Give the starts back.

    Example:
        >>> expand_runs(np.array([[4, 9], [3, 1]], dtype=np.int32))
        array([4, 5, 6, 9], dtype=int32)
    """
    first, lengths = runs
    ends = np.cumsum(lengths, dtype=np.int64)
    offsets = np.repeat(first.astype(np.int64) - (ends - lengths), lengths)
    return (offsets + np.arange(offsets.size)).astype(runs.dtype)


def starts_before_blocks(runs: np.ndarray) -> list[int]:
    """Count the starts in all blocks before each, and at the end those of all.

    Example:
        >>> starts_before_blocks(np.array([[4, 9], [3, 1]]))
        [0, 4]
    """
    ends = np.cumsum(runs[1], dtype=np.int64)
    return [0, *(int(ends[min(end, len(ends)) - 1]) for end in range(BLOCK, len(ends) + BLOCK, BLOCK))]


def write_runs(location: Location, name: str, runs: np.ndarray) -> None:
    """Write runs, of which there is at least one, as :class:`StoredStarts` reads them."""
    write_array(location, name, runs, (2, BLOCK))


class StoredStarts:
    """The starts of a scan in a store, which look like an array of flat indices; one that is drawn reads one block.

    Args:
        location: the store.
        name: path of the runs in it.
        before: see :func:`starts_before_blocks`.
        runs: number of runs.
        dtype: type of the starts.
    """

    def __init__(self, location: Location, name: str, before: Sequence[int], runs: int, dtype: str) -> None:
        self.location = location
        self.name = name
        self.before = np.asarray(before, dtype=np.int64)
        self.runs = runs
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        """Count the starts."""
        return int(self.before[-1])

    def __getitem__(self, index: int) -> int:
        """Find a start by its number among all, from 0.

        Raises:
            IndexError: When there is no such start.
            OSError: When the store cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected a start from 0 to {len(self) - 1}, got {index}.")
        block = int(np.searchsorted(self.before, index, side="right")) - 1
        first, lengths = self._read((slice(None), slice(block * BLOCK, min((block + 1) * BLOCK, self.runs))))
        ends = self.before[block] + np.cumsum(lengths, dtype=np.int64)
        run = int(np.searchsorted(ends, index, side="right"))
        return int(first[run]) + index - int(ends[run] - lengths[run])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all of them."""
        starts = expand_runs(self._read(...)) if len(self) else np.empty(0, self.dtype)
        return starts.astype(dtype or self.dtype, copy=False)

    def _read(self, window: Any) -> np.ndarray:
        return read_array(self.location, self.name, (2, self.runs), str(self.dtype), (2, BLOCK), window)
