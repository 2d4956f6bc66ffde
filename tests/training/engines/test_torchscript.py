# SPDX-License-Identifier: Apache-2.0
"""A TorchScript predicts with the preprocessing of its own weights, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow, ckpt_export

from models_genesis.networks import GenesisUNet, save_weights
from models_genesis.training import ModelSettingsError, WeightLoader, load_torchscript, save_trained_weights

ROOT = Path(__file__).resolve().parents[3]
LITS = ROOT / "bundles" / "genesis_lits_liver_ct_segmentation"
SETTINGS = {"features": [4, 8], "cube_size": [16, 16, 16], "in_channels": 1, "out_channels": 2, "tumour": False}


def network() -> GenesisUNet:
    """Random, with both classes in what it predicts."""
    made = GenesisUNet(features=(4, 8), out_channels=2).eval()
    with torch.inference_mode():
        logits = made(torch.rand(1, 1, 16, 16, 16))
        made.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return made


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A ``ckpt_dir`` after a training and an export."""
    save_trained_weights(network().state_dict(), tmp_path / "models" / "model.pt", SETTINGS)
    ckpt_export(
        "network_def", filepath=str(tmp_path / "models" / "model.ts"), ckpt_file=str(tmp_path / "models" / "model.pt"),
        meta_file=str(LITS / "configs" / "metadata.json"), config_file=str(LITS / "configs" / "inference.json"),
        bundle_root=str(LITS), ckpt_dir=str(tmp_path / "models"),
    )  # fmt: skip
    return tmp_path / "models"


def test_the_script_of_the_weights_is_loaded(exported: Path) -> None:
    script = load_torchscript(exported)
    own = network()
    own.load_state_dict(torch.load(exported / "model.pt", weights_only=True))
    cube = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(script(cube), own(cube), rtol=0, atol=0)


@pytest.mark.parametrize("file", ["model.ts", "model.pt", "model.json"])
def test_one_of_three_files_missing_is_refused(file: str, exported: Path) -> None:
    (exported / file).unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{exported / file}: expected model.ts next to the model.pt")
    ):
        load_torchscript(exported)


def train_again(folder: Path) -> None:
    save_trained_weights(network().state_dict(), folder / "model.pt", {**SETTINGS, "intensity_range": [-200, 300]})


def one_number(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    state["head.bias"][1] += 1e-6
    save_weights(state, folder / "model.pt")


def wider(folder: Path) -> None:
    save_weights(GenesisUNet(features=(4, 8), out_channels=3).state_dict(), folder / "model.pt")


def deeper(folder: Path) -> None:
    save_weights(GenesisUNet(features=(4, 8, 16), out_channels=2).state_dict(), folder / "model.pt")


@pytest.mark.parametrize(
    ("change", "found"),
    [(train_again, r"\d\d of 46"), (one_number, "1 of 46"), (wider, r"\d\d of 46"), (deeper, r"\d\d of 76")],
)
def test_other_weights_are_refused(change: Callable[[Path], None], found: str, exported: Path) -> None:
    script = load_torchscript(exported)
    change(exported)
    message = rf"model\.pt, found others in {found} tensors, such as .*: export it again with ckpt_export"
    with pytest.raises(ModelSettingsError, match=message):
        load_torchscript(exported)
    with pytest.raises(ModelSettingsError, match=message):  # an overlay that keeps the handler is held to it too
        WeightLoader(load_path=str(exported / "model.pt"), load_dict={"model": script})(Engine(lambda *_: None))


def predict(folder: Path, *overlays: Path, **given: Any) -> None:
    files = [str(each) for each in (LITS / "configs" / "inference.json", *overlays)]
    settings = {"bundle_root": str(LITS), "dataset_dir": str(folder / "data"), "device": torch.device("cpu")} | given
    workflow = ConfigWorkflow(config_file=files, workflow_type="inference", logging_file=False, **settings)
    workflow.initialize()
    workflow.run()


def test_the_documented_overlay_predicts_the_same_and_stops_after_another_training(
    exported: Path, tmp_path: Path
) -> None:
    """The file as the page has it."""
    block = re.search(r"```json\n(\{\"network_def\".*)\n```", (ROOT / "docs" / "formats.md").read_text())
    assert block is not None
    overlay = tmp_path / "torchscript.json"
    overlay.write_text(json.dumps(json.loads(block[1])))
    (tmp_path / "data").mkdir()
    scan = np.random.default_rng(0).uniform(-1000, 1000, (24, 24, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(scan, np.diag([-1.0, -1, 2, 1])), tmp_path / "data" / "volume-0.nii.gz")
    given = {"ckpt_dir": str(exported)}
    predict(tmp_path, **given, output_dir=str(tmp_path / "pt"))
    predict(tmp_path, overlay, **given, output_dir=str(tmp_path / "ts"))
    first, second = (nib.load(next((tmp_path / name).rglob("*_seg.nii.gz"))).get_fdata() for name in ("pt", "ts"))
    assert np.array_equal(first, second) and 0 < first.mean() < 1
    train_again(exported)
    with pytest.raises(RuntimeError) as error:
        predict(tmp_path, overlay, **given, output_dir=str(tmp_path / "again"))
    causes: list[BaseException] = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], ModelSettingsError) and "export it again" in str(causes[-1])
    assert not list(tmp_path.glob("again/**/*_seg.nii.gz"))
