# SPDX-License-Identifier: Apache-2.0
"""What a deformation did to each voxel, as a map: needed to tell errors of hidden voxels from those of visible ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["KEPT", "MAPPED", "MASKED", "PAINTED", "SHUFFLED", "VOXEL_KINDS", "inside_boxes"]

NdArray = np.ndarray[Any, Any]

VOXEL_KINDS = ("kept", "mapped", "shuffled", "painted", "masked")
"""What a voxel of a deformed image shows, by the number in a map of kinds.

- ``kept``: its own intensity;
- ``mapped``: its own intensity through the curve;
- ``shuffled``: the intensity of another voxel, through the curve or not;
- ``painted``: noise of in-painting or out-painting;
- ``masked``: what hides a patch.
"""

KEPT, MAPPED, SHUFFLED, PAINTED, MASKED = range(5)


def inside_boxes(shape: Sequence[int], boxes: NdArray) -> NdArray:
    """Mark the voxels that lie in a box.

    Args:
        shape: spatial shape in voxels.
        boxes: start and stop in voxels, (boxes, spatial axes, 2).

    Returns:
        Booleans of that shape.

    Example:
        >>> inside_boxes((4,), np.array([[[1, 3]]])).tolist()
        [False, True, True, False]
    """
    mask = np.zeros(tuple(shape), bool)
    for box in boxes.tolist():
        mask[tuple(slice(*ends) for ends in box)] = True
    return mask
