# SPDX-License-Identifier: Apache-2.0
"""What a run in several processes needs beyond ``DistributedDataParallel``."""

from __future__ import annotations

# Imported before any process group exists: default arguments in there hold the group of the time indefinitely.
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["BufferBroadcast", "leave_process_group"]


class BufferBroadcast:
    """Give all processes the first one's buffers, as batch normalization's means, before an evaluation.

    ``DistributedDataParallel`` does so in each forward pass. Processes that make different numbers of them, for they
    have different cases, would wait for each other indefinitely, so that the bundles evaluate its ``module``, and make
    its buffers equal here.

    Args:
        network: network of the run.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: evaluator that runs in all processes.
        """
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Broadcast the buffers, without effect in a run of one process."""
        if dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)


def leave_process_group(network: nn.Module) -> None:
    """Wait for the other processes, and end the process group with its threads.

    ``torch.distributed.destroy_process_group`` alone leaves Gloo's threads running as long as anything refers to the
    group, as a ``DistributedDataParallel`` does. Such a thread that lets go of a tensor while the interpreter ends
    aborts the process, and a run that did all its work fails (https://github.com/pytorch/pytorch/issues/190489).

    Args:
        network: network of the run. A ``DistributedDataParallel`` cannot be called any more afterwards; its ``module``
            can.
    """
    if not dist.is_initialized():
        return
    dist.barrier()
    if isinstance(network, DistributedDataParallel):
        del network.reducer, network.logger, network.process_group
    dist.destroy_process_group()
