# SPDX-License-Identifier: Apache-2.0
"""A training that is stopped in the middle of an epoch goes on from there, bit for bit."""

from __future__ import annotations

import csv
import logging
import operator
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanSquaredError, from_engine
from monai.transforms import Activationsd
from torch import nn
from torch.utils.data import Dataset

from models_genesis.datasets import EpochSampler, PrefetchDataLoader
from models_genesis.networks.weight_container import DamagedFileError
from models_genesis.training import RestorationLoss, TrainingCheckpoint, TrainingRunHandler
from models_genesis.training.handlers import checkpoint, training_run
from models_genesis.training.handlers.last_states import state_before, write_last_state
from models_genesis.training.handlers.run_settings import ChangedSettingsError

STEPS = 6
"""Steps of an epoch: eleven cubes in batches of two, so that the last one is smaller."""


class EndlessCubes(Dataset):
    """Eleven cubes, each other in every epoch, as a ``CubeDataset`` counts them."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = torch.rand(1, 8, 8, 4, generator=torch.Generator().manual_seed(index))
        return {"image": label + 0.1, "label": label}


Build = Callable[..., tuple[SupervisedTrainer, TrainingRunHandler]]


@pytest.fixture
def make(make_cubes, tmp_path) -> Build:
    """A trainer whose result depends on each random number, each loss and each step that was ever made."""

    def build(
        folder: Path = tmp_path,
        epochs: int = 3,
        num_workers: int = 0,
        sampled: bool = True,
        batch_size: int = 2,
        better: Callable[..., bool] = operator.lt,
        settings: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> tuple[SupervisedTrainer, TrainingRunHandler]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.3), nn.Conv3d(4, 1, 1))
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        sampler = EpochSampler(11, seed=3) if sampled else None
        order: dict[str, Any] = {"sampler": sampler} if sampled else {"shuffle": True}
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(make_cubes(2), batch_size=2, num_workers=0),
            network=network,
            postprocessing=Activationsd("pred", sigmoid=True),
            key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
            metric_cmp_fn=better,
        )
        run = TrainingRunHandler(
            network, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), evaluator, folder / "models",
            folder / "eval", sampler, progress=False, tensorboard=False, **arguments,
        )  # fmt: skip
        run.checkpoint.settings = settings or {}
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=PrefetchDataLoader(
                EndlessCubes(), batch_size=batch_size, num_workers=num_workers, **order
            ),
            network=network,
            optimizer=optimizer,
            loss_function=RestorationLoss(),
            train_handlers=[run],
            decollate=False,
        )
        return trainer, run

    return build


@pytest.fixture
def whole(make, tmp_path) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """Weights and history of a training that nothing interrupts."""
    return result_of(*make(tmp_path / "whole"), tmp_path / "whole")


def result_of(
    trainer: SupervisedTrainer, run: TrainingRunHandler, folder: Path
) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    trainer.run()
    with (folder / "eval" / "history.csv").open() as file:
        names = ("epoch", "train_loss", "val_metric", "learning_rate")
        lines = [[row[name] for name in names] for row in csv.DictReader(file)]
    return {name: value.clone() for name, value in run.network.state_dict().items()}, lines


def assert_same(found: Any, expected: Any) -> None:
    assert found[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


def terminate_in_step(trainer: SupervisedTrainer, step: int) -> None:
    """Let a scheduler's SIGTERM come while a step is computed."""
    trainer.add_event_handler(Events.ITERATION_STARTED(once=step), lambda: os.kill(os.getpid(), signal.SIGTERM))


def stop_in_step(trainer: SupervisedTrainer, step: int) -> None:
    """Run a training that is terminated so."""
    terminate_in_step(trainer, step)
    with pytest.raises(SystemExit):
        trainer.run()


