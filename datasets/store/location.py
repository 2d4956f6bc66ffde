# SPDX-License-Identifier: Apache-2.0
"""Where a store lies, a folder or a bucket, and the one way to TensorStore from here."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Location", "import_extra", "tensorstore_context"]

READ_THREADS = 4
"""Chunks that one process may request from a disk at once; they wait, and take no processor."""

REQUESTS = 16
"""Requests that one process may have open to a bucket."""

RETRIES = {"max_retries": 7, "initial_delay": "500ms", "max_delay": "16s"}
"""How often a request to a bucket is tried again, for some 45 s; TensorStore's own 32 times look like a hang."""

_first_process: list[int] = []
"""The process that used TensorStore first, in this process or in the one that it was forked from."""


def import_extra(name: str, extra: str = "store") -> ModuleType:
    """Import a package that only stores need.

    Args:
        name: the package.
        extra: the extra of this project that brings it.

    Returns:
        The package.

    Raises:
        ModuleNotFoundError: When it is not installed, with the command that installs it.
    """
    top = name.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise ModuleNotFoundError(f"this needs {top}: pip install 'models-genesis[{extra}]'")
    return importlib.import_module(name)


def tensorstore_context() -> Any:
    """Give this process's TensorStore context: one thread that decodes, a few that wait for files or requests.

    Nothing is kept of what was read: of a corpus larger than memory, the same chunk is hardly ever read twice in a row.

    Raises:
        RuntimeError: When this process was forked from one that had used TensorStore, which TensorStore would abort.
    """
    if not _first_process:
        _first_process.append(os.getpid())
    if _first_process[0] != os.getpid():
        raise RuntimeError(
            "a store cannot be read in a process that was forked from one that has read it: give the loader"
            " multiprocessing_context='forkserver', as models_genesis.datasets.PrefetchDataLoader does by itself"
        )
    return _context()


@cache
def _context() -> Any:
    return import_extra("tensorstore").Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": 1},
            "file_io_concurrency": {"limit": READ_THREADS},
            "s3_request_concurrency": {"limit": REQUESTS},
            "gcs_request_concurrency": {"limit": REQUESTS},
            "s3_request_retries": RETRIES,
            "gcs_request_retries": RETRIES,
        }
    )


@dataclass(frozen=True)
class Location:
    """A folder, or a prefix of a bucket, and the small files in it, each of which is written whole or not at all.

    Args:
        url: a path, ``file:///path``, ``s3://bucket/prefix`` or ``gs://bucket/prefix``. For S3, ``AWS_ENDPOINT_URL``
            and ``AWS_REGION`` say which server, as they do for Amazon's own tools, and the keys come from where those
            look for them. Another ``gs://`` server is named by ``TENSORSTORE_GCS_HTTP_URL``.

    Raises:
        ValueError: When the URL is of another kind, names no bucket, or has a user, a ``?``, ``#`` or ``%``.

    Example:
        >>> Location("s3://ct/chest").spec("store.json")
        {'driver': 's3', 'bucket': 'ct', 'path': 'chest/store.json'}
    """

    url: str

    def __post_init__(self) -> None:
        """Refuse what is no place."""
        self.spec("")

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None for a bucket."""
        spec = self.spec("")
        return Path(spec["path"]) if spec["driver"] == "file" else None

    def spec(self, name: str) -> dict[str, Any]:
        """Describe a place below this one as TensorStore does.

        Args:
            name: its path below this place, with forward slashes.
        """
        if "://" not in self.url:
            return {"driver": "file", "path": f"{Path(self.url).absolute().as_posix().rstrip('/')}/{name}"}
        parts = urlsplit(self.url)
        marks = [mark for mark in "#?%" if mark in self.url]
        if "@" in parts.netloc or (marks and "@" in self.url):  # not shown: it may be a password
            raise ValueError(
                f"{parts.scheme}://...: expected no user or password in a URL, found one: keys come from where Amazon's"
                " and Google's own tools look for them"
            )
        if marks:
            raise ValueError(f"{self.url}: expected no {' '.join(marks)} in a URL, which is more than a name there")
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost"):
                raise ValueError(f"{self.url}: expected file:///path with three slashes, found the host {parts.netloc}")
            return {"driver": "file", "path": f"{parts.path.rstrip('/')}/{name}"}
        if parts.scheme not in ("s3", "gs") or not parts.netloc:
            raise ValueError(f"{self.url}: expected a path, file:///path, s3://bucket/prefix or gs://bucket/prefix.")
        prefix = parts.path.strip("/")
        place = {"bucket": parts.netloc, "path": f"{prefix}/{name}" if prefix else name}
        if parts.scheme == "gs":
            return {"driver": "gcs", **place}
        return {"driver": "s3", **place, **_s3_server(os.environ)}

    def read(self, name: str) -> bytes | None:
        """Read a small file; None where there is none.

        Raises:
            OSError: When the place cannot be reached, as in the methods that follow.
        """
        with self._named_errors(name):
            result = self._files().read(name).result()
        return bytes(result.value) if result.state == "value" else None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        with self._named_errors(name):
            self._files().write(name, content).result()

    def remove(self, name: str) -> None:
        """Remove a small file, if it is there."""
        with self._named_errors(name):
            self._files().write(name, None).result()

    def names(self, prefix: str) -> list[str]:
        """List the files whose names begin so, in order."""
        keys = import_extra("tensorstore").KvStore.KeyRange
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with self._named_errors(prefix):
            found = [key.decode() for key in self._files().list(keys(prefix, end)).result()]
        return sorted(name for name in found if name.startswith(prefix))  # some servers heed no range

    @contextmanager
    def _named_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # TensorStore's, of whatever went wrong
            raise OSError(f"{self.url}/{name}: {error}") from error

    def _files(self) -> Any:
        return import_extra("tensorstore").KvStore.open(self.spec(""), context=tensorstore_context()).result()


def _s3_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Read where an S3 server is from the variables that Amazon's own tools read."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    return {**({"endpoint": endpoint} if endpoint else {}), **({"aws_region": region} if region else {})}
