# SPDX-License-Identifier: Apache-2.0
"""Scores and differences of arms as estimates that can be weighted by patient and by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .statistics import FloatArray, Interval, degrees_of_freedom, two_level_bootstrap, with_t_quantiles

NUM_RESAMPLES = 9999
"""Bootstrap samples of an interval."""

BLOCK = 2**24
"""Numbers that are held at once where pairs are counted."""


@dataclass(frozen=True)
class Scores:
    """Scores of one arm at one label count.

    Attributes:
        seeds: (S,) the seeds of which all folds are there.
        cases: (N,) names of the cases.
        patients: (N,) their patients.
        folds: (N,) the fold whose test they are in.
        labels: (N,) classes, for AUC; None for scores that are averaged.
        values: (S, N) the scores.
    """

    seeds: tuple[int, ...]
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    values: FloatArray

    def of_seeds(self, seeds: Sequence[int]) -> Scores:
        """Take some of the seeds, in the order given."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Scores(tuple(seeds), self.cases, self.patients, self.folds, self.labels, self.values[rows])

    @property
    def names(self) -> list[str]:
        """Names of the patients, each once."""
        return sorted(set(self.patients))

    @property
    def code(self) -> NDArray[np.int64]:
        """(N,) each case's place in :attr:`names`."""
        return np.unique(np.asarray(self.patients), return_inverse=True)[1].astype(np.int64)

    @property
    def strata(self) -> NDArray[np.int64]:
        """(P,) each patient's fold."""
        strata = np.zeros(len(self.names), np.int64)
        strata[self.code] = self.folds
        return strata

    def estimator(self, against: Scores | None = None) -> MeanEstimator | AucEstimator:
        """Give the mean score or AUC, or what it exceeds another arm's by.

        Args:
            against: scores of the same seeds and cases.

        Returns:
            The estimate.

        Raises:
            ValueError: when seeds, cases or classes differ.
        """
        if against is not None:
            same = self.seeds == against.seeds and self.cases == against.cases
            classes = [np.zeros(0) if each.labels is None else each.labels for each in (self, against)]
            if not same or not np.array_equal(classes[0], classes[1]):
                raise ValueError("expected both arms' scores of the same seeds and cases, found different ones")
        if self.labels is None:
            return MeanEstimator(self.values - (0 if against is None else against.values), self.code)
        return AucEstimator(self, against)


class MeanEstimator:
    """The mean over cases and seeds.

    Args:
        values: (S, N) scores or differences.
        code: (N,) number of each case's patient.
    """

    def __init__(self, values: FloatArray, code: NDArray[np.int64]) -> None:
        patients = int(code.max()) + 1
        self.counts = np.bincount(code, minlength=patients).astype(np.float64)
        self.sums = np.stack([np.bincount(code, row, patients) for row in values])  # (S, P)

    def __call__(self, seeds: FloatArray, patients: FloatArray) -> FloatArray:
        """Average with weights of the seeds, (R, S), and of the patients, (R, P)."""
        total = ((seeds @ self.sums) * patients).sum(axis=1)
        return np.asarray(total / (seeds.sum(axis=1) * (patients @ self.counts)))

    @property
    def contributions(self) -> FloatArray:
        """(P,) what each patient adds to the mean."""
        return np.asarray(self.sums.mean(axis=0) / self.counts.sum())

    @property
    def by_seed(self) -> FloatArray:
        """(S,) the mean of each seed."""
        return np.asarray(self.sums.sum(axis=1) / self.counts.sum())

    @property
    def by_patient(self) -> FloatArray:
        """(P,) the mean of each patient."""
        return np.asarray(self.sums.mean(axis=0) / self.counts)


@dataclass(frozen=True)
class _Fold:
    """The pairs of a fold, counted by patient: patients are drawn as a whole, so that no pair need be told apart.

    Attributes:
        positive: (A,) patients that have positive cases.
        negative: (B,) patients that have negative ones.
        positives: (A,) how many each has.
        negatives: (B,) how many each has.
        wins: (S, A, B) pairs that the positive cases win, or the difference of two arms.
    """

    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    positives: FloatArray
    negatives: FloatArray
    wins: FloatArray

    def areas(self, share: FloatArray, patients: FloatArray) -> FloatArray:
        """Give the area for shares of the seeds, (R, S), and weights of the patients, (R, P); NaN without a class."""
        p, n = patients[:, self.positive], patients[:, self.negative]
        won = sum(share[:, seed] * ((p @ wins) * n).sum(axis=1) for seed, wins in enumerate(self.wins))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(won / ((p @ self.positives) * (n @ self.negatives)))

    @property
    def by_seed(self) -> FloatArray:
        """(S,) the area of each seed."""
        return np.asarray(self.wins.sum(axis=(1, 2)) / (self.positives.sum() * self.negatives.sum()))


