# SPDX-License-Identifier: Apache-2.0
"""One line of a CSV, and one of the log, per epoch."""

from __future__ import annotations

import csv
import datetime
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.optim import Optimizer

from ...datasets.io.atomic_write import sweep_temporary, write_figure
from ...datasets.io.csv_file import write_csv
from ...datasets.loading.processes import process_rank, sum_over_processes
from .feature_probe import FeatureProbe
from .remaining_time import RemainingTime
from .run_lock import hold_folder
from .step_times import StepTimes, Times

__all__ = ["PartialEpoch", "TrainingHistory"]

logger = logging.getLogger(__name__)

_PROBE_COLUMNS = ("probe", "probe_random")
_BASELINE_COLUMN = "val_baseline"
_OPTIONAL_COLUMNS = (_BASELINE_COLUMN, *_PROBE_COLUMNS)
_SPEED_COLUMNS = ("loader_wait", "step_seconds", "gpu_gib")
_MAY_BE_MISSING = ("changed", *_SPEED_COLUMNS, *_OPTIONAL_COLUMNS)

_TIMED_STEPS = (5, 25)
"""Steps of the first epoch between which its speed is measured; the steps before them start things up."""


class PartialEpoch(NamedTuple):
    """What has been trained of an epoch.

    Attributes:
        loss_sum: sum of the cubes' losses, over all processes.
        cubes: their number.
        seconds: time that it took.
        waited, stepped, steps: see :class:`~models_genesis.training.handlers.step_times.Times`.
    """

    loss_sum: float = 0.0
    cubes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    stepped: float = 0.0
    steps: int = 0


