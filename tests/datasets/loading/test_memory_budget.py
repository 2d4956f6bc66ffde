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
