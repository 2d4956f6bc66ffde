# SPDX-License-Identifier: Apache-2.0
"""The parts of this project's MONAI Label app, without a server."""

from __future__ import annotations

import doctest
import importlib
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from models_genesis.datasets import make_phantom

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("archive_labels", "inference", "points", "training", "uncertainty")


@pytest.fixture(scope="module")
def lib(environment):
    """The app's modules, imported as MONAI Label does: with the app's folder on the path."""
    sys.path.insert(0, str(ROOT / "label"))
    yield {name: importlib.import_module(f"lib.{name}") for name in PARTS}
    sys.path.remove(str(ROOT / "label"))


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_entropy_is_one_for_a_guess_and_zero_for_certainty(lib):
    """Two, three and independent classes; log(C) and log(2) are the units."""
    entropy = lib["uncertainty"].EntropyInferer
    for classes in (2, 3):
        guess = entropy(lambda batch, network, n=classes: torch.full((1, n, 4, 4, 4), 7.0))
        torch.testing.assert_close(guess(image(1, 1, 4, 4, 4), None), torch.ones(1, 1, 4, 4, 4))
    sure = entropy(lambda batch, network: torch.tensor([50.0, -50.0]).view(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4))
    assert sure(image(1, 1, 4, 4, 4), None).max() < 1e-6
    # channels of their own: one is a guess, the other certain, which makes a half
    own = entropy(lambda batch, network: torch.tensor([0.0, 60.0]).view(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4), True)
    torch.testing.assert_close(own(image(1, 1, 4, 4, 4), None), torch.full((1, 1, 4, 4, 4), 0.5))


def test_entropy_sees_answers_that_change_with_a_flip(lib):
    """A network that is sure of the first half of the array, whatever is in it, contradicts itself when mirrored."""
    entropy = lib["uncertainty"].EntropyInferer

    def halves(batch, network):
        logits = torch.full((1, 2, *batch.shape[2:]), -50.0)
        logits[:, 0, : batch.shape[2] // 2] = 50.0
        logits[:, 1, batch.shape[2] // 2 :] = 50.0
        return logits

    batch = image(1, 1, 4, 4, 4)
    assert entropy(halves)(batch, None).max() < 1e-6
    assert entropy(halves, flips=[1])(batch, None).max() < 1e-6
    torch.testing.assert_close(entropy(halves, flips=[0])(batch, None), torch.ones(1, 1, 4, 4, 4))


@pytest.fixture
def trainer(lib):
    """A training task without the rest of its app."""
    return lib["training"].GenesisTrainTask(str(ROOT / "bundles" / "genesis_lits_liver_ct_segmentation"), {})


@pytest.mark.parametrize(
    ("cases", "share", "held_out"), [(1, 0.2, 1), (2, 0.2, 1), (3, 0.0, 1), (10, 0.2, 2), (10, 0.5, 5), (4, 1.0, 3)]
)
def test_a_case_is_always_kept_for_validation(trainer, cases, share, held_out):
    items = [{"image": f"{number}", "label": f"{number}"} for number in range(cases)]
    training, validation = trainer._partition_datalist(items, {"val_split": share})
    assert len(validation) == held_out
    assert training  # never empty
    if cases > 1:
        assert sorted(int(each["image"]) for each in training + validation) == list(range(cases))
    else:
        assert training == validation == items


def test_a_loader_of_an_earlier_request_is_taken_away(trainer, tmp_path):
    weights = tmp_path / "model.pt"
    weights.touch()
    handlers = [{"_target_": "GracefulShutdown"}]
    for _ in range(2):
        trainer._load_checkpoint(str(weights), True, handlers)
        assert [each["_target_"] for each in handlers] == ["CheckpointLoader", "GracefulShutdown"]
        assert handlers[0]["strict"] is True
    trainer._load_checkpoint(str(weights), False, handlers)
    assert handlers == [{"_target_": "GracefulShutdown"}]


@pytest.mark.parametrize("task", ["GenesisTrainTask", "PretrainTask"])
def test_the_network_has_the_width_of_the_model_it_goes_on_from(lib, tmp_path, task):
    """Of the enclosed weights too, which are narrower than a new training's network."""
    name = "genesis_chest_ct_pretraining" if task == "PretrainTask" else "genesis_lidc_nodule_ct_segmentation"
    made = getattr(lib["training"], task)(str(ROOT / "bundles" / name), {})
    made.cubes_per_scan = 1
    assert made._update_overrides({})["features"] == [16, 32, 64, 128]
    made.start_from = "scratch"
    assert "features" not in made._update_overrides({})
    made.start_from, made.bundle_path = "model", str(tmp_path)
    assert "features" not in made._update_overrides({})


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 2.5)])
@pytest.mark.parametrize("oblique", [False, True])
def test_balls_are_where_the_points_are(lib, spacing, oblique):
    """Against the distance of every voxel of the scan from the point."""
    angle = 0.3 if oblique else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-30, 12, 5)
    shape, points = (24, 20, 16), np.array([[12.0, 10, 8], [0, 0, 0], [21.4, 3.3, 14.6]])
    found = lib["points"].draw_balls(shape, affine, points, 4.0)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    expected = np.zeros(shape, np.uint8)
    for number, point in enumerate(points, 1):
        expected[np.linalg.norm((grid - point) @ affine[:3, :3].T, axis=-1) <= 4.0] = number
    np.testing.assert_array_equal(found, expected)
    assert not lib["points"].draw_balls(shape, affine, np.array([[99.0, 5, 5]]), 4.0).any()


