# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from monai.metrics import compute_roc_auc
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import from_numpy

from models_genesis.transfer import contrast
from models_genesis.transfer.contrast import Scores, interval_of
from models_genesis.transfer.statistics import two_level_bootstrap

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


def weighted_auc(values, labels, weights):
    return roc_auc_score(labels, values, sample_weight=weights)


@pytest.mark.parametrize("block", [contrast.BLOCK, 7])
@pytest.mark.parametrize("folds", [1, 3])
def test_draws_are_the_weighted_areas_of_sklearn(folds, block, monkeypatch):
    """For any weights of patients and seeds, with ties, and however many parts the positives are counted in."""
    monkeypatch.setattr(contrast, "BLOCK", block)
    generator = np.random.default_rng(folds)
    labels, patient = generator.integers(0, 2, N), np.arange(N) // 2
    fold = patient % folds
    arms = [np.round(generator.normal(size=(3, N)) + labels, 1) for _ in range(2)]
    assert len(np.unique(arms[0][0])) < 0.7 * N
    seeds, patients = generator.uniform(size=(5, 3)), generator.uniform(size=(5, N // 2))
    areas = np.array(
        [
            [
                [weighted_auc(row[fold == n], labels[fold == n], drawn[patient[fold == n]]) for n in range(folds)]
                for row in arm
            ]
            for arm in arms
            for drawn in patients
        ]
    ).reshape(2, 5, 3, folds)
    share = seeds / seeds.sum(axis=1, keepdims=True)
    expected = np.einsum("arsf,rs->ar", areas, share) / folds
    first, second = (scores(arm, labels, fold) for arm in arms)
    np.testing.assert_allclose(first.estimator()(seeds, patients), expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(first.estimator(second)(seeds, patients), expected[0] - expected[1], rtol=0, atol=1e-13)


def test_contributions_are_sums_over_all_pairs():
    """Against the definition, pair by pair: what a pair adds is shared by its two patients."""
    generator = np.random.default_rng(5)
    labels, patient = generator.integers(0, 2, N), np.arange(N) // 2
    first, second = (np.round(generator.normal(size=N) + labels, 1) for _ in range(2))
    ranks = [rankdata(values) for values in (first, second)]
    expected = np.zeros(N // 2)
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            won = [[(a[i] > b[j]) + 0.5 * (a[i] == b[j]) for b in ranks] for a in ranks]
            expected[patient[i]] += (won[0][0] - won[1][1]) + (won[0][1] - won[1][0])
            expected[patient[j]] += (won[0][0] - won[1][1]) - (won[0][1] - won[1][0])
    expected /= 2 * labels.sum() * (N - labels.sum())
    found = scores([first], labels).estimator(scores([second], labels)).contributions
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_candidates_by_the_hundred_thousand_take_the_memory_of_their_patients():
    """LUNA16's size: 467 positives and 226,000 negatives have 106 million pairs a seed, 0.8 GiB of them as numbers."""
    generator, patients, positives, negatives = np.random.default_rng(0), 266, 467, 226_000
    count = positives + negatives
    labels = (np.arange(count) < positives).astype(int)
    names = tuple(f"p{number % patients:03d}" for number in range(count))
    cases = tuple(map(str, range(count)))
    first, second = (
        Scores((0,), cases, names, np.zeros(count, int), labels, generator.normal(size=(1, count)) + labels)
        for _ in range(2)
    )
    tracemalloc.start()
    estimator = first.estimator(second)
    drawn = estimator(np.ones((999, 1)), generator.uniform(size=(999, patients)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert drawn.shape == (999,)
    found = ones(estimator, 1, patients)
    assert found == pytest.approx(np.subtract(*(roc_auc_score(labels, arm.values[0]) for arm in (first, second))))


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


def few_positives(seeds=3, patients=20, positives=3):
    """One case of each patient, three of them positive, in one fold."""
    labels = (np.arange(patients) < positives).astype(int)
    values = np.random.default_rng(3).normal(size=(seeds, patients)) + 1.5 * labels
    names = tuple(f"p{number:02d}" for number in range(patients))
    return Scores(tuple(range(seeds)), names, names, np.zeros(patients, int), labels, values)


def test_a_draw_without_one_of_the_classes_has_no_area():
    scored = few_positives()
    weights = np.ones((3, 20))
    weights[0, :3] = 0
    weights[1, 3:] = 0
    found = scored.estimator()(np.ones((3, 3)), weights)
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(np.mean([auc(row, scored.labels) for row in scored.values]))


def test_a_fold_without_a_class_leaves_the_mean_to_the_others():
    labels, fold = candidates(2)
    values, weights = GENERATOR.normal(size=(1, N)), np.ones((1, N // 2))
    weights[0, np.arange(N)[(fold == 0) & (labels == 1)] // 2] = 0  # patients lie in one fold
    found = scores(values, labels, fold).estimator()(np.ones((1, 1)), weights)
    assert float(found[0]) == pytest.approx(auc(values[0, fold == 1], labels[fold == 1]))


def test_draws_without_positives_are_left_out_of_the_interval_and_counted():
    """Of 20 patients 19 are drawn, so that (17 / 20) ** 19 of the draws have none of the 3 with a positive case."""
    scored, draws = few_positives(), []
    estimator = scored.estimator()

    def kept(seeds, patients):
        draws.append((estimator(seeds, patients), patients[:, :3].sum(axis=1) > 0))
        return draws[-1][0]

    found = two_level_bootstrap(kept, 3, scored.strata, 4000)
    values, defined = draws[-1]
    expected = (17 / 20) ** 19
    assert abs(found.undefined / 4000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
    assert found.undefined == (~defined).sum()
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values[defined], [2.5, 97.5])))
    assert found.se == pytest.approx(values[defined].std(ddof=1))
    assert interval_of(scored, None, 4000).undefined == found.undefined
