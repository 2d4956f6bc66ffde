# SPDX-License-Identifier: Apache-2.0
"""What the documents say is typed in, and leaves what they promise."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from document_blocks import ROOT, spans_of
from document_session import Session

from models_genesis.networks import GenesisUNet

LITS, LUNA = "genesis_lits_liver_ct_segmentation", "genesis_luna16_nodule_ct_classification"
PRETRAINING = "genesis_chest_ct_pretraining"


def entries(datalist: Path) -> dict[str, int]:
    content = json.loads(datalist.read_text())
    return {split: len(content[split]) for split in ("training", "validation", "testing") if split in content}


def epochs(folder: Path) -> int:
    """Count the epochs of a training, whose losses are finite, and see that it has left its weights."""
    with (folder / "history.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert np.isfinite(losses).all()
    return len(losses)


def assert_same_space(made: Path, scan: Path) -> None:
    image, original = nib.load(made), nib.load(scan)
    assert image.shape == original.shape[:3]
    np.testing.assert_allclose(image.affine, original.affine, atol=1e-4)


def original_name(name: str) -> str:
    """Give the original's name for a tensor of ours."""
    side, level, layer, number, kind = re.fullmatch(
        r"(encoder|decoder)\.levels\.(\d)\.(?:merge\.|)(conv|norm|upsample)(\d?)\.(\w+)", name
    ).groups()
    start = f"module.{'down' if side == 'encoder' else 'up'}_tr{64 * 2 ** int(level)}."
    if layer == "upsample":
        return f"{start}up_conv.{kind}"
    return f"{start}ops.{int(number) - 1}.{'conv1' if layer == 'conv' else 'bn1'}.{kind}"


def write_original(path: Path) -> None:
    """Write weights as the original's file has them."""
    state = GenesisUNet(features=(4, 6, 8, 10)).state_dict()
    names = {name: f"module.out_tr.final_conv.{name[5:]}" for name in state if name.startswith("head.")}
    names |= {name: original_name(name) for name in state if name not in names}
    torch.save({"state_dict": {names[name]: value for name, value in state.items()}}, path)


