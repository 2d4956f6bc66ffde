# SPDX-License-Identifier: Apache-2.0
"""What the bundles need of MONAI's and ignite's engines beyond what those have."""

from __future__ import annotations

from .candidate_evaluator import CandidateEvaluator, CandidatesNotScoredError, rows_not_scored
from .candidate_figure import draw_candidate_curves
from .candidate_loss import CandidateLoss
from .candidate_report import CandidateReport, CandidateWriter, prediction_store
from .case_evaluator import CaseEvaluator, CasesFailedError
from .checkpoint import TrainingCheckpoint
from .collapse_guard import CollapseGuard
from .deformation_place import DEFORM_ON, BatchDeformation, DeformationPlace
from .epoch_setter import EpochSetter
from .feature_probe import FeatureProbe
from .finite_loss import FiniteLossGuard, TrainingCollapsedError
from .flip_inferer import FlipInferer
from .froc import FALSE_POSITIVE_RATES, Froc, ScanMarks, compute_froc, froc_curve, mark_scan
from .history import TrainingHistory
from .layer_rates import LayerRates, layer_groups
from .lesions import HIT_RULES, Lesions, mark_candidates, read_lesions
from .model_settings import (
    ModelSettingsError,
    ModelSettingsGuard,
    check_model_settings,
    features_of_pretrained,
    name_of_task,
    read_model_settings,
    save_trained_weights,
    settings_of_load,
    trained_task,
)
from .option_types import OptionTypeError, convert_option
from .overlay_picture import OverlayPicture, draw_overlay
from .overrides import UnknownOverrideError, refuse_unknown_overrides
from .precision import AutocastInferer, Precision, choose_precision
from .pretrained import load_pretrained_weights
from .process_group import BufferBroadcast, leave_process_group
from .ranking_scores import Ranking, score_ranking
from .region_masks import RegionDice, region_masks
from .restoration_loss import RestorationLoss
from .restoration_picture import RestorationPicture, draw_restoration
from .restoration_report import RestorationReport
from .run_lock import FolderInUseError, FolderLock
from .run_settings import ChangedSettingsError
from .schedule_step import ScheduleStep
from .score_candidates import CandidateScorer, CandidateScores, score_candidates
from .segmentation_report import SegmentationReport
from .segmentation_scores import BootstrapMean, bootstrap_mean, mask_scores
from .stop_signals import StopSignals
from .temperature import Calibration, calibrated, fit_temperature, read_temperature
from .thin_candidates import thin_candidates
from .weight_loader import WeightLoader

__all__ = [
    "DEFORM_ON",
    "FALSE_POSITIVE_RATES",
    "HIT_RULES",
    "AutocastInferer",
    "BatchDeformation",
    "BootstrapMean",
    "BufferBroadcast",
    "Calibration",
    "CandidateEvaluator",
    "CandidateLoss",
    "CandidateReport",
    "CandidateScorer",
    "CandidateScores",
    "CandidateWriter",
    "CandidatesNotScoredError",
    "CaseEvaluator",
    "CasesFailedError",
    "ChangedSettingsError",
    "CollapseGuard",
    "DeformationPlace",
    "EpochSetter",
    "FeatureProbe",
    "FiniteLossGuard",
    "FlipInferer",
    "FolderInUseError",
    "FolderLock",
    "Froc",
    "LayerRates",
    "Lesions",
    "ModelSettingsError",
    "ModelSettingsGuard",
    "OptionTypeError",
    "OverlayPicture",
    "Precision",
    "Ranking",
    "RegionDice",
    "RestorationLoss",
    "RestorationPicture",
    "RestorationReport",
    "ScanMarks",
    "ScheduleStep",
    "SegmentationReport",
    "StopSignals",
    "TrainingCheckpoint",
    "TrainingCollapsedError",
    "TrainingHistory",
    "UnknownOverrideError",
    "WeightLoader",
    "bootstrap_mean",
    "calibrated",
    "check_model_settings",
    "choose_precision",
    "compute_froc",
    "convert_option",
    "draw_candidate_curves",
    "draw_overlay",
    "draw_restoration",
    "features_of_pretrained",
    "fit_temperature",
    "froc_curve",
    "layer_groups",
    "leave_process_group",
    "load_pretrained_weights",
    "mark_candidates",
    "mark_scan",
    "mask_scores",
    "name_of_task",
    "prediction_store",
    "read_lesions",
    "read_model_settings",
    "read_temperature",
    "refuse_unknown_overrides",
    "region_masks",
    "rows_not_scored",
    "save_trained_weights",
    "score_candidates",
    "score_ranking",
    "settings_of_load",
    "thin_candidates",
    "trained_task",
]
