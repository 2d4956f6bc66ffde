# SPDX-License-Identifier: Apache-2.0
"""LUNA16's FROC on cases small enough to be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score

from models_genesis.training import (
    FALSE_POSITIVE_RATES,
    ScanDetections,
    compute_froc,
    froc_curve,
    match_scan_detections,
)

NODULE = [[0.0, 0, 0]]


def detections(found: list[float], false: list[float]) -> ScanDetections:
    return ScanDetections(np.array(found, dtype=float), np.array(false, dtype=float))


def test_nothing_is_ignored_repeated_or_dropped_where_nothing_is_said():
    plain = detections([0.7], [0.2])
    assert (plain.ignored, plain.repeated, plain.dropped) == (0, 0, 0)
    matched = match_scan_detections([[0, 0, 1], [0, 0, 9]], [0.7, 0.2], NODULE, [6])
    assert (matched.ignored, matched.repeated, matched.dropped) == (0, 0, 0)


@pytest.mark.parametrize(("number", "dropped"), [(99, 0), (100, 0), (101, 1), (150, 50)])
def test_the_challenge_looks_at_a_hundred_candidates_of_a_scan(number, dropped):
    scores = np.arange(number) / number
    scan = match_scan_detections(np.full((number, 3), 50.0), scores, NODULE, [6])
    assert scan.dropped == dropped
    assert scan.false_positives.tolist() == scores[dropped:].tolist()


@pytest.mark.parametrize(
    ("distance", "hit"), [(0.0, True), (2.999, True), (3.0, False), (3.001, False)], ids=["0", "below", "at", "above"]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_hit_is_nearer_than_half_the_diameter(distance, hit, axis):
    """The challenge asks for less than the radius; a candidate on the surface of the sphere is none."""
    point = np.eye(3)[axis] * distance
    scan = match_scan_detections([point], [0.5], NODULE, [6.0])
    assert (not math.isnan(scan.found[0])) == hit
    assert len(scan.false_positives) == (not hit)


def test_several_candidates_on_a_nodule_count_once_with_the_highest_probability():
    scan = match_scan_detections([[0, 0, 1], [1, 0, 0], [0, 2, 0], [9, 0, 0]], [0.3, 0.8, 0.5, 0.9], NODULE, [6])
    assert scan.found.tolist() == [0.8]
    assert scan.false_positives.tolist() == [0.9]
    assert scan.repeated == 2


def test_candidates_on_excluded_findings_are_neither():
    """A negative diameter, as most excluded findings have, stands for 10 mm."""
    excluded, diameters = [[50, 0, 0], [100, 0, 0]], [-1, 4]
    points = [[54.9, 0, 0], [55.0, 0, 0], [101.9, 0, 0], [102, 0, 0]]
    scan = match_scan_detections(points, [0.1, 0.2, 0.3, 0.4], NODULE, [6], excluded, diameters)
    assert scan.ignored == 2
    assert scan.false_positives.tolist() == [0.2, 0.4]
    assert np.isnan(scan.found).all()


def test_a_candidate_on_a_nodule_counts_though_an_excluded_finding_lies_there_too():
    scan = match_scan_detections([[0, 0, 1]], [0.7], NODULE, [6], [[0, 0, 2]], [-1])
    assert scan.found.tolist() == [0.7]
    assert scan.ignored == 0 and len(scan.false_positives) == 0


def test_a_candidate_within_two_nodules_hits_both():
    scan = match_scan_detections([[0, 0, 2]], [0.7], [[0, 0, 0], [0, 0, 4]], [6, 6])
    assert scan.found.tolist() == [0.7, 0.7]


def test_only_the_hundred_most_suspicious_candidates_of_a_scan_are_looked_at():
    """Kept is what exceeds the 101st: of 103 candidates, of which the last four are alike, 99 remain."""
    scores = np.concatenate([np.linspace(1, 0.5, 99), np.full(4, 0.4)])
    points = np.full((103, 3), 500.0)
    points[0] = points[102] = 0
    scan = match_scan_detections(points, scores, NODULE, [6])
    assert scan.dropped == 4
    assert scan.found.tolist() == [1.0] and len(scan.false_positives) == 98
    assert match_scan_detections(points, scores, NODULE, [6], max_detections=None).dropped == 0


def test_the_curve_of_a_case_by_hand():
    """Two scans, three nodules of which one has no candidate.

    Thresholds 0.9 (nodule), 0.8 (false), 0.7 (nodule and false together), 0.1 (two false): 0, 0.5, 1 and 2 false
    positives a scan at 1/3, 1/3, 2/3 and 2/3 of the nodules.
    """
    scans = [detections([0.9, math.nan], [0.8, 0.1]), detections([0.7], [0.7, 0.1])]
    rates, sensitivity, thresholds = froc_curve(scans)
    assert rates.tolist() == [0, 0, 0.5, 1, 2]
    assert sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert thresholds.tolist() == [math.inf, 0.9, 0.8, 0.7, 0.1]
    # linear between 0.5 and 1; the highest sensitivity where several points share a rate; the last one beyond the end
    froc = compute_froc(scans, rates=(0, 0.5, 0.75, 1, 2, 8), num_resamples=10)
    assert froc.sensitivity == pytest.approx([1 / 3, 1 / 3, 1 / 2, 2 / 3, 2 / 3, 2 / 3])
    # LUNA16's seven rates: 1/3 at 1/8, 1/4 and 1/2, then 2/3 four times
    assert froc.cpm == pytest.approx((3 * 1 / 3 + 4 * 2 / 3) / 7)
    assert (froc.scans, froc.lesions, froc.missed) == (2, 3, 1)


def test_extremes():
    perfect = compute_froc([detections([0.9], [0.1]), detections([], [0.2])])
    assert perfect.sensitivity == [1.0] * 7 and perfect.cpm == 1 and (perfect.cpm_low, perfect.cpm_high) == (1, 1)
    nothing = compute_froc([detections([math.nan], []), detections([math.nan], [])])
    assert nothing.sensitivity == [0.0] * 7 and nothing.cpm == 0 and nothing.missed == 2
    without_false = compute_froc([detections([0.9, math.nan], []), detections([0.3], [])])
    assert without_false.sensitivity == pytest.approx([2 / 3] * 7)
    with pytest.raises(ValueError, match="found none in 2 scans"):
        compute_froc([detections([], [0.1]), detections([], [])])


def test_only_the_order_of_the_probabilities_counts():
    generator = np.random.default_rng(0)
    logits = [detections(generator.normal(1, 1, 3), generator.normal(0, 1, 20)) for _ in range(10)]
    squashed = [ScanDetections(np.tanh(scan.found), np.tanh(scan.false_positives)) for scan in logits]
    assert compute_froc(logits, num_resamples=50) == compute_froc(squashed, num_resamples=50)


def test_bands_are_those_of_scans_drawn_anew():
    """Each resample as an evaluation of its own, scans drawn twice being two scans."""
    generator = np.random.default_rng(1)
    scans = [detections(generator.normal(1, 1, 1 + n % 3), generator.normal(0, 1, 8)) for n in range(12)]
    froc = compute_froc(scans, num_resamples=200, seed=5)
    draws, expected = np.random.default_rng(5), []
    for _ in range(200):
        rates, sensitivity, _ = froc_curve([scans[number] for number in draws.integers(12, size=12)])
        expected.append(np.interp(FALSE_POSITIVE_RATES, rates, sensitivity))
    ordered = np.sort(np.array(expected), axis=0)
    # the order statistics of the challenge's script: floor(0.025 n) and floor(0.975 n), counted from 0
    assert froc.low == pytest.approx(ordered[5].tolist()) and froc.high == pytest.approx(ordered[195].tolist())
    means = np.sort(np.mean(expected, axis=1))
    assert (froc.cpm_low, froc.cpm_high) == pytest.approx((means[5], means[195]))


def test_a_band_covers_the_true_sensitivity_about_as_often_as_it_says():
    """Of 100 samples of 40 scans 95 % should cover; 84 or fewer do with probability 3e-5 (binomial)."""
    generator = np.random.default_rng(2)

    def sample(count: int) -> list[ScanDetections]:
        return [detections(generator.normal(1.5, 1, 2), generator.normal(0, 1, 6)) for _ in range(count)]

    truth = compute_froc(sample(4000), rates=(1.0,), num_resamples=1).sensitivity[0]
    bands = [compute_froc(sample(40), rates=(1.0,), num_resamples=200, seed=n) for n in range(100)]
    assert sum(band.low[0] <= truth <= band.high[0] for band in bands) > 84


def test_resamples_without_a_lesion_are_counted_and_left_out():
    """One scan of four has the only lesion: a resample lacks it with probability (3/4)^4 = 0.316, s.d. 0.015."""
    froc = compute_froc([detections([0.9], [0.1]), *[detections([], [0.2])] * 3])
    assert froc.undefined / 1000 == pytest.approx(0.316, abs=0.06)
    assert froc.low == [1.0] * 7


@pytest.mark.parametrize(
    ("points", "scores"),
    [([[0, 0, math.nan]], [0.5]), ([[0, 0, 0]], [math.nan]), ([[0, 0, 0]], [0.1, 0.2]), ([[0, 0]], [1])],
)
def test_what_is_no_candidate_is_refused(points, scores):
    with pytest.raises(ValueError, match="expected"):
        match_scan_detections(points, scores, NODULE, [6])


def test_monai_s_curve_leaves_out_the_lowest_threshold():
    """Two nodules, each with a candidate, a false positive between: all are found at one false positive a scan."""
    points, scores = np.array([[2, 2], [7, 7], [5, 0]]), np.array([0.9, 0.3, 0.5])
    mask = np.zeros((10, 10), dtype=int)
    mask[1:4, 1:4], mask[6:9, 6:9] = 1, 2
    false, true, targets = compute_fp_tp_probs_nd(scores, points, mask)
    rates, sensitivity = compute_froc_curve_data(false, true, targets, 1)
    assert sensitivity.max() == 0.5  # the nodule of the lowest probability is missed
    mine = compute_froc(
        [match_scan_detections(np.c_[points, [0, 0, 0]], scores, [[2, 2, 0], [7, 7, 0]], [3, 3])], num_resamples=2
    )
    assert mine.sensitivity == pytest.approx([0.5, 0.5, 0.5, 1, 1, 1, 1])
    assert compute_froc_score(rates, sensitivity, FALSE_POSITIVE_RATES) == 0.5


def test_monai_s_mask_knows_one_finding_a_voxel_and_no_excluded_ones_under_a_nodule():
    """With the nodule painted first the excluded finding takes its voxel, and the hit is lost."""
    mask = np.zeros((8, 8), dtype=int)
    mask[1:6, 1:6] = 1
    mask[3:8, 3:8] = 2
    _, true, targets = compute_fp_tp_probs_nd(torch.tensor([0.7]), torch.tensor([[4, 4]]), mask, labels_to_exclude=[2])
    assert targets == 1 and true.max() == 0
    assert match_scan_detections([[4, 4, 0]], [0.7], [[3, 3, 0]], [5], [[5, 5, 0]], [5]).found.tolist() == [0.7]
