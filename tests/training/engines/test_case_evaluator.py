# SPDX-License-Identifier: Apache-2.0
"""Evaluation of whole cases: a broken one is named, the others are measured as if it were not there."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import DataLoader, MetaTensor
from monai.transforms import AsDiscreted, Compose, Lambdad, MapTransform
from torch import nn

from models_genesis.datasets import CaseDataset
from models_genesis.training import (
    CaseEvaluator,
    CasesFailedError,
    OverlayPicture,
    RegionDice,
    SegmentationReport,
    draw_overlay,
    region_masks,
)

REGIONS = {"liver": [1, 2], "tumour": [2]}
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def truth(number: int) -> np.ndarray:
    label = np.zeros((1, 12, 10, 8))
    label[:, 2:8, 2:8, 2:6] = 1
    if number != 1:
        label[:, 3:5, 3:5, 3:5] = 2
    return label


class Load(MapTransform):
    """Stands for reading: the image is the truth, but for a file that is broken."""

    def __init__(self) -> None:
        super().__init__(["image"])

    def __call__(self, data):
        number = int(data["image"].removesuffix(".nii.gz")[-1])
        if number == 3:
            raise OSError("the file ends early")
        label = MetaTensor(torch.as_tensor(truth(number)).float(), affine=torch.as_tensor(AFFINE))
        return {"image": label.clone(), "label": label}


class OneHot(nn.Module):
    """A network that finds everything, but for one voxel, and fails for one image."""

    def forward(self, x):
        if x[0, 0, 0, 0, 0] == 7:
            raise MemoryError("too large")
        x = x.clone()
        x[..., 2, 2, 2] = 0
        return torch.cat([(x == value).float() for value in range(3)], dim=1)


def evaluator(numbers, tmp_path, transform=None, network=None):
    data = [{"image": f"/data/case{number}.nii.gz"} for number in numbers]
    loader = DataLoader(CaseDataset(data, transform or Load(), on_bad_case="skip"), batch_size=1)
    return CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network or OneHot(),
        postprocessing=Compose([AsDiscreted("pred", argmax=True)]),
        key_val_metric={"val_dice": RegionDice(REGIONS)},
        val_handlers=[SegmentationReport(tmp_path, REGIONS, 2.0), OverlayPicture(tmp_path, REGIONS)],
    )


def rows(folder):
    return list(csv.DictReader((folder / "segmentation.csv").open()))


def test_all_cases_are_measured_in_mm_and_ml(tmp_path):
    engine = evaluator([0, 1], tmp_path)
    engine.run()
    table = rows(tmp_path)
    assert [(row["case"][-12:], row["region"]) for row in table] == [
        ("case0.nii.gz", "liver"), ("case0.nii.gz", "tumour"), ("case1.nii.gz", "liver"), ("case1.nii.gz", "tumour")
    ]  # fmt: skip
    assert float(table[0]["label_ml"]) == pytest.approx(6 * 6 * 4 * 3 / 1000)
    assert float(table[0]["dice"]) == pytest.approx(2 * 143 / 287, abs=1e-5)
    # case 1 has no tumour, and none was found: 1 as stated
    assert [float(table[3][score]) for score in ("dice", "iou", "surface_dice", "hd95_mm")] == [1, 1, 1, 0]
    summary = json.loads((tmp_path / "segmentation.json").read_text())
    mean = summary["regions"]["liver"]["dice"]
    assert mean["cases"] == 2 and mean["low"] <= mean["mean"] <= mean["high"]
    assert "2000 resamples, seed 0" in summary["interval"] and "both empty" in summary["empty_masks"]
    # the key metric of training is the mean of the same numbers
    dice = np.mean([float(row["dice"]) for row in table])
    assert engine.state.metrics["val_dice"] == pytest.approx(dice, abs=1e-5)


def test_a_broken_file_does_not_stop_the_others(tmp_path, caplog):
    engine = evaluator([0, 3, 1], tmp_path)
    with caplog.at_level(logging.INFO), pytest.raises(CasesFailedError, match=r"1 cases failed.*\n.*case3.*ends early"):
        engine.run()
    assert engine.finished == 2
    assert {row["case"] for row in rows(tmp_path)} == {"/data/case0.nii.gz", "/data/case1.nii.gz"}
    assert list(json.loads((tmp_path / "segmentation.json").read_text())["failed"]) == ["/data/case3.nii.gz"]
    assert "2 of 3 cases done" in caplog.text
    assert {path.name for path in tmp_path.glob("*.png")} == {"case0.png", "case1.png"}
    # the mean is that of the good cases, as if the broken one were not there
    good = evaluator([0, 1], tmp_path / "good")
    good.run()
    assert engine.state.metrics["val_dice"] == good.state.metrics["val_dice"]


def test_a_failure_in_the_network_or_afterwards_is_that_case_s_alone(tmp_path):
    spoil = Compose([Load(), Lambdad("image", lambda image: image + 7 * (image.sum() == truth(1).sum()))])
    engine = evaluator([0, 1, 2], tmp_path, spoil)
    with pytest.raises(CasesFailedError, match=r"case1.*MemoryError: too large"):
        engine.run()
    assert engine.finished == 2


def test_when_every_case_fails_the_error_names_them(tmp_path):
    with pytest.raises(CasesFailedError, match="ends early"):
        evaluator([3], tmp_path).run()


def test_a_second_run_starts_afresh(tmp_path):
    engine = evaluator([0], tmp_path)
    engine.run()
    engine.run()
    assert engine.finished == 1
    assert len(rows(tmp_path)) == 2


def test_raising_names_the_case():
    data = [{"image": "/data/case3.nii.gz"}]
    with pytest.raises(ValueError, match=r"/data/case3\.nii\.gz: cannot be prepared: OSError: the file ends early"):
        CaseDataset(data, Load())[0]
    with pytest.raises(ValueError, match="empty data list"):
        CaseDataset([], Load())
    with pytest.raises(ValueError, match="on_bad_case"):
        CaseDataset(data, Load(), on_bad_case="ignore")


def test_regions_overlap_and_need_one_channel():
    masks = region_masks(torch.as_tensor(truth(0)), REGIONS)
    assert masks.sum(dim=(1, 2, 3)).tolist() == [144, 8]
    with pytest.raises(ValueError, match="one channel"):
        region_masks(torch.zeros(3, 2, 2, 2), REGIONS)


def test_a_region_without_tolerance_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tumour"):
        SegmentationReport(tmp_path, REGIONS, {"liver": 2.0})


def test_the_picture_shows_the_right_slice_from_the_feet(tmp_path):
    """The target is in one slice, on the patient's right and in front: upper left of the picture."""
    shape = (1, 40, 30, 6)
    label = torch.zeros(shape)
    label[:, 4:12, 4:10, 4] = 1  # the affine's x and y point to the patient's left and back, so 4 is right and front
    image = MetaTensor(label * 5 + torch.rand(shape), affine=torch.as_tensor(np.diag([-1.0, -1.0, 3.0, 1.0])))
    image.affine = torch.as_tensor(np.diag([-1.0, -1.0, 3.0, 1.0]))
    mask = MetaTensor(label, affine=image.affine)
    figure = draw_overlay(image, mask, {"liver": [1]}, mask, "/data/case.nii.gz")
    axes = figure.axes[0]
    assert "slice 4" in axes.get_title()
    shown = np.asarray(axes.images[0].get_array())
    rows_, columns = np.nonzero(shown > 3)
    # x = 4..11 counted from the left in LPS is from the right in RAS; drawn with the right side on the left
    assert columns.max() < 20
    assert rows_.min() > 15  # origin below: in front is up
    figure.savefig(tmp_path / "case.png")
    assert imread(tmp_path / "case.png").std() > 0.05
