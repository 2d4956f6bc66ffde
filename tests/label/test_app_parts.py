# SPDX-License-Identifier: Apache-2.0
"""The parts of this project's MONAI Label app, without a server."""

from __future__ import annotations

import doctest
import importlib
import json
import runpy
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from models_genesis.datasets import make_phantom

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("archive_labels", "inference", "points", "training", "uncertainty", "web", "whole_scans")


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


def test_a_network_that_is_sure_of_front_and_back_is_not_mirrored_onto_itself(lib):
    """It would contradict itself: the mirrored front lies behind. Slices across that axis are left as they are."""
    entropy, names = lib["uncertainty"].EntropyInferer, {"Anterior": [1], "Posterior": [2]}
    with pytest.raises(ValueError, match=r"--conf uncertainty_flips 1: .* found 1, which tells Anterior and Posterior"):
        entropy(None, flips=[1], class_names=names)

    def front_and_back(batch, network):
        logits = torch.full((1, 3, *batch.shape[2:]), -50.0)
        logits[:, 1, :, : batch.shape[3] // 2] = logits[:, 2, :, batch.shape[3] // 2 :] = 50.0
        return logits

    batch = image(1, 1, 4, 4, 4)
    assert entropy(front_and_back, flips=[0, 2], class_names=names)(batch, None).max() < 1e-6
    assert entropy(front_and_back, flips=[1], slice_axis=1, class_names=names)(batch, None).max() < 1e-6


def test_scoring_knows_the_classes_of_the_weights(lib, tmp_path):
    """And across which axis they were trained on slices, whatever the flips were when the app started."""
    from models_genesis.networks import GenesisUNet
    from models_genesis.training import save_trained_weights

    bundle = tmp_path / "genesis_msd_segmentation"
    runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"](ROOT / "bundles" / bundle.name, bundle, {})
    task = lib["uncertainty"].EntropyInferTask
    with pytest.raises(ValueError, match="found 1, which tells Anterior and Posterior apart"):
        task(str(bundle), {}, (1,)).inferer({"device": "cpu"})
    assert task(str(bundle), {}, (0, 2)).inferer({"device": "cpu"}).inferer.axes == (0, 2)
    network = GenesisUNet(features=(4, 8), out_channels=3, spatial_dims=2)
    trained = {"features": [4, 8], "cube_size": [32, 32], "slice_axis": 1}
    save_trained_weights(network.state_dict(), bundle / "models" / "model.pt", trained)
    assert task(str(bundle), {}, (0, 1)).inferer({"device": "cpu"}).inferer.axes == (0,)


class Studies:
    """What scoring asks of a datastore: scans, none of them labelled, and what is noted of them."""

    def __init__(self, *names: str) -> None:
        self.notes: dict[str, dict[str, Any]] = {name: {} for name in names}

    def get_unlabeled_images(self, *filters: Any) -> list[str]:
        return list(self.notes)

    def get_image_info(self, name: str) -> dict[str, Any]:
        return dict(self.notes[name])

    def update_image_info(self, name: str, info: dict[str, Any]) -> None:
        self.notes[name].update(json.loads(json.dumps(info)))

    def get_image_uri(self, name: str) -> str:
        return name


@pytest.fixture
def score(lib, tmp_path):
    """Score scans with weights, which are known by their bytes, flips and the entropy of each; choose the next."""

    class Model:
        output_label_key = "pred"

        def __init__(self, flips: tuple[int, ...], entropy: dict[str, float]) -> None:
            self.flips, self.entropy = flips, entropy

        def is_valid(self) -> bool:
            return (tmp_path / "model.pt").is_file()

        def weights(self, request: dict[str, Any]) -> Path:
            return tmp_path / "model.pt"

        def __call__(self, request: dict[str, Any]) -> tuple[None, dict[str, torch.Tensor]]:
            if request["image"] not in self.entropy:
                raise RuntimeError("damaged")
            return None, {"pred": torch.full((1,), self.entropy[request["image"]], dtype=torch.float64)}

    def run(studies: Studies, weights: bytes, flips: tuple[int, ...], entropy: dict[str, float], **request: Any) -> Any:
        (tmp_path / "model.pt").write_bytes(weights)
        scoring = lib["uncertainty"].UncertaintyScoring("liver", lambda: Model(flips, entropy))
        return scoring(request, studies), lib["uncertainty"].LeastCertain(scoring)({}, studies)

    return run


def test_scores_of_other_flips_are_made_again(score):
    studies = Studies("a", "b")
    assert score(studies, b"1", (0,), {"a": 0.2, "b": 0.3})[1] == {"id": "b", "score": 0.3}
    done, chosen = score(studies, b"1", (0, 1), {"a": 0.6, "b": 0.1})
    assert done["scores"] == {"a": 0.6, "b": 0.1} and chosen == {"id": "a", "score": 0.6}
    again, _ = score(studies, b"1", (1, 0), {"a": 0.6, "b": 0.1})
    assert again["skipped"] == ["a", "b"]
    assert studies.notes["a"]["uncertainty"]["flips"] == [0, 1]
    del studies.notes["a"]["uncertainty"]["flips"]  # as noted by earlier versions
    assert score(studies, b"1", (0, 1), {"a": 0.5, "b": 0.1})[0]["scores"] == {"a": 0.5}


def test_a_scan_that_cannot_be_scored_loses_the_score_of_other_weights(score):
    studies = Studies("a", "b", "c")
    score(studies, b"1", (0,), {"a": 0.2, "b": 0.3, "c": 0.1})
    done, chosen = score(studies, b"2", (0,), {"a": 0.05, "c": 0.01})
    assert done["failed"] == {"b": "RuntimeError: damaged"}
    assert studies.notes["b"]["uncertainty"] == {}
    assert chosen == {"id": "a", "score": 0.05}
    assert score(studies, b"2", (0,), {"a": 0.05, "b": 0.5, "c": 0.01})[1] == {"id": "b", "score": 0.5}


def test_only_scores_of_the_weights_of_now_are_ranked(score):
    """A better model is surer of everything, so that scans which are not scored yet would always come first."""
    studies = Studies("a", "b", "c")
    score(studies, b"1", (0,), {"a": 0.9, "b": 0.8, "c": 0.7})
    entropy = {"a": 0.01, "b": 0.02, "c": 0.03}
    done, chosen = score(studies, b"2", (0,), entropy, max_samples=2)
    assert done["scores"] == {"a": 0.01, "b": 0.02} and chosen == {"id": "b", "score": 0.02}
    assert score(studies, b"2", (1,), {}, max_samples=1)[1] == {"id": "a", "score": None}  # none of these flips


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
    from models_genesis.training import save_trained_weights

    name = "genesis_chest_ct_pretraining" if task == "PretrainTask" else "genesis_lidc_nodule_ct_segmentation"
    made = getattr(lib["training"], task)(str(ROOT / "bundles" / name), {})
    made.cubes_per_scan = 1
    assert made._update_overrides({})["features"] == [16, 32, 64, 128]
    made.start_from = "scratch"
    assert "features" not in made._update_overrides({})
    made.start_from, made.weights = "model", tmp_path / "model.pt"
    assert "features" not in made._update_overrides({})
    slices = {"features": [4, 8], "slice_axis": 2, "cube_size": [32, 32]}
    save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, {**slices, "spacing": None})
    assert slices.items() <= made._update_overrides({}).items()
    save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, {"features": [4, 8], "cube_size": [32, 32, 16]})
    assert "slice_axis" not in made._update_overrides({})


