# SPDX-License-Identifier: Apache-2.0
"""The history's times are those that its epochs took, and each of its curves has the axis of its quantity."""

from __future__ import annotations

import csv
import logging
import time

from ignite.engine import Events

from models_genesis.training.handlers.history import draw_history


def test_seconds_speed_and_time_left(make_run, tmp_path, monkeypatch, caplog):
    clock = [1000.0]
    run = make_run(epochs=3)  # 8 cubes in batches of 4

    def advance(engine):
        clock[0] += 1.5 * engine.state.epoch

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        run.trainer.run()
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["seconds"] for row in rows] == ["3.0", "6.0", "9.0"]
    assert [row["cubes_per_second"] for row in rows] == ["2.67", "1.33", "0.89"]
    for text in ("2.67 cubes/s, 0:00:06 left", "1.33 cubes/s, 0:00:06 left", "0.89 cubes/s, 0:00:00 left"):
        assert text in caplog.text


def test_a_metric_of_another_quantity_has_an_axis_of_its_own():
    rows = [{"epoch": 1, "train_loss": "0.9", "val_metric": ""}, {"epoch": 2, "train_loss": "0.5", "val_metric": "0.4"}]
    assert len(draw_history(rows).axes) == 1
    loss, dice = draw_history(rows, "Dice").axes
    assert dice.get_ylabel() == "validation Dice" and dice.get_ylim() == (0, 1)
    assert list(loss.lines[0].get_ydata()) == [0.9, 0.5]
    assert list(dice.lines[0].get_ydata()) == [0.4]
