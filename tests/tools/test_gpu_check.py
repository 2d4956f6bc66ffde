# SPDX-License-Identifier: Apache-2.0
"""The script of the GPU runs does on a processor, with small sizes, all that it does on a GPU."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402 - a script, not part of the package


@pytest.fixture
def _forked_parts(forked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in processes that have MONAI imported, which most of these take longest for."""

    class Process:
        returncode: int | None = None

        def __init__(self, command: list[str], log: TextIO, environment: dict[str, str]) -> None:
            self.run, self.log = forked.start(command, ROOT, 580, environment), log
            self.pid = self.run.pid

        def wait(self, seconds: float) -> None:
            done = self.run.wait()
            self.log.write(done.stdout + done.stderr)
            self.returncode = done.returncode

    def start(command: list[str], *, cwd: Path, stdout: TextIO, env: dict[str, str], **_: Any) -> Process:
        assert cwd == ROOT
        return Process(command, stdout, env)

    stand_in = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu_check, "subprocess", stand_in)


@pytest.mark.usefixtures("_forked_parts")
def test_all_parts_run_and_leave_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--quick", "--minutes", "9", "--out", str(tmp_path)])
    status = gpu_check.main()
    logs = {path.stem: path.read_text()[-1500:] for path in tmp_path.glob("*.log")}
    assert status == 0, logs
    report = json.loads((tmp_path / "check.json").read_text())
    assert [part["status"] for part in report["parts"]] == ["ok"] * len(report["parts"])
    benchmarks = json.loads((tmp_path / "benchmarks.json").read_text())
    assert not benchmarks["failed"]
    assert all(benchmarks[part] for part in ("floors", "forms", "profile", "sizes", "deform", "training"))
    for overlap in ("0.25", "0.5"):
        assert json.loads((tmp_path / f"whole_scan_{overlap}.json").read_text())["windows"] > 0
    with (tmp_path / "eval" / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


def test_it_is_a_script_and_names_its_parts(tmp_path: Path) -> None:
    line = [sys.executable, "tools/gpu_check.py", "--parts", "all", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "expected of ['tests', 'benchmarks', 'inference', 'pretraining']" in done.stderr


@pytest.mark.parametrize(("may_be_stopped", "status"), [(False, "out of time"), (True, "stopped")])
def test_a_part_that_takes_too_long_is_ended_and_noted(may_be_stopped: bool, status: str, tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
    sleep = [sys.executable, "-c", code]
    part = gpu_check.Part("slow", 1.0, [sleep, sleep], may_be_stopped)
    start = time.monotonic()
    report = gpu_check.run_part(part, tmp_path, start + 3)
    assert report["status"] == status and len(report["commands"]) == 1
    assert time.monotonic() - start < 30


def test_a_training_that_had_to_be_killed_or_came_after_a_failure_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "SECONDS_TO_STOP", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    deaf_part = gpu_check.Part("deaf", 1.0, [[sys.executable, "-c", deaf]], True)
    assert gpu_check.run_part(deaf_part, tmp_path, time.monotonic() + 3)["status"] == "out of time"
    obedient = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
    commands = [[sys.executable, "-c", "raise SystemExit(3)"], [sys.executable, "-c", obedient]]
    report = gpu_check.run_part(gpu_check.Part("failed", 1.0, commands, True), tmp_path, time.monotonic() + 3)
    assert report["status"] == "failed" and [each["exit"] for each in report["commands"]] == [3, 143]


def test_a_part_that_fails_is_noted_and_its_next_command_runs(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", code] for code in ("print('seen'); raise SystemExit(3)", "print('after')")]
    report = gpu_check.run_part(gpu_check.Part("part", 1.0, commands), tmp_path, time.monotonic() + 60)
    assert report["status"] == "failed" and [each["exit"] for each in report["commands"]] == [3, 0]
    assert (tmp_path / "part.log").read_text().split() == ["seen", "after"]
