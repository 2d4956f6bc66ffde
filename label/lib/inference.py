# SPDX-License-Identifier: Apache-2.0
"""A segmentation bundle whose weights are checked before MONAI Label loads them."""

from __future__ import annotations

from collections.abc import Mapping
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
            MONAILabelException: when the weights are damaged, or not finite, or the request names other than a file of
                the bundle's ``models/``.
        """
        self.check_weights(self.weights(request))
        return super().__call__(request, *args, **kwargs)

    def weights(self, request: Mapping[str, Any]) -> Path | None:
        """Find the file that MONAI Label loads: of ``models/``, the one that the request names in ``model_filename``.

        Args:
            request: without the name, the file with the shortest one is loaded.

        Returns:
            Its path; None where the bundle has none.

        Raises:
            MONAILabelException: when the name has a folder in it, or there is no such file, for which MONAI Label takes
                another one.
        """
        offered = self._config.get("model_filename")
        default = self.get_path()
        if not offered or not default:  # MONAI Label does not look at the name then
            return Path(default) if default else None
        if not request.get("model_filename"):
            shortest = Path(default).with_name(offered[0])
            return shortest if shortest.exists() else Path(default)
        return named_weights(Path(default).parent, request["model_filename"])

    def check_weights(self, path: Path | None) -> None:
        """Read the weights once for each state of their file."""
        if path is None or path.suffix == ".ts":  # TorchScript is not among what our bundles write
            return
        state = path.stat()
        fingerprint = (str(path), state.st_size, state.st_mtime_ns)
        if fingerprint == self._sound:
            return
        try:
            read_weights(path, need_checksums=True)
        except ValueError as error:
            raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, str(error)) from error
        self._sound = fingerprint


def named_weights(models: Path, given: Any) -> Path:
    """Find the weights that a request names.

    Args:
        models: folder of a bundle's weights.
        given: see :func:`file_name`.

    Raises:
        MONAILabelException: when the name has a folder in it, or there is no such file, for which MONAI Label takes
            another one, or none.
    """
    path = models / file_name(given)
    if not path.is_file():
        existing = sorted(each.name for each in models.glob("*.pt"))
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"model_filename: expected one of {existing} in {models}, found {path.name}"
        )
    return path


def file_name(given: Any) -> str:
    """Read the name of a file of weights from a request, which has a name or a list that begins with it.

    Raises:
        MONAILabelException: when it is something else, or has a folder in it.

    Example:
        >>> file_name("model.pt"), file_name(["model.pt", "last_epoch.pt"])
        ('model.pt', 'model.pt')
    """
    name = given[0] if isinstance(given, list) and given else given
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
        raise MONAILabelException(
            MONAILabelError.INVALID_INPUT, f"model_filename: expected a name without a folder, found {given!r}"
        )
    return name
