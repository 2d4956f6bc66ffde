# SPDX-License-Identifier: Apache-2.0
"""Evaluation and inference over a stream of candidates, of which some turn out to be bad on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray

from ...datasets.candidates.split import CandidateSet
from ...datasets.candidates.table import REASONS

__all__ = ["CandidateEvaluator", "CandidatesNotScoredError", "rows_not_scored"]

logger = logging.getLogger(__name__)


class CandidatesNotScoredError(RuntimeError):
    """Some candidates could not be scored; all others were."""


class CandidateEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` for a ``CandidateStream``, which may end before its length says.

    A candidate outside its scan, or a scan that cannot be read, is noticed when the scan is opened. ignite would start
    the stream again to fill up the number of batches it was promised, and score candidates twice; here the end of the
    stream is the end of the epoch.

    Args:
        args: those of ``SupervisedEvaluator``.
        candidates: whose bad rows are an error in the end, so that the process does not exit with 0; None for none.
        whole_table: whether rows of no scan are an error too, see :func:`rows_not_scored`.
        kwargs: those of ``SupervisedEvaluator``.
    """

    def __init__(
        self, *args: Any, candidates: CandidateSet | None = None, whole_table: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.candidates = candidates
        self.whole_table = whole_table
        if self.data_loader is not None:
            self.data_loader = _Batches(self.data_loader)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Score all candidates.

        Args:
            args: those of ``SupervisedEvaluator.run``.
            kwargs: those of ``SupervisedEvaluator.run``.

        Raises:
            CandidatesNotScoredError: after the last candidate, when any of ``candidates`` could not be scored.
        """
        self.state.epoch_length = None
        super().run(*args, **kwargs)
        if self.candidates is None:
            return
        table = self.candidates.table
        if len(rows := rows_not_scored(self.candidates, self.whole_table)):
            raise CandidatesNotScoredError(
                f"{len(rows)} candidates could not be scored, all others are done.\n{table.summary(names=10)}"
            )


class _Batches:
    """Batches without a length."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    @property
    def dataset(self) -> Any:
        """What the batches are of: the run settings and the birth certificate name its scans."""
        return getattr(self.batches, "dataset", None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def rows_not_scored(data: CandidateSet, whole_table: bool = False) -> NDArray[np.int64]:
    """List the bad rows that have no score; a duplicate has its first row's.

    Args:
        data: scans and candidates, after the stream has gone through them.
        whole_table: whether to list rows of no scan of the split too: those that are malformed, or name a series that
            is unknown or left out.

    Returns:
        Rows of the table.
    """
    table = data.table
    duplicate = table.reason == REASONS.index("duplicate")
    bad = (table.reason > 0) & ~duplicate
    bad[duplicate] = bad[table.duplicate_of[duplicate]]
    return np.flatnonzero(bad if whole_table else bad & (data.scan >= 0))
