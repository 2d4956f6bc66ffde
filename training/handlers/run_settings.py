# SPDX-License-Identifier: Apache-2.0
"""The settings that a training's result depends on, kept in its checkpoint, and what a resumed run does with others.

A training that is resumed with the same settings equals one that was never interrupted. With other settings it would
be neither the one nor the other, and some of them would have no effect, for the checkpoint brings its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ...datasets.loading.processes import process_count
from ..engines.moved_keys import MOVED_KEYS, WRITTEN_IN_CONFIG, MovedKey
from ..engines.option_types import is_expression
from ..engines.running_workflow import running_workflow
from .gradient_accumulation import optimizer_steps

__all__ = [
    "ChangedSettingsError",
    "changed_settings",
    "data_facts",
    "describe_changes",
    "entries_of",
    "measure_changed",
    "schedule_changes",
    "settings_of_run",
    "take_over_schedule",
]

logger = logging.getLogger(__name__)

# Keys on which the result does not depend: places, hardware, and what is done with the result. The number of epochs
# counts where the schedule depends on it, see `schedule_changes`; the scans count themselves, see `data_facts`, and a
# task by its `task_facts`, wherever its dataset.json lies.
_PLACES = (
    "bundle_root", "dataset_dir", "datalist", "candidates", "output_dir", "ckpt_dir", "cache_dir", "cache_gib",
    "pretrained", "probe_datalist", "split", "store",
)  # fmt: skip
_HARDWARE = ("device", "backend", "num_workers", "network", "precision", "inferer", "sw_batch_size")
_DEEDS = (
    "imports", "initialize", "run", "finalize", "resume", "resume_changed", "keep_last", "save_every_minutes",
    "on_bad_case", "on_bad_scan",
    "epochs", "task", "metric_name", "tolerance_mm", "eval_batch_size", "model_settings", "loaded_settings", "_meta_",
    "probe",  # which only looks on
    "loading", "augmentation",  # of steps that count where `train` and `validate` have them
)  # fmt: skip
_EXEMPT = frozenset({*_PLACES, *_HARDWARE, *_DEEDS})
_BELOW = ("handlers", "data", "persistent_workers", "max_epochs", "_desc_", "pin_memory", "additional_metrics")
_EXEMPT_BELOW = frozenset({*_EXEMPT, *_BELOW})

# What a validation's measure means, or what is measured: after a change of these no earlier best is comparable.
_MEASURE = frozenset(
    {
        "validate", "spacing", "intensity_range", "normalise", "axcodes", "modality", "classes", "tumour", "labels",
        "regions", "targets", "convention", "channels", "task_facts", "cube_size", "overlap", "tta_flips",
        "vessel", "vessel_voxel_mm", "variant", "deformation", "deform_on", "tissue_threshold",
        "tissue_score_range", "border", "on_empty", "slice_axis", "slice_axes", "val_cubes_per_scan",
        "val_negatives_per_positive", "loss", "seed",
    }
)  # fmt: skip

# What changes while a schedule runs, or does not change its rates.
_MOVING = frozenset(
    {
        "last_epoch", "best", "num_bad_epochs", "cooldown_counter", "lr_lambdas", "verbose", "mode_worse",
    }
)  # fmt: skip
_IMPLEMENTATION = frozenset({"params", "lr", "name", "foreach", "fused", "capturable", "differentiable"})

_NOTED_SINCE = ("validation_scans", "validation_scan_names", "validation_samples", "task_facts#channels")
"""Facts that checkpoints did not have at first: without them nothing can be compared."""

# Components that had another name when the checkpoint was written: the last parts of their `_target_`.
_RENAMED = {
    "training.DeformationPlace": "training.DeformationBackend",
    "training.FiniteLossGuard": "training.NonFiniteLossHandler",
    "training.StopSignals": "training.GracefulShutdown",
    "training.thin_candidates": "datasets.subsample_negatives",
}

_RETIRED = {
    "early_stop#_target_": ("EarlyStopHandler",),
    "early_stop#patience": ("@early_stop_patience",),
    "early_stop#score_function": (
        "$lambda engine: engine.state.metrics['val_dice']",
        "$lambda engine: float(engine.state.metrics['val_auc'])",
        "$lambda engine: -float(engine.state.metrics['val_loss'])",
        "$lambda engine: -engine.state.metrics['val_mse']",
    ),
    "train#sampler#num_replicas": ("@world_size",),
    "validate#sampler#num_replicas": ("@world_size",),
    "validate#dataset#world_size": ("@world_size",),
}
"""What the bundles wrote into their configs when the checkpoint was written, and what ``TrainingRunHandler`` and
``torch.distributed`` bring by themselves now, with the same effect. Another value was the user's, and still counts."""

