# SPDX-License-Identifier: Apache-2.0
"""How well a linear classifier on frozen features tells two classes of scans apart, against random weights."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor, nn

from ..datasets import CaseDataset, load_datalist
from ..networks.weight_container import sha256_of
from ..training.engines.feature_maps import with_random_weights, with_statistics_of
from ..training.handlers.birth_certificate import data_of_birth, source_of_weights
from ..training.handlers.seen_scans import warn_of_seen_scans
from .contrast import Scores, interval_of
from .embedding import Modality, check_channels, cut_tile, intensities_of, pooled_features, preprocessing, tile_size
from .statistics import FloatArray, Interval
from .subsets import deal_out, nested

__all__ = ["LabelledScans", "Probe", "ProbeRow", "read_labelled_scans", "score_features"]

Labels = int | str
"""Number of patients that the classifier is fitted to, or ``"all"``."""

NormStatistics = Literal["scans", "own"]

_STRENGTHS = np.logspace(-4, 1, 6)
"""``C`` of the logistic regression that are tried."""
_INNER_FOLDS = 5
_SEEN_BY_NORMS = 64
"""Cubes that set the running statistics of batch norm."""


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

    @cached_property
    def _classes_of(self) -> Mapping[str, set[int]]:
        found: dict[str, set[int]] = {patient: set() for patient in self.patients}
        for patient, own in zip(self.patients, self.classes.tolist(), strict=True):
            found[patient].add(own)
        return found

    def fitted_to(self, fold: int, labels: Labels, seed: int) -> NDArray[np.bool_]:
        """Tell which scans the classifier of a fold is fitted to.

        Subsets of one seed are nested. They begin with two patients of either class, so that few labels, too, can be
        fitted to.

        Args:
            fold: the fold that is tested.
            labels: number of patients of the other folds.
            seed: draws them.

        Returns:
            (N,) whether each scan is fitted to.
        """
        others = sorted({patient for patient, own in zip(self.patients, self.folds, strict=True) if own != fold})
        order = nested(others, seed, fold)
        first = [patient for own in (1, 0) for patient in [p for p in order if own in self._classes_of[p]][:2]]
        order = list(dict.fromkeys([*first, *order]))
        chosen = set(order if labels == "all" else order[: int(labels)])
        return np.array([patient in chosen for patient in self.patients])

    def check(self, labels: Labels, seed: int) -> None:
        """Refuse numbers of patients that cannot be fitted to.

        Args:
            labels: number of labelled patients.
            seed: draws them.

        Raises:
            ValueError: when a fold leaves fewer patients than ``labels``, or fewer than two with either class.
        """
        for fold in np.unique(self.folds).tolist():
            fitted = self.fitted_to(fold, labels, seed)
            names = np.asarray(self.patients)[fitted]
            found = [len(set(names[self.classes[fitted] == value])) for value in (0, 1)]
            if (labels != "all" and len(set(names)) < int(labels)) or min(found) < 2:
                raise ValueError(
                    f"labels {labels}, fold {fold}: expected as many patients outside of the fold, two or more with "
                    f"each class, found {len(set(names))}, {found[0]} with class 0 and {found[1]} with class 1"
                )


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
        ValueError: an entry lacks a class or a patient, a scan is there twice, or a fold would lack one of the classes.
    """
    if folds < 2:
        raise ValueError(f"folds: expected 2 or more, found {folds}")
    entries = [entry for split in dict.fromkeys(splits) for entry in load_datalist(datalist, key=split)]
    for entry in entries:
        own, patient = entry.get("class"), entry.get("patient")
        if own not in (0, 1) or isinstance(own, bool) or not isinstance(patient, str | int) or patient == "":
            found = {key: entry.get(key) for key in ("class", "patient")}
            raise ValueError(
                f"{datalist}: {entry['image']}: expected as a class the number 0 or 1, and a patient, found {found}"
            )
    files = Counter(str(entry["image"]) for entry in entries)
    if twice := [file for file, count in files.items() if count > 1]:
        raise ValueError(f"{datalist}: expected each scan once, found {twice[0]} in {files[twice[0]]} entries")
    patients = [str(entry["patient"]) for entry in entries]
    counts: dict[str, list[int]] = {patient: [0, 0] for patient in patients}
    for patient, entry in zip(patients, entries, strict=True):
        counts[patient][int(entry["class"])] += 1
    fold = deal_out(counts, folds, seed=0)
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


