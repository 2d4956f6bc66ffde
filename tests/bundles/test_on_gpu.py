# SPDX-License-Identifier: Apache-2.0
"""The bundles on a GPU: each place of the deformations, and a resumed run that is the uninterrupted one to the bit."""

from __future__ import annotations

import csv
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_runs import assert_same_end, folders, history, losses

from models_genesis.networks import GenesisUNet, save_weights

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

PRETRAINING = "genesis_chest_ct_pretraining"
SEGMENTATION, CLASSIFICATION = "genesis_msd_segmentation", "genesis_pecad_embolism_ct_classification"
FEATURES = [8, 16, 32]
SMALL: dict[str, Any] = {
    "features": FEATURES, "cube_size": [32, 32, 16], "batch_size": 4, "warmup_epochs": 1, "learning_rate": 0.01,
}  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


@needs_gpu
@pytest.mark.parametrize(
    ("deform_on", "compiled"), [("cpu", False), ("device", False), ("step", False), ("step", True)]
)
def test_pretraining_resumes_to_the_bit_in_each_place(deform_on, compiled, run_bundle, chest_scans, tmp_path):
    given = {**SMALL, "epochs": 3, "cubes_per_scan": 8, "val_cubes_per_scan": 6, "dataset_dir": chest_scans}
    given |= {"deform_on": deform_on, "train#trainer#compile": compiled}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = run_bundle(PRETRAINING, ["train"], **given, **folders(whole))
    assert f"{DEVICE} trains in" in done.stdout
    losses = [float(loss) for _, loss, _ in history(whole)]
    assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]
    # the schedule is that of three epochs, the run ends after the first
    run_bundle(PRETRAINING, ["train"], **given, **folders(parts), **{"train#trainer#max_epochs": 1})
    assert len(history(parts)) == 1
    run_bundle(PRETRAINING, ["train"], **given, **folders(parts), resume=True)
    assert_same_end(whole, parts)


@pytest.mark.parametrize(
    ("bundle", "given"),
    [
        (SEGMENTATION, {"cubes_per_case": 4, "overlap": 0.25}),
        (CLASSIFICATION, {"cube_size": [12, 12, 12], "max_shift": [2, 2, 2], "batch_size": 8}),
    ],
)
def test_fine_tuning_trains_resumes_and_evaluates(bundle, given, run_bundle, stop_training, data_of, tmp_path):
    """On the GPU, and where there is none on the processor."""
    torch.manual_seed(0)
    save_weights(GenesisUNet(features=FEATURES).state_dict(), tmp_path / "pretrained.pt")
    given = {
        **SMALL,
        **data_of(bundle),
        "pretrained": tmp_path / "pretrained.pt",
        "epochs": 4,
        "val_interval": 2,
        **given,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert f"{DEVICE} trains in" in run_bundle(bundle, ["train"], **given, **folders(whole)).stdout
    last = parts / "models" / "last_epoch.pt"
    stop_training(bundle, signal.SIGTERM, last.exists, **given, **folders(parts))
    assert len(history(parts)) < 4
    run_bundle(bundle, ["train"], **given, **folders(parts), resume=True)
    assert_same_end(whole, parts)
    own = {key: value for key, value in given.items() if key in ("features", "cube_size", "overlap", *data_of(bundle))}
    run_bundle(bundle, ["train", "evaluate"], **own, ckpt_dir=whole / "models", output_dir=whole / "evaluated")
    assert list((whole / "evaluated").glob("*.json"))


@needs_gpu
def test_one_rank_by_nccl_is_the_training_without_to_the_bit(run_bundle, bundle_command, chest_scans, tmp_path):
    given = {**SMALL, "epochs": 2, "cubes_per_scan": 8, "val_cubes_per_scan": 6, "dataset_dir": chest_scans}
    one, rank = tmp_path / "one", tmp_path / "rank"
    run_bundle(PRETRAINING, ["train"], **given, **folders(one))
    line = bundle_command(PRETRAINING, ["train", "multi_gpu_train"], **given, **folders(rank))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m"]
    command = [line[0], *launcher, *line[2:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert_same_end(one, rank)
    with (one / "eval" / "history.csv").open() as file:
        assert all(0 < float(row["gpu_gib"]) < 80 for row in csv.DictReader(file))


@needs_gpu
def test_two_ranks_with_synchronised_batch_norm_are_one_with_their_batches(
    run_bundle, bundle_command, forked, chest_scans, tmp_path
):
    """Both ranks are on this GPU, joined by Gloo: NCCL takes one rank a GPU."""
    given = {**SMALL, "epochs": 3, "cubes_per_scan": 8, "val_cubes_per_scan": 6, "dataset_dir": chest_scans}
    # at a rate of 0.01 rounding alone moves the validation error after twelve steps by a tenth
    given |= {"amp": False, "learning_rate": 0.001}
    found = {}
    for name, own in {"one": {}, "synchronised": {"sync_batch_norm": True}, "apart": {}}.items():
        folder = tmp_path / name
        if name == "one":
            run_bundle(PRETRAINING, ["train"], **given, **folders(folder))
        else:
            ranks = {"backend": "gloo", "device": "$torch.device('cuda:0')", "batch_size": 2}
            line = bundle_command(
                PRETRAINING, ["train", "multi_gpu_train"], **{**given, **ranks, **own}, **folders(folder)
            )
            for done in forked.run_ranks(line, tmp_path, timeout=300):
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        found[name] = losses(folder)
    # TF32 in convolutions, and sums in another order: three digits
    assert found["synchronised"] == pytest.approx(found["one"], rel=2e-3)
    assert found["apart"] != pytest.approx(found["one"], rel=2e-3)