@pytest.mark.parametrize("step", [1, 5, 7, 16])
def test_sigterm_saves_the_step_and_the_rest_is_as_if_nothing_had_been(make, whole, tmp_path, step, caplog):
    trainer, run = make()
    terminate_in_step(trainer, step)
    with pytest.raises(SystemExit) as stop, caplog.at_level(logging.WARNING):
        trainer.run()
    assert stop.value.code == 128 + signal.SIGTERM
    assert f"stopped in epoch {(step - 1) // STEPS + 1}, iteration {step}: run the same command with" in caplog.text
    state = torch.load(run.checkpoint.mid_epoch_path, weights_only=True)
    assert (state["epoch"], state["iteration"]) == ((step - 1) // STEPS, step)
    assert state["partial_epoch"]["cubes"] == 2 * ((step - 1) % STEPS + 1)
    torch.rand(7)  # whatever happens in between must not matter
    assert_same(result_of(*make(resume=True), tmp_path), whole)
    assert not run.checkpoint.mid_epoch_path.exists()  # the end of the epoch holds more


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_may_be_stopped_again_and_again(make, whole, tmp_path, num_workers):
    """Twice in one epoch, and with other worker processes than the training that nothing interrupts."""
    for resume, step in [(False, 2), (True, 4), (True, 15)]:
        trainer, _ = make(resume=resume, num_workers=num_workers)
        stop_in_step(trainer, step)
    assert_same(result_of(*make(resume=True, num_workers=num_workers), tmp_path), whole)


def test_a_killed_training_goes_on_from_the_state_that_was_due(make, whole, tmp_path, monkeypatch):
    """Saved before each third step by a clock that goes a minute a step; the kill comes by surprise in the 11th."""
    trainer, run = make(save_every_minutes=3)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: 60 * trainer.state.iteration))

    def killed(engine):
        raise MemoryError

    trainer.add_event_handler(Events.ITERATION_STARTED(once=11), killed)
    with pytest.raises(MemoryError):
        trainer.run()
    monkeypatch.undo()
    state = torch.load(run.checkpoint.mid_epoch_path, weights_only=True)
    assert (state["epoch"], state["iteration"]) == (1, 9)  # after 3 steps, 6 (the epoch's end), and 9
    assert_same(result_of(*make(resume=True), tmp_path), whole)


def test_a_damaged_state_costs_the_part_of_the_epoch_and_says_so(make, whole, tmp_path, caplog):
    trainer, run = make()
    stop_in_step(trainer, 10)
    path = run.checkpoint.mid_epoch_path
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        found = result_of(*make(resume=True), tmp_path)
    assert str(path) in caplog.text and "what was trained since the last whole epoch is lost" in caplog.text
    assert_same(found, whole)


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_damaged_end_of_an_epoch_costs_nothing_where_more_is_saved(make, whole, tmp_path, caplog, keep_last):
    trainer, run = make(keep_last=keep_last)
    stop_in_step(trainer, 14)
    run.checkpoint.last_path.write_bytes(run.checkpoint.last_path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert_same(result_of(*make(resume=True, keep_last=keep_last), tmp_path), whole)
    assert "OLDER STATE" not in caplog.text


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_damaged_state_of_the_first_epoch_is_not_begun_over(make, resume):
    """Each time: the next start of the same command must not take the folder for an empty one."""
    trainer, run = make()
    stop_in_step(trainer, 3)
    run.checkpoint.mid_epoch_path.write_bytes(run.checkpoint.mid_epoch_path.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(DamagedFileError, match="no whole epoch has been saved: train again without --resume"):
            make(resume=resume)[0].run()


def test_the_end_of_another_training_in_the_folder_is_not_taken(make, whole, tmp_path):
    """A new training that is stopped in its first epoch has less behind it than the one whose files it replaces."""
    make(epochs=4)[0].run()
    for step, resume in ((4, False), (9, True)):
        trainer, run = make(resume=resume)
        stop_in_step(trainer, step)
        assert run.checkpoint.last_path.exists() is resume  # its own, after its first epoch
    assert not state_before(run.checkpoint.last_path, 1).exists()
    assert_same(result_of(*make(resume=True), tmp_path), whole)


def test_it_is_told_even_where_the_other_end_could_not_be_removed(make, whole, tmp_path):
    make(epochs=4)[0].run()
    trainer, run = make()
    other = run.checkpoint.last_path.read_bytes()
    stop_in_step(trainer, 4)
    run.checkpoint.last_path.write_bytes(other)
    assert_same(result_of(*make(resume=True), tmp_path), whole)


def test_epochs_that_end_before_the_state_are_those_that_were_trained(make, tmp_path, caplog):
    trainer, _ = make()
    stop_in_step(trainer, 9)
    shorter, run = make(epochs=1, resume=True)
    with caplog.at_level(logging.WARNING):
        found = result_of(shorter, run, tmp_path)
    assert "--epochs 1 are done before it" in caplog.text and "the training is complete" in caplog.text
    assert_same(found, result_of(*make(tmp_path / "one", epochs=1), tmp_path / "one"))


@pytest.mark.parametrize("step", [6, 12])
def test_a_signal_in_the_last_step_of_an_epoch_ends_it_before_it_is_validated(make, step):
    """What the documents say is lost: the time since the last state."""
    trainer, run = make()
    stop_in_step(trainer, step)
    assert run.evaluator.state.epoch == step // STEPS - 1
    assert not run.checkpoint.mid_epoch_path.exists() and run.checkpoint.last_path.exists() is (step == 12)


def test_gradients_that_are_added_up_over_steps_are_saved_between_such_groups(make, tmp_path):
    """Asked to stop in the first of three steps, a training makes the other two."""

    def three_steps_each(resume=False, folder=tmp_path):
        trainer, run = make(folder, resume=resume)
        trainer.accumulation_steps = 3
        return trainer, run

    expected = result_of(*three_steps_each(folder=tmp_path / "whole"), tmp_path / "whole")
    trainer, run = three_steps_each()
    stop_in_step(trainer, 7)
    assert torch.load(run.checkpoint.mid_epoch_path, weights_only=True)["iteration"] == 9
    assert_same(result_of(*three_steps_each(resume=True), tmp_path), expected)


def test_an_epoch_that_is_divided_otherwise_is_done_again(make, tmp_path, caplog):
    """Outside of a bundle no settings tell of another batch size."""
    trainer, _ = make()
    stop_in_step(trainer, 9)
    other, _ = make(resume=True, batch_size=4)
    steps = []
    other.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(other.state.epoch))
    with caplog.at_level(logging.WARNING):
        other.run()
    assert "an epoch is divided otherwise" in caplog.text and steps == [2] * 3 + [3] * 3


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_training_that_was_stopped_early_stays_so(make, resume, caplog):
    """Its error falls, and the higher one counts as the better, so that it ends after the second epoch."""
    settings = {"early_stop_patience": 1, "better": operator.gt}
    trainer, _ = make(epochs=9, **settings)
    trainer.run()
    assert trainer.state.epoch == 2
    again, _ = make(epochs=9, resume=resume, **settings)
    steps = []
    again.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(again.state.iteration))
    with caplog.at_level(logging.WARNING):
        again.run()
    assert not steps and "it was stopped early after epoch 2" in caplog.text


