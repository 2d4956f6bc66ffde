# SPDX-License-Identifier: Apache-2.0
"""Steps of a learning-rate schedule, and the epoch that a sampler draws for."""

from __future__ import annotations

from typing import Any, Protocol

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ...datasets.loading.samplers import EpochSampler
from .gradient_accumulation import ends_group

__all__ = ["EpochSetter", "HasSetEpoch", "ScheduleStep", "steps_within_epoch"]


class ScheduleStep:
    """Step a schedule after each step of the optimizer or epoch; ``ReduceLROnPlateau`` after each validated epoch.

    MONAI's ``LrScheduleHandler`` steps such a schedule after every epoch, so that with a ``val_interval`` of 5 one
    validation counts five times, and the first epochs have nothing to tell. It comes after validation.

    Args:
        lr_scheduler: the schedule.
        evaluator: the evaluator that validates; its key metric decides about a plateau.
        epoch_level: whether the other schedules step after each epoch instead of after each step of the optimizer,
            which is each iteration unless the trainer has ``accumulation_steps``.
    """

    def __init__(self, lr_scheduler: LRScheduler, evaluator: Engine, epoch_level: bool = False) -> None:
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.epoch_level = epoch_level

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the MONAI trainer.
        """
        by_epoch = self.epoch_level or isinstance(self.lr_scheduler, ReduceLROnPlateau)
        if by_epoch:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        else:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_optimizer)

    def _after_optimizer(self, engine: Engine) -> None:
        if ends_group(engine):
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Step.

        Args:
            engine: the trainer.
        """
        if not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step()
            return
        state: Any = self.evaluator.state
        if state.epoch == engine.state.epoch:
            self.lr_scheduler.step(float(state.metrics[state.key_metric_name]))


class HasSetEpoch(Protocol):
    """A sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""


class EpochSetter:
    """Call ``sampler.set_epoch`` at the start of every epoch, so that a resumed run draws what it would have drawn.

    A run that is resumed in the middle of an epoch begins with the batches that are left of it.

    Args:
        sampler: an ``EpochSampler``; or torch's ``DistributedSampler``, whose epochs are whole.
    """

    def __init__(self, sampler: HasSetEpoch) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the trainer whose data loader uses the sampler.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the epoch; epochs count from 0 here, while ignite's count from 1.

        Args:
            engine: the trainer.

        Raises:
            ValueError: when an epoch is to be begun in its middle, and the sampler begins at the start only.
        """
        epoch, done = engine.state.epoch - 1, steps_within_epoch(engine)
        if not done:
            self.sampler.set_epoch(epoch)
        elif isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(epoch, done * int(engine.state.dataloader.batch_size))
        else:
            raise ValueError(
                f"{done} steps of epoch {epoch + 1} are done: expected an EpochSampler, which can begin after them, "
                f"found {type(self.sampler).__name__}"
            )


def steps_within_epoch(engine: Engine) -> int:
    """Count the steps that are done of an epoch that is not over; 0 between epochs.

    Args:
        engine: the trainer.
    """
    return int(engine.state.iteration % (engine.state.epoch_length or 1))
