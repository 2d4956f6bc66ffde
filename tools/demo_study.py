# SPDX-License-Identifier: Apache-2.0
"""The demo's last question, put as ``models_genesis.transfer`` puts it: does the pretraining help to find livers?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from demo_settings import Settings

from models_genesis.datasets.io.atomic_write import atomic_text

TITLE = "Livers of the phantom: does the pretraining help when few are labelled?"
"""Of the study, by which a later demo knows what it may replace."""


def study_content(bundle: Path, settings: Settings) -> dict[str, Any]:
    """A study of two starts on the phantom's livers, small enough for the demo.

    Args:
        bundle: folder of the segmentation bundle.
        settings: the demo's, whose folder has scans and pretrained weights when the study is run.

    Returns:
        What ``study.json`` holds, files of the demo relative to its folder.
    """
    labels = [settings.study_labels]
    pretrained = {
        "pretrained": "models/model.pt",
        "overrides": {"pretrained_scale": "initial"},
        "description": "the demo's pretrained weights, each convolution brought back to its initial norm",
    }
    return {
        "name": "demo",
        "title": TITLE,
        "bundle": str(bundle),
        "datalist": "phantom/dataset.json",
        "dataset_dir": "phantom",
        "score": "dice",
        "split": {"train": ["training"], "test": ["validation"]},
        "labels": labels,
        "seeds": list(range(settings.study_seeds)),
        "steps": settings.study_steps,
        "warmup_steps": max(1, settings.study_steps // 10),
        "rates": {"common": settings.liver_rate},
        "arms": {"scratch": {"pretrained": "none", "description": "random weights"}, "pretrained": pretrained},
        "primary": {"arm": "pretrained", "against": "scratch", "labels": labels, "rate": "common"},
        "overrides": {"features": list(settings.features), "cube_size": list(settings.cube_size)},
        "train_overrides": {"batch_size": settings.batch_size, "flip_prob": 0, "intensity_prob": 0},
        "evaluate_overrides": {"overlap": 0.25},
    }


def study_file(out: Path) -> Path:
    """Where the study is described, in the demo's folder."""
    return out / "study.json"


def study_results(out: Path) -> Path:
    """Where its results are, in the demo's folder."""
    return out / "study"


def write_study(bundle: Path, settings: Settings) -> None:
    """Write the study's file; results of an earlier demo go, as all that it wrote is written again.

    Args:
        bundle: folder of the segmentation bundle.
        settings: the demo's.

    Raises:
        FileExistsError: when the folder of results or a study is there, and no demo has written it.
    """
    results, study = study_results(settings.out), study_file(settings.out)
    if (results.exists() or study.exists()) and not _of_a_demo(study):
        found = results if results.exists() else study
        raise FileExistsError(
            f"{found}: expected nothing or an earlier demo's results, found other files; give another --out, or remove"
            " it"
        )
    if results.exists():
        shutil.rmtree(results)
    settings.out.mkdir(parents=True, exist_ok=True)
    with atomic_text(study) as file:
        file.write(json.dumps(study_content(bundle, settings), indent=2) + "\n")


def _of_a_demo(study: Path) -> bool:
    """Say whether a demo has written a study's file."""
    try:
        return bool(json.loads(study.read_text(encoding="utf-8"))["title"] == TITLE)
    except (OSError, ValueError, KeyError, TypeError):
        return False
