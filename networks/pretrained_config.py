# SPDX-License-Identifier: Apache-2.0
"""What makes a network: as JSON next to its weights, checked against them, with what the caller wants otherwise."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .network_def import NETWORK_DEF, describe_of_checkpoint, own_class
from .pretrained_files import PretrainedFiles
from .weight_container import read_checkpoint
from .weight_files import WeightFile
from .weight_inspection import genesis_architecture
from .weight_settings import settings_of_weights, settings_path

__all__ = ["HEADER", "PREPROCESSING", "NetworkConfig", "arguments_of", "config_text", "kept_settings", "read_config"]

HEADER = "models_genesis"
"""Entry of a safetensors header that holds the config, so that the one file is complete."""

PREPROCESSING = ("cube_size", "slice_axis", "spacing", "axcodes", "normalise", "intensity_range", "task_facts")
"""Settings that go with the encoder, whatever head is put on it; of ``task_facts`` the modality, CT or MR."""

_NETWORK, _SETTINGS = "network", "model_settings"  # entries of the config besides the network's arguments


@dataclass(frozen=True)
class NetworkConfig:
    """A network as files describe it.

    Args:
        network: name of its class.
        shape: the arguments that the shapes of the weights tell.
        arguments: all arguments that are known.
        settings: preprocessing and the like, as ``model.json`` has them.
    """

    network: str
    shape: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def config_text(network: str, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Write a config as JSON.

    Args:
        network: name of the class.
        arguments: its arguments.
        settings: preprocessing and the like; left out where there are none.

    Returns:
        The text.

    Raises:
        TypeError: an argument is something that JSON has not.

    Example:
        >>> config_text("GenesisUNet", {"features": (4, 8)}, {}).split()
        ['{', '"network":', '"GenesisUNet",', '"features":', '[', '4,', '8', ']', '}']
    """
    content = {_NETWORK: network, **arguments, **({_SETTINGS: dict(settings)} if settings else {})}
    for name, value in content.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: expected a value that JSON has, found {value!r}") from error
    return json.dumps(content, indent=2, ensure_ascii=False)


def arguments_of(network: type) -> list[str]:
    """List the arguments that a network is made with.

    Python 3.10 reads a class's signature from ``__new__``, of which the hub's mixin has one that takes anything.

    Args:
        network: its class.

    Returns:
        Their names in order.
    """
    return [name for name in inspect.signature(network.__init__).parameters if name != "self"]  # type: ignore[misc]


def read_config(files: PretrainedFiles, weights: WeightFile, networks: Mapping[str, type]) -> NetworkConfig:
    """Read what describes weights, from all places, and compare it with the weights themselves.

    Args:
        files: where the weights and their ``config.json`` are.
        weights: what was read.
        networks: classes by name.

    Returns:
        The network.

    Raises:
        ValueError: the weights are not of one of these networks, or what describes them contradicts them.
    """
    found = genesis_architecture(weights.tensors)
    if found is None:
        names = list(weights.tensors)
        raise ValueError(
            f"{weights.path} ({weights.layout}): expected all weights of {' or '.join(networks)}, found {len(names)} "
            f"tensors such as {', '.join(names[:3])}; load_pretrained brings parts of weights to a network of yours"
        )
    network, shape = found
    described = _described(files, weights)
    settings = settings_of_weights(files.weights)
    of_settings = {place: content.get(_SETTINGS, {}) for place, content in described.items()}
    for place, content in described.items():
        _compare(place, content, {_NETWORK: network, **shape}, weights.path)
    for place, content in (*of_settings.items(), (str(settings_path(files.weights)), settings)):
        _compare(place, _of_the_network(content), shape, weights.path)
        _compare(f"{place}, task_facts", _of_the_network(content.get("task_facts")), shape, weights.path)
    known = arguments_of(networks[network])
    recorded = settings.pop(NETWORK_DEF, None)
    if recorded is None and weights.layout.startswith("checkpoint"):  # the state of a training has its config
        recorded = describe_of_checkpoint(read_checkpoint(files.weights))
    recorded = recorded or {"arguments": {}}
    if recorded.get("target") is not None:
        _compare(str(settings_path(files.weights)), {_NETWORK: own_class(recorded)}, {_NETWORK: network}, weights.path)
    arguments = {name: _as_argument(value) for name, value in recorded["arguments"].items() if name in known}
    for place, content in described.items():
        unknown = sorted(set(content) - set(known) - {_NETWORK, _SETTINGS})
        if unknown and _NETWORK in content:
            raise ValueError(f"{place}: expected the arguments {', '.join(known)} of {network}, found {unknown}")
        _compare(place, content, {name: arguments[name] for name in arguments if name not in shape}, weights.path)
        arguments |= {name: _as_argument(value) for name, value in content.items() if name in known}
        settings = settings or dict(content.get(_SETTINGS, {}))
    return NetworkConfig(network, shape, arguments | shape, settings)


def _described(files: PretrainedFiles, weights: WeightFile) -> dict[str, dict[str, Any]]:
    """Read the configs next to the weights and in their header, by where they are."""
    texts: dict[str, str] = {}
    if files.config is not None:
        try:
            texts[str(files.config)] = files.config.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{files.config}: expected a JSON object in UTF-8, found {error}") from error
    if HEADER in weights.metadata:
        texts[f"{files.weights}, header"] = weights.metadata[HEADER]
    described: dict[str, dict[str, Any]] = {}
    for place, text in texts.items():
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: expected a JSON object, found {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get(_SETTINGS, {}), dict):
            raise ValueError(f"{place}: expected a JSON object, found {type(content).__name__} of another form")
        described[place] = content
    if len(described) == 2:
        (one, first), (two, second) = described.items()
        _compare(one, first, second, Path(two))
    return described


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give what stays true of the settings of weights once their head is fresh, or their input is adapted.

    Args:
        settings: those that the weights were trained with.

    Returns:
        The preprocessing; of the task its modality alone, for its labels and channels are those of the old network.

    Example:
        >>> kept_settings({"spacing": None, "classes": [0, 1], "task_facts": {"modality": "MR", "out_channels": 3}})
        {'spacing': None, 'task_facts': {'modality': 'MR'}}
    """
    kept = {name: settings[name] for name in PREPROCESSING if name in settings}
    if isinstance(kept.get("task_facts"), Mapping):
        kept["task_facts"] = {name: value for name, value in kept["task_facts"].items() if name == "modality"}
    return kept


def _of_the_network(settings: Any) -> dict[str, Any]:
    """Give the settings of a training as its network has them: slices along several axes are its channels."""
    if not isinstance(settings, Mapping):
        return {}
    channels, axes = settings.get("in_channels"), settings.get("slice_axes")
    if isinstance(channels, int) and isinstance(axes, list):
        return {**settings, "in_channels": channels * len(axes)}
    return dict(settings)


def _compare(place: str, content: Mapping[str, Any], truth: Mapping[str, Any], weights: Path) -> None:
    """Refuse a description that differs from the weights."""
    for name, value in truth.items():
        if name in content and content[name] is not None and _as_argument(content[name]) != _as_argument(value):
            raise ValueError(f"{place}: {name} is {content[name]}, but {weights} has {value}")


def _as_argument(value: Any) -> Any:
    """Give lists as the tuples that they were."""
    return tuple(_as_argument(each) for each in value) if isinstance(value, list | tuple) else value
