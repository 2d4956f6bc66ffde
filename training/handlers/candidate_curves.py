# SPDX-License-Identifier: Apache-2.0
"""ROC, precision-recall and free-response ROC curves side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from ..metrics.froc import FALSE_POSITIVE_RATES, Froc

__all__ = ["draw_candidate_curves", "ranking_curves"]

FloatArray = NDArray[np.float64]


def ranking_curves(scores: ArrayLike, labels: ArrayLike) -> dict[str, FloatArray]:
    """Give the points of the ROC and of the precision-recall curve, from the strictest threshold to none.

    Args:
        scores: (N,).
        labels: (N,), 0 or 1, both there.

    Returns:
        ``threshold``, ``recall`` (the true positive rate), ``false_positive_rate`` and ``precision``, a value for each
        threshold; candidates of one score share a point.

    Example:
        >>> curves = ranking_curves([0.9, 0.6, 0.4], [1, 0, 1])
        >>> curves["recall"].tolist(), curves["false_positive_rate"].tolist()
        ([0.5, 0.5, 1.0], [0.0, 1.0, 1.0])
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1
    order = np.argsort(-values, kind="stable")
    ranked, truth = values[order], truth[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(truth)[ends]
    return {
        "threshold": ranked[ends],
        "recall": hits / truth.sum(),
        "false_positive_rate": (ends + 1 - hits) / (~truth).sum(),
        "precision": hits / (ends + 1),
    }


def draw_candidate_curves(
    curves: dict[str, FloatArray] | None,
    froc: Froc | None,
    titles: Sequence[str] = ("ROC", "precision and recall", "free-response ROC"),
) -> Figure:
    """Draw the three curves.

    Args:
        curves: see :func:`ranking_curves`; None where they are undefined.
        froc: rates and sensitivities with their band, drawn as they are; None where it is undefined.
        titles: of the three panels.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    roc, recall, free = figure.subplots(1, 3)
    if curves is not None:
        start = np.zeros(1)
        roc.plot(np.append(start, curves["false_positive_rate"]), np.append(start, curves["recall"]))
        roc.plot([0, 1], [0, 1], ":", color="tab:gray")
        # precision falls between two thresholds at once, not along a line
        recall.step(np.append(start, curves["recall"]), np.append(curves["precision"][:1], curves["precision"]))
    if froc is not None:
        free.plot(froc.rates, froc.sensitivity)
        free.fill_between(froc.rates, froc.low, froc.high, alpha=0.2, lw=0, label="95 %, bootstrap over scans")
        free.legend(loc="lower right")
        free.set_xscale("log", base=2)
        free.xaxis.set_major_locator(FixedLocator(FALSE_POSITIVE_RATES))
        free.xaxis.set_minor_locator(NullLocator())
        free.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"1/{1 / rate:.0f}" if rate < 1 else f"{rate:g}"))
    names = (("false positive rate", "true positive rate"), ("recall", "precision"))
    for axes, title, (x, y) in zip(
        (roc, recall, free), titles, (*names, ("false positives per scan", "sensitivity")), strict=True
    ):
        axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    return figure
