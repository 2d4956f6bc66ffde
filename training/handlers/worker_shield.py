# SPDX-License-Identifier: Apache-2.0
"""Loader processes outlive the SIGTERM that a scheduler sends to all processes of a job, as long as their parent lives.

torch ends a training with an error as soon as a worker is killed, in the middle of whatever it does. A signal to the
whole job would so undo the clean end that the main process makes of it.
"""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["shield_workers", "stop_shielding"]

_shielded = 0
_registered = False


def shield_workers() -> None:
    """From now on let processes that this one forks heed SIGTERM from this one alone; of no effect but on Linux."""
    global _registered, _shielded
    _shielded += 1
    if not _registered and hasattr(signal, "sigwaitinfo") and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_shield)
        _registered = True


def stop_shielding() -> None:
    """Take one :func:`shield_workers` back, for processes that are forked from now on."""
    global _shielded
    _shielded -= 1


def _shield() -> None:
    """In the new process: hold SIGTERM back, and have a thread look who sends it."""
    if _shielded > 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        if os.getppid() != parent:  # it is gone, and nobody else will end this process
            break
    os._exit(0)
