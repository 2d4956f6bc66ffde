# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights as one key of a bundle."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai.handlers import CheckpointLoader
from torch import nn

from ...networks import PRETRAINED_SCALES, WeightReport, load_pretrained
from ...networks.weight_files import read_weights

__all__ = ["load_pretrained_weights"]

logger = logging.getLogger(__name__)


def load_pretrained_weights(
    network: nn.Module,
    pretrained: str | Path | None,
    resume: bool = False,
    first_handler: Any = None,
    scale: str = "kept",
) -> WeightReport | None:
    """Load the weights that a training starts from, and log what was transferred.

    A bundle calls it in ``run``, before the network is trained: ``initialize`` must not touch files, and a
    ``CheckpointLoader`` among the handlers would log success even where nothing fits.

    Args:
        network: the network; a ``DistributedDataParallel`` around it does not matter.
        pretrained: ``model.pt`` of the pretraining bundle or the original's ``Genesis_Chest_CT.pt``; ``None`` or
            ``"none"`` trains from scratch.
        resume: whether the training goes on from its own ``last_epoch.pt``, which then holds all weights.
        first_handler: the first of the trainer's handlers; MONAI Label puts a ``CheckpointLoader`` there, which brings
            all weights itself.
        scale: ``"kept"``, or ``"initial"`` to give convolutions before a norm their initial scale again, see
            :func:`~models_genesis.networks.load_pretrained`; the key ``--pretrained_scale``.

    Returns:
        The report, None where nothing was loaded.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, holds NaN or infinity, or does not fit the network; the first two also
            for the file of ``first_handler``; or for another scale.
    """
    if scale not in PRETRAINED_SCALES:
        raise ValueError(f"--pretrained_scale: expected one of {PRETRAINED_SCALES}, found {scale!r}")
    if resume:
        logger.info("the training is resumed: its own weights count, not --pretrained %s", pretrained)
        return None
    if isinstance(first_handler, CheckpointLoader):
        read_weights(first_handler.load_path)  # MONAI's loader takes damaged files and NaN as they are
        logger.info("the training starts from %s, not from --pretrained %s", first_handler.load_path, pretrained)
        return None
    if pretrained is None or str(pretrained).lower() == "none":
        logger.info("no pretrained weights: %s is trained from scratch", type(network).__name__)
        return None
    if not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"--pretrained {pretrained}: expected the weights to start from, found no such file. Train the bundle "
            "genesis_chest_ct_pretraining, name another file, or train from scratch with --pretrained none"
        )
    return load_pretrained(network, pretrained, scale=scale)
