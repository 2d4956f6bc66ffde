# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measured references and real data; it lies beside the checkout and is not part of it."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data are not on this machine (expected at {SHARED})")
    return SHARED