@pytest.mark.timeout(1200)  # the environments are made here too
def test_a_new_reader_s_pages(
    reader: Session, wheel_environment: Callable[..., Path], python_of: Callable[..., Any], data: Path
) -> None:
    """README, get-started, own scans and loading, one after another in one folder, with the wheel and nothing else."""
    folder, session = reader.folder, reader
    write_original(folder / "Genesis_Chest_CT.pt")
    cube = np.random.default_rng(0).integers(-1000, 1000, (1, 32, 32, 16)).astype(np.int16)
    np.save(folder / "cube.npy", cube)
    in_sentences = [span.text for span in spans_of("README.md") if span.text.startswith("GenesisUNet.from_pretrained(")]
    asked = ["deformed.shape", "original.shape", "[float(original.min()), float(original.max())]"]
    given = "import numpy\ncube = numpy.load('cube.npy')\nfrom models_genesis.networks import GenesisUNet\n"
    deformed, original, (least, most), channels = session.run(
        "README.md", [*asked, *(f"{text}.head.out_channels" for text in in_sentences)], given=given
    )
    assert channels == 2
    assert sum(entries(data / "my_ct" / "datalist.json").values()) == 4
    assert entries(data / "lits" / "datalist.json") == {"training": 3, "validation": 1, "testing": 1}
    assert epochs(folder / "eval") == epochs(folder / "liver_eval") == 2
    settings = json.loads((folder / "liver_models" / "model.json").read_text())["settings"]
    assert settings["features"] == [4, 8]  # of the weights that the training before has left
    (said,) = (text for words, text in session.said.items() if words == ("python", "-"))
    assert "0 adapted, 2 skipped" in said  # all but the head
    scan = data / "mr_around_the_hippocampus" / "one.nii.gz"
    assert_same_space(folder / "predicted" / "one" / "one_seg.nii.gz", scan)
    assert deformed == original == list(cube.shape)
    assert 0 <= least < most <= 1
    torch.load(folder / "model.pt", weights_only=True)["head.weight"]

    commands = len(session.said)
    assert session.run("docs/get-started.md", ["network.head.out_channels"]) == [2]
    session.run("docs/how-to/own-scans.md")
    assert len(session.said) == commands  # they are the README's

    (folder / "scans").symlink_to(data / "my_ct")
    asked = ["network.model_settings['cube_size']", "file['features'].shape"]
    assert session.run("docs/loading.md", asked) == [[16, 16, 16], [4, 8]]
    assert {path.name for path in (folder / "folder").iterdir()} == {"model.safetensors", "config.json"}
    with_hub = python_of(wheel_environment(folder.parent / "with_hub", ["hub"]), processes=1)
    assert replace(session, python=with_hub).run("docs/loading.md", asked) == [[16, 16, 16], [4, 8]]
    assert {path.name for path in (folder / "folder").iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_pages_on_other_data(session: Session, data: Path) -> None:
    folder = session.folder
    session.run("docs/how-to/mr.md")
    assert epochs(folder / "eval") == 2
    assert json.loads((folder / "models" / "model.json").read_text())["settings"]["normalise"] == "zscore"
    variables = {name: str(data / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    session.run("docs/data-lists.md", variables=variables)
    assert entries(data / "lidc_voi" / "datalist.json") == {"training": 4, "validation": 2, "testing": 0}
    raw = data / "nnUNet_raw" / "Dataset004_Hippocampus"
    assert_same_space(folder / "predicted" / "case_5.nii.gz", raw / "imagesTs" / "case_5_0000.nii.gz")


def test_two_dimensions(session: Session, data: Path) -> None:
    folder = session.folder
    first = "encoder.levels.0.conv1.weight"
    asked = ["type(network).__name__", f"network.state_dict()[{first!r}].flatten().tolist()"]  # the last of the page
    kind, started_from = session.run("docs/how-to/two-dimensions.md", asked)
    of_slices, of_xrays = (
        json.loads((folder / name / "model.json").read_text())["settings"] for name in ("models", "xray_models")
    )
    assert of_slices["cube_size"] == of_xrays["cube_size"] == [40, 40]
    assert of_slices["slice_axis"] == of_xrays["slice_axis"] == 2
    assert of_xrays["normalise"] == "full_scale" and epochs(folder / "xray_eval") == 2
    assert entries(data / "xrays" / "datalist.json") == {"training": 3, "validation": 1, "testing": 0}
    assert epochs(folder / "eval") == 2
    assert (folder / "eval" / "restoration.csv").is_file()
    listed = json.loads((data / "my_ct" / "datalist.json").read_text())["validation"]
    restored = list((folder / "restored").glob("**/*_restored.nii.gz"))
    assert len(restored) == len(listed) > 0
    assert_same_space(restored[0], data / "my_ct" / listed[0]["image"])
    livers = json.loads((folder / "liver_models" / "model.json").read_text())["settings"]
    assert livers["slice_axis"] == 2 and livers["cube_size"] == [40, 40]
    assert (folder / "liver_eval" / "segmentation.csv").is_file()
    (case,) = json.loads((data / "lits" / "datalist.json").read_text())["testing"]
    (predicted,) = (folder / "liver_predicted").glob("**/*_seg.nii.gz")
    assert_same_space(predicted, data / "lits" / case["image"])
    kernels = torch.load(folder / "bundles" / PRETRAINING / "models" / "model.pt", weights_only=True)
    assert kind == "GenesisClassifier" and started_from == kernels[first][..., 1].flatten().tolist()


def test_the_card_of_the_pretraining(session: Session, data: Path) -> None:
    folder = session.folder
    session.run(f"bundles/{PRETRAINING}/docs/README.md")
    assert entries(data / "LUNA16" / "datalist.json") == {"training": 5, "validation": 2, "testing": 3}
    listed = json.loads((data / "my_ct" / "datalist.json").read_text())["validation"]
    restored = list((folder / "restored").glob("**/*_restored.nii.gz"))
    assert len(restored) == len(listed) > 0
    assert_same_space(restored[0], data / "my_ct" / listed[0]["image"])
    assert epochs(folder / "eval") == epochs(folder / "paper_eval") == 2
    (resumed,) = (text for words, text in session.said.items() if "--resume" in words)
    assert "last_epoch.pt: 1 epochs done" in resumed
    with (folder / "eval" / "restoration.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= len(listed)
    assert not (folder / "bundles" / PRETRAINING / "eval").exists()
    cube = torch.rand(1, 1, 16, 16, 16)
    assert torch.jit.load(folder / "models" / "model.ts")(cube).shape == cube.shape


def test_the_card_of_a_segmentation_and_other_formats(
    session: Session, data: Path, load_script: Callable[[Path], ModuleType]
) -> None:
    folder = session.folder
    session.run(f"bundles/{LITS}/docs/README.md")
    assert_same_space(folder / "predicted" / "volume-115" / "volume-115_seg.nii.gz", data / "lits" / "volume-115.nii")
    summary = json.loads((folder / "eval" / "segmentation.json").read_text())
    assert summary["cases"] == 1 and not summary["failed"]
    assert epochs(folder / "eval") == epochs(folder / "paper_eval") == 2

    scan = nib.load(data / "lits" / "volume-115.nii")
    series = load_script(ROOT / "tests" / "datasets" / "io" / "test_dicom_seg.py")
    series.write_series(folder / "dicom" / "case1", np.asarray(scan.dataobj), scan.affine)
    session.run("docs/formats.md", variables={"nnUNet_preprocessed": "/nowhere"})
    predicted, by_torchscript = (
        nib.load(folder / name / "case1" / "case1_seg.nii.gz") for name in ("predicted", "predicted_ts")
    )
    assert np.array_equal(predicted.dataobj, by_torchscript.dataobj)
    np.testing.assert_allclose(predicted.affine, by_torchscript.affine)
    assert pydicom.dcmread(folder / "case1_seg.dcm").Modality == "SEG"


def test_the_card_of_a_classification(session: Session, data: Path) -> None:
    folder = session.folder
    asked = ["float(found.probability[0])", "list(found.reason)"]
    probability, reasons = session.run(f"bundles/{LUNA}/docs/README.md", asked)
    assert entries(data / "luna16" / "datalist.json") == {"training": 5, "validation": 2, "testing": 3}
    given, scored = (
        (place / "candidates.csv").read_text().splitlines()[1:] for place in (data / "new", folder / "scored")
    )
    assert [row.rpartition(",")[0] for row in scored] == given
    assert all(0 <= float(row.rpartition(",")[2]) <= 1 for row in scored)
    assert 0 <= probability <= 1 and reasons == [""]
