# SPDX-License-Identifier: Apache-2.0
"""``tools/draw_evidence.py``: the picture of the evidence shows the results as they are."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("draw_evidence")


def test_the_picture_was_drawn_from_the_results_that_are_there(tool):
    results = ROOT / "docs" / "evidence" / "results"
    drawn = json.loads(Image.open(ROOT / "docs" / "evidence.png").text["Description"])
    assert drawn == [tool.contrast_of(row, results) for rows in tool.GROUPS.values() for row in rows], (
        "python tools/draw_evidence.py draws it again"
    )


def test_a_contrast_that_is_not_there_is_refused(tool):
    with pytest.raises(ValueError, match=r"contrasts\.csv: expected one line .*'labels': '7'.*found 0"):
        tool.contrast_of(tool.Row("task", "7", "nodules_rates"), ROOT / "docs" / "evidence" / "results")


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(0.01, 0.03, True), (-0.03, -0.01, True), (-0.01, 0.03, False), (0.0, 0.1, False)]
)
def test_only_an_interval_without_zero_is_drawn_as_shown(tool, low, high, shown):
    axes = Figure().add_subplot()
    contrast = {"difference": (low + high) / 2, "low": low, "high": high, "seeds": 3.0, "patients": 40.0}
    tool.draw_row(axes, 0, tool.Row("task", "5", "study"), contrast)
    assert {line.get_color() for line in axes.lines} == {tool.SHOWN if shown else tool.NOT_SHOWN}
    assert list(axes.lines[0].get_xdata()) == [low, high]


def test_an_interval_beyond_the_axis_ends_in_arrows_there(tool):
    axes = Figure().add_subplot()
    contrast = {"difference": 0.09, "low": -0.5, "high": 0.6, "seeds": 3.0, "patients": 40.0}
    tool.draw_row(axes, 0, tool.Row("task", "5", "study"), contrast)
    assert list(axes.lines[0].get_xdata()) == [-tool.LIMIT, tool.LIMIT]
    assert [(line.get_xdata()[0], line.get_marker()) for line in axes.lines[1:3]] == [
        (-tool.LIMIT, "<"),
        (tool.LIMIT, ">"),
    ]
