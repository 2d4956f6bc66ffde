# SPDX-License-Identifier: Apache-2.0
"""How much memory cached scans may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GIB = 2**30

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
"""Of a control group: files of its limit and usage, and what ``memory.stat`` calls cached files that give way."""


def available_memory() -> int:
    """Memory in bytes that this process can still take without swapping, within the limits of its control groups.

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
    return max(min([available, *_left_in_groups()]), 0)


def _left_in_groups() -> Iterator[int]:
    """Give the bytes left in each control group with a limit, from this process's own up to the topmost that it sees.

    A job's limit may be set at any level: by a container at its root, by Slurm at the job, above its steps. Files are
    where version 2, version 1, and systemd's hybrid of both have them. Without control groups there are none.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", "1:memory:/"]
    mounted = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, own = line.split(":", 2)
        # a container may see a path of its host, of which only the root is there; ".." leads out of what it sees
        path = PurePosixPath("/", *(part for part in PurePosixPath(own).parts if part != ".."))
        if controllers == "":
            mounts, names = [mounted, mounted / "unified"], _V2
        elif "memory" in controllers.split(","):
            mounts, names = [mounted / "memory"], _V1
        else:
            continue
        for group in (mount / level.relative_to("/") for mount in mounts for level in (path, *path.parents)):
            left = _left_in(group, *names)
            if left is not None:
                yield left


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Give the bytes left in a control group; ``None`` without a limit, which version 1 writes as almost 2 ** 63."""
    try:
        left = int((group / limit).read_text()) - int((group / usage).read_text())
    except (OSError, ValueError):
        return None  # there is no such group, or its limit is "max"
    try:
        stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        # pages of files that were read count as used, but give way
        return left + int(stat.get(reclaimable, 0))
    except (OSError, ValueError):
        return left


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