_ADDED = {
    "slice_axis": (None, "@slice_axis"),
    "slice_axes": (None, "@slice_axes"),
    "_disabled_": ("$@slice_axis is not None",),  # the flip along the third axis
    "num_blocks": (10_000, "@num_blocks"),
    "max_block_fraction": (0.1, "@max_block_fraction"),
    "accumulation_steps": (1, "@accumulation_steps"),
    "head_learning_rate": (None,),
    "class_names": ("@regions",),  # of what mirrors at test time
    "compile": (False,),
    "channels": ("$@task_facts.get('channels')",),  # the order of the files of an image, which is checked now
}
"""Keys that came later, most of them with the bundles' 2D forms, by the last part of their id: checkpoints without them
had the first value; components then refer to it as the second. Those that ask for ``slice_axis`` itself did as for
cubes."""

_STEPS = "optimizer_steps(@train::dataloader, @accumulation_steps)"

_REWRITTEN = {
    "spatial_dims": ((3, "$len(@cube_size)"), (3, "$3 if @slice_axes is None else 2")),
    "spatial_size": (("@cube_size", "$window_size(@cube_size, @slice_axis)"),),
    "_disabled_": (("$@cube_size[0] != @cube_size[1]", "$not may_turn(@cube_size, @slice_axes)"),),
    "in_channels": (("@in_channels", "$@in_channels * len(@slice_axes or [2])"),),
    "warmup_steps": (("$@warmup_epochs * len(@train::dataloader)", f"$@warmup_epochs * {_STEPS}"),),
    "t_total": tuple(
        (f"{epochs} * len(@train::dataloader)", f"{epochs} * {_STEPS}")
        for epochs in ("$@epochs", "$@train::trainer::max_epochs")
    ),
    "prob": tuple(
        ("@flip_prob", f"$flip_probability(@flip_prob, {axis}{of_slice})")
        for axis in range(3)
        for of_slice in (", @slice_axis", "")
    ),
}
"""Former and present values of what the configs write otherwise now, with the same effect, by the last part of the id,
as MONAI has them after reading a config, with ``::`` for ``#``. A cube of two sides and axes of slices are changes by
themselves."""

_FORMER_TEXTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "$@affine_prob == 0": lambda old: "$@train::augmentation::affine::prob == 0",
    "$[[0, 0], [0, 0], [-@rotation, @rotation]]": lambda old: [[0, 0], [0, 0], [-old["rotation"], old["rotation"]]],
    "$[@scaling] * 3": lambda old: [old["scaling"]] * 3,
    "$layer_groups(@network, @slow_parts)": lambda old: {},
}
"""What configs wrote where they used keys of :data:`MOVED_KEYS` in expressions, and what they write now, by the values
that those keys had."""

_ONLY_SLICES = "$@slice_axes is None"
"""``_disabled_`` of the steps that take slices of a cube; checkpoints from before there were any lack such steps."""

Changes = dict[str, tuple[Any, Any]]
"""Old and new value by id."""

_ABSENT = "(none)"

_DEFAULTS = {
    **{moved.id: moved.default for moved in MOVED_KEYS.values() if moved.default is not WRITTEN_IN_CONFIG},
    "sync_batch_norm": False,
}
"""What moved keys are where the config does not say it, and those of the config for several processes without it."""


class ChangedSettingsError(ValueError):
    """A training is to be resumed with other settings than those it began with."""


