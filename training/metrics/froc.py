# SPDX-License-Identifier: Apache-2.0
"""LUNA16's free-response ROC: sensitivity against false positives per scan, with bands over scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FALSE_POSITIVE_RATES", "Froc", "ScanDetections", "compute_froc", "froc_curve", "match_scan_detections"]

FloatArray = NDArray[np.float64]

FALSE_POSITIVE_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the sensitivity; its score (CPM) is the mean of the seven."""

UNKNOWN_DIAMETER_MM = 10.0
"""The diameter that the challenge gives to findings listed with a negative one, as most of the excluded are."""


@dataclass(frozen=True)
class ScanDetections:
    """What the candidates of one scan count for.

    Args:
        found: highest probability among the candidates on each lesion, NaN for a lesion without a candidate.
        false_positives: probabilities of the candidates on nothing.
        ignored: number of candidates on excluded findings.
        repeated: number of further candidates on lesions that have one.
        dropped: number of candidates beyond the most suspicious ones that the challenge looks at.
    """

    found: FloatArray
    false_positives: FloatArray
    ignored: int = 0
    repeated: int = 0
    dropped: int = 0


def match_scan_detections(
    points: ArrayLike,
    probabilities: ArrayLike,
    lesions: ArrayLike,
    diameters_mm: ArrayLike,
    excluded: ArrayLike = (),
    excluded_diameters_mm: ArrayLike = (),
    max_detections: int | None = 100,
) -> ScanDetections:
    """Decide for the candidates of one scan which lesions they hit, as LUNA16's evaluation does.

    A candidate hits a lesion if it is nearer to its centre than half of its diameter. Several candidates on one lesion
    count once, with the highest probability; a candidate within two lesions hits both. A candidate on an excluded
    finding, and on no lesion, is ignored. All others are false positives.

    Args:
        points: (N, 3) candidates, mm.
        probabilities: (N,), finite; any score that ranks will do.
        lesions: (L, 3) centres in the same coordinates.
        diameters_mm: (L,); a negative one stands for 10 mm, as in the challenge.
        excluded: (E, 3) centres of findings that are neither lesions nor false positives.
        excluded_diameters_mm: (E,), as ``diameters_mm``.
        max_detections: the challenge looks at the 100 most suspicious candidates of a scan: where there are more, at
            those whose probability is above that of the 101st. None looks at all.

    Returns:
        What they count for.

    Raises:
        ValueError: when shapes differ or a value is not finite.

    Example:
        >>> match_scan_detections([[0, 0, 1], [0, 0, 2], [0, 0, 9]], [0.4, 0.7, 0.2], [[0, 0, 0]], [6])
        ScanDetections(found=array([0.7]), false_positives=array([0.2]), ignored=0, repeated=1, dropped=0)
    """
    where, scores = _points("points", points), np.asarray(probabilities, dtype=np.float64).reshape(-1)
    if len(where) != len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"expected a finite probability for each of {len(where)} points, found {scores}")
    shown = np.ones(len(scores), dtype=bool)
    if max_detections is not None and len(scores) > max_detections:
        shown = scores > np.sort(scores)[::-1][max_detections]
    where, scores = where[shown], scores[shown]
    hits = _hits(where, lesions, diameters_mm)
    on_lesion, on_excluded = hits.any(axis=1), _hits(where, excluded, excluded_diameters_mm).any(axis=1)
    found = np.where(hits, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    return ScanDetections(
        found=np.where(hits.any(axis=0), found, np.nan),
        false_positives=scores[~on_lesion & ~on_excluded],
        ignored=int((on_excluded & ~on_lesion).sum()),
        repeated=int(np.maximum(hits.sum(axis=0) - 1, 0).sum()),
        dropped=int((~shown).sum()),
    )


def _points(name: str, value: ArrayLike) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    array = array.reshape(0, 3) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite coordinates of shape (N, 3), found {array.shape}")
    return array


def _hits(points: FloatArray, centers: ArrayLike, diameters_mm: ArrayLike) -> NDArray[np.bool_]:
    """Tell which point lies within which sphere, (N, L)."""
    middle, diameters = _points("centres", centers), np.asarray(diameters_mm, dtype=np.float64).reshape(-1)
    if len(middle) != len(diameters):
        raise ValueError(f"expected a diameter for each of {len(middle)} centres, found {len(diameters)}")
    radius = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters) / 2
    squared = ((points[:, None] - middle[None]) ** 2).sum(axis=2)
    return np.asarray(squared < radius**2)


