# SPDX-License-Identifier: Apache-2.0
"""The network that weights were trained in, as ``model.json`` has it: its class, and what its tensors do not show."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser
from torch import nn

__all__ = [
    "CHANNELS",
    "NETWORK_DEF",
    "SHAPES",
    "describe_network",
    "describe_network_def",
    "describe_of_checkpoint",
    "differing_arguments",
    "own_class",
    "rare_arguments",
]

NETWORK_DEF = "network_def"
"""Entry of the settings in ``model.json``; files from before there was one lack it."""

SHAPES = ("spatial_dims", "in_channels", "out_channels", "num_classes", "features", "hidden_channels")
"""Arguments of our networks that the shapes of their tensors tell."""

CHANNELS = (*SHAPES, "input_channels", "n_input_channels", "n_classes", "img_size", "spatial_size")
"""Arguments that are others where a network of the same kind gets another task."""

_SAME_NUMBERS = ("use_checkpointing", "use_checkpoint", "dropout", "dropout_prob", "dropout_rate")
"""Arguments without an effect on what a trained network predicts."""

_OURS = ".".join(("models_genesis", "networks"))  # also in a packed bundle, whose code is renamed where it says this
_PACKAGE = __name__.rpartition(".")[0]

Description = dict[str, Any]
"""``"target"``, the dotted name of a class, and ``"arguments"``, by name, as JSON has them."""


def describe_network(network: nn.Module) -> Description | None:
    """Describe one of our networks by itself.

    Args:
        network: any network; what is around it, as ``DistributedDataParallel``, does not matter.

    Returns:
        The description, None for a network that is not ours.
    """
    network = getattr(network, "module", network)
    own = _own_name(type(network))
    architecture = getattr(network, "architecture", None)
    return None if own is None or architecture is None else {"target": own, "arguments": _plain(architecture)}


def describe_network_def(parser: ConfigParser, key: str = NETWORK_DEF) -> Description | None:
    """Describe the network that a config builds, without building it.

    Args:
        parser: the config.
        key: of the network.

    Returns:
        The description; None where the config has no class with arguments there, as for a TorchScript.
    """
    written: Any = parser.get(key)
    if not isinstance(written, Mapping) or "_target_" not in written:
        return None
    names = [name for name in written if name not in ConfigComponent.non_arg_keys]
    target = ConfigComponent(dict(written)).resolve_module_name()
    found = locate(target) if isinstance(target, str) else target
    if found is not None and not (isinstance(found, type) and issubclass(found, nn.Module)):
        return None
    if isinstance(found, type):
        target = _own_name(found) or (target if isinstance(target, str) else _dotted(found))
    arguments = {name: _plain(parser.get_parsed_content(f"{key}#{name}")) for name in names}
    return {"target": target, "arguments": arguments}


def describe_of_checkpoint(content: Any) -> Description | None:
    """Describe one of our networks by the state of its training, such as ``last_epoch.pt``.

    Args:
        content: of the file. Of its config only plain values are taken; nothing in it is evaluated.

    Returns:
        The description; None for other files, and for a network that is not ours.

    Example:
        >>> written = {"_target_": "models_genesis.networks.GenesisUNet", "features": "@features", "act": "elu"}
        >>> describe_of_checkpoint({"settings": {"network_def": written}})["arguments"]
        {'act': 'elu'}
    """
    settings = content.get("settings") if isinstance(content, Mapping) else None
    written = settings.get(NETWORK_DEF) if isinstance(settings, Mapping) else None
    target = written.get("_target_") if isinstance(written, Mapping) else None
    package, _, name = str(target).rpartition(".")
    if not isinstance(written, Mapping) or package not in (_OURS, "scripts.networks"):
        return None
    plain = {key: value for key, value in written.items() if not str(value).startswith(("$", "@", "%"))}
    arguments = {key: _plain(value) for key, value in plain.items() if key not in ConfigComponent.non_arg_keys}
    return {"target": f"{_OURS}.{name}", "arguments": arguments}


def differing_arguments(
    recorded: Mapping[str, Any], given: Mapping[str, Any], left_out: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Compare two descriptions, what they leave out being the default of the class.

    Args:
        recorded: of the weights.
        given: of now.
        left_out: arguments that are not compared; of our networks those of :data:`SHAPES` never are.

    Returns:
        Both values of each argument that differs and on which predictions depend, or of ``_target_`` alone.

    Example:
        >>> target = "models_genesis.networks.GenesisUNet"
        >>> elu = {"target": target, "arguments": {"act": "elu", "norm": "batch"}}
        >>> differing_arguments(elu, {"target": target, "arguments": {"features": [4, 8]}})
        {'act': ('elu', 'relu')}
    """
    if not _same_class(recorded["target"], given["target"]):
        return {"_target_": (recorded["target"], given["target"])}
    ours = own_class(recorded) is not None
    defaults = _defaults(recorded["target"])
    left = {*_SAME_NUMBERS, *left_out, *(SHAPES if ours else ())}
    one, two = ({**defaults, **_plain(each["arguments"])} for each in (recorded, given))
    names = [name for name in {**recorded["arguments"], **given["arguments"]} if name not in left]
    names = [name for name in names if not ours or name in defaults]
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def own_class(described: Mapping[str, Any]) -> str | None:
    """Tell which of our networks a description is of, None for another."""
    module, _, name = str(described.get("target")).rpartition(".")
    return name if module == _OURS else None


def rare_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a config has to be told, besides its keys, to build the network of weights.

    Args:
        settings: those of the weights.

    Returns:
        Arguments that are not the default, by nested id; empty for a network that is not ours.

    Example:
        >>> described = {"target": "models_genesis.networks.GenesisUNet", "arguments": {"act": "elu", "norm": "batch"}}
        >>> rare_arguments({"network_def": described})
        {'network_def#act': 'elu'}
    """
    described = settings.get(NETWORK_DEF)
    if described is None or own_class(described) is None:
        return {}
    changed = differing_arguments(described, {"target": described["target"], "arguments": {}})
    return {f"{NETWORK_DEF}#{name}": value for name, (value, _) in changed.items()}


def _same_class(one: str, two: str) -> bool:
    """Tell whether two dotted names are of one class, which a package may export at several places."""
    return one == two or (isinstance(found := locate(one), type) and found is locate(two))


def _defaults(target: str) -> dict[str, Any]:
    """Give the defaults of a class's arguments; none where it cannot be found here."""
    found = locate(target.replace(_OURS, _PACKAGE, 1) if target.startswith(f"{_OURS}.") else target)
    if not isinstance(found, type):
        return {}
    parameters = inspect.signature(found.__init__).parameters.values()  # type: ignore[misc]
    return {each.name: _plain(each.default) for each in parameters if each.default is not each.empty}


def _own_name(network: type) -> str | None:
    """Give the public name of one of our networks, whatever the package is called; None for another."""
    return f"{_OURS}.{network.__name__}" if network.__module__.startswith(f"{_PACKAGE}.") else None


def _dotted(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _plain(value: Any) -> Any:
    """Write an argument as JSON has it, a class or function by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return json.loads(json.dumps(value))
    return _dotted(value) if hasattr(value, "__qualname__") else f"<{type(value).__name__}>"
