# SPDX-License-Identifier: Apache-2.0
"""Test-time flips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from ...transforms.flip_probability import axes_between

__all__ = ["FlipInferer"]


class FlipInferer(Inferer):
    """Average the logits of an image and of its mirror images, each mirrored back where the output is an image.

    Args:
        inferer: runs the network, e.g. a ``SlidingWindowInferer``.
        axes: spatial axes to mirror, 0 the first; all their combinations are run, 8 times the work for three axes.
            Empty runs ``inferer`` alone.
        slice_axis: axis that the slices stand across in which ``inferer`` takes a scan apart. To mirror along it only
            reverses the order of the slices, so it is left out of ``axes``.
        slice_axes: axes that the slices stand across which are the channels of the inputs.
        class_names: the classes, whose names tell along which axes nothing may be mirrored: in the mirror image the
            anterior part lies where the posterior one is.

    Raises:
        ValueError: When there are axes to mirror and slices across several: no flip of a cube flips all of its slices
            along the same axis of theirs; or when an axis tells two classes apart.
    """

    def __init__(
        self,
        inferer: Inferer,
        axes: Sequence[int] = (),
        slice_axis: int | None = None,
        slice_axes: Sequence[int] | None = None,
        class_names: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.axes = tuple(axis for axis in axes if axis != slice_axis)
        if self.axes and len(slice_axes or ()) > 1:
            raise ValueError(
                f"--tta_flips: expected [] with slices across several axes, --slice_axes {list(slice_axes or ())}, "
                f"found {list(self.axes)}: a flip of the cube does not flip these slices alike"
            )

        told = axes_between(class_names)
        for axis in self.axes:
            if axis in told:
                raise ValueError(
                    f"--tta_flips: expected axes along which no classes are told apart, found {axis}, which tells"
                    f" {told[axis]} apart"
                )

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the averaged logits for a batch.

        Args:
            inputs: batch (B, C, ...).
            network: the network, with one output.
            args: further arguments of the inferer.
            kwargs: further keyword arguments of the inferer.

        Returns:
            The mean logits, as ``inferer`` gives them: an image, or (B, classes).

        Raises:
            ValueError: when the input lacks one of the axes, such as slices of a cube the third.
        """
        if any(axis + 2 >= inputs.ndim for axis in self.axes):
            raise ValueError(
                f"tta_flips: expected axes of an input of {inputs.ndim - 2} sides, the first 0, found {list(self.axes)}"
            )
        mean = self.inferer(inputs, network, *args, **kwargs)
        flips = [axes for count in range(len(self.axes)) for axes in combinations(self.axes, count + 1)]
        for axes in flips:
            dims = [axis + 2 for axis in axes]
            logits = self.inferer(inputs.flip(dims), network, *args, **kwargs)
            mean += logits.flip(dims) if logits.ndim == inputs.ndim else logits
        mean /= len(flips) + 1
        return mean
