# SPDX-License-Identifier: Apache-2.0
"""The last states of a training: some are kept, so that a damaged one costs an epoch and not the training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...datasets.io.atomic_write import atomic_path
from ...networks.weight_container import DamagedFileError, named_tensors, non_finite, read_checkpoint

__all__ = [
    "check_room",
    "read_last_state",
    "read_whole_state",
    "state_before",
    "write_last_state",
]

logger = logging.getLogger(__name__)

ENTRIES = ("model", "optimizer", "lr_scheduler", "epoch", "iteration", "random_states")


def state_before(path: Path, number: int) -> Path:
    """Name the state that was written ``number`` times before.

    Example:
        >>> state_before(Path("last_epoch.pt"), 1).name
        'last_epoch_before_1.pt'
    """
    return path.with_name(f"{path.stem}_before_{number}{path.suffix}")


def write_last_state(path: Path, state: Mapping[str, Any], keep: int = 2) -> None:
    """Write a state, whole or not at all, and keep those before it.

    At any moment ``path`` is a whole file, the old one or the new one.

    Args:
        path: the file.
        state: what ``torch.save`` takes.
        keep: number of states to keep, this one included; older ones are removed.

    Raises:
        OSError: when the disk is full; the states that were there are as they were.
    """
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
        _shift(path, keep)
    number = max(keep, 1)
    while (old := state_before(path, number)).exists():
        old.unlink()
        number += 1


def _shift(path: Path, keep: int) -> None:
    """Move the states one further, the newest by a second name for the same content where the system has such."""
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        if (before := state_before(path, number - 1)).exists():
            os.replace(before, state_before(path, number))
    first = state_before(path, 1)
    first.unlink(missing_ok=True)
    try:
        os.link(path, first)
    except OSError:  # no such links on this file system; if it ends right here, the state is under its new name
        os.replace(path, first)


def read_last_state(path: Path, set_aside: bool = False) -> dict[str, Any]:
    """Read the newest state that is whole.

    Args:
        path: the file; where it is damaged or missing, those before it are tried, with a warning.
        set_aside: whether to rename damaged files to ``NAME.damaged`` where an older one is taken, so that none of them
            counts among the states that are kept.

    Returns:
        The state.

    Raises:
        FileNotFoundError: when there is none.
        DamagedFileError: when all are damaged, naming each with what is wrong.
    """
    candidates = [path, *_states_before(path)]
    existing = [candidate for candidate in candidates if candidate.is_file()]
    if not existing:
        raise FileNotFoundError(f"--resume needs {path}, and there is no such file")
    if existing[0] != path:
        logger.warning("%s is missing, expected next to %s", path, existing[0])
    faults: dict[Path, str] = {}
    for candidate in existing:
        try:
            state = _read(candidate)
        except ValueError as error:
            logger.warning("%s", error)
            faults[candidate] = str(error)
            continue
        for damaged in faults if set_aside else ():
            os.replace(damaged, damaged.with_name(f"{damaged.name}.damaged"))
        if candidate != path:
            logger.warning(
                "RESUMING FROM AN OLDER STATE: %s, %d epochs done, for %s is damaged or missing; the epochs after it "
                "are done again",
                candidate, state["epoch"], path,
            )  # fmt: skip
        return state
    raise DamagedFileError(
        "--resume found no state that is whole; train again, or from the best weights with --pretrained:\n  "
        + "\n  ".join(faults.values())
    )


def read_whole_state(path: Path, loss: str | None = None) -> dict[str, Any] | None:
    """Read one state, if it is there and whole.

    Args:
        path: the file.
        loss: what a warning says is lost where the file is damaged; None for no warning.

    Returns:
        The state; None where there is none, or it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return _read(path)
    except ValueError as error:
        if loss is not None:
            logger.warning("%s; %s", error, loss)
        return None


def _states_before(path: Path) -> list[Path]:
    found: list[Path] = []
    number = 1
    while len(found) < 100 and (before := state_before(path, number)).exists():
        found.append(before)
        number += 1
    return found


def _read(path: Path) -> dict[str, Any]:
    state = read_checkpoint(path)
    missing = [name for name in ENTRIES if name not in state] if isinstance(state, dict) else list(ENTRIES)
    if missing:
        raise DamagedFileError(f"{path} is damaged or no state of a training: expected the entries {missing}")
    for entry in ("model", "optimizer"):
        if wrong := non_finite(dict(named_tensors(state[entry], entry))):
            raise DamagedFileError(f"{path}: {wrong}, expected finite numbers")
    return state


def check_room(folder: Path, network: nn.Module, keep: int = 2) -> None:
    """Refuse to begin a training whose weights the disk has no room for.

    Args:
        folder: where they go.
        network: the network; with the two moments of Adam a state takes three times its size.
        keep: number of states that are kept.

    Raises:
        OSError: when less is free, with both numbers.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    # what is there from an earlier run is replaced, but only when the new file is whole
    existing = sum(file.stat().st_size for file in folder.glob("*.pt") if file.is_file())
    needed = max(weights * (2 + 3 * (keep + 2)) - existing, 4 * weights)  # one state is of the middle of an epoch
    status = os.statvfs(folder) if hasattr(os, "statvfs") else None
    if status is not None and status.f_bavail * status.f_frsize < needed:
        raise OSError(
            f"{folder}: expected {needed} bytes free for model.pt and the last {keep} states of the training, found "
            f"{status.f_bavail * status.f_frsize}; free some, or name another --ckpt_dir"
        )
