# SPDX-License-Identifier: Apache-2.0
"""A global batch of four cubes trains alike, whether one process has them, two, or one after another in groups."""

from __future__ import annotations

from typing import Any

import pytest
from bundle_runs import losses

BUNDLE = "genesis_chest_ct_pretraining"
SMALL: dict[str, Any] = {
    "features": [4, 8], "cube_size": [16, 16, 16], "tissue_threshold": "$None", "cubes_per_scan": 8,
    "val_cubes_per_scan": 2, "epochs": 3, "warmup_epochs": 1, "learning_rate": 0.01, "amp": False,
    "network_def#norm": "instance",  # batch norm sees the batch of a process alone
}  # fmt: skip

TOLERANCE = 1e-4
"""Of losses, relative: sums of the same numbers in another order, through 18 steps of AdamW."""


def test_two_processes_have_the_loss_curve_of_one(run_bundle, run_two_processes, chest_scans, tmp_path):
    """24 cubes an epoch, six steps: one process with batches of 4, two with 2, two with twice one cube."""

    def curve(run, configs, name, **own):
        folder = tmp_path / name
        places = {"dataset_dir": chest_scans, "output_dir": folder / "eval", "ckpt_dir": folder / "models"}
        run(BUNDLE, configs, **SMALL, **places, **own)
        return losses(folder)

    expected = curve(run_bundle, ["train"], "one", batch_size=4)
    both = ["train", "multi_gpu_train"]
    assert curve(run_two_processes, both, "two", batch_size=2) == pytest.approx(expected, rel=TOLERANCE)
    accumulated = curve(run_two_processes, both, "groups", batch_size=1, accumulation_steps=2)
    assert accumulated == pytest.approx(expected, rel=TOLERANCE)
    assert expected[-2] < 0.9 * expected[0]
