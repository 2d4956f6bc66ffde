# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from models_genesis.transfer.study import StudyError, load_study
from models_genesis.transfer.subsets import choose_subset, read_cohort, run_datalist


def patients(entries):
    return {entry["patient"] for entry in entries}


@pytest.fixture
def study(make_study):
    return load_study(make_study())


def test_subsets_are_nested_and_count_patients_not_entries(study):
    cohort = read_cohort(study)
    for seed in range(4):
        subsets = [choose_subset(study, cohort, labels, 0, seed) for labels in (2, 4, "all")]
        assert [subset.patients for subset in subsets] == [2, 4, 10]
        assert [len(subset.train) for subset in subsets] == [4, 8, 20]
        assert patients(subsets[0].train) < patients(subsets[1].train) < patients(subsets[2].train)
        assert patients(subsets[0].test) == {f"p{number}" for number in range(10, 16)}


def test_seeds_draw_different_patients(study):
    cohort = read_cohort(study)
    chosen = {frozenset(patients(choose_subset(study, cohort, 2, 0, seed).train)) for seed in range(6)}
    assert len(chosen) > 2


def test_rates_are_chosen_without_a_test_patient(study):
    cohort = read_cohort(study)
    inner = [choose_subset(study, cohort, labels, 0, seed, inner=True) for labels in (2, "all") for seed in (0, 1)]
    tested = patients(inner[0].test)
    assert len(tested) == 2  # a quarter of 10, rounded to even
    for subset in inner:
        assert patients(subset.test) == tested  # the same for all seeds and label counts
        assert not tested & patients(subset.train)
        assert not patients(subset.test) & set(cohort.test)


def test_folds_part_the_patients(make_study):
    study = load_study(make_study(split={"folds": 3}))
    cohort = read_cohort(study)
    tests = [patients(choose_subset(study, cohort, "all", fold, 0).test) for fold in range(3)]
    assert set.union(*tests) == set(cohort.train)
    assert sum(map(len, tests)) == len(cohort.train)
    assert sorted(map(len, tests)) == [3, 3, 4]
    for fold, tested in enumerate(tests):
        assert not tested & patients(choose_subset(study, cohort, "all", fold, 0).train)


def test_the_validation_of_a_training_sees_no_test_case(study):
    cohort = read_cohort(study)
    subset = choose_subset(study, cohort, 2, 0, 0)
    content = run_datalist(study, cohort, subset)
    assert content["validation"] == subset.train[:1]
    assert content["labels"] == {"0": "no"}
    assert (content["training"], content["testing"]) == (subset.train, subset.test)


def test_scans_of_other_runs_are_left_out_of_a_candidate_list(study):
    cohort = read_cohort(study)
    for entries in [*cohort.train.values(), *cohort.test.values()]:
        for entry in entries:
            entry["seriesuid"] = entry["image"]
    subset = choose_subset(study, cohort, 2, 0, 0)
    content = run_datalist(study, cohort, subset, candidates=True)
    assert content["validation"] == subset.train
    used = {entry["seriesuid"] for entry in [*subset.train, *subset.test]}
    assert len(content["left_out"]) == 32 - len(used)
    assert not used & set(content["left_out"])


def change(study, edit):
    content = json.loads(study.datalist.read_text())
    edit(content)
    study.datalist.write_text(json.dumps(content))


def test_a_patient_in_training_and_test_is_refused(study):
    change(study, lambda content: content["testing"].append(content["training"][0]))
    with pytest.raises(StudyError, match="found in both"):
        read_cohort(study)


def test_an_entry_without_patient_is_refused(study):
    change(study, lambda content: content["training"][3].pop("patient"))
    with pytest.raises(StudyError, match="patient in entry 3 of 'training'"):
        read_cohort(study)


def test_more_labels_than_patients_are_refused(make_study):
    with pytest.raises(StudyError, match="at most the 10 patients"):
        read_cohort(load_study(make_study(labels=[2, 4, 11])))
