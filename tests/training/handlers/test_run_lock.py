# SPDX-License-Identifier: Apache-2.0
"""Two trainings never write to one folder; a dead one keeps nobody out."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from ignite.engine import Events

from models_genesis.training.handlers import run_lock
from models_genesis.training.handlers.run_lock import LOCK_NAME, FolderInUseError, FolderLock

HOLD = """
import sys, time
for name in ("models_genesis.training", "models_genesis.training.handlers"):
    sys.modules[name] = type(sys)(name)  # their other modules take long to import
import importlib.util
spec = importlib.util.spec_from_file_location("models_genesis.training.handlers.run_lock", sys.argv[2])
module = importlib.util.module_from_spec(spec)
for name in ("models_genesis.datasets", "models_genesis.datasets.io", "models_genesis.datasets.io.atomic_write"):
    sys.modules[name] = type(sys)(name)
sys.modules[name].OUT_OF_SPACE = ()
spec.loader.exec_module(module)
lock = module.FolderLock(sys.argv[1], heartbeat=0.1)
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), run_lock.__file__], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_the_holder_named(other_process, tmp_path):
    with pytest.raises(FolderInUseError, match=rf"{tmp_path}.*process {other_process.pid}"):
        FolderLock(tmp_path)


def test_a_killed_process_keeps_nobody_out(other_process, tmp_path, caplog):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        FolderLock(tmp_path).release()
    assert time.monotonic() - start < 1 and "was killed" in caplog.text
    assert os.listdir(tmp_path) == []


def test_in_one_process_the_folder_is_held_once_until_it_is_given_back(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path)
    lock.check()
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_forked_loader_processes_do_not_keep_the_lock(tmp_path):
    """They live on for some seconds when the training is killed."""
    lock = FolderLock(tmp_path)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"1")
        time.sleep(30)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"1"
        lock._forget()  # closes the file, as the system does when the training is killed
        FolderLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_process_that_forks_keeps_its_files(tmp_path):
    """A loader's process has closed the lock's file; the number is the next file's, which its own child must keep."""
    lock = FolderLock(tmp_path)
    child = os.fork()
    if child == 0:
        file = os.open(os.devnull, os.O_RDONLY)
        grandchild = os.fork()
        if grandchild == 0:
            try:
                os.fstat(file)
            except OSError:
                os._exit(4)  # it was closed
            os._exit(0 if file == lock._file else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        lock.release()


def other_machine(folder, heartbeat=0.1):
    mark = {"run": "aa", "machine": "elsewhere", "host": "node7", "process": 3, "heartbeat_seconds": heartbeat}
    (folder / LOCK_NAME).write_text(json.dumps(mark))


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_on_a_network_file_system_a_sign_of_life_counts(locks, tmp_path, monkeypatch):
    """Locks may hold within one machine only, or not be there at all."""
    if not locks:

        def unsupported(file, how):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unsupported)
    other_machine(tmp_path)
    beats = []

    def beat(seconds):
        if len(beats) < 3:
            os.utime(tmp_path / LOCK_NAME, (time.time(), time.time() + len(beats)))
        beats.append(seconds)

    monkeypatch.setattr(time, "sleep", beat)
    with pytest.raises(FolderInUseError, match="node7"):
        FolderLock(tmp_path)
    monkeypatch.undo()
    if not locks:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    os.utime(tmp_path / LOCK_NAME)
    FolderLock(tmp_path).release()  # nobody touches it now
    other_machine(tmp_path, heartbeat=1000)
    os.utime(tmp_path / LOCK_NAME, (0, 0))
    start = time.monotonic()
    FolderLock(tmp_path).release()  # the last sign of life is old enough
    assert time.monotonic() - start < 1


def test_the_holder_shows_signs_of_life_and_notices_that_it_was_robbed(tmp_path):
    lock = FolderLock(tmp_path, heartbeat=0.05)
    before = (tmp_path / LOCK_NAME).stat().st_mtime_ns
    time.sleep(0.5)
    assert (tmp_path / LOCK_NAME).stat().st_mtime_ns > before
    other_machine(tmp_path)
    with pytest.raises(FolderInUseError, match="node7"):
        lock.check()
    lock.release()
    assert (tmp_path / LOCK_NAME).exists()  # it is the other's


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"heartbeat_seconds": "x"}'])
def test_a_damaged_lock_file_of_a_dead_run_keeps_nobody_out(content, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    (tmp_path / LOCK_NAME).write_bytes(content)
    FolderLock(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"folder {tmp_path / 'file' / 'models'} cannot be written"):
        FolderLock(tmp_path / "file" / "models")


def test_a_second_training_is_refused_before_its_first_epoch(make_run, tmp_path):
    running = make_run(epochs=1, folder=tmp_path)
    refused = []

    def start_another(engine):
        other = make_run(epochs=1, folder=tmp_path)
        with pytest.raises(FolderInUseError, match=str(tmp_path)) as error:
            other.trainer.run()
        refused.append((str(error.value), other.trainer.state.iteration))

    running.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), start_another)
    running.trainer.run()
    assert len(refused) == 1 and refused[0][1] == 0
    assert LOCK_NAME not in os.listdir(tmp_path)
    make_run(epochs=1, folder=tmp_path).trainer.run()


def test_a_training_that_fails_gives_its_folder_back(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="--resume needs"):
        make_run(epochs=1, folder=tmp_path, resume=True).trainer.run()
    make_run(epochs=1, folder=tmp_path).trainer.run()
