# SPDX-License-Identifier: Apache-2.0
"""What became of each tensor when weights were loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WeightReport:
    """What a weight file brought to a network, name by name. ``str(report)`` is made for reading.

    The network's values come from the file for ``matched`` and ``adapted``; all its others are as they were before.

    Args:
        path: the file.
        layout: how the file was laid out, in words.
        network: class of the network.
        matched: tensors copied as they are, running statistics of batch norm included.
        adapted: kernels of the first convolution, made to fit another number of input channels, and with
            ``kernel_slice_axis`` the centre slices of kernels.
        skipped: tensors of the file that were not used.
        missing: tensors of the network that the file does not have.
        unexpected: those of ``skipped`` and ``missing`` that transfer learning does not explain: it leaves out decoder
            or head where the network has none, and a head for other classes, but never a part of the encoder.
        reasons: why and how, for each name in ``adapted`` and ``skipped``.
        rescaled: with ``scale="initial"``, the factor of each convolution's kernel that was rescaled.
        not_rescaled: with ``scale="initial"``, for each other convolution's kernel the reason.
        eps_change: with ``scale="initial"``, what the rescaling changes at most through the norms' eps, in standard
            deviations of a normalised channel; of batch norms alone, as instance norms do not keep variances.
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
    rescaled: Mapping[str, float] = field(default_factory=dict)
    not_rescaled: Mapping[str, str] = field(default_factory=dict)
    eps_change: float = 0.0

    @property
    def summary(self) -> str:
        """One line: the file, the network and the four counts."""
        counts = (f"{len(getattr(self, kind))} {kind}" for kind in ("matched", "adapted", "skipped", "missing"))
        return f"weights of {self.path} ({self.layout}) into {self.network}: {', '.join(counts)}"

    @property
    def rescaling(self) -> str:
        """One line on the scale of the weights, empty where it was kept."""
        if not self.rescaled and not self.not_rescaled:
            return ""
        span = f" by {min(self.rescaled.values()):.3g} to {max(self.rescaled.values()):.3g}" if self.rescaled else ""
        return (
            f"{len(self.rescaled)} convolutions rescaled to their initial norm{span}, {len(self.not_rescaled)} left as "
            f"they are; the norms' eps changes a channel by at most {self.eps_change:.2g} of its standard deviation"
        )

    def __str__(self) -> str:
        lines = [self.summary]
        for kind in ("adapted", "skipped", "missing"):
            for name in getattr(self, kind):
                reason = f": {self.reasons[name]}" if name in self.reasons else ""
                lines.append(f"  {kind}{' (unexpected)' if name in self.unexpected else ''} {name}{reason}")
        if self.rescaling:
            lines.append(self.rescaling)
        lines += [f"  rescaled {name}: by {factor:.6g}" for name, factor in self.rescaled.items()]
        lines += [f"  not rescaled {name}: {reason}" for name, reason in self.not_rescaled.items()]
        return "\n".join(lines)
