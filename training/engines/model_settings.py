# SPDX-License-Identifier: Apache-2.0
"""The settings that belong to trained weights: ``model.json`` next to ``model.pt``.

A state dict says nothing of the intensity range or the voxel spacing that its network was trained on, and with others
it segments without an error and wrongly. Training writes them next to the weights, together with the weights' SHA-256;
inference, evaluation, ``monai.bundle.load`` and MONAI Label take them from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai.transforms import Transform
from torch import Tensor, nn

from ...datasets.cases import MSD_TASKS, msd_task
from ...datasets.channels import same_channels
from ...datasets.io.atomic_write import atomic_path, atomic_text
from ...networks.bundle_load import weights_of_load
from ...networks.network_def import (
    NETWORK_DEF,
    describe_network,
    describe_network_def,
    differing_arguments,
    rare_arguments,
)
from ...networks.weight_container import sha256_of
from ...networks.weight_files import read_weights, save_weights
from ...networks.weight_inspection import genesis_architecture
from ...networks.weight_settings import (
    FORMAT,
    ModelSettingsError,
    read_settings_file,
    settings_entry,
    settings_of_weights,
    settings_path,
)
from .running_workflow import running_parser

__all__ = [
    "ModelSettingsError",
    "ModelSettingsGuard",
    "check_config_settings",
    "check_model_settings",
    "features_of_pretrained",
    "name_of_task",
    "network_entry",
    "read_model_settings",
    "recorded_overrides",
    "save_trained_weights",
    "settings_of_load",
    "settings_path",
    "trained_task",
]

logger = logging.getLogger(__name__)

BUNDLE = "bundle"
"""Setting that names the bundle which weights are of: networks of one shape would take those of another finding."""


def save_trained_weights(
    state_dict: Mapping[str, Tensor],
    path: str | Path,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and the settings that belong to them, so that at any moment the one file describes the other.

    The settings are written first, and keep those of the weights that are about to be replaced (``"previous"``): a
    process that ends between the two leaves weights that their JSON still describes.

    Args:
        state_dict: tensors by name.
        path: the weights to write or replace; the settings go to the same name with ``.json``.
        settings: what inference has to know: task, features, cube and preprocessing, as JSON has them.
        facts: what else the file says, such as the epoch.
    """
    path = Path(path)
    previous = settings_entry(path)
    with atomic_path(path) as temporary:
        save_weights(state_dict, temporary)
        content = {
            "format": FORMAT,
            "made_by": _made_by(),
            "weights": {"file": path.name, "sha256": sha256_of(temporary)},
            **(facts or {}),
            "settings": dict(settings),
        }
        if previous is not None:
            content["previous"] = {"weights": previous["weights"], "settings": previous["settings"]}
        text = json.dumps(content, indent=4, ensure_ascii=False)
        with atomic_text(settings_path(path)) as file:
            file.write(text + "\n")


def read_model_settings(ckpt_dir: str | Path, file: str = "model.pt") -> dict[str, Any]:
    """Read the settings that weights were trained with.

    Within ``monai.bundle.load`` they are those of the weights that it loads, wherever the process runs; see
    :func:`settings_of_load`.

    Args:
        ckpt_dir: folder of the weights.
        file: their name.

    Returns:
        The settings by key; empty where there is no such file, as of weights from elsewhere.

    Raises:
        ModelSettingsError: when the file cannot be read, or describes other weights.
    """
    return settings_of_load() if weights_of_load() is not None else settings_of_weights(Path(ckpt_dir) / file)


def settings_of_load() -> dict[str, Any]:
    """Read the settings of the weights that ``monai.bundle.load`` is loading, empty in any other case.

    ``load`` builds the network of ``train.json`` by default, and passes over weights of another shape without a word.
    Its channels and its width follow the weights by this; a training is not concerned. Of weights without a JSON, such
    as renamed ones or ``last_epoch.pt``, they are what the shapes of the tensors tell of the network.

    Returns:
        The settings by key.

    Raises:
        ModelSettingsError: when ``model.json`` cannot be read, or describes other weights.
        ValueError: when there is none, and the weights are damaged or no weights.
    """
    weights = weights_of_load()
    if weights is None:
        return {}
    return settings_of_weights(weights) or _settings_of_shapes(weights)


def _settings_of_shapes(weights: Path) -> dict[str, Any]:
    """Tell the keys that make the network of weights from shapes, in which preprocessing does not show."""
    found = genesis_architecture(read_weights(weights).tensors)
    if found is None:
        return {}
    settings: dict[str, Any] = {key: found[1][key] for key in ("in_channels", "out_channels") if key in found[1]}
    settings["features"] = list(found[1]["features"])
    if found[1]["spatial_dims"] == 2:  # the number of sides and of channels count, the axes do not show
        settings |= {"cube_size": [64, 64], "slice_axis": 2, "slice_axes": [2]}
    logger.info("%s: no %s; by the tensors' shapes %s", weights, settings_path(weights).name, settings)
    return settings