def trainer_of(lib: Any, bundle: Path, weights: Path | None = None) -> Any:
    """A training task that goes on from the bundle's weights, or from others."""
    made = getattr(lib["training"], "PretrainTask" if "pretraining" in bundle.name else "GenesisTrainTask")(
        str(bundle), {}
    )
    made.start_from, made.weights = "model", weights or bundle / "models" / "model.pt"
    return made


TRAINED: dict[str, dict[str, Any]] = {
    "genesis_lits_liver_ct_segmentation": {"spacing": [1, 1, 2.5], "intensity_range": [-200, 300], "tumour": True},
    "genesis_lidc_nodule_ct_segmentation": {"spacing": [0.7, 0.7, 1.25], "cube_size": [48, 48, 16]},
    "genesis_brats_mri_segmentation": {"normalise": "zscore", "channels": ["t1", "t2"], "convention": "msd"},
    "genesis_msd_segmentation": {"normalise": "ct", "spacing": [2, 2, 2], "task": "Task09_Spleen", "task_facts": {}},
    "genesis_chest_ct_pretraining": {"axcodes": "LPS", "normalise": "zscore", "mask_ratio": 0.3, "num_blocks": 77},
}
"""What weights were trained with, and the bundles' own ``train.json`` have otherwise."""


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_training_goes_on_with_what_the_weights_were_trained_with(lib, tmp_path, name):
    """Every recorded setting, as in the copy that ``copy_bundle.py`` makes with the same weights."""
    from monai.bundle import ConfigParser

    from models_genesis.datasets import msd_task
    from models_genesis.training import save_trained_weights

    bundle, trained = ROOT / "bundles" / name, {"features": [4, 8], **TRAINED[name]}
    if "task" in trained:
        trained["task_facts"] = msd_task(trained["task"])
    save_trained_weights({"head.weight": torch.zeros(1)}, tmp_path / "best.pt", trained)
    found = ConfigParser()
    found.read_config(str(bundle / "configs" / "train.json"))
    overrides = trainer_of(lib, bundle, tmp_path / "best.pt")._settings_of_model()
    assert {key.split("#")[-1] for key in overrides} == set(trained)
    found.update(overrides)
    runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"](
        bundle, tmp_path / name, {}, tmp_path / "best.pt"
    )
    copied = json.loads((tmp_path / name / "configs" / "train.json").read_text())
    assert json.loads(json.dumps(found.config)) == {**copied, "_meta_": {}}
    for key, value in trained.items():
        place = key if key in copied else f"deformation#{key}"
        assert json.loads(json.dumps(found.get_parsed_content(place))) == json.loads(json.dumps(value)), key


