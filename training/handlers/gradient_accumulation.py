# SPDX-License-Identifier: Apache-2.0
"""What MONAI's ``accumulation_steps`` needs so that several small batches make the step of a large one."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import ExitStack

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["GradientAccumulation", "ends_group", "optimizer_steps"]


class GradientAccumulation:
    """Let the gradients of an incomplete group be a mean too, and let processes exchange them once a group.

    MONAI's ``SupervisedTrainer(accumulation_steps=n)`` adds up the gradients of n batches, each divided by n, and steps
    after the n-th and after the last batch of an epoch. If r < n batches are left for that last step, their sum is
    r / n of a mean: it is multiplied by n / r here. Each batch of a group counts alike, as each process of
    ``DistributedDataParallel`` does, however many samples it has. Processes exchange gradients with the last batch of a
    group alone (torch's ``no_sync``). Without effect where each batch is a step.

    Args:
        network: that the trainer calls.
        optimizer: of the trainer.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        self._alone = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: a MONAI ``SupervisedTrainer``.
        """
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        if isinstance(self.network, DistributedDataParallel) and not ends_group(engine):
            self._alone.enter_context(self.network.no_sync())

    def _end(self, engine: Engine) -> None:
        self._alone.close()
        size = _group_size(engine)
        left = int(engine.state.epoch_length or 0) % size
        if not left or engine.state.iteration % int(engine.state.epoch_length or 1):
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(size / left)


def ends_group(engine: Engine) -> bool:
    """Tell whether the optimizer steps in this iteration.

    Args:
        engine: the trainer.
    """
    done = engine.state.iteration % int(engine.state.epoch_length or 1)  # 0 after the last of an epoch
    return done % _group_size(engine) == 0


def optimizer_steps(batches: Sized | int, accumulation_steps: int = 1) -> int:
    """Count the steps of the optimizer in an epoch.

    Args:
        batches: the loader, or the number of its batches.
        accumulation_steps: batches for each step; the last step of an epoch may have fewer.

    Example:
        >>> optimizer_steps(10, 4)
        3
    """
    return -(-(batches if isinstance(batches, int) else len(batches)) // accumulation_steps)


def _group_size(engine: Engine) -> int:
    return int(getattr(engine, "accumulation_steps", 1))
