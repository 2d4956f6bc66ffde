# SPDX-License-Identifier: Apache-2.0
"""Features of scans from pretrained weights, for retrieval and for probes: one vector a scan, a region or a tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd
from monai.utils import ensure_tuple
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

from ..datasets import CaseDataset, ScanReader
from ..transforms import (
    BadCaseError,
    CheckModalityd,
    ClipHounsfieldd,
    NormaliseScand,
    ScaleHounsfieldd,
    default_intensity_range,
    window_size,
)

__all__ = ["UNITS", "Embedding", "embed_scans", "preprocessing"]

UNITS = ("scan", "region", "tile")
"""What a vector stands for."""

Levels = Literal["last", "all"]
Modality = Literal["CT", "MR", "any"]


@dataclass
class Embedding:
    """Vectors and what each stands for.

    Attributes:
        features: one vector a row.
        images: path of each row's scan.
        labels: of a region its value in the label map, else -1.
        centres: middle of the tile, of a region its centre of mass, of a scan its middle; mm, RAS as in NIfTI.
        skipped: scans that could not be read, with the reason.
    """

    features: list[np.ndarray] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    centres: list[np.ndarray] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, features: np.ndarray, image: str, centre: np.ndarray, label: int = -1) -> None:
        """Add a row."""
        self.features.append(features.astype(np.float32))
        self.images.append(image)
        self.labels.append(label)
        self.centres.append(centre)


def preprocessing(
    settings: Mapping[str, Any], keys: Sequence[str] = ("image",), modality: Modality | None = None
) -> Compose:
    """Build the preprocessing that weights were trained with.

    Args:
        settings: of ``model.json``: ``axcodes``, ``spacing``, and either ``intensity_range``, which becomes [0, 1],
            after ``normalise`` where both are given, or ``normalise`` alone, whose values stay as they are.
        keys: ``"image"``, and ``"label"`` where there is one.
        modality: what each scan must be; ``"any"`` for no check; None: CT where the intensity range is one of HU.

    Returns:
        Transforms from an entry to the image that the network takes.

    Raises:
        ValueError: the settings tell no intensities.
    """
    normalise, limits = intensities_of(settings)
    if modality is None and normalise == "none" and limits is not None and limits[0] < -50:
        modality = "CT"
    steps: list[Any] = [
        LoadImaged(keys, reader=ScanReader, dtype=None, ensure_channel_first=True),
        CheckModalityd("image", None if modality == "any" else modality),
        Orientationd(keys, axcodes=settings.get("axcodes") or "RAS", labels=None),
    ]
    if settings.get("spacing") is not None:
        modes = ["bilinear", "nearest"][: len(keys)]
        steps.append(Spacingd(keys, pixdim=settings["spacing"], mode=modes))
    steps.append(NormaliseScand("image", normalise=normalise))
    if limits is not None:
        steps += [ClipHounsfieldd("image", limits), ScaleHounsfieldd("image", limits)]
    return Compose(steps)


def intensities_of(settings: Mapping[str, Any]) -> tuple[str, tuple[float, float] | None]:
    """Tell how intensities are normalised, and which range becomes [0, 1] then."""
    normalise, limits = settings.get("normalise"), settings.get("intensity_range")
    facts = settings.get("task_facts")
    if isinstance(facts, Mapping):  # a task of the Decathlon is CT, with a range, or MR, normalised; it says both
        normalise, limits = ("none", limits) if facts.get("modality") == "CT" else (normalise, None)
    if normalise is None and limits is None:
        raise ValueError(
            "expected settings of the weights that tell intensities (in model.json or config.json), found "
            f"{sorted(settings) or 'none'}: give --intensity_range LOW HIGH, --normalise, or both, as in the training"
        )
    if limits is None and "intensity_range" in settings and not isinstance(facts, Mapping):
        limits = default_intensity_range(normalise or "none")
    return normalise or "none", None if limits is None else (float(limits[0]), float(limits[1]))


def embed_scans(
    network: nn.Module,
    entries: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    per: str = "scan",
    levels: Levels = "last",
    on_bad_scan: Literal["raise", "skip"] = "raise",
    modality: Modality | None = None,
    progress: Callable[[str], None] | None = None,
) -> Embedding:
    """Compute the encoder's features of scans, averaged over each scan, each region of its label map, or each tile.

    A scan is cut into tiles of the training's cube size, without overlap; a vector is the mean of the encoder's feature
    maps over the voxels that count. Padding at the border does not count. For a 2D network the tiles are slices of one
    voxel across the training's ``slice_axis``, so a scan's vector is the mean over all of its slices.

    Args:
        network: :class:`~models_genesis.networks.GenesisUNet` or
            :class:`~models_genesis.networks.GenesisClassifier`, in evaluation mode.
        entries: of a data list.
        settings: preprocessing, ``cube_size`` and, of a 2D network, ``slice_axis``, see :func:`preprocessing`.
        per: ``"scan"``, ``"region"`` (each value of the label map but 0) or ``"tile"``.
        levels: ``"last"``, the bottleneck, or ``"all"``, the levels one after the other.
        on_bad_scan: ``"raise"``, or ``"skip"`` and note it.
        modality: see :func:`preprocessing`.
        progress: is told of each scan.

    Returns:
        The vectors, in the order of the entries.

    Raises:
        BadCaseError: a scan cannot be read, is of another modality, has other channels, or lacks a label map.
        ValueError: an argument out of range, or no vectors at all.
    """
    if per not in UNITS or levels not in ("last", "all"):
        raise ValueError(f"expected per in {UNITS} and levels 'last' or 'all', found {per!r} and {levels!r}")
    keys = ("image", "label") if per == "region" else ("image",)
    wanted = [{key: entry[key] for key in keys if key in entry} for entry in entries]
    result = Embedding()
    prepare, side = preprocessing(settings, keys, modality), tile_size(network, settings)
    axis = settings.get("slice_axis")
    for number, entry in enumerate(wanted):
        name = str(entry["image"])
        if progress is not None:
            progress(f"{number + 1} of {len(wanted)}: {name}")
        try:
            if per == "region" and "label" not in entry:
                raise BadCaseError(name, "no label map", "expected a 'label' in the data list for its regions")
            item = CaseDataset([entry], prepare)[0]
            rows = list(_rows(network, item, side, per, levels, axis))
        except BadCaseError as error:
            if on_bad_scan == "raise":
                raise
            result.skipped.append(str(error))
            continue
        for features, centre, label in rows:
            result.add(features, name, centre, label)
    if not result.features:
        raise ValueError(f"expected scans to embed, found none: {'; '.join(result.skipped[:3]) or 'no entries'}")
    return result


def tile_size(network: nn.Module, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Give the training's cube or slice, each side but that across a slice a multiple of what the poolings halve."""
    flat, axis = isinstance(network.encoder.levels[0].conv1, nn.Conv2d), settings.get("slice_axis")  # type: ignore[union-attr,index]
    if settings.get("slice_axes") is not None:
        raise ValueError(
            f"expected a network of whole scans, found one of slices through candidates ({settings['slice_axes']})"
        )
    if flat != (axis is not None):
        found = f"{type(network).__name__} in {2 if flat else 3}D and slice_axis {axis}"
        raise ValueError(f"expected a network in 2D with the --slice_axis of its slices, or one in 3D, found {found}")
    divisor = 2 ** (len(network.encoder.levels) - 1)  # type: ignore[union-attr,arg-type]
    cube = settings.get("cube_size") or ((128, 128) if flat else (64, 64, 32))
    return ensure_tuple(window_size([-(-int(side) // divisor) * divisor for side in cube], axis))


def _rows(
    network: nn.Module, item: Mapping[str, Any], side: Sequence[int], per: str, levels: Levels, axis: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Give vector, centre and label of everything in one scan."""
    image: MetaTensor = item["image"]
    name, affine = str(item["case"]), np.asarray(image.affine, dtype=np.float64)
    check_channels(network, name, image)
    shape = image.shape[1:]
    values = [0]
    label = None
    if per == "region":
        label = item["label"].as_tensor().round().long()
        if label.shape != (1, *shape):
            raise BadCaseError(
                name, "other label map", f"expected shape {tuple(shape)}, found {tuple(label.shape[1:])}"
            )
        values = [int(value) for value in label.unique() if value != 0]
    sums: dict[int, Tensor] = {}
    weights: dict[int, float] = {}
    for start, tile, inside in _tiles(image.as_tensor().float(), side):
        masks = {value: inside for value in values}
        if label is not None:
            part = cut_tile(label.float(), start, side)
            masks = {value: inside * (part == value) for value in values}
        pooled = pooled_features(network, tile, masks, levels, axis)
        for value, (vector, weight) in pooled.items():
            if per == "tile":
                centre = np.add(start, np.minimum(np.add(start, side), shape)) / 2 - 0.5
                yield vector.numpy(), _world(affine, centre), -1
            else:
                sums[value] = sums.get(value, torch.zeros_like(vector)) + weight * vector.double()
                weights[value] = weights.get(value, 0.0) + weight
    for value in sums:
        if label is None:
            centre = (np.array(shape) - 1) / 2
        else:
            centre = np.array([float(at.double().mean()) for at in torch.nonzero(label[0] == value, as_tuple=True)])
        yield (sums[value] / weights[value]).numpy(), _world(affine, centre), -1 if label is None else value


def check_channels(network: nn.Module, name: str, image: Tensor) -> None:
    """Refuse an image (C, ...) of other channels than the network takes."""
    expected = int(network.encoder.levels[0].conv1.in_channels)  # type: ignore[union-attr,index]
    if image.shape[0] != expected:
        raise BadCaseError(name, "other channels", f"expected {expected} channels, found {image.shape[0]}")


def _world(affine: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return np.asarray((affine @ [*voxel, 1.0])[:3])


def _tiles(image: Tensor, side: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Cut an image into tiles; those at the end are padded, and ``inside`` is 0 there."""
    inside = torch.ones(1, *image.shape[1:])
    for start in itertools.product(
        *(range(0, length, step) for length, step in zip(image.shape[1:], side, strict=True))
    ):
        yield start, cut_tile(image, start, side), cut_tile(inside, start, side)


def cut_tile(image: Tensor, start: Sequence[int], side: Sequence[int]) -> Tensor:
    """Cut one tile, padded with zeros as in sliding windows."""
    window = tuple(slice(first, first + length) for first, length in zip(start, side, strict=True))
    part = image[(slice(None), *window)]
    tile = torch.zeros(image.shape[0], *side)
    tile[tuple(slice(length) for length in part.shape)] = part
    return tile


def pooled_features(
    network: nn.Module, tile: Tensor, masks: Mapping[int, Tensor], levels: Levels, axis: int | None
) -> dict[int, tuple[Tensor, float]]:
    """Average the feature maps of one tile over each mask; masks that are empty give nothing."""
    present = {value: mask for value, mask in masks.items() if mask.any()}
    if not present:
        return {}
    pool = avg_pool3d
    if axis is not None:
        pool, tile = avg_pool2d, tile.squeeze(axis + 1)
        present = {value: mask.squeeze(axis + 1) for value, mask in present.items()}
    device = next(network.parameters()).device
    with torch.no_grad():
        maps = [level.float().cpu() for level in network.encoder(tile[None].to(device))]  # type: ignore[operator]
    pooled = {}
    for value, mask in present.items():
        parts = []
        for level, features in enumerate(maps) if levels == "all" else [(len(maps) - 1, maps[-1])]:
            weight = pool(mask[None], 2**level)
            parts.append((features * weight).transpose(0, 1).flatten(1).sum(dim=1) / weight.sum())
        pooled[value] = (torch.cat(parts), float(mask.sum()))
    return pooled
