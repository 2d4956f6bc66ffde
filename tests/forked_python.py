# SPDX-License-Identifier: Apache-2.0
"""Runs ``python -m MODULE`` and ``python -c CODE`` in processes that do not have to import MONAI again.

Importing MONAI and torch takes some seconds of a core, and the suite starts Python a hundred times. As a script this
module imports them once and forks itself for each command; the child runs the module as ``python -m`` does, with its
own arguments, folder and output, and ends as the interpreter ends. Three such processes take turns, so that of three
runs in a row, such as a whole, a part and a resumed one, no two share the order of their sets; each child draws random
numbers of its own, and must leave no process behind. What happens while MONAI is imported, and what depends on the
environment at that time (thread counts, ``PYTHONPATH``), is not seen here: of a zip, of several processes and of the
model zoo's unit tests, some tests start real ones.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

MONAI = ("monai.bundle", "monai.engines", "monai.handlers", "numba", "torch._dynamo")
"""MONAI, and what it and torch import when something is compiled and when an optimiser is made."""

PRELOADED = (*MONAI, "models_genesis.training", "models_genesis.datasets")


class ForkedPython:
    """Processes that have MONAI imported, each from the first command on that it gets, and run commands in children.

    Args:
        folder: where the output of the commands is kept.
        executable: the Python that they are run with.
        environment: its variables.
        processes: how many wait.
        preloaded: modules that they have imported.
    """

    def __init__(
        self,
        folder: Path,
        executable: str = sys.executable,
        environment: Mapping[str, str] = os.environ,
        processes: int = 3,
        preloaded: Sequence[str] = PRELOADED,
    ) -> None:
        self.folder = folder
        self.count = 0
        self.command = [executable, __file__, *preloaded]
        variables = {name: value for name, value in environment.items() if name != "PYTHONHASHSEED"}
        self.environment = {**variables, "OMP_NUM_THREADS": "1"}
        self.processes: list[subprocess.Popen[str] | None] = [None] * processes
        self.runs: list[ForkedRun | None] = [None] * processes

    def start(
        self,
        line: Sequence[str],
        cwd: Path,
        timeout: float,
        variables: Mapping[str, str] | None = None,
        stdin: str = os.devnull,
    ) -> ForkedRun:
        """Start a command line.

        Args:
            line: ``[sys.executable, "-m", MODULE, *arguments]``, or ``-c`` and code; whichever the executable.
            cwd: folder to run it in.
            timeout: seconds after which it is killed.
            variables: of the environment, besides those that the processes have; not seen by what is imported already.
            stdin: file that it reads.

        Raises:
            RuntimeError: when as many are running as processes wait.
            ValueError: when it is another command.
        """
        if line[0] != sys.executable or line[1] not in ("-m", "-c"):
            raise ValueError(f"expected python -m MODULE or -c CODE, found {list(line[:3])}")
        self.count += 1
        turns = [(self.count + turn) % len(self.processes) for turn in range(len(self.processes))]
        index = next((turn for turn in turns if self.runs[turn] is None or self.runs[turn].ended), None)
        if index is None:
            raise RuntimeError(f"expected at most {len(turns)} runs at once, found as many that nobody has waited for")
        outputs = [self.folder / f"{self.count}.{name}" for name in ("stdout", "stderr")]
        request = {"line": list(line[1:]), "cwd": str(cwd), "timeout": timeout, "variables": dict(variables or {})}
        process = self._process(index)
        (pid,) = _ask(process, {**request, "stdin": stdin, "outputs": [str(path) for path in outputs]})
        run = self.runs[index] = ForkedRun(list(line), process, pid, outputs, timeout)
        return run

    def run(self, line: Sequence[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command line, as ``subprocess.run`` does with ``capture_output=True, text=True``.

        Args:
            line: as :meth:`start` takes it.
            cwd: folder to run it in.
            timeout: seconds after which it is killed.

        Returns:
            What :meth:`ForkedRun.wait` gives.
        """
        return self.start(line, cwd, timeout).wait()

    def start_ranks(self, line: Sequence[str], cwd: Path, timeout: float) -> list[ForkedRun]:
        """Start a command line in two processes that find each other, as ``torchrun --nproc_per_node=2`` starts them.

        Args:
            line: as :meth:`start` takes it.
            cwd: folder to run it in.
            timeout: seconds after which both are killed.

        Returns:
            The processes, by rank.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        return [self.start(line, cwd, timeout, {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]

    def run_ranks(self, line: Sequence[str], cwd: Path, timeout: float) -> list[subprocess.CompletedProcess[str]]:
        """Run a command line as :meth:`start_ranks` starts it; when one of them fails, the other is killed.

        Args:
            line: as :meth:`start` takes it.
            cwd: folder to run it in.
            timeout: seconds after which both are killed.

        Returns:
            What :meth:`ForkedRun.wait` gives, by rank.
        """
        runs = self.start_ranks(line, cwd, timeout)

        def wait(run: ForkedRun, other: ForkedRun) -> subprocess.CompletedProcess[str]:
            done = run.wait()
            if done.returncode != 0 and other.running():
                other.send_signal(signal.SIGKILL)
            return done

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(wait, runs, reversed(runs)))

    def close(self) -> None:
        """End the processes that wait."""
        for process in filter(None, self.processes):
            process.communicate(timeout=60)

    def _process(self, index: int) -> subprocess.Popen[str]:
        process = self.processes[index] or subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
        )
        self.processes[index] = process
        return process


class ForkedRun:
    """A command that is running.

    Args:
        line: its command line.
        process: the process that it was forked from.
        pid: its own number.
        outputs: files of its standard output and its standard error.
        timeout: seconds after which it is killed.
    """

    def __init__(
        self, line: list[str], process: subprocess.Popen[str], pid: int, outputs: list[Path], timeout: float
    ) -> None:
        self.line, self.process, self.pid, self.outputs, self.timeout = line, process, pid, outputs, timeout
        self.ended = self.killed = False

    def running(self) -> bool:
        """Tell whether it has not ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; its children do not get it."""
        self.killed = self.killed or number == signal.SIGKILL
        os.kill(self.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Returns:
            Its exit status, negative where a signal ended it, and its output.

        Raises:
            subprocess.TimeoutExpired: when it was killed after its time.
            RuntimeError: when it has left a process behind, unless it got SIGKILL and could not help it.
        """
        status, left = _answer(self.process)
        self.ended = True
        stdout, stderr = (path.read_text(errors="replace") for path in self.outputs)
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(self.line, self.timeout, stdout, stderr)
        if left and not self.killed:
            raise RuntimeError(f"{self.line[2]} has ended with {status} and left a process behind: {stderr[-2000:]}")
        return subprocess.CompletedProcess(self.line, status, stdout, stderr)


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> list[int]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    reply = process.stdout.readline()
    if not reply:
        raise RuntimeError(f"the process that runs modules has ended with {process.wait()}")
    return [int(word) for word in reply.split()]


