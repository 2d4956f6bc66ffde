# SPDX-License-Identifier: Apache-2.0
"""How much memory cached scans may take."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 2**30


def available_memory() -> int:
    """Memory in bytes that this process can still take without swapping, within its container's limit.

    Raises:
        OSError: When this system does not say; a budget has to be given then.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # no Linux: a quarter of the memory built in is what one can count on
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            raise OSError("this system does not say how much memory is free; give cache_gib.") from None
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    try:
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        # pages of files that were read count as used, but give way
        for line in (group / "memory.stat").read_text().splitlines():
            used -= int(line.split()[1]) if line.startswith("inactive_file ") else 0
        available = min(available, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):
        pass  # no container, or one without a limit ("max")
    return max(available, 0)


def cache_budget(cache_gib: float | None = None) -> int:
    """Bytes that one process may fill with cached scans.

    Args:
        cache_gib: the budget in GiB for this process, 0 for none; by default half of the available memory, divided by
            the number of processes on this machine (``LOCAL_WORLD_SIZE``, set by torchrun).

    Returns:
        The budget in bytes.

    Raises:
        ValueError: When the budget is negative.
    """
    if cache_gib is None:
        return available_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cache_gib < 0:
        raise ValueError(f"cache_gib must be 0 or more, got {cache_gib}.")
    return int(cache_gib * GIB)
