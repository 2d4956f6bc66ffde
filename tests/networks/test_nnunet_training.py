# SPDX-License-Identifier: Apache-2.0
"""nnU-Net itself plans a data set, its network is pretrained by our bundle, and nnU-Net trains on from that.

Needs nnU-Net v2, which has an environment of its own: ``make test-nnunet``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from models_genesis.datasets import Label, list_nnunet, make_phantom
from models_genesis.datasets.layouts.nnunet_splits import cross_validation
from models_genesis.networks.nnunet import HEADS, convert_to_nnunet, write_pretraining_config
from models_genesis.networks.nnunet_adaptation import PLAN
from models_genesis.networks.nnunet_plans import read_plan

pytest.importorskip("nnunetv2", reason="nnU-Net v2 is not installed here: make test-nnunet has an environment with it")
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

pytestmark = pytest.mark.timeout(1800)

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "genesis_chest_ct_pretraining"

TRAINER = """
import os
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

    def on_train_start(self):
        super().on_train_start()
        torch.save(self.network.state_dict(), os.environ["START_WEIGHTS"])

    def perform_actual_validation(self, save_probabilities=False):
        pass  # whole scans by sliding window: not what is tested here, and slow
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What nnU-Net takes from the environment: its three folders, and one process with one thread."""
    root = tmp_path_factory.mktemp("nnunet")
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    (root / "trainers").mkdir()
    (root / "trainers" / "short_trainer.py").write_text(TRAINER)
    settings = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **folders, **settings, "nnUNet_extTrainer": str(root / "trainers")}


def run(command: list[str], environment: dict[str, str], **more: str) -> str:
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
    done = subprocess.run(
        [program, *command[1:]], env={**environment, **more}, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def plans(environment: dict[str, str]) -> dict[str, Path]:
    """Five phantom livers in nnU-Net's layout, planned for both of its U-Nets and preprocessed."""
    raw = Path(environment["nnUNet_raw"]) / "Dataset001_Phantom"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for seed in range(5):
        phantom = make_phantom(seed, region="abdomen", shape=(48, 40, 32), spacing=(5.0, 5.0, 6.0))
        liver = np.isin(phantom.label, (Label.LIVER, Label.LESION)).astype(np.uint8)
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), raw / "imagesTr" / f"case{seed}_0000.nii.gz")
        nib.save(nib.Nifti1Image(liver, phantom.affine), raw / "labelsTr" / f"case{seed}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    run(["nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1"], environment)
    run(["nnUNetv2_plan_experiment", "-d", "1", "-pl", "nnUNetPlannerResEncL"], environment)
    folder = Path(environment["nnUNet_preprocessed"]) / "Dataset001_Phantom"
    return {"plain": folder / "nnUNetPlans.json", "residual": folder / "nnUNetResEncUNetLPlans.json"}


@pytest.fixture(scope="module")
def pretrained(plans: dict[str, Path], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planned network after one short epoch of our bundle on other scans: the folder of ``model.pt``."""
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "scans").mkdir()
    for seed in range(3):
        phantom = make_phantom(seed, region="chest", shape=(72, 64, 64))
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "scans" / f"patient{seed}.nii.gz")
    config = write_pretraining_config(plans["plain"], folder / "nnunet.json")
    assert config["cube_size"] == [48, 40, 32]
    overrides = {
        "config_file": f"['{BUNDLE}/configs/train.json','{folder}/nnunet.json']",
        "bundle_root": BUNDLE,
        "dataset_dir": folder / "scans",
        "ckpt_dir": folder / "models",
        "output_dir": folder / "eval",
        "epochs": 1,
        "warmup_epochs": 0,
        "batch_size": 2,
        "cubes_per_scan": 2,
        "val_cubes_per_scan": 1,
        "cube_size": "[32,32,32]",
    }
    line = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    run([sys.executable, "-m", "monai.bundle", "run", *line], environment)
    return folder / "models"


def test_nnunet_trains_on_from_our_weights(
    plans: dict[str, Path], pretrained: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    checkpoint, start = tmp_path / "genesis.pth", tmp_path / "start.pt"
    command = [sys.executable, "-m", "models_genesis.networks", "nnunet-checkpoint"]
    report = run([*command, str(pretrained / "model.pt"), str(plans["plain"]), str(checkpoint)], environment)
    assert "into PlainConvUNet: 182 matched, 0 adapted, 6 skipped, 0 missing" in report
    ours = torch.load(checkpoint, weights_only=True)["network_weights"]
    encoder = sum(name.startswith("encoder.") for name in ours)
    assert f"{PLAN}: all {encoder} tensors of encoder.stages, all " in report
    run(
        ["nnUNetv2_train", "1", "3d_fullres", "0", "-tr", "ShortTrainer", "-device", "cpu"]
        + ["-pretrained_weights", str(checkpoint)],
        environment,
        START_WEIGHTS=str(start),
        nnUNet_n_proc_DA="0",
    )
    started = torch.load(start, weights_only=True)
    assert {name for name in started if HEADS not in name} == set(ours)
    for name, tensor in ours.items():
        assert torch.equal(started[name], tensor), name
    (final,) = Path(environment["nnUNet_results"]).rglob("checkpoint_final.pth")
    trained = torch.load(final, weights_only=False)["network_weights"]
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(trained[first], ours[first])  # and it trained on
    pretrained_first = torch.load(pretrained / "model.pt", weights_only=True)[first]
    assert torch.equal(ours[first], pretrained_first.permute(0, 1, 4, 3, 2))


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
def test_the_converted_network_does_the_same_to_nnunets_patch(
    kind: str, order: list[int], plans: dict[str, Path], tmp_path: Path
) -> None:
    """Even where kernels and strides differ between axes, and nnU-Net's own classes build and load the network."""
    content = json.loads(plans[kind].read_text())
    content["transpose_forward"] = order
    arguments = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4 * 2**stage for stage in range(arguments["n_stages"])]
    arguments["kernel_sizes"][0] = [1, 3, 3]
    arguments["strides"][1] = [1, 2, 2]
    path, weights, checkpoint = (tmp_path / name for name in ("plans.json", "model.pt", "genesis.pth"))
    path.write_text(json.dumps(content))
    torch.manual_seed(0)
    ours = read_plan(path).build().eval()
    torch.save(ours.state_dict(), weights)
    convert_to_nnunet(weights, path, checkpoint)
    configuration = PlansManager(str(path)).get_configuration("3d_fullres")
    theirs = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        1,
        deep_supervision=False,
    ).eval()
    load_pretrained_weights(theirs, str(checkpoint))
    # the segmentation layers are not carried over, so they are given to both
    head = f"decoder{HEADS}{arguments['n_stages'] - 2}"
    theirs.get_submodule(head).load_state_dict(ours.get_submodule(head).state_dict())

    def as_nnunet(image: torch.Tensor) -> torch.Tensor:
        return image.permute(0, 1, 4, 3, 2).permute(0, 1, *(2 + axis for axis in order))

    scan = torch.rand(1, 1, 32, 48, 64)
    with torch.inference_mode():
        expected = as_nnunet(ours(scan))
        assert expected.std() > 1e-2
        torch.testing.assert_close(theirs(as_nnunet(scan)), expected, atol=1e-4, rtol=0)


