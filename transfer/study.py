# SPDX-License-Identifier: Apache-2.0
"""A study as its JSON file describes it: what is compared, on which data, with what equal budget."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monai.bundle import ConfigParser

Labels = int | Literal["all"]
RateKind = Literal["best", "common"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
SCORES = ("dice", "iou", "surface_dice", "auc")
TOOL_KEYS = (
    "bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "seed", "learning_rate", "epochs", "device",
    "val_interval", "resume", "split", "pretrained", "cubes_per_case", "samples_per_epoch",
)  # fmt: skip
"""Keys of the bundle that the tool sets itself, so that they are equal in all arms; no study may override them."""


class StudyError(ValueError):
    """A study that cannot be run as it is written; the message names the file and the key."""


@dataclass(frozen=True)
class Arm:
    """One of the starts that are compared.

    Attributes:
        name: its name in tables.
        weights: weight file, relative to the study's file; None trains from scratch.
        sha256: of the weight file, in hexadecimal; a file with another one is refused. None takes any.
        permute: whether each run starts from these weights with each tensor's values shuffled, by the run's seed.
        overrides: keys of the bundle that this arm sets differently, in its evaluations too.
        train_overrides: such keys for its trainings alone.
        evaluate_overrides: such keys for its evaluations alone. An arm's keys of one kind go before the study's own.
        dose: share of the pretraining budget behind the weights, for the dose-response curve.
        description: a sentence for the report.
    """

    name: str
    weights: str | None = None
    sha256: str | None = None
    permute: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    train_overrides: Mapping[str, Any] = field(default_factory=dict)
    evaluate_overrides: Mapping[str, Any] = field(default_factory=dict)
    dose: float | None = None
    description: str = ""


@dataclass(frozen=True)
class Contrast:
    """The difference of two arms.

    Attributes:
        arm: the arm in question.
        against: what it is held against.
        labels: label counts of the claim; empty for all of the study.
        rate: ``"best"`` compares each arm at its own best learning rate, ``"common"`` both at the common one.
    """

    arm: str
    against: str
    labels: tuple[Labels, ...] = ()
    rate: RateKind = "best"

    def __str__(self) -> str:
        """Name it in a few words."""
        return f"{self.arm} - {self.against}"


@dataclass(frozen=True)
class Rates:
    """Learning rates, and how each arm's best one is chosen.

    Attributes:
        common: the rate at which all arms are compared.
        grid: the rates that are tried; only the common one where empty.
        labels: label counts of the trials; ``("each",)`` chooses a rate for each label count.
        seeds: seeds of the trials.
        share: share of fold 0's training patients that the trials are measured on.
    """

    common: float
    grid: tuple[float, ...] = ()
    labels: tuple[Labels | Literal["each"], ...] = ("each",)
    seeds: tuple[int, ...] = (0,)
    share: float = 0.25


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        path: its file; relative paths start from the file's folder.
        content: the file's content.
        name: short name.
        title: heading of the report.
        bundle: folder of the bundle.
        train: config files of a training, relative to the bundle.
        evaluate: config files of an evaluation.
        datalist: data list with all patients.
        dataset_dir: folder that the list's relative paths start from.
        score: one of :data:`SCORES`, a column of ``segmentation.csv`` or ``"auc"``.
        train_lists: lists of the data list that patients for training come from.
        test_lists: lists of the test patients; empty with folds.
        folds: number of folds by patient, 1 for the fixed split.
        fold_seed: seed of the folds.
        labels: numbers of labelled patients, ascending.
        seeds: seeds; each draws its own nested subsets.
        steps: optimizer steps of each run.
        epochs: epochs that the steps are dealt to.
        warmup_steps: steps of the learning rate's warm-up.
        rates: learning rates.
        arms: arms by name.
        primary: the contrast that the study was made for.
        contrasts: all contrasts, the primary one first.
        overrides: keys of the bundle that are the same in all arms.
        train_overrides: such keys for trainings alone.
        evaluate_overrides: such keys for evaluations alone.
        validation_cases: cases of the one validation that ends a training; it chooses nothing.
        assumed: standard deviations of differences that ``power`` assumes, see there.
    """

    path: Path
    content: Mapping[str, Any]
    name: str
    title: str
    bundle: Path
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    datalist: Path
    dataset_dir: Path
    score: str
    train_lists: tuple[str, ...]
    test_lists: tuple[str, ...]
    folds: int
    fold_seed: int
    labels: tuple[Labels, ...]
    seeds: tuple[int, ...]
    steps: int
    epochs: int
    warmup_steps: int
    rates: Rates
    arms: Mapping[str, Arm]
    primary: Contrast
    contrasts: tuple[Contrast, ...]
    overrides: Mapping[str, Any]
    train_overrides: Mapping[str, Any]
    evaluate_overrides: Mapping[str, Any]
    validation_cases: int
    assumed: Mapping[str, Sequence[float]]

    @property
    def hash(self) -> str:
        """SHA-256 of the content in canonical JSON."""
        return content_hash(self.content)

    @property
    def all_rates(self) -> tuple[float, ...]:
        """The grid with the common rate, ascending."""
        return tuple(sorted({*self.rates.grid, self.rates.common}))


