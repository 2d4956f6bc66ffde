# SPDX-License-Identifier: Apache-2.0
"""Pretraining with the deformations in each place, on a machine without a GPU."""

from __future__ import annotations

import pytest
from bundle_runs import assert_same_end, folders, history

BUNDLE = "genesis_chest_ct_pretraining"
SMALL = {
    "features": [4, 8],
    "cube_size": [32, 32, 16],
    "cubes_per_scan": 8,
    "val_cubes_per_scan": 4,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup_epochs": 0,
    "epochs": 2,
    # the rate must not depend on the number of epochs, for the resumed run begins with fewer
    "lr_scheduler#t_total": 1000,
}


# the third backend, "cpu", is the default: the tests of the bundle have it
@pytest.mark.parametrize("deform_on", ["device", "step"])
def test_each_place_trains_and_resumes_to_the_same_end(deform_on, run_bundle, chest_scans, tmp_path):
    arguments = {"dataset_dir": chest_scans, "deform_on": deform_on, "device": "$torch.device('cpu')", **SMALL}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_bundle(BUNDLE, ["train"], **arguments, **folders(whole))
    losses = [float(loss) for _, loss, _ in history(whole)]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert (whole / "eval" / "restoration.png").exists()
    workers = {} if deform_on == "device" else {"num_workers": 1}
    run_bundle(BUNDLE, ["train"], **{**arguments, "epochs": 1}, **workers, **folders(parts))
    run_bundle(BUNDLE, ["train"], resume=True, **arguments, **folders(parts))
    assert_same_end(parts, whole)


def test_validation_has_the_same_deformations_in_every_epoch(run_bundle, chest_scans, tmp_path):
    """With a rate of next to 0 the network stays, so the validation's error must."""
    run_bundle(
        BUNDLE,
        ["train"],
        **{**SMALL, "learning_rate": 1e-30},
        dataset_dir=chest_scans,
        deform_on="step",
        amp=False,
        **folders(tmp_path),
        **{"network_def": "{'_target_': 'torch.nn.Conv3d', 'in_channels': 1, 'out_channels': 1, 'kernel_size': 1}"},
    )
    (_, first_loss, first), (_, second_loss, second) = history(tmp_path)
    assert first == second
    assert first_loss != second_loss  # the training's cubes are new ones
