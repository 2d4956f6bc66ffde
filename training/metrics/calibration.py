# SPDX-License-Identifier: Apache-2.0
"""One scalar, and optionally a bias, that makes probabilities honest (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from ...datasets.io.atomic_write import atomic_write
from ...datasets.io.json_file import read_json
from ...networks.weight_container import sha256_of

__all__ = [
    "TEMPERATURE_FILE",
    "Calibration",
    "calibrated",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "read_temperature",
    "write_temperature",
]

FloatArray = NDArray[np.float64]

TEMPERATURE_FILE = "temperature.json"
"""Name of the file next to ``model.pt``."""

RANGE = (0.05, 20.0)
"""Temperatures searched."""


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it does on the candidates that it was fitted on.

    Args:
        temperature: divides the logit.
        bias: is added to the divided logit; 0 where it was not fitted.
        candidates: number of candidates.
        positives: number of positive ones.
        nll_before: mean negative log-likelihood with temperature 1.
        nll_after: with the fitted one.
        ece_before: expected calibration error with temperature 1, 15 bins.
        ece_after: with the fitted one.
        at_bound: whether the search ended at an end of its range: logits that say nothing, or separate all candidates.
    """

    temperature: float
    bias: float
    candidates: int
    positives: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    at_bound: bool


def calibrated(logits: ArrayLike, temperature: float = 1.0, bias: float = 0.0) -> FloatArray:
    """Turn logits into probabilities.

    Args:
        logits: any shape.
        temperature: above 0, so that no ranking changes.
        bias: is added to the divided logit.

    Returns:
        Probabilities of the same shape, float64.

    Raises:
        ValueError: when the temperature is not above 0.

    Example:
        >>> calibrated([0.0, 2.0], temperature=2.0).round(3).tolist()
        [0.5, 0.731]
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a number above 0, found {temperature}")
    return expit(np.asarray(logits, dtype=np.float64) / temperature + bias)


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0, bias: float = 0.0) -> float:
    """Average the negative log-likelihood of the labels.

    Args:
        logits: (N,).
        labels: (N,), 0 or 1.
        temperature: above 0.
        bias: is added to the divided logit.

    Returns:
        The mean, which is finite for finite logits.

    Example:
        >>> round(negative_log_likelihood([0.0, 0.0], [1, 0]), 4)
        0.6931
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature + bias
    return float(np.mean(np.logaddexp(0, scaled) - np.asarray(labels) * scaled))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Average the gap between probability and observed share of positives over equally wide bins of probability.

    Args:
        probabilities: (N,), in [0, 1].
        labels: (N,), 0 or 1.
        bins: their number.

    Returns:
        The gap, each bin weighted by its candidates.

    Example:
        >>> expected_calibration_error([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0])
        0.0
    """
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    number = np.minimum((values * bins).astype(int), bins - 1)
    gap = np.bincount(number, values, bins) - np.bincount(number, truth, bins)
    return float(np.abs(gap).sum() / len(values))


def fit_temperature(logits: ArrayLike, labels: ArrayLike, with_bias: bool = False) -> Calibration:
    """Find the temperature of the smallest negative log-likelihood.

    The likelihood is convex in the inverse of the temperature, so the minimum is the only one. One scalar cannot make
    up for another share of positives than in training: it can only draw all probabilities towards one half. A network
    trained on a balanced mix and calibrated on candidates as a detector proposes them needs the bias too.

    Args:
        logits: (N,) of a validation fold, finite.
        labels: (N,), 0 or 1.
        with_bias: whether to fit a bias along with the temperature (Platt scaling with a positive slope).

    Returns:
        What was fitted, with likelihood and calibration error before and after.

    Raises:
        ValueError: when there are no positives or no negatives, or a logit is not finite.
    """
    values, truth = np.asarray(logits, dtype=np.float64).reshape(-1), np.asarray(labels).reshape(-1)
    positives = int((truth == 1).sum())
    if not np.isfinite(values).all() or positives in (0, len(truth)):
        raise ValueError(
            f"temperature: expected finite logits of positives and negatives, found {positives} positives among "
            f"{len(truth)} candidates"
        )
    slope, bias = _fit_alone(values, truth) if not with_bias else _fit_with_bias(values, truth)
    temperature = 1 / slope
    before = negative_log_likelihood(values, truth)
    after = negative_log_likelihood(values, truth, temperature, bias)
    if after > before:  # by the search's tolerance, where nothing need change
        temperature, bias, after = 1.0, 0.0, before
    return Calibration(
        temperature=temperature,
        bias=bias,
        candidates=len(truth),
        positives=positives,
        nll_before=before,
        nll_after=after,
        ece_before=expected_calibration_error(calibrated(values), truth),
        ece_after=expected_calibration_error(calibrated(values, temperature, bias), truth),
        at_bound=min(temperature / RANGE[0], RANGE[1] / temperature) < 1.001,
    )


def _fit_alone(values: FloatArray, truth: NDArray) -> tuple[float, float]:
    low, high = (math.log(1 / end) for end in reversed(RANGE))
    found = minimize_scalar(
        lambda slope: negative_log_likelihood(values, truth, math.exp(-slope)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(float(found.x)), 0.0


def _fit_with_bias(values: FloatArray, truth: NDArray) -> tuple[float, float]:
    def loss(slope_and_bias: FloatArray) -> tuple[float, FloatArray]:
        slope, bias = slope_and_bias
        error = expit(values * slope + bias) - truth
        gradient = np.array([np.mean(error * values), np.mean(error)])
        return negative_log_likelihood(values, truth, 1 / slope, bias), gradient

    found = minimize(
        loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(1 / RANGE[1], 1 / RANGE[0]), (-50.0, 50.0)]
    )
    return float(found.x[0]), float(found.x[1])


def write_temperature(path: str | Path, calibration: Calibration, **notes: Any) -> None:
    """Write a temperature as JSON with a checksum, whole or not at all.

    Args:
        path: the file.
        calibration: what was fitted.
        notes: further entries, such as the split; ``weights_sha256`` binds the file to these weights.
    """
    content = {**asdict(calibration), **notes}
    with atomic_write(path) as file:
        file.write(json.dumps({**content, "checksum": _checksum(content)}, indent=2).encode() + b"\n")


def read_temperature(temperature: float | str | None, ckpt_dir: str | Path = ".") -> tuple[float, float]:
    """Give what a bundle's ``--temperature`` asks for.

    Args:
        temperature: a number; ``"calibrated"`` for the file next to the weights; the path of such a file; None for 1.
        ckpt_dir: folder of the weights.

    Returns:
        Temperature and bias, the latter 0 but for a file that holds one.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a number above 0, or the file holds none, is damaged or edited, or was fitted for
            other weights than those in ``ckpt_dir``. A file of one's own, with a ``temperature`` and perhaps a ``bias``
            alone, needs no checksum.
    """
    if temperature is None:
        return 1.0, 0.0
    content: Any = {"temperature": temperature}
    if isinstance(temperature, str):
        path = Path(ckpt_dir) / TEMPERATURE_FILE if temperature == "calibrated" else Path(temperature)
        if not path.is_file():
            raise FileNotFoundError(
                f"--temperature {temperature}: expected the file {path}, found none; evaluating the validation split "
                "with --calibrate writes it"
            )
        content = _read_file(path, Path(ckpt_dir) / "model.pt")
    value, bias = content.get("temperature"), content.get("bias", 0.0)
    if not _is_number(value) or value <= 0 or not _is_number(bias):
        raise ValueError(f"--temperature {temperature}: expected a number above 0, found {value!r} (bias {bias!r})")
    return float(value), float(bias)


def _read_file(path: Path, weights: Path) -> dict[str, Any]:
    """Read a file of :func:`write_temperature`, and refuse what it never writes."""
    content = read_json(path, "a fitted temperature")
    advice = "evaluating the validation split with --calibrate writes it again"
    if "checksum" in content:
        if content["checksum"] != _checksum(content):
            raise ValueError(f"{path}: expected it as it was written, found it damaged or edited; {advice}")
    elif "nll_after" in content:
        raise ValueError(f"{path}: expected a checksum, found none: damaged, edited, or of an older version; {advice}")
    fitted = content.get("weights_sha256")
    if fitted is not None and weights.is_file() and sha256_of(weights) != fitted:
        raise ValueError(f"{path}: was fitted for other weights than {weights}; {advice}")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in content.items() if name != "checksum"}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
