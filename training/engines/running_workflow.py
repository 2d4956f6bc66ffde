# SPDX-License-Identifier: Apache-2.0
"""The bundle workflow, or the config alone, on whose behalf the code of a config runs."""

from __future__ import annotations

import sys
from typing import TypeVar

from monai.bundle import ConfigParser, ConfigWorkflow

__all__ = ["running_parser", "running_workflow"]

T = TypeVar("T")


def running_workflow() -> ConfigWorkflow | None:
    """Find the workflow that is evaluating an expression or a component of its config.

    MONAI tells the code that a config names nothing of the config, so the call stack is where it can be found.

    Returns:
        The innermost workflow; None where the caller was reached without one.
    """
    return _innermost(ConfigWorkflow)


def running_parser() -> ConfigParser | None:
    """Find the config that is being evaluated, also where no workflow runs it, as in MONAI Label.

    Returns:
        The innermost; None where the caller was reached without one.
    """
    return _innermost(ConfigParser)


def _innermost(kind: type[T]) -> T | None:
    frame = sys._getframe(2)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None
