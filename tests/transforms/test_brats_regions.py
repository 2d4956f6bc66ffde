# SPDX-License-Identifier: Apache-2.0
"""The labels of each year become the three regions and come back, as MONAI has it where MONAI knows the year."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses

from models_genesis.transforms import (
    BRATS_LABELS,
    BRATS_REGIONS,
    BratsLabelsd,
    BratsRegions,
    BratsRegionsd,
    brats_label_values,
    brats_labels,
    brats_regions,
)

# label value: (whole, core, enhancing), from the challenges' descriptions
EXPECTED = {
    "2013": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 0), 4: (1, 1, 1)},
    "2018": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 4: (1, 1, 1)},
    "2023": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 1)},
    "2024": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 1), 4: (0, 0, 0)},
    "2024-ped": {0: (0, 0, 0), 1: (1, 1, 1), 2: (1, 1, 0), 3: (1, 1, 0), 4: (1, 0, 0)},
    "msd": {0: (0, 0, 0), 1: (1, 0, 0), 2: (1, 1, 0), 3: (1, 1, 1)},
}


def every_label(convention):
    return np.array(list(BRATS_LABELS[convention]), dtype=np.int64).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("convention", list(EXPECTED))
def test_each_label_of_each_year(convention):
    label = every_label(convention)
    regions = brats_regions(label, convention)
    assert regions.shape == (3, label.shape[1], 1, 1) and regions.dtype == np.uint8
    for value, found in zip(label.ravel(), regions[..., 0, 0].T, strict=True):
        assert tuple(found) == EXPECTED[convention][int(value)]
    # nested, whatever the year
    assert (regions[0] >= regions[1]).all() and (regions[1] >= regions[2]).all()
    assert BRATS_REGIONS == ("whole tumour", "tumour core", "enhancing tumour")


@pytest.mark.parametrize(("convention", "et_label"), [("2018", 4), ("2023", 3)])
def test_monai_agrees_where_it_knows_the_year(convention, et_label):
    label = np.random.default_rng(0).choice(list(BRATS_LABELS[convention]), (1, 6, 5, 4))
    core, whole, enhancing = ConvertToMultiChannelBasedOnBratsClasses(et_label=et_label)(label)
    np.testing.assert_array_equal(brats_regions(label, convention), np.stack([whole, core, enhancing]))


@pytest.mark.parametrize(("convention", "et_label", "value"), [("2013", 4, 3), ("2024", 4, 3), ("msd", 3, 1)])
def test_why_monai_is_not_used(convention, et_label, value):
    # MONAI drops the non-enhancing tumour of 2013 and, set to 4, all enhancing tumour since 2023; in the Decathlon it
    # counts oedema to the core
    label = np.full((1, 1, 1, 1), value)
    core, whole, _ = ConvertToMultiChannelBasedOnBratsClasses(et_label=et_label)(label)[:, 0, 0, 0]
    assert (int(whole), int(core)) != EXPECTED[convention][value][:2]


@pytest.mark.parametrize("convention", list(EXPECTED))
def test_labels_come_back(convention):
    label = every_label(convention)
    # what BraTS 2013 and PED tell apart inside the core, and a cavity outside of all regions, no region says
    merged = {"2013": 1, "2024-ped": 2}.get(convention, 3)
    expected = np.where(label == 3, merged, label)
    expected = np.where(label == 4, 0, label) if convention == "2024" else expected
    np.testing.assert_array_equal(brats_labels(brats_regions(label, convention), convention), expected)


def test_a_slice_s_regions_are_the_scan_s_there():
    scan = np.random.default_rng(0).choice([0, 1, 2, 4], (1, 3, 4, 5))
    for number in range(5):
        expected = brats_regions(scan, "2018")[..., number]
        found = brats_regions(scan[..., number], "2018")
        assert found.shape == (3, 3, 4) and np.array_equal(found, expected)


def test_regions_that_are_not_nested():
    # every combination of the three channels: the inner region wins
    regions = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij")).reshape(3, 8, 1, 1)
    expected = [{(0, 0): 0, (1, 0): 2}.get((int(w), int(c)), 1) if not e else 4 for w, c, e in regions[..., 0, 0].T]
    assert brats_labels(regions, "2018").ravel().tolist() == expected
    assert brats_labels(regions.astype(bool), "2018").ravel().tolist() == expected


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
def test_kinds_are_kept_and_inputs_untouched(kind, dtype):
    label = kind(torch.as_tensor(every_label("2018").astype(dtype)))
    if isinstance(label, MetaTensor):
        label.affine = torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64))
    before = np.array(label)
    regions = BratsRegions("2018")(label)
    back = brats_labels(regions, "2018")
    for result in (regions, back):
        assert type(result) is type(label)
        if isinstance(label, MetaTensor):
            np.testing.assert_array_equal(result.affine, label.affine)
    np.testing.assert_array_equal(np.array(label), before)
    np.testing.assert_array_equal(np.array(back), before)
    np.testing.assert_array_equal(np.array(BratsRegions("2018")(label[0])), np.array(regions))


def test_dictionary_twins():
    item = {"label": every_label("2023"), "patient": "P1"}
    regions = BratsRegionsd("label", "2023")(item)
    assert regions["label"].shape == (3, 4, 1, 1) and item["label"].shape == (1, 4, 1, 1)
    np.testing.assert_array_equal(BratsLabelsd("label", "2023")(regions)["label"], item["label"])
    assert BratsRegionsd("seg", allow_missing_keys=True)(item).keys() == item.keys()
    for transform in (BratsRegionsd("seg"), BratsLabelsd("seg")):
        with pytest.raises(KeyError):
            transform(item)


@pytest.mark.parametrize("convention", list(EXPECTED))
@pytest.mark.parametrize("regions", [["whole tumour"], ["tumour core"], ["enhancing tumour", "whole tumour"]])
def test_some_of_the_regions(convention, regions):
    label = every_label(convention)
    chosen = [number for number, name in enumerate(BRATS_REGIONS) if name in regions]
    masks = brats_regions(label, convention, regions)
    np.testing.assert_array_equal(masks, brats_regions(label, convention)[chosen])
    # the label map that comes back says the same of these regions
    back = BratsLabelsd("label", convention, regions)({"label": masks})["label"]
    np.testing.assert_array_equal(BratsRegionsd("label", convention, regions)({"label": back})["label"], masks)
    assert list(brats_label_values(convention, regions)) == [BRATS_REGIONS[number] for number in chosen]


@pytest.mark.parametrize("regions", ["whole tumour", ["oedema"], []])
def test_other_regions_are_refused(regions):
    for make in (lambda: BratsRegions("2018", regions), lambda: BratsLabelsd("a", "2018", regions)):
        with pytest.raises(ValueError, match="regions: expected a list of some of"):
            make()
    with pytest.raises(ValueError, match=r"expected \(1, X, Y, Z\) for \['whole tumour'\], found \(3, 2, 2, 2\)"):
        brats_labels(np.zeros((3, 2, 2, 2)), "2018", ["whole tumour"])


def test_values_of_another_year_are_refused():
    with pytest.raises(ValueError, match=r"expected values of \[0, 1, 2, 4\] \(BraTS 2018\), found \[3\]"):
        brats_regions(every_label("2023"), "2018")
    with pytest.raises(ValueError, match=r"\(BraTS 2023\), found \[4\]"):
        brats_regions(every_label("2018"), "2023")
    with pytest.raises(ValueError, match=r"expected one channel, found shape \(3, 2, 2, 2\)"):
        brats_regions(np.zeros((3, 2, 2, 2)), "2018")
    with pytest.raises(ValueError, match=r"masks: expected \(3, X, Y, Z\) for .*, found \(1, 2, 2, 2\)"):
        brats_labels(np.zeros((1, 2, 2, 2)), "2018")
    for make in (lambda: BratsRegions("2017"), lambda: BratsRegionsd("a", "2017"), lambda: BratsLabelsd("a", "2017")):
        with pytest.raises(ValueError, match="convention: expected one of"):
            make()