@pytest.mark.parametrize("damage", ["NaN", "a bit", "empty"])
def test_weights_that_would_segment_everything_as_background_are_refused(damage, lib, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    from models_genesis.networks import GenesisUNet, save_weights

    path = tmp_path / "model.pt"
    save_weights(GenesisUNet(features=(4, 8)).state_dict(), path)
    task_class = lib["inference"].CheckedInferTask
    task = task_class.__new__(task_class)  # without a bundle's configs, which the check does not need
    task._sound, task.get_path = None, lambda: str(path)
    task.check_weights()
    if damage == "NaN":
        state = torch.load(path, weights_only=True)
        torch.save({name: value * float("nan") for name, value in state.items()}, path)
    else:
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:  # between its members are bytes that nobody reads
            largest = max(archive.infolist(), key=lambda each: each.file_size)
            place = content.index(archive.read(largest)) + largest.file_size // 2
        content[place] ^= 16
        path.write_bytes(content if damage == "a bit" else b"")
    with pytest.raises(MONAILabelException) as error:
        task.check_weights()
    assert str(path) in str(error.value.msg)


def segmentation(label: np.ndarray, affine: np.ndarray, names: dict[int, str], extra: tuple[str, ...] = ()) -> Any:
    """A DICOM segmentation in memory: the slices that have something of each value, numbered from 1, and empty ones."""
    from pydicom.dataset import Dataset

    place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(place[:3, :3], axis=0)

    def of(**elements: Any) -> Dataset:
        made = Dataset()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    plane = of(ImageOrientationPatient=[float(value) for value in (place[:3, :2] / spacing[:2]).T.ravel()])
    measures = of(PixelSpacing=[float(spacing[1]), float(spacing[0])])
    shared = of(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])
    frames, groups = [], []
    for number, value in enumerate(names, 1):
        for z in np.flatnonzero((label == value).any(axis=(0, 1))):
            frames.append((label[:, :, z] == value).T)
            position = of(ImagePositionPatient=[float(each) for each in (place @ [0, 0, z, 1])[:3]])
            segment = of(ReferencedSegmentNumber=number)
            groups.append(of(PlanePositionSequence=[position], SegmentIdentificationSequence=[segment]))
    numbered = enumerate([*names.values(), *extra], 1)
    made = SimpleNamespace(SegmentSequence=[of(SegmentNumber=number, SegmentLabel=name) for number, name in numbered])
    made.pixel_array = np.squeeze(np.array(frames, np.uint8), 0) if len(frames) == 1 else np.array(frames, np.uint8)
    made.Rows, made.Columns = label.shape[1], label.shape[0]
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    return made


def scan_and_label() -> tuple[Any, np.ndarray]:
    """An oblique scan of three different extents and spacings, and a label map with the values 2 and 4."""
    from models_genesis.datasets import ScanHeader

    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.7, 0.9, 2.5]), (-30, 12, 5)
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:5, 1:7, 1:3], label[6:, 5:, 2:6] = 2, 4
    return ScanHeader(label.shape, (0.7, 0.9, 2.5), affine), label


def test_segments_of_an_archive_are_placed_by_name(lib):
    """Whatever number they have, whatever else there is, and where the scan's axes are turned the other way."""
    place = lib["archive_labels"].place_segments
    header, label = scan_and_label()
    stored = segmentation(label, header.affine, {2: "Liver", 4: "bone"}, extra=("nodule",))
    np.testing.assert_array_equal(place(stored, header, {"liver": 1}), label == 2)
    both = place(stored, header, {"bone": 3, "LIVER": 1, "nodule": 2})
    np.testing.assert_array_equal(both, np.select([label == 2, label == 4], [1, 3], 0))
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[:3, 3] = (label.shape[0] - 1, 0, label.shape[2] - 1)
    turned = replace(header, affine=header.affine @ flip)
    np.testing.assert_array_equal(place(stored, turned, {"liver": 1}), (label == 2)[::-1, :, ::-1])
    one = np.zeros_like(label)
    one[3, 2, 4] = 2
    np.testing.assert_array_equal(place(segmentation(one, header.affine, {2: "liver"}), header, {"liver": 1}), one == 2)


