# SPDX-License-Identifier: Apache-2.0
"""A picture of each case: the slice that shows most of the target, with the contours of label and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from monai.utils.enums import CommonKeys

from ...datasets.io.atomic_write import write_figure
from ...datasets.io.case_names import OUTPUT_NAME
from ..metrics.region_masks import region_masks

__all__ = ["OverlayPicture", "draw_overlay"]

COLOURS = ("tab:green", "tab:red", "tab:blue", "tab:orange", "tab:purple", "tab:olive", "tab:cyan", "tab:pink")


class OverlayPicture:
    """Write ``<name>.png`` for each case that is evaluated or predicted, under the name of its prediction.

    Args:
        output_dir: folder of the pictures.
        regions: label values by name.
    """

    def __init__(self, output_dir: str | Path, regions: Mapping[str, Sequence[int]]) -> None:
        self.output_dir = Path(output_dir)
        self.regions = dict(regions)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator; image, pred and, where there is one, label must be in one space.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of an iteration.

        Args:
            engine: the evaluator.
        """
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs or [], strict=False):
            name = str(item[OUTPUT_NAME])
            figure = draw_overlay(
                output[CommonKeys.IMAGE], output[CommonKeys.PRED], self.regions, output.get(CommonKeys.LABEL), name
            )
            write_figure(self.output_dir / f"{name}.png", figure)


def draw_overlay(
    image: MetaTensor,
    prediction: MetaTensor,
    regions: Mapping[str, Sequence[int]],
    label: MetaTensor | None = None,
    title: str = "",
) -> Figure:
    """Draw the axial slice with the largest area of the target, seen from the feet, the patient's front up.

    Grey values range over those around the target, so that CT needs no window.

    Args:
        image: (C, X, Y, Z) with its affine; the first channel is shown.
        prediction: (1, X, Y, Z), label values, of the same shape.
        regions: label values by name; dashed contours.
        label: the truth, like ``prediction``; solid contours.
        title: name of the case.

    Returns:
        The figure.
    """
    to_ras = Orientation(axcodes="RAS", labels=None)
    oriented = to_ras(image)
    masks = {"predicted": np.asarray(region_masks(to_ras(prediction), regions).cpu())}
    if label is not None:
        masks["label"] = np.asarray(region_masks(to_ras(label), regions).cpu())
    areas = masks.get("label", masks["predicted"]).any(axis=0).sum(axis=(0, 1))
    if not areas.any():
        areas = masks["predicted"].any(axis=0).sum(axis=(0, 1))
    z = int(areas.argmax()) if areas.any() else oriented.shape[-1] // 2
    plane = np.asarray(oriented[0, :, :, z].cpu(), dtype=np.float32)
    sides = affine_to_spacing(np.asarray(cast(MetaTensor, oriented).affine))
    height = 4.5 * plane.shape[1] * sides[1] / (plane.shape[0] * sides[0])
    figure = Figure(figsize=(4.5, float(np.clip(height, 2.0, 9.0)) + 0.6), layout="constrained")
    axes = figure.subplots()
    target = np.concatenate([mask[..., z] for mask in masks.values()])
    low, high = _grey_range(plane, np.asarray(target.any(axis=0)))
    # x grows to the patient's right, which is drawn on the left
    axes.imshow(plane[::-1].T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=float(sides[1] / sides[0]))
    for row, (kind, style) in enumerate((("label", "solid"), ("predicted", "dashed"))):
        for number, name in enumerate(regions):
            colour = COLOURS[number % len(COLOURS)]
            if kind in masks and masks[kind][number, :, :, z].any():
                mask = masks[kind][number, :, :, z][::-1].T
                axes.contour(mask, levels=[0.5], colors=[colour], linestyles=style, linewidths=1 + 0.4 * row)
            if kind in masks:
                axes.plot([], [], color=colour, linestyle=style, label=f"{name}, {kind}")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{title}, slice {z}" if title else f"slice {z}", fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return figure


def _grey_range(plane: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Take the range of grey values within and around the target."""
    if target.any():
        x, y = (np.flatnonzero(target.any(axis=axis)) for axis in (1, 0))
        margin = 10
        plane = plane[max(x[0] - margin, 0) : x[-1] + margin, max(y[0] - margin, 0) : y[-1] + margin]
    low, high = np.percentile(plane, [5, 99])
    return float(low), float(max(high, low + 1e-6))
