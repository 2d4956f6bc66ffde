# SPDX-License-Identifier: Apache-2.0
"""Choice between the compiled kernels (numba) and the vectorised numpy path."""

from __future__ import annotations

import importlib
import logging
from functools import cache

__all__ = ["BACKENDS", "resolve_backend"]

BACKENDS = ("auto", "numba", "numpy")

logger = logging.getLogger(__name__)


@cache
def _numba_error() -> str | None:
    """Why the kernels cannot be had, or None where they can; said once in the log."""
    try:
        importlib.import_module(".kernels", __package__)
    except ImportError as error:  # numba raises it too when it does not know the numpy at hand
        logger.info("numba is not available (%s): the deformations run on their slower numpy path", error)
        return str(error)
    return None


def resolve_backend(backend: str = "auto") -> str:
    """Name the code path that will run.

    Both paths draw from the same distributions, but not the same numbers: for one seed they give different results.

    Args:
        backend: ``"numba"`` (compiled loops), ``"numpy"`` (vectorised, several times slower), or ``"auto"``: numba
            where it can be imported, else numpy, which is logged once.

    Returns:
        ``"numba"`` or ``"numpy"``.

    Raises:
        ValueError: for another name.
        ImportError: for ``"numba"`` where numba cannot be imported.

    Example:
        >>> resolve_backend("numpy")
        'numpy'
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, found {backend!r}")
    if backend == "numpy":
        return "numpy"
    error = _numba_error()
    if error is None:
        return "numba"
    if backend == "numba":
        raise ImportError(f"backend: 'numba' was requested, but it cannot be imported: {error}")
    return "numpy"
