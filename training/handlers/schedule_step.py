# SPDX-License-Identifier: Apache-2.0
"""Steps of a learning-rate schedule, and the epoch that a sampler draws for."""

from __future__ import annotations

from typing import Any, Protocol

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = ["EpochSetter", "HasSetEpoch", "ScheduleStep"]


class ScheduleStep:
    """Step a schedule after each iteration or epoch; ``ReduceLROnPlateau`` after each epoch that was validated.

    MONAI's ``LrScheduleHandler`` steps such a schedule after every epoch, so that with a ``val_interval`` of 5 one
    validation counts five times, and the first epochs have nothing to tell. It comes after validation.

    Args:
        lr_scheduler: the schedule.
        evaluator: the evaluator that validates; its key metric decides about a plateau.
        epoch_level: whether the other schedules step after each epoch instead of after each iteration.
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
        engine.add_event_handler(Events.EPOCH_COMPLETED if by_epoch else Events.ITERATION_COMPLETED, self)

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

    Args:
        sampler: an ``EpochSampler``, or torch's ``DistributedSampler``.
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
        """
        self.sampler.set_epoch(engine.state.epoch - 1)
