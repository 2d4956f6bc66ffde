# SPDX-License-Identifier: Apache-2.0
"""Weights in the safetensors format: tensors without code, read whole and checked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .weight_container import DamagedFileError, check_layout, sha256_of

if TYPE_CHECKING:
    import types

__all__ = ["is_safetensors", "read_safetensors", "safetensors_content"]

logger = logging.getLogger(__name__)

DIGEST = "tensors_sha256"
"""Entry of the header under which we keep a checksum, since the format has none."""

_LENGTH = struct.Struct("<Q")  # of the header, which is JSON and follows


def _library() -> types.ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("files of safetensors need the package: pip install safetensors") from error
    return safetensors.torch


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Tell from its name, or from its first bytes, whether a file is one of safetensors.

    Args:
        path: an existing file.
    """
    if Path(path).suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size + 1)
    return len(start) > _LENGTH.size and start[_LENGTH.size :] == b"{" and _LENGTH.unpack(start[:-1])[0] < 1 << 32


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute one SHA-256 of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def safetensors_content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Give the content of a file of safetensors.

    Args:
        tensors: by name.
        metadata: texts for the header; a checksum of the tensors is added to them.

    Returns:
        What is to be written, such as by :func:`.weight_files.save_safetensors`.

    Raises:
        ImportError: the package ``safetensors`` is missing.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content: bytes = _library().save(plain, {"format": "pt", **(metadata or {}), DIGEST: _digest(plain)})
    return content


def read_safetensors(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu", need_checksums: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of safetensors.

    Args:
        path: the file.
        map_location: where tensors go.
        need_checksums: refuse files without the checksum that :func:`safetensors_content` writes; the format itself has
            none, so damage to the numbers could not be seen. Where False, the log gives the SHA-256 of such a file.

    Returns:
        Tensors by name, in the order of the file, and the texts of the header.

    Raises:
        DamagedFileError: the file is cut off, is not of this format, or its tensors differ from their checksum.
        ImportError: the package ``safetensors`` is missing.
    """
    library, path = _library(), Path(path)
    content = path.read_bytes()
    try:
        tensors = library.load(content)
        header = _header(content)
    except Exception as error:  # bytes of any kind raise errors of any kind
        cause = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:240]
        raise DamagedFileError(
            f"{path} cannot be read: found {len(content)} bytes that safetensors refuses ({cause})"
        ) from error
    metadata = header.pop("__metadata__", {})
    tensors = {name: tensors[name] for name in header}
    for name, tensor in tensors.items():
        check_layout(path, name, tensor)
    _check_digest(path, tensors, metadata, need_checksums)
    return {name: tensor.to(map_location) for name, tensor in tensors.items()}, metadata


def _header(content: bytes) -> dict[str, Any]:
    """Read the header, entries in the order of their numbers in the file."""
    (length,) = _LENGTH.unpack(content[: _LENGTH.size])
    entries = json.loads(content[_LENGTH.size : _LENGTH.size + length])
    return dict(sorted(entries.items(), key=lambda item: item[1].get("data_offsets", [0, 0])))


def _check_digest(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], needed: bool) -> None:
    if (expected := metadata.get(DIGEST)) is not None:
        if (found := _digest(tensors)) != expected:
            raise DamagedFileError(
                f"{path}: the file is damaged: expected tensors of SHA-256 {expected}, found {found}"
            )
        return
    if needed:
        raise DamagedFileError(
            f"{path}: expected a file with checksums, which tell whether it is damaged, found one of safetensors "
            f"without the entry {DIGEST} that models_genesis writes"
        )
    logger.info("%s has no checksums; compare its SHA-256 with a published one: %s", path, sha256_of(path))
