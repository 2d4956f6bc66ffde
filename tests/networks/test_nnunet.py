# SPDX-License-Identifier: Apache-2.0
"""From nnU-Net's plans to a config of the pretraining bundle, and back: all that needs no nnU-Net."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Orientationd
from torch import nn

from models_genesis.networks import nnunet_plans
from models_genesis.networks.__main__ import main
from models_genesis.networks.network_def import describe_network_def
from models_genesis.networks.nnunet_plans import read_plan
from models_genesis.training import save_trained_weights

TRAIN = Path(__file__).resolve().parents[2] / "bundles" / "genesis_chest_ct_pretraining" / "configs" / "train.json"

PLANS: dict[str, Any] = {
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "2d": {"patch_size": [64, 48]},
        "3d_fullres": {
            "patch_size": [16, 48, 64],
            "normalization_schemes": ["CTNormalization"],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": [4, 8, 16],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
                    "n_conv_per_stage": [2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        },
        "3d_small": {"inherits_from": "3d_fullres", "patch_size": [8, 24, 32]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_small"},
        "endless": {"inherits_from": "endless"},
    },
}


def write_plans(folder: Path, **changes: Any) -> Path:
    """Write plans; ``changes`` are set at the path that a key names, parts apart by two underscores."""
    plans = copy.deepcopy(PLANS)
    for key, value in changes.items():
        *parents, last = key.split("__")
        entry = plans
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(plans))
    return path


def test_the_config_shows_pretraining_what_nnunet_will_see(tmp_path: Path) -> None:
    """Slices, rows, columns in nnU-Net; columns, rows, slices here."""
    target = tmp_path / "nnunet.json"
    assert main(["nnunet-config", str(write_plans(tmp_path)), str(target)]) == 0
    parser = ConfigParser()
    parser.read_config([str(TRAIN), str(target)])  # as --config_file does
    (orientation,) = (step for step in parser.get_parsed_content("train#preprocessing").transforms
                      if isinstance(step, Orientationd))  # fmt: skip
    assert orientation.ornt_transform.axcodes == "LPS"
    assert parser["cube_size"] == [64, 48, 16]
    network = parser["network_def"]
    assert network["_target_"].endswith(".PlainConvUNet")
    assert (network["input_channels"], network["num_classes"], network["deep_supervision"]) == (1, 1, False)
    assert network["kernel_sizes"] == [[3, 3, 1], [3, 3, 3], [3, 3, 3]]
    assert network["strides"] == [[1, 1, 1], [2, 2, 1], [1, 2, 2]]
    assert parser.get_parsed_content("network_def#conv_op") is nn.Conv3d
    assert parser.get_parsed_content("network_def#norm_op") is nn.InstanceNorm3d
    assert network["dropout_op"] is None


@pytest.mark.parametrize(
    ("order", "cube", "first_stride"),
    [([0, 1, 2], [64, 48, 16], [2, 2, 1]), ([1, 0, 2], [64, 16, 48], [2, 1, 2]), ([2, 0, 1], [16, 64, 48], [1, 2, 2])],
)
def test_transposed_plans(order: list[int], cube: list[int], first_stride: list[int], tmp_path: Path) -> None:
    """``transpose_forward`` says which of slices, rows, columns each axis of nnU-Net is: 0, 1 or 2."""
    plan = read_plan(write_plans(tmp_path, transpose_forward=order))
    assert plan.cube_size() == cube
    assert plan.network_def()["strides"][1] == first_stride


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_a_turned_kernel_does_the_same_to_the_turned_scan(order: list[int], kind: Any, tmp_path: Path) -> None:
    """nnU-Net reverses the file's axes, then takes them in the order of ``transpose_forward``."""
    plan = read_plan(write_plans(tmp_path, transpose_forward=order))
    torch.manual_seed(0)
    ours = kind(2, 3, kernel_size=(1, 2, 3), stride=(1, 2, 3))
    kernel = plan.kernel_in_plan_axes(ours.weight.data)
    size = [(1, 2, 3)[axis] for axis in plan.axes]
    theirs = kind(2, 3, kernel_size=size, stride=size)
    assert kernel.shape == theirs.weight.shape
    theirs.load_state_dict({"weight": kernel, "bias": ours.bias})
    scan = torch.rand(1, 2, 5, 6, 9)

    def as_nnunet(image: torch.Tensor) -> torch.Tensor:
        reversed_axes = image.permute(0, 1, 4, 3, 2)
        return reversed_axes.permute(0, 1, *(2 + axis for axis in order))

    with torch.inference_mode():
        torch.testing.assert_close(theirs(as_nnunet(scan)), as_nnunet(ours(scan)))
    bias = torch.rand(3)
    assert plan.kernel_in_plan_axes(bias) is bias


