# SPDX-License-Identifier: Apache-2.0
"""Make the small pretrained weights that go with the pretraining bundle, from nothing but this repository.

``python tools/pretrain_phantom.py`` runs the demo's commands for the phantom, pretraining and its evaluation, prints
the errors next to their baselines, and keeps the weights of the best validation as
``bundles/genesis_chest_ct_pretraining/models/phantom_pretrained.pt``.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import PRETRAINING, Settings, environment, pretraining

from models_genesis.networks import GenesisUNet, load_pretrained

WEIGHTS = PRETRAINING / "models" / "phantom_pretrained.pt"


def main() -> int:
    """Write the phantom, pretrain, evaluate, and keep the weights.

    Returns:
        0; a command that fails ends the run.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Settings(Path())
    parser.add_argument("--patients", type=int, default=defaults.patients, help="number of phantom patients")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="epochs of pretraining")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings = Settings(work, options.patients, epochs=options.epochs)
        phantom, pretrain, evaluate, *_ = pretraining(settings)
        for stage in (phantom, pretrain, evaluate):
            print(f"\n=== {stage.title}\n$ {shlex.join(stage.command)}", flush=True)
            subprocess.run(stage.command, check=True, cwd=work, env=environment())
        weights = work / "models" / "model.pt"
        load_pretrained(GenesisUNet(features=settings.features), weights, strict=True)
        with (work / "restoration" / "demo" / "restoration.csv").open(newline="") as file:
            print("\n".join(", ".join(row) for row in csv.reader(file)))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, options.out)
    print(f"written: {options.out}, {options.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
