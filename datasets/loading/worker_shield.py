# SPDX-License-Identifier: Apache-2.0
"""Loader processes outlive the SIGTERM that a scheduler sends to all processes of a job, as long as their parent lives.

torch ends a training with an error as soon as a worker is killed, in the middle of whatever it does. A signal to the
whole job would so undo the clean end that the main process makes of it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

__all__ = ["end_with_parent", "hold_sigterm", "shield_workers", "stop_shielding"]


class _Shield:
    """How many trainings of this process ask for it; forked processes inherit the number."""

    def __init__(self) -> None:
        self.users = 0
        # processes of multiprocessing alone, not whatever else is forked and may run another program
        multiprocessing.util.register_after_fork(self, _Shield.hold)

    def hold(self) -> None:
        """In a new process."""
        if self.users > 0:
            hold_sigterm()


_shield = _Shield()


def shield_workers() -> None:
    """Let worker processes that are forked from now on react to SIGTERM of their parent alone.

    Processes that are started otherwise call :func:`hold_sigterm` themselves.
    """
    _shield.users += 1


def stop_shielding() -> None:
    """Take one :func:`shield_workers` back, for processes that are forked from now on."""
    _shield.users -= 1


def hold_sigterm() -> None:
    """In a worker process, block SIGTERM, and let a thread check the sender: the parent's ends the process.

    Of no effect where the system does not tell who sent a signal (``signal.sigwaitinfo``), and where there is no
    parent.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_parent_asks, args=(parent,), daemon=True).start()


def end_with_parent() -> None:
    """In a worker process, end it as soon as its parent is gone, whatever ended that and whatever is under way here."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _exit_when_parent_asks(parent: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        if not parent.is_alive():  # nobody else will end this process
            break
    os._exit(0)
