# SPDX-License-Identifier: Apache-2.0
"""Tensor names without what wrappers and training frameworks put in front of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, MutableMapping
from typing import Any

from torch import nn

__all__ = ["RESIZED", "accept_prefixes", "bare_names", "names_in_file"]

RESIZED = {
    "in_channels": ("encoder.levels.0.conv1.weight",),
    "out_channels": ("head.",),
    "num_classes": ("classes.",),
    "hidden_channels": ("hidden.", "classes."),
}
"""What the names of tensors begin with that have another shape with another value of a network's argument."""

_WRAPPER = "module."  # DistributedDataParallel and DataParallel
_COMPILED = "_orig_mod"  # torch.compile
_ATTRIBUTES = ("network.", "model.", "net.")  # what a training module that holds the network calls it


def bare_names(names: Iterable[str]) -> list[str]:
    """Remove what DistributedDataParallel, DataParallel and ``torch.compile`` put into tensor names.

    Args:
        names: all names of one state dict; ``module.`` goes only where every name begins with it.

    Returns:
        The bare names, in the same order.

    Example:
        >>> bare_names(["module._orig_mod.head.weight", "module._orig_mod.head.bias"])
        ['head.weight', 'head.bias']
    """
    return _without_prefixes([_without_compiled(name) for name in names], (_WRAPPER,))


def names_in_file(names: Iterable[str], own: Collection[str] = ()) -> list[str]:
    """Remove what was around the network when its weights were saved: wrappers, and the module that trained it.

    ``module.``, ``network.``, ``model.`` and ``net.`` go in any nesting, each only where every name begins with it.

    Args:
        names: all names of one weight file.
        own: bare names of the network that takes the weights; a prefix that these have themselves stays.

    Returns:
        The bare names, in the same order.

    Raises:
        ValueError: two tensors have one name but for prefixes, so that it is open which of them is meant.

    Example:
        >>> names_in_file(["network.module._orig_mod.head.weight", "network.module._orig_mod.head.bias"])
        ['head.weight', 'head.bias']
        >>> names_in_file(["net.0.weight", "net.0.bias"], own=["net.0.weight", "net.0.bias", "head.weight"])
        ['net.0.weight', 'net.0.bias']
    """
    prefixes = tuple(prefix for prefix in (_WRAPPER, *_ATTRIBUTES) if not any(name.startswith(prefix) for name in own))
    compiled = [_without_compiled(name) for name in names]
    counts = Counter(_without_own_prefixes(name, prefixes) for name in compiled)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ValueError(f"several tensors of one name without wrappers, expected one: {twice[:5]}")
    return _without_prefixes(compiled, prefixes)


def accept_prefixes(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Rename what is loaded where all names are those of the network but for prefixes: a hook of ``load_state_dict``.

    Programs that bring weights to a network by themselves, as MONAI Label does, meet it too.

    Args:
        module: the network.
        state_dict: what is loaded; changed in place, it is PyTorch's own copy.
        prefix: what the names of the network's own tensors begin with; empty for the network that is loaded.

    Raises:
        ValueError: see :func:`names_in_file`.
    """
    own = module.state_dict().keys()
    if prefix or any(name in own for name in state_dict):
        return
    renamed = dict(zip(names_in_file(state_dict, own), state_dict.values(), strict=True))
    if renamed.keys() & own:
        state_dict.clear()
        state_dict.update(renamed)


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _without_prefixes(names: list[str], prefixes: Collection[str]) -> list[str]:
    """Remove prefixes that all names have."""
    while names and (common := next((p for p in prefixes if all(name.startswith(p) for name in names)), None)):
        names = [name.removeprefix(common) for name in names]
    return names


def _without_own_prefixes(name: str, prefixes: Collection[str]) -> str:
    """Remove the prefixes of one name."""
    while common := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(common)
    return name
