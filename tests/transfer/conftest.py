# SPDX-License-Identifier: Apache-2.0
"""A bundle whose training takes milliseconds and whose scores are known, and studies of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import csv, hashlib, json, math, os, time
from pathlib import Path


def noise(*parts):
    word = int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8], 16)
    return word / 2**32 - 0.5


class Trainer:
    def __init__(self, datalist, ckpt_dir, seed, rate, pretrained, cubes, fail=None, epoch_length=None, seconds=0.0):
        self.__dict__.update(vars(), own=None)

    def run(self):
        time.sleep(self.seconds)
        if self.fail == "raise":
            raise RuntimeError("the loss is not finite")
        if self.fail == "die":
            os._exit(7)
        content = json.loads(Path(self.datalist).read_text())
        patients = sorted({entry["patient"] for entry in content["training"]})
        gain = 0.0 if self.pretrained == "none" else 0.05
        # an optimum at a rate of 0.01
        score = 0.4 + 0.1 * math.log2(len(patients)) + gain - 0.1 * abs(math.log10(self.rate / 0.01))
        Path(self.ckpt_dir).mkdir(parents=True, exist_ok=True)
        state = {"score": score, "seed": self.seed, "patients": patients, "steps": self.epoch_length}
        Path(self.ckpt_dir, "model.pt").write_text(json.dumps(state))


class Evaluator:
    def __init__(self, datalist, dataset_dir, ckpt_dir, output_dir, split):
        self.__dict__.update(vars(), own=None)

    def run(self):
        state = json.loads(Path(self.ckpt_dir, "model.pt").read_text())
        content = json.loads(Path(self.datalist).read_text())
        assert not set(state["patients"]) & {entry["patient"] for entry in content["testing"]}
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)
        with open(Path(self.output_dir, "segmentation.csv"), "w") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "region", "dice"])
            for entry in content[self.split]:
                for number, region in enumerate(("one", "two")):
                    value = state["score"] + 0.1 * noise(entry["image"], state["seed"], region)
                    writer.writerow([os.path.join(self.dataset_dir, entry["image"]), region, value])
"""

TRAIN = {
    "bundle_root": ".",
    "dataset_dir": ".",
    "datalist": None,
    "output_dir": "eval",
    "ckpt_dir": "models",
    "split": "validation",
    "pretrained": "none",
    "seed": 0,
    "device": "cpu",
    "resume": False,
    "learning_rate": 0.1,
    "epochs": 1,
    "val_interval": 1,
    "batch_size": 2,
    "cubes_per_case": 1,
    "seconds": 0.0,
    "fail": None,
    "train": {
        "handlers": [{"_target_": "TensorBoardStatsHandler"}],
        "trainer": {
            "_target_": "scripts.fake.Trainer",
            "datalist": "@datalist",
            "ckpt_dir": "@ckpt_dir",
            "seed": "@seed",
            "rate": "@learning_rate",
            "pretrained": "@pretrained",
            "cubes": "@cubes_per_case",
            "fail": "@fail",
            "seconds": "@seconds",
        },
    },
    "validate": {
        "evaluator": {
            "_target_": "scripts.fake.Evaluator",
            "datalist": "@datalist",
            "dataset_dir": "@dataset_dir",
            "ckpt_dir": "@ckpt_dir",
            "output_dir": "@output_dir",
            "split": "@split",
        }
    },
    "run": ["$@train#trainer.run()"],
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def study_content(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": "fake",
        "bundle": "bundle",
        "datalist": "list.json",
        "dataset_dir": "data",
        "score": "dice",
        "labels": [2, 4, "all"],
        "seeds": [0, 1],
        "steps": 10,
        "rates": {"common": 0.001, "grid": [0.001, 0.01], "labels": [4]},
        "arms": {"scratch": {"pretrained": "none"}, "pretrained": {"pretrained": "weights.pt"}},
        "primary": {"arm": "pretrained", "against": "scratch", "labels": [2]},
    }
    return content | changes


@pytest.fixture
def make_study(tmp_path):
    """Write a study with its bundle and data; give the path of its file."""

    def make(**changes: Any) -> Path:
        write(tmp_path / "bundle" / "configs" / "train.json", TRAIN)
        write(tmp_path / "bundle" / "configs" / "evaluate.json", {"run": ["$@validate#evaluator.run()"]})
        (tmp_path / "bundle" / "scripts").mkdir(exist_ok=True)
        (tmp_path / "bundle" / "scripts" / "__init__.py").write_text("")
        (tmp_path / "bundle" / "scripts" / "fake.py").write_text(SCRIPT)
        entries = [{"image": f"i{n}.nii.gz", "label": f"l{n}.nii.gz", "patient": f"p{n // 2}"} for n in range(32)]
        write(tmp_path / "list.json", {"labels": {"0": "no"}, "training": entries[:20], "testing": entries[20:]})
        (tmp_path / "data").mkdir(exist_ok=True)
        torch.save({"a.weight": torch.arange(24.0).reshape(2, 3, 4)}, tmp_path / "weights.pt")
        return write(tmp_path / "study.json", study_content(**changes))

    return make
