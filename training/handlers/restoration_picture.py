# SPDX-License-Identifier: Apache-2.0
"""Pictures of original, deformed and restored cubes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.data import list_data_collate
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from ...datasets.io.atomic_write import atomic_write
from ...datasets.loading.processes import process_rank

__all__ = ["RestorationPicture", "draw_restoration", "middle_slice"]


class RestorationPicture:
    """After each validation restore the same few cubes and show them, in TensorBoard and as ``restoration.png``.

    The file shows the best network so far, TensorBoard each validation's.

    Args:
        dataset: the validation cubes, as the evaluator's loader takes them; the evaluator's ``prepare_batch`` gives
            deformed and original cubes, in [0, 1].
        output_dir: folder of ``restoration.png`` and of the TensorBoard events.
        num_cubes: how many cubes to show, evenly spaced over the data set.
        rank: this process's rank, of which 0 alone draws; None asks ``torch.distributed``.
    """

    def __init__(self, dataset: Dataset, output_dir: str | Path, num_cubes: int = 6, rank: int | None = None) -> None:
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.num_cubes = num_cubes
        self.rank = process_rank() if rank is None else rank
        self._writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator.
        """
        if self.rank == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Restore and draw.

        Args:
            engine: the evaluator; its network and inferer restore.
        """
        size = len(self.dataset)  # type: ignore[arg-type]
        indices = np.linspace(0, size - 1, min(self.num_cubes, size)).round().astype(int)
        batch = list_data_collate([self.dataset[int(index)] for index in indices])
        # as the engine prepares its batches, for the deformation may be a part of that
        deformed, originals = engine.prepare_batch(batch, engine.state.device, False)
        engine.network.eval()
        with torch.no_grad():
            logits = engine.inferer(deformed, engine.network)
        figure = draw_restoration(*(cubes.cpu().numpy() for cubes in (originals, deformed, logits.sigmoid())))
        if self._writer is None:
            self._writer = SummaryWriter(log_dir=str(self.output_dir))
        pixels = _render(figure)  # once for both, for it takes longer than all the rest
        self._writer.add_image("restoration", pixels, global_step=engine.state.epoch, dataformats="HWC")
        self._writer.flush()
        if engine.state.best_metric_epoch == engine.state.epoch:
            with atomic_write(self.output_dir / "restoration.png") as file:
                Image.fromarray(pixels).save(file, format="png")


def _render(figure: Figure, dpi: int = 120) -> NDArray[np.uint8]:
    """Draw a figure: (height, width, 3)."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_restoration(
    originals: np.ndarray, deformed: np.ndarray, restored: np.ndarray, titles: Sequence[str] | None = None
) -> Figure:
    """Draw one column per cube: the middle slice of the original, the deformed and the restored cube, and the error.

    Args:
        originals: (B, C, X, Y[, Z]) in [0, 1]; the first channel is shown.
        deformed: the same shape.
        restored: the same shape.
        titles: one per cube.

    Returns:
        The figure; each restored picture states its mean squared error next to that of the deformed cube.
    """
    rows = {"original": originals, "deformed": deformed, "restored": restored, "|error|": np.abs(restored - originals)}
    columns = len(originals)
    width = 1.7 * columns + 0.4
    # margins as they are needed: to find them, matplotlib would draw all of it twice
    margins = {"left": 0.3 / width, "right": 1 - 0.05 / width, "bottom": 0.01, "top": 0.97}
    figure = Figure(figsize=(width, 7.4))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={**margins, "wspace": 0.04, "hspace": 0.14})
    for row, (name, cubes) in enumerate(rows.items()):
        for column, cube in enumerate(cubes):
            axis = axes[row, column]
            axis.imshow(middle_slice(cube), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name)
    for column in range(columns):
        if titles is not None:
            axes[0, column].set_title(titles[column], fontsize=7)
        for row, cubes in ((1, deformed), (2, restored)):
            error = float(np.mean((cubes[column] - originals[column]) ** 2))
            axes[row, column].set_title(f"MSE {error:.4f}", fontsize=8)
    return figure


def middle_slice(cube: np.ndarray) -> Any:
    """The first channel's middle slice, turned so that in RAS the patient's front is up and the right side left."""
    plane = cube[0] if cube.ndim == 3 else cube[0, :, :, cube.shape[-1] // 2]
    return plane[::-1, ::-1].T
