# SPDX-License-Identifier: Apache-2.0
"""The plan for nnU-Net's road for self-supervised weights; ``test_nnunet_training`` has what needs nnU-Net."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from models_genesis.networks.nnunet_adaptation import CITATIONS, adaptation_plan, encoder_tensors
from models_genesis.networks.nnunet_plans import NetworkPlan


class Network(nn.Module):
    """Names its parts as nnU-Net's networks do."""

    key_to_encoder, key_to_stem = "encoder.stages", "encoder.stem"
    keys_to_in_proj = ("encoder.stem.conv", "encoder.stem.all_modules.0")

    def __init__(self) -> None:
        super().__init__()
        stem = nn.ModuleDict({"conv": nn.Conv3d(1, 2, 3)})
        self.encoder = nn.ModuleDict({"stem": stem, "stages": nn.ModuleList([nn.Conv3d(2, 2, 3), nn.Conv3d(2, 4, 3)])})
        self.decoder = nn.ModuleDict({"encoder": self.encoder})


def plan_of(network_class: str = "ResidualEncoderUNet", **more: Any) -> NetworkPlan:
    arguments = {"n_stages": 2, "kernel_sizes": [[1, 3, 3], [3, 3, 3]], "conv_bias": True}
    classes = {"conv_op": "torch.nn.modules.conv.Conv3d", "dropout_op": None}
    path = f"dynamic_network_architectures.architectures.unet.{network_class}"
    return NetworkPlan(path, arguments, classes, 2, (16, 48, 64), (2, 1, 0), "LPS", **more)


def test_a_plan_says_all_that_nnunet_asks_for_and_nothing_but_data():
    plan = adaptation_plan(plan_of(), Network(), "3d_fullres")
    assert plan == {
        "architecture_plans": {
            "arch_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": {
                "n_stages": 2, "kernel_sizes": [[1, 3, 3], [3, 3, 3]], "conv_bias": True,
                "conv_op": "torch.nn.modules.conv.Conv3d", "dropout_op": None,
            },
            "arch_kwargs_requiring_import": ["conv_op", "dropout_op"],
        },
        "architecture_kwargs": {"n_stages": 2, "kernel_sizes": [[1, 3, 3], [3, 3, 3]]},
        "pretrain_plan": {"configurations": {"3d_fullres": {"patch_size": [16, 48, 64], "spacing": None}}},
        "pretrain_num_input_channels": 2,
        "recommended_downstream_patchsize": [16, 48, 64],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.conv", "encoder.stem.all_modules.0"],
        "key_to_lpe": None,
    }  # fmt: skip
    stream = io.BytesIO()
    torch.save({"nnssl_adaptation_plan": plan, "citations": CITATIONS}, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True)["nnssl_adaptation_plan"] == plan


def test_networks_that_nnunets_trainers_do_not_build_have_no_plan():
    assert adaptation_plan(plan_of("ResidualUNet"), Network(), "3d_fullres") is None
    assert adaptation_plan(plan_of(), nn.Linear(2, 2), "3d_fullres") is None


def test_every_tensor_of_the_encoder_is_counted_and_none_may_be_missing():
    plan, network = adaptation_plan(plan_of(), Network(), "3d_fullres"), Network()
    weights = dict(network.state_dict())
    assert encoder_tensors(plan, weights, network) == {"encoder.stages": 4, "encoder.stem": 2}
    for change in (
        {name: tensor for name, tensor in weights.items() if name != "encoder.stages.1.bias"},
        {**weights, "encoder.stages.1.bias": torch.zeros(5)},
        {**weights, "encoder.stages.2.weight": torch.zeros(5)},
    ):
        with pytest.raises(ValueError, match=r"encoder\.stages: expected the 4 tensors .* such as [12]\."):
            encoder_tensors(plan, change, network)
    del weights["encoder.stem.conv.weight"]
    with pytest.raises(ValueError, match=r"encoder\.stem: expected the 2 tensors"):
        encoder_tensors(plan, weights, network)
