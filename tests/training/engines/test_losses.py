# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from models_genesis.training import RestorationLoss


def test_is_the_mean_squared_error_after_the_sigmoid():
    logits = torch.tensor([[[math.log(3.0), 0.0]]])  # sigmoid: 3/4, 1/2
    originals = torch.tensor([[[0.25, 1.0]]])
    assert RestorationLoss()(logits, originals).item() == pytest.approx((0.25 + 0.25) / 2)


def test_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        RestorationLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
