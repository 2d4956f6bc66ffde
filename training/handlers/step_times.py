# SPDX-License-Identifier: Apache-2.0
"""Where the time of an epoch's steps goes, and how much memory of a GPU they take."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from ignite.engine import Engine, Events

__all__ = ["StepTimes", "Times"]


class Times(NamedTuple):
    """Times of an epoch's steps, validation not among them.

    Attributes:
        waited: seconds in which the training waited for batches.
        stepped: seconds of the steps themselves, handlers included.
        steps: their number.
    """

    waited: float = 0.0
    stepped: float = 0.0
    steps: int = 0

    @property
    def loader_wait(self) -> float:
        """Share of the time that was spent waiting."""
        return self.waited / max(self.waited + self.stepped, 1e-12)

    @property
    def step_seconds(self) -> float:
        """Mean time of a step."""
        return self.stepped / max(self.steps, 1)


class StepTimes:
    """Measure :class:`Times` on the host's clock, without making a GPU wait.

    On a GPU, which works while the host asks for the next batch, the share that the training waited is the most that
    the loader can have cost. A process measures itself.

    Attributes:
        times: of the epoch's steps so far.
        gpu_gib: memory of tensors at the peak of these steps, in GiB; None where the training is not on a GPU.
    """

    def __init__(self) -> None:
        self.times = Times()
        self.gpu_gib: float | None = None
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.STARTED, self._install)

    def begin(self, engine: Engine, before: Times | None = None) -> None:
        """Begin an epoch.

        Args:
            engine: the trainer.
            before: times of the steps of this epoch that an interrupted run has made.
        """
        self.times = before or Times()
        self.gpu_gib = None
        if self._on_gpu(engine):
            torch.cuda.reset_peak_memory_stats(engine.state.device)

    def _install(self, engine: Engine) -> None:
        """Come last: a state that is saved before a batch is asked for is no waiting, other handlers' work is."""
        if engine.has_event_handler(self._ask, Events.GET_BATCH_STARTED):
            return
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)

    def _ask(self) -> None:
        self._since = time.monotonic()

    def _get(self) -> None:
        now = time.monotonic()
        self.times = self.times._replace(waited=self.times.waited + now - self._since)
        self._since = now

    def _step(self, engine: Engine) -> None:
        waited, stepped, steps = self.times
        self.times = Times(waited, stepped + time.monotonic() - self._since, steps + 1)
        if self._on_gpu(engine):  # the allocator's own count: no wait for the GPU
            self.gpu_gib = torch.cuda.max_memory_allocated(engine.state.device) / 2**30

    @staticmethod
    def _on_gpu(engine: Engine) -> bool:
        device = getattr(engine.state, "device", None)
        return isinstance(device, torch.device) and device.type == "cuda"
