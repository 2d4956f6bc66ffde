# SPDX-License-Identifier: Apache-2.0
"""A function of many items on a Ray cluster, as tasks of one processor core each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from .location import import_extra

__all__ = ["map_on_ray"]

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED_PER_CORE = 4
"""Tasks that are handed to Ray ahead of each core, so that none waits; all at once would be slow to keep watch of."""

SECONDS_TO_ANSWER = 10
"""How long a cluster's address may take to answer."""


def map_on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    address: str = "auto",
    tasks: int | None = None,
    progress: bool = True,
    label: str | None = None,
) -> list[Result]:
    """Apply a function to items on the cores of a Ray cluster that is running already.

    A task whose process or machine dies is run again elsewhere, three times as is Ray's default, so the function must
    give the same when it is called twice. Its module, with what it imports, must be installed on all machines.

    Args:
        function: what to apply; it is pickled once.
        items: what to apply it to.
        address: of the cluster, as for ``ray.init``: ``"auto"`` finds one on this machine, or by ``RAY_ADDRESS``.
        tasks: how many may run at once; None for as many as the cluster has cores.
        progress: whether to show a progress bar.
        label: name of the bar.

    Returns:
        The results, in the order of the items.

    Raises:
        ModuleNotFoundError: When Ray is missing.
        ConnectionError: When no cluster is found at the address.
        OSError: When a task's process died each time.
        Exception: What the function raises, as Ray's subclass of its type.
    """
    ray = import_extra("ray", "ray")
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address)
    try:
        return _map(ray, function, items, tasks, tqdm(total=len(items), desc=label, disable=not progress))
    except ray.exceptions.RayTaskError:
        raise  # of the function
    except ray.exceptions.RayError as error:
        raise OSError(
            "a task on the Ray cluster was killed again and again, perhaps for want of memory; what is done is kept:"
            f" run the same command again ({type(error).__name__}: {error})"
        ) from error
    finally:
        if begun:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster; Ray itself waits without end for a server that is not there."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray's client, ray://, asks by itself
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
        ray.init(address=address, log_to_driver=False)
    except OSError as error:
        raise ConnectionError(
            f"expected a Ray cluster at {address!r}, found none; `ray start --head` starts one: {error}"
        ) from error


def _map(ray: Any, function: Callable, items: Sequence, tasks: int | None, bar: tqdm) -> list:
    remote = ray.remote(num_cpus=1)(_call)
    shared = ray.put(function)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    at_once = tasks or cores * QUEUED_PER_CORE
    results: dict[int, Any] = {}
    pending: dict[Any, int] = {}
    waiting = iter(enumerate(items))
    with bar:
        while True:
            while len(pending) < at_once and (following := next(waiting, None)):
                number, item = following
                pending[remote.remote(shared, item)] = number
            if not pending:
                return [results[number] for number in range(len(items))]
            for done in ray.wait(list(pending))[0]:
                results[pending.pop(done)] = ray.get(done)
                bar.update()


def _call(function: Callable, item: Any) -> Any:
    return function(item)
