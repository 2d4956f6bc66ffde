# SPDX-License-Identifier: Apache-2.0
"""``monai.bundle.load``: which weights it is loading, and that its network is theirs."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import load
from monai.bundle.scripts import _export
from torch import Tensor, nn

from .network_def import NETWORK_DEF, describe_network, describe_of_checkpoint, differing_arguments
from .weight_names import RESIZED
from .weight_settings import ModelSettingsError, settings_of_weights, settings_path

__all__ = ["refuse_partial_load", "weights_of_load"]

logger = logging.getLogger(__name__)


def weights_of_load() -> Path | None:
    """Find the weights that ``monai.bundle.load`` is loading: it runs a config that knows nothing of where it lies.

    Returns:
        The file; None where the caller was reached without ``load``.
    """
    frame = _frame_of_load()
    return None if frame is None else Path(frame.f_locals["full_path"])


def refuse_partial_load(module: nn.Module, _: MutableMapping[str, Any], prefix: str, *__: Any) -> None:
    """Refuse what ``monai.bundle.load`` leaves random without a word: a hook of ``load_state_dict``.

    ``load`` copies the tensors that have the name and the shape of one of the network's, and passes over all others. A
    network that the bundle's config has built gets all of its tensors, but for those that ``net_override`` resizes,
    and has the activation and norm that ``model.json`` tells, as has what ``ckpt_export`` exports. With a network of
    the caller's own, or ``copy_model_args``, what is left over is named in a warning.

    Args:
        module: the network.
        prefix: what the names of the network's own tensors begin with; empty for the network that is loaded.

    Raises:
        ModelSettingsError: tensors of the file or of the network are left over.
    """
    exporting = None if prefix else _frame_of(_export, "ckpt_file")
    if exporting is not None and exporting.f_locals.get("net") is module:
        _refuse_other_arguments(module, Path(exporting.f_locals["ckpt_file"]))
    frame = None if prefix else _frame_of_load()
    if frame is None or frame.f_locals.get("model") is not module:
        return
    given = frame.f_locals
    found, own = _shapes(given["model_dict"], given["key_in_ckpt"]), _shapes(module.state_dict())
    resized = tuple(start for name in given["net_override"] for start in RESIZED.get(name, ()))
    left = [name for name in {**own, **found} if own.get(name) != found.get(name) and not name.startswith(resized)]
    weights = Path(given["full_path"])
    if not left:
        _refuse_other_arguments(module, weights, given["net_override"], given["model_dict"])
        return
    message = (
        f"{weights}: expected all {len(own)} tensors of the bundle's {type(module).__name__}, found "
        f"{sum(own.get(name) == shape for name, shape in found.items())}; left over are {', '.join(left[:5])}"
    )
    if given["_workflow"] is None or given["copy_model_args"]:
        logger.warning(message)
        return
    raise ModelSettingsError(
        f"{message}. Keep {settings_path(weights).name} next to the weights, name the entry of a checkpoint with "
        f"key_in_ckpt, give what differs with net_override, or take {type(module).__name__}.from_pretrained"
    )


def _refuse_other_arguments(
    network: nn.Module, weights: Path, overrides: Collection[str] = (), content: Any = None
) -> None:
    """Compare what tensors do not show, such as the activation, with what ``model.json`` tells of the training."""
    recorded = settings_of_weights(weights).get(NETWORK_DEF) or describe_of_checkpoint(content)
    now = describe_network(network)
    if recorded is None or now is None:
        return
    differing = {name: pair for name, pair in differing_arguments(recorded, now).items() if name not in overrides}
    if differing:
        wanted = {name: before for name, (before, _) in differing.items()}
        raise ModelSettingsError(
            f"{weights}: expected the network that was trained, with {wanted}, found the config's, with "
            f"{ {name: value for name, (_, value) in differing.items()} }: give it as in training (net_override of "
            f"monai.bundle.load, --{NETWORK_DEF}#{next(iter(wanted))} of ckpt_export), or take "
            f"{type(network).__name__}.from_pretrained"
        )


def _shapes(content: Any, entry: str | None = None) -> dict[str, tuple[int, ...]]:
    """List the tensors of what was read by name."""
    tensors = content if entry is None else content[entry]
    if not isinstance(tensors, Mapping):
        return {}
    return {str(name): tuple(value.shape) for name, value in tensors.items() if isinstance(value, Tensor)}


def _frame_of_load() -> FrameType | None:
    """Find ``load`` in the call stack, with the weights that it has found."""
    return _frame_of(load, "full_path")


def _frame_of(function: Callable[..., Any], known: str) -> FrameType | None:
    """Find a function in the call stack, once it has a local variable."""
    code = inspect.unwrap(function).__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code and known in frame.f_locals:
            return frame
        frame = frame.f_back
    return None
