# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every format are read rightly or refused as documented: no crash, no hang, no claimed memory.

``make fuzz`` tries many more; ``FUZZ_MUTATIONS`` and ``FUZZ_SEED`` choose how many of each format and which.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")

SCRIPT = Path(__file__).with_name("fuzz.py")
MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "40"))
SEED = os.environ.get("FUZZ_SEED", "0")
FORMATS = re.findall(r'^    "([^"]+)": Format\(', SCRIPT.with_name("formats.py").read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def found(
    forked_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """What became of the files of each format; those found are kept in ``FUZZ_OUT``, or pytest's folder."""
    out = Path(os.environ.get("FUZZ_OUT") or tmp_path_factory.mktemp("fuzz"))
    command = [sys.executable, "-m", SCRIPT.stem, "--mutations", str(MUTATIONS), "--seed", SEED, "--out", str(out)]
    process = forked_python(command, SCRIPT.parent, timeout=60 + 10 * MUTATIONS * len(FORMATS))
    print(process.stdout, process.stderr, f"files are kept in {out}", sep="\n")
    assert (out / "summary.json").is_file(), process.stderr
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(found: dict[str, dict], name: str) -> None:
    assert found[name]["other"] == {}
    assert found[name]["read"] + found[name]["refused"] == MUTATIONS
    assert found[name]["read"], "nothing was read, so that nothing but the first check was tried"
    assert found[name]["refused"]


FAULTS = {
    "signal": ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    "hang": ("time.sleep(60)", "hung for 1 s"),
    "exit": ("os._exit(0)", "ended with status 0"),
    "other error": ("raise KeyError(str(path))", "KeyError"),
    "no name": ("raise ValueError('x')", "ValueError"),
    "memory": ("bytearray(2 << 30)", "MemoryError"),
    "refused for memory": ("refuse_for_memory(path)", "found no memory"),
    "filled memory": ("bytearray(b'x') * (200 << 20)", "MiB of memory"),
}
CULPRIT = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
import fuzz

def refuse_for_memory(path):
    try:
        bytearray(2 << 30)
    except MemoryError as error:
        raise ValueError(f"{path}: found no memory") from error

def reader(fault):
    readings = []
    def read(path):
        readings.append(path)
        if len(readings) > 1:  # the first is the undamaged file
            exec(fault, {**globals(), "path": path})
    return read

kind = fuzz.FORMATS["datalist"]
fuzz.SECONDS = 1
sys.argv += ["--mutations", "2"]
for name, (fault, _) in FAULTS.items():
    fuzz.FORMATS[name] = replace(kind, read=reader(fault))
    sys.argv += ["--format", name]
sys.exit(fuzz.main())
"""


def test_faults_are_found_and_their_files_kept(
    forked_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", f"FAULTS = {FAULTS!r}\n{CULPRIT}", "--out", str(tmp_path)]
    process = forked_python(command, SCRIPT.parent, timeout=300)
    assert process.returncode == 1, process.stderr
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    for fault, (_, said) in FAULTS.items():
        other = summary[fault]["other"]
        assert list(other) == ["0", "1"], (fault, other)
        assert said in other["0"]
        assert (tmp_path / f"{fault}-1" / "a.json").is_file()
