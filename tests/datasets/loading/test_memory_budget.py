# SPDX-License-Identifier: Apache-2.0
"""What cached scans may take: half of what is free, and no more than the container allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from models_genesis.datasets.loading import memory_budget

GIB = 2**30
MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemFree: {1 * 2**20} kB\nMemAvailable: {40 * 2**20} kB\n"


@pytest.fixture
def machine(monkeypatch):
    """Let the module read its files from a dictionary, as if the machine were another one."""

    def become(files: dict[str, str]) -> None:
        class Files(type(Path())):  # type: ignore[misc]
            def read_text(self, *args, **kwargs):
                if str(self) not in files:
                    raise FileNotFoundError(str(self))
                return files[str(self)]

        monkeypatch.setattr(memory_budget, "Path", Files)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    return become


def group(limit: str, used: int = 6 * GIB, inactive: int = 4 * GIB) -> dict[str, str]:
    return {
        "/sys/fs/cgroup/memory.max": f"{limit}\n",
        "/sys/fs/cgroup/memory.current": f"{used}\n",
        "/sys/fs/cgroup/memory.stat": f"anon 5\nactive_file 7\ninactive_file {inactive}\n",
    }


def test_half_of_the_free_memory(machine, monkeypatch):
    machine({"/proc/meminfo": MEMINFO})
    assert memory_budget.available_memory() == 40 * GIB
    assert memory_budget.cache_budget() == 20 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_budget.cache_budget() == 5 * GIB
    assert memory_budget.cache_budget(3.5) == int(3.5 * GIB)  # a given budget is each process's


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        (group(str(10 * GIB)), 8),  # 10 - (6 - 4): pages of files give way
        (group("max"), 40),  # a container without a limit
        (group(str(100 * GIB)), 40),  # the machine has less than the container may take
        (group(str(1 * GIB)), 0),  # nothing left, and never less than that
    ],
)
def test_the_containers_limit_counts(machine, files, gib):
    machine({"/proc/meminfo": MEMINFO, **files})
    assert memory_budget.available_memory() == gib * GIB
    assert memory_budget.cache_budget() == gib * GIB // 2


V1_NO_LIMIT = 2**63 - 4096
OWN_V2 = "0::/slurm/job_7/step_0\n"
HYBRID = "4:memory:/job_7/step_0\n1:name=systemd:/user\n0::/user\n"


def group_files(folder: str, limit: object, used: int, inactive: int = 0) -> dict[str, str]:
    """Files of a group of version 2, or of version 1 below ``memory``, in GiB but for limits that are no number."""
    limit = limit * GIB if isinstance(limit, int) and limit < GIB else limit
    if "/memory" not in folder:
        names, stat = ("memory.max", "memory.current"), f"anon 1\ninactive_file {inactive * GIB}\n"
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        # a group of version 1 has its own pages, and those with its children's
        stat = f"inactive_file 1\ntotal_cache 5\ntotal_inactive_file {inactive * GIB}\n"
    return {
        f"{folder}/{names[0]}": f"{limit}\n", f"{folder}/{names[1]}": f"{used * GIB}\n", f"{folder}/memory.stat": stat
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "groups", "gib"),
    [
        # version 2
        ("0::/\n", [("sys/fs/cgroup", 10, 6, 4)], 8),
        (OWN_V2, [("sys/fs/cgroup/slurm/job_7/step_0", "max", 3), ("sys/fs/cgroup/slurm/job_7", 12, 9, 2)], 5),
        (OWN_V2, [("sys/fs/cgroup/slurm/job_7/step_0", 4, 3), ("sys/fs/cgroup/slurm/job_7", 12, 9)], 1),
        (OWN_V2, [("sys/fs/cgroup/slurm/job_7/step_0", 9, 3), ("sys/fs/cgroup/slurm", 16, 15)], 1),
        ("0::/../../job_7\n", [("sys/fs/cgroup/job_7", 7, 1)], 6),
        # a job next to ours does not count
        (OWN_V2, [("sys/fs/cgroup/slurm/job_8", 2, 1), ("sys/fs/cgroup/slurm/job_7", "max", 1)], None),
        # a container sees the path of its host, and its own group as the root
        ("0::/docker/abc\n", [("sys/fs/cgroup", 3, 1)], 2),
        # version 1
        ("5:cpu,cpuacct:/a\n4:memory:/\n", [("sys/fs/cgroup/memory", 10, 6, 4)], 8),
        ("4:memory:/docker/abc\n", [("sys/fs/cgroup/memory", 10, 6, 4)], 8),
        ("4:memory:/\n", [("sys/fs/cgroup/memory", V1_NO_LIMIT, 6)], None),
        ("5:cpu:/job_7\n", [("sys/fs/cgroup/memory/job_7", 2, 1)], None),
        # hybrid: the memory of version 1, the rest of version 2
        (HYBRID, [("sys/fs/cgroup/memory/job_7/step_0", V1_NO_LIMIT, 2), ("sys/fs/cgroup/memory/job_7", 8, 5, 1),
                  ("sys/fs/cgroup/memory", V1_NO_LIMIT, 30)], 4),
        (HYBRID, [("sys/fs/cgroup/unified/user", 8, 5)], 3),
        # none, or no word of which
        ("0::/\n", [], None),
        (None, [], None),
        (None, [("sys/fs/cgroup", 10, 6)], 4),
        (None, [("sys/fs/cgroup/memory", 10, 6)], 4),
    ],
)  # fmt: skip
def test_the_smallest_limit_from_the_own_group_to_the_root_counts(own, groups, gib, machine):
    files = {"proc/meminfo": MEMINFO}
    if own is not None:
        files["proc/self/cgroup"] = own
    for group in groups:
        files |= group_files(*group)
    machine({f"/{name}": text for name, text in files.items()})
    assert memory_budget.available_memory() == (40 if gib is None else gib) * GIB


def test_a_group_whose_statistics_are_missing_gives_nothing_back(machine):
    machine({"/proc/meminfo": MEMINFO, **group(str(10 * GIB)), "/sys/fs/cgroup/memory.stat": "no numbers"})
    assert memory_budget.available_memory() == 4 * GIB


@pytest.mark.parametrize("meminfo", [{}, {"/proc/meminfo": "MemTotal: 64 kB\nMemFree: 64 kB\n"}])
def test_elsewhere_than_on_linux_a_quarter_of_the_memory_built_in_counts(machine, monkeypatch, meminfo):
    machine(meminfo)
    built_in = {"SC_PHYS_PAGES": 16 * 2**20, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(memory_budget.os, "sysconf_names", dict.fromkeys(built_in, 0))
    monkeypatch.setattr(memory_budget.os, "sysconf", built_in.__getitem__)
    assert memory_budget.available_memory() == 16 * GIB
    monkeypatch.setattr(memory_budget.os, "sysconf_names", {"SC_PAGE_SIZE": 0})
    with pytest.raises(OSError, match="does not say how much memory is free; give cache_gib"):
        memory_budget.cache_budget()
    assert memory_budget.cache_budget(2) == 2 * GIB


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        memory_budget.cache_budget(-1)
