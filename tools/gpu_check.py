# SPDX-License-Identifier: Apache-2.0
"""All that is to be verified and measured on a GPU, in order of worth, in the minutes that there are.

    python tools/gpu_check.py --minutes 8 --out gpu_check [--parts tests benchmarks ...] [--data SCANS] [--quick]

Each part is a process of its own with a share of the time that is left; one that fails or runs out of time is noted and
the next one starts. ``check.json`` says after each part what was run, for how long and how it ended; its output is in
``<part>.log``, its results next to it. A training that runs out of time shuts down cleanly (SIGTERM) and can be
resumed. ``--quick`` runs the same parts with small sizes, on a processor too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRETRAINING = ROOT / "bundles" / "genesis_chest_ct_pretraining"
STOPPED = 128 + signal.SIGTERM
"""Exit code of a training that was told to stop and has saved its state."""

SECONDS_TO_STOP = 20.0
"""What a part that ran out of time has to shut down cleanly."""


@dataclass
class Part:
    """Commands that belong together.

    Args:
        name: of the part.
        share: of the time, against the shares of the parts that are left.
        commands: run one after another.
        may_be_stopped: whether running out of time is a success, as of a training that writes checkpoints.
    """

    name: str
    share: float
    commands: list[list[str]]
    may_be_stopped: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def parts(out: Path, data: Path | None, quick: bool) -> list[Part]:
    """What is run, in order of worth."""
    small = ["--quick"] if quick else []
    python = [sys.executable, "-m"]
    scans = ["--data", str(data)] if data else []
    tests = [*python, "pytest", "-q", "-x", "tests/transforms/test_batch_deform.py", "-k", "seed_decides"]
    if not quick:
        tests = [*python, "pytest", "-q", "-n", "12", "-k", "cuda or gpu or device or resuming or learns",
                 "tests/transforms/test_batch_deform.py", "tests/benchmarks", "tests/bundles/test_on_gpu.py",
                 "tests/training/engines/test_precision.py", "tests/training/handlers/test_collapse_guard.py",
                 "tests/training/handlers/test_deferred_values.py"]  # fmt: skip
    compiled = [] if quick else ["--compile"]
    benchmarks = [[*python, "benchmarks.gpu", *small, *scans, *compiled, "--out", str(out / "benchmarks.json")]]
    scan = [*python, "benchmarks.whole_scan", *small]
    inference = [[*scan, "--overlap", overlap, "--out", str(out / f"whole_scan_{overlap}.json")]
                 for overlap in ("0.25", "0.5")]  # fmt: skip
    inference.append([*scan, "--overlap", "0.25", "--torchscript", "--out", str(out / "whole_scan_torchscript.json")])
    return [
        Part("tests", 0.25, [tests]),
        Part("benchmarks", 0.5, benchmarks),
        Part("inference", 0.25, inference),
        Part("pretraining", 1.0, pretraining(out, data, quick), may_be_stopped=True),
    ]


def pretraining(out: Path, data: Path | None, quick: bool) -> list[list[str]]:
    """The pretraining bundle, on scans or on phantoms."""
    commands = []
    if data is None:
        data = out / "phantoms" / "dataset.json"
        shape = ["--shape", "72", "64", "64"] if quick else []
        phantoms = [
            "models_genesis.datasets",
            "phantom",
            "--out",
            str(data.parent),
            "--patients",
            "4",
            "--region",
            "chest",
            *shape,
        ]
        commands.append([sys.executable, "-m", *phantoms])
    given: dict[str, Any] = {"bundle_root": PRETRAINING, "output_dir": out / "eval", "ckpt_dir": out / "models"}
    given |= {"datalist": data, "dataset_dir": data.parent, "deform_on": "step", "resume": "auto"}
    if quick:
        given |= {"features": [4, 8, 16], "cube_size": [32, 32, 16], "epochs": 1, "cubes_per_scan": 4, "batch_size": 2}
        given |= {"val_cubes_per_scan": 2}
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(PRETRAINING / "configs" / "train.json")]
    return [*commands, line + [text for name, value in given.items() for text in (f"--{name}", str(value))]]


def run_part(part: Part, out: Path, end: float) -> dict[str, Any]:
    """Run the commands of a part until its end.

    Args:
        part: the part.
        out: where its log goes.
        end: time (``time.monotonic``) at which it is stopped.

    Returns:
        How it went: ``status`` is ``"ok"``, ``"stopped"`` where the part can go on later, ``"failed"`` or ``"out of
        time"``.
    """
    report: dict[str, Any] = {"part": part.name, "status": "ok", "commands": []}
    with (out / f"{part.name}.log").open("w") as log:
        for command in part.commands:
            left, start = end - time.monotonic(), time.monotonic()
            if left < 1:
                report["status"] = "out of time"
                break
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **part.environment},
            )  # fmt: skip
            stopped = wait_or_stop(process, left)
            seconds = time.monotonic() - start
            report["commands"].append({"command": command, "seconds": seconds, "exit": process.returncode})
            if stopped:
                cleanly = part.may_be_stopped and process.returncode in (0, STOPPED)
                if report["status"] == "ok":
                    report["status"] = "stopped" if cleanly else "out of time"
                break
            if process.returncode != 0:
                report["status"] = "failed"
    return report


def wait_or_stop(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, at most so long; then ask it to stop, and end it if it does not. Whether it was stopped."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def main() -> int:
    """Run the parts; the exit status is 0 if all went well."""
    parser = argparse.ArgumentParser(description="Verify and measure on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--parts", nargs="+", help="names of the parts to run (all)")
    parser.add_argument("--data", type=Path, help="data list of scans to pretrain on (phantoms)")
    parser.add_argument("--quick", action="store_true", help="small sizes, on a processor too")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = parts(out, arguments.data and arguments.data.resolve(), arguments.quick)
    unknown = set(arguments.parts or ()) - {part.name for part in chosen}
    if unknown:
        parser.error(f"--parts: expected of {[part.name for part in chosen]}, found {sorted(unknown)}")
    chosen = [part for part in chosen if not arguments.parts or part.name in arguments.parts]
    end, reports = time.monotonic() + 60 * arguments.minutes, []
    for index, part in enumerate(chosen):
        now = time.monotonic()
        share = part.share / sum(later.share for later in chosen[index:])
        print(f"{part.name}: up to {share * (end - now):.0f} s", flush=True)
        reports.append(run_part(part, out, now + share * (end - now)))
        print(f"{part.name}: {reports[-1]['status']} after {time.monotonic() - now:.0f} s", flush=True)
        (out / "check.json").write_text(json.dumps({"minutes": arguments.minutes, "parts": reports}, indent=1) + "\n")
    return 0 if all(report["status"] in ("ok", "stopped") for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
