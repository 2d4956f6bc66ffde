# SPDX-License-Identifier: Apache-2.0
"""Fewer negatives to validate on while training goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..datasets.candidates.split import CandidateSet

__all__ = ["thin_candidates"]


def thin_candidates(data: CandidateSet, negatives_per_positive: float | None = None, seed: int = 0) -> CandidateSet:
    """Keep all positives of a split and a fixed share of its negatives.

    LUNA16's validation folds have 150,000 candidates: to score them all after each epoch costs more than the epoch. The
    same negatives are kept whatever the epoch, so that epochs can be compared. The AUC's expectation stays the same;
    precision and everything else that depends on the share of positives does not.

    Args:
        data: scans and candidates of the validation split.
        negatives_per_positive: how many negatives to keep for each positive, above 0; None keeps all.
        seed: of the draw.

    Returns:
        The same table, of which other rows belong to no scan.

    Raises:
        ValueError: when there are no positives or no negatives, so that no validation could tell anything.
    """
    positives, negatives = data.positives, data.negatives
    for kind, rows in (("positive", positives), ("negative", negatives)):
        if not len(rows):
            raise ValueError(
                f"{data.name}: expected {kind} candidates to validate on, found none in {len(data.data)} scans\n"
                f"{data.table.summary()}"
            )
    if negatives_per_positive is None:
        return data
    if not 0 < negatives_per_positive < np.inf:
        raise ValueError(f"negatives_per_positive: expected a number above 0, found {negatives_per_positive}")
    count = min(max(round(len(positives) * negatives_per_positive), 1), len(negatives))
    kept = np.random.default_rng(seed).choice(negatives, count, replace=False)
    scan = np.full_like(data.scan, -1)
    chosen = np.concatenate([positives, kept])
    scan[chosen] = data.scan[chosen]
    return replace(data, scan=scan)
