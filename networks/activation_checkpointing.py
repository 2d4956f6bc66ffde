# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing that leaves batch norm's running statistics as they would be without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def scratch_buffers(module: nn.Module) -> Iterator[None]:
    """Let ``module`` work on copies of its buffers, and give it the real ones back afterwards."""
    real = [(owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)]
    for owner, name, buffer in real:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in real:
            setattr(owner, name, buffer)


def checkpointed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Run ``module`` without keeping what is between its inputs and its output; backward computes that once more.

    The second run would update the running statistics of batch norm a second time, so it works on copies of the
    buffers. Where no gradient is needed there is nothing to save and the module simply runs.

    Args:
        module: takes ``inputs`` and gives one tensor.
        inputs: tensors for the module.

    Returns:
        The module's output.
    """
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a graph is made: recomputing is its matter
    if captured or not torch.is_grad_enabled():
        return module(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), scratch_buffers(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)
