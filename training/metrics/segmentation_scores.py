# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface distance of one mask, and the mean of many with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

__all__ = ["EMPTY_MASKS", "BootstrapMean", "bootstrap_mean", "mask_scores"]

EMPTY_MASKS = (
    "prediction and label both empty: Dice, IoU and surface Dice 1, Hausdorff distance 0; one of them empty: Dice, IoU "
    "and surface Dice 0, Hausdorff distance undefined and left out of its mean"
)
"""What the scores of empty masks are, in words, written into each report."""


def mask_scores(prediction: Tensor, label: Tensor, spacing: Sequence[float], tolerance_mm: float) -> dict[str, float]:
    """Measure a predicted mask against the true one.

    Surface Dice and Hausdorff distance are MONAI's. The surface elements are weighted by their area
    (``use_subvoxels``), as the Medical Segmentation Decathlon does: counting voxels gives a face across thick slices as
    much weight as one along them.

    Args:
        prediction: (X, Y, Z), bool.
        label: the same shape.
        spacing: voxel sides in mm.
        tolerance_mm: how far apart the surfaces may be, in mm.

    Returns:
        ``dice``, ``iou``, ``surface_dice`` and ``hd95_mm``, the larger of the two 95th percentiles of the distances
        from one surface to the other. For empty masks see :data:`EMPTY_MASKS`.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
    prediction, label = torch.as_tensor(prediction).bool(), torch.as_tensor(label).bool()
    sizes = int(prediction.sum()), int(label.sum())
    common = int((prediction & label).sum())
    if not any(sizes):
        return {"dice": 1.0, "iou": 1.0, "surface_dice": 1.0, "hd95_mm": 0.0}
    overlap = {"dice": 2 * common / sum(sizes), "iou": common / (sum(sizes) - common)}
    if not all(sizes):
        return {**overlap, "surface_dice": 0.0, "hd95_mm": math.nan}
    found, true = (mask[None, None].float() for mask in _shared_box(prediction, label))
    sides = [float(side) for side in spacing]
    surface = compute_surface_dice(found, true, [float(tolerance_mm)], True, spacing=sides, use_subvoxels=True)
    distance = compute_hausdorff_distance(found, true, include_background=True, percentile=95, spacing=sides)
    return {**overlap, "surface_dice": float(surface), "hd95_mm": float(distance)}


def _shared_box(prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the box around both masks with a margin of background, so that a mask at the border has a surface."""
    voxels = (prediction | label).nonzero()
    low, high = voxels.amin(0).tolist(), (voxels.amax(0) + 1).tolist()
    box = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    margin = (1, 1) * prediction.ndim
    return torch.nn.functional.pad(prediction[box], margin), torch.nn.functional.pad(label[box], margin)


@dataclass(frozen=True)
class BootstrapMean:
    """A mean over cases with its 95 % confidence interval.

    Args:
        mean: the mean over the cases in which the value is defined, None where there is none.
        low: lower end of the interval, None for fewer than two cases.
        high: upper end.
        cases: number of cases in which the value is defined.
        undefined: number of the others.
    """

    mean: float | None
    low: float | None
    high: float | None
    cases: int
    undefined: int


def bootstrap_mean(values: Sequence[float], num_resamples: int = 2000, seed: int = 0) -> BootstrapMean:
    """Average over cases, with the percentile bootstrap's 95 % confidence interval of the mean.

    Args:
        values: one value a case; NaN where it is undefined.
        num_resamples: how often the cases are drawn again, with replacement.
        seed: seed of the draws.

    Returns:
        Mean and interval.

    Example:
        >>> bootstrap_mean([0.5, 0.5, float("nan")])
        BootstrapMean(mean=0.5, low=0.5, high=0.5, cases=2, undefined=1)
    """
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    undefined = len(array) - len(defined)
    if len(defined) == 0:
        return BootstrapMean(None, None, None, 0, undefined)
    mean = float(defined.mean())
    if len(defined) < 2:
        return BootstrapMean(mean, None, None, 1, undefined)
    draws = np.random.default_rng(seed).integers(len(defined), size=(num_resamples, len(defined)))
    low, high = np.percentile(defined[draws].mean(axis=1), [2.5, 97.5])
    return BootstrapMean(mean, float(low), float(high), len(defined), undefined)
