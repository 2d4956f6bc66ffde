# SPDX-License-Identifier: Apache-2.0
"""Deformation, network, loss and optimiser together: what can be learned by heart is restored, polarity and all."""

from __future__ import annotations

import numpy as np
import torch

from models_genesis.datasets import make_phantom
from models_genesis.networks import GenesisUNet
from models_genesis.training import RestorationLoss
from models_genesis.transforms import RandGenesisDeform

SIDE = 16


def phantom_cubes(count: int) -> list[np.ndarray]:
    """Cubes of the phantom, in HU, that hold more than one tissue."""
    scan = np.clip(make_phantom(0).image, -1000, 1000).astype(np.int16)
    R = np.random.RandomState(0)
    cubes: list[np.ndarray] = []
    while len(cubes) < count:
        start = [R.randint(length - SIDE + 1) for length in scan.shape]
        cube = scan[tuple(slice(first, first + SIDE) for first in start)]
        if cube.std() > 150:
            cubes.append(cube[None])
    return cubes


def test_eight_cubes_are_learned_by_heart() -> None:
    deform = RandGenesisDeform(intensity_range=(-1000, 1000), output_range=(0, 1)).set_random_state(1)
    pairs, drawn = [], []
    for cube in phantom_cubes(8):
        pairs.append([torch.from_numpy(part) for part in deform(cube)])
        drawn.append(deform.parameters)
    # every part of the chain is among the eight: rising and falling curves, shuffling, in- and out-painting
    curves = [parameters.reverse for parameters in drawn if parameters.control_points is not None]
    painted = [parameters.out_painting for parameters in drawn if parameters.boxes is not None]
    assert {True, False} <= set(curves) and {True, False} <= set(painted) and any(p.shuffle for p in drawn)
    deformed, original = (torch.stack(part) for part in zip(*pairs, strict=True))
    torch.manual_seed(0)
    network = GenesisUNet(features=(8, 16, 32))
    steps, rate = 150, 0.02
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.27)
    loss_function = RestorationLoss()
    for _ in range(steps):
        loss = loss_function(network(deformed), original)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        restored = network(deformed).sigmoid()
    # left as they are they err by 0.12, the mean of the originals by 0.038
    assert ((deformed - original) ** 2).mean() > 0.1 and ((original.mean(0) - original) ** 2).mean() > 0.03
    assert ((restored - original) ** 2).mean() < 0.001
    for one, whole in zip(restored, original, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), whole.flatten()]))[0, 1] > 0.97
