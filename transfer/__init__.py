# SPDX-License-Identifier: Apache-2.0
"""Transfer studies: whether pretraining helps, run by a bundle's own configs and told with intervals and tests."""

from .permuted import permute_weights
from .runner import Options, Outcome, Runner
from .slices import KeepSlices
from .study import Study, StudyError, load_study
