# SPDX-License-Identifier: Apache-2.0
"""What the bundles need of MONAI's and ignite's engines beyond what those have."""

from __future__ import annotations

from ..datasets.candidates.split import subsample_negatives
from .engines.candidate_evaluator import CandidateEvaluator, CandidatesNotScoredError, rows_not_scored
from .engines.candidate_scorer import CandidateScorer, CandidateScores, score_candidates
from .engines.case_evaluator import CaseEvaluator, CasesFailedError
from .engines.flip_inferer import FlipInferer
from .engines.losses import CandidateLoss, RestorationLoss
from .engines.model_settings import (
    ModelSettingsError,
    ModelSettingsGuard,
    check_model_settings,
    features_of_pretrained,
    name_of_task,
    read_model_settings,
    recorded_overrides,
    save_trained_weights,
    settings_of_load,
    trained_task,
)
from .engines.option_types import OptionTypeError, convert_option
from .engines.overrides import UnknownOverrideError, refuse_unknown_overrides
from .engines.precision import AutocastInferer, Precision, choose_precision
from .engines.prepare_batch import DEFORM_ON, BatchDeformation, DeformationBackend
from .engines.pretrained import load_pretrained_weights
from .engines.torchscript import load_torchscript
from .engines.window_inferer import window_inferer
from .handlers.candidate_curves import draw_candidate_curves
from .handlers.candidate_report import CandidateReport, CandidateWriter, prediction_store
from .handlers.checkpoint import TrainingCheckpoint
from .handlers.collapse_guard import CollapseGuard, NonFiniteLossHandler, TrainingCollapsedError
from .handlers.feature_probe import FeatureProbe
from .handlers.graceful_shutdown import GracefulShutdown
from .handlers.gradient_accumulation import GradientAccumulation, optimizer_steps
from .handlers.history import TrainingHistory
from .handlers.layer_rates import LayerRates, layer_groups
from .handlers.overlay_picture import OverlayPicture, draw_overlay
from .handlers.process_group import BufferBroadcast, join_process_group, leave_process_group, synchronise_batch_norm
from .handlers.restoration_picture import RestorationPicture, draw_restoration
from .handlers.restoration_report import RestorationReport
from .handlers.run_lock import FolderInUseError, FolderLock
from .handlers.run_progress import RunProgressBar
from .handlers.run_settings import ChangedSettingsError
from .handlers.schedule_step import EpochSetter, ScheduleStep
from .handlers.segmentation_report import SegmentationReport
from .handlers.training_run import HandlerOrderError, TrainingRunHandler, use_handler
from .handlers.weight_loader import WeightLoader
from .metrics.calibration import Calibration, calibrated, fit_temperature, read_temperature
from .metrics.froc import FALSE_POSITIVE_RATES, Froc, ScanDetections, compute_froc, froc_curve, match_scan_detections
from .metrics.lesions import HIT_RULES, Lesions, match_detections, read_lesions
from .metrics.mean_image_error import MeanImageError
from .metrics.region_masks import RegionDice, region_masks
from .metrics.roc_auc import RankingMetrics, roc_auc_with_ci
from .metrics.segmentation_scores import BootstrapMean, bootstrap_mean, mask_scores

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
    "DeformationBackend",
    "EpochSetter",
    "FeatureProbe",
    "FlipInferer",
    "FolderInUseError",
    "FolderLock",
    "Froc",
    "GracefulShutdown",
    "GradientAccumulation",
    "HandlerOrderError",
    "LayerRates",
    "Lesions",
    "MeanImageError",
    "ModelSettingsError",
    "ModelSettingsGuard",
    "NonFiniteLossHandler",
    "OptionTypeError",
    "OverlayPicture",
    "Precision",
    "RankingMetrics",
    "RegionDice",
    "RestorationLoss",
    "RestorationPicture",
    "RestorationReport",
    "RunProgressBar",
    "ScanDetections",
    "ScheduleStep",
    "SegmentationReport",
    "TrainingCheckpoint",
    "TrainingCollapsedError",
    "TrainingHistory",
    "TrainingRunHandler",
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
    "join_process_group",
    "layer_groups",
    "leave_process_group",
    "load_pretrained_weights",
    "load_torchscript",
    "mask_scores",
    "match_detections",
    "match_scan_detections",
    "name_of_task",
    "optimizer_steps",
    "prediction_store",
    "read_lesions",
    "read_model_settings",
    "read_temperature",
    "recorded_overrides",
    "refuse_unknown_overrides",
    "region_masks",
    "roc_auc_with_ci",
    "rows_not_scored",
    "save_trained_weights",
    "score_candidates",
    "settings_of_load",
    "subsample_negatives",
    "synchronise_batch_norm",
    "trained_task",
    "use_handler",
    "window_inferer",
]
