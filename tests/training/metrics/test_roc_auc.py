# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from models_genesis.training import roc_auc_with_ci
from models_genesis.training.handlers.candidate_curves import ranking_curves
from models_genesis.training.metrics.roc_auc import delong_variance


def test_by_hand():
    """Three of four pairs in order; precision 1 at half of the recall, 2/3 at all of it."""
    ranking = roc_auc_with_ci([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
    assert ranking.auc == 0.75
    assert ranking.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (ranking.positives, ranking.negatives) == (2, 2)


def test_ties_count_half_and_share_a_threshold():
    ranking = roc_auc_with_ci([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0])
    assert ranking.auc == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert ranking.average_precision == pytest.approx(1 / 3)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_the_order_of_the_rows_does_not_matter(order):
    scores, labels = np.array([0.5, 0.5, 0.7, 0.2])[order], np.array([1, 0, 0, 1])[order]
    assert roc_auc_with_ci(scores, labels) == roc_auc_with_ci([0.5, 0.5, 0.7, 0.2], [1, 0, 0, 1])


def test_delong_s_variance_is_that_of_the_placements():
    """Its definition by the pairs: each positive's share of negatives below it, each negative's of positives above."""
    generator = np.random.default_rng(0)
    positives, negatives = generator.integers(0, 8, 30) + 1.0, generator.integers(0, 8, 50) * 1.0
    pairs = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    expected = pairs.mean(1).var(ddof=1) / 30 + pairs.mean(0).var(ddof=1) / 50
    assert delong_variance(positives, negatives) == pytest.approx(expected)


def test_delong_s_interval_covers_as_often_as_it_says():
    """The AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602.

    Of 400 samples 95 % should cover it: a binomial standard deviation is 1.1 %, and DeLong's own error at 40 and 60
    candidates below 2 %.
    """
    generator = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(0.5))
    covered = 0
    labels = np.r_[np.ones(40, int), np.zeros(60, int)]
    for _ in range(400):
        ranking = roc_auc_with_ci(generator.normal(labels, 1), labels)
        covered += ranking.auc_low <= truth <= ranking.auc_high
    assert 0.95 - 0.055 < covered / 400 <= 0.95 + 0.045


def test_the_bootstrap_draws_whole_scans():
    """Each resample as an evaluation of its own."""
    generator = np.random.default_rng(2)
    scans = generator.integers(0, 9, 300)
    labels = generator.integers(0, 2, 300)
    scores = np.round(generator.normal(labels, 1), 1)  # with ties
    ranking = roc_auc_with_ci(scores, labels, scans, num_resamples=60, seed=3)
    draws, values = np.random.default_rng(3).integers(9, size=(60, 9)), []
    for drawn in draws:
        rows = np.concatenate([np.flatnonzero(scans == scan) for scan in drawn])
        each = roc_auc_with_ci(scores[rows], labels[rows])
        values.append((each.auc, each.average_precision))
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    assert (ranking.auc_scans_low, ranking.auc_scans_high) == pytest.approx((low[0], high[0]))
    assert (ranking.average_precision_low, ranking.average_precision_high) == pytest.approx((low[1], high[1]))


@pytest.mark.parametrize("lacking", [0, 1])
def test_resamples_without_one_of_the_classes_are_left_out(lacking):
    """Of two scans one has candidates of both classes; the other's alone, a quarter of the resamples, has one class."""
    scans = np.array([0, 0, 0, 1, 1])
    labels = np.array([1, 0, 1, 1 - lacking, 1 - lacking])
    scores = np.array([0.9, 0.5, 0.2, 0.95, 0.7])
    ranking = roc_auc_with_ci(scores, labels, scans)
    # each of the three kinds of resample comes 250 times of 1,000, or 500 times, so that the ends are the outermost
    defined = [roc_auc_with_ci(scores[rows], labels[rows]) for rows in (np.arange(3), np.arange(5))]
    areas = sorted(each.auc for each in defined)
    precisions = sorted(each.average_precision for each in defined)
    assert areas[0] < areas[1]
    assert (ranking.auc_scans_low, ranking.auc_scans_high) == pytest.approx(areas)
    assert (ranking.average_precision_low, ranking.average_precision_high) == pytest.approx(precisions)


def test_candidates_of_one_scan_make_the_interval_wider_where_scans_differ():
    """Ten scans with a shift of their own: the scans, not the candidates, are what is independent."""
    generator = np.random.default_rng(4)
    scans = np.repeat(np.arange(10), 100)
    labels = generator.integers(0, 2, 1000)
    scores = labels * generator.normal(1, 1, 10)[scans] + generator.normal(0, 0.5, 1000)
    ranking = roc_auc_with_ci(scores, labels, scans)
    assert ranking.auc_scans_high - ranking.auc_scans_low > 2 * (ranking.auc_high - ranking.auc_low)


@pytest.mark.parametrize("label", [0, 1])
def test_without_one_of_the_classes_nothing_is_defined(label):
    ranking = roc_auc_with_ci([0.1, 0.2], [label, label], [0, 1])
    assert ranking.auc is None and ranking.average_precision is None
    assert ranking.positives == 2 * label


def test_a_perfect_ranking_has_no_interval():
    ranking = roc_auc_with_ci([3, 2, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1])
    assert ranking.auc == 1 and ranking.average_precision == 1
    assert ranking.auc_low is None and ranking.auc_scans_low is None


@pytest.mark.parametrize(("scores", "labels"), [([0.1], [1, 0]), ([math.nan, 1], [1, 0]), ([0, 1], [1, 2])])
def test_what_cannot_be_ranked_is_refused(scores, labels):
    with pytest.raises(ValueError, match="expected a finite score"):
        roc_auc_with_ci(scores, labels)


def test_the_curves_hold_the_areas():
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 2, 200)
    scores = np.round(generator.normal(labels, 1), 1)
    curves = ranking_curves(scores, labels)
    ranking = roc_auc_with_ci(scores, labels)
    x, y = (np.r_[0, curves[name]] for name in ("false_positive_rate", "recall"))
    assert np.diff(x) @ (y[1:] + y[:-1]) / 2 == pytest.approx(ranking.auc)
    assert np.diff(y) @ curves["precision"] == pytest.approx(ranking.average_precision)
