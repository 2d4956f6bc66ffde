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
PRETRAINING = ROOT / "bundles" / "genesis_chest_ct_pretraining"
SEGMENTATION = ROOT / "bundles" / "genesis_lits_liver_ct_segmentation"
RUN = [sys.executable, "-m", "monai.bundle", "run"]
PHANTOM = [sys.executable, "-m", "models_genesis.datasets", "phantom"]


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
    stages = pretraining(out, arguments.patients, arguments.epochs, arguments.features)
    stages += fine_tuning(out, arguments.features)
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


def pretraining(out: Path, patients: int, epochs: int, features: str) -> list[tuple[str, list[str]]]:
    """The stages that need no labels.

    Args:
        out: folder of everything the demo writes.
        patients: number of phantom patients.
        epochs: epochs of pretraining.
        features: channels of the network, as a list literal.

    Returns:
        Title and command line of each.
    """
    data, configs = out / "phantom", PRETRAINING / "configs"
    common = ["--bundle_root", str(PRETRAINING), "--dataset_dir", str(data), "--datalist", str(data / "dataset.json")]
    common += ["--ckpt_dir", str(out / "models"), "--features", features]
    # Ten times the default rate: this is a small network and a few hundred steps.
    settings = ["--epochs", str(epochs), "--learning_rate", "0.01"]
    train = ["--config_file", f"{configs}/train.json", *common, "--output_dir", str(out / "pretraining"), *settings]
    evaluate = ["--config_file", f"['{configs}/train.json','{configs}/evaluate.json']", *common]
    restore = ["--config_file", f"{configs}/inference.json", *common, "--output_dir", str(out / "restored")]
    return [
        (
            "Write unlabelled scans: the phantom's chests",
            [*PHANTOM, "--out", str(data), "--region", "chest", "--patients", str(patients)],
        ),
        ("Pretrain", [*RUN, *train]),
        ("Evaluate the restoration", [*RUN, *evaluate, "--output_dir", str(out / "evaluation")]),
        ("Deform and restore whole scans", [*RUN, *restore]),
    ]


def fine_tuning(out: Path, features: str) -> list[tuple[str, list[str]]]:
    """The stages that fine-tune the pretrained network to segment livers, from four labelled scans.

    Args:
        out: folder of everything the demo writes.
        features: channels of the network, as a list literal.

    Returns:
        Title and command line of each.
    """
    data, configs = out / "livers", SEGMENTATION / "configs"
    phantom = ["--region", "abdomen", "--patients", "5", "--labels", "liver", "lesion", "--spacing", "2.5", "2.5", "3"]
    common = ["--bundle_root", str(SEGMENTATION), "--dataset_dir", str(data), "--datalist", str(data / "dataset.json")]
    common += ["--ckpt_dir", str(out / "liver_models"), "--features", features, "--overlap", "0.25"]
    settings = ["--epochs", "12", "--val_interval", "4", "--warmup_epochs", "1", "--learning_rate", "0.005"]
    settings += ["--cubes_per_case", "12", "--pretrained", str(out / "models" / "model.pt")]
    train = ["--config_file", f"{configs}/train.json", *common, "--output_dir", str(out / "liver_training"), *settings]
    evaluate = ["--config_file", f"['{configs}/train.json','{configs}/evaluate.json']", *common]
    predict = ["--config_file", f"{configs}/inference.json", *common, "--split", "validation"]
    return [
        ("Write labelled scans: the phantom's livers", [*PHANTOM, "--out", str(data), *phantom]),
        ("Fine-tune from the pretrained weights", [*RUN, *train]),
        ("Evaluate the segmentation", [*RUN, *evaluate, "--output_dir", str(out / "liver_evaluation")]),
        ("Predict", [*RUN, *predict, "--output_dir", str(out / "liver_predicted")]),
    ]


def write_report(out: Path, stages: list[tuple[str, list[str]]], times: list[float]) -> None:
    """Write one page with the commands, their times, the errors beside their baselines, and the pictures.

    Args:
        out: folder of the demo.
        stages: title and command line of each stage.
        times: seconds that each took.
    """
    listing = "".join(
        f"<h3>{html.escape(title)} ({seconds:.0f} s)</h3><pre>{html.escape(shlex.join(command))}</pre>"
        for (title, command), seconds in zip(stages, times, strict=True)
    )
    pictures = sorted((out / "liver_evaluation").glob("*.png"))
    overlays = "".join(f'<img src="{html.escape(str(path.relative_to(out)))}" alt="overlay">' for path in pictures)
    machine = f"{platform.platform()}, Python {platform.python_version()}, {datetime.datetime.now():%Y-%m-%d %H:%M}"
    page = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Models Genesis demo</title>
<style>body{{font-family:sans-serif;max-width:70em;margin:2em auto}}img{{max-width:100%}}td{{padding:0 1em}}
pre{{white-space:pre-wrap;background:#eee;padding:.6em}}</style></head><body>
<h1>Models Genesis: demo on the built-in phantom</h1><p>{html.escape(machine)}</p>
<h2>Restoration of validation cubes by the best network</h2><img src="evaluation/restoration.png" alt="restoration">
<h2>Mean squared error per scan, and its baselines</h2>{table(out / "evaluation" / "restoration.csv")}
<h2>Pretraining</h2><img src="pretraining/history.png" alt="loss over epochs">
<h2>Livers found by the fine-tuned network in a scan kept for validation</h2>{overlays}
{table(out / "liver_evaluation" / "segmentation.csv")}
<h2>Fine-tuning</h2><img src="liver_training/history.png" alt="loss and Dice over epochs">
<h2>What was run</h2>{listing}</body></html>
"""
    (out / "report.html").write_text(page, encoding="utf-8")


def table(path: Path) -> str:
    """An HTML table of a CSV file.

    Args:
        path: the file.

    Returns:
        the table, with the file's header as its first row.
    """
    with path.open(newline="") as file:
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in csv.reader(file)]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


if __name__ == "__main__":
    sys.exit(main())
