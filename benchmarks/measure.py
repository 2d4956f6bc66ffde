# SPDX-License-Identifier: Apache-2.0
"""Medians, the machine, tables and files, for all benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models_genesis.datasets.io.atomic_write import atomic_write

__all__ = ["machine", "parse_arguments", "print_machine", "print_table", "time_in_turn", "write_results"]


def parse_arguments(description: str, *options: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Read the command line.

    Args:
        description: what is measured.
        options: further options as (name, arguments of ``add_argument``).

    Returns:
        The arguments; ``quick`` and ``out`` always.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, as in CI")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    for name, arguments in options:
        parser.add_argument(name, **arguments)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on.

    Returns:
        Processor, cores, load of the last minute, threads and versions.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "numba", "torch", "monai")},
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(part for line in lines if len(part := [side.strip() for side in line.split(":", 1)]) == 2)
    return f"{facts.get('model name')} (family {facts.get('cpu family')}, model {facts.get('model')})"


def print_machine() -> dict[str, Any]:
    """Print the machine on one line and return it."""
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None), flush=True)
    return facts


def time_in_turn(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time candidates one after another, again and again, so that all meet the same load of the machine.

    Args:
        candidates: what to call, by name. Each is called once before, to compile and to fill caches.
        rounds: how often each has its turn.
        calls: calls in a turn.
        clock: gives seconds.

    Returns:
        For each the median over the rounds of the seconds a call takes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            start = clock()
            for _ in range(calls):
                call()
            seconds[name].append((clock() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table with numbers of three digits.

    Args:
        title: the line above.
        header: names of the columns.
        rows: their values.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in (list(header), *cells)) for column in range(len(header))]
    print(f"\n{title}")
    for line in (list(header), ["-" * width for width in widths], *cells):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all.

    Args:
        path: the file; None writes nothing.
        results: what was measured.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode())
        print(f"\nwrote {path}")
