# SPDX-License-Identifier: Apache-2.0
"""Measure how the restoration of unseen cubes, and its polarity, depend on steps, rate, width and falling curves.

Half of the intensity curves fall, so a deformed cube may be a negative. A network that cannot tell answers with
something in between, or with the wrong sign. ``python tools/restoration_polarity.py SCAN... --test SCAN...`` trains
small networks on random cubes of the scans, and prints for the test scans' cubes the error of each kind of voxel and
the share of wrong signs (a negative correlation of restored and original over the visible voxels).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage

from models_genesis.datasets import ScanReader
from models_genesis.networks import GenesisUNet
from models_genesis.training import RestorationLoss
from models_genesis.transforms import VOXEL_KINDS, RandGenesisDeform

NdArray = np.ndarray[Any, Any]
MIN_DEVIATION = 100  # HU; cubes of air or of one tissue have no polarity


def draw_cube(scans: Sequence[NdArray], size: Sequence[int], R: np.random.RandomState) -> NdArray:
    """Draw a cube that holds more than one tissue.

    Args:
        scans: HU, each at least as large as a cube.
        size: of the cube in voxels.
        R: random state.

    Returns:
        int16 HU in [-1000, 1000], one channel.
    """
    while True:
        scan = scans[R.randint(len(scans))]
        start = [R.randint(length - side + 1) for length, side in zip(scan.shape, size, strict=True)]
        cube = scan[tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))]
        if cube.std() > MIN_DEVIATION:
            return np.ascontiguousarray(cube[None])


def draw_batch(
    scans: Sequence[NdArray], count: int, size: Sequence[int], deform: RandGenesisDeform, R: np.random.RandomState
) -> tuple[torch.Tensor, torch.Tensor, NdArray, NdArray]:
    """Draw cubes and deform them.

    Args:
        scans: see :func:`draw_cube`.
        count: of the cubes.
        size: see :func:`draw_cube`.
        deform: the deformation.
        R: random state.

    Returns:
        Deformed cubes, targets, kinds of voxels, and whether each cube's curve falls.
    """
    parts = []
    for _ in range(count):
        deformed, target = deform(draw_cube(scans, size, R))
        assert deform.parameters is not None
        falls = deform.parameters.control_points is not None and deform.parameters.reverse
        parts.append((deformed, target, deform.kinds(size), falls))
    deformed, target, kinds, falls = (np.stack(part) for part in zip(*parts, strict=True))
    return torch.from_numpy(deformed), torch.from_numpy(target), kinds, falls


def measure(network: torch.nn.Module, test: tuple[torch.Tensor, torch.Tensor, NdArray, NdArray]) -> str:
    """Restore the test cubes.

    Args:
        network: gives logits.
        test: of :func:`draw_batch`.

    Returns:
        Errors by kind, each next to that of the mean of the test originals, and shares of wrong signs.
    """
    deformed, target, kinds, falls = test
    network.eval()
    with torch.no_grad():
        device = next(network.parameters()).device
        restored = torch.cat([network(part.to(device)).sigmoid().cpu() for part in deformed.split(16)]).numpy()
    network.train()
    original = target.numpy()
    mean = original.mean(axis=0, keepdims=True)
    words = [f"all {np.mean((restored - original) ** 2):.4f}/{np.mean((mean - original) ** 2):.4f}"]
    for number, name in enumerate(VOXEL_KINDS):
        here = kinds == number
        if here.any():
            words.append(
                f"{name} {((restored - original)[here] ** 2).mean():.4f}/{((mean - original)[here] ** 2).mean():.4f}"
            )
    signs = [
        np.corrcoef(one[seen < 3], whole[seen < 3])[0, 1] < 0
        for one, whole, seen in zip(restored, original, kinds, strict=True)
    ]
    wrong = np.array(signs)
    words.append(f"wrong sign: falling {wrong[falls].mean():.2f}, others {wrong[~falls].mean():.2f}")
    return "; ".join(words)


def train(
    scans: Sequence[NdArray],
    test: tuple[torch.Tensor, torch.Tensor, NdArray, NdArray],
    options: argparse.Namespace,
    rate: float,
    features: Sequence[int],
) -> None:
    """Train a network and print what it does at 1/16, 1/4 and all of the steps.

    Args:
        scans: to train on.
        test: of :func:`draw_batch`.
        options: of the command line.
        rate: AdamW's, after a warm-up over a twentieth of the steps; it falls as a cosine.
        features: of the network.
    """
    torch.manual_seed(0)
    R = np.random.RandomState(0)
    deform = RandGenesisDeform(intensity_range=(-1000, 1000), output_range=(0, 1), reverse_prob=options.reverse)
    deform.set_random_state(1)
    network = GenesisUNet(features=tuple(features)).to(options.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, options.steps, pct_start=0.05)
    loss_function, begin = RestorationLoss(), time.monotonic()
    losses = []
    for step in range(1, options.steps + 1):
        deformed, target, *_ = draw_batch(scans, options.batch, options.size, deform, R)
        loss = loss_function(network(deformed.to(options.device)), target.to(options.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step in (options.steps // 16, options.steps // 4, options.steps):
            head = f"features {list(features)} rate {rate} falling {options.reverse} step {step}: "
            head += f"loss {np.mean(losses[-100:]):.4f}, {time.monotonic() - begin:.0f} s; "
            print(head + measure(network, test), flush=True)


def main() -> int:
    """Read the scans, train each combination of rate and width.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, help="CT to train on")
    parser.add_argument("--test", nargs="+", type=Path, required=True, help="CT of other patients")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", nargs=3, type=int, default=(32, 32, 16), help="of a cube in voxels")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.001, 0.01])
    parser.add_argument("--widths", nargs="+", type=int, default=[8], help="features of the first of three levels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reverse", type=float, default=0.5, help="share of curves that fall")
    options = parser.parse_args()
    load = LoadImage(reader=ScanReader, dtype=None, image_only=True)
    scans, test_scans = (
        [np.clip(np.asarray(load(path)), -1000, 1000).astype(np.int16) for path in paths]
        for paths in (options.scans, options.test)
    )
    deform = RandGenesisDeform(intensity_range=(-1000, 1000), output_range=(0, 1), reverse_prob=options.reverse)
    test = draw_batch(test_scans, 128, options.size, deform.set_random_state(2), np.random.RandomState(3))
    for width in options.widths:
        for rate in options.rates:
            train(scans, test, options, rate, (width, 2 * width, 4 * width))
    return 0


if __name__ == "__main__":
    sys.exit(main())
