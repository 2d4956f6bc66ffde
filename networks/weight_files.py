# SPDX-License-Identifier: Apache-2.0
"""Reading and writing weight files: a dict of names and tensors in, the same out, whatever was wrapped around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .original_names import from_original_name

ENTRIES = ("state_dict", "model", "network")
EXPECTED = (
    f"expected a state dict, or a checkpoint with one under {', '.join(map(repr, ENTRIES))}, written by torch.save"
)


@dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    Args:
        path: the file.
        layout: in words, where in the file the tensors were and whose names they had.
        tensors: the tensors by name, wrappers' prefixes removed and the original's names translated to ours.
        original: whether the names were the original's.
        untranslated: names in a file of the original that the rule does not know; they are in ``tensors`` as they are.
    """

    path: Path
    layout: str
    tensors: dict[str, Tensor]
    original: bool = False
    untranslated: tuple[str, ...] = ()


def bare_names(names: Iterable[str]) -> list[str]:
    """Remove what DistributedDataParallel, DataParallel and ``torch.compile`` put into tensor names.

    Args:
        names: all names of one state dict; ``module.`` goes only where every name begins with it.

    Returns:
        The bare names, in the same order.

    Example:
        >>> bare_names(["module._orig_mod.head.weight", "module._orig_mod.head.bias"])
        ['head.weight', 'head.bias']
    """
    bare = [".".join(part for part in name.split(".") if part != "_orig_mod") for name in names]
    while bare and all(name.startswith("module.") for name in bare):
        bare = [name.removeprefix("module.") for name in bare]
    return bare


def _tensors(content: Any) -> dict[str, Tensor]:
    """Give the named tensors directly in ``content``, none where it is no dict."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _unpickle(path: Path, map_location: str | torch.device) -> Any:
    """Let torch read the file, without running code from it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; {EXPECTED}")
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist; {EXPECTED}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # bytes of any kind raise errors of any kind
        cause = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]
        raise ValueError(
            f"{path} cannot be read as weights: {EXPECTED}; found {path.stat().st_size} bytes that torch.load with "
            f"weights_only=True refuses ({cause}); it refuses pickled modules and TorchScript archives as well"
        ) from error


def _find_tensors(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Find the one set of weights in what was read, and say where it was."""
    found = {entry: _tensors(content[entry]) for entry in ENTRIES if isinstance(content, Mapping) and entry in content}
    found = {entry: tensors for entry, tensors in found.items() if tensors}
    if len(found) > 1:
        raise ValueError(
            f"{path} holds weights under {sorted(found)}: save the wanted ones alone, one set was expected"
        )
    for entry, tensors in found.items():
        return tensors, f"checkpoint, entry {entry!r}"
    tensors = _tensors(content)
    if not tensors:
        keys = f" with keys {[str(key) for key in content][:8]}" if isinstance(content, Mapping) else ""
        raise ValueError(f"{path} holds no weights: {EXPECTED}; found {type(content).__name__}{keys}")
    return tensors, "plain state dict"


def read_weights(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> WeightFile:
    """Read a state dict, a checkpoint that holds one, or the original's ``Genesis_Chest_CT.pt``.

    Args:
        path: the file, written by ``torch.save``; always opened with ``weights_only=True``.
        map_location: where the tensors go.

    Returns:
        The tensors by bare name, the original's names translated by :func:`from_original_name`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not readable as weights, no tensors in it, several sets of weights, or two tensors of one name.
    """
    path = Path(path)
    raw, layout = _find_tensors(path, _unpickle(path, map_location))
    names = bare_names(raw)
    ours = [from_original_name(name) for name in names]
    untranslated: tuple[str, ...] = ()
    original = any(name is not None for name in ours)
    if original:
        layout += ", the original Models Genesis names"
        untranslated = tuple(name for name, known in zip(names, ours, strict=True) if known is None)
        names = [known or name for name, known in zip(names, ours, strict=True)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path} holds several tensors of one name without wrappers, expected one: {twice[:5]}")
    return WeightFile(path, layout, dict(zip(names, raw.values(), strict=True)), original, untranslated)


def save_weights(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a plain state dict as a whole or not at all: to a temporary file beside ``path``, then renamed.

    Tensors are written from the CPU and under bare names (without the prefixes of DistributedDataParallel and
    ``torch.compile``), so the file fits the bare network on any machine.

    Args:
        state_dict: tensors by name, not empty.
        path: the file to write or replace; its folder is made where it is missing.

    Raises:
        ValueError: an empty ``state_dict``, or a value that is no tensor.
        OSError: the disk is full or the folder cannot be written; an older file at ``path`` is as it was.
    """
    path = Path(path)
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong or not state_dict:
        raise ValueError(f"state_dict for {path} must hold named tensors only, found {wrong[:5] or 'nothing'}")
    plain = dict(zip(bare_names(state_dict), (value.detach().cpu() for value in state_dict.values()), strict=True))
    save_whole(lambda file: torch.save(plain, file), path)


def save_whole(write: Callable[[BinaryIO], object], path: str | os.PathLike[str]) -> None:
    """Write a file as a whole or not at all: to a temporary file beside ``path``, then renamed.

    Args:
        write: writes the content to the open file that it is given.
        path: the file to write or replace; its folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
