# SPDX-License-Identifier: Apache-2.0
"""Runs documents as a reader does who types every block, in a folder that has what the project's folder has."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import document_table as table
from document_blocks import Block, blocks_of
from document_interpreter import Interpreter
from document_shell import Answer, Command, read_blocks
from monai.bundle import ConfigParser

RUN = ("python", "-m", "monai.bundle", "run")
DATA = re.compile(r"(?<![\w.])/data/")


@dataclass
class Session:
    """A folder in which documents are run one after another, each in a shell and an interpreter of its own.

    Args:
        folder: the working folder.
        data: the folder that stands for ``/data``.
        python: the ``ForkedPython`` of ``tests/forked_python.py`` that runs the commands and the blocks in Python.
        scratch: for files of this class.
    """

    folder: Path
    data: Path
    python: Any
    scratch: Path
    said: dict[tuple[str, ...], str] = field(default_factory=dict)

    def run(
        self, document: str, asked: Sequence[str] = (), variables: Mapping[str, str] | None = None, given: str = ""
    ) -> list[Any]:
        """Run the blocks of a document in their order.

        A command that this session has run already is not run again. Blocks and commands that the table has elsewhere
        are left out.

        Args:
            document: its path below the project's folder.
            asked: expressions of names that the Python blocks have made.
            variables: what the reader has set in the shell.
            given: Python code that makes what the Python blocks take for given.

        Returns:
            The values of what was asked for, when all blocks have ended; tuples as lists.

        Raises:
            RuntimeError: naming the block and the command that failed, with what it said.
        """
        scratch = self.scratch / str(len(list(self.scratch.iterdir())))
        scratch.mkdir()
        blocks = [block for block in blocks_of(document) if not _is_left_out(block)]
        with closing(Interpreter(self.python.start, self.folder, scratch)) as python:
            if given:
                python.run(given, "given")

            def call(block: Block, command: Command) -> Answer:
                if command.words:
                    return self._run(block, command, scratch)
                self._run_code(block, python)
                return Answer()

            read_blocks(blocks, self.folder, scratch, call, variables or {}, change_folders=True)
            return [python.value(expression) for expression in asked]

    def _run_code(self, block: Block, python: Interpreter) -> None:
        if (block.document, block.language) in table.FILES:
            (self.folder / table.FILES[block.document, block.language]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            lines = [line for line in block.text.splitlines() if not any(part in line for part in table.LINES_LEFT_OUT)]
            text = self._with_data_and_sizes("\n".join(lines))
            try:
                python.run("\n" * (block.line - 1) + text, block.document)
            except RuntimeError as error:
                raise RuntimeError(f"{block.place}: {error}") from error

    def _with_data_and_sizes(self, code: str) -> str:
        for full, small in table.CODE_SIZES.items():
            code = code.replace(full, small)
        return DATA.sub(f"{self.data}/", code)

    def _run(self, block: Block, command: Command, scratch: Path) -> Answer:
        program = command.words[0]
        if program in table.NOT_RUN or table.elsewhere_of(" ".join(command.words)):
            return Answer()
        words = tuple(DATA.sub(f"{self.data}/", word) for word in command.words)
        if words not in self.said or command.stdin:
            self.said[words] = self._python(block, with_small_sizes(words, self.folder), command)
        (scratch / "output").write_text(self.said[words], encoding="utf-8")
        return Answer(output=scratch / "output")

    def _python(self, block: Block, words: tuple[str, ...], command: Command) -> str:
        program, *line = words
        if "--resume" in line:
            interrupt(command.folder / line[line.index("--ckpt_dir") + 1])
        if program != "python" or line[0] not in ("-m", "-"):
            raise RuntimeError(f"{block.place}: {command}: the table does not say how it is run")
        if line[0] == "-":
            (command.folder / "here_document.py").write_text(self._with_data_and_sizes(command.stdin), encoding="utf-8")
            line = ["-m", "here_document"]
        done = self.python.run([sys.executable, *line], command.folder, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"{block.place}: {command}\n{done.stdout[-1000:]}{errors_in(done.stderr)}")
        return done.stdout


def errors_in(text: str) -> str:
    """Give the lines of a traceback that say what was wrong; all of a text without such lines."""
    lines = [line for line in text.splitlines() if re.match(r"([\w.]+Error|error): ", line)]
    return "\n".join(lines) or text[-3000:]


def interrupt(folder: Path) -> None:
    """Put a finished training of two epochs back to the end of the first."""
    (folder / "last_epoch_before_1.pt").replace(folder / "last_epoch.pt")


def _is_left_out(block: Block) -> bool:
    return any(block.document == document and part in block.text for document, part in table.BLOCKS_LEFT_OUT)


def with_small_sizes(words: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Put the table's sizes behind a training, those of them that its configs have."""
    if words[:4] != RUN:
        return words
    files = words[words.index("--config_file") + 1]
    names = re.findall(r"[\w./-]+\.json", files)
    stages = {Path(name).stem for name in names}
    if "train" not in stages or "evaluate" in stages:
        return words
    keys = {key for name in names for key in ConfigParser.load_config_file(str(folder / name))}
    from_scratch = "pretrained" not in keys or "none" in words
    sizes = dict(table.PRETRAINING_SIZES if from_scratch else table.SIZES)
    if "paper" in stages:
        sizes |= table.PAPER_SIZES
    if "2d" in stages:
        sizes |= table.SLICE_SIZES
    return words + tuple(part for key, value in sizes.items() if key in keys for part in (f"--{key}", value))
