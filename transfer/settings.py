# SPDX-License-Identifier: Apache-2.0
"""What a run sets of its bundle, and the commands that do the same by hand."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Run
from .study import Study, StudyError, bundle_config, top_level
from .subsets import Subset

SILENT_HANDLERS = ("TensorBoardStatsHandler", "ignite.handlers.ProgressBar", "models_genesis.training.RunProgressBar")
"""Handlers that a study switches off: they only show a training, and keep files and threads open."""

SILENT_RUN = {"train#run#progress": False, "train#run#tensorboard": False}
"""The same of a bundle's ``TrainingRunHandler``."""

RUN_HANDLER = "models_genesis.training.TrainingRunHandler"
PICTURES = "models_genesis.training.OverlayPicture"
KEPT_PICTURES = "models_genesis.transfer.KeepSlices"
PERMUTED = "permuted.pt"


@dataclass(frozen=True)
class Places:
    """Folders as they are written into a run's settings.

    Attributes:
        bundle: the bundle.
        data: the data set.
        study: folder of the study's file.
    """

    bundle: str
    data: str
    study: str


SHOWN_PLACES = Places("$BUNDLE", "$DATA", "$STUDY")
"""The folders as variables of the shell, for commands that are the same on every machine."""


class Settings:
    """The overrides of a study's runs.

    Args:
        study: the study.
        device: such as ``"cuda:0"``; None leaves it to the bundle.

    Raises:
        FileNotFoundError: when a config of the bundle is missing.
        StudyError: when the tool cannot make runs of this bundle equal, or the score is not one of its evaluation.
    """

    def __init__(self, study: Study, device: str | None = None) -> None:
        self.study = study
        self.device = device
        self.places = Places(str(study.bundle), str(study.dataset_dir), str(study.path.parent))
        self.train_config = bundle_config(study, study.train)
        self.evaluate_config = bundle_config(study, study.evaluate)
        self.candidates = "samples_per_epoch" in self.train_config
        if not self.candidates and "cubes_per_case" not in self.train_config:
            raise StudyError(
                f"{study.path}: bundle: expected one whose train.json has the key cubes_per_case (segmentation) or "
                f"samples_per_epoch (classification), found neither in {study.bundle}"
            )
        if self.candidates != (study.score == "auc"):
            expected = '"auc"' if self.candidates else "a column of segmentation.csv"
            raise StudyError(f"{study.path}: score: expected {expected} for this bundle, found {study.score!r}")

    def _common(self, run: Run, datalist: str, work: str, places: Places) -> dict[str, Any]:
        device = {} if self.device is None else {"device": f"$torch.device('{self.device}')"}
        return {
            "bundle_root": places.bundle,
            "dataset_dir": places.data,
            "datalist": datalist,
            "ckpt_dir": f"{work}/models",
            "seed": run.seed,
            **device,
            **self.study.overrides,
        }

    def train(self, run: Run, subset: Subset, work: str, datalist: str, places: Places | None = None) -> dict[str, Any]:
        """Give the overrides of a training.

        Each run takes the same number of steps, with its own data as often as that asks for, and one validation after
        the last of them, so that the weights that are kept are the last ones.

        Args:
            run: the run.
            subset: its entries.
            work: folder that it writes to.
            datalist: its data list.
            places: where bundle, data and study are; None for their own folders.

        Returns:
            Values by key.
        """
        study, places = self.study, places or self.places
        per_epoch = study.steps // study.epochs  # steps of the optimizer
        overrides = {
            **self._common(run, datalist, work, places),
            **study.train_overrides,
            **study.arms[run.arm].overrides,
            **study.arms[run.arm].train_overrides,
            "output_dir": f"{work}/training",
            "pretrained": self._pretrained(run, work, places),
            "learning_rate": run.rate,
            "epochs": study.epochs,
            "val_interval": study.epochs,
        }
        batches = per_epoch * int(overrides.get("accumulation_steps", self.train_config.get("accumulation_steps", 1)))
        overrides["train#trainer#epoch_length"] = batches
        samples = batches * int(overrides.get("batch_size", self.train_config["batch_size"]))
        if self.candidates:
            overrides["samples_per_epoch"] = samples
        else:
            overrides["cubes_per_case"] = math.ceil(samples / len(subset.train))
        schedule = self.train_config.get("lr_scheduler")
        for key, value in (("warmup_steps", study.warmup_steps), ("t_total", study.steps)):
            if isinstance(schedule, Mapping) and key in schedule:
                overrides[f"lr_scheduler#{key}"] = value
        return overrides | self._silent_run() | _silence(self.train_config, ("train", "validate"))

    def _silent_run(self) -> dict[str, bool]:
        train = self.train_config.get("train")
        run = train.get("run") if isinstance(train, Mapping) else None
        return SILENT_RUN if isinstance(run, Mapping) and run.get("_target_") == RUN_HANDLER else {}

    def _pretrained(self, run: Run, work: str, places: Places) -> str:
        arm = self.study.arms[run.arm]
        if arm.weights is None:
            return "none"
        return f"{work}/{PERMUTED}" if arm.permute else _beside_study(arm.weights, places.study)

    def evaluate(self, run: Run, work: str, datalist: str, places: Places | None = None) -> dict[str, Any]:
        """Give the overrides of an evaluation; the intervals of a single run are not computed.

        Args:
            run: the run.
            work: folder that it writes to.
            datalist: its data list.
            places: where bundle, data and study are; None for their own folders.

        Returns:
            Values by key.
        """
        arm = self.study.arms[run.arm]
        overrides = {
            **self._common(run, datalist, work, places or self.places),
            **({"num_resamples": 2} if "num_resamples" in self.evaluate_config else {}),
            # the network and the images are those of the training
            **{key: value for key, value in arm.overrides.items() if top_level(key) in self.evaluate_config},
            **self.study.evaluate_overrides,
            **arm.evaluate_overrides,
            "output_dir": f"{work}/evaluation",
            "split": "testing",
        }
        overrides |= _silence(self.evaluate_config, ("validate",))
        keep = run.stage == "main" and run.seed == self.study.seeds[0]
        for number, handler in enumerate(_handlers(self.evaluate_config, "validate")):
            if isinstance(handler, Mapping) and handler.get("_target_") == PICTURES:
                key = f"validate#handlers#{number}"
                overrides |= {f"{key}#_target_": KEPT_PICTURES} if keep else {f"{key}#_disabled_": True}
        return overrides

    def commands(self, run: Run, subset: Subset) -> dict[str, str]:
        """Write a run as the commands that do the same.

        Args:
            run: the run.
            subset: its entries.

        Returns:
            Both commands. ``$OUT`` is the study's folder of results, ``$STUDY`` that of its file, ``$DATA`` that of the
            data and ``$BUNDLE`` the bundle, so that a run's commands are the same on every machine.
        """
        folder, arm = f"$OUT/runs/{run.name}", self.study.arms[run.arm]
        train = self.train(run, subset, folder, f"{folder}/datalist.json", SHOWN_PLACES)
        evaluate = self.evaluate(run, folder, f"{folder}/datalist.json", SHOWN_PLACES)
        before = ""
        if arm.permute and arm.weights is not None:
            weights = _beside_study(arm.weights, SHOWN_PLACES.study)
            permute = f'--weights "{weights}" --seed {run.seed} --out "{folder}/{PERMUTED}"'
            before = f"python -m models_genesis.transfer permute {permute} && "
        return {
            "train_command": before + _command(self.study.train, train),
            "evaluate_command": _command(self.study.evaluate, evaluate),
        }


