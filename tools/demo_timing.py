# SPDX-License-Identifier: Apache-2.0
"""Time a few steps of what the demo is about to do on this machine, so that it can say beforehand what it takes.

``python tools/demo_timing.py '{"features": [8, 16], "cube_size": [32, 32, 32], ...}'`` prints what ``measure`` gives.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import monai.bundle  # noqa: F401  # a bundle's process imports it, which is a part of its start
import torch

from models_genesis.datasets import make_phantom
from models_genesis.networks import GenesisUNet
from models_genesis.training import AutocastInferer, RestorationLoss, choose_precision

PHANTOM_SHAPE = (40, 40, 40)


def measure(
    features: Sequence[int],
    cube_size: Sequence[int],
    trainings: dict[str, tuple[int, Sequence[int]]],
) -> dict[str, Any]:
    """Time the parts of which the demo's stages consist.

    Args:
        features: channels of the demo's network.
        cube_size: of all windows.
        trainings: batch size and cube size of each training, by name.

    Returns:
        ``device``, and seconds: ``<training>_step`` of one batch, ``window`` of a forward pass over one cube,
        ``phantom_voxel`` of painting a scan, ``measuring`` of this function.
    """
    begin = time.monotonic()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    timing = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "processor",
        **{f"{name}_step": time_step(features, cube, batch, device, True) for name, (batch, cube) in trainings.items()},
        "window": time_step(features, cube_size, 4, device, train=False) / 4,
        "phantom_voxel": time_phantom(),
    }
    return timing | {"measuring": time.monotonic() - begin}


def time_step(
    features: Sequence[int], cube_size: Sequence[int], batch_size: int, device: torch.device, train: bool
) -> float:
    """Seconds of a training step or a forward pass over a batch, as the bundles compute them."""
    precision = choose_precision(device)
    network = precision.place(GenesisUNet(features=features), device).train(train)
    inferer, loss = AutocastInferer(precision), RestorationLoss()
    optimizer = torch.optim.AdamW(network.parameters())
    images, targets = torch.rand(2, batch_size, 1, *cube_size, device=device)

    def step() -> None:
        with torch.set_grad_enabled(train):
            logits = inferer(images, network)
            if train:
                optimizer.zero_grad(set_to_none=True)
                loss(logits, targets).backward()
                optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return median_seconds(step, rounds=5 if train else 2)


def time_phantom() -> float:
    """Seconds a voxel of painting a small phantom."""
    voxels = PHANTOM_SHAPE[0] * PHANTOM_SHAPE[1] * PHANTOM_SHAPE[2]
    return median_seconds(lambda: make_phantom(0, "chest_abdomen", PHANTOM_SHAPE), rounds=1) / voxels


def median_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median of the seconds a call takes, after one call that warms up."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.monotonic()
        call()
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
