# SPDX-License-Identifier: Apache-2.0
"""The four segmentation bundles learn the phantom, in processes of their own and from another directory."""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import assert_same_end, folders, history
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import SegResNet
from monai.transforms import Compose, Orientation

from models_genesis.datasets import CaseDataset
from models_genesis.networks import GenesisUNet, load_pretrained, save_weights
from models_genesis.transforms import BratsRegions

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
BUNDLES = [LITS, LIDC, BRATS, MSD]
STAGES = ["train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate", "paper"]
FOUR = ["flair", "t1", "t1ce", "t2"]

SHAPE = {"features": [8, 16, 32], "cube_size": [32, 32, 16], "overlap": 0.25}
TRAINING = {"epochs": 10, "val_interval": 5, "warmup_epochs": 1, "learning_rate": 0.01, "batch_size": 4}
OWN = {LITS: {}, LIDC: {"cube_size": [16, 16, 16]}, BRATS: {"channels": FOUR}, MSD: {}}
TRAINING_OF = {
    LITS: {"cubes_per_case": 8},
    LIDC: {"cubes_per_case": 8, "class_ratios": [1, 2]},
    BRATS: {"cubes_per_case": 8, "class_ratios": [1, 1, 1, 0, 1], "epochs": 14, "val_interval": 7},
    MSD: {"cubes_per_case": 8, "epochs": 8, "val_interval": 4},
}

# The best that can be had without learning is to call everything foreground: Dice 2 f / (1 + f) for a share f of it,
# which is at most 0.12 for the livers, 0.02 for the tumours, and 0.03 for the nodules. An untrained network is below.
BOUNDS = {LITS: 0.3, LIDC: 0.4, BRATS: 0.3, MSD: 0.3}


