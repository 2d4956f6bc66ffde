# SPDX-License-Identifier: Apache-2.0
"""Two processes that do different amounts of work end together, with one result, and leave no thread."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from models_genesis.networks import GenesisUNet
from models_genesis.training import (
    BufferBroadcast,
    join_process_group,
    leave_process_group,
    synchronise_batch_norm,
)

PROGRAM = """
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models_genesis.training import BufferBroadcast, RegionDice, leave_process_group

dist.init_process_group("gloo")
rank = dist.get_rank()
network = DistributedDataParallel(nn.BatchNorm1d(2))
network(torch.full((4, 2), float(rank + 1))).sum().backward()
means = network.module.running_mean.tolist()

case = {"pred": torch.tensor([[[[0, 1, 1]]]]), "label": torch.tensor([[[[0, 0, 1]]]])}
empty = {"pred": torch.zeros(1, 1, 1, 3), "label": torch.zeros(1, 1, 1, 3)}
batches = [[case], [], [empty]] if rank == 0 else [[]]


def evaluate(engine, batch):
    if batch:
        network.module(torch.zeros(1, 2))
    return batch


engine = Engine(evaluate)
network.eval()
RegionDice({"liver": [1]}).attach(engine, "val_dice")
BufferBroadcast(network).attach(engine)
engine.run(batches)
leave_process_group(network)
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
result = {
    "means": means,
    "given": network.module.running_mean.tolist(),
    "dice": engine.state.metrics["val_dice"],
    "gloo": sum("gloo" in name for name in threads),
}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(result))
"""


def test_processes_with_different_work_agree_and_leave_no_thread(forked, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for done in forked.run_ranks([sys.executable, "-m", "program", str(tmp_path)], tmp_path, timeout=120):
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["means"] != second["means"]
    assert first["given"] == second["given"] == first["means"]
    # two cases in the first process, none in the second: Dice 2/3, and 1 where nothing is and nothing was found
    assert first["dice"] == second["dice"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-6)
    assert first["gloo"] == second["gloo"] == 0


def test_one_process_needs_none_of_it():
    network = torch.nn.BatchNorm1d(2)
    BufferBroadcast(network)()
    leave_process_group(network)
    assert network(torch.zeros(3, 2)).shape == (3, 2)


def small_network(**arguments):
    return GenesisUNet(features=[4, 8], **arguments)


def test_batch_norm_is_synchronised_on_a_gpu_alone():
    """Torch's layer takes the place of each batch norm, with its weights and the names of its state."""
    network = small_network()
    before = network.state_dict()
    assert synchronise_batch_norm(network, "cpu", enabled=False) is network
    converted = synchronise_batch_norm(network, torch.device("cuda:0"))
    kinds = [type(module).__name__ for module in converted.modules() if "Norm" in type(module).__name__]
    assert kinds == ["SyncBatchNorm"] * len(kinds) and len(kinds) == 6
    assert converted is network and list(converted.state_dict()) == list(before)
    assert all(torch.equal(converted.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("arguments", "device", "message"),
    [
        ({}, "cpu", "expected a GPU, found device cpu"),
        ({"norm": "instance"}, "cuda", "expected a network with batch norm, found none in GenesisUNet"),
        ({"batch_statistics": True}, "cuda", "expected torch's batch norm, found that of batch_statistics=True"),
    ],
)
def test_a_synchronisation_without_effect_is_refused(arguments, device, message):
    with pytest.raises(ValueError, match=message):
        synchronise_batch_norm(small_network(**arguments), device)


def test_torch_itself_cannot_synchronise_on_a_processor(tmp_path):
    """The reason of the refusal: if this fails, torch can, and it may go."""
    layer = torch.nn.SyncBatchNorm(2)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
            layer(torch.zeros(3, 2))
    finally:
        leave_process_group(layer)


def test_others_wait_as_long_as_the_first_hashes_scans(monkeypatch):
    """400 GB at 120 MB/s, where torch would give up after ten minutes with NCCL and thirty with Gloo."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    join_process_group("gloo")
    try:
        options = dist.group.WORLD._get_backend(torch.device("cpu")).options
        assert options._timeout >= timedelta(seconds=400e9 / 120e6)
    finally:
        leave_process_group(torch.nn.Identity())
