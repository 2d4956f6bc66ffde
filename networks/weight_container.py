# SPDX-License-Identifier: Apache-2.0
"""The one way in which files of ``torch.save`` are read: checksums first, no code from them, finite numbers only."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ZIP_START = b"PK\x03\x04"
MS_DOS_FOLDER = 0x10
CHUNK = 1 << 22

LARGEST = 1e12
"""Larger numbers are no weights: what a flipped bit in the exponent makes of one."""


class DamagedFileError(ValueError):
    """A file that is not as it was written, or was never written by ``torch.save``; the message names it."""


def check_container(path: str | os.PathLike[str], need_checksums: bool = True) -> bool:
    """Compare every part of a file of ``torch.save`` with its checksum, which torch itself does not.

    ``torch.save`` writes a zip whose parts carry a CRC-32; ``torch.load`` reads past it, so a flipped bit would become
    another number without a word. Parts are stored as they are, so the memory that reading takes is bounded by the
    file's size.

    Args:
        path: the file.
        need_checksums: whether to refuse the format of torch before 1.6, which has no checksums.

    Returns:
        Whether the file has checksums, all of which are right.

    Raises:
        DamagedFileError: the file is empty, cut off, or a part differs from its checksum.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(len(ZIP_START))
        if start == ZIP_START:
            try:
                with zipfile.ZipFile(file) as archive:
                    _check_members(archive)
            except _BROKEN as error:
                raise DamagedFileError(f"the file is damaged: {error}") from error
            return True
    if zipfile.is_zipfile(path):
        raise DamagedFileError("the file is damaged: its first bytes are not those of a zip, its end is")
    if need_checksums:
        raise DamagedFileError(
            "expected a zip as torch.save writes it since torch 1.6, whose checksums tell whether it is damaged, found "
            + ("an empty file" if not start else f"another format, which begins with {start!r}")
        )
    return False


_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)
"""What Python's zip reader raises for damaged archives."""


def _check_members(archive: zipfile.ZipFile) -> None:
    """Read every part of an archive to its end, where Python compares the checksum."""
    names = [member.filename for member in archive.infolist()]
    if not names or len(set(names)) < len(names):
        raise zipfile.BadZipFile(f"expected parts of different names, found {len(names)}, {len(set(names))} different")
    for member in archive.infolist():
        if member.is_dir() or member.external_attr & MS_DOS_FOLDER:
            # torch takes such a part for empty, and leaves its numbers as memory happens to be
            raise zipfile.BadZipFile(f"{member.filename}: expected a file, found it marked as a folder")
        if member.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{member.filename}: expected it stored as it is, found it compressed")
        with archive.open(member) as part:
            while part.read(CHUNK):
                pass


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu", need_checksums: bool = True
) -> Any:
    """Read a file of ``torch.save`` after its checksums, without running code from it.

    Args:
        path: the file.
        map_location: where tensors go.
        need_checksums: see :func:`check_container`; where False, a file without them is read with a warning that names
            its SHA-256, to be compared with a published one.

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is a folder, damaged, or nothing that ``torch.load`` with ``weights_only=True`` takes.
    """
    path = Path(path)
    if path.is_dir():
        raise DamagedFileError(f"{path} is a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        checked = check_container(path, need_checksums)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # bytes of any kind raise errors of any kind
        cause = str(error) if isinstance(error, DamagedFileError) else f"{type(error).__name__}: {str(error).strip()}"
        raise DamagedFileError(
            f"{path} cannot be read: found {path.stat().st_size} bytes that torch.load with weights_only=True refuses "
            f"or that are damaged ({cause.splitlines()[0][:240]})"
        ) from error
    if not checked:
        logger.warning(
            "%s is in the format of torch before 1.6, which has no checksums, so damage cannot be seen; compare its "
            "SHA-256 with a published one: %s",
            path,
            sha256_of(path),
        )
    for name, tensor in named_tensors(content):
        check_layout(path, name, tensor)
    return content


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        _feed(digest, file)
    return digest.hexdigest()


def _feed(digest: Any, file: BinaryIO) -> None:
    while chunk := file.read(CHUNK):
        digest.update(chunk)


def named_tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Go through all tensors of what was read, in dictionaries, lists and tuples of any depth.

    Example:
        >>> [name for name, _ in named_tensors({"model": {"bias": torch.zeros(1)}, "rates": [torch.ones(1)]})]
        ['model.bias', 'rates.0']
    """
    waiting = [(name, content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            parts = [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
            waiting.extend(reversed(parts))
        elif isinstance(value, list | tuple):
            parts = [(f"{name}.{index}" if name else str(index), part) for index, part in enumerate(value)]
            waiting.extend(reversed(parts))


def check_layout(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not a plain array, or claims more numbers than the file can hold.

    Args:
        path: the file.
        name: of the tensor.
        tensor: as it was read.

    Raises:
        DamagedFileError: naming file and tensor.
    """
    kind = (
        "sparse"
        if tensor.layout != torch.strided
        else "quantized"
        if tensor.is_quantized
        else "nested"
        if tensor.is_nested
        else "without content"
        if tensor.is_meta
        else "of complex numbers"
        if tensor.is_complex()
        else ""
    )
    if kind:
        raise DamagedFileError(f"{path}: expected plain arrays of numbers, found {name}, a tensor that is {kind}")
    if tensor.numel() * tensor.element_size() > max(path.stat().st_size, 4096):
        raise DamagedFileError(
            f"{path}: expected arrays within {path.stat().st_size} bytes, found {name} of shape {tuple(tensor.shape)}"
        )


def non_finite(tensors: Mapping[str, Tensor]) -> str:
    """Say which tensor holds NaN, infinity, or a number that no weight is.

    Args:
        tensors: by name.

    Returns:
        What was found, "" where all are sound.

    Example:
        >>> non_finite({"bias": torch.tensor([0.0, float("nan")])})
        'bias holds NaN or infinite values'
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach() if tensor.element_size() >= 4 else tensor.detach().float()
        low, high = (float(end) for end in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"{name} holds NaN or infinite values"
        if max(-low, high) > LARGEST:
            return f"{name} holds numbers from {low:.3g} to {high:.3g}"
    return ""


def refuse_non_finite(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse weights with NaN or infinity, whoever loads them: a hook of ``nn.Module.load_state_dict``.

    Programs that bring weights to a network by themselves, as MONAI Label and ``monai.bundle.load`` do, meet it too.

    Args:
        module: the network.
        state_dict: what is loaded.
        prefix: what the names of the network's own tensors begin with.

    Raises:
        ValueError: a tensor holds NaN or infinity; nothing is loaded then.
    """
    own = {name: value for name, value in state_dict.items() if name.startswith(prefix) and isinstance(value, Tensor)}
    if wrong := non_finite(own):
        raise ValueError(f"{wrong}, expected finite weights for {type(module).__name__}")
