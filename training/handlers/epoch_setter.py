# SPDX-License-Identifier: Apache-2.0
"""Tells a sampler which epoch begins."""

from __future__ import annotations

from typing import Protocol

from ignite.engine import Engine, Events

__all__ = ["EpochSetter"]


class _HasSetEpoch(Protocol):
    def set_epoch(self, epoch: int) -> None: ...


class EpochSetter:
    """Call ``sampler.set_epoch`` at the start of every epoch, so that a resumed run draws what it would have drawn.

    Args:
        sampler: an ``EpochSampler``, or torch's ``DistributedSampler``.
    """

    def __init__(self, sampler: _HasSetEpoch) -> None:
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
