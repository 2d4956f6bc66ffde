# SPDX-License-Identifier: Apache-2.0
"""The linear classifier: against scikit-learn, against all thresholds, and voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from models_genesis.training.metrics.linear_probe import best_threshold, draw_voxels, fit_probe, voxel_features


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all(seed):
    R = np.random.RandomState(seed)
    scores = R.randint(0, 12, 40) / 4.0  # with ties, which no threshold can part
    truth = R.random_sample(40) < 0.3
    truth[0] = True
    weights = R.random_sample(40) + 0.1

    def dice(threshold):
        answer = scores > threshold
        return 2 * weights[answer & truth].sum() / (weights[answer].sum() + weights[truth].sum())

    every = [dice(threshold) for threshold in [*np.unique(scores) - 0.01, scores.max() + 1]]
    assert dice(best_threshold(scores, truth, weights)) == pytest.approx(max(every))


def test_drawn_voxels_stand_for_all_of_their_class():
    labels = np.zeros((8, 9, 10), int)
    labels[:2, :2, :2] = 1  # 8 voxels, fewer than their share of the draws
    labels[4:, 4:, 4:] = 2
    inside = np.ones(labels.shape, bool)
    inside[-1] = False
    where, weights = draw_voxels(labels, inside, 90, np.random.RandomState(0))
    seen = labels[where]
    assert np.bincount(seen).tolist() == [30, 8, 30] and inside[where].all()
    assert len(set(zip(*(axis.tolist() for axis in where), strict=True))) == 68  # none twice
    for value in range(3):
        assert weights[seen == value].sum() == pytest.approx((labels[inside] == value).mean())


def test_score_maps_are_the_scores_of_the_voxels():
    R = np.random.RandomState(0)
    shape = (8, 12, 6)
    maps = [torch.from_numpy(R.standard_normal((1, count, *size))) for count, size in ((3, shape), (5, (4, 6, 3)), (2, (2, 3, 1)))]  # noqa: E501  # fmt: skip
    where = tuple(R.randint(0, side, 200) for side in shape)
    features = voxel_features(maps, where, shape)
    assert features.shape == (200, 10)
    for row, (x, y, z) in enumerate(zip(*where, strict=True)):
        expected = [
            maps[0][0, :, x, y, z],
            maps[1][0, :, x // 2, y // 2, z // 2],
            maps[2][0, :, x // 4, y // 4, z // 6],
        ]
        np.testing.assert_array_equal(features[row], torch.cat(expected).numpy())
    probe = fit_probe(features, R.random_sample((200, 2)) < 0.4, R.random_sample(200) + 0.1)
    scores = probe.score_map(maps, shape)
    assert scores.shape == (2, *shape)
    expected = features @ probe.coefficients.T + probe.offsets
    np.testing.assert_allclose(scores[(slice(None), *where)].T, expected, rtol=1e-9, atol=1e-12)


def test_it_is_ridge_regression_whatever_the_features_scale():
    R = np.random.RandomState(1)
    features, weights = R.standard_normal((300, 6)), R.random_sample(300) + 0.5
    truth = (features[:, :1] + 0.3 * R.standard_normal((300, 1))) > 0.5
    probe = fit_probe(features, truth, weights)
    scaled = fit_probe(features * np.array([1e-3, 1, 1e3, 1, 1, 7]) + 5, truth, 10 * weights)
    scores = features @ probe.coefficients.T + probe.offsets
    again = (features * np.array([1e-3, 1, 1e3, 1, 1, 7]) + 5) @ scaled.coefficients.T + scaled.offsets
    np.testing.assert_allclose(scores, again, rtol=1e-7, atol=1e-9)
    mean = np.average(features, axis=0, weights=weights)
    standard = (features - mean) / np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    ridge = Ridge(alpha=30.0).fit(standard, truth[:, 0].astype(float), sample_weight=weights * 300 / weights.sum())
    np.testing.assert_allclose(scores[:, 0], ridge.predict(standard), rtol=1e-7, atol=1e-9)


def test_constant_features_say_nothing():
    features = np.concatenate([np.random.RandomState(0).standard_normal((50, 1)), np.full((50, 2), 3.7)], axis=1)
    probe = fit_probe(features, features[:, :1] > 0, np.ones(50))
    assert np.all(probe.coefficients[:, 1:] == 0) and np.isfinite(probe.offsets).all()
    scores = features @ probe.coefficients.T + probe.offsets
    assert np.array_equal(scores > probe.thresholds, features[:, :1] > 0)