def serve(requests: TextIO, replies: TextIO) -> None:
    """Fork for each request, and reply with the status its process ended with; return at the end, and in each child.

    Args:
        requests: a JSON object a line, of :meth:`ForkedPython.start`.
        replies: two lines each: the number of its process; then its status, negative where a signal ended the process,
            and 1 where it left others behind.
    """
    for text in requests:
        request = json.loads(text)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            become(request)
            return
        replies.write(f"{child}\n")
        replies.flush()
        _, status = os.waitpid(child, 0)
        replies.write(f"{os.waitstatus_to_exitcode(status)} {int(end_group(child))}\n")
        replies.flush()


def end_group(group: int) -> bool:
    """Kill what a child has left running; tell whether there was anything."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def become(request: dict[str, Any]) -> None:
    """Run a module or code as the interpreter does: in this process, which has just been forked."""
    os.setpgid(0, 0)
    for number, output in enumerate(request["outputs"], 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    os.environ.update(request["variables"])
    os.chdir(request["cwd"])
    np.random.seed()  # noqa: NPY002 - what a run does not seed must differ from run to run
    torch.seed()
    signal.alarm(int(request["timeout"]))  # ends the process, whatever it is doing
    kind, what, *arguments = request["line"]
    sys.argv = [what if kind == "-m" else kind, *arguments]
    sys.path[0] = request["cwd"]  # as the interpreter has it
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        __import__(name)
    gc.collect()
    gc.freeze()  # else each child goes through all these objects, and copies their pages, when it ends
    own_replies = os.fdopen(os.dup(1), "w")  # what the imports or a command print must not be taken for a reply
    serve(sys.stdin, own_replies)
