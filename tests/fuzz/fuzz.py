# SPDX-License-Identifier: Apache-2.0
"""Read damaged files of every format, each format in a process that may crash, hang or run out of memory alone.

``python tests/fuzz/fuzz.py --mutations 1000 --out fuzz_found`` tries that many files of each format; a file that is
neither read nor refused as documented is kept below ``--out`` with what it takes to make it again:
``--format nii --seed 0 --first 17 --mutations 1``. Linux only.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from formats import FORMATS, Format
from mutations import damaged

SECONDS = 20
"""For one file; a good one takes milliseconds."""

MEMORY = 1 << 30
"""Bytes of address space beyond what the imports take."""

RESIDENT = 96 << 20
"""Bytes that reading one file may fill: the files have some kilobytes."""

CRASHES = 5
"""A format is given up after that many."""

NO_MEMORY = ("not enough memory", "can't allocate memory", "Unable to allocate")


def make_damaged(name: str, good: bytes, seed: int, number: int) -> bytes:
    """Make the damaged file of a number; each has a generator of its own, so that it can be made alone."""
    kind = FORMATS[name]
    rng = random.Random(f"{name}:{seed}:{number}")
    if kind.inside and rng.random() < 0.5:
        return gzip.compress(damaged(gzip.decompress(good), rng, kind.reach, kind.edit))
    return damaged(good, rng, kind.reach, kind.edit)


def try_file(kind: Format, path: Path) -> tuple[str, str]:
    """Read a file.

    Returns:
        ``"read"``, ``"refused"`` or ``"other"``, and the error.
    """
    before = start_peak()
    try:
        kind.read(path)
        result, detail = "read", ""
    except BaseException as error:
        named = str(path.parent) in str(error)
        known = isinstance(error, kind.refusals) and named and (kind.claims or not out_of_memory(error))
        result, detail = "refused" if known else "other", f"{type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            raise
    grown = peak() - before
    if grown > RESIDENT:
        return "other", f"{grown >> 20} MiB of memory for a file of {path.stat().st_size} bytes; {detail}"
    return result, detail


def out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error was one of memory before it was made a refusal."""
    while error is not None:
        if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def start_peak() -> int:
    """Have the highest use of memory count from here, and give it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Bytes of memory that this process has used at most since :func:`start_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def limit() -> None:
    """Limit this process's memory and files, and have a crash write no core."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def work(name: str, seed: int, numbers: range, folder: Path, results: Path) -> None:
    """Try files one after the other; the number is noted before a file is read, the result afterwards."""
    kind = FORMATS[name]
    path = folder / kind.file
    kind.make(folder)
    good = path.read_bytes()
    if (whole := try_file(kind, path))[0] != "read":  # reads what the first reading imports, too
        raise RuntimeError(f"{name}: the undamaged file was {whole}")
    limit()
    with open(results, "a", encoding="utf-8", errors="backslashreplace") as stream:
        for number in numbers:
            path.write_bytes(make_damaged(name, good, seed, number))
            stream.write(f"{number}\n")
            stream.flush()
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            found = try_file(kind, path)
            faulthandler.cancel_dump_traceback_later()
            stream.write(json.dumps(found) + "\n")
            stream.flush()
            if found[0] == "other":
                keep(path, results, number)


def keep(path: Path, results: Path, number: int) -> None:
    """Keep a file next to the results."""
    folder = results.with_name(f"{results.stem}-{number}")
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder)


def run_apart(name: str, seed: int, numbers: range, folder: Path, results: Path) -> int:
    """Do :func:`work` in a forked process, which has all imports already.

    Returns:
        0, its exit status, or the number of the signal that ended it, negative.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        work(name, seed, numbers, folder, results)
        os._exit(0)
    except BaseException as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)


def ending(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"hung for {SECONDS} s" if status == 1 else f"ended with status {status}"


def fuzz(name: str, seed: int, numbers: range, out: Path) -> dict[str, object]:
    """Try files of one format.

    Returns:
        How many were read, refused, or neither, and of the last each number with what happened.
    """
    results = out / f"{name.replace(', ', '-')}.jsonl"
    results.unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    others: dict[int, str] = {}
    tried = numbers
    for _ in range(CRASHES):
        with tempfile.TemporaryDirectory(prefix="fuzz") as temporary:
            folder = Path(temporary).resolve() / "files"
            folder.mkdir()
            status = run_apart(name, seed, numbers, folder, results)
            lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
            ended = len(lines) % 2 == 1
            if not ended and (status or len(lines) != 2 * len(tried)):
                raise RuntimeError(f"{name}: the process {ending(status)} between two files")
            if ended:
                keep(folder / FORMATS[name].file, results, int(lines[-1]))
                lines.append(json.dumps(["other", ending(status)]))
                results.write_text("\n".join(lines) + "\n", encoding="utf-8")
                numbers = range(int(lines[-2]) + 1, numbers.stop)
        if not ended or not numbers:
            break
    for number, found in zip(lines[::2], map(json.loads, lines[1::2]), strict=True):
        counts[found[0]] += 1
        if found[0] == "other":
            others[int(number)] = found[1]
    return {"read": counts["read"], "refused": counts["refused"], "other": others}


def main() -> int:
    """Run the command line; 1 where a file was neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=40, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--format", choices=list(FORMATS), action="append", help="by default all")
    parser.add_argument("--out", type=Path, default=Path("fuzz_found"), help="folder for results and files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(f"{'format':<14}{'read':>8}{'refused':>8}{'other':>8}")
    summary = {}
    for name in options.format or FORMATS:
        numbers = range(options.first, options.first + options.mutations)
        summary[name] = found = fuzz(name, options.seed, numbers, options.out)
        others = found["other"]
        assert isinstance(others, dict)
        print(f"{name:<14}{found['read']:>8}{found['refused']:>8}{len(others):>8}", flush=True)
        for number, what in others.items():
            print(f"  --format '{name}' --seed {options.seed} --first {number} --mutations 1: {what[:400]}")
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2))
    return int(any(found["other"] for found in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
