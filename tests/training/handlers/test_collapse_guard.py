# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from models_genesis.training import CollapseGuard, NonFiniteLossHandler, TrainingCollapsedError


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(make_run):
    run = make_run(handlers=[NonFiniteLossHandler()])
    seen = []

    def spoil(engine):
        seen.append(run.network.weight.detach().clone())
        if engine.state.iteration == 3:
            engine.state.batch["image"][0, 0, 0, 0, 0] = float("nan")

    run.trainer.add_event_handler(Events.ITERATION_STARTED, spoil)
    with pytest.raises(TrainingCollapsedError, match=r"nan at iteration 3 \(epoch 2\)"):
        run.trainer.run()
    assert torch.equal(run.network.weight, seen[-1])


class Constant(nn.Module):
    """Answers every cube with the same value, as a collapsed network does."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.value.expand_as(x)


def test_stops_after_patience_constant_iterations(make_run):
    run = make_run(epochs=50, handlers=[CollapseGuard(patience=7)], network=Constant())
    with pytest.raises(TrainingCollapsedError, match=r"iteration 7 .*learning_rate"):
        run.trainer.run()
    assert run.trainer.state.iteration == 7


def test_a_single_good_iteration_starts_the_count_again(make_run):
    class Alternating(Constant):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            return self.value + x if self.calls % 5 == 0 else self.value.expand_as(x)

    run = make_run(epochs=10, handlers=[CollapseGuard(patience=5)], network=Alternating())
    run.trainer.run()
    assert run.trainer.state.epoch == 10


def test_lets_a_learning_network_go_on(make_run):
    run = make_run(epochs=5, handlers=[CollapseGuard(patience=1)])
    run.trainer.run()
    assert run.trainer.state.epoch == 5


def test_stops_at_once_where_the_loss_is_not_finite_and_keeps_the_weights(make_run):
    run = make_run(epochs=5, handlers=[CollapseGuard()], learning_rate=0.1)

    def poison(engine):
        with torch.no_grad():
            run.network.bias.fill_(float("nan"))

    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), poison)
    weight_before = None

    def remember(engine):
        nonlocal weight_before
        weight_before = run.network.weight.detach().clone()

    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), remember)
    with pytest.raises(TrainingCollapsedError, match="loss is nan at iteration 4"):
        run.trainer.run()
    # The bad gradient never reached the weights.
    assert torch.equal(run.network.weight, weight_before)


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"min_relative_std": 0.0}, {"min_relative_std": 1.0}])
def test_refuses_senseless_arguments(arguments):
    with pytest.raises(ValueError, match="patience"):
        CollapseGuard(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize(("at", "last"), [(1, 2), (2, 2)])
def test_on_a_gpu_a_bad_loss_is_noticed_one_iteration_later_or_at_the_end_of_the_epoch(at, last):
    guard = NonFiniteLossHandler()

    def step(engine, batch):
        loss = torch.tensor(float("nan") if engine.state.iteration == at else 1.0, device="cuda")
        engine.state.output = {"loss": loss}
        guard(engine)

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, guard._finish)
    with pytest.raises(TrainingCollapsedError, match=f"iteration {at} "):
        engine.run(range(2), max_epochs=1)
    assert engine.state.iteration == last
