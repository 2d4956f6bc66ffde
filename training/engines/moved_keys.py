# SPDX-License-Identifier: Apache-2.0
"""Keys that stood at the top of the bundles' configs, and the nested ids at which they are set now."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["MOVED_KEYS", "WRITTEN_IN_CONFIG", "MovedKey", "now_at"]

WRITTEN_IN_CONFIG = object()
"""Stands for the default of a key whose value the configs themselves have."""


class MovedKey(NamedTuple):
    """Where a former top-level key is set now.

    Args:
        id: its nested id.
        owner: last part of the name of the component there, or several. A bundle with another component never had the
            key.
        default: the component's own default, with which the configs do not have the key.
    """

    id: str
    owner: str | tuple[str, ...]
    default: Any = WRITTEN_IN_CONFIG


def _run(key: str, default: Any = WRITTEN_IN_CONFIG) -> MovedKey:
    return MovedKey(f"train#run#{key}", "TrainingRunHandler", default)


def _deformation(key: str) -> MovedKey:
    return MovedKey(f"deformation#{key}", ("DeformationBackend", "RandGenesisDeformTilesd"))


MOVED_KEYS: dict[str, MovedKey] = {
    "cudnn_benchmark": _run("cudnn_benchmark", False),
    "early_stop_patience": _run("early_stop_patience"),
    "freeze_epochs": _run("freeze_epochs", 0),
    "freeze_factor": _run("freeze_factor", 0.0),
    "keep_last": _run("keep_last", 2),
    "lr_step_per_epoch": _run("lr_step_per_epoch", False),
    "resume_changed": _run("resume_changed", False),
    "save_every_minutes": _run("save_every_minutes", 30),
    "probe_interval": MovedKey("train#run#probe#interval", "FeatureProbe", 5),
    "slow_parts": MovedKey("optimizer#params#slow_parts", "layer_groups", []),
    "cache_gib": MovedKey("train#dataset#cache_gib", "Dataset", None),
    "on_bad_case": MovedKey("train#dataset#on_bad_scan", "CubeDataset", "raise"),
    "hard_negatives": MovedKey("train#dataset#hard_negatives", "CandidateDataset", 0.0),
    "label_smoothing": MovedKey("loss#label_smoothing", "CandidateLoss", 0.0),
    "focal_gamma": MovedKey("loss#focal_gamma", "CandidateLoss", 0.0),
    "dropout": MovedKey("network_def#dropout", "GenesisClassifier", 0.0),
    "rotate90_prob": MovedKey("train#augmentation#rotate90#prob", "RandRotate90d"),
    "affine_prob": MovedKey("train#augmentation#affine#prob", "RandAffined"),
    "rotation": MovedKey("train#augmentation#affine#rotate_range", "RandAffined"),
    "scaling": MovedKey("train#augmentation#affine#scale_range", "RandAffined"),
    **{
        key: _deformation(key) for key in ("mask_patch", "mask_ratio", "mask_value", "num_blocks", "max_block_fraction")
    },
}
"""By the former name."""


def now_at(key: str) -> str:
    """Say where a key that stood at the top of the configs is set now; an empty text for any other.

    Example:
        >>> now_at("keep_last"), now_at("epochs")
        ('; it is train#run#keep_last now', '')
    """
    return f"; it is {MOVED_KEYS[key].id} now" if key in MOVED_KEYS else ""
