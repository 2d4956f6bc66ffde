# SPDX-License-Identifier: Apache-2.0
"""The writer of predicted label maps and restored scans."""

from __future__ import annotations

import logging
from typing import Any

from monai.config import PathLike
from monai.data import NibabelWriter

from .whole_file import whole_path

logger = logging.getLogger(__name__)


class ScanWriter(NibabelWriter):
    """MONAI's ``NibabelWriter``, but a file appears whole or not at all.

    Give it to MONAI as ``SaveImaged(keys="pred", writer="models_genesis.datasets.ScanWriter")``.
    """

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the image that was given to the writer.

        Args:
            filename: the NIfTI file to write or replace.
            verbose: whether to log the name.
            obj_kwargs: passed on to ``NibabelWriter.write``.
        """
        with whole_path(filename) as temporary:
            super().write(temporary, verbose=False, **obj_kwargs)
        if verbose:
            logger.info("wrote %s", filename)
