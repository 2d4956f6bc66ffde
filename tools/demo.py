# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end on the built-in phantom, by the commands a user would type, with a report at the end."""

from __future__ import annotations

import argparse
import csv
import datetime
import html
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "genesis_chest_ct_pretraining"


def main() -> int:
    """Run the stages one after the other and write ``report.html``.

    Returns:
        0 if all went well, else the exit status of the stage that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of everything the demo writes")
    parser.add_argument("--patients", type=int, default=6, help="number of phantom patients")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of pretraining")
    parser.add_argument("--features", default="[8,16,32,64]", help="channels of the network")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    stages = list(commands(out, arguments.patients, arguments.epochs, arguments.features))
    times = []
    for title, command in stages:
        print(f"\n=== {title}\n$ {shlex.join(command)}", flush=True)
        begin = time.monotonic()
        status = subprocess.run(command, check=False).returncode
        times.append(time.monotonic() - begin)
        if status != 0:
            print(f"{title} failed with exit status {status}", file=sys.stderr)
            return status
    write_report(out, stages, times)
    print(f"\nreport: {out / 'report.html'}")
    return 0


def commands(out: Path, patients: int, epochs: int, features: str) -> list[tuple[str, list[str]]]:
    """The stages of the demo.

    Args:
        out: folder of everything the demo writes.
        patients: number of phantom patients.
        epochs: epochs of pretraining.
        features: channels of the network, as a list literal.

    Returns:
        Title and command line of each.
    """
    data, run = out / "phantom", [sys.executable, "-m", "monai.bundle", "run"]
    phantom = [sys.executable, "-m", "models_genesis.datasets", "phantom", "--out", str(data)]
    common = ["--bundle_root", str(BUNDLE), "--dataset_dir", str(data), "--datalist", str(data / "dataset.json")]
    common += ["--ckpt_dir", str(out / "models"), "--features", features]
    # Ten times the default rate: this is a small network and a few hundred steps.
    pretrain = ["--epochs", str(epochs), "--learning_rate", "0.01"]
    train, evaluate = str(BUNDLE / "configs/train.json"), str(BUNDLE / "configs/evaluate.json")
    inference = str(BUNDLE / "configs/inference.json")
    return [
        (
            "Write the phantom",
            [*phantom, "--region", "chest", "--patients", str(patients)],
        ),
        (
            "Pretrain",
            [*run, "--config_file", train, *common, "--output_dir", str(out / "pretraining"), *pretrain],
        ),
        (
            "Evaluate the restoration",
            [*run, "--config_file", f"['{train}','{evaluate}']", *common, "--output_dir", str(out / "evaluation")],
        ),
        (
            "Deform and restore whole scans",
            [*run, "--config_file", inference, *common, "--output_dir", str(out / "restored")],
        ),
    ]


def write_report(out: Path, stages: list[tuple[str, list[str]]], times: list[float]) -> None:
    """Write one page with the commands, their times, the errors beside their baselines, and the pictures.

    Args:
        out: folder of the demo.
        stages: title and command line of each stage.
        times: seconds that each took.
    """
    with (out / "evaluation" / "restoration.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    table = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    listing = "".join(
        f"<h3>{html.escape(title)} ({seconds:.0f} s)</h3><pre>{html.escape(shlex.join(command))}</pre>"
        for (title, command), seconds in zip(stages, times, strict=True)
    )
    machine = f"{platform.platform()}, Python {platform.python_version()}, {datetime.datetime.now():%Y-%m-%d %H:%M}"
    page = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Models Genesis demo</title>
<style>body{{font-family:sans-serif;max-width:70em;margin:2em auto}}img{{max-width:100%}}td{{padding:0 1em}}
pre{{white-space:pre-wrap;background:#eee;padding:.6em}}</style></head><body>
<h1>Models Genesis: demo on the built-in phantom</h1><p>{html.escape(machine)}</p>
<h2>Restoration of validation cubes by the best network</h2><img src="evaluation/restoration.png" alt="restoration">
<h2>Mean squared error per scan, and its baselines</h2><table>{table}</table>
<h2>Training</h2><img src="pretraining/history.png" alt="loss over epochs">
<h2>What was run</h2>{listing}</body></html>
"""
    (out / "report.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
