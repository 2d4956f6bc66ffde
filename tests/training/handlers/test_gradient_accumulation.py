# SPDX-License-Identifier: Apache-2.0
"""Small batches whose gradients are accumulated train as one large batch does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import Dataset

from models_genesis.training import GradientAccumulation, RestorationLoss, ScheduleStep, optimizer_steps
from models_genesis.training.handlers.gradient_accumulation import ends_group

Train = Callable[..., tuple[dict[str, torch.Tensor], list[float]]]


class Cubes(Dataset):
    """Cubes, each other than the rest."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = torch.rand(1, 8, 8, 4, generator=torch.Generator().manual_seed(index))
        return {"image": label + 0.1, "label": label}


def trainer_of(cubes: int, batch_size: int, accumulation_steps: int, epochs: int = 2) -> SupervisedTrainer:
    """A trainer with SGD and momentum, whose steps show the size of a gradient as AdamW's do not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    loader = DataLoader(Cubes(cubes), batch_size=batch_size)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=RestorationLoss(),
        accumulation_steps=accumulation_steps,
        train_handlers=[GradientAccumulation(network, optimizer), ScheduleStep(schedule, None)],
        decollate=False,
    )
    trainer.schedule = schedule
    return trainer


def train(cubes: int, batch_size: int, accumulation_steps: int, **arguments: Any) -> tuple[dict[str, Any], list[float]]:
    """Give the weights after two epochs, and the learning rate of each step of the optimizer."""
    trainer = trainer_of(cubes, batch_size, accumulation_steps, **arguments)
    rates: list[float] = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), step())[1]
    trainer.run()
    return trainer.network.state_dict(), rates


@pytest.mark.parametrize("cubes", [8, 10, 4])  # of 10, the last step has one batch of two
@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(2, 2), (1, 4)])
def test_accumulated_batches_train_as_one_batch(cubes, batch_size, accumulation_steps):
    expected, expected_rates = train(cubes, 4, 1)
    found, rates = train(cubes, batch_size, accumulation_steps)
    assert rates == expected_rates and len(rates) == 2 * optimizer_steps(-(-cubes // 4))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_monai_alone_gives_an_incomplete_group_too_small_a_gradient(monkeypatch):
    """Why the handler is there; if this fails MONAI has mended it, and the gradient must not be scaled twice."""
    monkeypatch.setattr(GradientAccumulation, "attach", lambda self, engine: None)
    expected, _ = train(2, 4, 1, epochs=1)
    found, _ = train(2, 2, 4, epochs=1)
    torch.manual_seed(0)
    start = trainer_of(2, 2, 4).network.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(4 * (found[name] - start[name]), value - start[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("batches", "size", "expected"), [(5, 2, [2, 4, 5, 7, 9, 10]), (4, 1, [*range(1, 9)])])
def test_a_step_ends_each_group_and_each_epoch(batches, size, expected):
    trainer, steps = trainer_of(batches, 1, size), []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine):
        if ends_group(engine):
            steps.append(engine.state.iteration)

    trainer.run()
    assert steps == expected


PROGRAM = """
import sys

import torch
import torch.distributed as dist
from ignite.engine import Events
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[2])
from test_gradient_accumulation import Cubes, RestorationLoss
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from models_genesis.datasets import EpochSampler
from models_genesis.training import GradientAccumulation, leave_process_group

dist.init_process_group("gloo")
torch.manual_seed(0)
bare = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 1))
network = DistributedDataParallel(bare)
exchanged = []
network.register_comm_hook(None, lambda state, bucket: (exchanged.append(1), allreduce_hook(state, bucket))[1])
optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
loader = DataLoader(Cubes(10), batch_size=1, sampler=EpochSampler(10, shuffle=False, fixed=True))
SupervisedTrainer(
    device=torch.device("cpu"), max_epochs=2, train_data_loader=loader, network=network, optimizer=optimizer,
    loss_function=RestorationLoss(), accumulation_steps=2, decollate=False,
    train_handlers=[GradientAccumulation(network, optimizer)],
).run()
if dist.get_rank() == 0:
    torch.save({"weights": bare.state_dict(), "exchanged": len(exchanged)}, sys.argv[1])
leave_process_group(network)
"""


def test_processes_exchange_gradients_once_a_group_with_the_same_result(forked, tmp_path):
    """Two processes that accumulate two cubes: the steps of one process with batches of four, 4 + 4 + 2 cubes each."""
    (tmp_path / "ranks.py").write_text(PROGRAM)
    line = [sys.executable, "-m", "ranks", str(tmp_path / "end.pt"), str(Path(__file__).parent)]
    for done in forked.run_ranks(line, tmp_path, timeout=120):
        assert done.returncode == 0, done.stderr[-3000:]
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert end["exchanged"] == 6
    trainer = trainer_of(10, 4, 1)
    trainer.schedule.step = lambda: None
    trainer.run()
    for name, value in trainer.network.state_dict().items():
        torch.testing.assert_close(end["weights"][name], value, rtol=1e-5, atol=1e-6, msg=name)
