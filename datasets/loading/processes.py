# SPDX-License-Identifier: Apache-2.0
"""Which process of a distributed run this one is."""

from __future__ import annotations

import torch.distributed as dist

__all__ = ["process_count", "process_rank"]


def process_rank() -> int:
    """Give the rank of this process; 0 in a run of one process.

    Ask when something is built or attached, not when a module is imported: a bundle's ``initialize`` makes the process
    group, and builds everything else after it.
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """Count the processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
