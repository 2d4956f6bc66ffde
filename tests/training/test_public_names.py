# SPDX-License-Identifier: Apache-2.0
"""Whatever room a module lies in, ``models_genesis.training`` exports what it did before there were rooms."""

from __future__ import annotations

from models_genesis import training

BEFORE = """
    AutocastInferer BatchDeformation BootstrapMean BufferBroadcast Calibration CandidateEvaluator CandidateLoss
    CandidateReport CandidateScorer CandidateScores CandidateWriter CandidatesNotScoredError CaseEvaluator
    CasesFailedError ChangedSettingsError CollapseGuard DEFORM_ON DeformationPlace EpochSetter FALSE_POSITIVE_RATES
    FeatureProbe FiniteLossGuard FlipInferer FolderInUseError FolderLock Froc HIT_RULES LayerRates Lesions
    ModelSettingsError ModelSettingsGuard OptionTypeError OverlayPicture Precision Ranking RegionDice
    RestorationLoss RestorationPicture RestorationReport ScanMarks ScheduleStep SegmentationReport StopSignals
    TrainingCheckpoint TrainingCollapsedError TrainingHistory UnknownOverrideError WeightLoader bootstrap_mean
    calibrated check_model_settings choose_precision compute_froc convert_option draw_candidate_curves draw_overlay
    draw_restoration fit_temperature froc_curve layer_groups leave_process_group load_pretrained_weights
    mark_candidates mark_scan mask_scores name_of_task prediction_store read_lesions read_model_settings
    read_temperature refuse_unknown_overrides region_masks rows_not_scored save_trained_weights score_candidates
    score_ranking settings_of_load thin_candidates trained_task
""".split()

RENAMED = {
    "DeformationPlace": "DeformationBackend",
    "FiniteLossGuard": "NonFiniteLossHandler",
    "Ranking": "RankingMetrics",
    "ScanMarks": "ScanDetections",
    "StopSignals": "GracefulShutdown",
    "mark_candidates": "match_detections",
    "mark_scan": "match_scan_detections",
    "score_ranking": "roc_auc_with_ci",
    "thin_candidates": "subsample_negatives",
}


def test_no_public_name_is_lost():
    expected = {RENAMED.get(name, name) for name in BEFORE}
    assert expected <= set(training.__all__)
    assert not set(RENAMED) & set(training.__all__)


def test_every_public_name_is_there():
    assert [name for name in training.__all__ if not hasattr(training, name)] == []
    assert len(set(training.__all__)) == len(training.__all__)
