# SPDX-License-Identifier: Apache-2.0
"""The error at the bottom of a chain: MONAI's transforms wrap what went wrong in errors that do not say it."""

from __future__ import annotations

__all__ = ["root_cause"]


def root_cause(error: BaseException, *stop_at: type[BaseException]) -> BaseException:
    """Follow a chain of errors to its first cause.

    Args:
        error: the last error of the chain.
        stop_at: errors that say all there is to say; the first of them is taken, whatever it was caused by.

    Returns:
        The cause, the error itself where it has none.

    Example:
        >>> last, first = RuntimeError("applying transform"), FileNotFoundError("ct.nii.gz")
        >>> last.__cause__ = first
        >>> root_cause(last)
        FileNotFoundError('ct.nii.gz')
    """
    while error.__cause__ is not None and not isinstance(error, stop_at):
        error = error.__cause__
    return error
