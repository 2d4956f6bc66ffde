# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM shut a training down cleanly."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events

from ...datasets.loading.worker_shield import shield_workers, stop_shielding
from .run_lock import release_folders

__all__ = ["GracefulShutdown"]

logger = logging.getLogger(__name__)


class GracefulShutdown:
    """Turn SIGTERM into an ordinary exit, and say on any interruption how to go on.

    Job schedulers send SIGTERM before they kill. Without this handler Python dies at once, leaving loader processes and
    temporary files behind. With ``save`` the step that is under way is finished and saved first; a second SIGTERM, or
    one while an epoch is validated, ends the training at once. The exit status is 143, that of SIGTERM. Of a SIGTERM
    that goes to the whole job, loader processes take no notice.

    Args:
        advice: what to tell the user, e.g. how to resume.
        save: saves a training between two steps of an epoch; gives False where it must go on by a step before it can.
            None ends it at once.
    """

    def __init__(
        self,
        advice: str = "run the same command with --resume True to go on from the last state that was saved",
        save: Callable[[Engine], bool] | None = None,
    ) -> None:
        self.advice = advice
        self.save = save
        self._previous: Any = None
        self._within_epoch = False
        self._asked = False

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.STARTED, self._install)
        if self.save is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self._enter_epoch)
            engine.add_event_handler(Events.GET_BATCH_STARTED, self._save_and_stop)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._leave_epoch)
        engine.add_event_handler(Events.COMPLETED, self._uninstall)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._interrupted)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise_again)

    def _install(self, engine: Engine) -> None:
        self._go_first(engine)
        # Python allows signal handlers in the main thread alone; elsewhere (MONAI Label) the server owns the signals.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
            shield_workers()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if not self._within_epoch or self._asked:
            raise SystemExit(128 + number)
        self._asked = True

    def _enter_epoch(self, engine: Engine) -> None:
        self._within_epoch = True

    def _save_and_stop(self, engine: Engine) -> None:
        """Before the next batch is asked for: all that belongs to the step before is done."""
        if not self._asked or self.save is None:
            return
        try:
            if not self.save(engine):
                return
        except OSError:
            logger.exception("the step could not be saved")
        raise SystemExit(128 + signal.SIGTERM)

    def _leave_epoch(self, engine: Engine) -> None:
        """A validation may take longer than a scheduler waits, so a request in the last step is met before it."""
        self._within_epoch = False
        if self._asked:
            raise SystemExit(128 + signal.SIGTERM)

    def _go_first(self, engine: Engine) -> None:
        """Move before those that raise the error again, as MONAI's ``StatsHandler`` does: none after them is called.

        The error is raised again after the last, since ignite swallows one that has handlers.
        """
        places = {self._interrupted: -1, _raise_again: 1}
        engine._event_handlers[Events.EXCEPTION_RAISED].sort(key=lambda entry: places.get(entry[0], 0))

    def _uninstall(self, engine: Engine) -> None:
        self._within_epoch = self._asked = False
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
            stop_shielding()

    def _interrupted(self, engine: Engine, error: BaseException) -> None:
        self._uninstall(engine)
        release_folders(engine)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            logger.warning(
                "stopped in epoch %d, iteration %d: %s", engine.state.epoch, engine.state.iteration, self.advice
            )


def _raise_again(engine: Engine, error: BaseException) -> None:
    raise error
