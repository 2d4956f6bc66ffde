# SPDX-License-Identifier: Apache-2.0
"""Patients are dealt to splits by a seed: each to one, in the fractions that were stated."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.datasets import split_patients
from models_genesis.datasets.splits import SPLITS


@pytest.mark.parametrize("seed", range(40))
def test_each_patient_is_in_one_split_and_fractions_are_met(seed):
    rng = np.random.default_rng(seed)
    names = [f"patient{number}" for number in range(rng.integers(1, 30))]
    validation, testing = rng.uniform(0, 0.45, 2)
    splits = split_patients([*names, *names[:3]], validation, testing, seed)
    assert sorted(splits) == sorted(names)
    counts = {split: list(splits.values()).count(split) for split in SPLITS}
    assert counts["training"] >= 1
    if len(names) > 1:
        assert counts["validation"] >= 1
    if len(names) > 4:
        assert abs(counts["testing"] - testing * len(names)) <= 0.5
        assert counts["validation"] == max(1, round(validation * len(names)))
    assert splits == split_patients(reversed(names), validation, testing, seed)


def test_the_seed_deals_differently_and_evenly():
    # each of 10 patients should be in validation in 0.2 of 500 deals: 100 +- 5 * sqrt(500 * 0.2 * 0.8) = 100 +- 45
    names = [f"p{number}" for number in range(10)]
    counts = dict.fromkeys(names, 0)
    for seed in range(500):
        for name, split in split_patients(names, seed=seed).items():
            counts[name] += split == "validation"
    assert all(55 <= count <= 145 for count in counts.values())


def test_a_patient_more_moves_few_others():
    names = [f"p{number}" for number in range(50)]
    before, after = split_patients(names), split_patients([*names, "new"])
    assert sum(before[name] != after[name] for name in names) <= 1


@pytest.mark.parametrize("fractions", [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="leave patients for training"):
        split_patients(["a", "b"], *fractions)


def test_patients_of_any_name_can_be_split():
    assert set(split_patients(["a", "b\udcff"])) == {"a", "b\udcff"}
