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
"""Numbers that are held at once."""


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
        self.folds: list[tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]] = []
        self.contributions = np.zeros(self.patients)
        """(P,) what each patient adds. Of a difference it is added with the other sign where the patient's cases change
        their arms: the test of Venkatraman and Begg (1996), by whole patients."""
        folds = np.unique(scores.folds)
        for fold in folds:
            members = scores.folds == fold
            positive = np.flatnonzero(members & (scores.labels == 1))
            negative = np.flatnonzero(members & (scores.labels == 0))
            if not len(positive) or not len(negative):
                raise ValueError(f"fold {fold}: expected cases of both classes for an AUC, found one class")
            first = _ranks(scores.values, members)
            wins = _wins(first[:, positive], first[:, negative])  # (S, positives, negatives)
            mixed = np.zeros(wins.shape)
            if against is not None:
                second = _ranks(against.values, members)
                other = _wins(second[:, positive], second[:, negative])
                mixed = _wins(first[:, positive], second[:, negative]) - _wins(second[:, positive], first[:, negative])
                wins = wins - other
            pairs = len(folds) * wins[0].size * 2
            self._add(positive, (wins + mixed).mean(axis=0).sum(axis=1) / pairs)
            self._add(negative, (wins - mixed).mean(axis=0).sum(axis=0) / pairs)
            self.folds.append((positive, negative, wins))

    def _add(self, cases: NDArray[np.int64], values: FloatArray) -> None:
        np.add.at(self.contributions, self.code[cases], values)

    def __call__(self, seeds: FloatArray, patients: FloatArray) -> FloatArray:
        """Give the area with weights of the seeds, (R, S), and of the patients, (R, P).

        It is the mean of the folds in which both classes have weight, and NaN where there is no such fold.
        """
        size = max(1, BLOCK // max(wins[0].size for _, _, wins in self.folds))
        blocks = [
            self._block(seeds[start : start + size], patients[start : start + size])
            for start in range(0, len(seeds), size)
        ]
        return np.concatenate(blocks)

    def _block(self, seeds: FloatArray, patients: FloatArray) -> FloatArray:
        areas = []
        share = seeds / seeds.sum(axis=1, keepdims=True)
        for positive, negative, wins in self.folds:
            p, n = patients[:, self.code[positive]], patients[:, self.code[negative]]
            together = np.tensordot(share, wins, 1)  # (R, positives, negatives)
            total = p.sum(axis=1) * n.sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                areas.append((np.matmul(together, n[:, :, None])[:, :, 0] * p).sum(axis=1) / total)
        stack = np.stack(areas)
        defined = np.isfinite(stack)  # a draw may leave a fold without a class
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(defined, stack, 0).sum(axis=0) / defined.sum(axis=0))

    @property
    def by_seed(self) -> FloatArray:
        """(S,) the area or difference of each seed."""
        return np.asarray(np.mean([wins.mean(axis=(1, 2)) for _, _, wins in self.folds], axis=0))

    @property
    def by_patient(self) -> FloatArray:
        """(P,) what each patient adds, scaled so that the mean is the difference."""
        return self.contributions * self.patients


def _ranks(values: FloatArray, members: NDArray[np.bool_]) -> FloatArray:
    """Rank the scores of a fold within each seed, so that two arms' scores can be set against each other."""
    ranks = np.zeros(values.shape)
    ranks[:, members] = rankdata(values[:, members], axis=1)
    return ranks


def _wins(positives: FloatArray, negatives: FloatArray) -> FloatArray:
    """Tell which positives are ranked above which negatives, ties counting half: (S, positives, negatives)."""
    first, second = positives[:, :, None], negatives[:, None, :]
    return np.asarray((first > second) + 0.5 * (first == second), dtype=np.float64)


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