class TrainingHistory:
    """Keep ``history.csv`` and ``history.png``, and log each epoch with what comes next and the time that is left.

    If an epoch has 50 steps or more, its time is estimated from the first ones, so that one sees at once how long a
    training will take. All such times are for the epochs that were asked for; early stopping may end it before.

    Loss, cubes and their speed are those of all processes together. Of the first one are ``loader_wait``, the share of
    the steps' time in which the training waited for the loader, ``step_seconds``, the rest of that time a step, and
    ``gpu_gib``, the memory of the GPU at the epoch's peak. ``seconds`` and ``cubes_per_second`` include validation,
    these do not.

    A resumed run keeps the lines of the epochs before it: those that ``last_epoch.pt`` holds, where ``history.csv`` is
    damaged or was edited. The first line of a run that was resumed with other settings says which (``changed``). It
    comes after validation, see :class:`~models_genesis.training.TrainingRunHandler`.

    Args:
        output_dir: folder of the two files.
        optimizer: whose learning rate is noted.
        evaluator: the evaluator that validates; its key metric is noted.
        rank: this process's rank, of which 0 alone writes; None asks ``torch.distributed``.
        metric: what the key metric is called, where it is another quantity than the training loss.
        probe: is attached too, and adds the columns ``probe`` and ``probe_random``, see
            :class:`~models_genesis.training.FeatureProbe`; None or one without a data list: no such columns.
        baseline: another metric of the evaluator, which its key metric must fall below, such as that of
            :class:`~models_genesis.training.MeanImageError`: it is noted as ``val_baseline``, drawn, and a training
            whose best validation is not below it ends with a warning. None: no such column.
        val_interval: epochs from one validation to the next, for the time that is left.
    """

    columns: tuple[str, ...] = (
        "epoch",
        "train_loss",
        "val_metric",
        "learning_rate",
        "seconds",
        "cubes_per_second",
        *_SPEED_COLUMNS,
        "changed",
    )

    def __init__(
        self,
        output_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Engine,
        rank: int | None = None,
        metric: str | None = None,
        probe: FeatureProbe | None = None,
        baseline: str | None = None,
        val_interval: int = 1,
    ) -> None:
        self.path = Path(output_dir) / "history.csv"
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rank = process_rank() if rank is None else rank
        self.metric = metric
        self.probe = probe if probe is not None and probe.enabled else None
        self.baseline = baseline
        self.val_interval = val_interval
        self.columns = TrainingHistory.columns
        if baseline is not None:
            self.columns = (*self.columns, _BASELINE_COLUMN)
        if self.probe is not None:
            self.columns = (*self.columns, *_PROBE_COLUMNS)
        self._rows: list[dict[str, Any]] = []
        self._sums: Tensor = torch.zeros(2, dtype=torch.float64)
        self._times = StepTimes()
        self._begin = 0.0
        self._before: PartialEpoch | None = None
        self._timed_from: float | None = None
        self._estimated = False
        self._remaining: RemainingTime | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the MONAI trainer.
        """
        if self.probe is not None:
            self.probe.attach(engine)  # before the epoch's line is written
        engine.add_event_handler(Events.STARTED, self._hold)
        engine.add_event_handler(Events.STARTED, self._start_clock)
        self._times.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._estimate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        if self.baseline is not None:
            engine.add_event_handler(Events.COMPLETED, self._compare_with_baseline)

    def _hold(self, engine: Engine) -> None:
        """Keep other trainings out, and see before the first epoch that the folder can be written."""
        if self.rank == 0:
            hold_folder(engine, self.path.parent)
            sweep_temporary(self.path.parent, [self.path.name, self.path.with_suffix(".png").name], older_than=0)

    def _start_epoch(self, engine: Engine) -> None:
        if not self._rows and engine.state.epoch > 1 and self.rank == 0:
            kept = [row for row in getattr(engine.state, "history", []) if int(row["epoch"]) < engine.state.epoch]
            rows = _compare(kept, self.path) if kept else read_history(self.path, before=engine.state.epoch)
            # the run before may have had a probe where this one has none, or the other way round
            self._rows = [{name: row.get(name, "") for name in self.columns} for row in rows]
        before = self._before or PartialEpoch()
        self._before = None
        self._sums = torch.tensor([before.loss_sum, before.cubes], dtype=torch.float64)
        self._times.begin(engine, Times(before.waited, before.stepped, before.steps))
        self._begin = time.monotonic() - before.seconds

    def partial_epoch(self) -> PartialEpoch:
        """What the line of the epoch that is under way will be made of, so far."""
        loss_sum, cubes = self._sums.tolist()
        return PartialEpoch(loss_sum, round(cubes), time.monotonic() - self._begin, *self._times.times)

    def go_on(self, part: PartialEpoch) -> None:
        """Begin the next epoch with a part of it that was trained before, as after a resume in its middle.

        Args:
            part: see :meth:`partial_epoch`.
        """
        self._before = part

    def _start_clock(self, engine: Engine) -> None:
        self._remaining = RemainingTime(self.val_interval, engine.state.max_epochs)
        self._estimated, self._timed_from = False, None

    def _estimate(self, engine: Engine) -> None:
        """Say after some steps of this session's first epoch how long the training will take."""
        first, last = _TIMED_STEPS
        steps = engine.state.epoch_length
        if self.rank != 0 or self._estimated or steps < 2 * last:
            return
        done = (engine.state.iteration - 1) % steps + 1
        if done == first:
            self._timed_from = time.monotonic()
        if done != last or self._timed_from is None:
            return
        self._estimated = True
        seconds = (time.monotonic() - self._timed_from) / (last - first) * steps
        epochs = engine.state.max_epochs - engine.state.epoch + 1
        logger.info(
            "epoch %d/%d: about %s an epoch, %s for the %d epochs to do, without validation",
            engine.state.epoch,
            engine.state.max_epochs,
            _duration(seconds),
            _duration(epochs * seconds),
            epochs,
        )

    def _count(self, engine: Engine) -> None:
        # summed where it lies: reading it in each iteration would let a GPU wait; over all processes at once, so that
        # the first one can save the middle of an epoch without asking the others
        output = engine.state.output
        loss, size = output[CommonKeys.LOSS].detach().double(), len(output[CommonKeys.IMAGE])
        self._sums = self._sums.to(loss.device) + sum_over_processes(
            torch.stack([size * loss, loss.new_full((), size)])
        )

    def _end_epoch(self, engine: Engine) -> None:
        if self.rank != 0:
            return
        loss_sum, cubes, seconds, *_ = self.partial_epoch()
        times, gpu_gib = self._times.times, self._times.gpu_gib
        state = self.evaluator.state
        validated = state.epoch == engine.state.epoch
        changed = getattr(engine.state, "changed_settings", "")
        engine.state.changed_settings = ""
        row = {
            "epoch": engine.state.epoch,
            "train_loss": f"{loss_sum / cubes:.6f}",
            "val_metric": f"{state.metrics[state.key_metric_name]:.6f}" if validated else "",
            "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.3g}",
            "seconds": f"{seconds:.1f}",
            "cubes_per_second": f"{cubes / seconds:.2f}",
            "loader_wait": f"{times.loader_wait:.3f}",
            "step_seconds": f"{times.step_seconds:.4g}",
            "gpu_gib": "" if gpu_gib is None else f"{gpu_gib:.2f}",
            "changed": changed,
        }
        baseline = ""
        if self.baseline is not None:
            row[_BASELINE_COLUMN] = f"{state.metrics[self.baseline]:.6f}" if validated else ""
            baseline = f" ({row[_BASELINE_COLUMN]} without a network)" if validated else ""
        if self.probe is not None:
            values = {"probe": self.probe.value, "probe_random": self.probe.baseline}
            row |= {name: "" if value is None else f"{value:.6f}" for name, value in values.items()}
        self._rows.append({name: str(value) for name, value in row.items()})
        engine.state.history = self._rows  # goes into the last state, from which the file can be made again
        write_csv(self.path, self.columns, self._rows)
        write_figure(self.path.with_suffix(".png"), draw_history(self._rows, self.metric))
        logger.info(
            "epoch %d/%d: train loss %s, validation %s%s%s, learning rate %s, %s cubes/s, %s; "
            "%.0f %% of the steps' time waiting for the loader, the rest %s s a step%s",
            engine.state.epoch,
            engine.state.max_epochs,
            row["train_loss"],
            row["val_metric"] or "-",
            baseline,
            " (best so far)" if validated and state.best_metric_epoch == state.epoch else "",
            row["learning_rate"],
            row["cubes_per_second"],
            self._outlook(engine.state.epoch, seconds),
            100 * times.loader_wait,
            row["step_seconds"],
            f", {row['gpu_gib']} GiB of the GPU" if row["gpu_gib"] else "",
        )

    def _outlook(self, epoch: int, seconds: float) -> str:
        """Say how long the epochs after one will take, and which of them is validated next."""
        assert self._remaining is not None
        self._remaining.add(epoch, seconds)
        left = f"{_duration(self._remaining.seconds_after(epoch))} left"
        following = self._remaining.next_validation(epoch)
        return left if following in (None, epoch + 1) else f"{left}, validation after epoch {following}"

    def _compare_with_baseline(self, engine: Engine) -> None:
        """Say so where the weights that were chosen are worth nothing on the cases that chose them."""
        state = self.evaluator.state
        found = state.metrics.get(self.baseline)
        if self.rank != 0 or found is None or state.best_metric_epoch < 1 or state.best_metric < found:
            return
        logger.warning(
            "the best validation, %.6f in epoch %d, is not below the %.6f that can be had without a network: these "
            "weights have learnt nothing that shows on the validation cases, and the epoch was chosen by chance. "
            "Train longer, or validate on more scans and of more regions",
            state.best_metric,
            state.best_metric_epoch,
            found,
        )