def settings_of_run() -> dict[str, Any]:
    """Gather the settings of the workflow that builds the caller, those on which a training's result depends.

    Returns:
        Values by key, as JSON has them: of settings what they are, of components how the config writes them. Empty
        where no workflow is running.
    """
    workflow = running_workflow()
    if workflow is None:
        return {}
    settings: dict[str, Any] = {"world_size": process_count()}
    config: Any = workflow.parser.config
    for key, value in config.items():
        if key in _EXEMPT or key.startswith("+") or "#" in key:
            continue
        if is_expression(value):
            value = _evaluated(workflow, key)
        settings[key] = _plain(value)
    for moved in MOVED_KEYS.values():
        *parents, last = moved.id.split("#")
        place = _below(settings, parents)
        if _of_handler(moved):
            value = workflow.parser.get(moved.id, moved.default)
            if value is not WRITTEN_IN_CONFIG:
                settings[moved.id] = _plain(_evaluated(workflow, moved.id) if is_expression(value) else value)
        elif isinstance(place, dict) and is_expression(place.get(last)):
            place[last] = _evaluated(workflow, moved.id)
    return settings


def _of_handler(moved: MovedKey) -> bool:
    """Tell whether a moved key counts although it lies in ``train#run``, where all else is a place or a deed."""
    return moved.id.startswith("train#run#") and moved.id.split("#")[-1] not in _EXEMPT


def _below(value: Any, parts: Sequence[str]) -> Any:
    """Give what lies at a nested id; None where there is nothing."""
    for part in parts:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _evaluated(workflow: Any, key: str) -> Any:
    """Evaluate an expression that gives a plain value; anything else counts as it is written."""
    value = workflow.parser.get_parsed_content(key)
    plain = isinstance(value, str | int | float | list | tuple | dict) or value is None
    return value if plain else workflow.parser[key]


def _plain(value: Any) -> Any:
    """Write a part of a config as JSON has it, without what the result does not depend on."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items() if str(key) not in _EXEMPT_BELOW}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if value is None or isinstance(value, str | int | float | bool) else f"<{type(value).__name__}>"


def entries_of(dataset: Any) -> Sequence[Mapping[str, Any]] | None:
    """Find the entries of the data list that a data set was made of.

    Args:
        dataset: whose ``data`` are the entries, or a set of candidates with such.

    Returns:
        The entries, each with an ``"image"``; None for a data set of anything else.
    """
    entries = getattr(dataset, "data", None)
    entries = getattr(entries, "data", entries)  # a CandidateSet
    if not isinstance(entries, Sequence) or not all(isinstance(each, Mapping) and "image" in each for each in entries):
        return None
    return entries


def data_facts(dataset: Any, prefix: str = "") -> dict[str, Any]:
    """Tell which scans a data set has, wherever they lie.

    Args:
        dataset: whose ``data`` are the entries of a data list, in order.
        prefix: put before the keys.

    Returns:
        The number of ``scans``, a fingerprint of their paths below the folder that they have in common, and the number
        of ``samples`` of an epoch. Empty for a data set without entries.
    """
    entries = entries_of(dataset)
    if entries is None:
        return {}
    first = [ensure_tuple(each["image"])[0] for each in entries]
    if not all(isinstance(image, str | os.PathLike) for image in first):
        return {}
    images = [os.path.abspath(image) for image in first]
    try:
        root = os.path.commonpath([os.path.dirname(image) for image in images]) if images else ""
        names = [Path(os.path.relpath(image, root)).as_posix() for image in images]
    except ValueError:  # several drives of Windows
        names = images
    fingerprint = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    facts: dict[str, Any] = {"scans": len(entries), "scan_names": fingerprint}
    try:
        facts["samples"] = len(dataset)
    except TypeError:  # a stream
        pass
    return {f"{prefix}{key}": value for key, value in facts.items()}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Compare two gatherings of settings.

    Args:
        old: those of the checkpoint.
        new: those of now.

    Returns:
        Old and new value of each that differs, by nested id.

    Example:
        >>> changed_settings({"batch_size": 2, "loss": {"gamma": 0.0}}, {"batch_size": 4, "loss": {"gamma": 2.0}})
        {'batch_size': (2, 4), 'loss#gamma': (0.0, 2.0)}
    """
    # a key that counted when the checkpoint was written, but no longer does, is no change, wherever it lies
    counted = {key: _plain(value) for key, value in old.items() if key in new or key not in _EXEMPT}
    retired = {path for path, value in _flat(counted) if value in _RETIRED.get(path, ())}
    counted = _moved_down(counted, new)
    idle = new.get("slice_axes") is None and old.get("slice_axes") is None
    before = {
        key: _present_name(value) if key.endswith("_target_") else value
        for key, value in _flat(_without_slices(counted) if idle else counted)
        if key not in retired
    }
    now = dict(_flat(_without_slices(new) if idle else new))
    for key, value in now.items():
        if key not in before and value in _ADDED.get(key.split("#")[-1], ()):
            before[key] = value
        elif (before.get(key), value) in _REWRITTEN.get(key.split("#")[-1], ()):
            before[key] = value
    keys = [*before, *(key for key in now if key not in before and key not in _NOTED_SINCE)]
    pairs = {key: (_value(before, key), _value(now, key)) for key in keys}
    changes = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    # of the same number of scans the fingerprint tells that they are others; of another number it follows
    return {
        key: pair
        for key, pair in changes.items()
        if not (key.endswith(("scan_names", "samples")) and key.replace("scan_names", "scans") in changes)
    }


