# SPDX-License-Identifier: Apache-2.0
"""One slice of each case that a run predicted, small enough to keep for a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from monai.utils.enums import CommonKeys
from numpy.typing import NDArray

from ..datasets.io.atomic_write import atomic_write
from ..datasets.loading.case_dataset import CASE_KEY
from ..training.metrics.region_masks import region_masks


@dataclass(frozen=True)
class Slice:
    """The axial slice of a case with the largest area of its target, in RAS order.

    Attributes:
        image: (X, Y) grey values.
        label: (X, Y) 0, or 1 and more for the regions in their order.
        prediction: (X, Y) the same.
        sides: mm of a voxel along X and Y.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    sides: tuple[float, float]


def cut_slice(
    image: MetaTensor, label: MetaTensor, prediction: MetaTensor, regions: Mapping[str, Sequence[int]], margin: int = 16
) -> Slice:
    """Cut a case's slice around label and prediction.

    Args:
        image: (C, X, Y, Z), the first channel is kept.
        label: (1, X, Y, Z) label values.
        prediction: like ``label``.
        regions: label values by name.
        margin: voxels around the target.

    Returns:
        The slice.
    """
    turn = Orientation(axcodes="RAS", labels=None)
    turned = cast(MetaTensor, turn(image))
    maps = [_region_map(turn(each), regions) for each in (label, prediction)]
    areas = (maps[0] if maps[0].any() else maps[1]).astype(bool).sum(axis=(0, 1))
    z = int(areas.argmax()) if areas.any() else turned.shape[-1] // 2
    plane = np.asarray(turned[0, :, :, z].cpu(), dtype=np.float32)
    target = (maps[0][..., z] > 0) | (maps[1][..., z] > 0)
    box = tuple(_around(np.asarray(target.any(axis=axis)), margin) for axis in (1, 0))
    low, high = np.percentile(plane[box], [1, 99])
    grey = np.clip((plane[box] - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    sides = affine_to_spacing(np.asarray(turned.affine)).tolist()
    return Slice(grey, maps[0][..., z][box], maps[1][..., z][box], (float(sides[0]), float(sides[1])))


def _region_map(values: Any, regions: Mapping[str, Sequence[int]]) -> NDArray[np.uint8]:
    masks = np.asarray(region_masks(values, regions).cpu()).astype(bool)
    numbers = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks, start=1):
        numbers[mask] = number
    return numbers


def _around(inside: NDArray[np.bool_], margin: int) -> slice:
    if not inside.any():
        return slice(None)
    places = np.flatnonzero(inside)
    return slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1)


class KeepSlices:
    """Write ``slices.npz`` with a slice of each case that is evaluated; it takes the place of ``OverlayPicture``.

    Args:
        output_dir: folder of the file.
        regions: label values by name.
    """

    def __init__(self, output_dir: str | Path, regions: Mapping[str, Sequence[int]]) -> None:
        self.path = Path(output_dir) / "slices.npz"
        self.regions = dict(regions)
        self._slices: dict[str, Slice] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator; image, label and pred must be in one space.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs or [], strict=False):
            image, label, prediction = (output[key] for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED))
            self._slices[str(item[CASE_KEY])] = cut_slice(image, label, prediction, self.regions)

    def _write(self, engine: Engine) -> None:
        write_slices(self.path, self._slices, list(self.regions))


def write_slices(path: str | Path, slices: Mapping[str, Slice], regions: Sequence[str]) -> None:
    """Write slices by case, whole or not at all.

    Args:
        path: the file.
        slices: slices by case.
        regions: names of the regions.
    """
    arrays: dict[str, Any] = {"cases": np.array(list(slices)), "regions": np.array(list(regions))}
    for number, each in enumerate(slices.values()):
        arrays |= {f"image_{number}": each.image, f"label_{number}": each.label, f"pred_{number}": each.prediction}
        arrays[f"sides_{number}"] = np.array(each.sides)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_slices(path: str | Path) -> tuple[dict[str, Slice], list[str]]:
    """Read what :func:`write_slices` wrote.

    Args:
        path: the file.

    Returns:
        Slices by case, and the names of the regions.
    """
    with np.load(path, allow_pickle=False) as file:
        slices = {
            str(case): Slice(
                file[f"image_{number}"],
                file[f"label_{number}"],
                file[f"pred_{number}"],
                (float(file[f"sides_{number}"][0]), float(file[f"sides_{number}"][1])),
            )
            for number, case in enumerate(file["cases"])
        }
        return slices, [str(region) for region in file["regions"]]


def relative_slices(path: Path, target: Path, dataset_dir: str | Path) -> None:
    """Keep a run's slices under their cases' names relative to the data.

    Args:
        path: what the evaluation wrote.
        target: the file to keep.
        dataset_dir: folder of the data.
    """
    slices, regions = read_slices(path)
    root = os.path.abspath(dataset_dir)
    write_slices(target, {Path(os.path.relpath(case, root)).as_posix(): each for case, each in slices.items()}, regions)
