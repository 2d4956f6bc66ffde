# SPDX-License-Identifier: Apache-2.0
"""Worker processes that are kept from run to run: importing MONAI takes longer than a short run."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..datasets.loading.worker_shield import end_with_parent
from .plan import Run
from .results import Results
from .study import load_study
from .subsets import read_cohort

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


READY = "ready"
"""What a worker says when it has imported all that it needs."""


class WorkerError(RuntimeError):
    """A worker process that cannot begin: no run is to blame."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know once.

    Attributes:
        study: path of the study's file.
        dataset_dir: where the data are.
        out: folder of the results.
        device: device of the runs.
        keep_weights: see :class:`~models_genesis.transfer.workflow.Execution`.
        threads: threads of a worker.
    """

    study: str
    dataset_dir: str
    out: str
    device: str | None
    keep_weights: bool
    threads: int


@dataclass(frozen=True)
class Job:
    """A run with what its row says besides."""

    run: Run
    weights_sha256: str | None = None
    earlier: tuple[str, ...] = field(default=())


def make_execution(setup: Setup) -> Any:
    """Make what does the runs, in the process that does them.

    Args:
        setup: what it needs to know.

    Returns:
        The :class:`~models_genesis.transfer.workflow.Execution`.

    Raises:
        WorkerError: when there is no such device.
    """
    import torch

    from .workflow import Execution

    try:
        torch.zeros(1, device=setup.device)
    except (AssertionError, RuntimeError) as error:
        raise WorkerError(f"--device {setup.device}: {str(error).splitlines()[0]}") from error
    study = load_study(setup.study, setup.dataset_dir)
    return Execution(study, read_cohort(study), Results(setup.out), setup.device, setup.keep_weights)


def _work(connection: Connection, setup: Setup) -> None:
    """Do the runs that come over the connection, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    end_with_parent()  # which may be killed in the middle of a run
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # progress bars and prints of a bundle: each run has its log
        os.dup2(null, stream)
    import torch

    torch.set_num_threads(setup.threads)
    try:
        execution = make_execution(setup)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(READY)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(execution(job.run, job.weights_sha256, job.earlier))
        # what is imported by now stays; going through it again after each training takes half a second
        gc.freeze()


class Worker:
    """A process that does one run at a time.

    Args:
        setup: what it needs to know.
    """

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(other, setup))
        with _thread_limit(setup.threads):
            self.process.start()
        other.close()
        self.ready = False
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        """Give it a run."""
        self.job = job
        self.connection.send(job)

    def stop(self) -> None:
        """End it; what it does is dropped."""
        self.connection.close()
        if self.job is None and self.ready:  # it ends by itself, and clears away what it shares with its children
            self.process.join(10)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _thread_limit(threads: int) -> Iterator[None]:
    """Let processes that start now use so many threads; libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_for(workers: list[Worker], timeout: float) -> list[Worker]:
    """Wait until a worker says something or ends.

    Args:
        workers: the workers.
        timeout: seconds to wait at most.

    Returns:
        Those that did.
    """
    objects: dict[Any, Worker] = {worker.connection: worker for worker in workers}
    objects |= {worker.process.sentinel: worker for worker in workers}
    return list(dict.fromkeys(objects[each] for each in wait(list(objects), max(timeout, 0))))
