# SPDX-License-Identifier: Apache-2.0
"""The figures of a report, as images that a page holds in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .answer import SCORE_NAMES
from .slices import Slice
from .study import Study, order

COLOURS = ("#0b6fa4", "#c8501e", "#5b8c2a", "#8a4fa3", "#7a6a3a", "#c03a6b", "#3a8f8a", "#777777")
REGION_COLOURS = ("#38d430", "#ff4d4d", "#4da3ff", "#ffb000", "#d36bff", "#00d5d5")
SIZE = (5.0, 3.6)
MOST_BARS = 500
"""Bars that a figure of this size can show."""


def embed(figure: Figure, kind: str = "svg", dpi: int = 110) -> str:
    """Write a figure as the source of an ``img``.

    Args:
        figure: the figure.
        kind: ``"svg"`` or ``"png"``.
        dpi: dots per inch of a PNG.

    Returns:
        A data URL; the same figure gives the same text.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "transfer", "font.family": "sans-serif"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_curve(study: Study, scores: Sequence[Mapping[str, Any]], kind: str) -> Figure:
    """Draw score against label count: means with intervals, single seeds as points.

    Args:
        study: the study.
        scores: see ``Analysis.score_table``.
        kind: ``"best"`` or ``"common"``.

    Returns:
        The figure.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    lines = [line for line in scores if line["rate_kind"] == kind and line["score"] is not None]
    arms = [arm for arm in study.arms if any(line["arm"] == arm for line in lines)]
    for number, arm in enumerate(arms):
        own = sorted((line for line in lines if line["arm"] == arm), key=lambda line: order(line["labels"]))
        # arms next to each other, so that their intervals can be told apart
        places = np.array([line["patients"] for line in own]) * 1.05 ** (number - (len(arms) - 1) / 2)
        means = np.array([line["score"] for line in own])
        ends = np.array(
            [[0.0 if line[end] is None else abs(line["score"] - line[end]) for line in own] for end in ("low", "high")]
        )
        colour = COLOURS[list(study.arms).index(arm) % len(COLOURS)]
        axes.errorbar(places, means, ends, color=colour, marker="o", ms=5, capsize=3, lw=1.5, label=arm)
        for place, line in zip(places, own, strict=True):
            axes.plot([place * 1.015] * len(line["by_seed"]), line["by_seed"], ".", color=colour, alpha=0.45, ms=5)
    if lines:
        axes.set_ylim(*_limits(lines))
    counts = sorted({line["patients"] for line in lines})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="labelled patients", ylabel=SCORE_NAMES.get(study.score, study.score))
    axes.grid(alpha=0.25)
    if arms:
        figure.legend(loc="outside upper center", ncols=min(3, len(arms)), fontsize=9, frameon=False)
    return figure


def _limits(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Show all seeds, and of wide intervals no more than as much again on either side."""
    seeds = [value for line in lines for value in (*line["by_seed"], line["score"])]
    span = max(max(seeds) - min(seeds), 0.02)
    lows = [line["low"] for line in lines if line["low"] is not None] + [min(seeds)]
    highs = [line["high"] for line in lines if line["high"] is not None] + [max(seeds)]
    low, high = max(min(lows), min(seeds) - span), min(max(highs), max(seeds) + span)
    return low - 0.05 * span, high + 0.05 * span


def draw_cases(study: Study, cases: Sequence[Mapping[str, Any]], labels: Any) -> Figure:
    """Draw the difference of the primary contrast for each case, in order of size; of very many at even distances.

    Args:
        study: the study.
        cases: see ``Analysis.case_table``.
        labels: the label count.

    Returns:
        The figure.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    values = np.sort([line["difference"] for line in cases if line["labels"] == labels])
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_BARS)).round().astype(int))
    colours = [COLOURS[0] if value > 0 else COLOURS[1] for value in values[places]]
    axes.bar(places, values[places], width=0.8 * len(values) / max(len(places), 1), color=colours)
    axes.axhline(0, color="#333333", lw=0.8)
    if len(values):
        axes.axhline(float(values.mean()), color="#333333", lw=1, ls="--", label=f"mean {values.mean():+.3f}")
        axes.legend(frameon=False, fontsize=9)
    what = "predicted probability" if study.score == "auc" else SCORE_NAMES.get(study.score, study.score)
    better = int((values > 0).sum())
    drawn = "" if len(places) == len(values) else f", {len(places)} of them drawn"
    axes.set(
        xlabel=f"{len(values)} cases, {better} above zero{drawn}",
        ylabel=f"{what}: {study.primary.arm}\nminus {study.primary.against}",
        title=f"{'all' if labels == 'all' else labels} labelled patients",
    )
    axes.grid(alpha=0.25, axis="y")
    return figure


def draw_dose(study: Study, lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw score against the dose of pretraining, a line for each label count.

    Args:
        study: the study.
        lines: lines of ``Analysis.dose_table`` of one kind of rate.

    Returns:
        The figure.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for number, labels in enumerate(study.labels):
        own = [line for line in lines if line["labels"] == labels]
        if not own:
            continue
        doses, means = [line["dose"] for line in own], np.array([line["score"] for line in own])
        ends = [
            [0.0 if line[end] is None else abs(line["score"] - line[end]) for line in own] for end in ("low", "high")
        ]
        name = "all labels" if labels == "all" else f"{labels} labels"
        axes.errorbar(doses, means, ends, color=COLOURS[number % len(COLOURS)], marker="o", ms=5, capsize=3, label=name)
    if lines:
        axes.set_ylim(*_limits(lines))
    smallest = min((line["dose"] for line in lines if line["dose"] > 0), default=1.0)
    axes.set_xscale("symlog", linthresh=smallest)
    doses = sorted({line["dose"] for line in lines})
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses], rotation=45)
    axes.minorticks_off()
    axes.set(xlabel="dose of pretraining (share of the budget)", ylabel=SCORE_NAMES.get(study.score, study.score))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def draw_slices(chosen: Sequence[tuple[str, Slice]], regions: Sequence[str]) -> Figure:
    """Draw slices next to each other, the label's outline solid and the prediction's dashed.

    Args:
        chosen: title and slice of each.
        regions: names of the regions.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(1.8 * len(chosen), 2.5), layout="constrained")
    for axes, (title, each) in zip(np.atleast_1d(figure.subplots(1, len(chosen))), chosen, strict=True):
        # x grows to the patient's right, which is drawn on the left
        aspect = each.sides[1] / each.sides[0]
        axes.imshow(each.image[::-1].T, cmap="gray", vmin=0, vmax=255, origin="lower", aspect=aspect)
        for style, numbers in (("solid", each.label), ("dashed", each.prediction)):
            for number in range(1, len(regions) + 1):
                mask = (numbers == number)[::-1].T
                if mask.any():
                    colour = REGION_COLOURS[(number - 1) % len(REGION_COLOURS)]
                    axes.contour(mask, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.4)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
    return figure