class _Ranked:
    """Detections of all scans in falling order of probability, so that a resample of scans is a matter of weights."""

    def __init__(self, scans: Sequence[ScanDetections]) -> None:
        number = np.arange(len(scans))
        found = [scan.found[~np.isnan(scan.found)] for scan in scans]
        false = [scan.false_positives for scan in scans]
        scores = np.concatenate([*found, *false]) if scans else np.zeros(0)
        order = np.argsort(-scores, kind="stable")
        self.scan = np.concatenate([np.repeat(number, [len(x) for x in part]) for part in (found, false)])[order]
        self.is_lesion = (np.arange(len(scores)) < sum(map(len, found)))[order]
        self.lesions = np.array([len(scan.found) for scan in scans], dtype=np.float64)
        ranked = scores[order]
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, int)
        self.thresholds = ranked[self.ends]

    def curve(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Give false positives per scan and sensitivity at each threshold, where each scan counts ``weights`` times."""
        each = weights[self.scan]
        hit, false = (np.cumsum(np.where(which, each, 0))[self.ends] for which in (self.is_lesion, ~self.is_lesion))
        total = float(weights @ self.lesions)
        share = hit / total if total > 0 else np.full(len(hit), np.nan)
        zero = np.zeros(1)
        return np.concatenate([zero, false / weights.sum()]), np.concatenate([zero, share])


def froc_curve(scans: Sequence[ScanDetections]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give the points of the curve, from the strictest threshold to none.

    Args:
        scans: all scans, those without lesions or candidates too.

    Returns:
        False positives per scan, sensitivity and threshold of each point; the first is (0, 0, infinity). Lesions
        without a candidate count in the sensitivity's denominator, so it need not reach 1.

    Raises:
        ValueError: when there is no scan or no lesion.

    Example:
        >>> detections = match_scan_detections([[0, 0, 1], [0, 0, 9]], [0.4, 0.7], [[0, 0, 0], [50, 0, 0]], [6, 6])
        >>> [column.tolist() for column in froc_curve([detections])]
        [[0.0, 1.0, 1.0], [0.0, 0.0, 0.5], [inf, 0.7, 0.4]]
    """
    ranked = _ranked(scans)
    rates, sensitivity = ranked.curve(np.ones(len(scans)))
    return rates, sensitivity, np.concatenate([[np.inf], ranked.thresholds])


def _ranked(scans: Sequence[ScanDetections]) -> _Ranked:
    if not any(len(scan.found) for scan in scans):
        raise ValueError(f"FROC: expected lesions, found none in {len(scans)} scans")
    return _Ranked(scans)


@dataclass(frozen=True)
class Froc:
    """Sensitivity at given rates of false positives, and their mean, with 95 % bands over scans.

    Args:
        rates: false positives per scan.
        sensitivity: at each rate, linear between the points of the curve.
        low: lower end of the band at each rate.
        high: upper end.
        cpm: mean sensitivity at LUNA16's seven rates, its "competition performance metric".
        cpm_low: lower end of its band.
        cpm_high: upper end.
        scans: number of scans.
        lesions: number of lesions.
        missed: number of lesions without a candidate.
        undefined: number of resamples without a lesion, left out of the bands.
    """

    rates: list[float]
    sensitivity: list[float]
    low: list[float]
    high: list[float]
    cpm: float
    cpm_low: float
    cpm_high: float
    scans: int
    lesions: int
    missed: int
    undefined: int


def compute_froc(
    scans: Sequence[ScanDetections],
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Froc:
    """Compute the free-response ROC as LUNA16 does, with percentile bootstrap bands over scans.

    MONAI's ``compute_froc_curve_data`` leaves out the lowest threshold, knows no bands, and gets its hits from a mask
    of labels, where a point lies on one finding at most.

    Args:
        scans: see :func:`froc_curve`.
        rates: false positives per scan at which to read the curve.
        num_resamples: how often the scans are drawn again, with replacement; the challenge draws 1,000 times.
        seed: of the draws.

    Returns:
        Sensitivities, their mean, and bands.

    Raises:
        ValueError: when there is no scan or no lesion.
    """
    ranked = _ranked(scans)
    wanted = np.concatenate([np.asarray(rates, dtype=np.float64), FALSE_POSITIVE_RATES])
    number = len(scans)
    values = np.interp(wanted, *ranked.curve(np.ones(number)))
    generator = np.random.default_rng(seed)
    drawn = np.empty((num_resamples, len(wanted)))
    for row in drawn:
        weights = np.bincount(generator.integers(number, size=number), minlength=number).astype(np.float64)
        row[:] = np.interp(wanted, *ranked.curve(weights))
    defined = drawn[~np.isnan(drawn).any(axis=1)]
    # "higher" is the order statistic that the challenge takes: the 26th and the 976th of 1,000
    low, high = np.quantile(defined, [0.025, 0.975], axis=0, method="higher")
    ends = np.quantile(defined[:, len(rates) :].mean(axis=1), [0.025, 0.975], method="higher")
    found = np.concatenate([scan.found for scan in scans])
    return Froc(
        rates=[float(rate) for rate in rates],
        sensitivity=values[: len(rates)].tolist(),
        low=low[: len(rates)].tolist(),
        high=high[: len(rates)].tolist(),
        cpm=float(values[len(rates) :].mean()),
        cpm_low=float(ends[0]),
        cpm_high=float(ends[1]),
        scans=number,
        lesions=len(found),
        missed=int(np.isnan(found).sum()),
        undefined=int(num_resamples - len(defined)),
    )
