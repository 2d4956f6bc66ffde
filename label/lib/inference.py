# SPDX-License-Identifier: Apache-2.0
"""A segmentation bundle whose weights are checked before MONAI Label loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.tasks.infer.bundle import BundleInferTask

from models_genesis.networks.weight_files import read_weights


class CheckedInferTask(BundleInferTask):
    """MONAI Label's task for a bundle, which refuses damaged weights and those with NaN or infinity.

    MONAI Label itself loads whatever the file holds, and such a network segments everything as background.

    Args:
        path: folder of the bundle.
        conf: settings of the app.
        kwargs: those of ``BundleInferTask``.
    """

    def __init__(self, path: str, conf: dict[str, str], **kwargs: Any) -> None:
        super().__init__(path, conf, **kwargs)
        self._sound: tuple[str, int, int] | None = None

    def __call__(self, request: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model, after a look at its weights where these have changed.

        Args:
            request: see ``BundleInferTask``.
            args: see ``BundleInferTask``.
            kwargs: see ``BundleInferTask``.

        Raises:
            MONAILabelException: when the weights are damaged, or not finite.
        """
        self.check_weights()
        return super().__call__(request, *args, **kwargs)

    def check_weights(self) -> None:
        """Read the weights once for each state of their file."""
        path = self.get_path()
        if not path or Path(path).suffix == ".ts":  # TorchScript is not among what our bundles write
            return
        state = Path(path).stat()
        mark = (str(path), state.st_size, state.st_mtime_ns)
        if mark == self._sound:
            return
        try:
            read_weights(path, need_checksums=True)
        except ValueError as error:
            raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, str(error)) from error
        self._sound = mark
