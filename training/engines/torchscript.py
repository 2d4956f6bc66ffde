# SPDX-License-Identifier: Apache-2.0
"""Predicting with an exported TorchScript, tied to the weights that it was exported from."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.jit import ScriptModule

from ...networks.weight_files import read_weights
from .model_settings import ModelSettingsError, settings_path

__all__ = ["load_torchscript", "refuse_other_weights"]


def load_torchscript(
    ckpt_dir: str | os.PathLike[str], device: str | torch.device = "cpu", file: str = "model.ts"
) -> ScriptModule:
    """Load what ``ckpt_export`` wrote as the network of a bundle, if it has the weights that lie next to it.

    A bundle prepares scans as ``model.json`` says; of a training since the export these are the settings of another
    network.

    Args:
        ckpt_dir: folder of ``model.pt``, ``model.json`` and the script.
        device: of the network.
        file: name of the script.

    Returns:
        The network.

    Raises:
        FileNotFoundError: one of the three is missing.
        ModelSettingsError: the script has other weights than ``model.pt``.
        ValueError: ``model.pt`` is damaged.
    """
    script, weights = Path(ckpt_dir) / file, Path(ckpt_dir) / "model.pt"
    for path in (script, weights, settings_path(weights)):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: expected {script.name} next to the {weights.name} that it was exported from and the "
                f"{settings_path(weights).name} of its training, found no such file"
            )
    network = torch.jit.load(script, map_location=device)
    refuse_other_weights(network, weights, str(script))
    return network


def refuse_other_weights(network: ScriptModule, weights: str | os.PathLike[str], script: str = "the script") -> None:
    """Compare the tensors of a script with weights.

    Args:
        network: the script.
        weights: the file that it was exported from.
        script: what it is called in the message.

    Raises:
        FileNotFoundError: there is no such file.
        ModelSettingsError: another tensor, or one more or less.
        ValueError: the weights are damaged.
    """
    own = network.state_dict()
    expected = read_weights(weights, need_checksums=True, own_names=own).tensors
    differing = [
        name
        for name in {**expected, **own}
        if name not in own or name not in expected or not torch.equal(own[name].cpu(), expected[name])
    ]
    if differing:
        raise ModelSettingsError(
            f"{script}: expected the weights of {os.fspath(weights)}, found others in {len(differing)} of "
            f"{len({**expected, **own})} tensors, such as {', '.join(differing[:3])}: export it again with ckpt_export"
        )
