# SPDX-License-Identifier: Apache-2.0
"""A rank is killed within an epoch: torchrun starts the group again, and nothing of it shows in the result."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
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
    "device": "$torch.device('cpu')", "network#device_ids": "$None", "resume": "auto", "save_every_minutes": 0.001,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")


@pytest.fixture
def start(bundle_command: Callable[..., list[str]], chest_scans: Path) -> Callable[[Path], subprocess.Popen]:
    """Start the same training in two ranks, with up to two restarts."""

    def begin(folder: Path) -> subprocess.Popen[Any]:
        given = {**SMALL, "dataset_dir": chest_scans, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
        line = bundle_command(BUNDLE, ["train", "multi_gpu_train"], **given)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2", "-m"]
        folder.mkdir()
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                [line[0], *launcher, *line[2:]],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    return begin


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank, a child of the launcher."""
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for child in (task / "children").read_text().split():
            if f"LOCAL_RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise AssertionError(f"no rank {rank} among the children of {launcher}")


def result_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    state = torch.load(folder / "models" / "last_epoch.pt", weights_only=True)["model"]
    with (folder / "eval" / "history.csv").open() as file:
        return state, [row["train_loss"] for row in csv.DictReader(file)]


def test_the_group_goes_on_from_the_middle_of_the_epoch_to_the_same_result(start, tmp_path):
    whole, killed = start(tmp_path / "whole"), None
    assert whole.wait(300) == 0, (tmp_path / "whole" / "log").read_text()[-3000:]
    killed = start(tmp_path / "killed")
    state, deadline = tmp_path / "killed" / "models" / "last_iteration.pt", time.monotonic() + 200
    while not state.exists():
        assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "killed" / "log").read_text()[-3000:]
        time.sleep(0.02)
    os.kill(rank_of(killed.pid, 1), signal.SIGKILL)
    assert killed.wait(300) == 0, (tmp_path / "killed" / "log").read_text()[-3000:]
    log = (tmp_path / "killed" / "log").read_text()
    assert log.count(f"resumed from {state}") == 2 and "exitcode: -9" in log
    (expected, losses), (found, found_losses) = result_of(tmp_path / "whole"), result_of(tmp_path / "killed")
    assert found_losses == losses and len(losses) == 2
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
