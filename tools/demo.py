# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end on the built-in phantom, by the commands a user would type, with a report at the end."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_report import Run, StageRecord, write_report
from demo_settings import Settings
from demo_study import study_file, study_results, write_study

ROOT = Path(__file__).resolve().parents[1]
PRETRAINING = ROOT / "bundles" / "genesis_chest_ct_pretraining"
SEGMENTATION = ROOT / "bundles" / "genesis_lits_liver_ct_segmentation"
RUN = [sys.executable, "-m", "monai.bundle", "run"]
PHANTOM = [sys.executable, "-m", "models_genesis.datasets", "phantom"]
TRANSFER = [sys.executable, "-m", "models_genesis.transfer"]

# Training frees and asks for the same tens of MB again and again. glibc's defaults give them back to the system each
# time, and 7,700 pages a cube are mapped and cleared again; torch's large pages and a heap that keeps them save a
# fifth of a step's processor time (docs/performance.md). Elsewhere than on Linux nothing reads these.
ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


@dataclass
class Stage:
    """One command of the demo.

    Args:
        title: what it does.
        command: what a user would type.
        work: seconds without the start of its process, from the machine's timing.
        seconds: what it took, once it ran.
    """

    title: str
    command: list[str]
    work: Callable[[Mapping[str, Any]], float] = field(default=lambda timing: 0.0)
    seconds: float = math.nan

    def estimate(self, timing: Mapping[str, Any]) -> float:
        """Seconds that it will take."""
        return timing["start"] + self.work(timing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages one after the other and write ``report.html``.

    Args:
        arguments: the command line; None takes this process's.

    Returns:
        0 if all went well, else the exit status of the stage that failed.
    """
    defaults = Settings(Path())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of everything the demo writes")
    parser.add_argument("--patients", type=int, default=defaults.patients, help="phantom patients, 5 or more")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="epochs of pretraining")
    parser.add_argument("--liver-epochs", type=int, default=defaults.liver_epochs, help="epochs of fine-tuning")
    parsed = parser.parse_args(arguments)
    if parsed.patients < 5:
        parser.error(f"--patients: expected 5 or more, of which a fifth validates, found {parsed.patients}")
    settings = Settings(parsed.out.resolve(), parsed.patients, epochs=parsed.epochs, liver_epochs=parsed.liver_epochs)
    write_study(SEGMENTATION, settings)
    print("Timing a few steps on this machine ...", flush=True)
    timing = measure_machine(settings)
    stages = pretraining(settings) + fine_tuning(settings) + comparing(settings)
    total = sum(stage.estimate(timing) for stage in stages)
    print(
        f"On this {timing['device']} the demo will take about {readable(total)}, in {len(stages)} stages.", flush=True
    )
    if (status := run_stages(stages, timing)) != 0:
        return status
    records = [StageRecord(stage.title, stage.command, stage.estimate(timing), stage.seconds) for stage in stages]
    run = Run(ROOT, records, timing["device"], settings.cube_size[1], settings.as_text())
    report = write_report(settings.out, run)
    print(f"\nreport: {report}")
    return 0


def measure_machine(settings: Settings) -> dict[str, Any]:
    """Time the parts of the stages on this machine, in a process like theirs.

    Args:
        settings: what will be run.

    Returns:
        What ``demo_timing.measure`` gives, and ``start``, the seconds that a process needs before it works.
    """
    request = {
        "features": settings.features,
        "cube_size": settings.cube_size,
        "trainings": {
            "pretraining": [settings.pretraining_batch, settings.pretraining_cube],
            "fine_tuning": [settings.batch_size, settings.cube_size],
        },
    }
    command = [sys.executable, str(ROOT / "tools" / "demo_timing.py"), json.dumps(request)]
    begin = time.monotonic()
    printed = subprocess.run(command, check=True, env=environment(), stdout=subprocess.PIPE, text=True).stdout
    timing = json.loads(printed.splitlines()[-1])
    return timing | {"start": time.monotonic() - begin - timing.pop("measuring")}


def environment() -> dict[str, str]:
    """The environment of the stages: this process's, which wins, and the allocator's settings."""
    return ALLOCATOR | dict(os.environ)


def run_stages(stages: Sequence[Stage], timing: Mapping[str, Any]) -> int:
    """Run stages one after the other, each announced with the time that it will take.

    Args:
        stages: the stages; their ``seconds`` are filled in.
        timing: see :func:`measure_machine`.

    Returns:
        0, or the exit status of the first that failed; the rest is not run then.
    """
    for stage in stages:
        announced = readable(stage.estimate(timing))
        print(f"\n=== {stage.title} (about {announced})\n$ {shlex.join(stage.command)}", flush=True)
        begin = time.monotonic()
        status = subprocess.run(stage.command, check=False, env=environment()).returncode
        stage.seconds = time.monotonic() - begin
        if status != 0:
            print(f"{stage.title} failed with exit status {status}", file=sys.stderr)
            return status
        print(f"    took {readable(stage.seconds)}", flush=True)
    return 0


def readable(seconds: float) -> str:
    """Round a time to what people say.

    Example:
        >>> readable(8.2), readable(47), readable(200)
        ('10 s', '45 s', '3.3 min')
    """
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{max(5, 5 * round(seconds / 5)):.0f} s"


def validation_interval(epochs: int, most: int) -> int:
    """Epochs between validations, such that the last epoch is validated.

    Args:
        epochs: of the training.
        most: the interval is at most this.

    Returns:
        The largest divisor of ``epochs`` up to ``most``.

    Example:
        >>> validation_interval(18, 4), validation_interval(7, 4)
        (3, 1)
    """
    return next(interval for interval in range(most, 0, -1) if epochs % interval == 0)


def literal(values: Sequence[float]) -> str:
    """Write a list as a bundle's command line takes it, ``[8,16]``."""
    return f"[{','.join(map(str, values))}]"


def common_keys(settings: Settings, bundle: Path, cube_size: Sequence[int] | None = None) -> list[str]:
    """The keys that all stages of a bundle share."""
    data = settings.out / "phantom"
    keys = ["--bundle_root", str(bundle), "--dataset_dir", str(data), "--datalist", str(data / "dataset.json")]
    return [*keys, "--features", literal(settings.features), "--cube_size", literal(cube_size or settings.cube_size)]


def pretraining(settings: Settings) -> list[Stage]:
    """The stages that need no labels.

    Args:
        settings: what to run.

    Returns:
        The stages.
    """
    out = settings.out
    voxels = settings.patients * 345 * 295 * 420 / math.prod(settings.spacing)  # mm of a typical patient
    phantom = ["--out", str(out / "phantom"), "--region", "chest_abdomen", "--patients", str(settings.patients)]
    phantom += ["--spacing", *map(str, settings.spacing), "--validation-fraction", "0.2", "--labels", "liver", "lesion"]
    common = common_keys(settings, PRETRAINING, settings.pretraining_cube)
    # The paper's rule for where cubes may start is made for lungs; these cubes are nearly as large as a lung. The rate
    # is ten times the default: this is a small network and some thousand steps.
    keys = ["--tissue_threshold", "$None", "--val_cubes_per_scan", str(settings.val_cubes_per_scan)]
    keys += ["--epochs", str(settings.epochs), "--cubes_per_scan", str(settings.cubes_per_scan)]
    keys += ["--batch_size", str(settings.pretraining_batch), "--learning_rate", "0.01", "--warmup_epochs", "1"]
    interval = validation_interval(settings.epochs, 3)
    keys += ["--val_interval", str(interval)]
    train = ["--config_file", f"{PRETRAINING}/configs/train.json", *common, "--ckpt_dir", str(out / "models")]
    steps = settings.epochs * math.ceil(
        settings.training_patients * settings.cubes_per_scan / settings.pretraining_batch
    )
    restored = settings.epochs // interval * settings.validation_patients * settings.val_cubes_per_scan
    stages = [
        Stage("Write scans: the built-in phantom", [*PHANTOM, *phantom], lambda t: voxels * t["phantom_voxel"]),
        Stage(
            "Pretrain on the scans, without labels",
            [*RUN, *train, "--output_dir", str(out / "pretraining"), *keys],
            lambda t: steps * t["pretraining_step"] + restored * t["window"],
        ),
    ]
    return stages + restoring(settings)


def restoring(settings: Settings) -> list[Stage]:
    """The stages in which the pretrained network restores cubes, for the errors, and whole scans, for the pictures.

    Args:
        settings: what to run.

    Returns:
        The stages.
    """
    out, configs = settings.out, PRETRAINING / "configs"
    common = common_keys(settings, PRETRAINING)
    # larger cubes than those of the pretraining
    common += ["--ckpt_dir", str(out / "models"), "--allow_changed_settings", "True"]
    evaluate = ["--config_file", f"['{configs}/train.json','{configs}/evaluate.json']", *common]
    evaluate += ["--output_dir", str(out / "restoration"), "--tissue_threshold", "$None"]
    evaluate += ["--val_cubes_per_scan", str(settings.val_cubes_per_scan)]
    restore = ["--config_file", f"{configs}/inference.json", *common, "--output_dir", str(out / "restored")]
    cubes = settings.validation_patients * settings.val_cubes_per_scan
    windows = settings.validation_patients * 3 * 3 * 4
    return [
        Stage("Measure how well the network restores cubes", [*RUN, *evaluate], lambda t: cubes * t["window"]),
        Stage("Deform whole scans, restore them by the network", [*RUN, *restore], lambda t: windows * t["window"]),
    ]


def fine_tuning(settings: Settings) -> list[Stage]:
    """The stages that fine-tune the pretrained network to segment livers.

    Args:
        settings: what to run.

    Returns:
        The stages.
    """
    out, configs = settings.out, SEGMENTATION / "configs"
    common = common_keys(settings, SEGMENTATION)
    common += ["--ckpt_dir", str(out / "liver_models"), "--overlap", "0.25"]
    # These scans have one scanner's intensities, and the liver is on one side: there is no time to learn it mirrored.
    keys = [
        "--flip_prob",
        "0",
        "--intensity_prob",
        "0",
        "--warmup_epochs",
        "1",
        "--learning_rate",
        str(settings.liver_rate),
    ]
    interval = validation_interval(settings.liver_epochs, 4)
    keys += [
        "--epochs",
        str(settings.liver_epochs),
        "--val_interval",
        str(interval),
        "--batch_size",
        str(settings.batch_size),
    ]
    keys += ["--cubes_per_case", str(settings.cubes_per_case), "--pretrained", str(out / "models" / "model.pt")]
    train = ["--config_file", f"{configs}/train.json", *common, "--output_dir", str(out / "liver_training"), *keys]
    evaluate = ["--config_file", f"['{configs}/train.json','{configs}/evaluate.json']", *common]
    predict = ["--config_file", f"{configs}/inference.json", *common, "--split", "validation"]
    steps = settings.liver_epochs * math.ceil(
        settings.training_patients * settings.cubes_per_case / settings.batch_size
    )
    windows = settings.validation_patients * 4 * 4 * 5
    validations = settings.liver_epochs // interval
    return [
        Stage(
            "Fine-tune the pretrained network to find livers",
            [*RUN, *train],
            lambda t: steps * t["fine_tuning_step"] + validations * windows * t["window"],
        ),
        Stage(
            "Measure the livers it finds",
            [*RUN, *evaluate, "--output_dir", str(out / "liver_evaluation")],
            lambda t: windows * t["window"],
        ),
        Stage(
            "Predict: write label maps",
            [*RUN, *predict, "--output_dir", str(out / "liver_predicted")],
            lambda t: windows * t["window"],
        ),
    ]


def comparing(settings: Settings) -> list[Stage]:
    """The stages that ask whether the pretraining helped: the same short training from both starts, several times.

    Args:
        settings: what to run.

    Returns:
        The stages.
    """
    results = str(study_results(settings.out))
    run = ["run", str(study_file(settings.out)), "--out", results, "--threads", str(os.cpu_count())]
    trainings = 2 * settings.study_seeds
    # each training is validated once, on one case, and then evaluated
    windows = (1 + settings.validation_patients) * 4 * 4 * 5
    return [
        Stage(
            "Ask whether it helps: short trainings from random and from pretrained weights",
            [*TRANSFER, *run],
            lambda t: trainings * (settings.study_steps * t["fine_tuning_step"] + windows * t["window"]),
        ),
        Stage("Report what that found", [*TRANSFER, "report", results]),
    ]


if __name__ == "__main__":
    sys.exit(main())