def test_enclosed_weights_are_trained_on_with_their_spacing(lib):
    """Of the nodules, whose ``train.json`` has none: the written ``model.json`` would say so of weights of 0.7 mm."""
    overrides = trainer_of(lib, ROOT / "bundles" / "genesis_lidc_nodule_ct_segmentation")._update_overrides({})
    assert overrides["spacing"] == [0.7, 0.7, 1.25] and overrides["cube_size"] == [48, 48, 16]


def test_a_copy_of_other_settings_refuses_the_weights_by_name(lib, tmp_path):
    """As inference does; what it does not compare, such as the side of a cube, is the copy's own."""
    from monailabel.interfaces.exception import MONAILabelException

    from models_genesis.training import save_trained_weights

    tool = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"]
    source = ROOT / "bundles" / "genesis_lits_liver_ct_segmentation"
    given = {"spacing": [1, 1, 1], "cube_size": [32, 32, 16], "features": [4, 8]}
    for name, more in (("a_segmentation", {}), ("b_segmentation", {"allow_changed_settings": True})):
        tool(source, tmp_path / name, {**given, **more})
        made = trainer_of(lib, tmp_path / name)
        made.weights.parent.mkdir(exist_ok=True)

        def trained(made: Any = made, **settings: Any) -> dict[str, Any]:
            recorded = {"features": [4, 8], "cube_size": [64, 64, 32], "intensity_range": [-200, 300], **settings}
            save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, recorded)
            return made._settings_of_model()

        assert trained(spacing=[1, 1, 1]) == {"intensity_range": [-200, 300]}
        for key, value in (("spacing", None), ("features", [8, 16])):
            if more:  # the copy's own win, as in inference
                assert trained(**{key: value}) == {"intensity_range": [-200, 300]}
                continue
            with pytest.raises(MONAILabelException, match=f"--{key}: trained with .*, given") as error:
                trained(**{key: value})
            assert str(made.weights) in error.value.msg
    made = trainer_of(lib, tmp_path / "a_segmentation")
    slices = {"spacing": [1, 1, 1], "features": [4, 8], "cube_size": [32, 32], "slice_axis": 2}
    save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, slices)
    with pytest.raises(MONAILabelException, match=r"--cube_size: trained with \[32, 32\], given \[32, 32, 16\]"):
        made({"start_from": "model"}, None)  # before anything is asked of the datastore


