# SPDX-License-Identifier: Apache-2.0
"""What kind of value each key of the bundles takes, and how a text from a command line becomes one.

``python -m monai.bundle run`` hands on what it cannot read as Python as a text, and a text is true: ``--tumour false``
would train three classes.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["OPTION_KINDS", "Kind", "OptionTypeError", "convert_option", "is_expression", "kind_like"]

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}


class OptionTypeError(ValueError):
    """A value of the wrong type for its key; the message names the key, what was expected and what was found."""


@dataclass(frozen=True)
class Kind:
    """What values a key takes.

    Args:
        expected: in words.
        read: gives the value of this kind that a value or a text means without doubt, else raises ``ValueError``.
    """

    expected: str
    read: Callable[[Any], Any]

    def convert(self, key: str, value: Any) -> Any:
        """Convert a value, or refuse it.

        Args:
            key: what the message calls it.
            value: any value; expressions and references (``$``, ``@``, ``%``) pass as they are.

        Raises:
            OptionTypeError: when it does not mean a value of this kind.
        """
        if is_expression(value):
            return value
        try:
            return self.read(value)
        except (ValueError, TypeError, SyntaxError) as error:
            raise OptionTypeError(f"--{key}: expected {self.expected}, found {_describe(value)}") from error


def is_expression(value: Any) -> bool:
    """Tell whether MONAI evaluates a text: an expression, a reference or a macro."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%") and len(value) > 1


def _is_switch_word(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("true", "false")


def _describe(value: Any) -> str:
    return f"the text {value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__})"


def _read_switch(value: Any) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower())
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError


