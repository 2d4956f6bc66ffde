# SPDX-License-Identifier: Apache-2.0
"""One handler attaches what a training run needs, in an order that is checked when it starts."""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanSquaredError, StatsHandler, from_engine
from monai.transforms import Activationsd
from torch import nn

from models_genesis.datasets import EpochSampler
from models_genesis.training import HandlerOrderError, RestorationLoss, TrainingRunHandler
from models_genesis.training.handlers import run_progress, training_run


@pytest.fixture
def make(make_cubes, tmp_path) -> Callable[..., tuple[SupervisedTrainer, TrainingRunHandler]]:
    """A trainer that has nothing but the handler, and what comes before and after it."""

    def build(
        epochs: int = 3,
        folder: Path = tmp_path,
        before: Any = (),
        after: Any = (),
        better=operator.lt,
        slow: bool = False,
        **settings: Any,
    ) -> tuple[SupervisedTrainer, TrainingRunHandler]:
        torch.manual_seed(0)
        network = nn.Conv3d(1, 1, 3, padding=1)
        groups = [{"name": "slow" if slow else "others", "params": list(network.parameters())}]
        optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
        cubes = make_cubes(8)
        sampler = EpochSampler(len(cubes), seed=3)
        data = Dataset([cubes[index % len(cubes)] for index in range(len(cubes) * 50)])
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(make_cubes(4)), batch_size=2, num_workers=0),
            network=network,
            postprocessing=Activationsd("pred", sigmoid=True),
            key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
            metric_cmp_fn=better,
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        run = TrainingRunHandler(
            network, optimizer, schedule, evaluator, folder / "models", folder / "eval", sampler, progress=False,
            **settings,
        )  # fmt: skip
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(data, batch_size=4, sampler=sampler, num_workers=0),
            network=network,
            optimizer=optimizer,
            loss_function=RestorationLoss(),
            train_handlers=[*before, run, *after],
            decollate=False,
        )
        return trainer, run

    return build


def history(folder: Path) -> list[list[str]]:
    with (folder / "eval" / "history.csv").open() as file:
        names = ("epoch", "train_loss", "val_metric", "learning_rate")
        return [[row[name] for name in names] for row in csv.DictReader(file)]


class AtTheEnd:
    """A handler of the user's that does something after each epoch."""

    def __init__(self, **filters: Any) -> None:
        self.event = Events.EPOCH_COMPLETED(**filters) if filters else Events.EPOCH_COMPLETED
        self.epochs: list[int] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(self.event, self.note)

    def note(self, engine) -> None:
        self.epochs.append(engine.state.epoch)


def test_it_holds_the_slow_parts_back_and_sets_cudnn_when_it_starts(make, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    trainer, run = make(epochs=2, freeze_epochs=1, cudnn_benchmark=True, slow=True)
    kept = [value.clone() for value in run.network.parameters()]
    same: list[bool] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: same.append(all(map(torch.equal, kept, run.network.parameters()))),
    )
    assert not torch.backends.cudnn.benchmark  # an evaluation may build the trainer too
    trainer.run()
    half = len(same) // 2
    assert all(same[:half]) and not any(same[half:])
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic


def test_an_epoch_is_validated_then_scheduled_then_noted_then_saved(make):
    """A schedule of epochs steps after each, so that all four have their place among its handlers."""
    trainer, run = make(epochs=1, lr_step_per_epoch=True)
    trainer.run()
    handlers = [training_run._original(entry[0]) for entry in trainer._event_handlers[Events.EPOCH_COMPLETED]]
    names = [getattr(each, "__qualname__", type(each).__name__) for each in handlers]
    order = ["ValidationHandler", "ScheduleStep", "TrainingHistory._end_epoch", "TrainingCheckpoint.save_last"]
    assert [name for name in names if name in order] == order and names[-1] == order[-1]
    state = torch.load(run.checkpoint.last_path, weights_only=True)
    assert state["lr_scheduler"]["last_epoch"] == 1 and len(state["history"]) == 1
    assert state["best_metric"] == pytest.approx(float(state["history"][0]["val_metric"]), abs=1e-6)


