# SPDX-License-Identifier: Apache-2.0
"""A linear classifier on features: ridge regression of each class, with the threshold of the best Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LinearProbe", "best_threshold", "draw_voxels", "fit_probe", "voxel_features"]

NdArray = np.ndarray[Any, Any]


def draw_voxels(
    labels: NdArray, inside: NdArray, count: int, R: np.random.RandomState
) -> tuple[tuple[NdArray, ...], NdArray]:
    """Draw voxels of a cube, of each class as many, and the weights that make up for it.

    Args:
        labels: class of each voxel.
        inside: which voxels may be drawn.
        count: how many; rare classes may have fewer than their share.
        R: random state.

    Returns:
        Indices of the voxels; weights whose sum over a class is its share of all voxels.
    """
    flat, allowed = labels.ravel(), np.flatnonzero(inside)
    classes = np.unique(flat[allowed])
    chosen, weights = [], []
    for value in classes:
        voxels = allowed[flat[allowed] == value]
        drawn = R.permutation(voxels)[: max(count // len(classes), 1)]
        chosen.append(drawn)
        weights.append(np.full(len(drawn), len(voxels) / len(allowed) / len(drawn)))
    return np.unravel_index(np.concatenate(chosen), labels.shape), np.concatenate(weights)


def voxel_features(maps: Sequence[Tensor], where: Sequence[NdArray], shape: Sequence[int]) -> NdArray:
    """Read features at voxels; a map of lower resolution gives each the value that it lies in.

    Args:
        maps: (1, features, ...) each.
        where: indices along each axis.
        shape: of the cube in voxels.

    Returns:
        (voxels, all features), float64.
    """
    columns = []
    for single in maps:
        indices = [at * side // length for at, side, length in zip(where, single.shape[2:], shape, strict=True)]
        channels_last: NdArray = single[0].movedim(0, -1).cpu().double().numpy()
        columns.append(channels_last[tuple(indices)])
    return np.concatenate(columns, axis=1)


def best_threshold(scores: NdArray, truth: NdArray, weights: NdArray) -> float:
    """Give the threshold above which weighted samples have the best Dice.

    Args:
        scores: of each sample.
        truth: whether it is of the class.
        weights: of each sample.

    Returns:
        The threshold, in the middle between two scores.

    Example:
        >>> best_threshold(np.array([0.1, 0.4, 0.8, 0.9]), np.array([False, True, True, True]), np.ones(4))
        0.25
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    predicted = np.cumsum(weights[order])
    hits = np.cumsum(np.where(truth[order], weights[order], 0.0))
    dice = 2 * hits / (predicted + hits[-1])
    last = np.append(ranked[1:] < ranked[:-1], True)  # equal scores are on one side
    best = int(np.argmax(np.where(last, dice, -1.0)))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1.0
    return float(ranked[best] + below) / 2


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier: one score for each class.

    Args:
        coefficients: (classes, features), for the features as they are.
        offsets: (classes,).
        thresholds: (classes,), what a score must exceed.
    """

    coefficients: NdArray
    offsets: NdArray
    thresholds: NdArray

    def score_map(self, maps: Sequence[Tensor], shape: Sequence[int]) -> NdArray:
        """Score every voxel of a cube.

        Args:
            maps: (1, features, ...) each.
            shape: of the cube in voxels.

        Returns:
            (classes, *shape).
        """
        total = np.zeros((len(self.offsets), *shape)) + self.offsets.reshape(-1, *[1] * len(shape))
        first = 0
        for single in maps:
            # a linear score of a coarse map is made there, before it is spread out
            coefficients = torch.from_numpy(self.coefficients[:, first : first + single.shape[1]]).to(single)
            coarse = torch.einsum("kf,f...->k...", coefficients, single[0]).cpu().numpy()
            indices = [np.arange(length) * side // length for side, length in zip(single.shape[2:], shape, strict=True)]
            for axis, index in enumerate(indices, start=1):
                coarse = np.take(coarse, index, axis=axis)
            total += coarse
            first += single.shape[1]
        return total


def fit_probe(features: NdArray, truth: NdArray, weights: NdArray, penalty: float = 0.1) -> LinearProbe:
    """Fit ridge regressions of each class on standardised features.

    Args:
        features: (samples, features).
        truth: (samples, classes), True or False.
        weights: (samples,), any scale.
        penalty: of the ridge, times the number of samples; the standardised features have variance 1.

    Returns:
        The classifier.
    """
    from sklearn.linear_model import Ridge

    weights = weights * (len(weights) / weights.sum())
    mean = np.average(features, axis=0, weights=weights)
    deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    deviation[deviation < 1e-12 * (1 + np.abs(mean))] = np.inf  # a constant feature says nothing
    standard = (features - mean) / deviation
    ridge = Ridge(alpha=penalty * len(weights)).fit(standard, truth.astype(np.float64), sample_weight=weights)
    coefficients = np.atleast_2d(ridge.coef_) / deviation
    offsets = np.atleast_1d(ridge.intercept_) - coefficients @ mean
    scores = features @ coefficients.T + offsets
    thresholds = [best_threshold(scores[:, k], truth[:, k], weights) for k in range(truth.shape[1])]
    return LinearProbe(coefficients, offsets, np.array(thresholds))