def test_segments_that_say_nothing_or_fit_nowhere_are_refused(lib):
    place = lib["archive_labels"].place_segments
    header, label = scan_and_label()
    stored = segmentation(label, header.affine, {2: "liver", 4: "bone"}, extra=("nodule",))
    for unknown in ("spleen", "nodule"):  # of no segment, and of an empty one
        with pytest.raises(ValueError, match=rf"names \['{unknown}'\], found segments \['bone', 'liver', 'nodule'\]"):
            place(stored, header, {unknown: 1})
    shifted = header.affine.copy()
    shifted[:3, 3] += header.affine[:3, 2] / 2
    with pytest.raises(ValueError, match="expected frame 1 to lie on voxels of its scan"):
        place(stored, replace(header, affine=shifted), {"liver": 1})
    with pytest.raises(ValueError, match="expected frame 1 to lie on voxels of its scan"):
        place(stored, replace(header, shape=(4, 8, 7)), {"liver": 1})
    stored.PerFrameFunctionalGroupsSequence += stored.PerFrameFunctionalGroupsSequence[:1]
    stored.pixel_array = np.concatenate([stored.pixel_array, stored.pixel_array[:1]])
    with pytest.raises(ValueError, match="expected segments that do not overlap"):
        place(stored, header, {"liver": 1})


@pytest.fixture
def scorer(lib, tmp_path):
    """A scoring task of a bundle that has nothing but its metadata."""
    bundle = tmp_path / "genesis_luna16_nodule_ct_classification"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"description": "made up"}))
    return lib["points"].PointScoreTask(bundle)


def test_points_are_found_under_each_name(scorer):
    from models_genesis.datasets import ScanHeader

    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    header = ScanHeader((10, 10, 10), (2, 2, 3), affine)
    for name in ("nodule", "foreground", "points"):
        assert scorer.voxels({name: [[1, 2, 3], [4, 5, 6]]}, header).tolist() == [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_allclose(scorer.voxels({"points_ras": [[8, 16, 39]]}, header), [[1, 2, 3]])
    assert scorer.labels == {"nodule": 1} and not scorer.is_valid()


@pytest.mark.parametrize(
    "request_",
    [{}, {"points": []}, {"points": [[1, 2]]}, {"points": [1, 2, 3]}, {"points": [["a", 2, 3]]}]
    + [{"points": [[1, 2, float("nan")]]}, {"points": [[1, 2, 3]], "nodule": [[1, 2, 3]]}],
    ids=str,
)
def test_malformed_points_are_refused(scorer, request_):
    from fastapi import HTTPException

    from models_genesis.datasets import ScanHeader

    with pytest.raises(HTTPException) as caught:
        scorer.voxels(request_, ScanHeader((10, 10, 10), (1, 1, 1), np.eye(4)))
    assert caught.value.status_code == 400 and "expected" in caught.value.detail


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Scans of a study: three that can be pretrained on, one that is too small, one cut off, one that is not CT."""
    folder = tmp_path_factory.mktemp("scans")
    phantom = make_phantom(0, region="abdomen", shape=(72, 64, 48))
    images = {"good": phantom.image, "fair": phantom.image[::-1], "fine": phantom.image[:, ::-1]}
    images |= {"small": phantom.image[:20, :20, :5], "cut": phantom.image, "shifted": phantom.image + 1024}
    for name, values in images.items():
        nib.save(nib.Nifti1Image(values, phantom.affine), folder / f"{name}.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:5000])
    return {name: {"image": str(folder / f"{name}.nii.gz")} for name in images}


@pytest.fixture(scope="module")
def pretrainer(lib, copy_bundle, tmp_path_factory):
    """A pretraining task without the rest of its app, with small cubes."""
    bundle = copy_bundle("genesis_chest_ct_pretraining", tmp_path_factory.mktemp("app") / "pretraining")
    return lib["training"].PretrainTask(str(bundle), {})


@pytest.mark.parametrize(
    ("listed", "training", "held_out"),
    [
        ("good fair fine", "good fine", "fair"),
        ("good small fine", "fine", "good"),
        ("good cut fine", "fine", "good"),
        ("good shifted fine", "fine", "good"),
        ("small cut good", "good", "good"),  # the only one that can be used is for both, as a single scan is
        ("good", "good", "good"),
    ],
)
def test_a_scan_that_can_be_used_is_held_out_from_pretraining(pretrainer, scans, listed, training, held_out):
    found = pretrainer._partition_datalist([scans[name] for name in listed.split()], {"val_split": 0.2})
    assert found == ([scans[name] for name in training.split()], [scans[name] for name in held_out.split()])


def test_pretraining_without_a_scan_that_can_be_used_names_them(pretrainer, scans):
    from monailabel.interfaces.exception import MONAILabelException

    with pytest.raises(MONAILabelException) as raised:
        pretrainer._partition_datalist([scans["small"], scans["cut"]], {})
    assert "found none among 2" in raised.value.msg
    assert all(scans[name]["image"] in raised.value.msg for name in ("small", "cut"))


@pytest.mark.parametrize("name", PARTS)
def test_examples(lib, name):
    assert doctest.testmod(lib[name]).failed == 0