def test_a_full_disk_does_not_end_the_training(make, whole, tmp_path, monkeypatch, caplog):
    def full(path, state, keep):
        if path.name == "last_iteration.pt":
            raise OSError(28, "No space left on device")
        write_last_state(path, state, keep)

    monkeypatch.setattr(checkpoint, "write_last_state", full)
    with caplog.at_level(logging.WARNING):
        assert_same(result_of(*make(save_every_minutes=1e-9), tmp_path), whole)
    assert "could not be saved, and the training goes on: [Errno 28]" in caplog.text
    trainer, _ = make(tmp_path / "terminated")
    terminate_in_step(trainer, 4)
    with pytest.raises(SystemExit) as stop, caplog.at_level(logging.ERROR):
        trainer.run()
    assert stop.value.code == 128 + signal.SIGTERM and "the step could not be saved" in caplog.text


def test_processes_that_see_different_states_are_refused(make, monkeypatch):
    trainer, _ = make()
    stop_in_step(trainer, 9)
    monkeypatch.setattr(checkpoint, "gather_from_processes", lambda own: [own, (0, 0)])
    with pytest.raises(RuntimeError, match=r"found starts at \(epoch, iteration\) \[\(0, 0\), \(1, 9\)\]"):
        make(resume="auto")[0].run()


def test_an_older_state_within_an_epoch_is_left(make, whole, tmp_path):
    """As if the process had ended between writing the end of an epoch and removing the state from its middle."""
    trainer, run = make()
    stop_in_step(trainer, 4)
    old = run.checkpoint.mid_epoch_path.read_bytes()
    make(epochs=1, resume=True)[0].run()
    run.checkpoint.mid_epoch_path.write_bytes(old)
    assert_same(result_of(*make(resume=True), tmp_path), whole)


def test_other_settings_go_on_from_the_last_whole_epoch(make, tmp_path, caplog):
    for step, settings in [(4, {"batch_size": 2}), (9, {"batch_size": 2})]:
        trainer, run = make(settings=settings, resume=step > 4)
        stop_in_step(trainer, step)
        with pytest.raises(ChangedSettingsError, match="batch_size 2 -> 4"):
            make(settings={"batch_size": 4}, resume=True)[0].run()
        changed, _ = make(settings={"batch_size": 4}, resume=True, resume_changed=True)
        if step == 4:  # there is no whole epoch yet
            with pytest.raises(ChangedSettingsError, match="in the middle of the first epoch"):
                changed.run()
            continue
        with caplog.at_level(logging.INFO):
            changed.run()
        assert "Going on from the last whole epoch" in caplog.text
        assert f"resumed from {run.checkpoint.last_path}: 1 epochs done" in caplog.text


SOURCE = {"file": "pretrained.pt", "sha256": "1f", "data": {"training": [{"patient": "P"}]}, "pretrained": None}


