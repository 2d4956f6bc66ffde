# SPDX-License-Identifier: Apache-2.0
"""The deformations as their specification reads, in plain numpy: what the others are measured against.

Written from the published description, without any trick: 10,000 blocks one after another, a curve of 100,000 points
that is looked up for every voxel, noise for a whole cube. Numbers that numpy draws at once are drawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Drawn", "deform", "map_intensity", "paint", "shuffle"]

NdArray = np.ndarray[Any, Any]
Drawn = Any  # models_genesis.transforms.GenesisParameters


def shuffle(image: NdArray, R: np.random.Generator, num_blocks: int = 10_000) -> NdArray:
    """Shuffle blocks one after another, each read from the undeformed image.

    Args:
        image: (x, y, z).
        R: source of all draws.
        num_blocks: how many.

    Returns:
        A new image.
    """
    sizes = np.array(image.shape)
    sides = R.integers(1, np.maximum(sizes // 10, 1), size=(num_blocks, 3), endpoint=True)
    starts = R.integers(0, sizes - sides, endpoint=True)
    shuffled = image.copy()
    for (x, y, z), (u, v, w) in zip(starts.tolist(), (starts + sides).tolist(), strict=True):
        block = image[x:u, y:v, z:w]
        shuffled[x:u, y:v, z:w] = R.permutation(block.ravel()).reshape(block.shape)
    return shuffled


def map_intensity(image: NdArray, control_points: Sequence[Sequence[float]], falls: bool) -> NdArray:
    """Map [0, 1] along a cubic Bezier curve of 100,000 points.

    Args:
        image: any shape.
        control_points: the two inner points.
        falls: whether the curve goes from 1 to 0.

    Returns:
        A new image.
    """
    t = np.linspace(0.0, 1.0, 100_000)
    points = np.array([(0.0, 0.0), *control_points, (1.0, 1.0)])
    weights = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = points.T @ weights
    return np.interp(image, x, 1 - y if falls else y)


def paint(image: NdArray, boxes: NdArray, outside: bool, R: np.random.Generator) -> NdArray:
    """Fill boxes with noise, or all but the boxes.

    Args:
        image: (x, y, z).
        boxes: start and stop of each box (boxes, 3, 2).
        outside: whether the boxes are spared.
        R: source of the noise.

    Returns:
        A new image.
    """
    painted: NdArray = np.asarray(R.random(image.shape)) if outside else image.copy()
    for (x, u), (y, v), (z, w) in boxes.tolist():
        painted[x:u, y:v, z:w] = image[x:u, y:v, z:w] if outside else R.random((u - x, v - y, w - z))
    return painted


def deform(image: NdArray, drawn: Drawn, R: np.random.Generator) -> tuple[NdArray, NdArray]:
    """Run the whole chain on HU.

    Args:
        image: (x, y, z) in HU.
        drawn: which parts happen, and their control points and boxes.
        R: source of all other draws.

    Returns:
        The deformed image and its target, in [0, 1].
    """
    unit = (np.clip(image, -1000, 1000) + 1000.0) / 2000.0
    for axis, reverse in enumerate(drawn.flips):
        if reverse:
            unit = np.flip(unit, axis)
    target = unit.copy()
    deformed = shuffle(target, R) if drawn.shuffle else target.copy()
    if drawn.control_points is not None:
        deformed = map_intensity(deformed, drawn.control_points, drawn.reverse)
    if drawn.boxes is not None:
        deformed = paint(deformed, drawn.boxes, drawn.out_painting, R)
    return deformed, target
