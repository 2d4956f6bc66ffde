# SPDX-License-Identifier: Apache-2.0
"""Has bash read blocks of commands as a reader's shell does, and hands each program that they call to a function.

Variables, quotes, continued lines, comments, here-documents, ``&&``, pipes and redirections are bash's own. No program
is found on the path, so that bash asks ``command_not_found_handle``, which sends the command's words through a pipe and
waits for its status. Nothing is run that the function does not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from document_blocks import Block

PRELUDE = """
set -eu -o pipefail
PATH=/nowhere
__ask() {
    printf '%s\\0' "$(($# + 2))" "$__block" "$PWD" "$@" >&"$REQUESTS"
    local status output
    IFS=' ' read -r status output <&"$REPLIES"
    if [[ -n $output ]]; then printf '%s' "$(<"$output")"; fi
    return "$status"
}
__command() {
    local stdin=''
    if [[ ${2-} == - ]]; then IFS= read -r -d '' stdin || true; fi
    __ask "$stdin" "$@"
}
command_not_found_handle() { __command "$@"; }
source() { __command source "$@"; }
"""
END_OF_BLOCK = "__end_of_block"
"""The word that bash sends after each block, so that a block which ends bash early is noticed."""

BRANCH = re.compile(r"(^|[;&|]|\bdo\b|\bthen\b)\s*(exit|return|exec|if|case)\b|\|\|", re.MULTILINE)
"""What leaves commands of a block unread, since each command here succeeds."""

NO_FOLDERS = 'cd() { __command cd "$@"; }\n'
"""For blocks that are read only: the folders they go to are not there."""


@dataclass(frozen=True)
class Command:
    """One call of a program.

    Args:
        words: the program's name and its arguments, as bash hands them over.
        folder: the working folder.
        stdin: the here-document that follows ``python -``, else empty.
    """

    words: tuple[str, ...]
    folder: Path
    stdin: str

    def __str__(self) -> str:
        """Give the command as it could be typed."""
        return shlex.join(self.words)


@dataclass(frozen=True)
class Answer:
    """What a command gave: its exit status, and the file that holds what it printed."""

    status: int = 0
    output: Path | None = None


def read_blocks(
    blocks: Sequence[Block],
    folder: Path,
    scratch: Path,
    call: Callable[[Block, Command], Answer],
    variables: Mapping[str, str],
    change_folders: bool,
    paths: Iterable[str] = (),
) -> None:
    """Have one bash read blocks in order; variables that one sets are there in the next.

    Args:
        blocks: those in bash are read; for each other one ``call`` gets a command without words.
        folder: where bash starts.
        scratch: an empty folder for bash's own files.
        call: answers for a command of a block. What it raises ends bash.
        variables: environment of bash.
        change_folders: whether ``cd`` is done, or handed to ``call`` as a program.
        paths: programs that are called by a path, such as ``./run.sh``, which bash does not look up.

    Raises:
        RuntimeError: when bash does not get through: a word that it cannot read, a variable that is not set, a command
            whose status is not 0, or a block whose end is not reached.
        ValueError: when a block has a branch, of which bash would read one side only.
    """
    for block in blocks:
        if block.language == "bash" and (found := BRANCH.search(block.text)):
            raise ValueError(f"{block.place}: expected commands one after the other, found {found[0].strip()!r}")
    lines = [PRELUDE, "" if change_folders else NO_FOLDERS]
    lines += [f'function {name} {{ __command {name} "$@"; }}\n' for name in paths]
    for number, block in enumerate(blocks):
        script = scratch / f"{number}.sh"
        script.write_text(block.text if block.language == "bash" else "__command\n", encoding="utf-8")
        lines.append(f"__block={number}\nbuiltin source {shlex.quote(str(script))}\n__ask '' {END_OF_BLOCK}\n")
    (scratch / "all.sh").write_text("".join(lines), encoding="utf-8")
    bash = shutil.which("bash")
    if bash is None:
        raise RuntimeError("bash is needed to read the blocks")
    requests, sends = os.pipe()
    receives, replies = os.pipe()
    with (
        os.fdopen(requests, "rb") as incoming,
        os.fdopen(replies, "w") as outgoing,
        (scratch / "stderr").open("w") as errors,
        subprocess.Popen(
            [bash, "--noprofile", "--norc", str(scratch / "all.sh")],
            cwd=folder,
            env={**variables, "REQUESTS": str(sends), "REPLIES": str(receives)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(sends, receives),
        ) as process,
    ):
        os.close(sends)
        os.close(receives)
        place, ended = blocks[0].place, 0
        try:
            for number, directory, stdin, *words in _messages(incoming):
                block = blocks[int(number)]
                place = block.place
                if words == [END_OF_BLOCK]:
                    ended += 1
                    outgoing.write("0\n")
                    outgoing.flush()
                    continue
                answer = call(block, Command(tuple(words), Path(directory), stdin))
                outgoing.write(f"{answer.status} {answer.output or ''}\n")
                outgoing.flush()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or ended != len(blocks):
        raise RuntimeError(f"{place} or after it: {(scratch / 'stderr').read_text()[-2000:]}")


def _messages(incoming: BinaryIO) -> Iterator[list[str]]:
    """Go through the lists of texts that bash sends, each after its length, until it ends."""
    fields = _fields(incoming)
    for length in fields:
        yield [next(fields) for _ in range(int(length))]


def _fields(incoming: BinaryIO) -> Iterator[str]:
    field = bytearray()
    while byte := incoming.read(1):
        if byte == b"\0":
            yield field.decode()
            field.clear()
        else:
            field += byte
