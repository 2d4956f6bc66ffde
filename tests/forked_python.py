# SPDX-License-Identifier: Apache-2.0
"""Runs ``python -m MODULE`` in processes that do not have to import MONAI again.

Importing MONAI and torch takes some seconds of a core, and the suite starts Python a hundred times. As a script this
module imports them once and forks itself for each command; the child runs the module as ``python -m`` does, with its
own arguments, folder and output, and ends as the interpreter ends. Three such processes take turns, so that of three
runs in a row, such as a whole, a part and a resumed one, no two share the order of their sets; each child draws random
numbers of its own, and must leave no process behind. What happens while MONAI is imported, and what depends on the
environment at that time (thread counts, ``PYTHONPATH``), is not seen here: the tests of zips and of several processes
start real ones.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

PRELOADED = ("monai.bundle", "monai.engines", "monai.handlers", "models_genesis.training", "models_genesis.datasets")


class ForkedPython:
    """Processes that wait with MONAI imported, and the way to run modules in their children.

    Args:
        folder: where the output of the commands is kept.
        executable: the Python that they are run with.
        environment: its variables.
        processes: how many wait.
    """

    def __init__(
        self,
        folder: Path,
        executable: str = sys.executable,
        environment: Mapping[str, str] = os.environ,
        processes: int = 3,
    ) -> None:
        self.folder = folder
        self.count = 0
        variables = {name: value for name, value in environment.items() if name != "PYTHONHASHSEED"}
        self.processes = [
            subprocess.Popen(
                [executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**variables, "OMP_NUM_THREADS": "1"},
            )
            for _ in range(processes)
        ]

    def run(self, line: Sequence[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command line, as ``subprocess.run`` does with ``capture_output=True, text=True``.

        Args:
            line: ``[sys.executable, "-m", MODULE, *arguments]``, whichever the executable.
            cwd: folder to run it in.
            timeout: seconds after which it is killed.

        Returns:
            Its exit status, negative where a signal ended it, and its output.

        Raises:
            subprocess.TimeoutExpired: when it was killed.
            RuntimeError: when it has left a process behind.
            ValueError: when it is another command.
        """
        if list(line[:2]) != [sys.executable, "-m"]:
            raise ValueError(f"expected python -m MODULE, found {list(line[:3])}")
        self.count += 1
        outputs = [str(self.folder / f"{self.count}.{name}") for name in ("stdout", "stderr")]
        request = {"line": list(line[2:]), "cwd": str(cwd), "outputs": outputs, "timeout": timeout}
        status, left = _ask(self.processes[self.count % len(self.processes)], request)
        stdout, stderr = (Path(output).read_text(errors="replace") for output in outputs)
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(list(line), timeout, stdout, stderr)
        if left:
            raise RuntimeError(f"{line[2]} has ended with {status} and left a process behind: {stderr[-2000:]}")
        return subprocess.CompletedProcess(list(line), status, stdout, stderr)

    def close(self) -> None:
        """End the processes that wait."""
        for process in self.processes:
            process.communicate(timeout=60)


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> tuple[int, bool]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    reply = process.stdout.readline()
    if not reply:
        raise RuntimeError(f"the process that runs modules has ended with {process.wait()}")
    status, left = reply.split()
    return int(status), left == "1"


def serve(requests: TextIO, replies: TextIO) -> None:
    """Fork for each request, and reply with the status its process ended with; return at the end, and in each child.

    Args:
        requests: a JSON object a line, of :meth:`ForkedPython.run`.
        replies: a line each: its status, negative where a signal ended the process, and 1 where it left others behind.
    """
    for text in requests:
        request = json.loads(text)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            become(request)
            return
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
    """Run a module as ``python -m`` does: in this process, which has just been forked."""
    os.setpgid(0, 0)
    for number, output in enumerate(request["outputs"], 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    np.random.seed()  # noqa: NPY002 - what a run does not seed must differ from run to run
    torch.seed()
    signal.alarm(int(request["timeout"]))  # ends the process, whatever it is doing
    module, *arguments = request["line"]
    sys.argv = [module, *arguments]
    sys.path[0] = request["cwd"]  # as python -m has it
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # else each child goes through all these objects, and copies their pages, when it ends
    own_replies = os.fdopen(os.dup(1), "w")  # what the imports or a command print must not be taken for a reply
    serve(sys.stdin, own_replies)
