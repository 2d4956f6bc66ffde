# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM shut a training down cleanly."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events

from .run_lock import release_folders

__all__ = ["GracefulShutdown"]

logger = logging.getLogger(__name__)


class GracefulShutdown:
    """Turn SIGTERM into an ordinary exit, and say on any interruption how to go on.

    Job schedulers send SIGTERM before they kill. Without this handler Python dies at once, leaving loader processes and
    temporary files behind.

    Args:
        advice: what to tell the user, e.g. how to resume.
    """

    def __init__(
        self, advice: str = "run the same command with --resume True to go on after the last whole epoch"
    ) -> None:
        self.advice = advice
        self._previous: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.STARTED, self._install)
        engine.add_event_handler(Events.COMPLETED, self._uninstall)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._interrupted)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise_again)

    def _install(self, engine: Engine) -> None:
        self._go_first(engine)
        # Python allows signal handlers in the main thread alone; elsewhere (MONAI Label) the server owns the signals.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, _exit_on_sigterm)

    def _go_first(self, engine: Engine) -> None:
        """Move before those that raise the error again, as MONAI's ``StatsHandler`` does: none after them is called.

        The error is raised again after the last, since ignite swallows one that has handlers.
        """
        places = {self._interrupted: -1, _raise_again: 1}
        engine._event_handlers[Events.EXCEPTION_RAISED].sort(key=lambda entry: places.get(entry[0], 0))

    def _uninstall(self, engine: Engine) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _interrupted(self, engine: Engine, error: BaseException) -> None:
        self._uninstall(engine)
        release_folders(engine)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            logger.warning(
                "stopped in epoch %d, iteration %d: %s", engine.state.epoch, engine.state.iteration, self.advice
            )


def _raise_again(engine: Engine, error: BaseException) -> None:
    raise error


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