def test_pretraining_prepares_scans_as_the_weights_were_trained(lib, tmp_path):
    from models_genesis.training import save_trained_weights

    volume = np.random.default_rng(0).integers(-900, 300, (64, 64, 48)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    made = trainer_of(lib, ROOT / "bundles" / "genesis_chest_ct_pretraining", tmp_path / "model.pt")
    prepared = []
    for high in (100, 250):
        trained = {"features": [4, 8], "cube_size": [32, 32, 16], "intensity_range": [-1000, high]}
        save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, trained)
        prepared.append(made._prepare_scan()({"image": str(tmp_path / "scan.nii.gz")})["image"])
    assert [float(np.asarray(each).max()) for each in prepared] == [100, 250]


@pytest.mark.parametrize(
    "name",
    [path.parents[1].name for path in sorted((ROOT / "bundles").glob("genesis_*/configs/2d.json"))
     if "classification" not in path.parts[-3]],
)  # fmt: skip
def test_what_goes_on_from_weights_of_slices_trains_as_2d_json_does(lib, tmp_path, name):
    """Every setting is that of ``train.json`` and ``2d.json``, with the slices of the weights."""
    from monai.bundle import ConfigParser

    from models_genesis.training import save_trained_weights

    configs = ROOT / "bundles" / name / "configs"
    task = "PretrainTask" if "pretraining" in name else "GenesisTrainTask"
    made = getattr(lib["training"], task)(str(configs.parent), {})
    slices = {"features": [4, 8], "slice_axis": 1, "cube_size": [32, 48]}
    made.start_from, made.weights = "model", tmp_path / "model.pt"
    save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, slices)
    expected, found = ConfigParser(), ConfigParser()
    expected.read_config([str(configs / "train.json"), str(configs / "2d.json")])
    expected.update(slices)
    found.read_config(str(configs / "train.json"))
    found.update(made._update_overrides({}))
    assert found["imports"] == expected["imports"]
    keys = [key for key in ConfigParser.load_config_file(configs / "2d.json") if not key.startswith("+")]
    for key in keys:
        assert found.get_parsed_content(key) == expected.get_parsed_content(key), key
    if task == "PretrainTask":
        assert found.get_parsed_content("deformation#num_blocks") != 10_000
        made.cubes_per_scan = 7
        assert made._update_overrides({})["cubes_per_scan"] == 7


