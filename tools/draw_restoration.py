# SPDX-License-Identifier: Apache-2.0
"""Draws scans as they are, deformed and restored, from what ``inference.json`` of the pretraining bundle wrote."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from models_genesis.datasets.io.atomic_write import atomic_write
from models_genesis.datasets.io.find_scans import without_suffix

ROWS = ("original", "deformed", "restored")


def main() -> int:
    """Draw the picture.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", help="the scans")
    parser.add_argument("--restored", type=Path, required=True, help="--output_dir of the inference")
    parser.add_argument("--tile", type=int, default=16, help="voxels of a deformed cube from foot to head")
    parser.add_argument("--intensity_range", type=float, nargs=2, default=(-1000, 1000), metavar=("LOW", "HIGH"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    low, high = arguments.intensity_range
    figure = Figure(figsize=(2.6 * len(arguments.images), 7.2), facecolor="white", layout="constrained")
    grid = figure.subplots(len(ROWS), len(arguments.images), squeeze=False)
    for column, image in zip(grid.T, arguments.images, strict=True):
        for axes, path in zip(column, files_of(image, arguments.restored), strict=True):
            pixels, aspect = axial_slice(path, arguments.tile)
            axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
            axes.set(xticks=[], yticks=[])
    for axes, name in zip(grid[:, 0], ROWS, strict=True):
        axes.set_ylabel(name, fontsize=12)
    write_greys(arguments.out, figure)
    print(f"written: {arguments.out}")
    return 0


def files_of(image: Path, restored: Path) -> tuple[Path, Path, Path]:
    """A scan, and what the inference wrote of it."""
    stem = without_suffix(image.name)
    return image, restored / stem / f"{stem}_deformed.nii.gz", restored / stem / f"{stem}_restored.nii.gz"


def axial_slice(path: Path, tile: int) -> tuple[np.ndarray, float]:
    """The axial slice through the middle of the tile in the middle, as rows from back to front, and its aspect."""
    scan = nib.as_closest_canonical(nib.load(path))
    starts = np.arange(0, max(scan.shape[2] - tile, 0) + 1, tile)
    number = min(int(starts[len(starts) // 2]) + tile // 2, scan.shape[2] - 1)
    across, down, _ = scan.header.get_zooms()[:3]
    return np.asarray(scan.dataobj[:, :, number], dtype=np.float32).T, float(down / across)


def write_greys(path: Path, figure: Figure) -> None:
    """Write a figure as PNG of one channel: painted noise cannot be compressed, and so it takes half of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=85)
    with atomic_write(path) as file:
        Image.open(drawn).convert("L").save(file, format="PNG", optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