def config(bundle: str, stage: str) -> dict:
    return json.loads((ROOT / bundle / "configs" / f"{stage}.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """What the pretraining bundle leaves: the plain state dict of a network of one input and one output channel."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pretraining") / "model.pt"
    save_weights(GenesisUNet(features=SHAPE["features"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def arguments(data_of, weights):
    def make(bundle: str, folder: Path) -> dict:
        own = {**SHAPE, **OWN[bundle], **data_of(bundle), **folders(folder)}
        return {**own, **TRAINING, **TRAINING_OF[bundle], "pretrained": weights}

    return make


@pytest.fixture(scope="module", params=BUNDLES)
def trained(request, run_bundle, arguments, tmp_path_factory) -> tuple[str, Path, str]:
    """A finished training: the bundle, its folder and its log."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run_bundle(request.param, ["train"], **arguments(request.param, folder))
    return request.param, folder, done.stdout


def test_it_learns_what_an_untrained_network_does_not_know(trained, run_bundle, data_of):
    bundle, folder, log = trained
    assert "matched" in log and str(folder) in log
    assert ("adapted" in log and "input channels 1 -> 4" in log) == (bundle == BRATS)
    made = {path.name for path in (folder / "eval").iterdir() if "tfevents" not in path.name}
    assert made == {"history.csv", "history.png"}
    made = {path.name for path in (folder / "models").iterdir()}
    assert made == {"model.pt", "model.json", "last_epoch.pt", "last_epoch_before_1.pt", "birth_certificate.json"}
    own = {**SHAPE, **OWN[bundle], **data_of(bundle)}
    run_bundle(bundle, ["train", "evaluate"], **own, ckpt_dir=folder / "models", output_dir=folder / "evaluated")
    summary = json.loads((folder / "evaluated" / "segmentation.json").read_text())
    rows = list(csv.DictReader((folder / "evaluated" / "segmentation.csv").open()))
    assert not summary["failed"]
    dice = np.mean([float(row["dice"]) for row in rows])
    print(f"{bundle}: Dice {dice:.3f}")
    assert dice > BOUNDS[bundle]
    # what training saw of the best network is what evaluation finds
    assert dice == pytest.approx(max(float(value) for *_, value in history(folder) if value), abs=2e-3)
    assert len(list((folder / "evaluated").glob("*.png"))) == summary["cases"]


def test_a_prediction_lies_in_the_space_of_its_scan(trained, run_bundle, data_of, tmp_path):
    """One broken scan among them is named, the others are done, and the process does not exit with 0."""
    bundle, folder, _ = trained
    own = {**SHAPE, **OWN[bundle], **data_of(bundle)}
    own["dataset_dir"], scans = predicted_scans(bundle, Path(own["dataset_dir"]), tmp_path)
    own.pop("datalist", None)
    done = run_bundle(bundle, ["inference"], status=1, **own, ckpt_dir=folder / "models", output_dir=tmp_path / "out")
    assert "1 cases failed" in done.stderr and "broken" in done.stderr
    (saved,) = (tmp_path / "out").glob("*/*_seg.nii.gz")
    prediction, scan = nib.load(saved), nib.load(scans["image"])
    assert prediction.shape == scan.shape[:3]
    assert prediction.get_data_dtype() == np.uint8
    np.testing.assert_allclose(prediction.affine, scan.affine, atol=1e-4)
    found = np.asarray(prediction.dataobj)
    assert set(np.unique(found)) <= {0, 1, 2, 4}
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    # overlap with the truth proves that no axis is turned
    truth = np.asarray(nib.load(scans["label"]).dataobj)
    assert 2 * np.sum((found > 0) & (truth > 0)) / (np.sum(found > 0) + np.sum(truth > 0)) > BOUNDS[bundle]


def predicted_scans(bundle: str, source: Path, target: Path) -> tuple[str, dict[str, Path]]:
    """Make a folder of one good scan and a broken one; it returns the folder and the good one's files."""
    folder = target / "scans"
    if bundle == BRATS:
        for name in ("BraTS_2", "BraTS_1"):
            shutil.copytree(source / name, folder / name)
        broken = folder / "BraTS_1" / "BraTS_1_t2.nii.gz"
        (folder / "BraTS_1").rename(folder / "broken")
        broken = folder / "broken" / broken.name
        broken.write_bytes(broken.read_bytes()[:9000])
        good = source / "BraTS_2"
        return str(folder), {"image": good / "BraTS_2_flair.nii.gz", "label": good / "BraTS_2_seg.nii.gz"}
    folder.mkdir()
    image, label = {
        LITS: ("volume-100.nii", "segmentation-100.nii"),
        LIDC: ("images/4_*.nii.gz", "labels/4_*.nii.gz"),
        MSD: ("imagesTr/liver_100.nii.gz", "labelsTr/liver_100.nii.gz"),
    }[bundle]
    image, label = (sorted(source.glob(pattern))[0] for pattern in (image, label))
    shutil.copy(image, folder / image.name)
    (folder / f"broken{''.join(image.suffixes)}").write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return str(folder), {"image": image, "label": label}


def test_stopped_and_resumed_with_other_workers_it_comes_to_the_same_end(
    stop_training, run_bundle, arguments, tmp_path
):
    """SIGTERM after the first epochs; another number of worker processes afterwards; ends as without interruption."""
    short = {"epochs": 4, "val_interval": 2, "cubes_per_case": 4}
    short |= {"optimizer#params#slow_parts": ["encoder"], "train#run#freeze_epochs": 2}
    whole = {**arguments(LITS, tmp_path / "whole"), **short}
    run_bundle(LITS, ["train"], **whole)
    parts = {**arguments(LITS, tmp_path / "parts"), **short}
    last = tmp_path / "parts" / "models" / "last_epoch.pt"
    stop_training(LITS, signal.SIGTERM, last.exists, **parts)
    assert len(history(tmp_path / "parts")) < 4
    done = run_bundle(LITS, ["train"], **{**parts, "resume": True, "num_workers": 2, "pretrained": "/nowhere.pt"})
    assert "resumed" in done.stdout
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def test_weights_that_do_not_fit_are_refused_before_anything_is_read(run_bundle, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    given = {"pretrained": tmp_path / "other.pt", "dataset_dir": "/nowhere", **folders(tmp_path)}
    done = run_bundle(LITS, ["train"], status=1, **given)
    assert "other.pt" in done.stderr
    assert not (tmp_path / "models").exists()


def test_two_processes_train_from_scratch_by_the_paper_s_settings_and_evaluate(run_two_processes, arguments, tmp_path):
    """The tumour as a class of its own, too."""
    given = {**arguments(LITS, tmp_path), "tumour": True, "pretrained": "none", "split": "training"}
    given |= {"cube_size": [32, 32, 16], "cubes_per_case": 2, "epochs": 2, "val_interval": 1}
    done = run_two_processes(LITS, ["train", "paper", "multi_gpu_train"], **given)
    assert "from scratch" in done.stdout
    given["output_dir"] = tmp_path / "evaluated"
    run_two_processes(LITS, ["train", "evaluate", "multi_gpu_evaluate"], **given)
    network = GenesisUNet(features=SHAPE["features"], out_channels=3)
    assert load_pretrained(network, tmp_path / "models" / "model.pt", strict=True).matched
    rows = list(csv.DictReader((tmp_path / "evaluated" / "segmentation.csv").open()))
    assert len(rows) == 6  # three cases, two regions: each process measured its part, one wrote all


def default_of(value):
    """What a key is where the weights' own settings do not say it."""
    own = r"\$(?:settings_of_load..|@model_settings)\.get\('\w+'(?:\) or features_of_pretrained\(@pretrained)?, (.*)\)"
    found = re.fullmatch(own, value) if isinstance(value, str) else None
    return json.dumps(literal(found[1]) if found else value).strip('"$')


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_configs_of_a_bundle_agree(bundle):
    configs = {stage: config(bundle, stage) for stage in STAGES}
    train, inference = configs["train"], configs["inference"]
    shared = ["network_def", "precision", "network", "features", "cube_size", "slice_axis"]
    shared += ["spacing", "overlap", "out_channels"]
    assert [default_of(train[key]) for key in shared] == [default_of(inference[key]) for key in shared]
    assert inference["inferer"] == train["validate"]["inferer"]
    steps = train["validate"]["postprocessing"]["transforms"], inference["postprocessing"]["transforms"]
    assert [step["_target_"] for step in steps[0]] == [step["_target_"] for step in steps[1]][:-1]
    assert steps[1][-1]["_target_"] == "SaveImaged" and steps[1][-1]["output_dtype"] == "uint8"
    for stage in ("evaluate", "paper"):
        top = {key.split("#")[0] for key in configs[stage]}
        own = {"+imports", "num_resamples", "tolerance_mm", "model_settings"}
        assert top - set(train) <= {*own, "allow_changed_settings", "settings_check"}, stage


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_keys_of_its_description_exist(bundle):
    text = (ROOT / bundle / "docs" / "README.md").read_text()
    code = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", "")
    commands = [line for line in code.splitlines() if "-m monai.bundle run" in line]
    assert len(commands) >= 7
    assert [line for line in commands if "--output_dir" not in line] == []  # else results appear inside the bundle
    known = {key for stage in STAGES + ["inference"] for key in config(bundle, stage)}
    described = set(re.findall(r"`--(\w+)`", text))
    assert described <= known, described - known
    assert {"dataset_dir", "pretrained", "tta_flips", "intensity_range" if bundle != BRATS else "targets"} <= described


@pytest.mark.parametrize("fault", ["label of another shape", "undeclared label", "no foreground", "not CT"])
def test_bad_cases_are_named(fault, liver_cases, tmp_path):
    image = nib.load(liver_cases / "volume-0.nii")
    voxels, label = np.asarray(image.dataobj), np.asarray(nib.load(liver_cases / "segmentation-0.nii").dataobj)
    voxels = voxels + 1100 if fault == "not CT" else voxels
    label = {"label of another shape": label[1:], "undeclared label": label * 7, "no foreground": label * 0}.get(
        fault, label
    )
    nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "volume-0.nii")
    nib.save(nib.Nifti1Image(label, image.affine), tmp_path / "segmentation-0.nii")
    parser = ConfigParser(config(LITS, "train"))
    transform = parser.get_parsed_content("validate#preprocessing")
    entry = {"image": str(tmp_path / "volume-0.nii"), "label": str(tmp_path / "segmentation-0.nii")}
    with pytest.raises(ValueError, match=f"volume-0.nii: {fault}"):
        CaseDataset([entry], transform)[0]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_parts_work_as_monai_label_calls_them(bundle, data_of):
    """Its app takes ``preprocessing``, ``inferer``, ``network_def`` and ``postprocessing`` without ``SaveImaged``."""
    source = Path(data_of(bundle)["dataset_dir"])
    pattern = {LITS: "volume-100.nii", LIDC: "images/*.nii.gz", BRATS: "BraTS_2/*_flair.nii.gz", MSD: "imagesTs/*"}
    scan = sorted(source.glob(pattern[bundle]))[0]
    parser = ConfigParser(config(bundle, "inference"))
    parser.update({"device": torch.device("cpu"), **SHAPE, **OWN[bundle], "channels": ["flair"]})
    # not the enclosed weights', whose settings would count
    parser.update({"ckpt_dir": "no weights", **({"task": "Task03_Liver"} if bundle == MSD else {})})
    before, network, inferer, after = (
        parser.get_parsed_content(name) for name in ("preprocessing", "network_def", "inferer", "postprocessing")
    )
    after = [step for step in after.transforms if type(step).__name__ != "SaveImaged"]
    item = before({"image": str(scan)})
    with torch.no_grad():
        item["pred"] = inferer(item["image"][None], network.eval())[0]
    item = Compose(after)(item)
    original = nib.load(scan)
    assert tuple(item["pred"].shape) == (1, *original.shape)
    assert set(np.unique(item["pred"])) <= {0, 1, 2, 4}
    np.testing.assert_allclose(item["pred"].affine, original.affine, atol=1e-4)


def test_the_paper_s_settings_learn_the_whole_tumour_alone(data_of):
    """From FLAIR by one output, into a label map whose foreground is the tumour."""
    case = Path(data_of(BRATS)["dataset_dir"]) / "BraTS_2"
    entry = {"image": str(case / "BraTS_2_flair.nii.gz"), "label": str(case / "BraTS_2_seg.nii.gz")}
    parser = ConfigParser({**config(BRATS, "train"), **config(BRATS, "paper")})
    parser.update({"device": torch.device("cpu"), **SHAPE})
    names = ("network_def", "loss", "regions", "train#preprocessing", "train#random_transforms", "validate")
    network, loss, regions, prepare, draw = (parser.get_parsed_content(name) for name in names[:-1])
    assert network.head.out_channels == 1 and regions == {"whole tumour": (1, 2, 4)}
    cube = draw(prepare(dict(entry)))
    mask = cube["label"][None].float()
    assert mask.shape == (1, 1, *SHAPE["cube_size"])
    # the loss of a perfect answer, and of the opposite one: soft Dice with a smooth of 1
    assert float(loss(200 * mask - 100, mask)) == pytest.approx(0, abs=1e-4)
    assert float(loss(100 - 200 * mask, mask)) == pytest.approx(1 - 1 / (1 + mask.numel()), abs=1e-4)
    item = parser.get_parsed_content("validate#preprocessing")(dict(entry))
    whole = BratsRegions("2018", ["whole tumour"])(Orientation("RAS", labels=None)(item["label"]))
    item["pred"] = MetaTensor(200.0 * whole - 100, meta=item["image"].meta)
    found = parser.get_parsed_content("validate#postprocessing")(item)["pred"]
    np.testing.assert_array_equal(np.asarray(found) > 0, np.asarray(item["label"]) > 0)
    assert set(np.unique(found)) == {0, 2}


def test_another_network_learns_and_predicts_with_test_time_flips(run_bundle, arguments, data_of, tmp_path):
    """SegResNet, from weights of a SegResNet that restored, as the description says: only its last layer is new."""
    target = {"_target_": "SegResNet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    target |= {"in_channels": "@in_channels", "out_channels": "@out_channels"}
    (tmp_path / "my_network.json").write_text(json.dumps({"network_def": target}))
    pretrained = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,), in_channels=1, out_channels=1)
    save_weights(pretrained.state_dict(), tmp_path / "restored.pt")
    other = {"network_def": f"%{tmp_path}/my_network.json::network_def"}
    given = {**arguments(LIDC, tmp_path), **other, "pretrained": tmp_path / "restored.pt"}
    given.pop("features")
    done = run_bundle(LIDC, ["train"], **{**given, "epochs": 1, "val_interval": 1, "cubes_per_case": 1})
    assert "SegResNet" in done.stdout and "0 missing" in done.stdout and "matched" in done.stdout
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert state["conv_final.2.conv.weight"].shape[0] == 2
    assert set(state) == set(pretrained.state_dict())
    own = {**OWN[LIDC], **data_of(LIDC), **other, "overlap": 0.25}
    folders = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "out"}
    run_bundle(LIDC, ["inference"], **own, **folders, tta_flips=[0, 2])
    cases = json.loads(Path(own["datalist"]).read_text())["testing"]
    assert len(list((tmp_path / "out").glob("*/*_seg.nii.gz"))) == len(cases) > 0


def test_monai_label_s_fine_tuning_goes_on_from_model_pt(run_bundle, arguments, tmp_path):
    """Its app gives lists of image and label, and a ``CheckpointLoader`` among the handlers, here as the last."""
    given = arguments(LITS, tmp_path)
    source = Path(given["dataset_dir"])
    cases = [{"image": f"{source}/volume-{n}.nii", "label": f"{source}/segmentation-{n}.nii"} for n in (0, 1)]
    network = GenesisUNet(features=SHAPE["features"], out_channels=2)
    save_weights(network.state_dict(), tmp_path / "start.pt")
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(tmp_path / "start.pt"),
        "load_dict": {"model": "@network"},
    }
    override = {
        "train#dataset#data": cases[:1],
        "validate#dataset#data": cases[1:],
        "train#handlers": [*config(LITS, "train")["train"]["handlers"], loader],
    }
    (tmp_path / "label.json").write_text(json.dumps(override))
    given = {**given, "dataset_dir": "/nowhere", "pretrained": "/nowhere.pt", "epochs": 1, "val_interval": 1}
    files = str([str(ROOT / LITS / "configs" / "train.json"), str(tmp_path / "label.json")])
    done = run_bundle(LITS, ["train"], **given, config_file=files)
    assert "not from --pretrained /nowhere.pt" in done.stdout
    assert (tmp_path / "models" / "model.pt").is_file()
