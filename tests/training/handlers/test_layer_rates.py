# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn

from models_genesis.training import GracefulShutdown, LayerRates, layer_groups


class Pair(nn.Module):
    """Two layers in a row: an encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(1, 2, 1)
        self.head = nn.Conv3d(2, 1, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.fixture
def run_pair(make_run):
    """Train and note the weights after each epoch."""

    def run(epochs, freeze_epochs, factor, optimizer=torch.optim.AdamW, resume=False):
        torch.manual_seed(3)
        network = Pair()
        made = make_run(epochs=epochs, network=network, resume=resume)
        parameters = optimizer(layer_groups(network, ["encoder"]), lr=0.1, weight_decay=0.1)
        made.trainer.optimizer = parameters
        LayerRates(parameters, freeze_epochs, factor).attach(made.trainer)
        seen = {0: [network.encoder.weight.detach().clone(), network.head.weight.detach().clone()]}
        made.trainer.add_event_handler(
            Events.EPOCH_COMPLETED,
            lambda engine: seen.__setitem__(
                engine.state.epoch, [network.encoder.weight.detach().clone(), network.head.weight.detach().clone()]
            ),
        )
        made.trainer.run()
        return seen, parameters

    return run


def test_frozen_parts_stay_as_they_are_and_then_learn(run_pair):
    seen, optimizer = run_pair(epochs=3, freeze_epochs=2, factor=0.0)
    assert torch.equal(seen[2][0], seen[0][0])
    assert not torch.equal(seen[2][1], seen[0][1])
    assert not torch.equal(seen[3][0], seen[2][0])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_a_smaller_rate_makes_sgd_steps_that_much_smaller(run_pair):
    """One SGD step without momentum is proportional to the rate; the first epoch has two, so take the first alone."""
    steps = {}
    for factor in (1.0, 0.25):
        torch.manual_seed(3)
        network = Pair()
        optimizer = torch.optim.SGD(layer_groups(network, ["encoder"]), lr=0.1)
        handler = LayerRates(optimizer, 1, factor)
        before = network.encoder.weight.detach().clone()
        network(torch.ones(1, 1, 2, 2, 2)).sum().backward()
        engine = type("Engine", (), {"state": type("State", (), {"epoch": 1})})
        handler._lower(engine)
        optimizer.step()
        handler._restore(engine)
        steps[factor] = network.encoder.weight.detach() - before
        assert optimizer.param_groups[0]["lr"] == 0.1
    torch.testing.assert_close(steps[0.25], 0.25 * steps[1.0])


def test_groups_hold_every_parameter_once():
    network = Pair()
    groups = layer_groups(network, ["encoder"])
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in network.parameters())
    assert len(layer_groups(network)) == 1
    assert layer_groups(network, ["encoder", "head"])[0]["name"] == "slow"


def test_mistakes_are_refused():
    network = Pair()
    with pytest.raises(ValueError, match="'encoder', 'head'"):
        layer_groups(network, ["encodr"])
    optimizer = torch.optim.SGD(layer_groups(network), lr=0.1)
    with pytest.raises(ValueError, match="slow_parts"):
        LayerRates(optimizer, epochs=1)
    with pytest.raises(ValueError, match="factor"):
        LayerRates(optimizer, epochs=0, factor=2.0)


def test_a_step_that_failed_neither_hides_its_error_nor_lowers_the_rate_twice(make_run, caplog):
    """In a bundle it comes before ``GracefulShutdown``, which has to see the interruption."""
    network = Pair()
    optimizer = torch.optim.SGD(layer_groups(network, ["encoder"]), lr=0.1)
    run = make_run(epochs=1, network=network, handlers=[LayerRates(optimizer, 1, 0.5), GracefulShutdown("go on so")])
    run.trainer.optimizer = optimizer
    rates = []

    def step(closure=None):
        rates.append([group["lr"] for group in optimizer.param_groups])
        raise KeyboardInterrupt

    optimizer.step = step
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        run.trainer.run()
    assert "go on so" in caplog.text
    assert sorted(rates[0]) == [0.05, 0.1]
    run.trainer.fire_event(IterationEvents.BACKWARD_COMPLETED)  # of the next step
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.1]


def test_a_head_with_a_rate_of_its_own_moves_that_much_faster_and_follows_the_schedule():
    """Adam's first step is the learning rate, with the sign of the gradient."""
    torch.manual_seed(0)
    network = Pair()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.Adam(layer_groups(network, head_learning_rate=0.03), lr=0.003)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    network(torch.rand(2, 1, 2, 2, 2)).sum().backward()
    optimizer.step()
    for name, value in network.named_parameters():
        expected = 0.5 * (0.03 if name.startswith("head") else 0.003)
        assert (value.detach() - before[name]).abs().max().item() == pytest.approx(expected, rel=1e-3), name
    assert schedule.get_last_lr() == [0.0015, 0.015]


def test_a_rate_for_a_head_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match=r"head_learning_rate: expected a part named head in Sequential, which has \['0'\]"
    ):
        layer_groups(nn.Sequential(nn.Linear(1, 1)), head_learning_rate=0.03)


def test_a_head_is_not_slow_and_fast_at_once():
    with pytest.raises(ValueError, match=r"expected slow_parts without the head .*found slow_parts \['head'\]"):
        layer_groups(Pair(), ["head"], 0.03)