def _duration(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))


def read_history(path: Path, before: int) -> list[dict[str, str]]:
    """Read the lines of ``history.csv`` up to an epoch.

    Args:
        path: the file.
        before: the first epoch that does not count.

    Returns:
        One line for each epoch that was trained, none where there is no file.

    Raises:
        ValueError: when the file is damaged or was edited: it names the line and what is wrong with it.
    """
    if not path.is_file():
        return []
    advice, columns = "mend it or move it away; the training does not need it", TrainingHistory.columns
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            found = list(reader.fieldnames or ())
            if found != [
                name for name in (*columns, *_OPTIONAL_COLUMNS) if name in found or name not in _MAY_BE_MISSING
            ]:
                raise ValueError(f"expected the columns {','.join(columns)}, found {found}")
            rows = []
            for number, row in enumerate(reader, 1):
                _check_row(row, number, reader.line_num)
                rows.append({name: str(value) for name, value in row.items()})
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged or was edited: {error}; {advice}") from error
    return [row for row in rows if int(row["epoch"]) < before]


def _check_row(row: dict[str, Any], number: int, line: int) -> None:
    """Refuse a line that no training writes: epochs count from 1, all else are finite numbers."""
    if row["epoch"] != str(number):
        raise ValueError(f"line {line}: expected epoch {number}, found {row['epoch']!r}")
    for name, text in row.items():
        if name in ("epoch", "changed") or (text == "" and name in ("val_metric", *_SPEED_COLUMNS, *_OPTIONAL_COLUMNS)):
            continue
        try:
            good = math.isfinite(float(text))
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"line {line}: expected a number as {name}, found {text!r}")


def _compare(kept: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """Take the lines that the last state holds, and say where the file has others."""
    try:
        same = read_history(path, len(kept) + 1) == kept
    except ValueError as error:
        logger.warning("%s", error)
        same = False
    if not same:
        if path.is_file():
            aside = path.with_name(f"{path.stem}_before_resuming{path.suffix}")
            path.replace(aside)
            logger.warning("%s differs from the last state: it is kept as %s and made again", path, aside)
        else:
            logger.warning("%s is missing: it is made again from the last state", path)
    return list(kept)


def draw_history(rows: list[dict[str, Any]], metric: str | None = None) -> Figure:
    """Draw the training loss and the validation metric over the epochs.

    Args:
        rows: lines of ``history.csv``.
        metric: name of the validation metric, which then has an axis of its own; None where it is the training loss's
            quantity, a mean squared error.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6, 4))
    # margins as they are needed: to find them, matplotlib would draw all of it twice, after each epoch
    figure.subplots_adjust(
        left=0.17 if metric is None else 0.14, right=0.97 if metric is None else 0.88, bottom=0.12, top=0.9
    )
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
    compared = [row for row in validated if row.get(_BASELINE_COLUMN)]
    if compared:
        other.plot(
            [int(row["epoch"]) for row in compared],
            [float(row[_BASELINE_COLUMN]) for row in compared],
            "--",
            lw=1,
            color="tab:gray",
            label="without a network",
        )
    axes.set(xlabel="epoch", ylabel="mean squared error" if metric is None else "training loss", yscale="log")
    if metric is not None:
        axes.set_yscale("linear")
        other.set(ylabel=f"validation {metric}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="upper center", ncols=3)
    return figure
