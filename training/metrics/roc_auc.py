# SPDX-License-Identifier: Apache-2.0
"""How well probabilities rank candidates: area under the ROC curve and average precision, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.metrics import compute_average_precision, compute_roc_auc
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

__all__ = ["RankingMetrics", "delong_variance", "roc_auc_with_ci"]

FloatArray = NDArray[np.float64]

NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class RankingMetrics:
    """Scores of a ranking; None where they are undefined.

    Args:
        positives: number of positive candidates.
        negatives: number of negative ones.
        auc: area under the ROC curve.
        auc_low: lower end of its 95 % interval by DeLong, which takes candidates as independent.
        auc_high: upper end.
        auc_scans_low: lower end of its 95 % interval by the bootstrap over scans, whose candidates are not independent.
        auc_scans_high: upper end.
        average_precision: sum of the precision at each threshold, weighted by the gain in recall.
        average_precision_low: lower end of its 95 % interval by the bootstrap over scans.
        average_precision_high: upper end.
    """

    positives: int
    negatives: int
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_scans_low: float | None = None
    auc_scans_high: float | None = None
    average_precision: float | None = None
    average_precision_low: float | None = None
    average_precision_high: float | None = None


def roc_auc_with_ci(
    scores: ArrayLike, labels: ArrayLike, scans: ArrayLike | None = None, num_resamples: int = 1000, seed: int = 0
) -> RankingMetrics:
    """Score a ranking of candidates.

    AUC and average precision are MONAI's. DeLong's interval is formed on the logit of the AUC, so that it stays within
    [0, 1]; it is undefined for a perfect ranking, whose estimated variance is 0, and so is the bootstrap's.

    Args:
        scores: (N,), higher for more suspicious; probabilities or logits, for only their order counts.
        labels: (N,), 1 for a positive, 0 for a negative.
        scans: (N,), number of each candidate's scan; None gives no bootstrap.
        num_resamples: how often the scans are drawn again, with replacement.
        seed: of the draws.

    Returns:
        The scores; undefined where there are no positives or no negatives.

    Raises:
        ValueError: when lengths differ, a score is not finite, or a label is neither 0 nor 1.

    Example:
        >>> ranking = roc_auc_with_ci([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
        >>> ranking.auc, round(ranking.average_precision, 3)
        (0.75, 0.833)
    """
    values, truth = np.asarray(scores, dtype=np.float64).reshape(-1), np.asarray(labels).reshape(-1)
    if len(values) != len(truth) or not np.isfinite(values).all() or not np.isin(truth, (0, 1)).all():
        raise ValueError(f"expected a finite score and a label 0 or 1 for each candidate, found {values} and {truth}")
    positive = truth == 1
    counts = int(positive.sum()), int((~positive).sum())
    if not all(counts):
        return RankingMetrics(*counts)
    pair = torch.from_numpy(values), torch.from_numpy(positive.astype(np.int64))
    auc, precision = (float(np.asarray(score(*pair))) for score in (compute_roc_auc, compute_average_precision))
    low, high = _logit_interval(auc, delong_variance(values[positive], values[~positive]))
    ends: Sequence[float | None] = [None] * 4
    if scans is not None:
        ends = _over_scans(values, positive, np.asarray(scans), num_resamples, seed)
    return RankingMetrics(*counts, auc, low, high, ends[0], ends[1], precision, ends[2], ends[3])


def delong_variance(positives: FloatArray, negatives: FloatArray) -> float:
    """Estimate the variance of the AUC by DeLong's method, through midranks (Sun and Xu, 2014).

    Args:
        positives: (P,) scores of the positives.
        negatives: (N,) scores of the negatives.

    Returns:
        The variance; NaN where a class has fewer than two members.

    Example:
        >>> delong_variance(np.array([0.9, 0.4]), np.array([0.6, 0.1]))
        0.125
    """
    count = len(positives), len(negatives)
    if min(count) < 2:
        return math.nan
    together = rankdata(np.concatenate([positives, negatives]))
    # the share of the other class that each one is placed right of, ties counting half
    above = (together[: count[0]] - rankdata(positives)) / count[1]
    below = 1 - (together[count[0] :] - rankdata(negatives)) / count[0]
    return float(above.var(ddof=1) / count[0] + below.var(ddof=1) / count[1])


def _logit_interval(auc: float, variance: float) -> tuple[float | None, float | None]:
    if not 0 < auc < 1 or not variance > 0:
        return None, None
    middle, half = math.log(auc / (1 - auc)), NORMAL_975 * math.sqrt(variance) / (auc * (1 - auc))
    # tanh does not overflow where exp would
    low, high = (0.5 + 0.5 * math.tanh(end / 2) for end in (middle - half, middle + half))
    return low, high


def _over_scans(
    values: FloatArray, positive: NDArray[np.bool_], scans: NDArray, num_resamples: int, seed: int
) -> list[float | None]:
    """Give the ends of the bootstrap's intervals of AUC and average precision."""
    names, scan = np.unique(scans, return_inverse=True)
    count = len(names)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(count, size=(num_resamples, count))
    weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)  # (R, S)
    members = [scan == number for number in range(count)]
    false = [np.sort(values[member & ~positive]) for member in members]
    hits = [np.sort(values[member & positive]) for member in members]
    total = [weights @ np.array([len(each) for each in part]) for part in (hits, false)]
    area, precision = np.zeros(num_resamples), np.zeros(num_resamples)
    chosen = np.flatnonzero(positive)
    for block in np.array_split(chosen, -(-len(chosen) // 1024)):  # bounded memory for many positives
        each = weights[:, scan[block]]  # how often each positive is drawn, (R, P)
        above, at_least = (weights @ _counts(false, values[block], side) for side in ("right", "left"))
        area += (each * (total[1][:, None] - (above + at_least) / 2)).sum(axis=1)
        found = weights @ _counts(hits, values[block], "left")
        precision += (each * found / np.maximum(found + at_least, 1)).sum(axis=1)
    defined = (total[0] > 0) & (total[1] > 0)
    scores = np.stack([area / np.maximum(total[0] * total[1], 1), precision / np.maximum(total[0], 1)], 1)[defined]
    if count < 2 or len(scores) == 0 or np.ptp(scores[:, 0]) == 0:
        return [None] * 4
    return [float(end) for end in np.percentile(scores, [2.5, 97.5], axis=0).T.reshape(-1)]


def _counts(scans: list[FloatArray], thresholds: FloatArray, side: Literal["left", "right"]) -> FloatArray:
    """Count the values of each scan that are above (``right``) or not below (``left``) each threshold, (S, P)."""
    return np.stack([len(each) - np.searchsorted(each, thresholds, side) for each in scans]).astype(np.float64)
