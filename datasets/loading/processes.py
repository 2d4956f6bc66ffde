# SPDX-License-Identifier: Apache-2.0
"""Which process of a distributed run this one is, and what the others have."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_from_processes", "process_count", "process_rank", "sum_over_processes"]

T = TypeVar("T")


def process_rank() -> int:
    """Give the rank of this process; 0 in a run of one process.

    Ask when something is built or attached, not when a module is imported: a bundle's ``initialize`` makes the process
    group, and builds everything else after it.
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Count the processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_from_processes(own: T) -> list[T]:
    """Bring together what each process has, in all of them.

    Args:
        own: of this process; anything that can be pickled.

    Returns:
        What each process gave, in the order of their ranks; that of this one alone where there is no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def sum_over_processes(own: Tensor) -> Tensor:
    """Add up what each process has, in all of them; the host does not wait for a GPU.

    Args:
        own: of this process, on the device of the process group; it is overwritten.

    Returns:
        The sum.
    """
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(own)
    return own
