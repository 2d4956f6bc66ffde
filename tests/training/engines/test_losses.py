# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from models_genesis.training import CandidateLoss, RestorationLoss


def test_is_the_mean_squared_error_after_the_sigmoid():
    logits = torch.tensor([[[math.log(3.0), 0.0]]])  # sigmoid: 3/4, 1/2
    originals = torch.tensor([[[0.25, 1.0]]])
    assert RestorationLoss()(logits, originals).item() == pytest.approx((0.25 + 0.25) / 2)


def test_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        RestorationLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def test_the_loss_of_candidates_is_binary_cross_entropy_with_two_options():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 1, generator=generator)
    target = (torch.rand(64, 1, generator=generator) < 0.5).float()
    expected = binary_cross_entropy_with_logits(logits, target)
    assert float(CandidateLoss()(logits, target)) == pytest.approx(float(expected), rel=1e-5)
    smooth = binary_cross_entropy_with_logits(logits, target * 0.8 + 0.1)
    assert float(CandidateLoss(label_smoothing=0.2)(logits, target)) == pytest.approx(float(smooth), rel=1e-5)
    # Lin et al.: (1 - p)^gamma, p the probability of the true class
    probability = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    focal = ((1 - probability) ** 2 * -probability.log()).mean()
    assert float(CandidateLoss(focal_gamma=2)(logits, target)) == pytest.approx(float(focal), rel=1e-4)
    with pytest.raises(ValueError, match="label_smoothing"):
        CandidateLoss(label_smoothing=1)
