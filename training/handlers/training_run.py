# SPDX-License-Identifier: Apache-2.0
"""Everything that a training run needs around its steps, attached in the one order in which it is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from ignite.handlers.base_logger import BaseHandler, BaseLogger
from monai.engines import Evaluator
from monai.handlers import (
    ClearMLHandler,
    EarlyStopHandler,
    GarbageCollector,
    MetricsSaver,
    MLFlowHandler,
    StatsHandler,
    TensorBoardHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
)
from monai.utils.enums import CommonKeys
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...datasets.loading.processes import process_count, process_rank
from ..engines.model_settings import network_entry
from .checkpoint import TrainingCheckpoint
from .collapse_guard import NonFiniteLossHandler
from .feature_probe import FeatureProbe
from .graceful_shutdown import GracefulShutdown
from .gradient_accumulation import GradientAccumulation
from .history import TrainingHistory
from .layer_rates import LayerRates
from .process_group import BufferBroadcast
from .run_progress import RunProgressBar
from .schedule_step import EpochSetter, HasSetEpoch, ScheduleStep

__all__ = ["HandlerOrderError", "TrainingRunHandler", "use_handler"]

_REPORTERS = (
    StatsHandler,
    TensorBoardHandler,
    MLFlowHandler,
    ClearMLHandler,
    MetricsSaver,
    GarbageCollector,
    BaseHandler,
    BaseLogger,
)
"""What only reads the run: MONAI appends such a handler for ``--tracking mlflow``, and a checkpoint lacks nothing."""


class HandlerOrderError(RuntimeError):
    """Something was attached after the handler that writes the checkpoint, whose work the checkpoint would not hold."""


class TrainingRunHandler:
    """Stop signals, guard, progress, validation, schedule, history, early stopping and checkpoints of a training.

    Their order decides what a checkpoint holds: an epoch is validated, then the schedule steps, then the history gets
    its line, and then all of it is saved. So they are attached here, in this order:

    1. :class:`LayerRates`
    2. :class:`GracefulShutdown`
    3. :class:`EpochSetter`, if there is a sampler
    4. :class:`GradientAccumulation`, for a trainer with ``accumulation_steps``
    5. ``guard``, which stops a training that can no longer succeed
    6. :class:`RunProgressBar` and MONAI's ``TensorBoardStatsHandler``, in the first process
    7. MONAI's ``ValidationHandler``; the evaluator gets :class:`BufferBroadcast`, TensorBoard and early stopping
    8. :class:`ScheduleStep`
    9. :class:`TrainingHistory`, with the probe
    10. :class:`TrainingCheckpoint`

    What else acts on a training goes before it in the trainer's list of handlers. A handler of ``EPOCH_COMPLETED`` that
    comes after the checkpoint is refused when the training starts, unless it only reports, as MONAI's loggers do.

    Args:
        network: the network that is trained, in the ``DistributedDataParallel`` that the trainer calls, if any.
        optimizer: its optimizer.
        lr_scheduler: its learning-rate schedule; ``ReduceLROnPlateau`` steps after each validation.
        evaluator: the MONAI evaluator that validates. Its key metric, with its ``metric_cmp_fn``, decides which weights
            are kept and when to stop.
        ckpt_dir: folder of the weights and of the states to resume from.
        output_dir: folder of the history and of the TensorBoard events.
        sampler: gets the number of each epoch by ``set_epoch``; None for one that needs none.
        val_interval: epochs from one validation to the next; of a shorter training the last epoch is validated.
        early_stop_patience: validations without progress that end the training; None for no early stopping.
        resume: whether to go on from the newest state; ``"auto"`` begins where there is none.
        resume_changed: whether to resume with other settings too.
        keep_last: number of states to keep.
        save_every_minutes: time from one state within an epoch to the next, from which a resumed training goes on
            exactly; None saves after epochs alone, see :class:`TrainingCheckpoint`.
        model_settings: what inference has to know, written next to the weights, with the network.
        metric: what the key metric is called in the history's picture, where it is another quantity than the loss.
        probe: measures the features every few epochs.
        baseline: another metric of the evaluator, which its key metric must fall below, see :class:`TrainingHistory`.
        guard: None for :class:`NonFiniteLossHandler`.
        lr_step_per_epoch: whether the schedule steps after each epoch instead of after each step of the optimizer.
        freeze_epochs: first epochs in which the slow parts of :func:`layer_groups` are held back.
        freeze_factor: what their learning rate is multiplied by then, in [0, 1]; 0 freezes them.
        cudnn_benchmark: whether cuDNN searches for its fastest algorithms; the result then differs from run to run.
        progress: whether to show a progress bar, on a terminal.
        tensorboard: whether to write TensorBoard events.
        iteration_log: iterations from one loss in TensorBoard to the next.

    Raises:
        HandlerOrderError: when the training starts, naming the handler that comes too late.
        ValueError: see :class:`TrainingCheckpoint`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        evaluator: Evaluator,
        ckpt_dir: str | Path,
        output_dir: str | Path,
        sampler: HasSetEpoch | None = None,
        val_interval: int = 1,
        early_stop_patience: int | None = None,
        resume: bool | Literal["auto"] = False,
        resume_changed: bool = False,
        keep_last: int = 2,
        save_every_minutes: float | None = 30,
        model_settings: Mapping[str, Any] | None = None,
        metric: str | None = None,
        probe: FeatureProbe | None = None,
        baseline: str | None = None,
        guard: NonFiniteLossHandler | None = None,
        lr_step_per_epoch: bool = False,
        freeze_epochs: int = 0,
        freeze_factor: float = 0.0,
        cudnn_benchmark: bool = False,
        progress: bool = True,
        tensorboard: bool = True,
        iteration_log: int = 10,
    ) -> None:
        self.network = network
        self.evaluator = evaluator
        self.output_dir = output_dir
        self.sampler = sampler
        self.val_interval = val_interval
        self.guard = NonFiniteLossHandler() if guard is None else guard
        self.layer_rates = LayerRates(optimizer, freeze_epochs, freeze_factor)
        self.cudnn_benchmark = cudnn_benchmark
        self.progress = progress
        self.tensorboard = tensorboard
        self.iteration_log = iteration_log
        self.early_stop = None if early_stop_patience is None else EarlyStopHandler(early_stop_patience, self._score)
        self._joined = False
        self.accumulation = GradientAccumulation(network, optimizer)
        self.schedule = ScheduleStep(lr_scheduler, evaluator, lr_step_per_epoch)
        self.history = TrainingHistory(
            output_dir,
            optimizer,
            evaluator,
            metric=metric,
            probe=probe,
            baseline=baseline,
            val_interval=val_interval,
        )
        self.checkpoint = TrainingCheckpoint(
            ckpt_dir,
            network,
            optimizer,
            lr_scheduler,
            evaluator,
            early_stop=self.early_stop,
            resume=resume,
            keep_last=keep_last,
            resume_changed=resume_changed,
            model_settings=None if model_settings is None else {**model_settings, **network_entry(network)},
            save_every_minutes=save_every_minutes,
            history=self.history,
        )

    def attach(self, engine: Engine) -> None:
        """Attach everything to a trainer and to the evaluator.

        Args:
            engine: the MONAI trainer.
        """
        engine.add_event_handler(Events.STARTED, self._set_cudnn)
        engine.add_event_handler(Events.STARTED, self.check_order)
        engine.add_event_handler(Events.STARTED, self._join_evaluator)
        self.layer_rates.attach(engine)
        # of several processes one would wait for another that has stopped at the step before
        alone = self.checkpoint.save_every_minutes is not None and process_count() == 1
        GracefulShutdown(save=self.checkpoint.save_mid_epoch if alone else None).attach(engine)
        if self.sampler is not None:
            EpochSetter(self.sampler).attach(engine)
        self.accumulation.attach(engine)
        self.guard.attach(engine)
        if process_rank() == 0:
            self._report(engine)
        self._validate(engine)
        self.schedule.attach(engine)
        self.history.attach(engine)
        self.checkpoint.attach(engine)

    def _set_cudnn(self, engine: Engine) -> None:
        """Have convolutions on a GPU give the same result each time, or be a little faster."""
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.backends.cudnn.deterministic = not self.cudnn_benchmark

    def _report(self, engine: Engine) -> None:
        """Show the progress, and write losses and metrics for TensorBoard."""
        if self.progress:
            RunProgressBar("training").attach(engine)
        if self.tensorboard:
            log_dir = str(self.output_dir)
            TensorBoardStatsHandler(
                log_dir=log_dir, tag_name="train_loss", iteration_log=self.iteration_log, output_transform=_loss
            ).attach(engine)

    def _join_evaluator(self, engine: Engine) -> None:
        """Attach to the evaluator what is about validation.

        Only a training that starts does so: an evaluation by the same config may build its trainer too, as MONAI's
        check of properties does, and must not be stopped early or write weights.
        """
        if self._joined:
            return
        self._joined = True
        if self.tensorboard and process_rank() == 0:
            TensorBoardStatsHandler(log_dir=str(self.output_dir), iteration_log=False).attach(self.evaluator)
        BufferBroadcast(self.network).attach(self.evaluator)
        if self.early_stop is not None:
            self.early_stop.attach(self.evaluator)

    def _validate(self, engine: Engine) -> None:
        """Validate at intervals, and stop where it shows no progress."""
        if self.early_stop is not None:
            self.early_stop.set_trainer(engine)
        interval = min(self.val_interval, engine.state.max_epochs or self.val_interval)
        ValidationHandler(interval, self.evaluator).attach(engine)

    def _score(self, evaluator: Any) -> float:
        """The key metric as early stopping wants it: the higher, the better."""
        value = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        return value if evaluator.metric_cmp_fn(1.0, 0.0) else -value

    def check_order(self, engine: Engine) -> None:
        """Refuse handlers whose work the checkpoint of an epoch would not hold.

        Args:
            engine: the trainer.

        Raises:
            HandlerOrderError: naming the first of them.
        """
        handlers = [_original(entry[0]) for entry in engine._event_handlers[Events.EPOCH_COMPLETED]]
        late = handlers[handlers.index(self.checkpoint.save_last) + 1 :]
        for handler in late:
            owner = getattr(handler, "__self__", handler)
            if not isinstance(owner, _REPORTERS):
                name = type(owner).__name__ if not hasattr(owner, "__qualname__") else owner.__qualname__
                raise HandlerOrderError(
                    f"handlers of EPOCH_COMPLETED: expected the checkpoint of {type(self).__name__} as the last, found "
                    f"{name} after it, whose work would be missing when the training is resumed; attach it before"
                )


def use_handler(handler: Any) -> Any:
    """Give a handler that a config has at an id of its own, as an item of the trainer's list of handlers.

    MONAI's check of a bundle's properties and MONAI Label expect components in that list, not references. At an id of
    its own a handler can be set from the command line, wherever it stands in the list.

    Args:
        handler: such as ``"@train#run"``.

    Returns:
        The handler.
    """
    return handler


def _loss(output: Any) -> Any:
    return output[CommonKeys.LOSS]


def _original(handler: Any) -> Any:
    """The handler itself, where ignite has wrapped it to filter events."""
    return handler.__wrapped__ if hasattr(handler, "_parent") else handler
