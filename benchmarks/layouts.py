# SPDX-License-Identifier: Apache-2.0
"""float32 on a processor with the channels outermost or innermost in memory: training and inference, 3D and 2D.

    OMP_NUM_THREADS=1 python -m benchmarks.layouts [--quick] [--out results.json] [--rounds 5]

This is what ``choose_precision`` decides on processors without bfloat16. Processor time of the process, which does not
count what others use of a busy machine; the two layouts have their turns one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from models_genesis.networks import GenesisUNet
from models_genesis.training import AutocastInferer, Precision, RestorationLoss

from .measure import parse_arguments, print_machine, print_table, time_in_turn, write_results

CONTIGUOUS, CHANNELS_LAST = Precision(), Precision(channels_last=True)


@dataclass(frozen=True)
class Case:
    """One network and batch.

    Args:
        features: channels of the network's levels.
        shape: of the batch: samples, channels, and two or three sides.
    """

    features: tuple[int, ...]
    shape: tuple[int, ...]


QUICK = (Case((4, 8), (1, 1, 16, 16, 8)), Case((4, 8), (1, 1, 16, 16)))
CASES = (
    Case((8, 16, 32, 64), (6, 1, 64, 64, 32)),
    Case((8, 16, 32, 64), (1, 1, 96, 96, 96)),
    Case((16, 32, 64, 128), (2, 1, 64, 64, 32)),
    Case((32, 64, 128, 256), (2, 1, 64, 64, 32)),
    Case((64, 128, 256, 512), (1, 1, 64, 64, 32)),
    Case((8, 16, 32, 64), (4, 1, 256, 256)),
    Case((32, 64, 128, 256), (2, 1, 256, 256)),
    Case((64, 128, 256, 512), (1, 1, 256, 256)),
)


def make_calls(case: Case, precision: Precision) -> dict[str, Callable[[], None]]:
    """A training step and a forward pass as the bundles make them, for one layout."""
    torch.manual_seed(0)
    network = precision.place(GenesisUNet(spatial_dims=len(case.shape) - 2, features=case.features), "cpu")
    inferer, loss = AutocastInferer(precision), RestorationLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images, targets = torch.rand(2, *case.shape)

    def train() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(images, network), targets).backward()
        optimizer.step()

    def infer() -> None:
        network.eval()
        with torch.no_grad():
            inferer(images, network)

    return {"training": train, "inference": infer}


def compare(case: Case, rounds: int) -> dict[str, float]:
    """Seconds of processor time a sample: both layouts, training and inference."""
    layouts = {"contiguous": CONTIGUOUS, "channels last": CHANNELS_LAST}
    calls = {
        (layout, kind): call
        for layout, precision in layouts.items()
        for kind, call in make_calls(case, precision).items()
    }
    seconds: dict[str, float] = {}
    for kind in ("training", "inference"):
        candidates = {f"{kind}, {layout}": calls[layout, kind] for layout in layouts}
        measured = time_in_turn(candidates, rounds, clock=time.process_time)
        seconds |= {name: value / case.shape[0] for name, value in measured.items()}
    return seconds


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Memory layouts of float32 on a processor.",
        ("--rounds", {"type": int, "default": 5, "help": "how often each layout has its turn"}),
    )
    results: dict[str, Any] = {"machine": print_machine(), "cases": []}
    rows = []
    for case in QUICK if arguments.quick else CASES:
        seconds = compare(case, 1 if arguments.quick else arguments.rounds)
        row = [f"{case.features[0]}-{case.features[-1]}", "x".join(map(str, case.shape[2:])), case.shape[0]]
        for kind in ("training", "inference"):
            pair = [seconds[f"{kind}, {layout}"] for layout in ("contiguous", "channels last")]
            row += [*(1000 * value for value in pair), pair[0] / pair[1]]
        rows.append(row)
        print(*row, flush=True)
        results["cases"].append({"features": case.features, "shape": case.shape, "seconds_a_sample": seconds})
    columns: list[str] = ["features", "size", "batch"]
    for kind in ("training", "inference"):
        columns += [f"{kind}, contiguous, ms", "channels last, ms", "times faster"]
    print_table("processor time a sample", columns, rows)
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
