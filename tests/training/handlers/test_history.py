# SPDX-License-Identifier: Apache-2.0
"""The history's times are those that its epochs took, and each of its curves has the axis of its quantity."""

from __future__ import annotations

import csv
import json
import logging
import time

import pytest
import torch
from ignite.engine import Events
from torch import nn

from models_genesis.training.handlers.history import draw_history
from models_genesis.training.handlers.remaining_time import RemainingTime


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
    # the median of the epochs so far: 3 s, then of 3 and 6 s
    for text in ("2.67 cubes/s, 0:00:06 left", "1.33 cubes/s, 0:00:04 left", "0.89 cubes/s, 0:00:00 left"):
        assert text in caplog.text


def test_an_epoch_tells_what_the_loader_and_a_step_take(make_run, tmp_path, monkeypatch, caplog):
    """Each batch takes 0.5 s, each step 1.5; saving before a batch and validation are neither."""
    clock = [1000.0]
    run = make_run(epochs=2)  # 2 steps an epoch

    def advance(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    run.trainer.add_event_handler(Events.GET_BATCH_STARTED, advance(7.0))
    run.trainer.add_event_handler(Events.ITERATION_STARTED, advance(1.25))
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, advance(0.25))
    run.evaluator.add_event_handler(Events.STARTED, advance(100.0))
    loader = run.trainer.state.dataloader or run.trainer.data_loader
    collate = loader.collate_fn
    monkeypatch.setattr(loader, "collate_fn", lambda items: (advance(0.5)(), collate(items))[1])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        run.trainer.run()
    for row in _rows(tmp_path / "history.csv"):
        assert (row["loader_wait"], row["step_seconds"], row["gpu_gib"]) == ("0.250", "1.5", "")
        assert float(row["seconds"]) == 2 * (7 + 0.5 + 1.5) + 100
    assert caplog.text.count("; 25 % of the steps' time waiting for the loader, the rest 1.5 s a step") == 2


def test_the_first_steps_tell_how_long_the_training_takes(make_run, monkeypatch, caplog):
    clock = [1000.0]
    cube = torch.rand(1, 8, 8, 4)
    run = make_run(epochs=3, data=60 * [{"image": cube, "label": cube, "scan": 0}], batch_size=1)  # 60 steps an epoch

    def advance(engine):
        clock[0] += 20.0 if engine.state.iteration == 1 else 0.5

    run.trainer.add_event_handler(Events.ITERATION_STARTED, advance)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        run.trainer.run()
    estimates = [line for line in caplog.messages if "an epoch" in line]
    assert estimates == ["epoch 1/3: about 0:00:30 an epoch, 0:01:30 for the 3 epochs to do, without validation"]


def test_a_resumed_training_tells_the_time_of_the_epochs_to_do(make_run, caplog, monkeypatch):
    cube = torch.rand(1, 8, 8, 4)
    data = 50 * [{"image": cube, "label": cube, "scan": 0}]
    make_run(epochs=2, data=data, batch_size=1).trainer.run()
    clock = [1000.0]
    again = make_run(epochs=4, data=data, batch_size=1, resume=True)
    again.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: clock.__setitem__(0, clock[0] + 1.0))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        again.trainer.run()
    assert "epoch 3/4: about 0:00:50 an epoch, 0:01:40 for the 2 epochs to do" in caplog.text
    assert "0:00:50 left" in caplog.text


def test_short_epochs_have_no_estimate(make_run, caplog):
    cube = torch.rand(1, 8, 8, 4)
    with caplog.at_level(logging.INFO):
        make_run(epochs=2, data=49 * [{"image": cube, "label": cube, "scan": 0}], batch_size=1).trainer.run()
    assert "an epoch," not in caplog.text


