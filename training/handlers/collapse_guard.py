# SPDX-License-Identifier: Apache-2.0
"""Guards that stop a training which can no longer succeed: the loss is not finite, or the output collapses."""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor

from .deferred_values import DeferredValues, Noted

__all__ = ["CollapseGuard", "NonFiniteLossHandler", "TrainingCollapsedError"]


class TrainingCollapsedError(RuntimeError):
    """The loss is not finite, or the network restores every cube to the same constant."""


class NonFiniteLossHandler:
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


class CollapseGuard(NonFiniteLossHandler):
    """Stop the training with a clear message when the loss is not finite or the output collapses to a constant.

    Users of the original report such a collapse at its learning rate of 1.0: the loss stays near 0.096, the variance of
    the data, and the run wastes days. A restored batch counts as constant if its standard deviation, over voxels and
    cubes together, is below ``min_relative_std`` times that of the originals.

    Args:
        patience: number of consecutive constant batches that end the training. A network that has just been
            initialised is nearly constant too, so this must be longer than the first steps of learning.
        min_relative_std: smallest ratio of the two standard deviations that still counts as a restoration.
    """

    def __init__(self, patience: int = 200, min_relative_std: float = 0.02) -> None:
        if patience < 1 or not 0 < min_relative_std < 1:
            raise ValueError(
                f"patience must be at least 1 and min_relative_std in (0, 1), found {patience} and {min_relative_std}"
            )
        super().__init__()
        self.patience = patience
        self.min_relative_std = min_relative_std
        self._constant_batches = 0

    def attach(self, engine: Engine) -> None:
        """Watch a trainer.

        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._reset)

    def _reset(self, engine: Engine) -> None:
        self._constant_batches = 0

    def _measure(self, output: Any) -> Tensor:
        with torch.no_grad():
            restored = output[CommonKeys.PRED].sigmoid().std()
            original = output[CommonKeys.LABEL].float().std()
        return torch.stack([output[CommonKeys.LOSS].detach(), restored, original])

    def _judge(self, noted: Noted) -> None:
        super()._judge(noted)
        loss, restored, original = noted.values
        is_constant = restored < self.min_relative_std * original
        self._constant_batches = self._constant_batches + 1 if is_constant else 0
        if self._constant_batches >= self.patience:
            raise TrainingCollapsedError(
                f"the network has restored every cube to one constant for {self.patience} iterations, up to iteration "
                f"{noted.iteration} (epoch {noted.epoch}) (loss {loss:.4f}, variance of the originals "
                f"{original**2:.4f}). It will not recover: start again with a lower --learning_rate or a longer "
                "--warmup_epochs."
            )
