# SPDX-License-Identifier: Apache-2.0
"""Evaluation and inference over many cases, of which a broken one does not stop the others."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import string_list_all_gather

from ...datasets.io.root_cause import root_cause
from ...datasets.loading.case_dataset import CASE_KEY, ERROR_KEY

__all__ = ["CaseEvaluator", "CasesFailedError"]

logger = logging.getLogger(__name__)


class CasesFailedError(RuntimeError):
    """Some cases failed; all others were finished."""


class CaseEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` for whole cases, one a batch, from a ``CaseDataset``.

    Whatever fails for one case, in loading, in the network or in saving, is logged with its name, and the next case
    is done. ``engine.state.output`` is an empty list then, which handlers pass over. After the last case :meth:`run`
    logs a summary, and raises where cases failed, so that the process does not exit with 0.

    Args:
        args: those of ``SupervisedEvaluator``.
        kwargs: those of ``SupervisedEvaluator``.

    Attributes:
        failed: message by name of the cases that failed.
        finished: number of the cases that did not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed: dict[str, str] = {}
        self.finished = 0
        self.add_event_handler(Events.STARTED, self._begin)

    def _begin(self, engine: Engine) -> None:
        self.failed, self.finished = {}, 0

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        name = str(batchdata[CASE_KEY][0])
        error = batchdata[ERROR_KEY][0] if ERROR_KEY in batchdata else None
        if error is None:
            try:
                output = super()._iteration(engine, batchdata)
                self.finished += 1
                return output
            except Exception as failure:
                logger.debug("%s", name, exc_info=True)
                cause = root_cause(failure)
                text = str(cause).strip()
                error = f"{type(cause).__name__}: {text.splitlines()[0] if text else 'no message'}"
        error = error if name in error else f"{name}: {error}"
        logger.error("failed: %s", error)
        self.failed[name] = error
        return []

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Do all cases.

        Args:
            args: those of ``SupervisedEvaluator.run``.
            kwargs: those of ``SupervisedEvaluator.run``.

        Raises:
            CasesFailedError: after the last case, when any failed; in each process of several, with all names.
        """
        super().run(*args, **kwargs)
        # of several processes, one without failures gives an empty text
        messages = [message for message in string_list_all_gather(list(self.failed.values())) if message]
        total = self.finished + len(self.failed)
        logger.info("%d of %d cases done%s", self.finished, total, "" if not messages else ", failed:")
        for message in messages:
            logger.error("  %s", message)
        if messages:
            raise CasesFailedError(f"{len(messages)} cases failed, all others are done:\n  " + "\n  ".join(messages))
