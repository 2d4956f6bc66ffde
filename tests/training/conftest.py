# SPDX-License-Identifier: Apache-2.0
"""A real but tiny MONAI training, of one convolution that learns to copy its input, and a small table of candidates."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import EarlyStopHandler, LrScheduleHandler, MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import Activationsd, Compose
from torch import nn
from torch.utils.data import IterableDataset

from models_genesis.datasets import CandidateSet, load_candidates
from models_genesis.training import (
    CandidateEvaluator,
    FeatureProbe,
    MeanImageError,
    RestorationLoss,
    TrainingCheckpoint,
    TrainingHistory,
)


def cubes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        label = torch.rand(1, 8, 8, 4, generator=generator)
        items.append(
            {
                "image": label + 0.1 * torch.randn(label.shape, generator=generator),
                "label": label,
                "scan": index % 2,
            }
        )
    return items


@pytest.fixture
def make_cubes() -> Callable[[int], list[dict[str, Any]]]:
    return cubes


@dataclass
class Run:
    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    network: nn.Module
    optimizer: torch.optim.Optimizer


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(
        epochs: int = 3,
        folder: Path = tmp_path,
        resume: bool = False,
        learning_rate: float = 0.5,
        handlers: Sequence[Any] = (),
        network: nn.Module | None = None,
        data: Sequence[dict] | None = None,
        patience: int = 50,
        probe: FeatureProbe | None = None,
        batch_size: int = 4,
        schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
        baseline: str | None = None,
        **checkpoint: Any,
    ) -> Run:
        torch.manual_seed(0)
        network = nn.Conv3d(1, 1, 3, padding=1) if network is None else network
        optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
        train = DataLoader(Dataset(list(data or cubes(8))), batch_size=batch_size, shuffle=True, num_workers=0)
        scheduler = (
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if schedule is None else schedule(optimizer, epochs)
        )
        early_stop = EarlyStopHandler(patience, lambda engine: -engine.state.metrics["val_mse"])
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cubes(4, seed=1)), batch_size=2, num_workers=0),
            network=network,
            postprocessing=Compose([Activationsd("pred", sigmoid=True)]),
            key_val_metric={"val_mse": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
            additional_metrics={"val_mean_image": MeanImageError()},
            metric_cmp_fn=operator.lt,
            val_handlers=[early_stop],
        )
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            decollate=False,
            train_data_loader=train,
            network=network,
            optimizer=optimizer,
            loss_function=RestorationLoss(),
            train_handlers=[
                *handlers,
                LrScheduleHandler(scheduler, print_lr=False),
                ValidationHandler(1, evaluator),
                TrainingHistory(folder, optimizer, evaluator, probe=probe, baseline=baseline),
                TrainingCheckpoint(
                    folder, network, optimizer, scheduler, evaluator, early_stop, resume=resume, **checkpoint
                ),
            ],
        )
        early_stop.set_trainer(trainer)
        return Run(trainer, evaluator, network, optimizer)

    return make


HEADER = "seriesuid,coordX,coordY,coordZ,class"
ANNOTATIONS = "seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,0,6\nb,0,0,0,6\nb,50,0,0,6\nz,0,0,0,6\n"
EXCLUDED = "seriesuid,coordX,coordY,coordZ,diameter_mm\na,80,0,0,-1\n"
TABLE = ["a,0,0,1,1", "a,0,0,2,1", "a,80,0,0,0", "a,90,0,0,0", "b,0,1,0,1", "b,99,0,0,0"]
LOGITS = np.array([1.0, 2.0, 5.0, 3.0, -1.0, 0.0])


@pytest.fixture
def logits() -> np.ndarray:
    """A score for each of the six candidates of ``make_candidates``."""
    return LOGITS


@pytest.fixture
def make_candidates(tmp_path: Path) -> Callable[..., CandidateSet]:
    """Three scans with six candidates, the last scan without any."""

    def make(
        rows: Sequence[str] = TABLE,
        header: str = HEADER,
        annotations: str | None = ANNOTATIONS,
        more: Sequence[str] = (),
    ) -> CandidateSet:
        for name in "abc":
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
        (tmp_path / "candidates.csv").write_text("\n".join([header, *rows, *more]) + "\n")
        content: dict[str, Any] = {"candidates": "candidates.csv", "training": [], "testing": []}
        content["validation"] = [{"image": f"{name}.nii.gz", "patient": name, "seriesuid": name} for name in "abc"]
        if annotations is not None:
            (tmp_path / "annotations.csv").write_text(annotations)
            (tmp_path / "excluded.csv").write_text(EXCLUDED)
            content |= {"annotations": "annotations.csv", "annotations_excluded": "excluded.csv"}
        (tmp_path / "list.json").write_text(json.dumps(content))
        return load_candidates(tmp_path / "list.json", key="validation")

    return make


class Stream(IterableDataset):
    """Items of the rows of a set, fewer than its length says."""

    def __init__(self, data: CandidateSet, claimed: int) -> None:
        self.data = data
        self.claimed = claimed

    def __len__(self) -> int:
        return self.claimed

    def __iter__(self):
        for row in np.concatenate(self.data.rows).tolist():
            value = torch.tensor([LOGITS[row]], dtype=torch.float32)
            yield {"image": value, "label": np.float32([self.data.table.label[row]]), "row": row}


@pytest.fixture
def make_candidate_evaluator() -> Callable[..., CandidateEvaluator]:
    """An evaluator whose network gives the candidates' logits, and whose stream promises too many."""

    def make(data: CandidateSet, handlers: Sequence[Any] = (), **kwargs: Any) -> CandidateEvaluator:
        loader = DataLoader(Stream(data, 100), batch_size=4, num_workers=0)
        return CandidateEvaluator(torch.device("cpu"), loader, nn.Identity(), val_handlers=[*handlers], **kwargs)

    return make