class AucEstimator:
    """The area under the ROC curve, the mean of those of each fold and seed; or the difference of two arms'.

    A fold's models are others than the next one's, so that scores are compared within a fold only.

    Args:
        scores: the scores.
        against: those of the other arm; None for the area itself.
    """

    def __init__(self, scores: Scores, against: Scores | None = None) -> None:
        assert scores.labels is not None
        self.code = scores.code
        self.patients = len(scores.names)
        self.contributions = np.zeros(self.patients)
        """(P,) what each patient adds. Of a difference it is added with the other sign where the patient's cases change
        their arms: the test of Venkatraman and Begg (1996), by whole patients."""
        self.folds = [self._fold(scores, against, fold) for fold in np.unique(scores.folds).tolist()]
        self.contributions /= len(self.folds)

    def _fold(self, scores: Scores, against: Scores | None, fold: int) -> _Fold:
        """Reduce a fold to the wins of patients over patients, and add what its patients contribute."""
        assert scores.labels is not None
        members = scores.folds == fold
        positive = np.flatnonzero(members & (scores.labels == 1))
        negative = np.flatnonzero(members & (scores.labels == 0))
        if not len(positive) or not len(negative):
            raise ValueError(f"fold {fold}: expected cases of both classes for an AUC, found one class")
        above, rows = np.unique(self.code[positive], return_inverse=True)
        below, columns = np.unique(self.code[negative], return_inverse=True)

        def wins(high: FloatArray, low: FloatArray) -> FloatArray:
            return _wins(high[:, positive], low[:, negative], rows, columns)

        first = _ranks(scores.values, members)
        won, mixed = wins(first, first), 0.0  # (S, A, B)
        if against is not None:
            second = _ranks(against.values, members)
            won, mixed = won - wins(second, second), (wins(first, second) - wins(second, first)).mean(axis=0)
        pairs = len(positive) * len(negative) * 2
        self.contributions[above] += (won.mean(axis=0) + mixed).sum(axis=1) / pairs
        self.contributions[below] += (won.mean(axis=0) - mixed).sum(axis=0) / pairs
        return _Fold(above, below, np.bincount(rows).astype(float), np.bincount(columns).astype(float), won)

    def __call__(self, seeds: FloatArray, patients: FloatArray) -> FloatArray:
        """Give the area with weights of the seeds, (R, S), and of the patients, (R, P).

        It is the mean of the folds in which both classes have weight, and NaN where there is no such fold.
        """
        share = seeds / seeds.sum(axis=1, keepdims=True)
        areas = np.stack([fold.areas(share, patients) for fold in self.folds])
        defined = np.isfinite(areas)  # a draw may leave a fold without a class
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(defined, areas, 0).sum(axis=0) / defined.sum(axis=0))

    @property
    def by_seed(self) -> FloatArray:
        """(S,) the area or difference of each seed."""
        return np.asarray(np.mean([fold.by_seed for fold in self.folds], axis=0))

    @property
    def by_patient(self) -> FloatArray:
        """(P,) what each patient adds, scaled so that the mean is the difference."""
        return self.contributions * self.patients


def _ranks(values: FloatArray, members: NDArray[np.bool_]) -> FloatArray:
    """Rank the scores of a fold within each seed, so that two arms' scores can be set against each other."""
    ranks = np.zeros(values.shape)
    ranks[:, members] = rankdata(values[:, members], axis=1)
    return ranks


def _wins(
    positives: FloatArray, negatives: FloatArray, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> FloatArray:
    """Count the pairs that each patient's positives win over each patient's negatives, ties counting half.

    Args:
        positives: (S, N) ranks of the positive cases.
        negatives: (S, M) ranks of the negative ones.
        rows: (N,) number of each positive's patient, of A.
        columns: (M,) number of each negative's patient, of B.

    Returns:
        (S, A, B) counts.
    """
    won = np.zeros((len(positives), int(rows.max()) + 1, int(columns.max()) + 1))
    width = won.shape[2]
    parts = -(-positives.shape[1] * width // BLOCK)
    for found, high, low in zip(won, positives, negatives, strict=True):
        for part in np.array_split(np.argsort(high), parts):
            # negatives of each patient, by the first positive that beats them
            beaten = np.zeros((len(part) + 1, width))
            for side in ("left", "right"):  # one that ties with it counts half
                place = np.searchsorted(high[part], low, side)
                beaten += 0.5 * np.bincount(place * width + columns, minlength=beaten.size).reshape(beaten.shape)
            np.add.at(found, rows[part], beaten[:-1].cumsum(axis=0))
    return won


def auc_samples(undefined: int, num_resamples: int) -> str:
    """Say what became of bootstrap samples in which folds lack a class.

    Args:
        undefined: the largest number of samples that an interval leaves out.
        num_resamples: of how many.
    """
    return (
        "A bootstrap sample's AUC is the mean of the folds in which it has both classes; samples without such a fold "
        f"are left out, {undefined} of {num_resamples} where they are most."
    )


def interval_of(
    scores: Scores, against: Scores | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Give a score, or what it exceeds another one by, with its 95 % interval over patients and seeds.

    Args:
        scores: of one arm.
        against: of the other, for the same seeds and cases.
        num_resamples: bootstrap samples.
        seed: of the samples.

    Returns:
        The estimate; samples in which no fold has both classes of an AUC are left out, and counted.

    Raises:
        ValueError: when seeds, cases or classes of both differ.
    """
    estimator = scores.estimator(against)
    found = two_level_bootstrap(estimator, len(scores.seeds), scores.strata, num_resamples, seed)
    df = degrees_of_freedom(estimator.by_patient, estimator.by_seed)
    return with_t_quantiles(found, df, (0.0 if against is None else -1.0, 1.0))
