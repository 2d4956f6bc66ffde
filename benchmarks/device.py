# SPDX-License-Identifier: Apache-2.0
"""Milliseconds a GPU takes to deform a batch, and the share of a training step in bfloat16 that this is.

    python -m benchmarks.device [--quick] [--out results.json]

Without a CUDA device it says so and measures the memory alone, which is counted on the processor.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from models_genesis.training import choose_precision
from models_genesis.transforms import BatchGenesisDeform

from .deformations import HOUNSFIELD, SHAPES
from .measure import parse_arguments, print_machine, print_table, time_in_turn, write_results
from .network import make_step

BATCHES = (6, 64)


def cubes(size: int, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """A batch of random HU."""
    return torch.randint(-1000, 1001, (size, 1, *shape), dtype=torch.int16, device=device)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that tensors take at once on the processor during a call, what was there before not counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    with tempfile.TemporaryDirectory() as folder:
        run.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def count_memory(shapes: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
    """Peak bytes of a batch, results included, for one sample and for more."""
    rows = []
    for shape in shapes:
        for size in (1, 6):
            images = cubes(size, shape, "cpu")
            deform = BatchGenesisDeform(**HOUNSFIELD)
            peak = peak_bytes(lambda deform=deform, images=images: deform(images))  # type: ignore[misc]
            rows.append({"shape": shape, "batch_size": size, "peak_bytes": peak, "peak_bytes_per_sample": peak / size})
    return rows


def time_on_gpu(shapes: tuple[tuple[int, ...], ...], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a batch, alone and alongside the training step."""
    device = torch.device("cuda")
    rows = []
    for shape in shapes:
        for size in BATCHES:
            images, deform = cubes(size, shape, "cuda"), BatchGenesisDeform(**HOUNSFIELD, device="cuda")

            def run(deform: BatchGenesisDeform = deform, images: torch.Tensor = images) -> None:
                deform(images)
                torch.cuda.synchronize()

            step = make_step([64, 128, 256, 512], shape, 6, choose_precision(device), device)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            peak = torch.cuda.max_memory_allocated() - before
            seconds = time_in_turn({"deform": run, "step of 6": step}, rounds)
            share = 100 * seconds["deform"] / size / (seconds["step of 6"] / 6)
            rows.append(
                {
                    "shape": shape,
                    "batch_size": size,
                    "ms": 1e3 * seconds["deform"],
                    "percent_of_step": share,
                    "bytes": peak,
                }
            )
    return rows


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments("The deformations of whole batches on a GPU.")
    torch.set_num_threads(1)
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    results: dict[str, Any] = {"machine": print_machine(), "memory": count_memory(shapes), "gpu": None}
    rows = [(str(row["shape"]), row["batch_size"], row["peak_bytes"] / 1e6, row["peak_bytes_per_sample"] / 1e6)
            for row in results["memory"]]  # fmt: skip
    print_table("memory, counted on the processor", ("cube", "batch", "MB at the peak", "MB a sample"), rows)
    if torch.cuda.is_available():
        results["gpu"] = time_on_gpu(shapes, 3 if arguments.quick else 10)
        times = [
            (str(r["shape"]), r["batch_size"], r["ms"], r["percent_of_step"], r["bytes"] / 1e6) for r in results["gpu"]
        ]
        header = ("cube", "batch", "ms", "% of the training step of as many cubes", "MB at the peak")
        print_table(torch.cuda.get_device_name(), header, times)
    else:
        print("\nnot run: this machine has no CUDA device, so there are no times")
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
