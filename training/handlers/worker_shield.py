# SPDX-License-Identifier: Apache-2.0
"""Loader processes outlive the SIGTERM that a scheduler sends to all processes of a job, as long as their parent lives.

torch ends a training with an error as soon as a worker is killed, in the middle of whatever it does. A signal to the
whole job would so undo the clean end that the main process makes of it.
"""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import threading

__all__ = ["shield_workers", "stop_shielding"]


class _Shield:
    """How many trainings of this process ask for it; forked processes inherit the number."""

    def __init__(self) -> None:
        self.users = 0
        if hasattr(signal, "sigwaitinfo"):
            # processes of multiprocessing alone, not whatever else is forked and may run another program
            multiprocessing.util.register_after_fork(self, _Shield.hold)

    def hold(self) -> None:
        """In a new process: block SIGTERM, and let a thread check the sender."""
        if self.users > 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_exit_when_parent_asks, args=(os.getppid(),), daemon=True).start()


_shield = _Shield()


def shield_workers() -> None:
    """Let worker processes that are forked from now on react to SIGTERM of their parent alone.

    Of no effect on systems that do not tell who sent a signal (``signal.sigwaitinfo``), and on processes that are
    started afresh instead of forked.
    """
    _shield.users += 1


def stop_shielding() -> None:
    """Take one :func:`shield_workers` back, for processes that are forked from now on."""
    _shield.users -= 1


def _exit_when_parent_asks(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        if os.getppid() != parent:  # it is gone, and nobody else will end this process
            break
    os._exit(0)