def test_image_channels_are_adapted(plans: dict[str, Path], tmp_path: Path) -> None:
    """Weights of one channel for a data set of three: the response to the same image in all channels stays."""
    content = json.loads(plans["plain"].read_text())
    weights, path, checkpoint = (tmp_path / name for name in ("model.pt", "plans.json", "genesis.pth"))
    torch.save(read_plan(plans["plain"]).build().state_dict(), weights)
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 3
    path.write_text(json.dumps(content))
    report = convert_to_nnunet(weights, path, checkpoint)
    assert set(report.adapted) == {
        f"{side}stages.0.0.convs.0.{name}.weight"
        for side in ("encoder.", "decoder.encoder.")
        for name in ("conv", "all_modules.0")
    }
    network = read_plan(path).build(in_channels=3, file_axes=False)
    load_pretrained_weights(network, str(checkpoint))
    kernel = network.get_parameter("encoder.stages.0.0.convs.0.conv.weight")
    first = torch.load(weights, weights_only=True)["encoder.stages.0.0.convs.0.conv.weight"]
    torch.testing.assert_close(kernel.sum(1), first.permute(0, 1, 4, 3, 2)[:, 0])


def test_weights_of_another_plan_are_refused(plans: dict[str, Path], tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    torch.save(read_plan(plans["plain"]).build().state_dict(), weights)
    with pytest.raises(ValueError, match=r"is not of the network that .*LPlans.json has for 3d_fullres"):
        convert_to_nnunet(weights, plans["residual"], tmp_path / "genesis.pth")
    assert not (tmp_path / "genesis.pth").exists()


def network_of(plan: dict[str, Any], channels: int) -> torch.nn.Module:
    """Build what ``nnUNetv2_preprocess_like_nnssl`` writes into its plans, with nnU-Net's own function."""
    architecture = plan["architecture_plans"]
    names = ("arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import")
    return get_network_from_plans(*(architecture[name] for name in names), channels, 2, deep_supervision=False)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_adaptation_plan_leads_to_every_tensor_of_the_encoder(
    kind: str, channels: int, plans: dict[str, Path], tmp_path: Path
) -> None:
    """The steps of nnU-Net's ``PretrainedTrainer`` as its source has them: build by the plan, load encoder and stem."""
    content = json.loads(plans[kind].read_text())
    settings = content["configurations"]["3d_fullres"]
    settings["normalization_schemes"] = ["ZScoreNormalization"] * channels
    arguments = settings["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4 * 2**stage for stage in range(arguments["n_stages"])]
    arguments["kernel_sizes"][0] = [1, 3, 3]
    path, weights, checkpoint = (tmp_path / name for name in ("plans.json", "model.pt", "genesis.pth"))
    path.write_text(json.dumps(content))
    torch.manual_seed(0)
    torch.save(read_plan(path).build().state_dict(), weights)
    convert_to_nnunet(weights, path, checkpoint)
    found = torch.load(checkpoint, weights_only=True)
    plan, tensors = found[PLAN], found["network_weights"]
    (pretraining,) = plan["pretrain_plan"]["configurations"].values()
    assert pretraining == {"patch_size": settings["patch_size"], "spacing": None}
    assert plan["recommended_downstream_patchsize"] == settings["patch_size"]
    assert plan["pretrain_num_input_channels"] == channels
    assert plan["architecture_kwargs"]["kernel_sizes"][0] == [1, 3, 3]
    assert [citation["name"] for citation in found["citations"]] == ["Models Genesis"]
    network = network_of(plan, channels)
    assert (network.key_to_encoder, network.key_to_stem) == (plan["key_to_encoder"], plan["key_to_stem"])
    assert list(network.keys_to_in_proj) == plan["keys_to_in_proj"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        own = {name.removeprefix(key + "."): tensor for name, tensor in tensors.items() if name.startswith(key + ".")}
        network.get_submodule(key).load_state_dict(own)  # strict: as many, of these names and shapes
    encoder = [name for name in before if name.startswith("encoder.")]
    assert len(encoder) > 40 and all(torch.equal(network.state_dict()[name], tensors[name]) for name in encoder)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before if HEADS in name)


@pytest.mark.parametrize("road", ["nnUNetv2_preprocess_like_nnssl", "nnUNetv2_plan_like_dynamic"])
@pytest.mark.parametrize("scratch", [False, True])
def test_nnunets_own_road(
    road: str, scratch: bool, plans: dict[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """As its documentation has it; the release on PyPI that is pinned here does not have these commands yet."""
    if shutil.which(road, path=str(Path(sys.executable).parent)) is None:
        pytest.skip(f"this nnU-Net has no {road}: it is newer than the release 2.8.1 on PyPI")
    weights, checkpoint = tmp_path / "model.pt", tmp_path / "genesis.pth"
    torch.save(read_plan(plans["residual"]).build().state_dict(), weights)
    convert_to_nnunet(weights, plans["residual"], checkpoint)
    name = f"genesis{int(scratch)}"
    dynamic = road.endswith("dynamic")
    run(
        [road, "-d", "1", "-n", name, "-pc", str(checkpoint), "-np", "1"]
        + (["-pl", "nnUNetResEncUNetLPlans"] if dynamic else ["-am", "like_pretrained"]),
        environment,
    )
    (written,) = plans["plain"].parent.glob(f"ptPlans*{name}*.json")
    information = json.loads(written.read_text())["pretrain_info"]
    assert (information["key_to_encoder"], information["key_to_stem"]) == ("encoder.stages", "encoder.stem")
    trainer = "DynamicPretrainedTrainer" if dynamic else "PretrainedTrainer"
    short = Path(environment["nnUNet_extTrainer"]) / f"short_{trainer.lower()}.py"
    module = "dynamicPretrainedTrainer" if dynamic else "pretrainedTrainer"
    source = TRAINER.replace(
        "nnUNetTrainer.nnUNetTrainer import nnUNetTrainer", f"nnUNetTrainer.pretraining.{module} import {trainer}"
    )
    short.write_text(source.replace("(nnUNetTrainer)", f"({trainer})").replace("ShortTrainer", f"Short{trainer}"))
    start = tmp_path / "start.pt"
    command = ["nnUNetv2_train_pretrained", "1", "3d_fullres", "0", "-p", written.stem, "-tr", f"Short{trainer}"]
    more = {"START_WEIGHTS": str(start), "nnUNet_n_proc_DA": "0"}
    run([*command, "-device", "cpu", *(["--from_scratch"] if scratch else [])], environment, **more)
    tensors = torch.load(checkpoint, weights_only=True)["network_weights"]
    started = torch.load(start, weights_only=True)
    encoder = [name for name in started if name.startswith("encoder.") and name.endswith("conv.weight")]
    assert encoder and all(torch.equal(started[name], tensors[name]) != scratch for name in encoder)


def test_folds_are_those_of_nnunet(plans: dict[str, Path], environment: dict[str, str]) -> None:
    """For other numbers of cases too; and the list of the raw data set has the fold that nnU-Net trains on."""
    for number in (5, 11, 24):
        names = sorted(f"case_{each}" for each in range(number))
        theirs = generate_crossval_split(names, seed=12345, n_splits=5)
        for fold, split in enumerate(theirs):
            assert cross_validation(names, fold) == ([*map(str, split["train"])], [*map(str, split["val"])])
    summary = list_nnunet(Path(environment["nnUNet_raw"]) / "Dataset001_Phantom", fold=2)
    assert not any(scan.reason for scan in summary.scans)
    (validation,) = generate_crossval_split([f"case{seed}" for seed in range(5)], seed=12345, n_splits=5)[2]["val"]
    assert [scan.patient for scan in summary.scans if scan.split == "validation"] == [validation]


def test_nnunet_reads_predictions_by_our_names(environment: dict[str, str], tmp_path: Path) -> None:
    """The label maps themselves, saved under the names of the data list, are a perfect segmentation to nnU-Net."""
    raw = Path(environment["nnUNet_raw"]) / "Dataset001_Phantom"
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    for entry in list_nnunet(raw, fold=0).datalist()["training"]:
        shutil.copy(raw / entry["label"], predicted / entry["prediction"])
    folder = Path(environment["nnUNet_preprocessed"]) / "Dataset001_Phantom"
    files = ["-djfile", str(raw / "dataset.json"), "-pfile", str(folder / "nnUNetPlans.json")]
    command = ["nnUNetv2_evaluate_folder", str(raw / "labelsTr"), str(predicted), *files, "-np", "1", "--chill"]
    run(command, environment)
    summary = json.loads((predicted / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == 1
    assert len(summary["metric_per_case"]) == 4
