# SPDX-License-Identifier: Apache-2.0
"""Runs Python blocks of documents one after another in an interpreter of their own, whichever environment it is of."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

LOOP = """
import contextlib, json, sys, traceback
names = {"__name__": "__main__"}
with open(sys.argv[1], "w") as replies:
    for line in sys.stdin:
        code, place, kind = json.loads(line)
        value, error = None, ""
        try:
            value = (exec if kind == "exec" else eval)(compile(code, place, kind), names)
            reply = json.dumps([value, error])
        except Exception as exception:
            traceback.print_exc()
            reply = json.dumps([None, f"{type(exception).__name__}: {exception}"])
        print(reply, file=replies, flush=True)
"""
"""It is given by ``-c``, so that the working folder is on the path, as in a reader's interpreter, and no other."""


class Interpreter:
    """A Python that waits for code, from the first on; names that a block makes are there in the next.

    Args:
        start: starts a command line, as ``ForkedPython.start`` of ``tests/forked_python.py`` does.
        folder: the working folder.
        scratch: for its pipes.
    """

    def __init__(self, start: Callable[..., Any], folder: Path, scratch: Path) -> None:
        self.start, self.folder = start, folder
        self.pipes = [scratch / name for name in ("requests", "replies")]
        self.process: Any = None
        self.requests: TextIO
        self.replies: TextIO

    def _start(self) -> None:
        for pipe in self.pipes:
            os.mkfifo(pipe)
        requests, replies = map(str, self.pipes)
        self.process = self.start([sys.executable, "-c", LOOP, replies], self.folder, timeout=500, stdin=requests)
        self.requests, self.replies = self.pipes[0].open("w"), self.pipes[1].open()

    def run(self, code: str, place: str) -> None:
        """Execute code.

        Args:
            code: any number of lines.
            place: what tracebacks call it.

        Raises:
            RuntimeError: with the type of what the code raised, and its words.
        """
        self._ask(code, place, "exec")

    def value(self, expression: str) -> Any:
        """Evaluate an expression, of a value that JSON can hold; errors are raised as by :meth:`run`."""
        return self._ask(expression, expression, "eval")

    def _ask(self, code: str, place: str, kind: str) -> Any:
        if self.process is None:
            self._start()
        self.requests.write(json.dumps([code, place, kind]) + "\n")
        self.requests.flush()
        reply = self.replies.readline()
        if not reply:
            self.requests.close()
            done = self.process.wait()
            raise RuntimeError(f"the interpreter has ended with {done.returncode}: {done.stderr[-2000:]}")
        value, error = json.loads(reply)
        if error:
            raise RuntimeError(error)
        return value

    def close(self) -> None:
        """End it, where it has been started."""
        if self.process is not None and not self.process.ended:
            self.requests.close()
            self.process.wait()
            self.replies.close()