@pytest.mark.parametrize("filters", [{}, {"every": 2}], ids=["each epoch", "every second"])
def test_what_comes_after_the_checkpoint_is_refused_by_name(make, tmp_path, filters):
    trainer, _ = make(after=[AtTheEnd(**filters)])
    with pytest.raises(HandlerOrderError, match="expected the checkpoint of TrainingRunHandler as the last, found AtT"):
        trainer.run()
    assert not (tmp_path / "models" / "last_epoch.pt").exists()


def test_a_function_that_comes_after_the_checkpoint_is_refused_too(make):
    trainer, _ = make()

    def meddle(engine) -> None:
        raise AssertionError("never called")

    trainer.add_event_handler(Events.EPOCH_COMPLETED, meddle)
    with pytest.raises(HandlerOrderError, match="meddle"):
        trainer.run()


def test_what_comes_before_it_and_what_only_reports_is_not(make):
    own = AtTheEnd()
    report = StatsHandler(output_transform=lambda output: output["loss"], iteration_log=False)
    trainer, run = make(before=[own], after=[report])
    trainer.run()
    assert own.epochs == [1, 2, 3]
    state = torch.load(run.checkpoint.last_path, weights_only=True)
    assert state["epoch"] == 3


def test_resuming_equals_an_uninterrupted_run_to_the_bit(make, tmp_path):
    make(epochs=4, folder=tmp_path / "whole")[0].run()
    make(epochs=2, folder=tmp_path / "parts")[0].run()
    make(epochs=4, folder=tmp_path / "parts", resume=True)[0].run()
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    states = [
        torch.load(tmp_path / name / "models" / "last_epoch.pt", weights_only=True) for name in ("whole", "parts")
    ]
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in states[0]["model"])
    assert states[0]["lr_scheduler"]["last_epoch"] == states[1]["lr_scheduler"]["last_epoch"] == 4 * 2


@pytest.mark.parametrize("better", [operator.lt, operator.gt])
def test_early_stopping_takes_what_is_better_from_the_evaluator(make, better):
    """With the network spoiled after the first epoch its error grows, which is progress where more is better."""
    trainer, run = make(epochs=8, better=better, early_stop_patience=2, val_interval=1)
    biases = iter(range(0, 80, 10))

    def spoil() -> None:
        with torch.no_grad():
            run.network.weight.zero_()
            run.network.bias.fill_(float(next(biases)) / 10)

    run.evaluator.add_event_handler(Events.STARTED, spoil)
    trainer.run()
    assert trainer.state.epoch == (8 if better is operator.gt else 3)


def test_the_last_epoch_of_a_short_training_is_validated(make, tmp_path):
    make(epochs=2, val_interval=5)[0].run()
    assert [bool(row[2]) for row in history(tmp_path)] == [False, True]
    assert (tmp_path / "models" / "model.pt").is_file()


def test_other_processes_write_nothing_but_train_alike(make, tmp_path, monkeypatch):
    make(folder=tmp_path / "first")[0].run()
    for module in (training_run, run_progress):
        monkeypatch.setattr(module, "process_rank", lambda: 1)
    monkeypatch.setattr("models_genesis.training.handlers.history.process_rank", lambda: 1)
    monkeypatch.setattr("models_genesis.training.handlers.checkpoint.process_rank", lambda: 1)
    trainer, run = make(folder=tmp_path / "second")
    trainer.run()
    assert not (tmp_path / "second").exists()
    state = torch.load(tmp_path / "first" / "models" / "last_epoch.pt", weights_only=True)
    assert all(torch.equal(value, run.network.state_dict()[name]) for name, value in state["model"].items())


def test_an_evaluation_whose_trainer_was_built_is_not_concerned(make_run, tmp_path):
    """MONAI's check of properties builds the trainer of an evaluation's config too."""
    run = make_run(folder=tmp_path / "training")
    handler = TrainingRunHandler(
        run.network, run.optimizer, torch.optim.lr_scheduler.ConstantLR(run.optimizer), run.evaluator,
        tmp_path / "models", tmp_path / "eval", early_stop_patience=1,
    )  # fmt: skip
    before = {event: list(entries) for event, entries in run.evaluator._event_handlers.items() if entries}
    handler.attach(run.trainer)
    assert {event: list(entries) for event, entries in run.evaluator._event_handlers.items() if entries} == before
    run.evaluator.run()
    assert not (tmp_path / "models").exists()
