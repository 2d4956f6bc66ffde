# SPDX-License-Identifier: Apache-2.0
"""How the scans of a store were prepared, in words that can be compared with what a training asks for."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import LoadImaged
from torch import Tensor

from .describe import describe, is_function

__all__ = ["Settings", "differences", "fingerprint", "settings_of_steps"]

Settings = dict[str, Any]
"""Values by step and attribute."""


def settings_of_steps(steps: Sequence[Any]) -> Settings:
    """List the settings of transforms by their class and attributes, as JSON has them.

    The module of a class is left out, for a packed bundle has its own; so is what a transform keeps for itself, such as
    random states. Of the step that loads a file, the reader that is tried first and the type count.

    Args:
        steps: transforms of dictionaries.

    Returns:
        Values by names such as ``"2 Orientationd.ornt_transform.axcodes"``.

    Example:
        >>> from monai.transforms import Flipd
        >>> settings_of_steps([Flipd("image", 1)])["1 Flipd.flipper.spatial_axis"]
        1.0
    """
    settings: Settings = {}
    for number, step in enumerate(steps, 1):
        name = f"{number} {type(step).__name__}"
        if isinstance(step, LoadImaged):
            loader = step._loader
            settings |= {
                f"{name}.keys": list(step.keys),
                f"{name}.reader": type(loader.readers[-1]).__name__,
                f"{name}.dtype": None if loader.dtype is None else np.dtype(loader.dtype).name,
            }
        else:
            _gather(step, name, settings)
    return settings


def _gather(thing: Any, name: str, settings: Settings) -> None:
    if thing is None or isinstance(thing, bool | int | float | str):
        # 1000 and 1000.0 are one setting
        settings[name] = float(thing) if isinstance(thing, int) and not isinstance(thing, bool) else thing
    elif isinstance(thing, np.ndarray | np.generic | Tensor):
        settings[name] = thing.tolist()
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _gather(value, f"{name}.{key}", settings)
    elif isinstance(thing, list | tuple):
        if all(isinstance(each, bool | int | float | str | None) for each in thing):
            settings[name] = [float(each) if type(each) is int else each for each in thing]
        else:
            for number, each in enumerate(thing):
                _gather(each, f"{name}.{number}", settings)
    elif isinstance(thing, enum.Enum):
        settings[name] = f"{type(thing).__name__}.{thing.name}"
    elif isinstance(thing, functools.partial):
        settings[name] = "partial"
        _gather({"func": thing.func, "args": list(thing.args), "keywords": thing.keywords}, name, settings)
    elif isinstance(thing, type):
        settings[name] = thing.__qualname__
    elif is_function(thing):
        settings[name] = getattr(thing, "__qualname__", thing.__name__)
        settings[f"{name}.code"] = fingerprint(describe(thing, False, name))
    elif not hasattr(thing, "__dict__"):
        settings[name] = describe(thing, False, name)
    else:
        settings[name] = type(thing).__name__
        for key, value in vars(thing).items():
            if key != "R" and not key.startswith("_") and not isinstance(value, threading.local):
                _gather(value, f"{name}.{key}", settings)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in one line what differs; an empty text where nothing does.

    Example:
        >>> differences({"1 Clip.high": 1000.0}, {"1 Clip.high": 600.0})
        '1 Clip.high: 1000.0 in the store, 600.0 wanted'
    """
    names = [*stored, *(name for name in wanted if name not in stored)]
    return "; ".join(
        f"{name}: {stored.get(name, '(none)')} in the store, {wanted.get(name, '(none)')} wanted"
        for name in names
        if stored.get(name, "(none)") != wanted.get(name, "(none)")
    )


def fingerprint(settings: Any) -> str:
    """Name settings by a few hexadecimal digits, the same in every process."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
