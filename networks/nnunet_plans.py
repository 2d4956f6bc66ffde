# SPDX-License-Identifier: Apache-2.0
"""The network that nnU-Net v2 planned for a data set, as a ``network_def`` for MONAI's bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor, nn

NETWORK_CLASS = r"dynamic_network_architectures\.architectures(\.[A-Za-z]\w*)+"
LAYER_CLASS = r"torch\.nn(\.[A-Za-z]\w*)+"
PER_AXIS = ("kernel_sizes", "strides")  # the arguments that hold one number an axis, stage by stage


@dataclass(frozen=True)
class NetworkPlan:
    """The 3D network of one configuration of nnU-Net's plans.

    nnU-Net has a scan's axes as they lie in its file, last axis first, and then in the order of ``transpose_forward``:
    slices, rows, columns as a rule. MONAI has the file's order: columns, rows, slices. So kernels and strides of the
    plan have their axes in another order here, and a converted kernel has its axes turned back.

    Args:
        network_class: dotted name of the class.
        arguments: its arguments, numbers and lists of them, axes in nnU-Net's order.
        layer_classes: arguments that are classes of ``torch.nn``, by dotted name; None for no such layer.
        in_channels: image channels.
        patch_size: cube of a training step in voxels, axes in nnU-Net's order.
        axes: for each of nnU-Net's axes the number of the file's.
        axcodes: orientation in which pretraining has to show a scan for it to lie as it does in nnU-Net.
    """

    network_class: str
    arguments: Mapping[str, Any]
    layer_classes: Mapping[str, str | None]
    in_channels: int
    patch_size: tuple[int, ...]
    axes: tuple[int, ...]
    axcodes: str

    def cube_size(self) -> list[int]:
        """Give the patch size with the axes in the file's order."""
        return [self.patch_size[self.axes.index(axis)] for axis in range(len(self.axes))]

    def network_def(self, in_channels: int = 1, out_channels: int = 1, file_axes: bool = True) -> dict[str, Any]:
        """Describe the network as an entry of a bundle's config.

        Args:
            in_channels: image channels.
            out_channels: output channels; 1 to restore a scan of one channel.
            file_axes: axes in the order of the file, as pretraining has them; False for nnU-Net's order.

        Returns:
            A ``_target_`` with its arguments, without deep supervision: one output of the image's size.
        """
        arguments = dict(self.arguments)
        if file_axes:
            for name in PER_AXIS:
                if name in arguments:
                    arguments[name] = [self._stage_in_file_axes(stage) for stage in arguments[name]]
        layers = {name: None if value is None else f"${value}" for name, value in self.layer_classes.items()}
        channels = {"input_channels": in_channels, "num_classes": out_channels}
        return {"_target_": self.network_class, **channels, **arguments, **layers, "deep_supervision": False}

    def _stage_in_file_axes(self, stage: Any) -> Any:
        if not isinstance(stage, list):
            return stage
        return [stage[self.axes.index(axis)] for axis in range(len(self.axes))]

    def kernel_in_plan_axes(self, tensor: Tensor) -> Tensor:
        """Turn the spatial axes of a convolution's kernel from the file's order into nnU-Net's.

        Args:
            tensor: a kernel, (channels, channels, *kernel_size); any other tensor is given back as it is.

        Returns:
            The kernel that does to nnU-Net's patch what ``tensor`` does to the scan as its file has it.
        """
        if tensor.ndim != 2 + len(self.axes):
            return tensor
        return tensor.permute(0, 1, *(2 + axis for axis in self.axes)).contiguous()

    def build(self, in_channels: int = 1, out_channels: int = 1, file_axes: bool = True) -> nn.Module:
        """Make the network; see :meth:`network_def` for the arguments.

        Raises:
            ModuleNotFoundError: the package of nnU-Net's networks is not installed.
        """
        if importlib.util.find_spec("dynamic_network_architectures") is None:
            raise ModuleNotFoundError(
                "nnU-Net's networks are in the package dynamic_network_architectures, which is not installed: "
                "pip install dynamic_network_architectures, or nnunetv2, which brings it"
            )
        return ConfigParser(self.network_def(in_channels, out_channels, file_axes)).get_parsed_content()


