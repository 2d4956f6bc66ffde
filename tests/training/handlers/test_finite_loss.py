# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from models_genesis.training import FiniteLossGuard, TrainingCollapsedError
from models_genesis.training.handlers.history import draw_history


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(make_run):
    run = make_run(handlers=[FiniteLossGuard()])
    seen = []

    def spoil(engine):
        seen.append(run.network.weight.detach().clone())
        if engine.state.iteration == 3:
            engine.state.batch["image"][0, 0, 0, 0, 0] = float("nan")

    run.trainer.add_event_handler(Events.ITERATION_STARTED, spoil)
    with pytest.raises(TrainingCollapsedError, match=r"nan at iteration 3 \(epoch 2\)"):
        run.trainer.run()
    assert torch.equal(run.network.weight, seen[-1])


def test_a_metric_of_another_quantity_has_an_axis_of_its_own():
    rows = [{"epoch": 1, "train_loss": "0.9", "val_metric": ""}, {"epoch": 2, "train_loss": "0.5", "val_metric": "0.4"}]
    assert len(draw_history(rows).axes) == 1
    loss, dice = draw_history(rows, "Dice").axes
    assert dice.get_ylabel() == "validation Dice" and dice.get_ylim() == (0, 1)
    assert list(loss.lines[0].get_ydata()) == [0.9, 0.5]
    assert list(dice.lines[0].get_ydata()) == [0.4]
