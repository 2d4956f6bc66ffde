# SPDX-License-Identifier: Apache-2.0
"""Draws ``docs/deformations.png``: one cube of the phantom under each deformation and under the whole chain."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from models_genesis.datasets import make_phantom
from models_genesis.datasets.io.atomic_write import write_figure
from models_genesis.training.handlers.restoration_picture import middle_slice
from models_genesis.transforms import RandGenesisDeform, RandTissueCube, admissible_starts

COLUMNS: dict[str, dict[str, float]] = {
    "non-linear intensity": {"nonlinear_prob": 1.0},
    "local pixel shuffling": {"shuffle_prob": 1.0},
    "in-painting": {"paint_prob": 1.0, "out_paint_prob": 0.0},
    "out-painting": {"paint_prob": 1.0, "out_paint_prob": 1.0},
}


def main() -> int:
    """Draw the picture.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "deformations.png")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    scan = make_phantom(arguments.seed, region="chest").image[None]
    starts = admissible_starts(scan, (64, 64, 32))
    cut = RandTissueCube((64, 64, 32)).set_random_state(arguments.seed)
    cubes = [np.asarray(cut(scan, starts)) for _ in range(3)]
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.subplots(len(cubes), len(COLUMNS) + 2)
    for line, cube in enumerate(cubes):
        seed = arguments.seed + 10 * line
        pictures = {"original": np.clip((cube + 1000.0) / 2000, 0, 1)}
        for number, (name, rates) in enumerate(COLUMNS.items()):
            pictures[name] = deform(cube, "autoencoder", seed + number, **rates)
        pictures["all, by the paper's rates"] = deform(cube, "genesis", seed + 9)
        for axis, (name, picture) in zip(axes[line], pictures.items(), strict=True):
            axis.imshow(middle_slice(picture), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if line == 0:
                axis.set_title(name, fontsize=9)
    write_figure(arguments.out, figure)
    return 0


def deform(cube: np.ndarray, variant: str, seed: int, **rates: float) -> np.ndarray:
    """Deform a cube without flipping it, so that the pictures of a row can be compared."""
    chain = RandGenesisDeform(variant, flip_prob=0.0, intensity_range=(-1000, 1000), output_range=(0, 1), **rates)
    return np.asarray(chain.set_random_state(seed)(cube)[0])


if __name__ == "__main__":
    sys.exit(main())
