# SPDX-License-Identifier: Apache-2.0
"""Each curve has its own quantity on its own axis."""

from __future__ import annotations

import numpy as np

from models_genesis.training import Froc, draw_candidate_curves

CURVES = {
    "threshold": np.array([0.9, 0.6, 0.4]),
    "recall": np.array([0.5, 0.75, 1.0]),
    "false_positive_rate": np.array([0.0, 0.125, 0.25]),
    "precision": np.array([1.0, 0.875, 0.6]),
}
FROC = Froc([0.5, 1.0, 2.0], [0.3, 0.4, 0.6], [0.2, 0.25, 0.5], [0.35, 0.5, 0.7], 0.43, 0.3, 0.5, 4, 5, 1, 0)


def points(axes) -> tuple[list[float], list[float]]:
    line = axes.lines[0]
    return list(line.get_xdata()), list(line.get_ydata())


def test_each_curve_lies_on_its_axes():
    roc, recall, free = draw_candidate_curves(CURVES, FROC).axes
    assert (roc.get_xlabel(), roc.get_ylabel()) == ("false positive rate", "true positive rate")
    assert points(roc) == ([0.0, 0.0, 0.125, 0.25], [0.0, 0.5, 0.75, 1.0])
    assert (recall.get_xlabel(), recall.get_ylabel()) == ("recall", "precision")
    assert points(recall) == ([0.0, 0.5, 0.75, 1.0], [1.0, 1.0, 0.875, 0.6])
    assert (free.get_xlabel(), free.get_ylabel()) == ("false positives per scan", "sensitivity")
    assert points(free) == (FROC.rates, FROC.sensitivity)
    band = free.collections[0].get_paths()[0].vertices
    ends = {(rate, end) for ends in (FROC.low, FROC.high) for rate, end in zip(FROC.rates, ends, strict=True)}
    assert {tuple(np.round(point, 6)) for point in band} == ends


def test_undefined_curves_are_not_drawn():
    assert [len(axes.lines) for axes in draw_candidate_curves(None, None).axes] == [0, 0, 0]