def test_configurations_inherit_and_readers_orient(tmp_path: Path) -> None:
    plan = read_plan(write_plans(tmp_path), "3d_small")
    assert (plan.patch_size, plan.axcodes, plan.in_channels) == ((8, 24, 32), "LPS", 1)
    assert read_plan(write_plans(tmp_path, image_reader_writer="NibabelIOWithReorient")).axcodes == "RAS"
    assert read_plan(write_plans(tmp_path), axcodes="PIR").axcodes == "PIR"
    four = write_plans(tmp_path, configurations__3d_fullres__normalization_schemes=["ZScoreNormalization"] * 4)
    assert read_plan(four).in_channels == 4


KWARGS = "configurations__3d_fullres__architecture__arch_kwargs__"


@pytest.mark.parametrize(
    ("changes", "configuration", "message"),
    [
        ({}, "2d", "expected plans of nnU-Net v2 with an architecture"),
        (
            {"configurations__2d": {**PLANS["configurations"]["3d_fullres"], "patch_size": [64, 48]}},
            "2d",
            "expected a 3D",
        ),
        ({}, "3d_lowres", "expected the configuration 3d_lowres, found 2d, 3d_fullres"),
        ({}, "3d_cascade_fullres", "also takes the segmentation of 3d_small"),
        ({}, "endless", "a circle of endless"),
        (
            {KWARGS + "conv_op": "os.system"},
            "3d_fullres",
            "expected a class of torch.nn for conv_op, found 'os.system'",
        ),
        ({KWARGS + "conv_op": "torch.nn.Conv3d and exit()"}, "3d_fullres", "expected a class of torch.nn for conv_op"),
        ({KWARGS + "n_stages": "$__import__('os').getcwd()"}, "3d_fullres", "expected numbers for .* n_stages"),
        ({KWARGS + "nonlin_kwargs": {"_target_": 1}}, "3d_fullres", "expected numbers for .* nonlin_kwargs"),
        (
            {"configurations__3d_fullres__architecture__network_class_name": "shutil.rmtree"},
            "3d_fullres",
            "expected a network of dynamic_network_architectures, found 'shutil.rmtree'",
        ),
    ],
)
def test_plans_that_cannot_be_used(
    changes: dict[str, Any], configuration: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = write_plans(tmp_path, **changes), tmp_path / "nnunet.json"
    with pytest.raises(ValueError, match=message):
        read_plan(path, configuration)
    assert main(["nnunet-config", str(path), str(target), "--configuration", configuration]) == 2
    assert "nnUNetPlans.json: " in capsys.readouterr().err
    assert not target.exists()


def test_files_are_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "nnunet.json"
    target.write_text("precious")
    command = ["nnunet-config", str(write_plans(tmp_path)), str(target)]
    assert main(command) == 2
    assert "nnunet.json exists: give --force" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main([*command, "--force"]) == 0
    assert "network_def" in json.loads(target.read_text())
    assert main(["nnunet-config", str(tmp_path / "none.json"), str(target), "--force"]) == 2
    assert "none.json does not exist" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nnunet_plans.importlib.util, "find_spec", lambda name: None)
    weights = tmp_path / "model.pt"
    torch.save({"decoder.seg_layers.0.weight": torch.zeros(1, 4, 1, 1, 1)}, weights)
    target = tmp_path / "nnunet.pth"
    assert main(["nnunet-checkpoint", str(weights), str(write_plans(tmp_path)), str(target)]) == 2
    assert "dynamic_network_architectures, which is not installed: pip install" in capsys.readouterr().err
    assert not target.exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2).state_dict(), weights)
    assert main(["nnunet-checkpoint", str(weights), str(write_plans(tmp_path)), str(tmp_path / "nnunet.pth")]) == 2
    assert "expected weights of nnU-Net's network, found no name with .seg_layers. in it" in capsys.readouterr().err


def test_plans_with_another_activation_than_the_pretraining_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and shapes of the tensors are the same."""
    plans = write_plans(tmp_path)
    described = describe_network_def(ConfigParser({"network_def": read_plan(plans).network_def()}))
    weights, target = tmp_path / "model.pt", tmp_path / "nnunet.pth"
    state = {"decoder.seg_layers.0.weight": torch.zeros(1, 4, 1, 1, 1)}
    save_trained_weights(state, weights, {"network_def": described})
    at = "configurations__3d_fullres__architecture__arch_kwargs"
    for key, value, message in (
        (f"{at}__nonlin", "torch.nn.ReLU", "nonlin: trained with torch.nn.modules.activation.LeakyReLU, planned torch"),
        (f"{at}__nonlin_kwargs", {"negative_slope": 0.2}, "nonlin_kwargs: trained with {'inplace': True}, planned"),
    ):
        write_plans(tmp_path, **{key: value})
        assert main(["nnunet-checkpoint", str(weights), str(plans), str(target)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("trained with") == 1
    write_plans(tmp_path)
    main(["nnunet-checkpoint", str(weights), str(plans), str(target)])
    assert "trained with" not in capsys.readouterr().err
    assert not target.exists()  # the package or tensors of the network are missing here
