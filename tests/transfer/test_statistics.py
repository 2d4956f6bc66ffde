# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from models_genesis.transfer.statistics import (
    degrees_of_freedom,
    holm,
    labels_needed,
    sign_flip_test,
    smallest_difference,
    spread_ratio,
    two_level_bootstrap,
    with_t_quantiles,
)


def test_sign_flips_are_exact_for_few_patients():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.05, 0.4])
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    expected = np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)
    assert sign_flip_test(values) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_agree_with_the_t_test_for_many_normal_values():
    values = np.random.default_rng(0).normal(0.2, 1, 200)
    expected = stats.ttest_1samp(values, 0).pvalue
    # s.d. of a p value near 0.01 from 9999 patterns: 0.001
    assert sign_flip_test(values) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [1.0], [0.5, -0.5]])
def test_no_difference_has_a_p_value_of_one(values):
    assert sign_flip_test(values) == 1.0


def test_sign_flips_hold_their_level():
    generator = np.random.default_rng(1)
    p = [sign_flip_test(generator.laplace(size=12), 200, seed) for seed in range(300)]
    # binomial(300, 0.05): mean 15, s.d. 3.8
    assert np.sum(np.array(p) <= 0.05) <= 15 + 3 * 3.8


def mean_of(values):
    def estimate(seeds, patients):
        total = np.einsum("rs,sp,rp->r", seeds, values, patients)
        return total / (seeds.sum(axis=1) * patients.sum(axis=1))

    return estimate


def test_bootstrap_of_one_seed_has_the_standard_error_of_a_mean():
    values = np.random.default_rng(2).normal(size=(1, 40))
    found = two_level_bootstrap(mean_of(values), 1, np.zeros(40, int), 20000)
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(values.std(ddof=1) / math.sqrt(40), rel=0.03)
    assert found.low < found.value < found.high


def test_bootstrap_of_three_seeds_is_not_too_narrow():
    """With n draws of three seeds the standard error would come out as 0.82 of this one."""
    seeds = np.array([[0.0], [0.3], [0.9]])
    values = np.repeat(seeds, 30, axis=1)
    found = two_level_bootstrap(mean_of(values), 3, np.zeros(30, int), 20000)
    assert found.se == pytest.approx(seeds.std(ddof=1) / math.sqrt(3), rel=0.03)


def test_intervals_of_three_seeds_hold_the_truth_as_often_as_they_say():
    generator, held, studies = np.random.default_rng(8), {"t": 0, "percentile": 0}, 300
    for _ in range(studies):
        seeds, patients = generator.normal(0, 0.03, (3, 1)), generator.normal(0, 0.04, (1, 40))
        values = seeds + patients + generator.normal(0, 0.04, (3, 40))
        found = two_level_bootstrap(mean_of(values), 3, np.zeros(40, int), 300)
        df = degrees_of_freedom(values.mean(axis=0), values.mean(axis=1))
        for name, each in (("percentile", found), ("t", with_t_quantiles(found, df))):
            held[name] += each.low <= 0 <= each.high
    # binomial(300, 0.95): mean 285, s.d. 3.8; the bootstrap is on the safe side
    assert held["t"] >= 285 - 3 * 3.8
    assert held["percentile"] < 270  # why percentiles are not taken


def test_bootstrap_draws_patients_within_their_folds():
    values = np.array([[0.0] * 10 + [1.0] * 10])
    found = two_level_bootstrap(mean_of(values), 1, np.repeat([0, 1], 10), 500)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_one_patient_has_no_interval():
    found = two_level_bootstrap(mean_of(np.array([[0.4], [0.6]])), 2, np.zeros(1, int))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_holm_as_in_the_textbook():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    p = np.random.default_rng(3).uniform(0, 0.2, 9)
    assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1].tolist())


def test_spread_ratio_has_the_interval_of_pitman_and_morgan():
    """A ratio is inside the interval where the test of equal variances, after scaling by it, does not reject."""
    generator = np.random.default_rng(4)
    a = generator.normal(size=9)
    b = 0.6 * a + generator.normal(size=9)
    found = spread_ratio(a, b)
    assert found.value == pytest.approx(a.std() / b.std())
    for end in (found.low, found.high):
        scaled = a / end
        assert stats.pearsonr(scaled + b, scaled - b).pvalue == pytest.approx(0.05, abs=1e-6)


def test_spread_ratio_covers_the_truth():
    generator, covered = np.random.default_rng(5), 0
    for _ in range(500):
        shared = generator.normal(size=6)
        found = spread_ratio(2 * (shared + generator.normal(size=6)), shared + generator.normal(size=6))
        covered += found.low <= 2 <= found.high
    # binomial(500, 0.95): mean 475, s.d. 4.9
    assert covered >= 475 - 3 * 4.9


def test_spread_ratio_without_spread_or_seeds():
    assert spread_ratio([1.0], [2.0]) is None
    assert spread_ratio([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spread_ratio([1.0, 2.0], [1.0, 3.0]).low is None


@pytest.mark.parametrize(
    ("target", "expected"), [(0.5, 10), (0.4, 10), (0.6, 20), (0.7, 40), (0.75, 40 * 4**0.5), (0.9, math.inf)]
)
def test_labels_that_a_curve_needs(target, expected):
    assert labels_needed([10, 40, 160], [0.5, 0.7, 0.8], target) == pytest.approx(expected)


def test_a_curve_that_falls_reaches_a_score_where_it_first_does():
    assert labels_needed([10, 40, 160], [0.5, 0.7, 0.6], 0.6) == pytest.approx(20)


@pytest.mark.parametrize(
    ("n", "power"),
    # examples of R's help of power.t.test: two groups of n, delta = 1, sd = 1
    [(20, 0.8689528), (22.02110, 0.90)],
)
def test_smallest_difference_as_in_the_help_of_r(n, power):
    assert smallest_difference(math.sqrt(2 / n), 2 * n - 2, power) == pytest.approx(1, abs=1e-5)


def test_smallest_difference_is_found_as_often_as_it_says():
    generator, n = np.random.default_rng(6), 20
    shift = smallest_difference(1 / math.sqrt(n), n - 1)
    p = stats.ttest_1samp(generator.normal(shift, 1, (2000, n)), 0, axis=1).pvalue
    # binomial(2000, 0.8): s.d. of the share 0.009
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)


def test_degrees_of_freedom_lie_between_those_of_the_parts():
    generator = np.random.default_rng(7)
    patients = generator.normal(size=50)
    assert degrees_of_freedom(patients, [1.0]) == pytest.approx(49)
    assert degrees_of_freedom(patients * 1e-6, [1.0, 2.0, 4.0]) == pytest.approx(2)
    assert 2 < degrees_of_freedom(patients, [0.1, 0.2, 0.4]) < 51