def _value(settings: Mapping[str, Any], key: str) -> Any:
    return settings.get(key, _DEFAULTS.get(key, _ABSENT))


def _moved_down(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put what an earlier version had at the top of its config where it is set now, and in place of references to it.

    Args:
        old: settings of the checkpoint.
        new: those of now. A key that they have too, which is the user's own then, stays.
    """
    given = {key: value for key, value in old.items() if key in MOVED_KEYS and key not in new}
    moved = {key: _without_references(value, given) for key, value in old.items() if key not in given}
    params = _below(moved, ("optimizer", "params"))
    if isinstance(params, dict) and "_target_" not in params and (present := _below(new, ("optimizer", "params"))):
        params["_target_"] = present.get("_target_") if isinstance(present, Mapping) else None
    for key, value in given.items():
        *parents, last = MOVED_KEYS[key].id.split("#")
        place = _below(moved, parents)
        if _of_handler(MOVED_KEYS[key]):
            moved[MOVED_KEYS[key].id] = value
        elif isinstance(place, dict) and not _EXEMPT_BELOW.intersection(parents):
            place.setdefault(last, _without_references(value, given))
    return moved


def _without_references(value: Any, given: Mapping[str, Any]) -> Any:
    """Copy a part of a config with values in place of references to them."""
    if isinstance(value, Mapping):
        return {key: _without_references(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_references(each, given) for each in value]
    if isinstance(value, str) and value[:1] == "@" and value[1:] in given:
        return _without_references(given[value[1:]], given)
    if isinstance(value, str) and value in _FORMER_TEXTS and any(f"@{key}" in value for key in given):
        return _FORMER_TEXTS[value](given)
    return value


def _without_slices(value: Any) -> Any:
    """Leave out the steps that take slices, which do nothing for cubes."""
    if isinstance(value, Mapping):
        return {key: _without_slices(each) for key, each in value.items()}
    if isinstance(value, list):
        idle = [isinstance(each, Mapping) and each.get("_disabled_") == _ONLY_SLICES for each in value]
        return [_without_slices(each) for each, left_out in zip(value, idle, strict=True) if not left_out]
    return value


def _present_name(target: Any) -> Any:
    """Give the name that a component has now."""
    for old, new in _RENAMED.items():
        if isinstance(target, str) and target.endswith(f".{old}"):
            return target.removesuffix(old) + new
    return target


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """List the values of nested mappings, and of lists of mappings, by nested id."""
    if isinstance(value, Mapping) and value:
        return [pair for key, each in value.items() for pair in _flat(each, f"{path}#{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return [pair for index, each in enumerate(value) for pair in _flat(each, f"{path}#{index}")]
    return [(path, value)]


def schedule_changes(optimizer: Optimizer, schedule: LRScheduler, state: Mapping[str, Any]) -> Changes:
    """Compare an optimizer and its schedule, as they were just built, with those of a checkpoint.

    Args:
        optimizer: of this run.
        schedule: of this run.
        state: with the state dicts ``"optimizer"`` and ``"lr_scheduler"``.

    Returns:
        Old and new value of each argument that differs, such as ``lr_scheduler#t_total``.
    """
    old, new = state["lr_scheduler"], schedule.state_dict()
    fixed = [key for key in {**old, **new} if key not in _MOVING and not key.startswith("_")]
    changes: Changes = {
        f"lr_scheduler#{key}": (old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in fixed
        if _listed(old.get(key, _ABSENT)) != _listed(new.get(key, _ABSENT))
    }
    groups = list(zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=False))
    for number, (before, now) in enumerate(groups):
        for key in [key for key in {**before, **now} if key not in _IMPLEMENTATION]:
            pair = (before.get(key, _ABSENT), now.get(key, _ABSENT))
            if _listed(pair[0]) != _listed(pair[1]):
                changes[f"optimizer#{key}" + (f" of group {number}" if number else "")] = pair
    return changes


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe_changes(changes: Changes) -> str:
    """Write changes in one line.

    Example:
        >>> describe_changes({"epochs": (6, 12), "batch_size": (2, 4)})
        'epochs 6 -> 12; batch_size 2 -> 4'
    """
    return "; ".join(f"{key} {_short(old)} -> {_short(new)}" for key, (old, new) in changes.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def measure_changed(changes: Changes) -> bool:
    """Tell whether validations before and after these changes cannot be compared."""
    return any(key.split("#")[0] in _MEASURE or key.startswith("validation_") for key in changes)


def take_over_schedule(
    optimizer: Optimizer, schedule: LRScheduler, state: Mapping[str, Any], steps: int, rate_factor: float = 1.0
) -> None:
    """Load the moments of an optimizer, with the rates that this run's own schedule has after as many steps.

    Args:
        optimizer: of this run, as it was just built; its hyper-parameters count.
        schedule: of this run, as it was just built. One that waits for a plateau keeps what it has seen.
        state: of the checkpoint, with the state dicts ``"optimizer"`` and ``"lr_scheduler"``.
        steps: steps that the schedule would have made by now, had these settings counted from the start.
        rate_factor: of a schedule that waits for a plateau, how many times the former learning rate the new one is.

    Raises:
        ChangedSettingsError: when the optimizer is of another kind, or the rate would climb in a second warm-up.
    """
    old = state["lr_scheduler"]
    warmup, former = getattr(schedule, "warmup_steps", 0), old.get("warmup_steps", 0)
    if steps < warmup and old["last_epoch"] >= former:
        raise ChangedSettingsError(
            f"the warm-up is over, and a longer one ({warmup} steps, of which {steps} are done) would have the "
            "learning rate climb again: give --warmup_epochs as before"
        )
    groups = state["optimizer"]["param_groups"]
    if len(groups) != len(optimizer.param_groups) or (set(groups[0]) ^ set(optimizer.param_groups[0])) - {"initial_lr"}:
        raise ChangedSettingsError(
            "the optimizer is of another kind, or has other groups of parameters, so that its state cannot be taken "
            "over: start a new training from model.pt with --pretrained"
        )
    if isinstance(schedule, ReduceLROnPlateau):
        rates = [group["lr"] * rate_factor for group in groups]
        for key in _MOVING & set(old) - {"mode_worse"}:
            setattr(schedule, key, old[key])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each
            for _ in range(steps):
                schedule.step()
        rates = [group["lr"] for group in optimizer.param_groups]
    arguments = [
        {key: copy.copy(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state["optimizer"])
    for group, own, rate in zip(optimizer.param_groups, arguments, rates, strict=True):
        group.update(own, lr=rate)


def steps_of_schedule(state: Mapping[str, Any], epoch_length: int, by_epoch: bool | None = None) -> int:
    """Count the steps that a schedule has made after the epochs of a checkpoint, had each epoch another length.

    Args:
        state: of the checkpoint, with ``"epoch"``, ``"iteration"`` and the state dict ``"lr_scheduler"``.
        epoch_length: steps of the optimizer in an epoch now.
        by_epoch: whether the schedule steps after epochs; None tells it from the state, where an epoch of one iteration
            counts as an iteration.
    """
    done = state["lr_scheduler"]["last_epoch"]
    if by_epoch is None:
        accumulated = int(state.get("settings", {}).get("accumulation_steps", 1))
        by_epoch = done != state["epoch"] * optimizer_steps(state["iteration"] // state["epoch"], accumulated)
    return int(state["epoch"] * (1 if by_epoch else epoch_length))


def rate_factor(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Tell how many times the learning rate of the checkpoint the new one is; 1 where one of them is unknown."""
    before, now = old.get("learning_rate"), new.get("learning_rate")
    known = all(isinstance(each, int | float) and each > 0 and math.isfinite(each) for each in (before, now))
    return now / before if known else 1.0  # type: ignore[operator]
