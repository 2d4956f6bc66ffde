# SPDX-License-Identifier: Apache-2.0
"""A module in a forked child behaves as ``python -m`` does, as far as the tests of the bundles depend on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, random, sys
import numpy as np
import torch
atexit.register(print, "the end")
print(__name__, sys.argv[1:], os.getcwd(), repr(sys.stdin.read()))
print(np.random.randint(2**31), torch.randint(2**31, ()).item(), random.random(), hash("text"), file=sys.stderr)
if sys.argv[1:] == ["fails"]:
    raise RuntimeError("as asked")
if sys.argv[1:] == ["exits"]:
    sys.exit(3)
if sys.argv[1:] == ["waits"]:
    import time
    time.sleep(60)
"""


def test_it_is_what_python_m_is(forked_python, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    line = [sys.executable, "-m", "script", "a", "--b", "c"]
    forked = forked_python(line, tmp_path, timeout=60)
    assert (forked.returncode, forked.args) == (0, line)
    assert forked.stdout == f"__main__ ['a', '--b', 'c'] {tmp_path} ''\nthe end\n"
    for word, status in (("fails", 1), ("exits", 3)):
        done = forked_python([*line[:3], word], tmp_path, timeout=60)
        assert done.returncode == status and "the end" in done.stdout
        assert ("RuntimeError: as asked" in done.stderr) == (word == "fails")
    with pytest.raises(subprocess.TimeoutExpired):
        forked_python([*line[:3], "waits"], tmp_path, timeout=1)
    assert forked_python(line, tmp_path, timeout=60).returncode == 0


def test_nothing_random_is_shared_by_two_runs(forked_python, tmp_path):
    """Else a run that forgets to seed something would still equal the next one."""
    (tmp_path / "script.py").write_text(SCRIPT)
    drawn = [forked_python([sys.executable, "-m", "script"], tmp_path, timeout=60).stderr.split() for _ in range(4)]
    for numbers in list(zip(*drawn, strict=True))[:3]:
        assert len(set(numbers)) == 4
    hashes = [numbers[3] for numbers in drawn]
    assert (
        len(set(hashes)) == 3 and hashes[0] == hashes[3]
    )  # of three runs in a row no two share the order of their sets


def test_a_process_that_is_left_behind_is_found_and_ended(forked_python, tmp_path):
    (tmp_path / "leaves.py").write_text("import os, time\nif os.fork() == 0:\n    time.sleep(60)\n")
    with pytest.raises(RuntimeError, match="left a process behind"):
        forked_python([sys.executable, "-m", "leaves"], tmp_path, timeout=60)


def test_only_modules_can_be_run(forked_python, tmp_path):
    with pytest.raises(ValueError, match="expected python -m MODULE"):
        forked_python([sys.executable, "-c", "pass"], tmp_path, timeout=60)
