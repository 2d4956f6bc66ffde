# SPDX-License-Identifier: Apache-2.0
"""Runs Python blocks of documents one after another in an interpreter of their own, whichever environment it is of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOOP = """
import contextlib, json, sys, traceback
names, replies, requests = {"__name__": "__main__"}, sys.stdout, sys.stdin
for line in requests:
    code, place, kind = json.loads(line)
    value, error = None, ""
    try:
        with contextlib.redirect_stdout(sys.stderr):
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
        executable: Python.
        folder: the working folder.
        environment: variables.
        errors: file for what the code prints.
    """

    def __init__(self, executable: Path, folder: Path, environment: Mapping[str, str], errors: Path) -> None:
        self.command = [str(executable), "-c", LOOP]
        self.folder, self.environment, self.errors = folder, dict(environment), errors
        self.process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        with self.errors.open("w") as stderr:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

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
        self.process = process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([code, place, kind]) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the interpreter has ended with {process.wait()}: {self.errors.read_text()[-2000:]}")
        value, error = json.loads(reply)
        if error:
            raise RuntimeError(error)
        return value

    def close(self) -> None:
        """End it, where it has been started."""
        if self.process is not None:
            self.process.communicate(timeout=60)
