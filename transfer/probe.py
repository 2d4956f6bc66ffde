# SPDX-License-Identifier: Apache-2.0
"""How well a linear classifier on frozen features tells two classes of scans, against random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor, nn

from ..datasets import CaseDataset, load_datalist
from ..networks.pretrained_config import PREPROCESSING
from ..networks.weight_container import sha256_of
from ..training.engines.feature_maps import with_random_weights
from ..training.handlers.birth_certificate import source_of_weights
from ..training.handlers.seen_scans import warn_of_seen_scans
from .contrast import Scores, interval_of
from .embedding import Modality, cut_tile, pooled_features, preprocessing, tile_size
from .embedding_files import load_with_settings
from .statistics import FloatArray, Interval
from .subsets import digest, nested

__all__ = ["LabelledScans", "Probe", "ProbeRow", "read_labelled_scans", "score_features"]

Labels = int | str
"""Number of patients that the classifier is fitted to, or ``"all"``."""

_STRENGTHS = np.logspace(-4, 0, 5)
"""``C`` of the logistic regression that are tried."""
_INNER_FOLDS = 5
_SEEN_BY_NORMS = 64
"""Cubes that set the running statistics of random weights; all features are computed with these."""


@dataclass(frozen=True)
class LabelledScans:
    """Scans of two classes, and the fold in which each patient is tested.

    Attributes:
        data: entries of the data list.
        classes: (N,) 0 or 1.
        patients: (N,) their patients.
        folds: (N,) the fold of each scan's patient.
    """

    data: Sequence[Mapping[str, Any]]
    classes: NDArray[np.int64]
    patients: tuple[str, ...]
    folds: NDArray[np.int64]

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the scans."""
        return tuple(str(entry["image"]) for entry in self.data)

    def fitted_to(self, fold: int, labels: Labels, seed: int) -> NDArray[np.bool_]:
        """Tell which scans the classifier of a fold is fitted to; subsets of one seed are nested."""
        others = sorted({patient for patient, own in zip(self.patients, self.folds, strict=True) if own != fold})
        chosen = set(others if labels == "all" else nested(others, seed, fold)[: int(labels)])
        return np.array([patient in chosen for patient in self.patients])


def read_labelled_scans(datalist: str | Path, splits: Sequence[str] = ("training",), folds: int = 5) -> LabelledScans:
    """Read scans and their classes.

    Args:
        datalist: whose entries have an ``image``, a ``class``, 0 or 1, and a ``patient``.
        splits: its lists.
        folds: into which patients are dealt out, those with equally many scans of each class evenly.

    Returns:
        The scans.

    Raises:
        FileNotFoundError: there is no such data list.
        ValueError: an entry lacks a class or a patient, or a fold would be without one of the classes.
    """
    if folds < 2:
        raise ValueError(f"folds: expected 2 or more, found {folds}")
    entries = [entry for split in splits for entry in load_datalist(datalist, key=split)]
    for entry in entries:
        if entry.get("class") not in (0, 1) or not entry.get("patient"):
            found = {key: entry.get(key) for key in ("class", "patient")}
            raise ValueError(f"{datalist}: {entry['image']}: expected a class, 0 or 1, and a patient, found {found}")
    patients = [str(entry["patient"]) for entry in entries]
    counts: dict[str, list[int]] = {patient: [0, 0] for patient in patients}
    for patient, entry in zip(patients, entries, strict=True):
        counts[patient][int(entry["class"])] += 1
    ordered = sorted(counts, key=lambda patient: (counts[patient], digest("fold", 0, patient)))
    fold = {patient: number % folds for number, patient in enumerate(ordered)}
    scans = LabelledScans(
        entries,
        np.array([int(entry["class"]) for entry in entries]),
        tuple(patients),
        np.array([fold[patient] for patient in patients]),
    )
    for number in range(folds):
        if len(classes := set(scans.classes[scans.folds == number].tolist())) < 2:
            raise ValueError(
                f"{datalist}: expected patients of both classes for each of {folds} folds, found {len(counts)} "
                f"patients, and in fold {number} the classes {sorted(classes)}"
            )
    return scans


