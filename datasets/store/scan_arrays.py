# SPDX-License-Identifier: Apache-2.0
"""Arrays of a store: Zarr v3, one object each, of small compressed chunks with checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .location import Location, import_extra, tensorstore_context

__all__ = ["StoredArray", "content_hash", "read_array", "write_array"]

CHUNK = 32
"""Voxels along each spatial axis of a chunk: a cube of 64 x 64 x 32 reads 17 chunks of 64 KiB before compression."""

OPEN_ARRAYS = 4096
"""Arrays that a process keeps open; each takes some 7 KiB, and holds no file."""


def _spec(location: Location, name: str, shape: Sequence[int], dtype: str, chunk: Sequence[int]) -> dict[str, Any]:
    whole = [-(-size // side) * side for size, side in zip(shape, chunk, strict=True)]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    compressed = {
        "cname": "zstd",
        "clevel": 3,
        "shuffle": "bitshuffle",
        "typesize": np.dtype(dtype).itemsize,
        "blocksize": 0,
    }
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [little, {"name": "blosc", "configuration": compressed}, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    return {
        "driver": "zarr3",
        "kvstore": location.spec(f"{name}/"),
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": whole}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # an object that is missing is an error, never a scan of zeros
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def image_chunk(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a chunk of a scan of shape ``(C, X, Y[, Z])``.

    Example:
        >>> image_chunk((1, 512, 512, 20))
        (1, 32, 32, 20)
    """
    return (1, *(min(CHUNK, int(size)) for size in shape[1:]))


def write_array(location: Location, name: str, array: np.ndarray, chunk: Sequence[int]) -> None:
    """Write an array as one object, then read it back and compare.

    Args:
        location: the store.
        name: path of the array in it.
        array: the array, of at least one element.
        chunk: shape of a chunk.

    Raises:
        OSError: When what was read back is something else than what was written, or nothing could be written.
    """
    spec = {**_spec(location, name, array.shape, str(array.dtype), chunk), "open": True, "create": True}
    store = import_extra("tensorstore")
    try:
        store.open(spec, context=tensorstore_context()).result().write(array).result()
    except ValueError as error:
        raise OSError(f"{location.url}/{name}: cannot be written: {error}") from error
    if not np.array_equal(read_array(location, name, array.shape, str(array.dtype), chunk), array):
        raise OSError(f"{location.url}/{name}: expected to read what was written, found other values.")


def read_array(
    location: Location, name: str, shape: Sequence[int], dtype: str, chunk: Sequence[int], window: Any = ...
) -> np.ndarray:
    """Read an array, or a window of it; checksums of all chunks are compared.

    Args:
        location: the store.
        name: path of the array in it.
        shape: its shape, which a manifest says, so that no metadata are read.
        dtype: its type.
        chunk: shape of a chunk.
        window: an index of it.

    Raises:
        OSError: When the array is missing or damaged, with its name.
    """
    tensorstore_context()  # what is open already would not ask whether this process may read
    opened = _open(location, name, tuple(shape), dtype, tuple(chunk))
    try:
        return np.asarray(opened[window].read().result())
    except ValueError as error:
        raise OSError(f"{location.url}/{name}: cannot be read: {error}") from error


@lru_cache(OPEN_ARRAYS)
def _open(location: Location, name: str, shape: tuple[int, ...], dtype: str, chunk: tuple[int, ...]) -> Any:
    spec = {**_spec(location, name, shape, dtype, chunk), "open": True, "assume_metadata": True}
    spec.pop("store_data_equal_to_fill_value")
    return import_extra("tensorstore").open(spec, context=tensorstore_context()).result()


class StoredArray:
    """A scan in a store that looks like an array; indexing reads what is asked for, and nothing else.

    Args:
        location: the store.
        name: path of the array in it.
        shape: its shape, ``(C, X, Y[, Z])``.
        dtype: its type.
    """

    def __init__(self, location: Location, name: str, shape: Sequence[int], dtype: str = "int16") -> None:
        self.location = location
        self.name = name
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, window: Any) -> np.ndarray:
        """Read a window.

        Raises:
            OSError: See :func:`read_array`.
        """
        return read_array(self.location, self.name, self.shape, str(self.dtype), image_chunk(self.shape), window)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all of it."""
        return self[...].astype(dtype or self.dtype, copy=False)


def content_hash(array: np.ndarray) -> str:
    """Name what a prepared scan holds, whatever file it came from.

    Args:
        array: voxels.

    Returns:
        32 hexadecimal digits of shape, type and values.

    Example:
        >>> content_hash(np.zeros((1, 2, 3), np.int16)) == content_hash(np.zeros((1, 3, 2), np.int16))
        False
    """
    digest = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
