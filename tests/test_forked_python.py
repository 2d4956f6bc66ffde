# SPDX-License-Identifier: Apache-2.0
"""A module in a forked child behaves as ``python -m`` does, as far as the tests of the bundles depend on it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

RANKS = """
import os, sys, time
import torch.distributed as dist
if sys.argv[1:] == [os.environ["RANK"]]:
    sys.exit(3)
dist.init_process_group("gloo")
found = [None, None]
dist.all_gather_object(found, (dist.get_rank(), os.getpid(), hash("text")))
print(sorted(rank for rank, _, _ in found), len({pid for _, pid, _ in found}), len({order for _, _, order in found}))
dist.destroy_process_group()
"""

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


def test_code_reads_what_it_is_given_beside_other_runs(forked, tmp_path):
    """As ``python -c`` does; no run waits behind another one, and no more are begun than can run."""
    (tmp_path / "given").write_text("one\ntwo\n")
    code = "import os, sys; print(__name__, sys.argv, os.getcwd(), sys.stdin.read().split())"
    (tmp_path / "own.py").write_text("print('from the folder')")
    line = [sys.executable, "-c", code + "; import own", "a"]
    expected = f"__main__ ['-c', 'a'] {tmp_path} ['one', 'two']\nfrom the folder\n"
    waiting = [forked.start([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 60) for _ in range(2)]
    for _ in range(2):
        done = forked.start(line, tmp_path, 60, stdin=str(tmp_path / "given")).wait()
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
    waiting.append(forked.start([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 60))
    with pytest.raises(RuntimeError, match="expected at most 3 runs at once"):
        forked.start(line, tmp_path, 60)
    for run in waiting:
        run.send_signal(signal.SIGTERM)
        assert run.wait().returncode == -signal.SIGTERM


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


def test_only_modules_and_code_can_be_run(forked_python, tmp_path):
    with pytest.raises(ValueError, match="expected python -m MODULE or -c CODE"):
        forked_python([sys.executable, "script.py"], tmp_path, timeout=60)


def test_a_run_can_be_ended_by_a_signal(forked, tmp_path):
    """As ``kill`` ends ``python -m``; what it has left behind when it could not help it is ended too."""
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "if sys.argv[1] == 'forks' and os.fork() == 0:\n    time.sleep(60)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    for word, number, status in (("alone", signal.SIGTERM, 143), ("forks", signal.SIGKILL, -signal.SIGKILL)):
        run = forked.start([sys.executable, "-m", "waits", word], tmp_path, timeout=60)
        deadline = time.monotonic() + 30
        output = run.outputs[0]
        while not (output.exists() and output.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.running()
        run.send_signal(number)
        done = run.wait()
        assert (done.returncode, done.stdout) == (status, "ready\n") and not run.running()


def test_two_ranks_find_each_other(forked, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    line = [sys.executable, "-m", "ranks"]
    for done in forked.run_ranks(line, tmp_path, timeout=60):
        assert (done.returncode, done.stdout) == (0, "[0, 1] 2 2\n"), done.stderr
    # one that fails does not keep the other waiting
    for failing in (0, 1):
        statuses = [done.returncode for done in forked.run_ranks([*line, str(failing)], tmp_path, timeout=60)]
        assert statuses[failing] == 3 and statuses[1 - failing] != 0
