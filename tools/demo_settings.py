# SPDX-License-Identifier: Apache-2.0
"""What the demo does, and how much of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the demo does, on scans that are coarse so that a processor can go through them often.

    Args:
        out: folder of everything the demo writes.
        patients: number of phantom patients; a fifth is kept for validation.
        spacing: voxel sides of the scans, mm.
        features: channels of the network.
        cube_size: of fine-tuning, evaluation and windows, voxels.
        pretraining_cube: of pretraining: small, for the number of steps counts most in the first minutes.
        pretraining_batch: cubes in a step of pretraining.
        batch_size: cubes in a step of fine-tuning.
        epochs: of pretraining.
        cubes_per_scan: in an epoch of pretraining.
        val_cubes_per_scan: restored in each validation.
        liver_epochs: of fine-tuning.
        cubes_per_case: in an epoch of fine-tuning.
        liver_rate: learning rate of fine-tuning.
        study_labels: labelled patients of each training of the study.
        study_seeds: trainings of each of the study's two starts.
        study_steps: of each of these trainings.
    """

    out: Path
    patients: int = 10
    spacing: tuple[float, float, float] = (4, 4, 4)
    features: tuple[int, ...] = (8, 16, 32, 64)
    cube_size: tuple[int, int, int] = (32, 32, 32)
    pretraining_cube: tuple[int, int, int] = (24, 24, 24)
    pretraining_batch: int = 6
    batch_size: int = 4
    epochs: int = 20
    cubes_per_scan: int = 60
    val_cubes_per_scan: int = 24
    liver_epochs: int = 8
    cubes_per_case: int = 24
    liver_rate: float = 0.005
    study_labels: int = 2
    study_seeds: int = 3
    study_steps: int = 80

    def as_text(self) -> dict[str, str]:
        """The settings that decide the result, as text."""
        values = {name: value for name, value in asdict(self).items() if name != "out"}
        return {
            name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
        }

    @property
    def validation_patients(self) -> int:
        """How many patients the phantom keeps for validation."""
        return round(self.patients * 0.2)

    @property
    def training_patients(self) -> int:
        """How many patients both trainings see."""
        return self.patients - self.validation_patients
