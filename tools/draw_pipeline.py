# SPDX-License-Identifier: Apache-2.0
"""Draws ``docs/pipeline.png``: from a folder of scans to fine-tuned weights, with a scan of the phantom."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from models_genesis.datasets import make_phantom
from models_genesis.datasets.io.atomic_write import write_figure
from models_genesis.training.handlers.restoration_picture import middle_slice
from models_genesis.transforms import RandGenesisDeform, RandTissueCube, admissible_starts

STAGES = (
    ("folder of scans", "NIfTI, DICOM, ..."),
    ("data list", "survey: headers read,\npatients split"),
    ("cache", "decoded once,\noriented, int16 HU"),
    ("cube", "64 x 64 x 32,\nby the tissue rule"),
    ("deformed cube", "intensity, shuffling,\npainting"),
    ("network", "restores the original;\nmodel.pt, model.json"),
    ("transfer", "new head; segments\nor classifies"),
)
BLUE, GREY = "#2f6f9f", "#5a6570"


def main() -> int:
    """Draw the picture.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "pipeline.png")
    arguments = parser.parse_args()
    scan = make_phantom(3, region="chest").image[None]
    cube = np.asarray(RandTissueCube((64, 64, 32)).set_random_state(3)(scan, admissible_starts(scan, (64, 64, 32))))
    deform = RandGenesisDeform(flip_prob=0.0, intensity_range=(-1000, 1000), output_range=(0, 1)).set_random_state(12)
    deformed, original = (np.asarray(each) for each in deform(cube))
    figure = Figure(figsize=(13, 3.3), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13), ylim=(0, 3.3))
    axes.axis("off")
    width, step = 1.5, 13 / len(STAGES)
    for number, (name, note) in enumerate(STAGES):
        middle = step * (number + 0.5)
        axes.text(middle, 2.95, name, ha="center", va="center", fontsize=11, weight="bold", color=BLUE)
        axes.text(middle, 0.45, note, ha="center", va="center", fontsize=8.5, color=GREY)
        if number:
            start, end = middle - step + width / 2 + 0.03, middle - width / 2 - 0.03
            arrow = FancyArrowPatch((start, 1.8), (end, 1.8), arrowstyle="-|>", mutation_scale=13, color=GREY, lw=1.2)
            axes.add_patch(arrow)
    show(figure, 0, middle_slice(scan), (-1000, 400))
    lines = '{"training": [\n {"image": "a.nii.gz",\n  "patient": "a"},\n ...\n"validation": [...],\n"testing": [...]}'
    framed(axes, step * 1.5, lines)
    framed(axes, step * 2.5, "memory\n(half of what is free)\nor\nmemory-mapped files")
    show(figure, 3, middle_slice(original), (0, 1))
    show(figure, 4, middle_slice(deformed), (0, 1))
    unet(axes, step * 5.5)
    framed(axes, step * 6.5, "liver, nodules, tumours,\nhippocampus, ...\nnodule or not,\nembolus or not")
    write_figure(arguments.out, figure)
    return 0


def show(figure: Figure, number: int, plane: np.ndarray, limits: tuple[float, float]) -> None:
    """Show a slice in the place of a stage."""
    width = 1.5 / 13
    axes = figure.add_axes(((number + 0.5) / len(STAGES) - width / 2, 0.26, width, 0.58))
    axes.imshow(plane, cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set(xticks=[], yticks=[])


def framed(axes: Axes, middle: float, text: str) -> None:
    """Write a text in a frame."""
    axes.add_patch(FancyBboxPatch((middle - 0.75, 1.05), 1.5, 1.5, boxstyle="round,pad=0.02", fc="#f3f6f8", ec=GREY))
    axes.text(middle, 1.8, text, ha="center", va="center", fontsize=7, color="#222222", linespacing=1.35)


def unet(axes: Axes, middle: float) -> None:
    """Draw the levels of the U-Net."""
    for level, height in enumerate((1.4, 1.0, 0.6)):
        for side in (-1, 1):
            x = middle + side * (0.66 - 0.2 * level) - 0.06
            axes.add_patch(
                FancyBboxPatch((x, 1.8 - height / 2), 0.12, height, boxstyle="square,pad=0", fc=BLUE, ec="w")
            )
        axes.plot(
            [middle - 0.6 + 0.2 * level, middle + 0.6 - 0.2 * level], [1.8 + height / 2 - 0.06] * 2, ":", color=BLUE
        )
    axes.add_patch(FancyBboxPatch((middle - 0.06, 1.65), 0.12, 0.3, boxstyle="square,pad=0", fc=BLUE, ec="w"))


if __name__ == "__main__":
    raise SystemExit(main())