def test_pretraining_on_slices_takes_scans_that_have_too_few_of_them_for_a_cube(lib, tmp_path):
    from models_genesis.datasets import BadScanError
    from models_genesis.training import save_trained_weights

    volume = np.random.default_rng(0).integers(-900, 300, (64, 64, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    made = lib["training"].PretrainTask(str(ROOT / "bundles" / "genesis_chest_ct_pretraining"), {})
    made.start_from, made.weights = "model", tmp_path / "model.pt"
    slices = {"features": [4, 8], "slice_axis": 2, "cube_size": [32, 32]}
    save_trained_weights({"head.weight": torch.zeros(1)}, made.weights, slices)
    case = {"image": str(tmp_path / "scan.nii.gz")}
    made._prepare_scan()(case)
    made.start_from = "scratch"
    with pytest.raises(BadScanError):
        made._prepare_scan()(case)


def test_pretraining_leaves_out_what_is_not_of_its_modality(lib, caplog):
    """MR values would be taken for HU; a bundle for MR, or for anything, takes what it says."""
    from pydicom.dataset import Dataset

    class Archive(lib["whole_scans"].WholeScanDatastore):
        def __init__(self) -> None:
            self.found = {"1.1": "CT", "1.2": "MR", "1.3": "CT"}

        def list_images(self) -> list[str]:
            return list(self.found)

        def series(self, image_id: str) -> Dataset:
            answer = Dataset()
            answer.Modality = self.found[image_id]
            return answer

        def get_image_uri(self, image_id: str) -> str:
            return image_id

    task = lib["training"].PretrainTask(str(ROOT / "bundles" / "genesis_chest_ct_pretraining"), {})
    assert task._fetch_datalist({}, Archive()) == [{"image": "1.1"}, {"image": "1.3"}]
    assert "1.2: left out, expected the modality CT, found MR" in caplog.text
    task.bundle_config["modality"] = "MR"
    assert task._fetch_datalist({}, Archive()) == [{"image": "1.2"}]
    task.bundle_config["modality"] = None
    assert len(task._fetch_datalist({}, Archive())) == 3


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
    task._sound = None
    task.check_weights(path)
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
        task.check_weights(path)
    assert str(path) in str(error.value.msg)


def test_the_weights_that_a_request_names_are_those_that_are_checked(lib, tmp_path):
    """As MONAI Label finds them: the name of the request, else the shortest one of the bundle's ``models/``."""
    from monailabel.interfaces.exception import MONAILabelException

    from models_genesis.networks import GenesisUNet, save_weights

    bundle = tmp_path / "genesis_lits_liver_ct_segmentation"
    tool = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"]
    tool(ROOT / "bundles" / bundle.name, bundle, {"features": [4, 8]})
    models = bundle / "models"
    weights = GenesisUNet(features=(4, 8), out_channels=2).state_dict()
    for name in ("model.pt", "best_so_far.pt"):
        save_weights(weights, models / name)
    torch.save({name: value * float("nan") for name, value in weights.items()}, models / "broken_ones.pt")
    outside = tmp_path / "outside.pt"
    save_weights(weights, outside)
    task = lib["inference"].CheckedInferTask(str(bundle), {}, load_strict=True)
    asked = [{}, {"model_filename": "best_so_far.pt"}, {"model_filename": ["model.pt", "best_so_far.pt"]}]
    assert [task.weights(request).name for request in asked] == ["model.pt", "best_so_far.pt", "model.pt"]
    with pytest.raises(MONAILabelException) as error:
        task({"image": "none", "model_filename": "broken_ones.pt"})
    assert str(models / "broken_ones.pt") in error.value.msg
    for name in (str(outside), "../../outside.pt", "models/model.pt", "..", {"a": 1}):
        with pytest.raises(MONAILabelException) as error:
            task({"image": "none", "model_filename": name})
        assert "expected a name without a folder" in error.value.msg
    with pytest.raises(MONAILabelException) as error:
        task({"image": "none", "model_filename": "lost.pt"})
    assert "expected one of ['best_so_far.pt', 'broken_ones.pt', 'model.pt']" in error.value.msg
    # whose name is the shortest, which MONAI Label loads though get_path() is model.pt
    save_weights(weights, models / "a.pt")
    assert lib["inference"].CheckedInferTask(str(bundle), {}, load_strict=True).weights({}).name == "a.pt"


def test_a_folder_in_the_name_of_the_weights_is_refused_by_training_too(trainer, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    with pytest.raises(MONAILabelException) as error:
        trainer({"model_filename": str(tmp_path / "model.pt")}, None)
    assert "expected a name without a folder" in error.value.msg


def test_training_goes_on_from_the_weights_that_a_request_names(lib, tmp_path, monkeypatch):
    """With their width; and MONAI Label would start again for a name of no file, and overwrite ``model.pt``."""
    from monailabel.interfaces.exception import MONAILabelException
    from monailabel.tasks.train.bundle import BundleTrainTask

    from models_genesis.training import save_trained_weights

    bundle = tmp_path / "genesis_lits_liver_ct_segmentation"
    tool = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"]
    tool(ROOT / "bundles" / bundle.name, bundle, {})
    task = lib["training"].GenesisTrainTask(str(bundle), {})
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(BundleTrainTask, "__call__", lambda self, request, store: asked.append(request) or {})
    for nothing in ({}, {"model_filename": []}, {"model_filename": ""}):  # as viewers send it before a first training
        task(nothing, None)
    assert [each["model_filename"] for each in asked] == ["model.pt"] * 3
    (bundle / "models").mkdir(exist_ok=True)
    for name, features in (("model.pt", [4, 8]), ("wide.pt", [8, 16])):
        save_trained_weights({"head.weight": torch.zeros(1)}, bundle / "models" / name, {"features": features})
    for given, features in (({}, [4, 8]), ({"model_filename": "wide.pt"}, [8, 16])):
        task(given, None)
        assert task._update_overrides({})["features"] == features
    assert asked[-1]["model_filename"] == "wide.pt"
    for given in ("lost.pt", ["lost.pt", "model.pt"]):
        with pytest.raises(MONAILabelException) as error:
            task({"model_filename": given}, None)
        assert "expected one of ['model.pt', 'wide.pt']" in error.value.msg and "found lost.pt" in error.value.msg
    assert len(asked) == 5


def segmentation(label: np.ndarray, affine: np.ndarray, names: dict[int, str], extra: tuple[str, ...] = ()) -> Any:
    """A DICOM segmentation in memory: the slices that have something of each value, numbered from 1, and empty ones."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

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
    made = of(SegmentSequence=[of(SegmentNumber=number, SegmentLabel=name) for number, name in numbered])
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SegmentationType, made.PhotometricInterpretation, made.SamplesPerPixel = "BINARY", "MONOCHROME2", 1
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 1, 1, 0, 0
    made.Rows, made.Columns, made.NumberOfFrames = label.shape[1], label.shape[0], len(frames)
    bits = np.packbits(np.array(frames, np.uint8).ravel(), bitorder="little").tobytes()
    made.PixelData = bits + b"\0" * (len(bits) % 2)
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
    for each in stored.PerFrameFunctionalGroupsSequence:
        each.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    frames = stored.PerFrameFunctionalGroupsSequence
    frames[2].PlanePositionSequence = frames[1].PlanePositionSequence
    stored.PixelData = b"\xff" * len(stored.PixelData)
    with pytest.raises(ValueError, match="expected segments that do not overlap"):
        place(stored, header, {"liver": 1})


def test_a_gap_between_slices_is_kept(lib):
    """An empty frame may be left out, so a slice without one has nothing drawn on it."""
    header, label = scan_and_label()
    label[:, :, 2] = 0  # of the slices 1 and 2 of one segment, and of 2 to 5 of the other
    stored = segmentation(label, header.affine, {2: "liver", 4: "bone"})
    found = lib["archive_labels"].place_segments(stored, header, {"liver": 2, "bone": 4})
    np.testing.assert_array_equal(found, label)


def test_a_grid_that_is_not_that_of_the_scan_is_refused(lib):
    """Of twice the size, whose voxels would be drawn with holes between them, of half the size, and turned in-plane."""
    place = lib["archive_labels"].place_segments
    header, label = scan_and_label()
    stored = segmentation(label, header.affine, {2: "liver", 4: "bone"})
    for factors, found in (((2, 2, 1), r"\[\[2.0, 0.0, 0.0\], "), ((0.5, 0.5, 1), r"\[\[0.5, 0.0, 0.0\], ")):
        scale = np.diag([*factors, 1.0])
        other = replace(header, shape=(40, 40, 7), affine=header.affine @ np.linalg.inv(scale))
        with pytest.raises(ValueError, match=rf"columns and rows of frame 1 to be one voxel apart .* steps of {found}"):
            place(stored, other, {"liver": 1})
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="expected columns and rows of frame 1 to be one voxel apart"):
        place(stored, replace(header, shape=(40, 40, 7), affine=header.affine @ turn), {"liver": 1})


def test_shares_are_not_taken_for_a_label(lib):
    """1 of 255 in a fractional segmentation is next to nothing."""
    header, label = scan_and_label()
    stored = segmentation(label, header.affine, {2: "liver"})
    shares = stored.pixel_array
    stored.BitsAllocated, stored.BitsStored, stored.HighBit, stored.PixelData = 8, 8, 7, shares.tobytes()
    for kind in ("FRACTIONAL", "LABELMAP"):
        stored.SegmentationType = kind
        with pytest.raises(ValueError, match=f"expected a SegmentationType of BINARY, found {kind}"):
            lib["archive_labels"].place_segments(stored, header, {"liver": 1})


@pytest.mark.parametrize(
    ("keyword", "sequence"),
    [
        ("SegmentationType", None),
        ("SegmentSequence", None),
        ("SegmentLabel", "SegmentSequence"),
        ("SegmentNumber", "SegmentSequence"),
        ("PerFrameFunctionalGroupsSequence", None),
        ("SegmentIdentificationSequence", "PerFrameFunctionalGroupsSequence"),
        ("PlanePositionSequence", "PerFrameFunctionalGroupsSequence"),
        ("PlaneOrientationSequence", "SharedFunctionalGroupsSequence"),
        ("PixelMeasuresSequence", "SharedFunctionalGroupsSequence"),
    ],
)
def test_a_segmentation_that_lacks_something_is_refused(lib, keyword, sequence):
    header, label = scan_and_label()
    stored = segmentation(label, header.affine, {2: "liver"})
    delattr(stored[sequence][0] if sequence else stored, keyword)
    with pytest.raises(ValueError, match=f"expected a {keyword} of .*, found none"):
        lib["archive_labels"].place_segments(stored, header, {"liver": 1})


class Archive:
    """Segmentations of one scan in memory, with what :func:`fetch_cases` asks of a datastore and of its client.

    Args:
        scan: file of the scan, whose name is ``1.5``.
    """

    def __init__(self, scan: Path) -> None:
        self.scan = scan
        self.stored: dict[str, Any] = {}
        self._client = self

    def store(self, segmentation: Any, series: str, time: str, date: str = "20260101", files: int = 1) -> None:
        from pydicom.dataset import Dataset

        scan = Dataset()
        scan.SeriesInstanceUID = "1.5"
        segmentation.ReferencedSeriesSequence = [scan]
        segmentation.StudyInstanceUID, segmentation.SeriesInstanceUID = "1.1", series
        segmentation.ContentDate, segmentation.ContentTime = date, time
        self.stored[series] = [segmentation] * files

    def list_images(self) -> list[str]:
        return ["1.5"]

    def get_image_uri(self, name: str) -> str:
        return str(self.scan)

    def search_for_series(self, search_filters: dict[str, str]) -> list[dict[str, Any]]:
        assert search_filters == {"Modality": "SEG"}
        return [self.retrieve_series_metadata("1.1", series)[0] for series in self.stored]

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        content = [each.to_json_dict() for each in self.stored[series]]
        return [{key: value for key, value in each.items() if key != "7FE00010"} for each in content]

    def retrieve_series(self, study: str, series: str) -> list[Any]:
        return self.stored[series]


@pytest.fixture
def labelled(tmp_path) -> tuple[Archive, Any, np.ndarray]:
    """The archive, the header of its scan, and a label map of it."""
    header, label = scan_and_label()
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.int16), header.affine), tmp_path / "scan.nii.gz")
    return Archive(tmp_path / "scan.nii.gz"), header, label


@pytest.mark.parametrize("newest_is_empty", [False, True])
def test_the_newest_segmentation_with_something_in_it_is_learned_from(lib, labelled, newest_is_empty):
    """By its time, whatever its identifier; OHIF stores empty segments of all labels of all models."""
    archive, header, label = labelled
    first, second = np.where(label == 2, 2, 0), np.where(label == 4, 2, 0)
    archive.store(segmentation(first, header.affine, {2: "liver"}), "1.9", "080000")
    if newest_is_empty:
        newest = segmentation(second, header.affine, {2: "bone"}, extra=("liver",))
    else:
        newest = segmentation(second, header.affine, {2: "liver"})
    archive.store(newest, "1.2", "090000")
    (case,) = lib["archive_labels"].fetch_cases(archive, {"liver": 1}, "bundle")
    expected = first if newest_is_empty else second
    np.testing.assert_array_equal(np.asarray(nib.load(case["label"]).dataobj), expected == 2)


def test_odd_segmentations_are_left_out_and_named(lib, labelled, caplog):
    """Each of them is newer than the sound one, and would end the training."""
    archive, header, label = labelled
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.10", "080000")
    odd = {}
    for number, keyword in enumerate(["SegmentSequence", "Rows", "PixelData", "PerFrameFunctionalGroupsSequence"], 11):
        odd[f"1.{number}"] = segmentation(label, header.affine, {2: "liver"})
        delattr(odd[f"1.{number}"], keyword)
    for series, each in odd.items():
        archive.store(each, series, "090000")
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.20", "090000", files=2)
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.21", "090000")
    del archive.stored["1.21"][0].ReferencedSeriesSequence
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.22", "090000")
    del archive.stored["1.22"][0].ReferencedSeriesSequence[0].SeriesInstanceUID
    (case,) = lib["archive_labels"].fetch_cases(archive, {"liver": 1}, "bundle")
    np.testing.assert_array_equal(np.asarray(nib.load(case["label"]).dataobj), label == 2)
    for series in (*odd, "1.20", "1.21", "1.22"):
        assert f"segmentation {series} " in caplog.text
    assert "expected one file in its series, found 2" in caplog.text


def test_a_scan_that_cannot_be_read_is_left_out_and_named(lib, labelled, caplog):
    archive, header, label = labelled
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.10", "080000")
    archive.scan.write_bytes(b"no scan")
    assert lib["archive_labels"].fetch_cases(archive, {"liver": 1}, "bundle") == []
    assert "segmentation 1.10 of scan 1.5 left out" in caplog.text


@pytest.mark.parametrize("step", ["search", "retrieve_series_metadata", "get_image_uri", "retrieve_series"])
def test_a_broken_connection_is_not_one_bad_scan(step, lib, labelled, monkeypatch):
    """With what can still be reached a training would overwrite the weights of all."""
    import requests

    archive, header, label = labelled
    archive.store(segmentation(label, header.affine, {2: "liver"}), "1.10", "080000")
    listed = archive.search_for_series({"Modality": "SEG"})
    monkeypatch.setattr(archive, "search_for_series", lambda search_filters: listed)

    class Sound:
        """A model with weights, of which no more is asked."""

        flips = (0,)

        def is_valid(self) -> bool:
            return True

        def weights(self, request: dict[str, Any]) -> Path:
            return archive.scan

    scoring = lib["uncertainty"].UncertaintyScoring("liver", Sound)
    monkeypatch.setattr(archive, "get_unlabeled_images", archive.list_images, raising=False)
    monkeypatch.setattr(archive, "get_image_info", lambda name: {}, raising=False)
    cut_off = requests.exceptions.ChunkedEncodingError
    for error in (requests.ConnectionError, requests.Timeout, cut_off, ConnectionError):

        def broken(*args: Any, error: type[Exception] = error, **kwargs: Any) -> Any:
            raise error("the archive does not answer")

        monkeypatch.setattr(archive, "search_for_series" if step == "search" else step, broken)
        with pytest.raises(error, match="the archive does not answer"):
            lib["archive_labels"].fetch_cases(archive, {"liver": 1}, "bundle")
        if step == "get_image_uri":
            task = lib["training"].PretrainTask(str(ROOT / "bundles" / "genesis_chest_ct_pretraining"), {})
            with pytest.raises(error, match="the archive does not answer"):
                task._fetch_datalist({}, archive)
            with pytest.raises(error, match="the archive does not answer"):
                scoring({}, archive)


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
