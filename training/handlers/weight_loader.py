# SPDX-License-Identifier: Apache-2.0
"""The weights of an evaluation or inference, checked before they are loaded."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn
from torch.jit import ScriptModule

from ...datasets.loading.processes import process_rank
from ...networks import load_pretrained
from ...networks.kernel_slices import DimensionsError
from ...networks.weight_container import sha256_of
from ..engines.pretrained import dimensions_error
from ..engines.torchscript import refuse_other_weights
from .birth_certificate import source_of_weights
from .seen_scans import warn_of_seen_scans

__all__ = ["WeightLoader"]


class WeightLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for one network, which refuses what would segment everything as background.

    A damaged file (every part is compared with its checksum), NaN or infinity, and weights of another network are
    errors that name the file; the network is then as it was. A TorchScript, which has its weights, is compared with the
    file. Scans that are to be scored and that these weights were
    trained on, or those that they started from, are named in a warning.

    Args:
        *args: the arguments of ``CheckpointLoader``.
        scored_dataset: the data set of an evaluation; None compares no scans.
        **kwargs: those of ``CheckpointLoader``, by name.
    """

    def __init__(self, *args: Any, scored_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scored_dataset = scored_dataset

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Args:
            engine: the evaluator.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when ``load_dict`` is not one network, the file is damaged, its numbers are not finite, or it
                does not fit the network exactly, or has other weights than a TorchScript.
        """
        network, *others = self.load_dict.values()
        if others or not isinstance(network, nn.Module):
            raise ValueError(f"load_dict: expected one network, found {list(self.load_dict)}")
        if isinstance(network, ScriptModule):  # which brings its weights
            refuse_other_weights(network, self.load_path)
        else:
            self._load(network)
        engine.state.weights_sha256 = sha256_of(self.load_path)  # reports say which weights they are about
        self.logger.info("loaded %s", self.load_path)
        if self.scored_dataset is not None and process_rank() == 0:
            source = source_of_weights(self.load_path, engine.state.weights_sha256)
            warn_of_seen_scans(self.scored_dataset, "evaluation", source)

    def _load(self, network: nn.Module) -> None:
        try:
            load_pretrained(network, self.load_path, strict=True, need_checksums=True)
        except DimensionsError as error:
            raise dimensions_error(error, network) from error
