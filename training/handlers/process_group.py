# SPDX-License-Identifier: Apache-2.0
"""What a run in several processes needs beyond ``DistributedDataParallel``."""

from __future__ import annotations

from datetime import timedelta

# Imported before any process group exists: default arguments in there hold the group of the time indefinitely.
import torch
import torch.distributed as dist
import torch.distributed.nn
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...networks.batch_statistics_norm import BatchStatisticsNorm

__all__ = ["BufferBroadcast", "join_process_group", "leave_process_group", "synchronise_batch_norm"]

LONGEST_WAIT = timedelta(hours=1)
"""How long a process waits for another one: 430 GB are hashed meanwhile at 120 MB/s; a store knows its hashes."""


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


def synchronise_batch_norm(network: nn.Module, device: torch.device | str, enabled: bool = True) -> nn.Module:
    """Let the batch norms of a network see the batches of all processes, by torch's ``SyncBatchNorm``.

    Call it before the optimizer is built; the state dict keeps its names, and weights are loaded as before.

    Args:
        network: any network with batch norm.
        device: where it is trained.
        enabled: False gives the network as it is.

    Returns:
        The network, its batch norms replaced.

    Raises:
        ValueError: when it would have no effect, or cannot run.

    Example:
        >>> type(synchronise_batch_norm(nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)), "cuda")[1]).__name__
        'SyncBatchNorm'
    """
    if not enabled:
        return network
    if torch.device(device).type == "cpu":
        raise ValueError(
            f"sync_batch_norm: expected a GPU, found device {device}: torch's SyncBatchNorm cannot train on a "
            "processor. Leave it False there, or take a network with another norm"
        )
    if any(isinstance(module, BatchStatisticsNorm) for module in network.modules()):
        raise ValueError(
            "sync_batch_norm: expected torch's batch norm, found that of batch_statistics=True, which torch leaves as "
            "it is: choose one of them"
        )
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise ValueError(
            f"sync_batch_norm: expected a network with batch norm, found none in {type(network).__name__}: leave it "
            "False"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def join_process_group(backend: str) -> None:
    """Begin the process group of a run, whose processes wait for each other for as long as scans are hashed.

    Rank 0 hashes them alone, before the first step of a fine-tuning and after the last step, for the birth certificate.
    NCCL's ten minutes are 70 GB of a disk that reads 120 MB/s; then the others would end the whole run.

    Args:
        backend: such as ``"nccl"`` or ``"gloo"``.
    """
    dist.init_process_group(backend=backend, timeout=LONGEST_WAIT)


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
