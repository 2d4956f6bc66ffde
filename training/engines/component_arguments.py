# SPDX-License-Identifier: Apache-2.0
"""What of a config holds a key, and which arguments a component of it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent

__all__ = ["holder", "takes_argument"]


def holder(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str] | None:
    """Find what holds a key, and what it is called there; None where no config and no component takes such a key.

    Args:
        config: content of a config, which holds its top-level keys itself.
        key: a top-level key, or the nested id of a component's argument.

    Example:
        >>> holder({"loss": {"_target_": "DiceLoss"}}, "loss#batch")
        ({'_target_': 'DiceLoss'}, 'batch')
    """
    if key in config:
        return config, key
    *parents, last = key.split("#")
    found: Any = config if parents else None
    for part in parents:
        found = found.get(part) if isinstance(found, dict) else None
    is_component = isinstance(found, dict) and "_target_" in found
    return (found, last) if is_component and takes_argument(found, last) else None


def takes_argument(component: Mapping[str, Any], name: str) -> bool:
    """Tell whether a component takes an argument, written in the config or not.

    Args:
        component: with ``_target_``.
        name: of the argument.

    Returns:
        Also True where the component cannot be found or takes any argument.

    Example:
        >>> takes_argument({"_target_": "DiceLoss"}, "batch"), takes_argument({"_target_": "DiceLoss"}, "batsh")
        (True, False)
    """
    if name in component:
        return True
    target = ConfigComponent(dict(component)).resolve_module_name()
    found = locate(target) if isinstance(target, str) else target
    if not callable(found):
        return True
    parameters = inspect.signature(found).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