def test_ten_thousand_epochs_cost_no_time():
    remaining = RemainingTime(1, 10_000)
    for epoch in range(1, 5_001):
        remaining.add(epoch, 2.0)
    start = time.perf_counter()
    assert remaining.seconds_after(5_000) == 10_000
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    ("val_interval", "epochs", "expected"),
    [
        (1, 5, {1: (4 * 10, 2), 4: (10, 5), 5: (0, None)}),
        # plain epochs take 6 s, validated ones 10 s; before one is seen the other kind stands in
        (3, 9, {1: (8 * 6, 3), 3: (4 * 6 + 2 * 10, 6), 6: (2 * 6 + 10, 9), 9: (0, None)}),
        (4, 6, {4: (2 * 6, None)}),
        (50, 3, {2: (6, 3)}),  # of a training shorter than the interval the last epoch is validated
    ],
)
def test_validated_epochs_count_by_their_own_time(val_interval, epochs, expected):
    remaining = RemainingTime(val_interval, epochs)
    for epoch in range(1, epochs + 1):
        remaining.add(epoch, 10.0 if remaining.validated(epoch) else 6.0)
        if epoch in expected:
            assert (remaining.seconds_after(epoch), remaining.next_validation(epoch)) == expected[epoch]


def test_a_metric_of_another_quantity_has_an_axis_of_its_own():
    rows = [{"epoch": 1, "train_loss": "0.9", "val_metric": ""}, {"epoch": 2, "train_loss": "0.5", "val_metric": "0.4"}]
    assert len(draw_history(rows).axes) == 1
    loss, dice = draw_history(rows, "Dice").axes
    assert dice.get_ylabel() == "validation Dice" and dice.get_ylim() == (0, 1)
    assert list(loss.lines[0].get_ydata()) == [0.9, 0.5]
    assert list(dice.lines[0].get_ydata()) == [0.4]


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_validation_that_is_not_below_its_baseline_ends_with_a_warning(make_run, tmp_path, caplog):
    """The rate is so small that the network stays as it was initialised: grey, and worse than the mean image."""
    run = make_run(epochs=2, learning_rate=1e-9, baseline="val_mean_image")
    with caplog.at_level(logging.INFO):
        run.trainer.run()
    baseline = run.evaluator.state.metrics["val_mean_image"]
    assert [float(row["val_baseline"]) for row in _rows(tmp_path / "history.csv")] == pytest.approx(
        2 * [baseline], abs=1e-6
    )
    assert all(float(row["val_metric"]) > baseline for row in _rows(tmp_path / "history.csv"))
    assert f"({baseline:.6f} without a network)" in caplog.text
    [warning] = [record.getMessage() for record in caplog.records if "not below" in record.getMessage()]
    assert f"{baseline:.6f}" in warning and f"{run.evaluator.state.best_metric:.6f}" in warning
    certificate = json.loads((tmp_path / "birth_certificate.json").read_text())
    assert certificate["training"]["validation"]["without_a_network"] == pytest.approx(baseline, abs=1e-6)


def test_a_validation_below_its_baseline_does_not(make_run, tmp_path, caplog):
    network = nn.Conv3d(1, 1, 1)  # sigmoid(4 x - 2) is close to x in [0, 1], where the mean image is a third of it off
    nn.init.constant_(network.weight, 4.0)
    nn.init.constant_(network.bias, -2.0)
    run = make_run(epochs=1, learning_rate=1e-9, network=network, baseline="val_mean_image")
    with caplog.at_level(logging.INFO):
        run.trainer.run()
    assert run.evaluator.state.best_metric < run.evaluator.state.metrics["val_mean_image"]
    assert "not below" not in caplog.text


def test_the_baseline_is_drawn_and_a_resumed_run_may_have_one_where_the_run_before_had_none(make_run, tmp_path):
    make_run(epochs=1).trainer.run()
    make_run(epochs=2, resume=True, baseline="val_mean_image").trainer.run()
    rows = _rows(tmp_path / "history.csv")
    assert rows[0]["val_baseline"] == "" and float(rows[1]["val_baseline"]) > 0
    [axes] = draw_history(rows).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2], [1, 2], [2]]
