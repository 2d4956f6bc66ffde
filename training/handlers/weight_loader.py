# SPDX-License-Identifier: Apache-2.0
"""The weights of an evaluation or inference, checked before they are loaded."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn

from ...networks import load_pretrained
from ...networks.kernel_slices import DimensionsError
from ...networks.weight_container import sha256_of
from ..engines.pretrained import dimensions_error

__all__ = ["WeightLoader"]


class WeightLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for one network, which refuses what would segment everything as background.

    A damaged file (every part is compared with its checksum), NaN or infinity, and weights of another network are
    errors that name the file; the network is then as it was. The arguments are those of ``CheckpointLoader``.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Args:
            engine: the evaluator.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when ``load_dict`` is not one network, the file is damaged, its numbers are not finite, or it
                does not fit the network exactly.
        """
        network, *others = self.load_dict.values()
        if others or not isinstance(network, nn.Module):
            raise ValueError(f"load_dict: expected one network, found {list(self.load_dict)}")
        try:
            load_pretrained(network, self.load_path, strict=True, need_checksums=True)
        except DimensionsError as error:
            raise dimensions_error(error, network) from error
        engine.state.weights_sha256 = sha256_of(self.load_path)  # reports say which weights they are about
        self.logger.info("loaded %s", self.load_path)
