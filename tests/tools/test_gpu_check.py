# SPDX-License-Identifier: Apache-2.0
"""The script of the GPU runs does on a processor, with small sizes, all that it does on a GPU."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402 - a script, not part of the package


def test_all_parts_run_and_leave_their_results(tmp_path: Path) -> None:
    line = [sys.executable, "tools/gpu_check.py", "--quick", "--minutes", "9", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=580)
    logs = {path.stem: path.read_text()[-1500:] for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (done.stdout, logs)
    report = json.loads((tmp_path / "check.json").read_text())
    assert [part["status"] for part in report["parts"]] == ["ok"] * len(report["parts"])
    benchmarks = json.loads((tmp_path / "benchmarks.json").read_text())
    assert not benchmarks["failed"]
    assert all(benchmarks[part] for part in ("floors", "forms", "profile", "sizes", "deform", "training"))
    for overlap in ("0.25", "0.5"):
        assert json.loads((tmp_path / f"whole_scan_{overlap}.json").read_text())["windows"] > 0
    with (tmp_path / "eval" / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


@pytest.mark.parametrize(("may_be_stopped", "status"), [(False, "out of time"), (True, "stopped")])
def test_a_part_that_takes_too_long_is_ended_and_noted(may_be_stopped: bool, status: str, tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    part = gpu_check.Part("slow", 1.0, [sleep, sleep], may_be_stopped)
    start = time.monotonic()
    report = gpu_check.run_part(part, tmp_path, start + 2)
    assert report["status"] == status and len(report["commands"]) == 1
    assert time.monotonic() - start < 30


def test_a_part_that_fails_is_noted_and_its_next_command_runs(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", code] for code in ("print('seen'); raise SystemExit(3)", "print('after')")]
    report = gpu_check.run_part(gpu_check.Part("part", 1.0, commands), tmp_path, time.monotonic() + 60)
    assert report["status"] == "failed" and [each["exit"] for each in report["commands"]] == [3, 0]
    assert (tmp_path / "part.log").read_text().split() == ["seen", "after"]