def _command(files: Sequence[str], overrides: Mapping[str, Any]) -> str:
    paths = [f"$BUNDLE/{name}" for name in files]
    config = paths[0] if len(paths) == 1 else "[" + ",".join(f"'{path}'" for path in paths) + "]"
    words = ["python -m monai.bundle run", "--config_file", f'"{config}"']
    for key, value in overrides.items():
        words += [f"--{key}", _word(value)]
    return " ".join(words)


def _word(value: Any) -> str:
    """Write a value as the shell and fire read it, our own variables left for the shell to fill in."""
    text = "$None" if value is None else str(value)
    return f'"{text}"' if text.startswith(("$OUT", "$DATA", "$BUNDLE", "$STUDY")) else shlex.quote(text)


def _handlers(config: Mapping[str, Any], part: str) -> list[Any]:
    content = config.get(part)
    handlers = content.get("handlers") if isinstance(content, Mapping) else None
    return handlers if isinstance(handlers, list) else []


def _silence(config: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    return {
        f"{part}#handlers#{number}#_disabled_": True
        for part in parts
        for number, handler in enumerate(_handlers(config, part))
        if isinstance(handler, Mapping) and handler.get("_target_") in SILENT_HANDLERS
    }


def _beside_study(weights: str, study: str) -> str:
    """A weight file as a study names it: relative to the folder of the study's file, or from the root."""
    return weights if os.path.isabs(weights) else f"{study}/{weights}"


def weight_path(study: Study, arm: str) -> Path | None:
    """Path of an arm's weights, None from scratch."""
    weights = study.arms[arm].weights
    return None if weights is None else study.path.parent / weights
