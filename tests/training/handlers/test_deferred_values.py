# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from models_genesis.training.handlers.deferred_values import DeferredValues, Noted


def test_on_a_processor_values_are_there_at_once():
    deferred = DeferredValues()
    assert deferred.exchange(torch.tensor([1.5, 2.0]), 3, 1) == [Noted([1.5, 2.0], 3, 1)]
    assert deferred.flush() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_on_a_gpu_they_come_one_iteration_later_without_waiting():
    deferred, values = DeferredValues(), torch.tensor([1.5, 2.0], device="cuda")
    torch.cuda.synchronize()
    assert deferred.exchange(values, 1, 1) == []
    # what was noted is what the tensor held then
    values += 1
    assert deferred.exchange(values, 2, 1) == [Noted([1.5, 2.0], 1, 1)]
    assert deferred.flush() == [Noted([2.5, 3.0], 2, 1)]
    assert deferred.flush() == []
    torch.cuda.set_sync_debug_mode("error")
    try:
        deferred.exchange(values, 3, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
