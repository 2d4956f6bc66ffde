# SPDX-License-Identifier: Apache-2.0
"""Which arguments a component of a config takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent

__all__ = ["takes_argument"]


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
