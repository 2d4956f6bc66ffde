# SPDX-License-Identifier: Apache-2.0
"""A loader that prepares the next batch in a thread while the network works on this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

from monai.data import DataLoader, ThreadDataLoader
from monai.data.thread_buffer import buffer_iterator
from monai.data.utils import worker_init_fn

from .worker_shield import hold_sigterm

__all__ = ["PrefetchDataLoader"]


class PrefetchDataLoader(ThreadDataLoader):
    """MONAI's ``ThreadDataLoader``, but an error in the thread ends the training instead of the epoch.

    MONAI's thread prints the error and stops: the epoch looks as if its data had come to an end, and training goes on.
    Arguments are those of ``monai.data.ThreadDataLoader``. Worker processes of a data set that reads a store, which
    says so by ``forkable``, are not forked; they take some seconds longer to start.

    Example:
        >>> [batch.tolist() for batch in PrefetchDataLoader([1, 2, 3], batch_size=2)]
        [[1, 2], [3]]
    """

    def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("num_workers") and not getattr(dataset, "forkable", True):
            context = multiprocessing.get_context("forkserver")
            # the server imports once, and its workers, which are forked from it, share the memory of that
            context.set_forkserver_preload(["__main__", type(dataset).__module__])
            kwargs.setdefault("multiprocessing_context", context)
            kwargs.setdefault("worker_init_fn", _init_worker)
        super().__init__(dataset, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # as MONAI, a generator
        """Go through the batches of an epoch.

        Raises:
            Exception: what the dataset raised.
        """
        source = _errors_as_items(DataLoader.__iter__(self))
        for batch in buffer_iterator(source, self.buffer_size, self.buffer_timeout, self.repeats):
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch


def _init_worker(number: int) -> None:
    """What MONAI does, and what forked workers of a training inherit."""
    worker_init_fn(number)
    hold_sigterm()


class _Failure:
    """An error on its way out of the thread."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _errors_as_items(source: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from source
    except Exception as error:
        yield _Failure(error)
