# SPDX-License-Identifier: Apache-2.0
"""What the bundles need of MONAI's and ignite's engines beyond what those have."""

from __future__ import annotations

from .case_evaluator import CaseEvaluator, CasesFailedError
from .checkpoint import TrainingCheckpoint
from .collapse_guard import CollapseGuard
from .deformation_place import DEFORM_ON, BatchDeformation, DeformationPlace
from .epoch_setter import EpochSetter
from .finite_loss import FiniteLossGuard, TrainingCollapsedError
from .flip_inferer import FlipInferer
from .history import TrainingHistory
from .layer_rates import LayerRates, layer_groups
from .overlay_picture import OverlayPicture, draw_overlay
from .overrides import UnknownOverrideError, refuse_unknown_overrides
from .precision import AutocastInferer, Precision, choose_precision
from .pretrained import load_pretrained_weights
from .region_masks import RegionDice, region_masks
from .restoration_loss import RestorationLoss
from .restoration_picture import RestorationPicture, draw_restoration
from .restoration_report import RestorationReport
from .schedule_step import ScheduleStep
from .segmentation_report import SegmentationReport
from .segmentation_scores import BootstrapMean, bootstrap_mean, mask_scores
from .stop_signals import StopSignals

__all__ = [
    "DEFORM_ON",
    "AutocastInferer",
    "BatchDeformation",
    "BootstrapMean",
    "CaseEvaluator",
    "CasesFailedError",
    "CollapseGuard",
    "DeformationPlace",
    "EpochSetter",
    "FiniteLossGuard",
    "FlipInferer",
    "LayerRates",
    "OverlayPicture",
    "Precision",
    "RegionDice",
    "RestorationLoss",
    "RestorationPicture",
    "RestorationReport",
    "ScheduleStep",
    "SegmentationReport",
    "StopSignals",
    "TrainingCheckpoint",
    "TrainingCollapsedError",
    "TrainingHistory",
    "UnknownOverrideError",
    "bootstrap_mean",
    "choose_precision",
    "draw_overlay",
    "draw_restoration",
    "layer_groups",
    "load_pretrained_weights",
    "mask_scores",
    "refuse_unknown_overrides",
    "region_masks",
]
