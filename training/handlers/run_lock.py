# SPDX-License-Identifier: Apache-2.0
"""One training at a time in a folder, so that the weights of one never lie next to the history of another.

Two means together. The system's lock on an open file (``flock``) ends with the process, however it ends, and holds
between containers of one machine. Where a file system knows no such lock, or keeps it to each machine, a sign of life
counts: the holder touches the lock file every few seconds, and a file that stays untouched belongs to a dead run.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ...datasets.io.atomic_write import OUT_OF_SPACE

try:
    import fcntl
except ImportError:  # Windows: the sign of life alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderInUseError", "FolderLock", "hold_folder", "release_folders"]

logger = logging.getLogger(__name__)

LOCK_NAME = ".training.lock"
HEARTBEAT_SECONDS = 10.0


class FolderInUseError(RuntimeError):
    """Another training writes to the folder."""


class FolderLock:
    """A folder that this run alone writes to, until :meth:`release` or the end of the process.

    Args:
        folder: the folder; it is made if absent.
        heartbeat: seconds between two signs of life.

    Raises:
        FolderInUseError: when another run holds the folder.
        OSError: when the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], heartbeat: float = HEARTBEAT_SECONDS) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOCK_NAME
        self.heartbeat = heartbeat
        self.run = secrets.token_hex(8)
        self._stop = threading.Event()
        self._file = self._open()
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        _held.add(self)
        threading.Thread(target=self._beat, name="training lock", daemon=True).start()

    def _open(self) -> int:
        """Open the lock file, and take the system's lock on it if there is one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                self.system_lock = _system_lock(file)
                if self.system_lock is False:
                    holder = _describe(_read(file))
                    os.close(file)
                    raise FolderInUseError(self._refusal(holder))
                try:
                    if os.stat(self.path).st_ino == os.fstat(file).st_ino:
                        return file
                except FileNotFoundError:
                    pass
                os.close(file)  # the run before has just removed it
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: the folder {self.folder} cannot be written") from error

    def _take(self) -> None:
        """Make sure that whoever is named in the file is dead, and put this run there."""
        before = _read(self._file)
        if before:
            # on one machine the system's lock, which this run has got, says that its holder has gone
            if not (self.system_lock and before.get("machine") == _machine()) and self._is_alive(before):
                raise FolderInUseError(self._refusal(_describe(before)))
            logger.warning("%s: a training (%s) was killed; this one takes over", self.folder, _describe(before))
        holder = {
            "run": self.run,
            "machine": _machine(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "heartbeat_seconds": self.heartbeat,
        }
        try:
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, json.dumps(holder).encode())
            os.fsync(self._file)
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
            raise OSError(error.errno, f"{error.strerror}: the folder {self.folder} takes no file at all") from error

    def _is_alive(self, before: dict[str, Any]) -> bool:
        """Watch whether the file is touched; by the clock of the file system alone, for those of machines differ."""
        interval = before.get("heartbeat_seconds", HEARTBEAT_SECONDS)
        patience = 3.0 * (interval if isinstance(interval, int | float) and 0 < interval < 3600 else HEARTBEAT_SECONDS)
        first = os.fstat(self._file).st_mtime
        probe = self.folder / f".tmp.{secrets.token_hex(4)}.lock"
        probe.touch()
        age = probe.stat().st_mtime - first
        probe.unlink()
        if age > patience:
            return False
        logger.info("%s: is a training of another machine alive (%s)? waiting", self.folder, _describe(before))
        end = time.monotonic() + patience - max(age, 0.0)
        while time.monotonic() < end:
            time.sleep(min(patience / 10, 1.0))
            # opening it again makes a network file system ask its server
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_mtime != first:
                    return True
        return False

    def _refusal(self, holder: str) -> str:
        return (
            f"{self.folder}: another training writes to this folder ({holder}), so that weights and history of the two "
            "would be mixed; wait for it, or name another folder (--ckpt_dir, --output_dir)"
        )

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            try:
                os.utime(self._file if os.utime in os.supports_fd else self.path)
            except OSError:  # the next beat may get through
                continue

    def check(self) -> None:
        """See that the folder is still this run's, before something is written to it.

        Raises:
            FolderInUseError: when another run has taken it, which only a file system without locks allows.
        """
        try:
            found = json.loads(self.path.read_bytes() or b"{}")
        except (OSError, ValueError):
            found = {}
        if found.get("run") != self.run:
            raise FolderInUseError(self._refusal(_describe(found)))

    def release(self) -> None:
        """Give the folder back."""
        if self._stop.is_set():
            return
        self._stop.set()
        _held.discard(self)
        try:
            self.check()
            self.path.unlink()
        except (OSError, FolderInUseError):  # it is another run's, or gone
            pass
        os.close(self._file)

    def _forget(self) -> None:
        """Leave the lock to the parent, in a process that was forked from it.

        The file's number is free then, and may be another file's when this process forks in its turn.
        """
        self._stop.set()
        _held.discard(self)
        os.close(self._file)


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


if hasattr(os, "register_at_fork"):
    # loader processes outlive a killed training for some seconds, and would keep its lock
    os.register_at_fork(after_in_child=_forget_all)


def _system_lock(file: int) -> bool | None:
    """Lock an open file: True where this run has it, False where another has, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(file: int) -> dict[str, Any]:
    os.lseek(file, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(file, 4096) or b"{}")
    except ValueError:
        return {"run": "unreadable"}
    return content if isinstance(content, dict) else {"run": "unreadable"}


def _describe(holder: dict[str, Any]) -> str:
    words = (f"{name} {holder[name]}" for name in ("host", "process", "started") if name in holder)
    return ", ".join(words) or "of unknown origin"


def _machine() -> str:
    """Name the running system: containers on it share its locks, and a restart ends them all."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


_of_engine: weakref.WeakKeyDictionary[Engine, dict[Path, FolderLock]] = weakref.WeakKeyDictionary()


def hold_folder(engine: Engine, folder: str | os.PathLike[str]) -> FolderLock:
    """Keep other trainings out of a folder until this one is over.

    Args:
        engine: the trainer; in one run a folder may be asked for several times. With several processes only the first
            of them asks.
        folder: the folder; it is made if absent.

    Returns:
        The lock.

    Raises:
        FolderInUseError: when another training writes to the folder.
        OSError: when the folder cannot be written.
    """
    locks = _of_engine.setdefault(engine, {})
    path = Path(os.path.realpath(folder))
    if path not in locks:
        locks[path] = FolderLock(folder)
        if len(locks) == 1:
            engine.add_event_handler(Events.COMPLETED, release_folders)
            engine.add_event_handler(Events.EXCEPTION_RAISED, _give_up)
    return locks[path]


def _give_up(engine: Engine, error: BaseException) -> None:
    release_folders(engine)
    raise error


def release_folders(engine: Engine) -> None:
    """Give back all folders of a training.

    Args:
        engine: the trainer.
    """
    for lock in _of_engine.pop(engine, {}).values():
        lock.release()
