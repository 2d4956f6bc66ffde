# SPDX-License-Identifier: Apache-2.0
"""One of two ranks is killed within an epoch; the same command goes on, and nothing of it shows in the result."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BUNDLE = "genesis_chest_ct_pretraining"
SMALL = {
    "features": "[4,8]", "cube_size": "[16,16,16]", "tissue_threshold": "$None", "cubes_per_scan": 24,
    "val_cubes_per_scan": 2, "batch_size": 2, "epochs": 2, "warmup_epochs": 0, "backend": "gloo",
    "device": "$torch.device('cpu')", "network#device_ids": "$None", "resume": "auto",
    "train#run#save_every_minutes": 0.001,
}  # fmt: skip


@pytest.fixture
def start(bundle_command: Callable[..., list[str]], forked: Any, chest_scans: Path) -> Callable[[Path], list[Any]]:
    """Start the same training in two ranks, as ``torchrun`` does."""

    def begin(folder: Path) -> list[Any]:
        given = {**SMALL, "dataset_dir": chest_scans, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
        line = bundle_command(BUNDLE, ["train", "multi_gpu_train"], **given)
        folder.mkdir(exist_ok=True)
        return forked.start_ranks(line, folder, 200)

    return begin


def finish(ranks: list[Any]) -> list[str]:
    """Wait for ranks that must end well; gives what they said."""
    done = [rank.wait() for rank in ranks]
    assert [rank.returncode for rank in done] == [0, 0], [rank.stderr[-3000:] for rank in done]
    return [rank.stdout + rank.stderr for rank in done]


def result_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    state = torch.load(folder / "models" / "last_epoch.pt", weights_only=True)["model"]
    with (folder / "eval" / "history.csv").open() as file:
        return state, [row["train_loss"] for row in csv.DictReader(file)]


def test_the_ranks_go_on_from_the_middle_of_the_epoch_to_the_same_result(start, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    ranks, state = start(folder), folder / "models" / "last_iteration.pt"
    deadline = time.monotonic() + 200
    while not state.exists():
        assert ranks[0].running() and time.monotonic() < deadline, ranks[0].wait().stderr[-3000:]
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGKILL)
    assert ranks[1].wait().returncode == -signal.SIGKILL and ranks[0].wait().returncode != 0
    assert all(said.count(f"resumed from {state}") == 1 for said in finish(start(folder)))
    (expected, losses), (found, found_losses) = result_of(whole), result_of(folder)
    assert found_losses == losses and len(losses) == 2
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
