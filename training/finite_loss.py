# SPDX-License-Identifier: Apache-2.0
"""A guard against a loss that is no number."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

__all__ = ["FiniteLossGuard", "TrainingCollapsedError"]


class TrainingCollapsedError(RuntimeError):
    """The loss is not finite, or the network restores every cube to the same constant."""


class FiniteLossGuard:
    """Stop the training with a clear message as soon as the loss is not finite, before it reaches the weights.

    ignite's ``TerminateOnNan`` ends the run as if it had succeeded.
    """

    def attach(self, engine: Engine) -> None:
        """Watch a trainer.

        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Judge one iteration.

        Args:
            engine: the trainer, its output holding ``loss``.

        Raises:
            TrainingCollapsedError: when the loss is NaN or infinite.
        """
        output: Any = engine.state.output
        loss = output[CommonKeys.LOSS].item()
        if not math.isfinite(loss):
            raise TrainingCollapsedError(
                f"the loss is {loss} at iteration {engine.state.iteration} (epoch {engine.state.epoch}). The last good "
                "weights are in the checkpoint folder. Lower --learning_rate, lengthen --warmup_epochs, or try "
                "--amp False."
            )
