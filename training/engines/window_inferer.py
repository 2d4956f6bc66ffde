# SPDX-License-Identifier: Apache-2.0
"""Sliding windows over a scan, for networks that see cubes and for those that see slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.inferers import SliceInferer, SlidingWindowInferer

from ...transforms.cube_sampling import window_size

__all__ = ["window_inferer"]


def window_inferer(roi_size: Sequence[int], slice_axis: int | None = None, **kwargs: Any) -> SlidingWindowInferer:
    """Make the inferer that runs a network over a whole scan.

    Args:
        roi_size: size of a window in voxels; with ``slice_axis`` two sides.
        slice_axis: axis that slices stand across, see :func:`~models_genesis.transforms.window_size`; ``None`` for
            cubes.
        kwargs: further arguments of MONAI's inferer.

    Returns:
        MONAI's ``SlidingWindowInferer``, or its ``SliceInferer``, which hands the network two-dimensional windows and
        puts the slices together again.

    Raises:
        ValueError: When a slice has not two sides, or its axis is none of three.

    Example:
        >>> type(window_inferer((64, 64), slice_axis=2)).__name__
        'SliceInferer'
    """
    window_size(roi_size, slice_axis)
    if slice_axis is None:
        return SlidingWindowInferer(roi_size=roi_size, **kwargs)
    inferer = SliceInferer(spatial_dim=slice_axis, roi_size=roi_size, **kwargs)
    if inferer.roi_weight_map is not None:  # MONAI keeps that of two axes, and puts windows of three together with it
        inferer.roi_weight_map = inferer.roi_weight_map.unsqueeze(slice_axis)
    return inferer
