# SPDX-License-Identifier: Apache-2.0
"""A real but tiny MONAI training: one convolution that learns to copy its input through a sigmoid."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import EarlyStopHandler, LrScheduleHandler, MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import Activationsd, Compose
from torch import nn

from models_genesis.training import FeatureProbe, RestorationLoss, TrainingCheckpoint, TrainingHistory


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
                TrainingHistory(folder, optimizer, evaluator, probe=probe),
                TrainingCheckpoint(
                    folder, network, optimizer, scheduler, evaluator, early_stop, resume=resume, **checkpoint
                ),
            ],
        )
        early_stop.set_trainer(trainer)
        return Run(trainer, evaluator, network, optimizer)

    return make
