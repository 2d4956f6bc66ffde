# SPDX-License-Identifier: Apache-2.0
"""Best weights, and a last state from which a training goes on exactly."""

from __future__ import annotations

import logging
import math
import random
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.handlers import EarlyStopHandler
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ...datasets.io.atomic_write import sweep_temporary
from ...datasets.loading.processes import gather_from_processes, process_count, process_rank
from ...datasets.loading.samplers import EpochSampler
from ...networks.weight_container import DamagedFileError, named_tensors, non_finite
from ...networks.weight_files import save_weights
from ..engines.model_settings import save_trained_weights
from ..engines.moved_keys import MOVED_KEYS
from .birth_certificate import CERTIFICATE, data_of_birth, session_of_now, sources_of_run, write_birth_certificate
from .gradient_accumulation import ends_group, optimizer_steps
from .history import PartialEpoch, TrainingHistory
from .last_states import (
    check_room,
    read_last_state,
    read_whole_state,
    state_before,
    write_last_state,
)
from .run_lock import FolderLock, hold_folder
from .run_settings import (
    ChangedSettingsError,
    changed_settings,
    data_facts,
    describe_changes,
    measure_changed,
    rate_factor,
    schedule_changes,
    settings_of_run,
    steps_of_schedule,
    take_over_schedule,
)
from .schedule_step import steps_within_epoch
from .seen_scans import warn_of_seen_scans, warn_of_shared_scans

