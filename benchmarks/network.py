# SPDX-License-Identifier: Apache-2.0
"""Time of a training step of the network, against what the machine can multiply, and where the time goes.

    python -m benchmarks.network [--quick] [--out results.json] [--steps 3] [--batch-size 1]

Without a GPU the plain way, float32 as the original trains, is compared with the bundle's choice for the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models_genesis.networks import GenesisUNet
from models_genesis.training import AutocastInferer, Precision, RestorationLoss, choose_precision

from .measure import parse_arguments, print_machine, print_table, time_in_turn, write_results


def make_step(
    features: list[int], shape: tuple[int, ...], batch_size: int, precision: Precision, device: torch.device
) -> Callable[[], None]:
    """One training step on a batch that is there already, as the bundle does it."""
    torch.manual_seed(0)
    network: nn.Module = precision.place(GenesisUNet(features=features), device)
    inferer, loss = AutocastInferer(precision), RestorationLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images, targets = torch.rand(2, batch_size, 1, *shape, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(images, network), targets).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def matrix_peak(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """Floating-point operations a second of a large matrix product, the fastest of several."""
    a, b = torch.rand(2, size, size, device=device).to(dtype)

    def multiply() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    return max(2 * size**3 / time_in_turn({"matmul": multiply}, 1)["matmul"] for _ in range(5))


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Time of a training step.",
        ("--steps", {"type": int, "default": 3, "help": "how often each way has its turn"}),
        ("--batch-size", {"type": int, "default": 1, "help": "cubes in a step"}),
    )
    quick = arguments.quick
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, shape = ([8, 16], (32, 32, 16)) if quick else ([64, 128, 256, 512], (64, 64, 32))
    results: dict[str, Any] = {"machine": print_machine(), "features": features, "shape": shape}
    ways = {"float32, as the original": Precision(), "as the bundle chooses": choose_precision(device)}
    size = arguments.batch_size
    steps = {name: make_step(features, shape, size, precision, device) for name, precision in ways.items()}
    with FlopCounterMode(display=False) as counter:
        steps["float32, as the original"]()
    operations = counter.get_total_flops()
    seconds = time_in_turn(steps, arguments.steps)
    rows = []
    for name, precision in ways.items():
        dtype = precision.autocast_dtype or torch.float32
        peak = matrix_peak(dtype, device, 512 if quick else 2048)
        rate = operations / seconds[name]
        kind = f"{str(dtype).removeprefix('torch.')}{', channels last' if precision.channels_last else ''}"
        rows.append((name, kind, seconds[name], size / seconds[name], rate / 1e9, peak / 1e9, 100 * rate / peak))
    plain, chosen = (seconds[name] for name in ways)
    columns = ("", "precision", "s a step", "cubes/s", "GFLOP/s", "matrix product GFLOP/s", "% of it")
    results["steps"] = [dict(zip(("way", *columns[1:]), row, strict=True)) for row in rows]
    results["gflop_per_cube"] = operations / size / 1e9
    print_table(f"training step, {size} x {shape}, {operations / 1e9:.0f} GFLOP", columns, rows)
    print(f"the bundle's choice is {plain / chosen:.2f} times faster")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]) as run:
        steps["as the bundle chooses"]()
    results["profile"] = where_time_goes(run, device)
    print_table("one step, operations by their own time", ("", "calls", "ms", "%"), results["profile"])
    write_results(arguments.out, results)


def where_time_goes(run: profile, device: torch.device, count: int = 12) -> list[tuple[str, int, float, float]]:
    """The operations with the largest times of their own: name, calls, ms and share."""
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(run.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events)
    return [
        (event.key, event.count, getattr(event, attribute) / 1e3, 100 * getattr(event, attribute) / total)
        for event in events[:count]
    ]


if __name__ == "__main__":
    main()
