# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.special import expit

from models_genesis.networks.weight_container import sha256_of
from models_genesis.training import calibrated, fit_temperature, read_temperature, roc_auc_with_ci
from models_genesis.training.metrics.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    write_temperature,
)


def drawn(temperature: float, count: int = 20000, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times too large and lack ``bias``, and labels drawn by the true probabilities."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, count)
    return temperature * logits, (generator.random(count) < expit(logits + bias)).astype(int)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_it_finds_the_temperature_that_the_labels_were_drawn_with(temperature):
    """The standard error is 1 / sqrt(n E[z^2 p (1 - p)]) = 0.014 of the temperature at n = 20,000; 4 of them."""
    logits, labels = drawn(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)
    assert fitted.bias == 0 and not fitted.at_bound
    assert fitted.nll_after <= fitted.nll_before
    # 15 bins of 1,300 candidates: |observed - expected| is 0.01 a bin on average, sqrt(p (1 - p) / 1,300)
    assert fitted.ece_after < 0.02
    if temperature != 1:
        assert fitted.ece_before > 2 * fitted.ece_after


def test_it_is_the_minimum():
    logits, labels = drawn(3.0, 2000)
    best = fit_temperature(logits, labels)
    others = [negative_log_likelihood(logits, labels, t) for t in np.geomspace(0.06, 18, 200)]
    assert best.nll_after <= min(others) + 1e-12
    assert best.nll_after == pytest.approx(negative_log_likelihood(logits, labels, best.temperature))


def test_another_share_of_positives_needs_the_bias():
    """Trained on a balanced mix, met with few positives: a temperature alone can only draw towards one half."""
    logits, labels = drawn(2.0, bias=-4.0)
    alone, both = fit_temperature(logits, labels), fit_temperature(logits, labels, with_bias=True)
    assert both.temperature == pytest.approx(2.0, rel=0.1) and both.bias == pytest.approx(-4.0, abs=0.3)
    assert both.nll_after < 0.6 * alone.nll_after and both.ece_after < 0.1 * alone.ece_after


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_ranking_stays(with_bias):
    logits, labels = drawn(2.5, 3000)
    fitted = fit_temperature(logits, labels, with_bias)
    probabilities = calibrated(logits, fitted.temperature, fitted.bias)
    assert (np.argsort(probabilities, kind="stable") == np.argsort(logits, kind="stable")).all()
    assert roc_auc_with_ci(probabilities, labels).auc == roc_auc_with_ci(logits, labels).auc
    assert ((probabilities > 0) & (probabilities < 1)).all()


@pytest.mark.parametrize(("separated", "bound"), [(True, 0.05), (False, 20.0)])
def test_the_end_of_the_range_is_told(separated, bound):
    """Logits that separate the classes want a temperature of 0, logits that are wrong an infinite one."""
    labels = np.array([0, 0, 1, 1])
    fitted = fit_temperature((2.0 * labels - 1) * (1 if separated else -1), labels)
    assert fitted.at_bound and fitted.temperature == pytest.approx(bound, rel=0.01)


def test_calibration_error_by_hand():
    """Bins of a tenth: two at 0.15, one of them positive (gap 0.35 each); one at 0.95, positive (0.05)."""
    error = expected_calibration_error([0.15, 0.15, 0.95], [1, 0, 1], bins=10)
    assert error == pytest.approx((2 * 0.35 + 0.05) / 3)


def test_calibration_error_has_15_bins():
    """Two probabilities at each inner edge of a bin, of which only what lies behind it is positive."""
    edges = np.arange(1, 15) / 15
    probabilities, labels = np.concatenate([edges - 1e-3, edges + 1e-3]), np.repeat([0, 1], 14)
    # in the first bin is the upper end alone, in the last the lower; of the others each has both, whose sum is 2p - 1
    inner = np.abs(edges[:-1] + edges[1:] - 1).sum()
    expected = (inner + (edges[0] - 1e-3) + (1 - edges[-1] - 1e-3)) / 28
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    fitted = fit_temperature(np.log(probabilities / (1 - probabilities)), labels)
    assert fitted.ece_before == pytest.approx(expected)


def test_the_likelihood_of_a_huge_logit_is_finite():
    assert negative_log_likelihood([1e4, -1e4], [0, 1]) == 1e4
    assert negative_log_likelihood([1e4, -1e4], [1, 0]) == 0


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_is_refused(labels):
    with pytest.raises(ValueError, match="positives and negatives"):
        fit_temperature([0.1, 0.2], labels)


def test_the_file_next_to_the_weights(tmp_path):
    logits, labels = drawn(2.5, 1000)
    fitted = fit_temperature(logits, labels, with_bias=True)
    write_temperature(tmp_path / "temperature.json", fitted, split="validation")
    assert read_temperature("calibrated", tmp_path) == (fitted.temperature, fitted.bias)
    assert read_temperature(str(tmp_path / "temperature.json")) == (fitted.temperature, fitted.bias)
    assert json.loads((tmp_path / "temperature.json").read_text())["split"] == "validation"
    assert read_temperature(None) == (1.0, 0.0) and read_temperature(2) == (2.0, 0.0)


EDITS = {
    "another number": lambda text: text.replace('"temperature": ', '"temperature": 1'),
    "no bias": lambda text: "\n".join(line for line in text.splitlines() if '"bias"' not in line),
    "no checksum": lambda text: text.replace('"checksum"', '"check"'),
    "no JSON": lambda text: text[:-5],
    "empty": lambda text: "",
    "deep": lambda text: "[" * 200_000,
    "a list": lambda text: f"[{text}]",
    "another split": lambda text: text.replace('"validation"', '"testing"'),
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_damaged_or_edited_file_is_named(kind, tmp_path):
    path = tmp_path / "temperature.json"
    write_temperature(path, fit_temperature(*drawn(2.5, 1000), with_bias=True), split="validation")
    path.write_text(EDITS[kind](path.read_text()))
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_temperature("calibrated", tmp_path)


def test_a_temperature_of_other_weights_is_refused(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"first")
    fitted = fit_temperature(*drawn(2.5, 1000))
    write_temperature(tmp_path / "temperature.json", fitted, weights_sha256=sha256_of(weights))
    assert read_temperature("calibrated", tmp_path)[0] == fitted.temperature
    weights.write_bytes(b"other")
    with pytest.raises(ValueError, match="was fitted for other weights"):
        read_temperature("calibrated", tmp_path)


def test_a_file_of_one_s_own_needs_no_checksum(tmp_path):
    (tmp_path / "mine.json").write_text('{"temperature": 1.5}')
    assert read_temperature(str(tmp_path / "mine.json")) == (1.5, 0.0)


@pytest.mark.parametrize("value", [0, -1, math.nan, True])
def test_no_temperature(value):
    with pytest.raises(ValueError, match="--temperature"):
        read_temperature(value)
    with pytest.raises(FileNotFoundError, match=r"temperature\.json"):
        read_temperature("calibrated", "/nowhere")
