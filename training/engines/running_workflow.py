# SPDX-License-Identifier: Apache-2.0
"""The bundle workflow on whose behalf the code of a config runs."""

from __future__ import annotations

import sys

from monai.bundle import ConfigWorkflow

__all__ = ["running_workflow"]


def running_workflow() -> ConfigWorkflow | None:
    """Find the workflow that is evaluating an expression or a component of its config.

    MONAI tells the code that a config names nothing of the config, so the call stack is where it can be found.

    Returns:
        The innermost workflow; None where the caller was reached without one.
    """
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, ConfigWorkflow):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None
