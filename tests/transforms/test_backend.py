# SPDX-License-Identifier: Apache-2.0
"""The choice between compiled kernels and numpy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numba
import pytest

from models_genesis.transforms import RandGenesisDeform, backend, kernels, random_bits, resolve_backend, shuffle_kernels


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which the kernels cannot be imported."""

    def refuse(*_: Any) -> None:
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(backend.importlib, "import_module", refuse)
    backend._numba_error.cache_clear()
    yield
    backend._numba_error.cache_clear()


def test_numba_is_preferred() -> None:
    assert resolve_backend() == resolve_backend("auto") == resolve_backend("numba") == "numba"
    assert resolve_backend("numpy") == "numpy"


def test_without_numba_numpy_serves_and_the_log_says_so_once(
    without_numba: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert RandGenesisDeform().code_path == "numpy"
        assert resolve_backend("auto") == "numpy"
    assert [record.levelname for record in caplog.records if "numba is not available" in record.message] == ["INFO"]
    with pytest.raises(ImportError, match="'numba' was requested"):
        resolve_backend("numba")


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def without_cache(*functions: Any, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")  # what numba raises
        return real(
            *functions, **options
        )  # numba's own modules, imported when it first compiles, decorate without options

    monkeypatch.setattr(numba, "njit", without_cache)
    assert random_bits.compile_loop(lambda value: value + 1)(2) == 3


@pytest.mark.parametrize(
    "kernel", [shuffle_kernels.shuffle_blocks, kernels.render, kernels.tabulate, kernels.bucket_curve]
)
def test_kernels_release_the_gil_and_run_on_one_thread(kernel: Any) -> None:
    assert kernel.targetoptions["nogil"]
    assert not kernel.targetoptions.get("parallel", False)
    assert not kernel.targetoptions.get("fastmath", False)
