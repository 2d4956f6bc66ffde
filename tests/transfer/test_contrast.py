# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from monai.metrics import compute_roc_auc
from torch import from_numpy

from models_genesis.transfer.contrast import Scores

GENERATOR = np.random.default_rng(0)
N = 60


def scores(values, labels=None, folds=None):
    patients = tuple(f"p{number // 2:02d}" for number in range(N))
    folds = np.zeros(N, int) if folds is None else folds
    seeds = tuple(range(len(values)))
    return Scores(seeds, tuple(f"c{number:02d}" for number in range(N)), patients, folds, labels, np.asarray(values))


def ones(estimator, seeds, patients=N // 2):
    return float(estimator(np.ones((1, seeds)), np.ones((1, patients)))[0])


def test_mean_difference_and_its_parts():
    first, second = scores(GENERATOR.normal(size=(3, N))), scores(GENERATOR.normal(size=(3, N)))
    estimator, expected = first.estimator(second), (first.values - second.values).mean()
    assert ones(estimator, 3) == pytest.approx(expected)
    assert estimator.contributions.sum() == pytest.approx(expected)
    assert estimator.by_seed == pytest.approx((first.values - second.values).mean(axis=1))


def test_weights_of_the_mean_are_repetitions():
    first = scores(GENERATOR.normal(size=(2, N)))
    weights = np.zeros((1, N // 2))
    weights[0, [3, 5]] = 2, 1
    cases = [6, 7, 6, 7, 10, 11]
    found = first.estimator()(np.array([[0.0, 2.0]]), weights)
    assert float(found[0]) == pytest.approx(first.values[1, cases].mean())


def auc(values, labels):
    return float(compute_roc_auc(from_numpy(np.asarray(values)), from_numpy(np.asarray(labels))))


def candidates(folds):
    labels = GENERATOR.integers(0, 2, N)
    patients = np.arange(N) // 2
    fold = patients % folds
    return labels, fold


@pytest.mark.parametrize("folds", [1, 3])
def test_area_under_the_curve_by_fold_and_seed(folds):
    labels, fold = candidates(folds)
    values = np.round(GENERATOR.normal(size=(2, N)) + labels, 1)  # with ties
    expected = [[auc(row[fold == number], labels[fold == number]) for number in range(folds)] for row in values]
    estimator = scores(values, labels, fold).estimator()
    assert ones(estimator, 2) == pytest.approx(np.mean(expected))
    assert estimator.by_seed == pytest.approx(np.mean(expected, axis=1))


def test_weights_of_the_area_are_repetitions():
    labels, fold = candidates(1)
    values = GENERATOR.normal(size=(1, N)) + labels
    weights = GENERATOR.integers(0, 3, (1, N // 2)).astype(float)
    repeated = np.repeat(np.arange(N), weights[0, np.arange(N) // 2].astype(int))
    found = scores(values, labels, fold).estimator()(np.ones((1, 1)), weights)
    assert float(found[0]) == pytest.approx(auc(values[0, repeated], labels[repeated]))


def test_exchanging_the_arms_of_patients_gives_the_sum_of_their_signed_contributions():
    """Both arms' ranks are exchanged for some patients, and the difference of the areas computed from scratch."""
    labels, fold = candidates(2)
    values = [np.stack([_ranks(row, fold) for row in GENERATOR.normal(size=(2, N)) + 0.5 * labels]) for _ in range(2)]
    estimator = scores(values[0], labels, fold).estimator(scores(values[1], labels, fold))
    signs = GENERATOR.choice([-1, 1], N // 2)
    swap = (signs < 0)[np.arange(N) // 2]
    first, second = np.where(swap, values[1], values[0]), np.where(swap, values[0], values[1])
    areas = [
        np.mean([auc(row[fold == number], labels[fold == number]) for row in arm for number in range(2)])
        for arm in (first, second)
    ]
    assert float(signs @ estimator.contributions) == pytest.approx(areas[0] - areas[1])
    assert estimator.contributions.sum() == pytest.approx(ones(estimator, 2))


def _ranks(row, fold):
    ranks = np.zeros(N)
    for number in np.unique(fold):
        ranks[fold == number] = np.argsort(np.argsort(row[fold == number])) + 1
    return ranks


def test_arms_of_other_cases_are_not_compared():
    first = scores(GENERATOR.normal(size=(2, N)))
    with pytest.raises(ValueError, match="same seeds and cases"):
        first.estimator(first.of_seeds([1]))


def test_a_fold_of_one_class_has_no_area():
    labels = np.ones(N, int)
    with pytest.raises(ValueError, match="both classes"):
        scores(GENERATOR.normal(size=(1, N)), labels).estimator()