def read_plan(
    path: str | os.PathLike[str], configuration: str = "3d_fullres", axcodes: str | None = None
) -> NetworkPlan:
    """Read the network of one configuration from nnU-Net's plans.

    Args:
        path: ``nnUNetPlans.json`` or another planner's, from the folder ``nnUNet_preprocessed`` of the data set.
        configuration: name of a 3D configuration that is not the second stage of a cascade.
        axcodes: orientation of the data set's files, as nnU-Net reads them without turning them; None takes LPS, as
            DICOM has it and NIfTI files made from it, or RAS where nnU-Net's reader turns the files to that.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not plans of nnU-Net v2, no such configuration, a configuration that is 2D or the second stage of a
            cascade, or a network with anything but numbers and classes of ``torch.nn`` as arguments.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the plans that nnUNetv2_plan_experiment writes")
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        settings = _inherited(path, plans["configurations"], configuration)
        architecture = settings["architecture"]
        network_class, arguments = architecture["network_class_name"], dict(architecture["arch_kwargs"])
        classes = {name: arguments.pop(name) for name in architecture["_kw_requires_import"]}
        patch_size, order = tuple(settings["patch_size"]), plans["transpose_forward"]
        in_channels, reader = len(settings["normalization_schemes"]), plans["image_reader_writer"]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected plans of nnU-Net v2 with an architecture for each configuration, found none "
            f"({type(error).__name__}: {error}); plan the data set again with the nnU-Net that will train"
        ) from error
    if len(patch_size) != 3:
        raise ValueError(f"{path}: expected a 3D configuration, found {configuration} with patches of {patch_size}")
    if settings.get("previous_stage"):
        raise ValueError(
            f"{path}: {configuration} also takes the segmentation of {settings['previous_stage']} as input, which "
            f"unlabelled scans do not have; expected a configuration of one stage"
        )
    _check_arguments(path, network_class, arguments, classes)
    axes = tuple(2 - int(axis) for axis in order)
    codes = axcodes or ("RAS" if reader == "NibabelIOWithReorient" else "LPS")
    return NetworkPlan(network_class, arguments, classes, in_channels, patch_size, axes, codes)


def _inherited(path: Path, configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give a configuration with what it takes over from others."""
    chain: list[str] = []
    settings: dict[str, Any] = {}
    while name not in chain:
        if name not in configurations:
            raise ValueError(f"{path}: expected the configuration {name}, found {', '.join(configurations)}")
        chain.append(name)
        settings = {**configurations[name], **settings}
        if "inherits_from" not in configurations[name]:
            return settings
        name = configurations[name]["inherits_from"]
    raise ValueError(f"{path}: expected configurations that inherit from others, found a circle of {', '.join(chain)}")


def _check_arguments(path: Path, network_class: str, arguments: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
    """Refuse what would run other code than that of torch and nnU-Net once it stands in a config."""
    if not re.fullmatch(NETWORK_CLASS, str(network_class)):
        raise ValueError(f"{path}: expected a network of dynamic_network_architectures, found {network_class!r}")
    for name, value in classes.items():
        if value is not None and not re.fullmatch(LAYER_CLASS, str(value)):
            raise ValueError(f"{path}: expected a class of torch.nn for {name}, found {value!r}")
    for name, value in (*arguments.items(), *((name, None) for name in classes)):
        if not re.fullmatch(r"[A-Za-z]\w*", name) or not _is_plain(value):
            raise ValueError(f"{path}: expected numbers for the network's argument {name}, found {value!r}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(re.fullmatch(r"[A-Za-z]\w*", name) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, (bool, int, float))
