# SPDX-License-Identifier: Apache-2.0
"""A guard against a non-finite loss."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor

from .deferred_values import DeferredValues, Noted

__all__ = ["FiniteLossGuard", "TrainingCollapsedError"]


class TrainingCollapsedError(RuntimeError):
    """The loss is not finite, or the network restores every cube to the same constant."""


class FiniteLossGuard:
    """Stop the training with a clear message as soon as the loss is not finite, before it reaches a checkpoint.

    On a processor this happens before the weights change. On a GPU it is noticed one iteration later, and at the latest
    at the end of the epoch, since asking in each iteration would let the GPU wait. Attach it before what validates and
    saves. ignite's ``TerminateOnNan`` ends the run as if it had succeeded.
    """

    def __init__(self) -> None:
        self._deferred = DeferredValues()

    def attach(self, engine: Engine) -> None:
        """Watch a trainer.

        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        # a run that is ended within an epoch must not leave an event of the GPU behind: freed in a worker process that
        # was forked later, it would abort it
        for moment in (Events.EPOCH_COMPLETED, Events.COMPLETED):
            engine.add_event_handler(moment, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Judge an iteration.

        Args:
            engine: the trainer, its output holding ``loss``.

        Raises:
            TrainingCollapsedError: when the training cannot succeed any more.
        """
        state = engine.state
        self._judge_all(self._deferred.exchange(self._measure(state.output), state.iteration, state.epoch))

    def _finish(self, engine: Engine) -> None:
        self._judge_all(self._deferred.flush())

    def _judge_all(self, noted: list[Noted]) -> None:
        for each in noted:
            self._judge(each)

    def _measure(self, output: Any) -> Tensor:
        """What is judged, on the device: first the loss."""
        loss: Tensor = output[CommonKeys.LOSS].detach().reshape(1)
        return loss

    def _judge(self, noted: Noted) -> None:
        loss = noted.values[0]
        if not math.isfinite(loss):
            raise TrainingCollapsedError(
                f"the loss is {loss} at iteration {noted.iteration} (epoch {noted.epoch}). The last good "
                "weights are in the checkpoint folder. Lower --learning_rate, lengthen --warmup_epochs, or try "
                "--amp False."
            )