def score_features(
    features: FloatArray, scans: LabelledScans, labels: Labels, seed: int
) -> tuple[FloatArray, list[float]]:
    """Score each scan by a classifier that was fitted to patients of the other folds.

    It is a logistic regression on standardised features; how strongly it is penalised is chosen by cross-validation
    within the patients that it is fitted to.

    Args:
        features: (N, F).
        scans: the N scans.
        labels: number of patients to fit to.
        seed: draws the patients, and deals them out where the penalty is chosen.

    Returns:
        (N,) logits, to be compared within a fold only; and each fold's ``C``, the inverse of the penalty.

    Raises:
        ValueError: see :meth:`LabelledScans.check`.
    """
    scans.check(labels, seed)
    scores, chosen = np.full(len(scans.classes), np.nan), []
    for fold in np.unique(scans.folds).tolist():
        fitted, tested = scans.fitted_to(fold, labels, seed), scans.folds == fold
        classifier, strength = _fit(features[fitted], scans.classes[fitted], np.asarray(scans.patients)[fitted], seed)
        scores[tested] = classifier.decision_function(features[tested])
        chosen.append(strength)
    return scores, chosen


def _fit(features: FloatArray, classes: NDArray[np.int64], patients: NDArray[Any], seed: int) -> tuple[Any, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inner = min(_INNER_FOLDS, *(len(set(patients[classes == value])) for value in (0, 1)))
    parts = list(StratifiedGroupKFold(inner, shuffle=True, random_state=seed).split(features, classes, patients))
    if any(len(set(classes[part].tolist())) < 2 for part, _ in parts):
        raise ValueError(f"expected both classes wherever the penalty is chosen, found one in a part of {inner}")
    made = [make_pipeline(StandardScaler(), LogisticRegression(C=each, max_iter=2000)) for each in _STRENGTHS]
    areas = [
        roc_auc_score(classes, cross_val_predict(each, features, classes, cv=parts, method="decision_function"))
        for each in made
    ]
    best = int(np.argmax(areas))  # of equally good ones the most strongly penalised
    return made[best].fit(features, classes), float(_STRENGTHS[best])


@dataclass(frozen=True)
class ProbeRow:
    """One line of the result.

    Attributes:
        weights: their name.
        labels: number of labelled patients.
        auc: mean over folds and seeds, with its interval.
        seeds: the lowest and the highest mean over folds of a seed.
        against: name of what the difference is to; empty for none.
        difference: to that, with its interval; None for none.
    """

    weights: str
    labels: Labels
    auc: Interval
    seeds: tuple[float, float]
    against: str = ""
    difference: Interval | None = None

    @property
    def undefined(self) -> int:
        """Bootstrap samples without an AUC, which the intervals leave out."""
        return max(self.auc.undefined, self.difference.undefined if self.difference else 0)

    @property
    def flat(self) -> dict[str, Any]:
        """The line as a row of a table."""
        difference = asdict(self.difference) if self.difference else dict.fromkeys(("value", "low", "high"))
        row: dict[str, Any] = {"weights": self.weights, "labels": self.labels, "auc": self.auc.value}
        row |= {"low": self.auc.low, "high": self.auc.high}
        row |= {"lowest_seed": float(self.seeds[0]), "highest_seed": float(self.seeds[1]), "against": self.against}
        return row | {
            "difference": difference["value"],
            "difference_low": difference["low"],
            "difference_high": difference["high"],
        }


class Probe:
    """Compare weights by a linear classifier on their frozen features, with random weights as the baseline.

    Each scan is one vector: the means of the encoder's maps, of all levels, over a cube in its middle; for a 2D network
    over a slice there. Random weights are drawn once for each seed and each architecture. They have no running
    statistics of batch norm, so these come from up to 64 of the cubes. Where the others keep their own, of what they
    were trained on, both sides are not treated alike, which can decide a comparison.

    Args:
        scans: what is to be told apart.
        seeds: one draw of patients and of random weights each.
        norm_statistics: running statistics of batch norm: ``"scans"``, those of up to 64 of the cubes for all weights;
            or ``"own"``, those of the weights, but for random ones.
        device: of the networks.
        modality: see :func:`~models_genesis.transfer.embedding.preprocessing`.
        progress: is told what is done.

    Attributes:
        sources: what each name's weights are: file, SHA-256, preprocessing, and which scans they were trained on, None
            where that is not known.
        penalties: the ``C`` that were chosen by name and number of labelled patients, one for each seed and fold.

    Raises:
        ValueError: when an argument is none of these.
    """

    def __init__(
        self,
        scans: LabelledScans,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        norm_statistics: NormStatistics = "scans",
        device: str | torch.device = "cpu",
        modality: Modality | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: expected one or more, each once, found {list(seeds)}")
        if norm_statistics not in ("scans", "own"):
            raise ValueError(f"norm_statistics: expected 'scans' or 'own', found {norm_statistics!r}")
        self.scans, self.seeds, self.norm_statistics = scans, tuple(seeds), norm_statistics
        self.device, self.modality = torch.device(device), modality
        self.progress = progress or (lambda line: None)
        self.sources: dict[str, dict[str, Any]] = {}
        self.penalties: dict[tuple[str, Labels], list[float]] = {}
        self._features: dict[str, list[FloatArray]] = {}  # of weights one array, of random ones one for each seed
        self._baselines: dict[str, str] = {}  # of each name
        self._known: dict[str, str] = {}  # name of the random weights by encoder and preprocessing
        self._cubes: dict[str, Cubes] = {}  # by preprocessing
        self._scores: dict[tuple[str, Labels], Scores] = {}

    def add(self, name: str, network: Any, settings: Mapping[str, Any]) -> None:
        """Compute the features that weights give, and those of random weights where their network is a new one.

        Args:
            name: of the weights.
            network: what :func:`~models_genesis.networks.load_network` gives.
            settings: preprocessing, see :func:`~models_genesis.transfer.embedding_files.load_with_settings`.

        Raises:
            BadCaseError: a scan cannot be read, or has other channels than the network takes.
            ValueError: the name is taken, or one of random weights; or the settings cannot be used.
        """
        if name in self._features or name.startswith("random"):
            raise ValueError(
                f"expected another name for each file of weights, none that begins with random, found {name!r}"
            )
        path, network = network.weight_report.path, network.to(self.device)
        source = source_of_weights(path, sha256_of(path))
        described = self._described if source.get("data") or source.get("pretrained") else None
        seen = warn_of_seen_scans(self.scans, "probe", source, described)
        if seen is None:
            self.progress(f"{name}: which scans these weights were trained on is not known")
        prepared = _prepared(settings, tile_size(network, settings))
        self.sources[name] = {"file": source["file"], "sha256": source["sha256"], **prepared, "trained_on": seen}
        self.progress(f"{name}: {len(self.scans.data)} scans")
        key, axis = repr(prepared), settings.get("slice_axis")
        if key not in self._cubes:
            prepare = preprocessing(settings, modality=self.modality)
            self._cubes[key] = _read_cubes(self.scans.data, prepare, prepared["cube_size"])
        cubes = self._cubes[key]
        for case, (cube, _) in zip(self.scans.cases, cubes, strict=True):
            check_channels(network, case, cube)
        encoder = f"{network.encoder}, {key}"
        if encoder not in self._known:
            self._known[encoder] = f"random, as {name}"
            self.progress(f"{self._known[encoder]}: {len(self.seeds)} draws")
            drawn = (_with_random_weights(network, cubes, axis, seed) for seed in self.seeds)
            self._features[self._known[encoder]] = [_features(each, cubes, axis) for each in drawn]
        self._baselines[name] = self._known[encoder]
        if self.norm_statistics == "scans":
            network = _with_statistics(network, cubes, axis)
        self._features[name] = [_features(network, cubes, axis)]

    @cached_property
    def _described(self) -> list[dict[str, Any]]:
        """The scans with their hashes, for all weights that know what they were trained on."""
        return data_of_birth(self.scans, ["image"])

    def scores(self, name: str, labels: Labels) -> Scores:
        """Give the scores of all scans, for each seed.

        Args:
            name: of weights that were added, or of random ones.
            labels: number of labelled patients.

        Returns:
            The scores.

        Raises:
            ValueError: see :meth:`LabelledScans.check`.
        """
        if (name, labels) not in self._scores:
            self.progress(f"{name}: {labels} labelled patients")
            own = self._features[name]
            found = [
                score_features(own[number % len(own)], self.scans, labels, seed)
                for number, seed in enumerate(self.seeds)
            ]
            self.penalties[name, labels] = [strength for _, chosen in found for strength in chosen]
            self._scores[name, labels] = Scores(
                self.seeds,
                self.scans.cases,
                self.scans.patients,
                self.scans.folds,
                self.scans.classes,
                np.stack([values for values, _ in found]),
            )
        return self._scores[name, labels]

    def rows(self, labels: Sequence[Labels] = ("all",)) -> list[ProbeRow]:
        """Compare all weights with random ones, and with those that were added first.

        Args:
            labels: numbers of labelled patients.

        Returns:
            For each number of patients a line for each comparison, and one for each kind of random weights.

        Raises:
            ValueError: see :meth:`LabelledScans.check`.
        """
        names = list(self.sources)
        table = []
        for count in labels:
            for random in dict.fromkeys(self._baselines.values()):
                table += self._rows(random, count, [""])
            for name in names:
                table += self._rows(name, count, [self._baselines[name], *(names[:1] if name != names[0] else [])])
        return table

    def _rows(self, name: str, labels: Labels, others: Sequence[str]) -> list[ProbeRow]:
        scores = self.scores(name, labels)
        area, by_seed = interval_of(scores), scores.estimator().by_seed
        differences = [interval_of(scores, self.scores(other, labels)) if other else None for other in others]
        return [
            ProbeRow(name, labels, area, (by_seed.min(), by_seed.max()), other, difference)
            for other, difference in zip(others, differences, strict=True)
        ]


Cubes = Sequence[tuple[Tensor, Tensor]]
"""Cubes (C, ...), and 1 where they are inside of their scan, 0 where padded."""


def _prepared(settings: Mapping[str, Any], side: Sequence[int]) -> dict[str, Any]:
    """Give the settings that say what a network sees of a scan, those that are left out too."""
    normalise, limits = intensities_of(settings)
    return {
        "cube_size": list(side),
        "axcodes": settings.get("axcodes") or "RAS",
        "spacing": settings.get("spacing"),
        "normalise": normalise,
        "intensity_range": limits,
        "slice_axis": settings.get("slice_axis"),
    }


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


def _shown_to_norms(network: nn.Module, cubes: Cubes, axis: int | None) -> list[Tensor]:
    """Pick the cubes, evenly spaced, that set the running statistics of batch norm."""
    device = next(network.parameters()).device
    seen = [cube for cube, _ in cubes[:: -(-len(cubes) // _SEEN_BY_NORMS)]]
    return [(cube if axis is None else cube.squeeze(axis + 1))[None].to(device) for cube in seen]


def _with_random_weights(network: nn.Module, cubes: Cubes, axis: int | None, seed: int) -> nn.Module:
    drawn: Any = copy.deepcopy(network)
    with_random_weights(drawn.encoder, _shown_to_norms(network, cubes, axis), seed)
    return drawn.eval()


def _with_statistics(network: nn.Module, cubes: Cubes, axis: int | None) -> nn.Module:
    changed: Any = copy.deepcopy(network)
    with_statistics_of(changed.encoder, _shown_to_norms(network, cubes, axis))
    return changed.eval()