__all__ = ["TrainingCheckpoint"]

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Write ``model.pt`` at every better validation, ``last_epoch.pt`` after every epoch, and resume from the latter.

    ``model.pt`` is a plain state dict, as ``monai.bundle`` and MONAI Label load it. ``last_epoch.pt`` holds the
    network, the optimizer, the learning-rate schedule, the loss scale, the epoch, the best metric, the count of early
    stopping and the random states; MONAI Label takes the file with the shortest name, so this name must be the longer
    one. MONAI's ``CheckpointSaver`` writes in place and forgets its best metric when it resumes: a full disk would
    leave half a file and a resumed run could overwrite better weights by worse.

    With ``save_every_minutes`` the middle of a long epoch is saved too, as ``last_iteration.pt``, which the end of the
    epoch removes: resuming takes it, with the batches that are left of the epoch, and equals a training that was never
    interrupted. With other settings, for which the rest of an epoch would be another one, the last whole epoch counts.

    The state before stays as ``last_epoch_before_1.pt``: where ``last_epoch.pt`` is damaged, resuming falls back to it
    with a warning. While the training runs it holds the folder, so that a second one is refused.

    A training that reaches its end writes ``birth_certificate.json``: data with hashes, settings, code, hours.

    It must be the last handler of an epoch, so that validation and learning-rate step are part of what is saved:
    :class:`~models_genesis.training.TrainingRunHandler` attaches it so, and refuses what comes later.

    Args:
        ckpt_dir: folder of the two files, made if absent.
        network: the network that is trained; of a ``DistributedDataParallel`` the inner one is saved.
        optimizer: its optimizer.
        lr_scheduler: its learning-rate schedule.
        evaluator: the MONAI evaluator whose key metric decides what is best.
        early_stop: the handler of early stopping, if there is one.
        resume: whether to go on from the newest state; ``"auto"`` goes on where there is one, and else begins, for
            schedulers and ``torchrun``, which start the same command again.
        rank: this process's rank, of which 0 alone writes; None asks ``torch.distributed``.
        keep_last: number of states to keep, ``last_epoch.pt`` included, 1 or more.
        resume_changed: whether to resume with other settings too. The schedule is then this run's own at the epoch that
            was reached, and the history notes what has changed. Without it other settings are refused.
        settings: those that the result depends on; None takes them from the bundle's config.
        model_settings: those that inference has to know; they are written to ``model.json`` with the weights. None
            writes the weights alone.
        save_every_minutes: time from one state within an epoch to the next; None saves after epochs alone, and so
            does a training whose loader has no ``EpochSampler``.
        history: the handler that sums the epoch's losses, which ``save_every_minutes`` needs.

    Raises:
        ValueError: when ``keep_last`` is below 1, ``save_every_minutes`` is not above 0, there is no ``history`` that
            it needs, or the network's parameters are sharded.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        evaluator: Engine,
        early_stop: EarlyStopHandler | None = None,
        resume: bool | Literal["auto"] = False,
        rank: int | None = None,
        keep_last: int = 2,
        resume_changed: bool = False,
        settings: Mapping[str, Any] | None = None,
        model_settings: Mapping[str, Any] | None = None,
        save_every_minutes: float | None = None,
        history: TrainingHistory | None = None,
    ) -> None:
        if save_every_minutes is not None and not (save_every_minutes > 0 and history is not None):
            raise ValueError(
                f"save_every_minutes: expected minutes above 0 and the run's history, found {save_every_minutes!r} "
                f"and {history!r}"
            )
        if isinstance(keep_last, bool) or not isinstance(keep_last, int) or not 1 <= keep_last <= 100:
            raise ValueError(f"keep_last: expected a whole number from 1 to 100, found {keep_last!r}")
        if any(isinstance(parameter, DTensor) for parameter in network.parameters()):
            raise ValueError(
                "network: expected whole parameters, found sharded ones (fully_shard): one process writes states and "
                "weights, and has a part of them; docs/how-to/large-networks.md has a training of such networks"
            )
        self.keep_last = keep_last
        self._lock: FolderLock | None = None
        if not isinstance(resume, bool) and resume != "auto":
            raise ValueError(f"resume: expected True, False or 'auto', found {resume!r}")
        if resume_changed and not resume:
            raise ValueError("--train#run#resume_changed True goes with --resume True")
        self.best_path = Path(ckpt_dir) / "model.pt"
        self.last_path = Path(ckpt_dir) / "last_epoch.pt"
        self.mid_epoch_path = Path(ckpt_dir) / "last_iteration.pt"
        self.save_every_minutes = save_every_minutes
        self.history = history
        self._saved_at = time.monotonic()
        self.network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.early_stop = early_stop
        self.resume = resume
        self.rank = process_rank() if rank is None else rank
        self.resume_changed = resume_changed
        self.model_settings = model_settings
        self.settings = settings_of_run() if settings is None else dict(settings)
        self.sources = sources_of_run() if self.rank == 0 else {}  # hashes files
        self._facts: dict[str, Any] | None = None
        self._sessions: list[dict[str, Any]] = []
        self._run = uuid.uuid4().hex  # tells states of this training from those of another in the same folder

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the MONAI trainer.
        """
        engine.add_event_handler(Events.STARTED, self.start)
        if self.save_every_minutes is not None:
            # before a batch is asked for: what belongs to the step before is done, whatever handlers it has
            engine.add_event_handler(Events.GET_BATCH_STARTED, self._save_when_due)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)
        engine.add_event_handler(Events.COMPLETED, self._certify_or_say_why_not)

    def start(self, engine: Engine) -> None:
        """Resume if asked, and see that the folder can be written before hours of work depend on it.

        Args:
            engine: the trainer.

        Raises:
            FileNotFoundError: when there is nothing to resume from.
            ValueError: when ``last_epoch.pt`` does not fit this training, or it and those before it are damaged.
            FolderInUseError: when another training writes to the folder.
            OSError: when the folder cannot be written, or has no room.
            RuntimeError: when other processes of the run have found another state.
        """
        if not self.evaluator.has_event_handler(self.save_best, Events.EPOCH_COMPLETED):
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)  # an evaluation writes no weights
        if self.rank == 0:
            self._lock = hold_folder(engine, self.best_path.parent)
            names = [self.best_path.name, self.last_path.name, self.mid_epoch_path.name]
            sweep_temporary(self.best_path.parent, names, older_than=0)
            check_room(self.best_path.parent, self.network, self.keep_last)
        if self.resume is True or (self.resume == "auto" and self._has_state()):
            self._load(engine)
        elif self.rank == 0 and (self.last_path.exists() or self.mid_epoch_path.exists()):
            logger.warning("%s of an earlier run will be overwritten; --resume True goes on from it", self.last_path)
            for before in self._states_before():
                before.unlink()  # a state of another run is nothing to fall back to
            self.mid_epoch_path.unlink(missing_ok=True)
        self._refuse_different_starts(engine)
        self._saved_at = time.monotonic()
        if self.rank == 0:
            if engine.state.iteration == 0 and self.best_path.with_name(CERTIFICATE).exists():
                logger.warning("%s and its birth certificate will be overwritten by this training", self.best_path)
            self._sessions.append(session_of_now(engine.state.epoch + 1))
        dataset = getattr(getattr(self.evaluator, "data_loader", None), "dataset", None)
        if self.rank == 0:
            warn_of_shared_scans(getattr(getattr(engine, "data_loader", None), "dataset", None), dataset)
        if (pretrained := self.sources.get("pretrained")) is not None:
            pretrained["trained_on_validation"] = warn_of_seen_scans(dataset, "validation", pretrained)

    def save_best(self, evaluator: Engine) -> None:
        """Write ``model.pt`` if the validation that has just ended is the best so far.

        Args:
            evaluator: the evaluator.
        """
        if self.rank == 0 and evaluator.state.best_metric_epoch == evaluator.state.epoch:
            if self._lock is not None:
                self._lock.check()
            if self.model_settings is None:
                save_weights(self.network.state_dict(), self.best_path)
            else:
                facts = {"epoch": evaluator.state.epoch}
                save_trained_weights(self.network.state_dict(), self.best_path, self.model_settings, facts)
            self.best_path.with_name(CERTIFICATE).unlink(missing_ok=True)  # of the weights that were replaced
            logger.info("saved %s (epoch %d)", self.best_path, evaluator.state.epoch)

    def save_last(self, engine: Engine) -> None:
        """Write ``last_epoch.pt``.

        Args:
            engine: the trainer.
        """
        if self.rank != 0:
            return
        if self._sessions:
            self._sessions[-1]["last_epoch"] = engine.state.epoch
        keep = self.keep_last if engine.state.epoch > 1 else 1  # before the first epoch there is another training's
        self._write(self.last_path, self._state(engine, engine.state.epoch), keep)
        self.mid_epoch_path.unlink(missing_ok=True)

    def _save_when_due(self, engine: Engine) -> None:
        """Save within an epoch where the last state is old enough; a full disk does not end the training."""
        assert self.save_every_minutes is not None
        if time.monotonic() - self._saved_at < 60 * self.save_every_minutes:
            return
        try:
            self.save_mid_epoch(engine)
        except OSError as error:
            self._saved_at = time.monotonic()
            logger.warning("%s could not be saved, and the training goes on: %s", self.mid_epoch_path, error)

    def save_mid_epoch(self, engine: Engine) -> bool:
        """Write ``last_iteration.pt`` between two steps of an epoch.

        Values that are not finite are not written: the guard against them is about to end the training.

        Args:
            engine: the trainer.

        Returns:
            False where a training cannot be resumed after this step, since gradients of several are added up; else
            True, also where there is nothing to save.

        Raises:
            OSError: when the disk is full; the state that was there is as it was.
        """
        done = steps_within_epoch(engine)
        if not ends_group(engine):
            return False
        if self.rank == 0 and self.history is not None and done and self._can_resume_mid_epoch(engine):
            self._write_mid_epoch(engine, self.history.partial_epoch())
        return True

    def _write_mid_epoch(self, engine: Engine, partial: PartialEpoch) -> None:
        state = {**self._state(engine, engine.state.epoch - 1), "partial_epoch": partial._asdict()}
        tensors = {
            **dict(named_tensors(state["model"], "model")),
            **dict(named_tensors(state["optimizer"], "optimizer")),
        }
        if non_finite(tensors) or not math.isfinite(partial.loss_sum):
            return
        self._write(self.mid_epoch_path, state, 1)
        logger.info(
            "saved %s (epoch %d, iteration %d)", self.mid_epoch_path, engine.state.epoch, engine.state.iteration
        )
        if engine.state.epoch == 1:  # states of whole epochs are those of another training, which this one replaces
            for other in (self.last_path, *self._states_before()):
                other.unlink(missing_ok=True)

    def _states_before(self) -> list[Path]:
        return list(self.last_path.parent.glob(state_before(self.last_path, 0).name.replace("0", "*")))

    def _write(self, path: Path, state: Mapping[str, Any], keep: int) -> None:
        if self._lock is not None:
            self._lock.check()
        write_last_state(path, state, keep)
        self._saved_at = time.monotonic()

    def _state(self, engine: Engine, epochs: int) -> dict[str, Any]:
        """All that a training goes on from.

        Args:
            engine: the trainer.
            epochs: number of whole epochs that are done.
        """
        stopping = self._stopping
        scaler = getattr(engine, "scaler", None)
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epochs,
            "iteration": engine.state.iteration,
            "run": self._run,
            "steps_of": self._steps_of(engine),
            "best_metric": float(self.evaluator.state.best_metric),
            "best_metric_epoch": self.evaluator.state.best_metric_epoch,
            "early_stop": dict(stopping.state_dict()) if stopping is not None else None,
            "random_states": _random_states(),
            "history": list(getattr(engine.state, "history", [])),
            "settings": self._all_settings(engine),
            "sessions": list(self._sessions),
        }

    def certify(self, engine: Engine) -> None:
        """Write ``birth_certificate.json`` next to ``model.pt``, if this training has written it.

        Args:
            engine: the trainer.
        """
        best_epoch = self.evaluator.state.best_metric_epoch
        if self.rank != 0 or best_epoch < 1 or not self.best_path.is_file():
            return
        history, settings = list(getattr(engine.state, "history", [])), self._all_settings(engine)
        training = {
            "epochs": engine.state.epoch,
            "steps": engine.state.epoch * self._steps_per_epoch(engine),
            "cubes": _cubes_seen(history, settings),
            "hours": round(sum(float(row["seconds"]) for row in history) / 3600, 3),
            "chosen_epoch": best_epoch,
            "validation": {
                str(self.evaluator.state.key_metric_name): float(self.evaluator.state.best_metric),
                **_baseline_of(history, best_epoch),
            },
            "probe": _probe_of(history, best_epoch),
            "sessions": self._sessions,
        }
        data = {
            "training": data_of_birth(getattr(engine.data_loader, "dataset", None)),
            "validation": data_of_birth(getattr(self.evaluator.data_loader, "dataset", None)),
        }
        write_birth_certificate(self.best_path, settings, self.sources, data, training)

    def _certify_or_say_why_not(self, engine: Engine) -> None:
        """The weights are there: a file that cannot be hashed by now does not make their training a failure."""
        try:
            self.certify(engine)
        except (OSError, ValueError):
            logger.exception("%s: no birth certificate could be written", self.best_path)

    def _load(self, engine: Engine) -> None:
        state = self._newest_state(engine)
        part, path = state.get("partial_epoch"), self.last_path
        if part is not None:
            path = self.mid_epoch_path
        changes: dict[str, tuple[Any, Any]] = {}
        try:
            changes = self._refuse_changes(state, engine)
            self.network.load_state_dict(state["model"])
            self._load_schedule(state, engine, changes)
        except ChangedSettingsError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} does not fit this training: it is not damaged, but the network, the optimizer and "
                f"the schedule must be those it was written with ({type(error).__name__}: {error})"
            ) from error
        if state["epoch"] > engine.state.max_epochs:
            raise ValueError(
                f"{self.last_path} has {state['epoch']} epochs behind it, but --epochs is {engine.state.max_epochs}"
            )
        if state["scaler"] is not None and getattr(engine, "scaler", None) is not None:
            engine.scaler.load_state_dict(state["scaler"])
        stopping = self._stopping
        if stopping is not None and state["early_stop"] is not None:
            stopping.load_state_dict(state["early_stop"])
        self.evaluator.state.best_metric = state["best_metric"]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        engine.state.epoch, engine.state.iteration = state["epoch"], state["epoch"] * engine.state.epoch_length
        if part is not None and self.history is not None:
            engine.state.iteration = state["iteration"]
            self.history.go_on(PartialEpoch(**part))
        engine.state.history = list(state.get("history", []))
        self._sessions = list(state.get("sessions", [{"first_epoch": 1, "last_epoch": state["epoch"], "code": None}]))
        if "seed" not in changes:
            _restore_random_states(state["random_states"])
            if part is not None:  # once more, since the loader draws a number when its epoch is begun
                first_step = Events.ITERATION_STARTED(once=engine.state.iteration + 1)
                engine.add_event_handler(first_step, lambda: _restore_random_states(state["random_states"]))
        if changes:
            self._note_changes(engine, changes)
        self._run = state.get("run", self._run)
        logger.info(
            "resumed from %s: %d epochs done%s",
            path,
            state["epoch"],
            "" if part is None else f", and {steps_within_epoch(engine)} steps of the next",
        )
        self._end_if_complete(engine)

    def _end_if_complete(self, engine: Engine) -> None:
        """Say where nothing is left to do, and end what early stopping had ended."""
        stopping = self._stopping
        if engine.state.epoch >= engine.state.max_epochs:
            logger.warning("the training is complete: all %d epochs are done", engine.state.epoch)
        elif stopping is not None and stopping.counter >= stopping.patience:
            logger.warning("the training is complete: it was stopped early after epoch %d", engine.state.epoch)
            engine.terminate()

    def _refuse_different_starts(self, engine: Engine) -> None:
        """All processes must go on from the same state, or the network is that of none of them."""
        starts = set(gather_from_processes((engine.state.epoch, engine.state.iteration)))
        if len(starts) > 1:
            raise RuntimeError(
                f"{self.last_path.parent}: expected states that all processes of the run see, found starts at (epoch, "
                f"iteration) {sorted(starts)}: name a --ckpt_dir that they share"
            )

    def _newest_state(self, engine: Engine) -> dict[str, Any]:
        """Read the state to go on from: that of the middle of an epoch if it is whole and this training can use it."""
        partial = read_whole_state(self.mid_epoch_path, "what was trained since the last whole epoch is lost")
        if partial is None:
            return self._whole_epochs()
        last = read_whole_state(self.last_path)
        same_run = last is not None and last.get("run") == partial.get("run")
        if last is not None and same_run and last["epoch"] > partial["epoch"]:
            return last  # the run ended right after it was written
        obstacle = self._obstacle(partial, engine)
        if not obstacle:
            return partial
        if partial["epoch"] == 0:
            raise ChangedSettingsError(
                f"{self.mid_epoch_path} was saved in the middle of the first epoch, and {obstacle}: give the settings "
                "as they were, or train again without --resume"
            )
        logger.warning("%s is not used: %s. Going on from the last whole epoch", self.mid_epoch_path, obstacle)
        return self._whole_epochs()

    def _whole_epochs(self) -> dict[str, Any]:
        """Read the state after the last whole epoch.

        Raises:
            DamagedFileError: when there is none, but a damaged one of the middle of the first epoch.
        """
        if self.mid_epoch_path.is_file() and not self._has_epochs():
            raise DamagedFileError(
                f"{self.mid_epoch_path} is damaged, and no whole epoch has been saved: train again without --resume"
            )
        return read_last_state(self.last_path, set_aside=self.rank == 0)

    def _obstacle(self, partial: dict[str, Any], engine: Engine) -> str:
        """Say why the rest of an epoch cannot be trained as it would have been; empty where it can."""
        now, then = self._steps_of(engine), partial.get("steps_of")
        if changes := self._refuse_changes(partial, engine):
            return f"with other settings ({describe_changes(changes)}) the rest of its epoch would be another one"
        if now != then:
            return f"an epoch is divided otherwise (steps, batch size, processes: {now}, {then} then)"
        if not self._can_resume_mid_epoch(engine):
            return "this training cannot begin within an epoch, since its loader has no EpochSampler"
        if partial["epoch"] >= (engine.state.max_epochs or 0):
            return f"--epochs {engine.state.max_epochs} are done before it"
        return ""

    @staticmethod
    def _steps_of(engine: Engine) -> list[int]:
        """How an epoch is divided: steps, batch size, and number of processes."""
        batch_size = getattr(engine.state.dataloader, "batch_size", None)
        return [int(engine.state.epoch_length or 0), int(batch_size or 0), process_count()]

    @staticmethod
    def _steps_per_epoch(engine: Engine) -> int:
        """Steps of the optimizer, of which an epoch has fewer than batches where gradients are accumulated."""
        return optimizer_steps(int(engine.state.epoch_length or 1), getattr(engine, "accumulation_steps", 1))

    def _can_resume_mid_epoch(self, engine: Engine) -> bool:
        """Tell whether the trainer can begin in the middle of an epoch."""
        sampler = getattr(engine.state.dataloader, "sampler", None)
        return isinstance(sampler, EpochSampler) and self.history is not None

    def _has_state(self) -> bool:
        return self._has_epochs() or self.mid_epoch_path.exists()

    def _has_epochs(self) -> bool:
        return self.last_path.exists() or state_before(self.last_path, 1).exists()

    @property
    def _stopping(self) -> EarlyStopping | None:
        """What counts for early stopping, if there is such."""
        return None if self.early_stop is None else self.early_stop._handler

    def _all_settings(self, engine: Engine) -> dict[str, Any]:
        """The settings of the run, with what only its data sets tell."""
        if self._facts is None:  # seconds for 100,000 scans, so not in each save
            facts = data_facts(getattr(getattr(engine, "data_loader", None), "dataset", None))
            validated = getattr(getattr(self.evaluator, "data_loader", None), "dataset", None)
            self._facts = {**facts, **data_facts(validated, "validation_")}
        return {**self.settings, **self._facts, "epochs": engine.state.max_epochs}

    def _refuse_changes(self, state: dict[str, Any], engine: Engine) -> dict[str, tuple[Any, Any]]:
        """Compare the settings with those of the checkpoint, and refuse others unless they are asked for."""
        new = self._all_settings(engine)
        old = state.get("settings", {key: value for key, value in new.items() if key != "epochs"})
        changes = changed_settings(old, new)
        epochs = changes.pop("epochs", None)
        of_schedule = schedule_changes(self.optimizer, self.lr_scheduler, state)
        if of_schedule and epochs:  # a schedule that does not end goes on exactly for more of them
            changes = {"epochs": epochs, **changes}
        changes = changes or of_schedule
        if changes and not self.resume_changed:
            raise ChangedSettingsError(
                f"{self.last_path} was written with other settings: {describe_changes(changes)}. Give them as they "
                "were to go on exactly, or --train#run#resume_changed True to go on with the new ones"
            )
        return changes

    def _load_schedule(self, state: dict[str, Any], engine: Engine, changes: dict[str, tuple[Any, Any]]) -> None:
        if not changes:
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            return
        by_epoch = self.settings.get(MOVED_KEYS["lr_step_per_epoch"].id)
        steps = steps_of_schedule(state, self._steps_per_epoch(engine), by_epoch)
        factor = rate_factor(state.get("settings", {}), self.settings)
        take_over_schedule(self.optimizer, self.lr_scheduler, state, steps, factor)

    def _note_changes(self, engine: Engine, changes: dict[str, tuple[Any, Any]]) -> None:
        """Log what has changed, hand it to the history, and begin a new best where the measure has changed."""
        text = describe_changes(changes)
        engine.state.changed_settings = text
        rate = self.optimizer.param_groups[0]["lr"]
        logger.warning("resumed with other settings: %s; the learning rate goes on from %.3g", text, rate)
        if measure_changed(changes):
            self._forget_best()
            logger.warning("validations before cannot be compared with those to come: the next one counts as the best")

    def _forget_best(self) -> None:
        """Nothing that was measured before can be compared: neither for the best weights, nor to stop or to halve."""
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1, -1
        stopping = self._stopping
        if stopping is not None:
            stopping.best_score, stopping.counter = None, 0
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.best, self.lr_scheduler.num_bad_epochs = self.lr_scheduler.mode_worse, 0


def _cubes_seen(history: list[dict[str, Any]], settings: Mapping[str, Any]) -> int:
    """Cubes of all epochs: exact where a data set has a length, from the rates where it is a stream."""
    if isinstance(settings.get("samples"), int):
        return int(settings["samples"]) * len(history)
    return sum(round(float(row["seconds"]) * float(row["cubes_per_second"])) for row in history)


def _baseline_of(history: list[dict[str, Any]], epoch: int) -> dict[str, float]:
    """What an epoch's validation had to beat; nothing where there was no such baseline."""
    value = next((row.get("val_baseline") for row in history if int(row["epoch"]) == epoch), None)
    return {"without_a_network": float(value)} if value else {}


def _probe_of(history: list[dict[str, Any]], epoch: int) -> dict[str, float] | None:
    """The probe's score of the weights of an epoch next to that of random weights; None where it was not probed."""
    row = next((row for row in history if int(row["epoch"]) == epoch), {})
    values = {"score": row.get("probe"), "random_weights": row.get("probe_random")}
    return {key: float(value) for key, value in values.items() if value} or None if values["score"] else None


def _random_states() -> dict[str, Any]:
    """The states of the global generators, of types that ``torch.load(weights_only=True)`` reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - MONAI seeds and uses this one
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), has_gauss, gauss],
        "python": [version, list(words), gauss_next],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