def score_features(features: FloatArray, scans: LabelledScans, labels: Labels, seed: int) -> FloatArray:
    """Score each scan by a classifier that was fitted to patients of the other folds.

    It is a logistic regression on standardised features; how strongly it is penalised is chosen by cross-validation
    within the patients that it is fitted to.

    Args:
        features: (N, F).
        scans: the N scans.
        labels: number of patients to fit to.
        seed: draws the patients, and deals them out where the penalty is chosen.

    Returns:
        (N,) logits, to be compared within a fold only.

    Raises:
        ValueError: when a fold has fewer patients than ``labels``, or fewer than two with either class among them.
    """
    scores = np.full(len(scans.classes), np.nan)
    for fold in np.unique(scans.folds).tolist():
        fitted, tested = scans.fitted_to(fold, labels, seed), scans.folds == fold
        names = np.asarray(scans.patients)[fitted]
        found = {value: len(set(names[scans.classes[fitted] == value])) for value in (0, 1)}
        if (labels != "all" and len(set(names)) < int(labels)) or min(found.values()) < 2:
            raise ValueError(
                f"{labels} labelled patients, seed {seed}, fold {fold}: expected as many, two or more with each class, "
                f"found {len(set(names))}, {found[0]} with class 0 and {found[1]} with class 1"
            )
        classifier = _fit(features[fitted], scans.classes[fitted], names, min(_INNER_FOLDS, *found.values()), seed)
        scores[tested] = classifier.decision_function(features[tested])
    return scores


