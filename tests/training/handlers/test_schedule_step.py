# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from models_genesis.training import ScheduleStep


@pytest.fixture
def rates():
    """Run ten epochs of three iterations, every second of them validated without progress; give the rate of each."""

    def run(make_scheduler, epoch_level=False):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        evaluator = Engine(lambda engine, batch: None)
        evaluator.state.key_metric_name = "val_dice"
        trainer = Engine(lambda engine, batch: optimizer.step())

        def validate(engine):
            if engine.state.epoch % 2 == 0:
                evaluator.state.epoch = engine.state.epoch
                evaluator.state.metrics = {"val_dice": 0.5}

        seen = []
        trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
        ScheduleStep(make_scheduler(optimizer), evaluator, epoch_level).attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(optimizer.param_groups[0]["lr"]))
        trainer.run([0, 1, 2], max_epochs=10)
        return seen

    return run


def test_a_plateau_counts_validations_not_epochs(rates):
    """The first validation, of epoch 2, is the best; with patience 1 the rate falls after two more, and so on."""
    found = rates(lambda optimizer: ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1))
    assert found == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("epoch_level", "steps"), [(False, 3), (True, 1)])
def test_other_schedules_step_by_iteration_or_epoch(rates, epoch_level, steps):
    found = rates(lambda optimizer: StepLR(optimizer, 1, gamma=0.5), epoch_level)
    assert found == [0.5 ** (steps * epoch) for epoch in range(1, 11)]
