# SPDX-License-Identifier: Apache-2.0
"""Which patients a run trains on and which it is measured on; the same for all arms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .study import Labels, Study, StudyError

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Cohort:
    """The patients of a study.

    Attributes:
        header: what the data list says besides its entries.
        train: entries for training by patient; with folds, of all patients.
        test: entries for testing by patient; empty with folds.
        fold: fold of each patient; empty for the fixed split.
    """

    header: Mapping[str, Any]
    train: Mapping[str, Entries]
    test: Mapping[str, Entries]
    fold: Mapping[str, int]

    def training_patients(self, fold: int) -> list[str]:
        """Patients that a fold trains on."""
        return [patient for patient in self.train if not self.fold or self.fold[patient] != fold]

    def test_patients(self, fold: int) -> list[str]:
        """Patients that a fold is measured on."""
        return [patient for patient in self.train if self.fold[patient] == fold] if self.fold else list(self.test)


@dataclass(frozen=True)
class Subset:
    """The entries of one run.

    Attributes:
        train: entries to train on.
        test: entries to measure.
        patients: number of patients to train on.
    """

    train: Entries
    test: Entries
    patients: int


def read_cohort(study: Study) -> Cohort:
    """Read the patients of a study from its data list.

    Args:
        study: the study.

    Returns:
        Its patients.

    Raises:
        FileNotFoundError: when there is no data list.
        StudyError: when a list is missing or empty, an entry names no patient, a patient is in training and test, or
            there are fewer patients than a label count or the folds ask for.
    """
    if not study.datalist.is_file():
        raise FileNotFoundError(f"{study.path}: datalist: expected {study.datalist}, found no such file")
    content = json.loads(study.datalist.read_text(encoding="utf-8"))
    train, test = (_by_patient(study, content, lists) for lists in (study.train_lists, study.test_lists))
    if common := sorted(set(train) & set(test)):
        raise StudyError(f"{study.datalist}: expected patients in training or test, found in both: {common[:5]}")
    if len(train) < 2 * study.folds:
        raise StudyError(f"{study.datalist}: expected 2 patients a fold or more, found {len(train)} patients")
    fold: dict[str, int] = {}
    if study.folds > 1:
        # patients with equally many entries are dealt out together, so that folds are of one size
        sizes = {patient: len(entries) for patient, entries in train.items()}
        fold = deal_out(sizes, study.folds, study.fold_seed)
    header = {key: value for key, value in content.items() if not isinstance(value, list)}
    cohort = Cohort(header, train, test, fold)
    least = min(len(cohort.training_patients(number)) for number in range(study.folds))
    if too_many := [count for count in study.labels if count != "all" and count > least]:
        raise StudyError(f"{study.path}: labels: expected at most the {least} patients to train on, found {too_many}")
    return cohort


def deal_out(sizes: Mapping[str, Any], folds: int, seed: int) -> dict[str, int]:
    """Deal patients out to folds, those of one size together, so that each fold gets as many of them.

    Args:
        sizes: of the patients, to be ordered, such as the number of their scans.
        folds: number of folds.
        seed: of the order within a size.

    Returns:
        The fold of each patient.
    """
    ordered = sorted(sizes, key=lambda patient: (sizes[patient], digest("fold", seed, patient)))
    return {patient: number % folds for number, patient in enumerate(ordered)}


def digest(*parts: Any) -> str:
    """Hash of some values, which puts patients into an order that no machine and no version changes."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _by_patient(study: Study, content: Mapping[str, Any], lists: Iterable[str]) -> dict[str, Entries]:
    patients: dict[str, Entries] = {}
    for name in lists:
        entries = content.get(name)
        if not isinstance(entries, list) or not entries:
            raise StudyError(f"{study.datalist}: expected entries in {name!r}, found {str(entries)[:40]}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or not entry.get("patient"):
                raise StudyError(f"{study.datalist}: expected a patient in entry {number} of {name!r}, found none")
            patients.setdefault(str(entry["patient"]), []).append(dict(entry))
    return patients


def nested(patients: Sequence[str], seed: int, fold: int) -> list[str]:
    """Put patients in the order in which growing subsets take them.

    Args:
        patients: the patients.
        seed: seed of the run.
        fold: fold of the run.

    Returns:
        The patients; the first ``n`` are the subset of ``n``.
    """
    return sorted(patients, key=lambda patient: digest("subset", seed, fold, patient))


def choose_subset(study: Study, cohort: Cohort, labels: Labels, fold: int, seed: int, inner: bool = False) -> Subset:
    """Choose the entries of a run.

    Args:
        study: the study.
        cohort: its patients.
        labels: number of labelled patients.
        fold: the fold.
        seed: the seed; the subsets of one seed and fold are nested, and the same for all arms.
        inner: whether the run chooses a learning rate: it is measured on a part of the training patients then.

    Returns:
        The entries.
    """
    patients, tested = cohort.training_patients(fold), cohort.test_patients(fold)
    test_entries = cohort.train if inner or cohort.fold else cohort.test
    if inner:
        ordered = sorted(patients, key=lambda patient: digest("inner", fold, patient))
        held_out = max(1, round(study.rates.share * len(ordered)))
        tested, patients = ordered[:held_out], ordered[held_out:]
    chosen = nested(patients, seed, fold)
    chosen = chosen if labels == "all" else chosen[: int(labels)]
    return Subset(
        [entry for patient in chosen for entry in cohort.train[patient]],
        [entry for patient in tested for entry in test_entries[patient]],
        len(chosen),
    )


def run_datalist(study: Study, cohort: Cohort, subset: Subset, candidates: bool = False) -> dict[str, Any]:
    """Build the data list of one run.

    The validation that ends the training chooses nothing, since it comes once, after the last step; it gets cases of
    the training, so that no test case is seen.

    Args:
        study: the study.
        cohort: its patients.
        subset: the run's entries.
        candidates: whether the entries are scans of candidates. Their validation is the whole training, so that it
            holds both classes, and scans of other runs are named as left out, so that their rows are not unknown.

    Returns:
        The list, with what the study's list says besides its entries.
    """
    validation = subset.train if candidates else subset.train[: study.validation_cases]
    content = {**cohort.header, "training": subset.train, "validation": validation, "testing": subset.test}
    if candidates:
        used = {str(entry["seriesuid"]) for entry in [*subset.train, *subset.test]}
        others = [entry for entries in [*cohort.train.values(), *cohort.test.values()] for entry in entries]
        left = {str(entry["seriesuid"]): "of no patient of this run" for entry in others}
        content["left_out"] = {name: reason for name, reason in left.items() if name not in used}
    return content
