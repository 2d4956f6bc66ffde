# SPDX-License-Identifier: Apache-2.0
"""Reading and writing weight files: a dict of names and tensors in, the same out, whatever was wrapped around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..datasets.io.atomic_write import atomic_write
from .original_names import from_original_name
from .safetensors_file import is_safetensors, read_safetensors, safetensors_content
from .weight_container import DamagedFileError, non_finite, read_checkpoint
from .weight_names import bare_names, names_in_file

ENTRIES = ("state_dict", "model", "network", "net", "network_weights")
"""Entries of a checkpoint that hold weights: of bundles, PyTorch and Lightning, SuPreM, nnU-Net and nnssl."""

BACKBONE = "backbone."
"""What SuPreM and the Universal Model, whose U-Net has the original's names, put before them."""

EXPECTED = (
    f"expected a state dict, or a checkpoint with one under {', '.join(map(repr, ENTRIES))}, written by torch.save, "
    "or a file of safetensors"
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
        metadata: texts in the header of a file of safetensors.
    """

    path: Path
    layout: str
    tensors: dict[str, Tensor]
    original: bool = False
    untranslated: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def _tensors(content: Any) -> dict[str, Tensor]:
    """Give the named tensors directly in ``content``, none where it is no dict."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _read(
    path: Path, map_location: str | torch.device, need_checksums: bool
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Read the file by its kind, and say what was expected where that fails."""
    try:
        if path.is_file() and is_safetensors(path):
            tensors, metadata = read_safetensors(path, map_location, need_checksums)
            return tensors, "safetensors", metadata
        content = read_checkpoint(path, map_location, need_checksums)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"weight file {path} does not exist; {EXPECTED}") from error
    except DamagedFileError as error:
        if path.is_dir():
            raise DamagedFileError(f"{path} is a folder; {EXPECTED}") from error
        cause = str(error).removeprefix(f"{path} cannot be read: ").removeprefix(f"{path}: ")
        raise DamagedFileError(
            f"{path} cannot be read as weights: {EXPECTED}; {cause}; pickled modules and TorchScript archives are "
            "refused as well"
        ) from error
    return *_find_tensors(path, content), {}


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


def read_weights(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    need_checksums: bool = False,
    own_names: Collection[str] = (),
) -> WeightFile:
    """Read a state dict, a checkpoint that holds one, a file of safetensors, or the original's ``Genesis_Chest_CT.pt``.

    Args:
        path: the file, written by ``torch.save`` or safetensors; checksums are compared first, see
            :func:`read_checkpoint` and :func:`.safetensors_file.read_safetensors`.
        map_location: where the tensors go.
        need_checksums: whether to refuse files without checksums: of safetensors by others, and the format of torch
            before 1.6, which the original's file has.
        own_names: bare names of the network that takes the weights; prefixes that these have themselves stay.

    Returns:
        The tensors by bare name, the original's names translated by :func:`from_original_name`.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: the file is damaged, or of another kind.
        ValueError: no tensors in it, several sets of weights, two tensors of one name, or NaN or infinity in them.
    """
    path = Path(path)
    raw, layout, metadata = _read(path, map_location, need_checksums)
    try:
        names = names_in_file(raw, own_names)
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from error
    ours = [from_original_name(name.removeprefix(BACKBONE)) for name in names]
    untranslated: tuple[str, ...] = ()
    original = any(name is not None for name in ours)
    if original:
        backbone = any(name.startswith(BACKBONE) for name in names)
        layout += ", the original's names below backbone" if backbone else ", the original Models Genesis names"
        untranslated = tuple(name for name, known in zip(names, ours, strict=True) if known is None)
        names = [known or name for name, known in zip(names, ours, strict=True)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{path} holds several tensors of one name once they are translated, expected one: {twice[:5]}"
        )
    tensors = dict(zip(names, raw.values(), strict=True))
    if wrong := non_finite(tensors):
        raise ValueError(f"{path}: {wrong}, expected finite weights")
    return WeightFile(path, layout, tensors, original, untranslated, metadata)


def save_weights(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a plain state dict as a whole or not at all: to a temporary file next to ``path``, then renamed.

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
    atomic_save(lambda file: torch.save(plain, file), path)


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file of safetensors as a whole or not at all.

    Args:
        tensors: by name.
        path: the file to write or replace; its folder is made where it is missing.
        metadata: texts for the header.

    Raises:
        ImportError: the package ``safetensors`` is missing.
        OSError: the disk is full or the folder cannot be written; an older file at ``path`` is as it was.
    """
    content = safetensors_content(tensors, metadata)
    atomic_save(lambda file: file.write(content), path)


def atomic_save(write: Callable[[BinaryIO], object], path: str | os.PathLike[str]) -> None:
    """Write a file as a whole or not at all: to a temporary file next to ``path``, then renamed.

    Args:
        write: writes the content to the open file that it is given.
        path: the file to write or replace; its folder is made where it is missing.
    """
    with atomic_write(path) as file:
        write(file)
