# SPDX-License-Identifier: Apache-2.0
"""The smallest differences that a study can show: assumed before its runs, measured after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .statistics import smallest_difference
from .study import Study, StudyError
from .subsets import Cohort, choose_subset, read_cohort

SD_PATIENTS = (0.02, 0.05, 0.1)
SD_SEEDS = (0.0, 0.01, 0.02, 0.05)
AUCS = (0.7, 0.8, 0.9, 0.95)


def assumed_difference(patients: int, seeds: int, sd_patients: float, sd_seeds: float, power: float = 0.8) -> float:
    """Tell what a paired comparison of means can show, from assumed standard deviations.

    Args:
        patients: test patients.
        seeds: seeds.
        sd_patients: standard deviation, over patients, of the difference averaged over seeds.
        sd_seeds: standard deviation, over seeds, of the difference averaged over patients.
        power: probability with which it is to be found.

    Returns:
        The smallest difference.
    """
    terms = [(sd_patients**2 / patients, patients - 1), (sd_seeds**2 / seeds, seeds - 1)]
    terms = [(variance, df) for variance, df in terms if df > 0 and variance > 0]
    total = sum(variance for variance, _ in terms)
    if not terms:
        return math.nan
    df = total**2 / sum(variance**2 / df for variance, df in terms)
    return smallest_difference(math.sqrt(total), df, power)


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC by Hanley and McNeil (1982).

    Args:
        auc: the area.
        positives: number of positive cases.
        negatives: number of negative ones.

    Returns:
        The standard error.
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(variance / (positives * negatives))


def power_text(study: Study, out: Path | None = None, power: float = 0.8) -> str:
    """Write the table of ``python -m models_genesis.transfer power``.

    Args:
        study: the study.
        out: results whose measured spread is taken; None assumes standard deviations, the study's ``assumed`` ones
            (``sd_patients``, ``sd_seeds``) where it has them.
        power: probability with which a difference is to be found.

    Returns:
        The table.

    Raises:
        StudyError: when the test patients have candidates of one class.
        ValueError: when the power is not between the test's level and 1.
    """
    if not 0.05 < power < 1:
        raise ValueError(f"--power: expected a probability between 0.05 and 1, found {power}")
    cohort = read_cohort(study)
    head = f"{study.name}: smallest difference of {study.score} found with {power:.0%} probability, two-sided 5 % level"
    if out is not None:
        return "\n".join([head, *_measured(study, out, power)])
    tested = sum(len(cohort.test_patients(fold)) for fold in range(study.folds))
    head += f"; {tested} test patients, {len(study.seeds)} seeds"
    lines = _assumed_auc(study, cohort, power) if study.score == "auc" else _assumed_mean(study, tested, power)
    return "\n".join([head, *lines])


def _assumed_mean(study: Study, tested: int, power: float) -> list[str]:
    patients = study.assumed.get("sd_patients", SD_PATIENTS)
    seeds = study.assumed.get("sd_seeds", SD_SEEDS)
    lines = ["s.d. of the difference over patients (rows) and over seeds (columns)"]
    lines.append("          " + "".join(f"{sd:>9g}" for sd in seeds))
    for sd in patients:
        values = [assumed_difference(tested, len(study.seeds), sd, other, power) for other in seeds]
        lines.append(f"{sd:>9g} " + "".join(f"{value:>9.4f}" for value in values))
    return lines


def _assumed_auc(study: Study, cohort: Cohort, power: float) -> list[str]:
    positives, negatives = _tested_candidates(study, cohort)
    lines = [
        f"{positives} positive and {negatives} negative cases of the test patients (Hanley and McNeil), correlation of "
        "both arms' AUC:"
    ]
    correlations: Sequence[float] = (0.3, 0.5, 0.7)
    lines.append("AUC       " + "".join(f"{correlation:>9g}" for correlation in correlations))
    for auc in AUCS:
        error = auc_standard_error(auc, positives, negatives)
        values = [
            smallest_difference(error * math.sqrt(2 * (1 - correlation)), positives + negatives - 2, power)
            for correlation in correlations
        ]
        lines.append(f"{auc:>9g} " + "".join(f"{value:>9.4f}" for value in values))
    return lines


def _tested_candidates(study: Study, cohort: Cohort) -> tuple[int, int]:
    """Count the positive and the negative candidates that a study measures, over its folds."""
    from ..datasets.candidates.table import read_candidates

    table = read_candidates(study.dataset_dir / str(cohort.header["candidates"]), True)
    subsets = [choose_subset(study, cohort, study.labels[0], fold, study.seeds[0]) for fold in range(study.folds)]
    series = {str(entry["seriesuid"]) for subset in subsets for entry in subset.test}
    codes = [number for number, name in enumerate(table.series) if name in series]
    labels = table.label[table.good & np.isin(table.series_code, codes)]
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise StudyError(
            f"{table.path}: expected candidates of both classes of the test patients, found {positives} positive and "
            f"{negatives} negative"
        )
    return positives, negatives


def _measured(study: Study, out: Path, power: float) -> list[str]:
    from .analysis import Analysis
    from .results import Results
    from .statistics import degrees_of_freedom

    analysis = Analysis(study, Results(out), 2000)
    lines = []
    for contrast in study.contrasts:
        for labels in study.labels:
            if (pair := analysis.pair(contrast, labels, contrast.rate)) is None:
                continue
            found, estimator = analysis.interval(*pair), pair[0].estimator(pair[1])
            if found.se is None:
                continue
            df = degrees_of_freedom(estimator.by_patient, estimator.by_seed)
            size = f"{len(pair[0].names)} patients, {len(pair[0].seeds)} seeds"
            value = smallest_difference(found.se, df, power)
            lines.append(f"{contrast!s:<32} {labels!s:>5} labels, {size}: {value:.4f}")
    return lines or ["no pair of finished runs yet"]
