# SPDX-License-Identifier: Apache-2.0
"""The segmentation bundles in MONAI Label's own ``monaibundle`` app, over REST and by its Python client."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from models_genesis.datasets import Label, make_phantom
from models_genesis.training import save_trained_weights

LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
FOUR = ["flair", "t1", "t1ce", "t2"]
SETTINGS: dict[str, dict[str, Any]] = {
    LITS: {},
    LIDC: {"cube_size": [16, 16, 16], "spacing": [1.0, 1.0, 2.0]},
    BRATS: {"channels": FOUR},
    MSD: {"task": "Task03_Liver"},
}
NAMES = {
    LITS: {"liver": 1},
    LIDC: {"nodule": 1},
    BRATS: {"necrosis or non-enhancing tumour": 1, "oedema": 2, "enhancing tumour": 4},
    MSD: {"liver": 1, "cancer": 2},
}


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    """The values as they are in the file."""
    return np.asarray(image.dataobj)


def lits_cases(shared: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for number in (0, 1):
        image = nib.load(shared / "data" / "lits" / f"volume-{number}.nii.gz")
        yield voxels(image), voxels(nib.load(shared / "data" / "lits" / f"segmentation-{number}.nii.gz")), image.affine


def lidc_cases(shared: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    folder = shared / "data" / "lidc"
    image, votes = (nib.load(folder / "volume" / f"lidc_idri_0314_{name}.nii.gz") for name in ("image", "reader_votes"))
    yield voxels(image), (voxels(votes) >= 2).astype(np.uint8), image.affine
    cube = np.load(folder / "cubes" / "20_nod3_ann0.npz")
    yield cube["image"], cube["mask"].astype(np.uint8), np.eye(4)


def brats_cases(shared: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for name in ("TCGA_DU-7294", "TCGA_FG-6692"):
        images = [nib.load(shared / "data" / "brats" / name / f"{name}_{contrast}.nii.gz") for contrast in FOUR]
        label = nib.load(shared / "data" / "brats" / name / f"{name}_seg.nii.gz")
        yield np.stack([voxels(image) for image in images], -1), voxels(label), images[0].affine


def msd_cases(shared: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for seed in (0, 1):
        phantom = make_phantom(seed, region="abdomen", shape=(72, 64, 48))
        label = np.zeros(phantom.label.shape, np.uint8)
        label[phantom.label == Label.LIVER] = 1
        label[phantom.label == Label.LESION] = 2
        yield phantom.image, label, phantom.affine


CASES = {LITS: lits_cases, LIDC: lidc_cases, BRATS: brats_cases, MSD: msd_cases}


def write_balanced_weights(bundle: Path, scan: Path) -> None:
    """Write weights with which every class is found all over a scan.

    They are random, and each output is shifted by its 80 % quantile. So label maps have edges everywhere, and two that
    agree in every voxel agree for a reason.
    """
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.update({"device": torch.device("cpu")})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    image = parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"]
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(image[None], network)[0]
        # of different values, for all the air has one, which would be on the edge as a whole
        shift = torch.stack([channel.unique().quantile(0.8) for channel in logits.as_tensor()])
        list(network.parameters())[-1].sub_(shift)
    training = ConfigParser()
    training.read_config(bundle / "configs" / "train.json")
    training.update({"bundle_root": str(bundle)})
    settings = training.get_parsed_content("train#run#model_settings")
    save_trained_weights(network.state_dict(), bundle / "models" / "model.pt", settings)


@dataclass
class Stock:
    """The stock app with one bundle."""

    server: Any
    bundle: Path
    studies: Path
    labels: list[Path]
    run_bundle: Callable[..., str]

    @property
    def name(self) -> str:
        return self.bundle.name

    def predict(self, folder: Path) -> dict[str, np.ndarray]:
        """The label maps of ``python -m monai.bundle run`` with the weights that the server has."""
        (folder / "datalist.json").write_text(json.dumps({"testing": [{"image": str(path)} for path in self.scans]}))
        given = {"dataset_dir": folder, "datalist": folder / "datalist.json", "output_dir": folder / "predicted"}
        self.run_bundle(self.bundle, "inference", folder, **given)
        found = {path.name[: -len("_seg.nii.gz")]: path for path in folder.glob("predicted/*/*_seg.nii.gz")}
        return {name: voxels(nib.load(path)) for name, path in found.items()}

    @property
    def scans(self) -> list[Path]:
        return sorted(self.studies.glob("*.nii.gz"))


@pytest.fixture(scope="module", params=[LITS, LIDC, BRATS, MSD])
def stock(request, start_server, copy_bundle, run_bundle, run_python, shared, tmp_path_factory) -> Iterator[Stock]:
    """A server of the stock app, as ``monailabel apps --download`` gives it, with a bundle.

    It computes in float32, so that its label maps can be held against those of the bundle voxel by voxel.
    """
    name = request.param
    folder = tmp_path_factory.mktemp("stock")
    monailabel = "import sys; from monailabel.main import Main; sys.argv[0] = 'monailabel'; Main().run()"
    run_python("-c", monailabel, "apps", "--download", "--name", "monaibundle", "--output", folder, cwd=folder)
    studies, labels = folder / "studies", []
    for number, (image, label, affine) in enumerate(CASES[name](shared)):
        save(studies / f"case_{number}.nii.gz", image, affine)
        labels.append(save(folder / "labels" / f"case_{number}.nii.gz", label, affine))
    app = folder / "monaibundle"
    bundle = copy_bundle(name, app / "model" / name, **SETTINGS[name], amp=False, overlap=0.25, learning_rate=0.01)
    write_balanced_weights(bundle, studies / "case_0.nii.gz")
    with start_server(app, studies, models=name, zoo_source="local", sam2="false") as server:
        yield Stock(server, bundle, studies, labels, run_bundle)


def test_labels_and_trainers_are_listed(stock):
    info = stock.server.get("/info/")
    assert info["models"][stock.name]["labels"] == NAMES[stock.name]
    assert info["models"][stock.name]["type"] == "segmentation"
    assert info["models"][stock.name]["dimension"] == 3
    assert list(info["trainers"]) == [stock.name]
    assert info["datastore"]["total"] == 2


def test_label_maps_are_those_of_the_bundle(stock, tmp_path):
    """By REST for a scan of the studies, by REST for a file that is sent along, and by the client."""
    from monailabel.client import MONAILabelClient

    expected = stock.predict(tmp_path)
    assert set(expected) == {"case_0", "case_1"}
    client = MONAILabelClient(stock.server.url, tmpdir=str(tmp_path))
    for scan in stock.scans:
        name = scan.name[: -len(".nii.gz")]
        file, params = client.infer(stock.name, name, {})
        assert params["label_names"] == NAMES[stock.name]
        found = {
            "by REST": stock.server.infer(stock.name, tmp_path / "rest.nii.gz", image=name),
            "with its file": stock.server.infer(stock.name, tmp_path / "sent.nii.gz", file=scan),
            "by the client": nib.load(file),
        }
        for how, label in found.items():
            assert label.get_data_dtype() == np.uint8, how
            assert label.shape == nib.load(scan).shape[:3], how
            np.testing.assert_allclose(label.affine, nib.load(scan).affine, atol=1e-4, err_msg=how)
            np.testing.assert_array_equal(voxels(label), expected[name], err_msg=how)
    values = {0, *NAMES[stock.name].values()}
    assert set(np.unique(expected["case_0"])) == values and set(np.unique(expected["case_1"])) <= values


def test_training_goes_on_from_the_weights_and_is_used_at_once(stock, tmp_path):
    """Labels are handed in as a viewer does; the next label map is that of the new weights."""
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(stock.server.url, tmpdir=str(tmp_path))
    for number, label in enumerate(stock.labels):
        client.save_label(f"case_{number}", str(label), tag="final")
    assert stock.server.get("/info/")["datastore"]["completed"] == 2
    objects = client.datastore()["objects"]
    assert {name: set(each["labels"]) for name, each in objects.items()} == {name: {"final"} for name in objects}
    for number, label in enumerate(stock.labels):
        stored = client.download_label(f"case_{number}", "final")
        np.testing.assert_array_equal(voxels(nib.load(stored)), voxels(nib.load(label)))
    assert client.next_sample("first", {}) == {}  # nothing is left to label

    weights = stock.bundle / "models" / "model.pt"
    before = torch.load(weights, weights_only=True)
    request = {"max_epochs": 1, "val_split": 0.5, "device": "cpu", "multi_gpu": False}
    client.train_start(stock.name, request)
    status = stock.server.wait("train")
    assert status["request"]["model"] == stock.name
    assert status["details"]
    log = stock.server.log.read_text(errors="replace")
    assert "the training starts from" in log and f"{stock.name}/models/model.pt" in log
    # of the files next to it, a viewer is offered this one first
    assert stock.server.get("/info/")["models"][stock.name]["config"]["model_filename"][0] == "model.pt"
    after = torch.load(weights, weights_only=True)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)

    expected = stock.predict(tmp_path)
    for name, label in expected.items():
        found = stock.server.infer(stock.name, tmp_path / "found.nii.gz", image=name)
        np.testing.assert_array_equal(voxels(found), label)


def test_the_server_listens_on_the_loopback_address_alone(stock):
    import psutil

    listening = [
        each.laddr.ip
        for each in psutil.Process(stock.server.process.pid).net_connections("inet")
        if each.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]


def test_names_are_literals_of_the_metadata(stock):
    """What MONAI Label shows are the names that the metadata give the values of the label map."""
    metadata = json.loads((stock.bundle / "configs" / "metadata.json").read_text())
    given = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert {name: ast.literal_eval(value) for value, name in given.items() if name != "background"} == NAMES[stock.name]
