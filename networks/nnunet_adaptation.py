# SPDX-License-Identifier: Apache-2.0
"""The ``nnssl_adaptation_plan`` of a checkpoint: how nnU-Net's own road for self-supervised weights finds the encoder.

nnU-Net's ``nnUNetv2_preprocess_like_nnssl`` and ``nnUNetv2_plan_like_dynamic`` read it, ``nnUNetv2_train_pretrained``
loads by it. Written from its documentation and source (``documentation/finetuning_from_nnssl_checkpoints.md``,
``nnunetv2/experiment_planning/like_nnssl.py``), which are newer than the release 2.8.1 on PyPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .nnunet_plans import NetworkPlan

PLAN = "nnssl_adaptation_plan"
"""Key of the plan in a checkpoint."""

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
"""The U-Nets that nnU-Net's trainers for pretrained weights build."""

CITATIONS = [
    {
        "type": "Pretraining Method",
        "name": "Models Genesis",
        "apa_citations": [
            "Zhou, Z., Sodha, V., Pang, J., Gotway, M. B., & Liang, J. (2021). Models Genesis. Medical Image Analysis,"
            " 67, 101840. https://arxiv.org/abs/2004.07882"
        ],
    }
]
"""What nnU-Net prints into the log of a training: whom to cite."""


def adaptation_plan(plan: NetworkPlan, network: nn.Module, configuration: str) -> dict[str, Any] | None:
    """Describe a pretrained network as nnU-Net asks for it.

    Args:
        plan: the network of nnU-Net's plans, whose axes the checkpoint's kernels have.
        network: that network, of any channels; it names its encoder, stem and input layers.
        configuration: name of the configuration.

    Returns:
        Texts, numbers and lists of them alone, so that ``torch.load(..., weights_only=True)`` reads them; ``None`` for
        a network that nnU-Net's trainers do not build, or one that does not name its parts.
    """
    if not plan.network_class.endswith(NETWORKS) or not hasattr(network, "key_to_encoder"):
        return None
    parts: Any = network
    # pretraining keeps the scans' own spacing: `-am like_pretrained` then takes that of the data set's plans
    pretraining = {"patch_size": list(plan.patch_size), "spacing": None}
    return {
        "architecture_plans": {
            "arch_class_name": plan.network_class,
            "arch_kwargs": {**plan.arguments, **plan.layer_classes},
            "arch_kwargs_requiring_import": list(plan.layer_classes),
        },
        "architecture_kwargs": {name: plan.arguments[name] for name in ("n_stages", "kernel_sizes")},
        "pretrain_plan": {"configurations": {configuration: pretraining}},
        "pretrain_num_input_channels": plan.in_channels,
        "recommended_downstream_patchsize": list(plan.patch_size),
        "key_to_encoder": str(parts.key_to_encoder),
        "key_to_stem": str(parts.key_to_stem),
        "keys_to_in_proj": [str(key) for key in parts.keys_to_in_proj],
        "key_to_lpe": None,
    }


def encoder_tensors(plan: Mapping[str, Any], weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, int]:
    """Count the tensors that nnU-Net finds by a plan, and check that they are all of the encoder and of the stem.

    Args:
        plan: see :func:`adaptation_plan`.
        weights: of the checkpoint.
        network: the network that is to be trained, in nnU-Net's order of axes.

    Returns:
        The number of tensors by the key of encoder and stem.

    Raises:
        ValueError: When a tensor is missing, has another shape, or is not of the network.
    """
    found = {}
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        wanted = {name: tuple(tensor.shape) for name, tensor in network.get_submodule(key).state_dict().items()}
        given = {
            name.removeprefix(f"{key}."): tuple(tensor.shape)
            for name, tensor in weights.items()
            if name.startswith(f"{key}.")
        }
        if wanted != given:
            odd = sorted(name for name, _ in {*wanted.items()} ^ {*given.items()})
            raise ValueError(
                f"{key}: expected the {len(wanted)} tensors of the network, found others, such as {odd[0]}"
            )
        found[key] = len(wanted)
    return found
