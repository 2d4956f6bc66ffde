# SPDX-License-Identifier: Apache-2.0
"""Worker processes react to SIGTERM of their parent alone, while they are shielded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from models_genesis.datasets import PrefetchDataLoader
from models_genesis.datasets.loading.worker_shield import shield_workers, stop_shielding

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="signals of other processes are told on Linux"
)


@pytest.fixture
def fork() -> Iterator[Callable[[], multiprocessing.process.BaseProcess]]:
    """Start processes that sleep, and end them afterwards."""
    context, started = multiprocessing.get_context("fork"), []

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=time.sleep, args=(60,), daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def terminate_from_elsewhere(pid: int) -> None:
    """What ``scancel`` or ``pkill`` does: the signal comes from a process that is no parent."""
    subprocess.run([sys.executable, "-c", f"import os, signal; os.kill({pid}, signal.SIGTERM)"], check=True)


def test_a_signal_from_elsewhere_is_left_to_the_parent(fork):
    shield_workers()
    try:
        process = fork()
    finally:
        stop_shielding()
    for _ in range(2):
        terminate_from_elsewhere(process.pid)
    process.join(0.5)
    assert process.exitcode is None
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


class FromStore(list):
    """Says that its workers must not be forked, as a data set that reads a store does."""

    forkable = False


@pytest.mark.parametrize("kind", [list, FromStore])
def test_a_loader_goes_on_when_its_workers_are_asked_to_end(kind):
    """Without the shield torch raises that a worker is killed."""
    shield_workers()
    try:
        batches = iter(PrefetchDataLoader(kind(range(40)), num_workers=2, prefetch_factor=1))
        found = [next(batches).item() for _ in range(2)]  # one of each worker: both are set up
    finally:
        stop_shielding()
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        terminate_from_elsewhere(worker.pid)
    found += [batch.item() for batch in batches]
    assert found == list(range(40))
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0


def test_processes_of_other_times_are_as_ever(fork):
    shield_workers()
    stop_shielding()
    process = fork()
    terminate_from_elsewhere(process.pid)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_a_process_whose_parent_is_gone_obeys_anyone():
    """The child of a parent that ended at once; it prints its number and sleeps."""
    code = (
        "import multiprocessing, os, time\n"
        "from models_genesis.datasets.loading.worker_shield import shield_workers\n"
        "shield_workers()\n"
        "child = multiprocessing.get_context('fork').Process(target=lambda: (os.close(1), time.sleep(60)))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    child = int(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert _alive(child)
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