@pytest.mark.parametrize("pretrained", [None, SOURCE])
def test_a_new_training_leaves_no_state_of_the_old_one_behind(make, caplog, pretrained):
    trainer, run = make()
    stop_in_step(trainer, 4)
    again, after = make(save_every_minutes=None)
    after.checkpoint.sources = {"pretrained": pretrained and dict(pretrained)}
    terminate_in_step(again, 1)
    with pytest.raises(SystemExit), caplog.at_level(logging.WARNING):
        again.run()
    assert "will be overwritten" in caplog.text
    assert not run.checkpoint.mid_epoch_path.exists()


@pytest.mark.parametrize("pretrained", [None, SOURCE])
def test_a_resumed_training_keeps_the_states_that_it_can_fall_back_to(make, pretrained):
    trainer, run = make()
    stop_in_step(trainer, STEPS + 4)
    states = sorted(run.checkpoint.last_path.parent.glob("last_*.pt"))
    assert len(states) >= 2
    again, after = make(resume=True)
    after.checkpoint.sources = {"pretrained": pretrained and dict(pretrained)}
    there: list[list[bool]] = []
    again.add_event_handler(Events.GET_BATCH_STARTED, lambda: there.append([path.exists() for path in states]))
    again.run()
    assert all(there[0])


def test_a_validation_is_not_waited_for(make):
    trainer, run = make()
    validated = run.evaluator
    validated.add_event_handler(Events.STARTED, lambda: os.kill(os.getpid(), signal.SIGTERM))
    passed = []
    validated.add_event_handler(Events.ITERATION_STARTED, lambda: passed.append(validated.state.iteration))
    with pytest.raises(SystemExit):
        trainer.run()
    assert not passed and not run.checkpoint.mid_epoch_path.exists()


def test_a_second_sigterm_ends_the_step_itself(make):
    trainer, run = make()
    for _ in range(2):
        terminate_in_step(trainer, 3)
    passed = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: passed.append(3))
    with pytest.raises(SystemExit):
        trainer.run()
    assert not passed and not run.checkpoint.mid_epoch_path.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_of_several_processes_none_waits_for_one_that_has_stopped(make, monkeypatch, processes):
    """They get the signal in different steps: each ends at once, and goes on from what the clock had saved."""
    monkeypatch.setattr(training_run, "process_count", lambda: processes)
    trainer, run = make()
    terminate_in_step(trainer, 3)
    passed = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: passed.append(3))
    with pytest.raises(SystemExit):
        trainer.run()
    assert passed == [3] * (processes == 1)
    assert run.checkpoint.mid_epoch_path.exists() is (processes == 1)


def test_an_order_that_cannot_be_taken_up_again_is_saved_after_epochs_only(make):
    trainer, run = make(sampled=False, save_every_minutes=1e-9)
    stop_in_step(trainer, 9)
    assert run.checkpoint.last_path.exists() and not run.checkpoint.mid_epoch_path.exists()


def test_weights_that_are_not_finite_do_not_replace_good_ones(make):
    trainer, run = make(save_every_minutes=1e-9)

    @trainer.on(Events.ITERATION_COMPLETED(once=4))
    def spoil(engine):
        with torch.no_grad():
            run.network[3].bias.fill_(float("nan"))

    with pytest.raises(RuntimeError, match="loss is nan"):
        trainer.run()
    assert torch.load(run.checkpoint.mid_epoch_path, weights_only=True)["iteration"] == 3


def test_auto_begins_where_there_is_nothing_and_else_goes_on(make, whole, tmp_path):
    """One command for each start, as a queue gives it again: from nothing, from within an epoch, and from its end."""
    for step in (3, 14):
        trainer, _ = make(resume="auto")
        stop_in_step(trainer, step)
    assert_same(result_of(*make(resume="auto"), tmp_path), whole)
    again, run = make(resume="auto")
    steps = []
    again.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(again.state.iteration))
    again.run()
    assert not steps and run.checkpoint.last_path.exists()


@pytest.mark.parametrize("word", ["yes", 1])
def test_other_words_for_resuming_are_refused(make, word):
    with pytest.raises(ValueError, match=f"resume: expected True, False or 'auto', found {word!r}"):
        make(resume=word)


@pytest.mark.parametrize("minutes", [0, -1.0])
def test_times_that_are_none_are_refused(make, minutes):
    with pytest.raises(ValueError, match="save_every_minutes: expected minutes above 0"):
        make(save_every_minutes=minutes)


def test_the_loss_of_an_epoch_needs_the_history(tmp_path):
    network = nn.Conv3d(1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="and the run's history"):
        TrainingCheckpoint(tmp_path, network, optimizer, schedule, None, save_every_minutes=5)