def features_of_pretrained(pretrained: str | Path | None, default: Sequence[int]) -> list[int]:
    """Give a fine-tuning the width of the weights that it starts from, where their ``model.json`` tells it.

    The log says which width it is and whence, for a training from scratch has another one than that from small weights.

    Args:
        pretrained: the key ``--pretrained``: a file, or ``None`` or ``"none"`` from scratch.
        default: channels of the levels otherwise; weights that then do not fit are refused when they are loaded.

    Returns:
        Channels of the levels.

    Raises:
        ModelSettingsError: when ``model.json`` cannot be read, or describes other weights.

    Example:
        >>> features_of_pretrained("none", [64, 128, 256, 512])
        [64, 128, 256, 512]
    """
    if pretrained is None or str(pretrained).lower() == "none":
        logger.info("--features %s: the bundle's own, from scratch; pretrained weights bring theirs", list(default))
        return list(default)
    found = settings_of_weights(Path(pretrained)).get("features")
    if found is None:
        logger.info("--features %s: the bundle's own; %s tells none", list(default), settings_path(pretrained))
        return list(default)
    logger.info("--features %s: those of the weights, by %s", list(found), settings_path(pretrained))
    return list(found)


def recorded_overrides(config: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Give a training's config the settings of weights that it goes on from.

    Args:
        config: content of ``train.json``.
        recorded: see :func:`read_model_settings`.

    Returns:
        All of them that the config has, by top-level key or by nested id of its ``deformation``, and the arguments of
        the network that are not its default.

    Example:
        >>> config = {"spacing": None, "deformation": {"mask_ratio": 0.6}}
        >>> recorded_overrides(config, {"spacing": [1, 1, 2], "mask_ratio": 0.3, "epoch": 3})
        {'spacing': [1, 1, 2], 'deformation#mask_ratio': 0.3}
    """
    overrides = rare_arguments(recorded)
    for key, value in recorded.items():
        if key == NETWORK_DEF:
            continue
        if key in config:
            overrides[key] = value
        elif key in config.get("deformation", {}):
            overrides[f"deformation#{key}"] = value
    return overrides


def network_entry(network: nn.Module) -> dict[str, Any]:
    """Describe the network of a training, for ``model.json``: activation and norm do not show in weights.

    Args:
        network: what is trained.

    Returns:
        The entry of the settings; empty where neither the network nor the running config tells it.
    """
    parser = running_parser()
    described = describe_network(network) or (None if parser is None else describe_network_def(parser))
    return {} if described is None else {NETWORK_DEF: described}


def check_model_settings(recorded: Mapping[str, Any], given: Mapping[str, Any], allow: bool = False) -> None:
    """Compare the settings of a run with those that its weights were trained with, and its ``network_def``.

    The network is that of the config that is being evaluated; activation, norm and the like do not show in weights.

    Args:
        recorded: see :func:`read_model_settings`; settings that it lacks are not compared.
        given: settings of the run by key; those that the user did not give are taken from ``recorded`` by the config.
        allow: whether others are allowed, which is logged.

    Raises:
        ModelSettingsError: naming each key with both values.

    Example:
        >>> check_model_settings({"spacing": [1, 1, 2]}, {"spacing": [1, 1, 2.0], "amp": True})
    """
    if len(recorded.get("cube_size") or ()) == 3:  # what lacks such a key was written before there were slices
        recorded = {"slice_axis": None, "slice_axes": None, **recorded}
    compared = [(key, recorded[key], _plain(value)) for key, value in given.items() if key in recorded]
    differing = [
        f"--{key}: trained with {json.dumps(theirs)}, given {json.dumps(ours, default=str)}"
        for key, theirs, ours in (_what_differs(*each) for each in compared)
        if _plain(theirs) != ours
    ]
    if not allow and BUNDLE in recorded and recorded[BUNDLE] != given.get(BUNDLE, recorded[BUNDLE]):
        raise ModelSettingsError(
            f"expected weights of {given[BUNDLE]}, found those of {recorded[BUNDLE]}: run their bundle, or give the"
            " --ckpt_dir of this one's; --allow_changed_settings True takes them all the same"
        )
    network = _differing_network(recorded)
    if (differing or network) and not allow:
        advice = "Leave the keys out to take what the weights were trained with" if differing else ""
        advice += f"{', but g' if advice else 'G'}ive those of the network as they were in training" if network else ""
        raise ModelSettingsError(
            f"the weights were trained with other settings. {'; '.join(differing + network)}. {advice}, or give "
            "--allow_changed_settings True"
        )
    if differing or network:
        logger.warning("other settings than in training, as asked for. %s", "; ".join(differing + network))


def _differing_network(recorded: Mapping[str, Any]) -> list[str]:
    """Compare the network of the config that is being evaluated with that of the weights."""
    described, parser = recorded.get(NETWORK_DEF), running_parser()
    given = None if described is None or parser is None else describe_network_def(parser)
    if described is None or given is None:
        return []
    return [
        f"--{NETWORK_DEF}#{name}: trained with {json.dumps(before)}, given {json.dumps(now)}"
        for name, (before, now) in differing_arguments(described, given).items()
    ]


def _what_differs(key: str, recorded: Any, given: Any) -> tuple[str, Any, Any]:
    """Name a setting as the user does, with both values; of a task's facts those that differ, but for its name."""
    if key != "task_facts" or not isinstance(recorded, Mapping) or not isinstance(given, Mapping):
        return key, recorded, given
    names = [name for name in given if name in recorded and name not in ("name", "tolerance_mm")]
    other = [name for name in names if _plain(recorded[name]) != given[name]]
    if "channels" in other and same_channels(recorded["channels"], given["channels"]):
        other.remove("channels")
    return "task", {name: _plain(recorded[name]) for name in other}, {name: given[name] for name in other}


def check_config_settings(
    recorded: Mapping[str, Any], inference: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Compare settings that are written into a bundle's configs with those that its weights were trained with.

    Args:
        recorded: see :func:`read_model_settings`.
        inference: content of ``inference.json``; the keys that its ``settings_check`` names are compared.
        settings: what is written, by key.

    Raises:
        ModelSettingsError: naming each key with both values.
    """
    checked = inference.get("settings_check", {}).get("given", {})
    given = {key: value for key, value in settings.items() if key in checked}
    given |= {BUNDLE: checked[BUNDLE]} if BUNDLE in checked else {}
    if "task" in settings:
        given["task"] = name_of_task(msd_task(settings["task"]))
    allow = settings.get("allow_changed_settings") is True
    check_model_settings(recorded, given, allow)
    described, below = recorded.get(NETWORK_DEF), f"{NETWORK_DEF}#"
    if described is not None:
        changed = {key.removeprefix(below): value for key, value in settings.items() if key.startswith(below)}
        now = {**described, "arguments": {**described["arguments"], **changed}}
        pairs = differing_arguments(described, now).items()
        before = {f"{below}{name}": value for name, (value, _) in pairs}
        check_model_settings(before, {f"{below}{name}": value for name, (_, value) in pairs}, allow)


def trained_task(settings: Mapping[str, Any], task: str | Path) -> dict[str, Any]:
    """Tell channels and labels of a task of the Decathlon, of the weights' own without its ``dataset.json``.

    Args:
        settings: see :func:`read_model_settings`.
        task: see :func:`~models_genesis.datasets.msd_task`.
    """
    if settings.get("task") == str(task) and isinstance(settings.get("task_facts"), dict):
        return dict(settings["task_facts"])
    return msd_task(task)


def name_of_task(facts: Mapping[str, Any]) -> str:
    """Name a task as the Decathlon does, wherever its ``dataset.json`` lay; else as its ``dataset.json`` does.

    Args:
        facts: see :func:`~models_genesis.datasets.msd_task`.

    Example:
        >>> name_of_task({**msd_task("Task04_Hippocampus"), "name": "Hippocampus"})
        'Task04_Hippocampus'
    """
    same = ("modality", "in_channels", "labels")
    known = (name for name in MSD_TASKS if all(msd_task(name)[key] == facts[key] for key in same))
    return next(known, str(facts["name"]))


class ModelSettingsGuard(Transform):
    """Hand items on unchanged, as long as the weights' settings are those that the preprocessing was built with.

    A server of MONAI Label reads new weights from the disk by itself, and keeps the preprocessing of the old ones.

    Args:
        ckpt_dir: folder of ``model.pt``.
        settings: what was read as the preprocessing was built.
        checked: the result of :func:`check_model_settings`, so that it is called where nothing runs the config's
            ``run``.
    """

    def __init__(self, ckpt_dir: str | Path, settings: Mapping[str, Any], checked: None = None) -> None:
        self.path = settings_path(Path(ckpt_dir) / "model.pt")
        self.settings = dict(settings)
        self._seen = self._state()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item.

        Args:
            data: the item.

        Raises:
            ModelSettingsError: when there are other settings now.
        """
        state = self._state()
        if state != self._seen:
            now = read_settings_file(self.path)["settings"] if self.path.is_file() else {}
            if now != self.settings:
                raise ModelSettingsError(
                    f"{self.path} has changed: this process prepares scans for {self.settings}, the weights are for "
                    f"{now} now. Start it again"
                )
            self._seen = state
        return dict(data)

    def _state(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


def _plain(value: Any) -> Any:
    """Write a value as JSON has it, so that tuples equal lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _made_by() -> str:
    installed = __name__.split(".")[0] == "models_genesis"
    return f"models-genesis {version('models-genesis')}" if installed else "models-genesis, packed in a bundle"
