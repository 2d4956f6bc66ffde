# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights as one key of a bundle."""

from __future__ import annotations

import logging
import pydoc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent
from monai.handlers import CheckpointLoader
from monai.utils import ensure_tuple
from torch import nn

from ...networks import PRETRAINED_SCALES, WeightReport, load_pretrained
from ...networks.kernel_slices import DimensionsError, kernel_axes
from ...networks.network_def import CHANNELS, NETWORK_DEF, describe_network_def, differing_arguments, own_class
from ...networks.weight_files import read_weights
from ...networks.weight_settings import ModelSettingsError, settings_of_weights
from .running_workflow import running_parser, running_workflow

__all__ = ["dimensions_error", "load_pretrained_weights"]

logger = logging.getLogger(__name__)


def load_pretrained_weights(
    network: nn.Module,
    pretrained: str | Path | None,
    resume: bool | str = False,
    scale: str = "kept",
    handlers: Sequence[Any] | None = None,
    slice_axis: int | Sequence[int] | None = None,
) -> WeightReport | None:
    """Load the weights that a training starts from, and log what was transferred.

    A bundle calls it in ``run``, before the network is trained: ``initialize`` must not touch files, and a
    ``CheckpointLoader`` among the handlers would log success even where nothing fits.

    Args:
        network: the network; a ``DistributedDataParallel`` around it does not matter.
        pretrained: ``model.pt`` of the pretraining bundle or the original's ``Genesis_Chest_CT.pt``; ``None`` or
            ``"none"`` trains from scratch.
        resume: whether the training goes on from a state of its own, which then holds all weights. With ``"auto"``
            there may be none yet: the weights are loaded, and those of a state take their place.
        scale: ``"kept"``, or ``"initial"`` to give convolutions before a norm their initial scale again, see
            :func:`~models_genesis.networks.load_pretrained`; the key ``--pretrained_scale``.
        handlers: the trainer's handlers. MONAI Label puts a ``CheckpointLoader`` among them, which brings all weights
            itself. None looks at those that the running bundle has at ``train#handlers``, without building the others:
            they would load the data before the weights are checked.
        slice_axis: axis that the slices of a 2D network stand across, of several the first one; weights of a 3D network
            start it by the centre slice of each kernel along this axis, which the log says. None for a 3D network.

    Returns:
        The report, None where nothing was loaded.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, holds NaN or infinity, or does not fit the network; the first two also
            for the file of a ``CheckpointLoader``; for another scale; or for weights of slices in a 3D network.
        ModelSettingsError: when ``model.json`` tells another activation or the like than the config builds, which is
            not given as a key of the run.
    """
    if scale not in PRETRAINED_SCALES:
        raise ValueError(f"--pretrained_scale: expected one of {PRETRAINED_SCALES}, found {scale!r}")
    if resume is True:
        logger.info("the training is resumed: its own weights count, not --pretrained %s", pretrained)
        return None
    for loader in _checkpoint_loaders(handlers):
        read_weights(loader.load_path)  # MONAI's loader takes damaged files and NaN as they are
        logger.info("the training starts from %s, not from --pretrained %s", loader.load_path, pretrained)
        return None
    if pretrained is None or str(pretrained).lower() == "none":
        name, count = type(network).__name__, sum(parameter.numel() for parameter in network.parameters())
        logger.info("no pretrained weights: %s (%s parameters) is trained from scratch", name, f"{count:,}")
        return None
    if not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"--pretrained {pretrained}: expected the weights to start from, found no such file. Train the bundle "
            "genesis_chest_ct_pretraining, name another file, or train from scratch with --pretrained none"
        )
    _refuse_other_arguments(Path(pretrained))
    sliced = None if slice_axis is None else int(ensure_tuple(slice_axis)[0])
    if sliced is not None and kernel_axes(read_weights(pretrained).tensors) != [3]:
        sliced = None  # weights of slices fit as they are
    if sliced is not None:
        logger.info("%s is of a 3D network: the centre slice of each kernel along axis %d is taken", pretrained, sliced)
    try:
        return load_pretrained(network, pretrained, scale=scale, kernel_slice_axis=sliced)
    except DimensionsError as error:
        raise dimensions_error(error, network) from error


def _refuse_other_arguments(pretrained: Path) -> None:
    """Compare what tensors do not show, such as the activation, where the config leaves it to a default."""
    recorded, parser = settings_of_weights(pretrained).get(NETWORK_DEF), running_parser()
    given = None if recorded is None or parser is None else describe_network_def(parser)
    if recorded is None or given is None or parser is None:
        return
    if own_class(recorded) and own_class(given):  # a classifier goes on with the encoder of a U-Net
        recorded = {**recorded, "target": given["target"]}
    differing = differing_arguments(recorded, given, left_out=CHANNELS)
    written = parser.get(NETWORK_DEF)
    unsaid = {name: pair for name, pair in differing.items() if name not in written}
    if unsaid:
        found = "; ".join(f"{name}: trained with {before}, here {now}" for name, (before, now) in unsaid.items())
        raise ModelSettingsError(
            f"--pretrained {pretrained} is of another network. {found}. Give --{NETWORK_DEF}#{next(iter(unsaid))} as "
            "the weights were trained, or otherwise to change it"
        )
    if differing:
        logger.warning("--pretrained %s: another network, as asked for: %s", pretrained, differing)


def dimensions_error(error: DimensionsError, network: nn.Module) -> ValueError:
    """Say by which keys of a bundle the network gets the dimensions of the weights.

    Args:
        error: of :func:`~models_genesis.networks.load_pretrained`.
        network: the network that the bundle has built.

    Returns:
        The error to raise instead.
    """
    if 3 in kernel_axes(network.state_dict()):
        remedy = (
            "the weights are of a 2D network: add configs/2d.json, or what they were trained with, as the last file"
        )
    else:
        remedy = (
            "the weights are of a 3D network: leave out configs/2d.json and keys of slices (--slice_axis, --slice_axes)"
        )
    return ValueError(f"{remedy}. {error}")


def _checkpoint_loaders(handlers: Sequence[Any] | None) -> list[CheckpointLoader]:
    """Find the handlers that load weights, of objects or of the running bundle's config."""
    workflow = running_workflow() if handlers is None else None
    if workflow is None:
        return [each for each in handlers or () if isinstance(each, CheckpointLoader)]
    written: Any = workflow.parser.get("train#handlers") or ()
    names = [f"train#handlers#{number}" for number, each in enumerate(written) if _loads_weights(workflow.parser, each)]
    found = [workflow.parser.get_parsed_content(name) for name in names]
    return [each for each in found if isinstance(each, CheckpointLoader)]  # one that is disabled is None


def _loads_weights(parser: Any, written: Any) -> bool:
    """Tell whether a handler, as a config writes it or refers to it, is a ``CheckpointLoader``."""
    if isinstance(written, str) and written.startswith("@"):
        written = parser.get(written[1:])
    target = written.get("_target_") if isinstance(written, Mapping) else None
    if isinstance(target, str):  # short names are those of MONAI's classes
        target = pydoc.locate(ConfigComponent({"_target_": target}).resolve_module_name())
    return isinstance(target, type) and issubclass(target, CheckpointLoader)
