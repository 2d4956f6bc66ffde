# SPDX-License-Identifier: Apache-2.0
"""Pretraining nnU-Net's own network: the config for it, and the weights back to nnU-Net v2."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from .network_def import CHANNELS, NETWORK_DEF, describe_network_def, differing_arguments
from .nnunet_adaptation import CITATIONS, PLAN, adaptation_plan, encoder_tensors
from .nnunet_plans import NetworkPlan, read_plan
from .weight_files import atomic_save, read_weights
from .weight_report import WeightReport
from .weight_settings import settings_of_weights
from .weights import load_pretrained

HEADS = ".seg_layers."  # nnU-Net's own loader of pretrained weights leaves out names with this in them


def write_pretraining_config(
    plans: str | os.PathLike[str],
    target: str | os.PathLike[str],
    configuration: str = "3d_fullres",
    axcodes: str | None = None,
    force: bool = False,
) -> dict[str, object]:
    """Write a config that makes the pretraining bundle pretrain the network that nnU-Net planned.

    It stands behind the bundle's own: ``--config_file "['configs/train.json','nnunet.json']"``. It sets ``network_def``
    (one channel in, one out, no deep supervision), ``cube_size`` (nnU-Net's patch) and the orientation of the scans.

    Args:
        plans: nnU-Net's plans of the data set to be segmented.
        target: the JSON file to write.
        configuration: 3D configuration of the plans.
        axcodes: orientation of the data set's files, see :func:`read_plan`.
        force: replace ``target`` where it exists.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: no such plans.
        FileExistsError: ``target`` exists and ``force`` is not given.
        ValueError: see :func:`read_plan`.
    """
    target = _free(target, force)
    plan = read_plan(plans, configuration, axcodes)
    config: dict[str, object] = {
        "network_def": plan.network_def(),
        "cube_size": plan.cube_size(),
        "axcodes": plan.axcodes,
    }
    atomic_save(lambda file: file.write((json.dumps(config, indent=4) + "\n").encode()), target)
    return config


def convert_to_nnunet(
    weights: str | os.PathLike[str],
    plans: str | os.PathLike[str],
    target: str | os.PathLike[str],
    configuration: str = "3d_fullres",
    force: bool = False,
) -> WeightReport:
    """Turn pretrained weights of nnU-Net's network into a checkpoint for both of nnU-Net's roads.

    ``nnUNetv2_train -pretrained_weights`` takes encoder and decoder; ``nnUNetv2_train_pretrained`` the encoder, by the
    plan that is enclosed (:mod:`~models_genesis.networks.nnunet_adaptation`).

    The checkpoint is a dict with the entries ``network_weights``, ``nnssl_adaptation_plan`` and ``citations``, read by
    nnU-Net and also with ``weights_only=True``.
    Kernels have their axes in nnU-Net's order, the first convolution is adapted to the data set's image channels
    (:func:`adapt_input_channels`), and the segmentation layers are left out: nnU-Net starts them fresh.

    Args:
        weights: the pretraining's ``model.pt``.
        plans: the plans that the pretraining's config was written from.
        target: the checkpoint to write, as a rule ``*.pth``.
        configuration: the same configuration.
        force: replace ``target`` where it exists.

    Returns:
        The report: all but the segmentation layers is matched or adapted.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: ``target`` exists and ``force`` is not given.
        ModuleNotFoundError: the package of nnU-Net's networks is not installed.
        ValueError: plans that cannot be used, or weights of another network; nothing is written then.
    """
    target = _free(target, force)
    plan = read_plan(plans, configuration)
    heads = {name: tensor for name, tensor in read_weights(weights).tensors.items() if HEADS in name}
    if not heads:
        raise ValueError(f"{weights}: expected weights of nnU-Net's network, found no name with {HEADS} in it")
    _refuse_other_arguments(weights, plan, plans)
    network = plan.build(plan.in_channels, out_channels=next(iter(heads.values())).shape[0])
    report = _without_heads(load_pretrained(network, weights))
    if report.unexpected:
        raise ValueError(f"{weights} is not of the network that {plans} has for {configuration}:\n{report}")
    kept = {name: tensor for name, tensor in network.state_dict().items() if HEADS not in name}
    turned = {name: plan.kernel_in_plan_axes(tensor) for name, tensor in kept.items()}
    content: dict[str, object] = {"network_weights": turned}
    if (adaptation := adaptation_plan(plan, network, configuration)) is not None:
        encoder_tensors(adaptation, turned, plan.build(plan.in_channels, file_axes=False))
        content |= {PLAN: adaptation, "citations": CITATIONS}
    atomic_save(lambda file: torch.save(content, file), target)
    return report


def _refuse_other_arguments(weights: str | os.PathLike[str], plan: NetworkPlan, plans: str | os.PathLike[str]) -> None:
    """Compare what tensors do not show, such as the activation, by the ``model.json`` of the pretraining.

    Raises:
        ValueError: naming each argument with both values.
    """
    recorded = settings_of_weights(Path(weights)).get(NETWORK_DEF)
    planned = describe_network_def(ConfigParser({NETWORK_DEF: plan.network_def()}))
    if recorded is None or planned is None:
        return
    differing = differing_arguments(recorded, planned, left_out=CHANNELS)
    if differing:
        found = "; ".join(f"{name}: trained with {before}, planned {now}" for name, (before, now) in differing.items())
        raise ValueError(f"{os.fspath(weights)} is not of the network that {os.fspath(plans)} has. {found}")


def describe_encoder(checkpoint: str | os.PathLike[str]) -> str:
    """Tell what nnU-Net's road for self-supervised weights finds in a checkpoint, as a line for people.

    Args:
        checkpoint: what :func:`convert_to_nnunet` wrote, which is all of the network's encoder and stem.
    """
    content = torch.load(checkpoint, weights_only=True, mmap=True)  # names are counted, no tensor is read
    if PLAN not in content:
        return f"no {PLAN}: nnUNetv2_train_pretrained does not build this network"
    keys = (content[PLAN]["key_to_encoder"], content[PLAN]["key_to_stem"])
    numbers = [sum(name.startswith(f"{key}.") for name in content["network_weights"]) for key in keys]
    return f"{PLAN}: all {numbers[0]} tensors of {keys[0]}, all {numbers[1]} of the stem {keys[1]}"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add ``nnunet-config`` and ``nnunet-checkpoint`` to a command line.

    Args:
        commands: of the parser; parsed options have ``run``, which takes them and returns the text to print.
    """
    config = commands.add_parser("nnunet-config", help="write a config that pretrains the network nnU-Net v2 planned")
    checkpoint = commands.add_parser(
        "nnunet-checkpoint", help="turn its model.pt into a file for nnUNetv2_train and nnUNetv2_train_pretrained"
    )
    checkpoint.add_argument("weights", type=Path, help="the pretraining's model.pt")
    for parser, target in (
        (config, "config to write, such as nnunet.json"),
        (checkpoint, "checkpoint to write, *.pth"),
    ):
        parser.add_argument("plans", type=Path, help="nnUNetPlans.json of the data set")
        parser.add_argument("target", type=Path, help=target)
        parser.add_argument("--configuration", default="3d_fullres", help="3D configuration (default: 3d_fullres)")
        parser.add_argument("--force", action="store_true", help="replace the target where it exists")
    config.add_argument("--axcodes", help="orientation of the data set's files (default: LPS, as DICOM has it)")
    config.set_defaults(run=_run_config)
    checkpoint.set_defaults(run=_run_checkpoint)


def _run_config(options: argparse.Namespace) -> str:
    config = write_pretraining_config(
        options.plans, options.target, options.configuration, options.axcodes, options.force
    )
    return f"cube_size: {config['cube_size']}\nwritten: {options.target}"


def _run_checkpoint(options: argparse.Namespace) -> str:
    report = convert_to_nnunet(options.weights, options.plans, options.target, options.configuration, options.force)
    encoder = describe_encoder(options.target)
    return f"{report}\n{encoder}\nwritten: {options.target}"


def _without_heads(report: WeightReport) -> WeightReport:
    """Count the segmentation layers as skipped, which is no surprise."""
    heads = tuple(name for name in (*report.matched, *report.skipped) if HEADS in name)
    return replace(
        report,
        matched=tuple(name for name in report.matched if HEADS not in name),
        skipped=heads + tuple(name for name in report.skipped if HEADS not in name),
        unexpected=tuple(name for name in report.unexpected if HEADS not in name),
        reasons={**report.reasons, **dict.fromkeys(heads, "nnU-Net starts its segmentation layers fresh")},
    )


def _free(target: str | os.PathLike[str], force: bool) -> Path:
    target = Path(target)
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: give --force to replace it")
    return target
