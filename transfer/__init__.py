# SPDX-License-Identifier: Apache-2.0
"""Transfer studies: whether pretraining helps, run by a bundle's own configs and told with intervals and tests."""

from .clock import STARTED
from .permuted import permute_weights
from .runner import Options, Outcome, Runner
from .slices import KeepSlices
from .study import Study, StudyError, load_study

__all__ = [
    "STARTED",
    "KeepSlices",
    "Options",
    "Outcome",
    "Runner",
    "Study",
    "StudyError",
    "load_study",
    "permute_weights",
]
