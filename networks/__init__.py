# SPDX-License-Identifier: Apache-2.0
"""The U-Net and the classifier of Models Genesis, and reading weights into them or into any network."""

from __future__ import annotations

from .genesis_classifier import GenesisClassifier
from .genesis_encoder import GenesisEncoder
from .genesis_unet import GenesisUNet
from .load_network import load_network
from .weight_container import DamagedFileError, read_checkpoint
from .weight_files import save_weights
from .weight_report import WeightReport
from .weight_scale import PRETRAINED_SCALES
from .weights import load_pretrained

__all__ = [
    "PRETRAINED_SCALES",
    "DamagedFileError",
    "GenesisClassifier",
    "GenesisEncoder",
    "GenesisUNet",
    "WeightReport",
    "load_network",
    "load_pretrained",
    "read_checkpoint",
    "save_weights",
]
