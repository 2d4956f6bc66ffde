# SPDX-License-Identifier: Apache-2.0
"""One line of a CSV, and one of the log, per epoch."""

from __future__ import annotations

import csv
import datetime
import logging
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.optim import Optimizer

from .feature_probe import FeatureProbe
from .files import write_csv, write_figure

__all__ = ["TrainingHistory"]

logger = logging.getLogger(__name__)


class TrainingHistory:
    """Keep ``history.csv`` and ``history.png``, and log each epoch with the time that is left.

    A resumed run keeps the lines of the epochs before it. Attach it after validation.

    Args:
        output_dir: folder of the two files.
        optimizer: whose learning rate is noted.
        evaluator: the evaluator that validates; its key metric is noted.
        rank: this process's rank; rank 0 alone writes.
        metric: what the key metric is called, where it is another quantity than the training loss.
        probe: adds the columns ``probe`` and ``probe_random``, see :class:`.feature_probe.FeatureProbe`; None or one
            without a data list: no such columns.
    """

    columns: tuple[str, ...] = ("epoch", "train_loss", "val_metric", "learning_rate", "seconds", "cubes_per_second")

    def __init__(
        self,
        output_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Engine,
        rank: int = 0,
        metric: str | None = None,
        probe: FeatureProbe | None = None,
    ) -> None:
        self.path = Path(output_dir) / "history.csv"
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rank = rank
        self.metric = metric
        self.probe = probe if probe is not None and probe.enabled else None
        if self.probe is not None:
            self.columns = (*TrainingHistory.columns, "probe", "probe_random")
        self._rows: list[dict[str, Any]] = []
        self._loss_sum: Tensor | float = 0.0
        self._cubes = 0
        self._begin = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the MONAI trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _start_epoch(self, engine: Engine) -> None:
        if not self._rows and engine.state.epoch > 1:
            self._rows = self._read(before=engine.state.epoch)
        self._loss_sum, self._cubes, self._begin = 0.0, 0, time.monotonic()

    def _read(self, before: int) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < before]
        # the run before may have had a probe where this one has none, or the other way round
        return [{name: row.get(name, "") for name in self.columns} for row in rows]

    def _count(self, engine: Engine) -> None:
        # summed where it lies: reading it in each iteration would let a GPU wait
        output = engine.state.output
        size = len(output[CommonKeys.IMAGE])
        self._loss_sum = self._loss_sum + size * output[CommonKeys.LOSS].detach().double()
        self._cubes += size

    def _end_epoch(self, engine: Engine) -> None:
        if self.rank != 0:
            return
        seconds = time.monotonic() - self._begin
        state = self.evaluator.state
        validated = state.epoch == engine.state.epoch
        row = {
            "epoch": engine.state.epoch,
            "train_loss": f"{float(self._loss_sum) / self._cubes:.6f}",
            "val_metric": f"{state.metrics[state.key_metric_name]:.6f}" if validated else "",
            "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.3g}",
            "seconds": f"{seconds:.1f}",
            "cubes_per_second": f"{self._cubes / seconds:.2f}",
        }
        if self.probe is not None:
            values = {"probe": self.probe.value, "probe_random": self.probe.baseline}
            row |= {name: "" if value is None else f"{value:.6f}" for name, value in values.items()}
        self._rows.append(row)
        write_csv(self.path, self.columns, self._rows)
        write_figure(self.path.with_suffix(".png"), draw_history(self._rows, self.metric))
        left = datetime.timedelta(seconds=round(seconds * (engine.state.max_epochs - engine.state.epoch)))
        logger.info(
            "epoch %d/%d: train loss %s, validation %s%s, learning rate %s, %s cubes/s, %s left",
            engine.state.epoch,
            engine.state.max_epochs,
            row["train_loss"],
            row["val_metric"] or "-",
            " (best so far)" if validated and state.best_metric_epoch == state.epoch else "",
            row["learning_rate"],
            row["cubes_per_second"],
            left,
        )


def draw_history(rows: list[dict[str, Any]], metric: str | None = None) -> Figure:
    """Draw the training loss and the validation metric over the epochs.

    Args:
        rows: lines of ``history.csv``.
        metric: name of the validation metric, which then has an axis of its own; None where it is the training loss's
            quantity, a mean squared error.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([int(row["epoch"]) for row in rows], [float(row["train_loss"]) for row in rows], label="training")
    validated = [row for row in rows if row["val_metric"]]
    other = axes if metric is None else axes.twinx()
    other.plot(
        [int(row["epoch"]) for row in validated],
        [float(row["val_metric"]) for row in validated],
        "o-",
        ms=3,
        color="tab:orange",
        label="validation",
    )
    axes.set(xlabel="epoch", ylabel="mean squared error" if metric is None else "training loss", yscale="log")
    if metric is not None:
        axes.set_yscale("linear")
        other.set(ylabel=f"validation {metric}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
