# SPDX-License-Identifier: Apache-2.0
"""A progress bar for runs of one or of several processes."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from ignite.handlers import ProgressBar

from ...datasets.loading.processes import process_rank

__all__ = ["RunProgressBar"]


class RunProgressBar(ProgressBar):
    """ignite's ``ProgressBar`` on a terminal, of the first process alone.

    Args:
        desc: what is going on.
    """

    def __init__(self, desc: str) -> None:
        super().__init__(desc=desc, disable=None)

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Attach to an engine, without effect in other processes.

        Args:
            engine: trainer or evaluator.
            args: see ``ProgressBar``.
            kwargs: see ``ProgressBar``.
        """
        if process_rank() == 0:
            super().attach(engine, *args, **kwargs)
