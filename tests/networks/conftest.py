# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the network tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def original_shapes(shared: Path) -> dict[str, tuple[int, ...]]:
    """Name (with ``module.``) and shape of each of the 106 tensors in the original's file."""
    content = json.loads((shared / "reference" / "genesis_chest_ct_checkpoint.json").read_text())
    return {entry["name"]: tuple(entry["shape"]) for entry in content["state_dict"]}


@pytest.fixture
def random_image() -> torch.Tensor:
    """A batch of two images, (2, 1, 16, 8, 8)."""
    return torch.rand(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
