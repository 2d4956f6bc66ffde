# SPDX-License-Identifier: Apache-2.0
"""The documented training of a sharded network gives the weights of one that is whole, in a file as any other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.networks.nets import SwinUNETR
from torch.distributed.fsdp import fully_shard

from models_genesis.networks import load_pretrained, save_weights
from models_genesis.training import TrainingCheckpoint

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "large-networks.md"
SIZES = {
    "feature_size=48": "feature_size=12", "lr=1e-4": "lr=1e-3", "(1, 1, 64, 64, 64,": "(1, 1, 64, 32, 32,",
    "in range(2)": "in range(1)",
}  # fmt: skip


def small_network(**arguments: bool) -> SwinUNETR:
    torch.manual_seed(1)
    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, **arguments)


def test_the_documented_training_ends_with_the_weights_of_one_process(forked, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    for old, new in SIZES.items():
        assert program.count(old) == 1
        program = program.replace(old, new)
    (tmp_path / "sharded.py").write_text(program)
    network = small_network()
    save_weights(network.state_dict(), tmp_path / "pretrained.pt")
    for done in forked.run_ranks([sys.executable, "-m", "sharded"], tmp_path, timeout=300):
        assert done.returncode == 0, done.stderr[-3000:]

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images = [torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)]
    network(torch.cat(images)).square().mean().backward()
    optimizer.step()
    whole, found = network.state_dict(), small_network()
    assert load_pretrained(found, tmp_path / "model.pt", strict=True).matched
    start = small_network().state_dict()
    moved = [name for name in whole if whole[name].is_floating_point() and not torch.equal(whole[name], start[name])]
    assert len(moved) > 100
    for name in moved:
        # a step of AdamW moves a weight by 1e-3; where its gradient is rounding, either way
        difference = (found.state_dict()[name] - whole[name]).abs()
        assert difference.max() < 2.1e-3 and difference.mean() < 1e-4, name


def test_checkpointed_activations_give_the_same_gradients():
    cube = torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for use_checkpoint in (False, True):
        network = small_network(use_checkpoint=use_checkpoint)
        network(cube).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True) if one is not None)


def test_a_training_that_would_save_parts_of_weights_is_refused(tmp_path):
    network = torch.nn.Linear(2, 2)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        fully_shard(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        with pytest.raises(ValueError, match="network: expected whole parameters, found sharded ones"):
            TrainingCheckpoint(tmp_path, network, optimizer, schedule, None)
    finally:
        dist.destroy_process_group()