def content_hash(content: Mapping[str, Any]) -> str:
    """Hash a study's content, whatever the order and the layout of its keys.

    Example:
        >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_study(path: str | Path, dataset_dir: str | Path | None = None) -> Study:
    """Read and check a study.

    Args:
        path: the JSON file.
        dataset_dir: where the data are on this machine, instead of what the file says.

    Returns:
        The study.

    Raises:
        FileNotFoundError: the file, the bundle or one of its configs is missing.
        StudyError: the file is not a study, or says something that cannot be right.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a study, found no such file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{file}: expected JSON, found {error}") from error
    if not isinstance(content, Mapping):
        raise StudyError(f"{file}: expected an object, found {type(content).__name__}")
    study = _Reader(file, content).study(dataset_dir)
    _check_keys(study)
    return study


def study_of(content: Mapping[str, Any], path: str | Path) -> Study:
    """Make a study of content that was checked when its runs were begun, wherever its bundle and data are now.

    Args:
        content: the content.
        path: the file that messages name.

    Returns:
        The study.
    """
    return _Reader(Path(path), content).study(None)


class _Reader:
    """Read the keys of a study's file, naming file and key in each complaint."""

    known = (
        "name", "title", "description", "bundle", "train", "evaluate", "datalist", "dataset_dir", "score", "split",
        "labels", "seeds", "steps", "epochs", "warmup_steps", "rates", "arms", "primary", "contrasts", "overrides",
        "train_overrides", "evaluate_overrides", "validation_cases", "assumed",
    )  # fmt: skip

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file = file
        self.content = content
        self.only(content, self.known, "")

    def study(self, dataset_dir: str | Path | None) -> Study:
        folder = self.file.parent
        arms = self.arms()
        labels, seeds = self.labels("labels", self.content), self.integers("seeds", self.content, 0)
        primary = self.contrast("primary", self.get("primary"), arms, labels)
        steps, epochs = self.integer("steps", 1), self.integer("epochs", 1, 1)
        if steps % epochs:
            self.fail("steps", f"a multiple of the {epochs} epochs", steps)
        train_lists, test_lists, folds, fold_seed = self.split()
        bundle = folder / str(self.get("bundle"))
        return Study(
            path=self.file,
            content=self.content,
            name=self.name("name", self.get("name")),
            title=str(self.content.get("title", self.content["name"])),
            bundle=bundle,
            train=self.texts("train", ("configs/train.json",)),
            evaluate=self.texts("evaluate", ("configs/train.json", "configs/evaluate.json")),
            datalist=folder / str(self.get("datalist")),
            dataset_dir=folder / str(self.get("dataset_dir")) if dataset_dir is None else Path(dataset_dir),
            score=self.score(),
            train_lists=train_lists,
            test_lists=test_lists,
            folds=folds,
            fold_seed=fold_seed,
            labels=labels,
            seeds=seeds,
            steps=steps,
            epochs=epochs,
            warmup_steps=self.integer("warmup_steps", 0, 0),
            rates=self.rates(labels),
            arms=arms,
            primary=primary,
            contrasts=self.contrasts(primary, arms, labels),
            overrides=self.overrides("overrides"),
            train_overrides=self.overrides("train_overrides"),
            evaluate_overrides=self.overrides("evaluate_overrides"),
            validation_cases=self.integer("validation_cases", 1, 1),
            assumed={str(key): tuple(map(float, value)) for key, value in self.content.get("assumed", {}).items()},
        )

    def fail(self, key: str, expected: str, found: Any) -> None:
        raise StudyError(f"{self.file}: {key}: expected {expected}, found {found!r}")

    def only(self, content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.fail(f"{where}{key}", f"one of {', '.join(known)}", f"{key}{hint}")

    def get(self, key: str) -> Any:
        if key not in self.content:
            raise StudyError(f"{self.file}: expected the key {key!r}, found none")
        return self.content[key]

    def name(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            self.fail(key, "a name of letters, digits and underscores", value)
        return str(value)

    def score(self) -> str:
        score = self.get("score")
        if score not in SCORES:
            self.fail("score", f"one of {', '.join(SCORES)}, of which more is better", score)
        return str(score)

    def integer(self, key: str, least: int, default: int | None = None) -> int:
        value = self.get(key) if default is None else self.content.get(key, default)
        if type(value) is not int or value < least:
            self.fail(key, f"a whole number of at least {least}", value)
        return int(value)

    def integers(self, key: str, content: Mapping[str, Any], least: int, default: Any = None) -> tuple[int, ...]:
        values = content.get(key, default)
        good = isinstance(values, list) and values and all(type(value) is int and value >= least for value in values)
        if not good or len(set(values)) < len(values):
            self.fail(key, f"a list of different whole numbers of at least {least}", values)
        return tuple(values)

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self.content.get(key, list(default))
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            self.fail(key, "a list of texts", values)
        return tuple(values)

    def labels(self, key: str, content: Mapping[str, Any]) -> tuple[Labels, ...]:
        values = content.get(key)
        values = values if isinstance(values, list) else []
        counts = [value for value in values if value != "all"]
        if not values or any(type(count) is not int or count < 1 for count in counts) or len(set(values)) < len(values):
            self.fail(key, 'a list of different numbers of patients, or "all"', content.get(key))
        return tuple(sorted(values, key=order))

    def split(self) -> tuple[tuple[str, ...], tuple[str, ...], int, int]:
        split = self.content.get("split", {"train": ["training"], "test": ["testing"]})
        if not isinstance(split, Mapping):
            self.fail("split", "an object", split)
        self.only(split, ("train", "test", "folds", "seed"), "split#")
        train = split.get("train", ["training"])
        folds = split.get("folds", 1)
        test = split.get("test", [] if folds > 1 else ["testing"])
        if not all(isinstance(lists, list) and all(isinstance(each, str) for each in lists) for lists in (train, test)):
            self.fail("split", "train and test as lists of names", split)
        if type(folds) is not int or folds < 1 or (folds > 1) == bool(test) or not train or set(train) & set(test):
            self.fail("split", "either lists for train and test, or train and two or more folds", split)
        return tuple(train), tuple(test), folds, int(split.get("seed", 0))

    def rates(self, labels: tuple[Labels, ...]) -> Rates:
        content = self.get("rates")
        self.only(content, ("common", "grid", "labels", "seeds", "share"), "rates#")
        grid = content.get("grid", [])
        for rate in [content.get("common"), *grid]:
            if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < 10:
                self.fail("rates", "learning rates above 0", rate)
        counts = content.get("labels", ["each"])
        if counts != ["each"]:
            counts = list(self.labels("labels", content))
            if outside := [count for count in counts if count not in labels]:
                self.fail("rates#labels", f"label counts of the study, {list(labels)}", outside)
        share = content.get("share", 0.25)
        if not isinstance(share, int | float) or not 0 < share < 1:
            self.fail("rates#share", "a share between 0 and 1", share)
        seeds = self.integers("seeds", content, 0, [0])
        return Rates(float(content["common"]), tuple(map(float, grid)), tuple(counts), seeds, float(share))

    def arms(self) -> dict[str, Arm]:
        content = self.get("arms")
        if not isinstance(content, Mapping) or len(content) < 2:
            self.fail("arms", "two arms or more by name", content)
        return {name: self.arm(self.name("arms", name), arm) for name, arm in content.items()}

    def arm(self, name: str, content: Mapping[str, Any]) -> Arm:
        if not isinstance(content, Mapping):
            self.fail(f"arms#{name}", "an object", content)
        kinds = ("overrides", "train_overrides", "evaluate_overrides")
        self.only(content, ("pretrained", "sha256", "permute", *kinds, "dose", "description"), f"arms#{name}#")
        weights = content.get("pretrained")
        if not isinstance(weights, str):
            self.fail(f"arms#{name}#pretrained", 'a weight file, or "none"', weights)
        scratch = str(weights).lower() == "none"
        sha256 = content.get("sha256")
        if sha256 is not None and (scratch or not isinstance(sha256, str) or not SHA256.fullmatch(sha256)):
            self.fail(f"arms#{name}#sha256", "64 digits 0-9a-f, with a weight file only", sha256)
        permute = content.get("permute", False)
        if type(permute) is not bool or (permute and scratch):
            self.fail(f"arms#{name}#permute", "true or false, true with a weight file only", permute)
        dose = content.get("dose")
        if dose is not None and (isinstance(dose, bool) or not isinstance(dose, int | float) or dose < 0):
            self.fail(f"arms#{name}#dose", "a number of 0 or more", dose)
        own = {kind: self.checked_overrides(f"arms#{name}#{kind}", content.get(kind, {})) for kind in kinds}
        description = str(content.get("description", ""))
        return Arm(name, None if scratch else str(weights), sha256, permute, **own, dose=dose, description=description)

    def contrast(self, key: str, content: Any, arms: Mapping[str, Arm], labels: tuple[Labels, ...]) -> Contrast:
        if not isinstance(content, Mapping):
            self.fail(key, 'an object with "arm" and "against"', content)
        self.only(content, ("arm", "against", "labels", "rate"), f"{key}#")
        for side in ("arm", "against"):
            if content.get(side) not in arms:
                self.fail(f"{key}#{side}", f"one of the arms {list(arms)}", content.get(side))
        if content["arm"] == content["against"]:
            self.fail(key, "two different arms", content["arm"])
        counts = self.labels("labels", content) if "labels" in content else ()
        if outside := [count for count in counts if count not in labels]:
            self.fail(f"{key}#labels", f"label counts of the study, {list(labels)}", outside)
        rate = content.get("rate", "best")
        if rate not in ("best", "common"):
            self.fail(f"{key}#rate", '"best" or "common"', rate)
        return Contrast(content["arm"], content["against"], counts, rate)

    def contrasts(self, primary: Contrast, arms: Mapping[str, Arm], labels: tuple[Labels, ...]) -> tuple[Contrast, ...]:
        given = self.content.get("contrasts")
        if given is not None:
            own = [self.contrast(f"contrasts#{number}", each, arms, labels) for number, each in enumerate(given)]
        else:
            own = [Contrast(arm, primary.against) for arm in arms if arm != primary.against]
            # a gain that the weights' scale alone gives too is not one of features
            own += [Contrast(primary.arm, arm) for arm, each in arms.items() if each.permute and arm != primary.arm]
        pair = primary.arm, primary.against
        return (primary, *dict.fromkeys(each for each in own if (each.arm, each.against) != pair))

    def overrides(self, key: str) -> dict[str, Any]:
        return self.checked_overrides(key, self.content.get(key, {}))

    def checked_overrides(self, key: str, content: Any) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            self.fail(key, "an object", content)
        if taken := [name for name in content if top_level(name) in TOOL_KEYS]:
            self.fail(key, "keys that the study does not set itself", taken)
        return dict(content)


def _check_keys(study: Study) -> None:
    """Refuse overrides that the bundle does not know: they would change nothing."""
    train, evaluate = (bundle_keys(study, files) for files in (study.train, study.evaluate))
    groups = [("overrides", study.overrides, train & evaluate), ("train_overrides", study.train_overrides, train)]
    groups += [("evaluate_overrides", study.evaluate_overrides, evaluate)]
    for name, arm in study.arms.items():
        groups += [(f"arms#{name}#overrides", arm.overrides, train)]
        groups += [(f"arms#{name}#train_overrides", arm.train_overrides, train)]
        groups += [(f"arms#{name}#evaluate_overrides", arm.evaluate_overrides, evaluate)]
    for where, overrides, keys in groups:
        for key in overrides:
            if top_level(key) not in keys:
                near = difflib.get_close_matches(top_level(key), sorted(keys), n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise StudyError(f"{study.path}: {where}: expected keys of {study.bundle}, found {key!r}{hint}")


def order(labels: Labels) -> float:
    """Sort key of a label count."""
    return float("inf") if labels == "all" else float(labels)


def top_level(key: str) -> str:
    """First part of a nested id."""
    return key.replace("::", "#").split("#")[0]


def bundle_keys(study: Study, files: Sequence[str]) -> set[str]:
    """Top-level keys of some of the bundle's configs."""
    return {top_level(key) for key in bundle_config(study, files)}


def bundle_config(study: Study, files: Sequence[str]) -> dict[str, Any]:
    """Read configs of the bundle as they are, later ones on top.

    Args:
        study: the study.
        files: config files, relative to the bundle.

    Returns:
        Their keys, nested ids of overlays resolved.

    Raises:
        FileNotFoundError: when one is missing.
    """
    parser = ConfigParser()
    paths = [study.bundle / name for name in files]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{study.path}: bundle: expected the config {path}, found no such file")
    parser.read_config([str(path) for path in paths])
    return dict(parser.get())