def _read_number(value: Any) -> int | float:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", value, re.IGNORECASE):
        value = ast.literal_eval(value.strip().lstrip("+"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value


def _read_text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)  # configs add names to paths
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a name such as 2023 looks like a number
    raise ValueError


def _read_list(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = json.loads(value)
    if not isinstance(value, list | tuple):
        raise ValueError
    return list(value)


def _read_device(value: Any) -> Any:
    if not isinstance(value, str | int | torch.device) or isinstance(value, bool):
        raise ValueError
    try:
        torch.device(value)
    except RuntimeError as error:
        raise ValueError from error
    return value


def _read_component(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        raise ValueError
    return value


def number(low: float = -math.inf, high: float = math.inf, whole: bool = False, open_low: bool = False) -> Kind:
    """Describe a number.

    Args:
        low: least value.
        high: greatest value.
        whole: whether it is an integer.
        open_low: whether it must be above ``low``.
    """
    limits = ["" if low == -math.inf else f"above {low:g}" if open_low else f"{low:g} or more"]
    limits += ["" if high == math.inf else f"at most {high:g}"]
    words = " and ".join(filter(None, limits))
    noun = "a whole number" if whole else "a number"

    def read(value: Any) -> int | float:
        given = _read_number(value)
        if not low <= given <= high or (open_low and given == low) or (whole and given != int(given)):
            raise ValueError
        return int(given) if whole else given

    return Kind(f"{noun}{f' of {words}' if words and not open_low else f' {words}' if words else ''}", read)


def list_of(each: Kind, length: int | None = None) -> Kind:
    """Describe a list of values of one kind."""

    def read(value: Any) -> list[Any]:
        values = _read_list(value)
        if length is not None and len(values) != length:
            raise ValueError
        return [item if is_expression(item) else each.read(item) for item in values]

    return Kind(f"a list of {'values' if length is None else length}, each {each.expected}", read)


def optional(kind: Kind) -> Kind:
    """Describe a value that may be None."""

    def read(value: Any) -> Any:
        if value is None or (isinstance(value, str) and _WORDS.get(value.strip().lower(), "") is None):
            return None
        return kind.read(value)

    return Kind(f"{kind.expected}, or None", read)


def either(*kinds: Kind) -> Kind:
    """Describe a value of one of several kinds, the first that it fits."""

    def read(value: Any) -> Any:
        for kind in kinds[:-1]:
            try:
                return kind.read(value)
            except (ValueError, TypeError, SyntaxError):
                continue
        return kinds[-1].read(value)

    return Kind(" or ".join(kind.expected for kind in kinds), read)


def _read_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    raise ValueError


def _read_auto(value: Any) -> str:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    raise ValueError


SWITCH = Kind("True or False", _read_switch)
AUTO = Kind("auto", _read_auto)
TEXT = Kind("a text", _read_text)
COMPONENT = Kind("a component, such as {'_target_': ...}", _read_component)
MAPPING = Kind("names and values in braces", _read_mapping)
COUNT = number(1, whole=True)
SHARE = number(0, 1)
POSITIVE = number(0, open_low=True)
AXES = list_of(number(0, 2, whole=True))
SIZES = list_of(COUNT, 3)
SLICE_SIZES = list_of(COUNT, 2)

OPTION_KINDS: dict[str, Kind] = {
    # folders and files
    **dict.fromkeys(("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "pretrained"), TEXT),
    **dict.fromkeys(
        ("datalist", "probe_datalist", "candidates", "seriesuid", "cache_dir", "calibrate", "modality"),
        optional(TEXT),
    ),
    "temperature": optional(either(POSITIVE, TEXT)),
    "store": optional(either(TEXT, COMPONENT)),  # of prepared scans in pretraining, of logits in evaluation
    **dict.fromkeys(("normalise", "axcodes", "variant", "convention", "task"), TEXT),
    # switches
    **dict.fromkeys(("amp", "allow_changed_settings", "sync_batch_norm", "tumour", "vessel"), SWITCH),
    # the run
    "resume": either(SWITCH, AUTO),
    "device": Kind("a device, such as cpu or cuda:0", _read_device),
    "network": COMPONENT,
    "num_workers": number(0, whole=True),
    "seed": number(0, whole=True),
    **dict.fromkeys(("train#run#cudnn_benchmark", "train#run#lr_step_per_epoch", "train#run#resume_changed"), SWITCH),
    "train#trainer#compile": SWITCH,
    "train#run#early_stop_patience": optional(COUNT),
    "train#run#freeze_epochs": number(0, whole=True),
    "train#run#freeze_factor": SHARE,
    "train#run#keep_last": COUNT,
    "train#run#save_every_minutes": optional(POSITIVE),
    "train#run#probe#interval": COUNT,
    "train#dataset#on_bad_scan": TEXT,
    **dict.fromkeys(("train#dataset#cache_gib", "validate#dataset#cache_gib"), optional(number(0))),
    # training
    **dict.fromkeys(("epochs", "val_interval", "batch_size", "eval_batch_size", "sw_batch_size"), COUNT),
    "accumulation_steps": COUNT,
    **dict.fromkeys(("cubes_per_case", "cubes_per_scan", "val_cubes_per_scan", "num_resamples"), COUNT),
    "warmup_epochs": number(0),
    "learning_rate": POSITIVE,
    "optimizer#params#slow_parts": list_of(TEXT),
    "optimizer#params#head_learning_rate": optional(POSITIVE),
    **dict.fromkeys(("loss#label_smoothing", "network_def#dropout"), SHARE),
    "loss#focal_gamma": number(0),
    "class_ratios": list_of(number(0)),
    "samples_per_epoch": optional(COUNT),
    "negatives_per_positive": POSITIVE,
    "val_negatives_per_positive": optional(POSITIVE),
    "max_shift": either(number(0, whole=True), list_of(number(0, whole=True), 3)),
    "flip_prob": either(SHARE, list_of(SHARE, 3)),
    **dict.fromkeys(("intensity_prob", "train#dataset#hard_negatives"), SHARE),
    **dict.fromkeys(("train#augmentation#affine#prob", "train#augmentation#rotate90#prob"), SHARE),
    "train#augmentation#affine#rotate_range": list_of(list_of(number(), 2), 3),
    "train#augmentation#affine#scale_range": list_of(SHARE, 3),
    "deformation#mask_patch": either(COUNT, SIZES, SLICE_SIZES),
    "deformation#num_blocks": number(0, whole=True),
    "deformation#max_block_fraction": number(0, 1, open_low=True),
    "deformation#mask_ratio": SHARE,
    "deformation#mask_value": optional(number()),
    # what the network sees and says
    "cube_size": either(SIZES, SLICE_SIZES),
    "slice_axis": optional(number(0, 2, whole=True)),
    "slice_axes": optional(AXES),
    "features": list_of(COUNT),
    "spacing": optional(list_of(POSITIVE, 3)),
    "intensity_range": list_of(number(), 2),
    "tissue_score_range": list_of(number(), 2),
    "tissue_threshold": optional(number()),
    "border": optional(either(number(0, whole=True), list_of(list_of(number(0, whole=True), 2), 3), TEXT)),
    "tta_flips": AXES,
    "vessel_voxel_mm": POSITIVE,
    "overlap": SHARE,
    "in_channels": COUNT,
    "out_channels": COUNT,
    "classes": list_of(number(0, whole=True)),
    "channels": list_of(TEXT),
    "targets": list_of(TEXT),
    "labels": MAPPING,
    "regions": MAPPING,
    "task_facts": MAPPING,
    "tolerance_mm": either(number(0), MAPPING),
}
"""Kinds by key or nested id, of those that do not follow from a default, see :func:`kind_like`."""


def kind_like(default: Any) -> Kind | None:
    """Infer from a key's default what values it takes.

    Args:
        default: the default in a config.

    Returns:
        The kind; None where the default does not tell: None itself, an expression, or an empty list.

    Example:
        >>> kind_like(False).convert("tumour", "true"), kind_like(0.5).convert("overlap", "0.25")
        (True, 0.25)
    """
    if default is None or is_expression(default):
        return None
    if isinstance(default, bool):
        return SWITCH
    if isinstance(default, int):
        return number(whole=True)
    if isinstance(default, float):
        return number()
    if isinstance(default, str):
        return TEXT
    if isinstance(default, Mapping):
        return COMPONENT if "_target_" in default else MAPPING
    if isinstance(default, Sequence):
        kinds = {kind.expected: kind for each in default if (kind := kind_like(each)) is not None}
        if default and all(isinstance(each, int | float) and not isinstance(each, bool) for each in default):
            return list_of(number())  # whole numbers among the defaults do not mean that all must be
        return list_of(TEXT) if list(kinds) == [TEXT.expected] else None
    return None


def convert_option(key: str, value: Any, default: Any = None) -> Any:
    """Convert the value of a top-level key, or refuse it.

    Args:
        key: the key.
        value: what was given.
        default: the key's value in the bundle's config, from which the kind of keys that are not in
            :data:`OPTION_KINDS` is inferred.

    Returns:
        The value in the type that its key takes.

    Raises:
        OptionTypeError: when it does not mean such a value without doubt.

    Example:
        >>> convert_option("spacing", "none"), convert_option("tumour", "False", default=False)
        (None, False)
    """
    kind = OPTION_KINDS.get(key) or kind_like(default)
    if kind is None:  # "none" stays a text here: torch's losses have a reduction of this name
        return value.strip().lower() == "true" if _is_switch_word(value) else value
    return kind.convert(key, value)
