# SPDX-License-Identifier: Apache-2.0
"""What the bundles need of MONAI's and ignite's engines beyond what those have."""

from __future__ import annotations

from .checkpoint import TrainingCheckpoint
from .collapse_guard import CollapseGuard, TrainingCollapsedError
from .epoch_setter import EpochSetter
from .history import TrainingHistory
from .overrides import UnknownOverrideError, refuse_unknown_overrides
from .precision import AutocastInferer, Precision, choose_precision
from .restoration_loss import RestorationLoss
from .restoration_picture import RestorationPicture, draw_restoration
from .restoration_report import RestorationReport
from .stop_signals import StopSignals

__all__ = [
    "AutocastInferer",
    "CollapseGuard",
    "EpochSetter",
    "Precision",
    "RestorationLoss",
    "RestorationPicture",
    "RestorationReport",
    "StopSignals",
    "TrainingCheckpoint",
    "TrainingCollapsedError",
    "TrainingHistory",
    "UnknownOverrideError",
    "choose_precision",
    "draw_restoration",
    "refuse_unknown_overrides",
]