def _fit(features: FloatArray, classes: NDArray[np.int64], patients: NDArray[Any], inner: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    split = StratifiedGroupKFold(inner, shuffle=True, random_state=seed)
    parts = list(split.split(features, classes, patients))
    if any(len(set(classes[part].tolist())) < 2 for part, _ in parts):
        raise ValueError(f"expected both classes wherever the penalty is chosen, found one in a part of {inner}")
    made = [make_pipeline(StandardScaler(), LogisticRegression(C=each, max_iter=2000)) for each in _STRENGTHS]
    areas = [
        roc_auc_score(classes, cross_val_predict(each, features, classes, cv=parts, method="decision_function"))
        for each in made
    ]
    return made[int(np.argmax(areas))].fit(features, classes)  # of equally good ones the most strongly penalised


@dataclass(frozen=True)
class ProbeRow:
    """One line of the result.

    Attributes:
        weights: their name.
        labels: number of labelled patients.
        auc: mean over folds and seeds, with its interval.
        against: name of what the difference is to; empty for none.
        difference: to that, with its interval; None for none.
    """

    weights: str
    labels: Labels
    auc: Interval
    against: str = ""
    difference: Interval | None = None

    @property
    def flat(self) -> dict[str, Any]:
        """The line as a row of a table."""
        difference = asdict(self.difference) if self.difference else dict.fromkeys(("value", "low", "high"))
        row: dict[str, Any] = {"weights": self.weights, "labels": self.labels, "auc": self.auc.value}
        row |= {"low": self.auc.low, "high": self.auc.high, "against": self.against}
        return row | {
            "difference": difference["value"],
            "difference_low": difference["low"],
            "difference_high": difference["high"],
        }


class Probe:
    """Compare weights by a linear classifier on their frozen features, with random weights as the baseline.

    Each scan is one vector: the means of the encoder's maps, of all levels, over a cube in its middle. Random weights
    are drawn once for each seed and each architecture; their batch norm sees up to 64 of the cubes first.

    Args:
        scans: what is to be told apart.
        seeds: one draw of patients and of random weights each.
        device: of the networks.
        modality: see :func:`~models_genesis.transfer.embedding.preprocessing`.
        progress: is told what is done.

    Attributes:
        sources: file and SHA-256 of each name's weights.
    """

    def __init__(
        self,
        scans: LabelledScans,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        device: str | torch.device = "cpu",
        modality: Modality | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: expected one or more, each once, found {list(seeds)}")
        self.scans, self.seeds = scans, tuple(seeds)
        self.device, self.modality = torch.device(device), modality
        self.progress = progress or (lambda line: None)
        self.sources: dict[str, dict[str, Any]] = {}
        self._features: dict[str, list[FloatArray]] = {}  # of weights one array, of random ones one for each seed
        self._baseline: dict[str, str] = {}
        self._baselines: dict[str, str] = {}  # name of the random weights by architecture and preprocessing
        self._side: tuple[int, ...] = ()
        self._scores: dict[tuple[str, Labels], Scores] = {}

    def add(
        self, name: str, weights: str | Path, settings: Mapping[str, Any] | None = None, allow_changed: bool = False
    ) -> None:
        """Compute the features that weights give, and those of random weights where their network is a new one.

        Args:
            name: of the weights.
            weights: what :func:`~models_genesis.networks.load_network` takes.
            settings: preprocessing that the weights do not tell.
            allow_changed: take ``settings`` also where the weights tell others.

        Raises:
            FileNotFoundError: there are no such weights.
            ValueError: weights, settings or a scan cannot be used, or the cube is another than that of earlier weights.
        """
        if name in self._features:
            raise ValueError(f"expected another name for each file of weights, found {name!r} twice")
        network, used = load_with_settings(weights, settings, allow_changed)
        network.to(self.device)
        side, axis = tile_size(network, used), used.get("slice_axis")
        if self._side and side != self._side:
            raise ValueError(
                f"{weights}: expected the cube of the weights before, {list(self._side)}, found {list(side)}: give "
                "--cube_size, so that all see the same"
            )
        self._side = side
        path = network.weight_report.path
        self.sources[name] = {"file": Path(path).name, "sha256": sha256_of(path)}
        warn_of_seen_scans(self.scans, "probe", source_of_weights(path, self.sources[name]["sha256"]))
        self.progress(f"{name}: {len(self.scans.data)} scans")
        cubes = _read_cubes(self.scans.data, preprocessing(used, modality=self.modality), side)
        self._features[name] = [_features(network, cubes, axis)]
        widths = [int(level.conv1.out_channels) for level in network.encoder.levels]
        kind = repr((type(network).__name__, widths, sorted((key, used[key]) for key in PREPROCESSING if key in used)))
        if kind not in self._baselines:
            self._baselines[kind] = f"random, as {name}"
            self.progress(f"{self._baselines[kind]}: {len(self.seeds)} draws")
            drawn = (_with_random_weights(network, cubes, axis, seed) for seed in self.seeds)
            self._features[self._baselines[kind]] = [_features(each, cubes, axis) for each in drawn]
        self._baseline[name] = self._baselines[kind]

    def scores(self, name: str, labels: Labels) -> Scores:
        """Give the scores of all scans, for each seed.

        Args:
            name: of weights that were added, or of random ones.
            labels: number of labelled patients.

        Returns:
            The scores.

        Raises:
            ValueError: see :func:`score_features`.
        """
        if (name, labels) not in self._scores:
            self.progress(f"{name}: {labels} labelled patients")
            own = self._features[name]
            values = [
                score_features(own[number % len(own)], self.scans, labels, seed)
                for number, seed in enumerate(self.seeds)
            ]
            self._scores[name, labels] = Scores(
                self.seeds,
                self.scans.cases,
                self.scans.patients,
                self.scans.folds,
                self.scans.classes,
                np.stack(values),
            )
        return self._scores[name, labels]

    def rows(self, labels: Sequence[Labels] = ("all",)) -> list[ProbeRow]:
        """Compare all weights with random ones, and with those that were added first.

        Args:
            labels: numbers of labelled patients.

        Returns:
            For each number of patients a line for each comparison, and one for each kind of random weights.

        Raises:
            ValueError: see :func:`score_features`.
        """
        names = list(self.sources)
        table = []
        for count in labels:
            for random in dict.fromkeys(self._baselines.values()):
                table.append(self._row(random, count))
            for name in names:
                table.append(self._row(name, count, self._baseline[name]))
                if name != names[0]:
                    table.append(self._row(name, count, names[0]))
        return table

    def _row(self, name: str, labels: Labels, against: str = "") -> ProbeRow:
        scores = self.scores(name, labels)
        difference = interval_of(scores, self.scores(against, labels)) if against else None
        return ProbeRow(name, labels, interval_of(scores), against, difference)


Cubes = Sequence[tuple[Tensor, Tensor]]
"""Cubes (C, ...), and 1 where they are inside of their scan, 0 where padded."""


def _read_cubes(entries: Sequence[Mapping[str, Any]], prepare: Compose, side: Sequence[int]) -> Cubes:
    """Cut a cube from the middle of each scan."""
    cubes = []
    for entry in entries:
        image = CaseDataset([{"image": entry["image"]}], prepare)[0]["image"].as_tensor().float()
        start = [max((length - own) // 2, 0) for length, own in zip(image.shape[1:], side, strict=True)]
        cubes.append((cut_tile(image, start, side), cut_tile(torch.ones(1, *image.shape[1:]), start, side)))
    return cubes


def _features(network: nn.Module, cubes: Cubes, axis: int | None) -> FloatArray:
    vectors = [pooled_features(network, cube, {0: inside}, "all", axis)[0][0] for cube, inside in cubes]
    return torch.stack(vectors).double().numpy()


def _with_random_weights(network: nn.Module, cubes: Cubes, axis: int | None, seed: int) -> nn.Module:
    drawn: Any = copy.deepcopy(network)
    device = next(network.parameters()).device
    seen = [cube for cube, _ in cubes[:: -(-len(cubes) // _SEEN_BY_NORMS)]]
    images = [(cube if axis is None else cube.squeeze(axis + 1))[None].to(device) for cube in seen]
    with_random_weights(drawn.encoder, images, seed)
    return drawn.eval()
