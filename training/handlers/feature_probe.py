# SPDX-License-Identifier: Apache-2.0
"""A probe of the features while they are pretrained: what can a linear classifier read from them on held-out cases?"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, Orientationd
from monai.utils import ensure_tuple
from torch import Tensor, nn

from ...datasets import ScanReader, load_datalist
from ...datasets.io.scan_header import paths_of
from ...datasets.loading.processes import process_rank
from ...networks.norm_pairs import unwrapped
from ...transforms import NormaliseScand, window_size
from ..engines.feature_maps import feature_maps, undisturbed, with_random_weights
from ..metrics.linear_probe import LinearProbe, draw_voxels, fit_probe, voxel_features

__all__ = ["FeatureProbe"]

NdArray = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


class _Case:
    """A labelled cube: the image, the class of each voxel (or one for all), and which voxels are of the scan."""

    def __init__(self, image: Tensor, label: NdArray | int, inside: NdArray) -> None:
        self.image, self.label, self.inside = image, label, inside


class FeatureProbe:
    """Every few epochs fit a linear classifier on the frozen features, and note how it does on held-out cases.

    The restoration error says how well the proxy task is solved, not whether its features are worth anything for a
    task. The probe does, at a small share of the time: a ridge regression on the features of some labelled voxels
    (``engines.feature_maps``), its threshold of the best Dice, and the mean Dice over held-out cases and classes. Where
    entries have a ``"class"``, 0 or 1, instead of a label map, it classifies whole cubes by the mean of each feature,
    and gives the AUC. The same for random weights of the same network is the baseline: features that do not beat it
    have learned nothing that this task needs.

    Cubes have the training's size; they lie around the label's centre of mass, or in the middle of the scan. The
    training is not touched: with and without the probe it comes out the same bit by bit.

    Args:
        network: the network that is trained; wrapped or not.
        datalist: of labelled cases; its ``"training"`` list is fitted to, its ``"validation"`` list is held out. None
            switches the probe off.
        cube_size: in voxels.
        intensity_range: (low, high), mapped to [0, 1] as for the training.
        axcodes: orientation of the cubes.
        normalise: of whole scans, as for the training, see :class:`~models_genesis.transforms.NormaliseScan`.
        dataset_dir: folder that the data list's paths start from; None: that of the list.
        interval: epochs from one probe to the next. The last epoch is always probed.
        max_share: largest share of the time since the start of the training: a probe that would exceed it is left out;
            1 for no limit.
        voxels_per_case: how many voxels of a case are fitted to.
        inferer: runs the network, for the training's precision.
        seed: of the voxels and of the random weights.
        rank: this process's rank, of which 0 alone probes; None asks ``torch.distributed``.
        slice_axis: axis that slices stand across, for a network that sees slices: each case is then one slice, the one
            with most of the label, or the middle one; None for cubes.

    Attributes:
        enabled: whether there is a data list.
        value: Dice or AUC of the present epoch, None where it was not probed.
        baseline: that of random weights.
        metric: ``"dice"`` or ``"auc"``.

    Raises:
        ValueError: for an argument out of range; when the training starts, for cases that cannot be used, or that are
            in both lists.
    """

    def __init__(
        self,
        network: nn.Module,
        datalist: str | Path | None,
        cube_size: Sequence[int],
        intensity_range: Sequence[float] = (-1000, 1000),
        axcodes: str = "RAS",
        normalise: str = "none",
        dataset_dir: str | Path | None = None,
        interval: int = 5,
        max_share: float = 0.05,
        voxels_per_case: int = 512,
        inferer: Inferer | None = None,
        seed: int = 0,
        rank: int | None = None,
        slice_axis: int | None = None,
    ) -> None:
        if interval < 1 or not 0 < max_share <= 1:
            raise ValueError(
                f"expected a probe interval of at least 1 epoch and a share in (0, 1], found {interval}, {max_share}"
            )
        self.enabled = datalist is not None
        self.network, self.datalist, self.dataset_dir = network, datalist, dataset_dir
        self.cube_size, self.intensity_range = tuple(int(side) for side in cube_size), tuple(intensity_range)
        self.slice_axis, self.window = slice_axis, ensure_tuple(window_size(self.cube_size, slice_axis))
        self.axcodes, self.normalise = axcodes, normalise
        self.interval, self.max_share = int(interval), max_share
        self.voxels_per_case, self.inferer, self.seed = voxels_per_case, inferer, seed
        self.rank = process_rank() if rank is None else rank
        self.value: float | None = None
        self.baseline: float | None = None
        self.metric = "dice"
        self._cases: dict[str, list[_Case]] = {}
        self._begin = self._spent = self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before :class:`~models_genesis.training.TrainingHistory`, which writes the values.

        Args:
            engine: the MONAI trainer.
        """
        if self.enabled and self.rank == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._probe)

    def _start(self, engine: Engine) -> None:
        """Load the cases and probe random weights."""
        self._begin = time.monotonic()
        self._cases = self._load()
        copied = copy.deepcopy(unwrapped(self.network))
        with_random_weights(copied, [case.image for case in self._cases["training"]], self.seed)
        self.baseline = self._measure(copied)
        self._last = self._spent = time.monotonic() - self._begin
        logger.info("probe: %s of random weights %.4f", self.metric, self.baseline)

    def _probe(self, engine: Engine) -> None:
        self.value = None
        state = engine.state
        if state.epoch % self.interval and state.epoch != state.max_epochs:
            return
        passed = time.monotonic() - self._begin
        too_long = self.max_share < 1 and self._spent + self._last > self.max_share * passed
        if too_long and state.epoch != state.max_epochs:
            logger.info(
                "probe: left out, as it would take %.1f %% of the time; a larger interval or fewer cases help",
                100 * (self._spent + self._last) / passed,
            )
            return
        begin = time.monotonic()
        self.value = self._measure(unwrapped(self.network))
        self._last = time.monotonic() - begin
        self._spent += self._last
        logger.info(
            "probe: %s %.4f, random weights %.4f, %.1f s, %.1f %% of the time so far",
            self.metric,
            self.value,
            self.baseline,
            self._last,
            100 * self._spent / (time.monotonic() - self._begin),
        )

    def _load(self) -> dict[str, list[_Case]]:
        lists = {key: load_datalist(self.datalist, self.dataset_dir, key) for key in ("training", "validation")}
        for name in ("image", "patient"):
            fitted, held_out = ({str(e[name]) for e in entries if e.get(name)} for entries in lists.values())
            if common := sorted(fitted & held_out):
                raise ValueError(f"{self.datalist}: expected held-out cases, found {name} {common[0]} in both lists")
        kinds = {"class" in entry for entries in lists.values() for entry in entries}
        if len(kinds) != 1 or not all(lists.values()):
            raise ValueError(
                f"{self.datalist}: expected cases in 'training' and 'validation', all with a 'label' map or all with a "
                f"'class', found { ({key: len(entries) for key, entries in lists.items()}) }"
            )
        self.metric = "auc" if kinds.pop() else "dice"
        keys = ["image"] if self.metric == "auc" else ["image", "label"]
        load = Compose(
            [
                LoadImaged(keys, reader=ScanReader, dtype=None, ensure_channel_first=True),
                Orientationd(keys, axcodes=self.axcodes, labels=None),
                NormaliseScand("image", normalise=self.normalise),
            ]
        )
        cases = {key: [self._case(entry, load) for entry in entries] for key, entries in lists.items()}
        for key, members in cases.items():
            if self.metric == "auc" and {case.label for case in members} != {0, 1}:
                raise ValueError(f"{self.datalist}: expected both classes, 0 and 1, in {key!r}")
            if self.metric == "dice" and not any(np.any(case.label) for case in members):
                raise ValueError(f"{self.datalist}: expected labelled voxels in {key!r}, found none")
        return cases

    def _case(self, entry: Mapping[str, Any], load: Compose) -> _Case:
        """Cut the cube around the label's centre of mass, or from the middle of the scan."""
        if self.metric == "dice" and not paths_of(entry.get("label")):
            found = f"{entry['label']!r}"[:80] if "label" in entry else f"{sorted(entry)}"
            raise ValueError(f"{entry['image']}: expected a label map as 'label', found {found}")
        item = load({key: entry[key] for key in ("image", "label") if key in entry})
        scan = np.asarray(item["image"])
        label = np.asarray(item["label"])[0].astype(np.int64) if self.metric == "dice" else None
        if label is not None and label.shape != scan.shape[1:]:
            raise ValueError(
                f"{entry['label']}: expected the shape of its image, {scan.shape[1:]}, found {label.shape}"
            )
        centre = [length / 2 for length in scan.shape[1:]]
        if label is not None and label.any():
            centre = [float(at.mean()) + 0.5 for at in np.nonzero(self._shown(label))]
        low, high = self.intensity_range
        cube: NdArray = np.full((scan.shape[0], *self.window), low, np.float32)
        inside: NdArray = np.zeros(self.window, bool)
        cut_label: NdArray = np.zeros(self.window, np.int64)
        target, source = [], []
        for middle, length, side in zip(centre, scan.shape[1:], self.window, strict=True):
            # a scan that is shorter than the cube lies in its middle, any other is cut within its bounds
            first = (length - side) // 2 if length <= side else min(max(round(middle - side / 2), 0), length - side)
            target.append(slice(max(-first, 0), min(side, length - first)))
            source.append(slice(max(first, 0), min(first + side, length)))
        cube[(slice(None), *target)] = scan[(slice(None), *source)]
        inside[tuple(target)] = True
        if label is not None:
            cut_label[tuple(target)] = label[tuple(source)]
        if self.slice_axis is not None:
            cube = cube.squeeze(self.slice_axis + 1)
            inside, cut_label = inside.squeeze(self.slice_axis), cut_label.squeeze(self.slice_axis)
        image = torch.from_numpy((np.clip(np.nan_to_num(cube, nan=low), low, high) - low) / (high - low))
        device = next(self.network.parameters()).device
        return _Case(image[None].float().to(device), cut_label if label is not None else int(entry["class"]), inside)

    def _shown(self, label: NdArray) -> NdArray:
        """Give the part of a label that a cube is centred on: of slices, that in the slice with most of it."""
        if self.slice_axis is None:
            return label
        planes: NdArray = np.moveaxis(label, self.slice_axis, 0)
        kept = np.zeros_like(planes)
        fullest = int(np.count_nonzero(planes, axis=(1, 2)).argmax())
        kept[fullest] = planes[fullest]
        return np.moveaxis(kept, 0, self.slice_axis)

    def _measure(self, network: nn.Module) -> float:
        """Fit to the training cases, score the held-out ones."""
        with undisturbed(network):
            return self._measure_cubes(network) if self.metric == "auc" else self._measure_voxels(network)

    def _measure_voxels(self, network: nn.Module) -> float:
        R = np.random.RandomState(self.seed)
        features, labels, weights = [], [], []
        for case in self._cases["training"]:
            where, weight = draw_voxels(np.asarray(case.label), case.inside, self.voxels_per_case, R)
            maps = feature_maps(network, case.image, self.inferer)
            features.append(voxel_features(maps, where, self.cube_size))
            labels.append(np.asarray(case.label)[where])
            weights.append(weight)
        seen = np.concatenate(labels)
        classes = np.unique(seen[seen > 0])
        probe = fit_probe(np.concatenate(features), seen[:, None] == classes, np.concatenate(weights))
        scores = [self._dice(network, probe, case, classes) for case in self._cases["validation"]]
        return float(np.mean([score for case in scores for score in case]))

    def _dice(self, network: nn.Module, probe: LinearProbe, case: _Case, classes: NdArray) -> list[float]:
        """Dice of each class that the case has."""
        scores = probe.score_map(feature_maps(network, case.image, self.inferer), self.cube_size)
        found = []
        for number, value in enumerate(classes):
            truth = np.asarray(case.label) == value
            answer = (scores[number] > probe.thresholds[number]) & case.inside
            if truth.any():
                found.append(2 * float((truth & answer).sum()) / float(truth.sum() + answer.sum()))
        return found

    def _measure_cubes(self, network: nn.Module) -> float:
        from sklearn.metrics import roc_auc_score

        def describe(case: _Case) -> NdArray:
            maps = feature_maps(network, case.image, self.inferer)
            return np.concatenate([single[0].flatten(1).mean(dim=1).cpu().double().numpy() for single in maps])

        features, classes = {}, {}
        for key, cases in self._cases.items():
            features[key] = np.stack([describe(case) for case in cases])
            classes[key] = np.array([case.label for case in cases])
        truth = classes["training"][:, None] == 1
        probe = fit_probe(features["training"], truth, np.ones(len(truth)))
        scores = features["validation"] @ probe.coefficients[0] + probe.offsets[0]
        return float(roc_auc_score(classes["validation"], scores))
