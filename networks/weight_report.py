# SPDX-License-Identifier: Apache-2.0
"""What became of each tensor when weights were loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightReport:
    """What a weight file brought to a network, name by name. ``str(report)`` is made for reading.

    The network's values come from the file for ``matched`` and ``adapted``; all its others are as they were before.

    Args:
        path: the file.
        layout: how the file was laid out, in words.
        network: class of the network.
        matched: tensors copied as they are, running statistics of batch norm included.
        adapted: kernels of the first convolution, made to fit another number of input channels.
        skipped: tensors of the file that were not used.
        missing: tensors of the network that the file does not have.
        unexpected: those of ``skipped`` and ``missing`` that transfer learning does not explain: it leaves out decoder
            or head where the network has none, and a head for other classes, but never a part of the encoder.
        reasons: why and how, for each name in ``adapted`` and ``skipped``.
    """

    path: str
    layout: str
    network: str
    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reasons: Mapping[str, str]

    @property
    def summary(self) -> str:
        """One line: the file, the network and the four counts."""
        counts = (f"{len(getattr(self, kind))} {kind}" for kind in ("matched", "adapted", "skipped", "missing"))
        return f"weights of {self.path} ({self.layout}) into {self.network}: {', '.join(counts)}"

    def __str__(self) -> str:
        lines = [self.summary]
        for kind in ("adapted", "skipped", "missing"):
            for name in getattr(self, kind):
                reason = f": {self.reasons[name]}" if name in self.reasons else ""
                lines.append(f"  {kind}{' (unexpected)' if name in self.unexpected else ''} {name}{reason}")
        return "\n".join(lines)
