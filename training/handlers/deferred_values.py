# SPDX-License-Identifier: Apache-2.0
"""Values of a device that the host reads one iteration later, so that neither waits for the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["DeferredValues", "Noted"]


class Noted(NamedTuple):
    """Values and where they come from.

    Args:
        values: the numbers.
        iteration: the iteration they belong to.
        epoch: its epoch.
    """

    values: list[float]
    iteration: int
    epoch: int


class DeferredValues:
    """Hand a few numbers of each iteration to the host without making the device wait.

    ``tensor.item()`` in each iteration empties a GPU's queue: it idles while the host prepares the next launch. On a
    CUDA device the numbers are therefore copied to the host in the background and read when the next iteration has
    launched its forward pass; elsewhere they are there at once.

    Example:
        >>> values = DeferredValues()
        >>> values.exchange(torch.tensor([0.5]), 1, 1)
        [Noted(values=[0.5], iteration=1, epoch=1)]
        >>> values.flush()
        []
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, Any, int, int] | None = None

    def exchange(self, values: Tensor, iteration: int, epoch: int) -> list[Noted]:
        """Note values and give those that are there.

        Args:
            values: one axis, of the device.
            iteration: the iteration they belong to.
            epoch: its epoch.

        Returns:
            None or one of the iterations.
        """
        values = values.detach()
        if not values.is_cuda:
            return [Noted(values.tolist(), iteration, epoch)]
        ready = self.flush()
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._waiting = (copy, done, iteration, epoch)
        return ready

    def flush(self) -> list[Noted]:
        """Give what is still waiting: at the end of an epoch, before anything is saved."""
        if self._waiting is None:
            return []
        copy, done, iteration, epoch = self._waiting
        self._waiting = None
        done.synchronize()
        return [Noted(copy.tolist(), iteration, epoch)]
