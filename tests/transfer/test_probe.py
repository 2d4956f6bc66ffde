# SPDX-License-Identifier: Apache-2.0
"""A linear classifier on frozen features: fitted to other patients than it is tested on, scored as sklearn scores."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from models_genesis.networks import GenesisUNet
from models_genesis.training import save_trained_weights
from models_genesis.training.handlers.birth_certificate import write_birth_certificate
from models_genesis.transfer.__main__ import main
from models_genesis.transfer.embedding_files import load_with_settings
from models_genesis.transfer.probe import LabelledScans, Probe, read_labelled_scans, score_features
from models_genesis.transfer.probe_files import named_weights
from models_genesis.transforms import BadCaseError

SETTINGS = {"features": [4, 8, 16], "cube_size": [16, 16, 8], "intensity_range": [-1000, 1000]}
PATIENTS = 12


def make_scan(number: int, bright: bool) -> np.ndarray:
    """Noise, larger than the cube; the middle of a bright one is denser."""
    values = np.random.default_rng(number).normal(-600, 150, (20, 16, 12))
    values[6:14, 4:12, 3:9] += 500 * bright
    return values.astype(np.int16)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients with one scan of each class."""
    folder = tmp_path_factory.mktemp("scans")
    entries = []
    for number in range(2 * PATIENTS):
        patient, own = divmod(number, 2)
        name = f"{number:02}.nii.gz"
        nib.save(nib.Nifti1Image(make_scan(number, bool(own)), np.eye(4)), folder / name)
        entries.append({"image": name, "patient": f"P{patient}", "class": own})
    (folder / "scans.json").write_text(json.dumps({"training": entries[:16], "validation": entries[16:]}))
    return folder / "scans.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_trained_weights(GenesisUNet(features=(4, 8, 16)).state_dict(), path, SETTINGS)
    return path


@pytest.fixture(scope="module")
def scans(datalist: Path) -> LabelledScans:
    return read_labelled_scans(datalist, ["training", "validation"], folds=3)


def rewritten(datalist: Path, folder: Path, number: int, **changes: Any) -> Path:
    """The data list with one entry changed; None takes a key away."""
    content = json.loads(datalist.read_text())
    for entries in content.values():
        for entry in entries:
            entry["image"] = str(datalist.parent / entry["image"])
    entry = content["training"][number] | changes
    content["training"][number] = {key: value for key, value in entry.items() if value is not None}
    (folder / "changed.json").write_text(json.dumps(content))
    return folder / "changed.json"


@pytest.mark.parametrize("labels", [4, 6, "all"])
def test_no_patient_is_fitted_to_and_tested(scans: LabelledScans, labels: int | str) -> None:
    assert sorted(np.unique(scans.folds, return_counts=True)[1].tolist()) == [8, 8, 8]
    for fold in range(3):
        fitted = scans.fitted_to(fold, labels, seed=1)
        patients = np.asarray(scans.patients)
        assert not set(patients[fitted]) & set(patients[scans.folds == fold])
        assert len(set(patients[fitted])) == (8 if labels == "all" else labels)
        assert not np.any(scans.fitted_to(fold, 4, seed=1) & ~scans.fitted_to(fold, "all", seed=1))
    assert any((scans.fitted_to(fold, 4, 1) != scans.fitted_to(fold, 4, 2)).any() for fold in range(3))


def test_few_patients_are_of_both_classes() -> None:
    """Each patient has one scan, one in five with the class 1: four labelled patients are two of each."""
    patients = tuple(f"P{number}" for number in range(30))
    classes, folds = np.arange(30) % 5 // 4, np.arange(30) % 3
    scans = LabelledScans([{"image": patient} for patient in patients], classes, patients, folds)
    for seed in range(20):
        for fold in range(3):
            few, more = (scans.fitted_to(fold, count, seed) for count in (4, 9))
            assert sorted(classes[few].tolist()) == [0, 0, 1, 1] and not np.any(few & ~more) and more.sum() == 9
            scans.check(4, seed)
    with pytest.raises(ValueError, match=r"labels 3, fold 0: expected as many patients .* 1 with class 0 and 2 with"):
        scans.check(3, 0)


def test_features_that_tell_the_classes_are_found_and_those_of_the_patient_are_not(scans: LabelledScans) -> None:
    """One feature is the class, which orders all; who the patient is says nothing of other patients."""
    noise = np.random.default_rng(0).normal(size=(len(scans.patients), 3))
    told = np.column_stack([noise, 10.0 * scans.classes])
    patient = (np.asarray(scans.patients)[:, None] == np.unique(scans.patients)).astype(np.float64)
    for fold in range(3):
        tested = scans.folds == fold
        for features, area in ((told, 1.0), (patient, 0.5)):
            scores, _ = score_features(features, scans, "all", 0)
            assert roc_auc_score(scans.classes[tested], scores[tested]) == area


def test_scores_do_not_depend_on_the_classes_of_those_that_are_tested(scans: LabelledScans) -> None:
    features = np.random.default_rng(0).normal(size=(len(scans.patients), 5))
    before, _ = score_features(features, scans, "all", 0)
    tested = scans.folds == 1
    changed = np.where(tested, 1 - scans.classes, scans.classes)
    after, _ = score_features(features, LabelledScans(scans.data, changed, scans.patients, scans.folds), "all", 0)
    np.testing.assert_array_equal(before[tested], after[tested])
    assert (before[~tested] != after[~tested]).any()


def test_a_vector_is_the_mean_of_the_maps_over_the_middle(scans: LabelledScans, weights: Path) -> None:
    probe = Probe(scans, seeds=[0], norm_statistics="own")
    probe.add("a", *load_with_settings(weights))
    network = GenesisUNet.from_pretrained(weights).eval()
    middle = torch.from_numpy(make_scan(1, True)[2:18, :, 2:10]).float()
    # nibabel's identity affine is RAS, so nothing is turned
    with torch.no_grad():
        maps = network.encoder(((middle[None, None] + 1000) / 2000).clip(0, 1))
    expected = torch.cat([level.mean(dim=(0, 2, 3, 4)) for level in maps])
    np.testing.assert_allclose(probe._features["a"][0][1], expected, rtol=1e-4, atol=1e-6)


def test_the_tables_are_what_sklearn_makes_of_the_cases(
    datalist: Path, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["probe", "--images", str(datalist), "--split", "training", "validation", "--folds", "3", "--seeds", "3"]
    words += ["--labels", "4", "all", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, "--weights", f"one={weights}", f"two={weights}"]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "probe.csv").open()))
    cases = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    names = ["random, as one", "one", "two"]
    assert [(row["weights"], row["labels"], row["against"]) for row in rows] == [
        (name, labels, against)
        for labels in ("4", "all")
        for name, against in [(names[0], ""), ("one", names[0]), ("two", names[0]), ("two", "one")]
    ]
    areas = {}
    for name in names:
        for labels in ("4", "all"):
            own = [case for case in cases if (case["weights"], case["labels"]) == (name, labels)]
            assert len(own) == 2 * PATIENTS
            areas[name, labels] = np.mean(
                [
                    roc_auc_score([int(c["class"]) for c in part], [float(c[f"seed {seed}"]) for c in part])
                    for fold in "012"
                    for seed in range(3)
                    for part in [[case for case in own if case["fold"] == fold]]
                ]
            )
    for row in rows:
        area = areas[row["weights"], row["labels"]]
        assert float(row["auc"]) == pytest.approx(area) and f"{area:.3f}" in printed
        if row["against"]:
            assert float(row["difference"]) == pytest.approx(area - areas[row["against"], row["labels"]])
        if row["against"] == "one":  # the same weights under another name
            assert float(row["difference_low"]) == float(row["difference_high"]) == 0
    content = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert content["scans"] == {"patients": PATIENTS, "class 0": PATIENTS, "class 1": PATIENTS}
    assert content["weights"]["one"] == content["weights"]["two"] and content["labels"] == [4, "all"]
    assert content["weights"]["one"]["cube_size"] == [16, 16, 8] and content["norm_statistics"] == "scans"
    assert content["weights"]["one"]["trained_on"] is None  # not known, without a birth certificate
    assert all(sum(row["C"].values()) == 3 * 3 for row in content["penalties"])  # seeds and folds
    assert areas["one", "all"] > 0.9  # density is in the means of any network's maps


def test_random_weights_are_drawn_by_the_seed_alone(scans: LabelledScans, weights: Path, tmp_path: Path) -> None:
    """Not by the weights that they are compared to."""
    torch.manual_seed(5)
    other = tmp_path / "model.pt"
    save_trained_weights(GenesisUNet(features=(4, 8, 16)).state_dict(), other, SETTINGS)
    found = []
    for path in (weights, other):
        probe = Probe(scans, seeds=[3, 4])
        probe.add("a", *load_with_settings(path))
        found.append(probe._features["random, as a"])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0][0] - found[0][1]).max() > 0


def test_scans_that_the_weights_were_trained_on_are_named(
    scans: LabelledScans, datalist: Path, weights: Path, tmp_path: Path, caplog: Any
) -> None:
    own = tmp_path / "model.pt"
    own.write_bytes(weights.read_bytes())
    trained = {"training": [{"patient": "P3", "image": {"file": "06.nii.gz", "sha256": "0" * 64}}]}
    write_birth_certificate(own, SETTINGS, {"datalist": None, "pretrained": None}, trained, {})
    (tmp_path / "model.json").write_text((weights.parent / "model.json").read_text())
    with caplog.at_level(logging.WARNING):
        probe = Probe(scans, seeds=[0])
        probe.add("a", *load_with_settings(own))
    assert probe.sources["a"]["trained_on"] == [f"{n:02}.nii.gz (a patient of the same name, P3)" for n in (6, 7)]
    assert "probe: 2 of 24 scans were trained on by model.pt" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (change, "expected as a class the number 0 or 1, and a patient, found")
            for change in ({"class": None}, {"class": 2}, {"class": "1"}, {"class": True}, {"patient": None})
        ),
        ({"image": "gone.nii.gz"}, "gone.nii.gz"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_nothing_is_written(
    datalist: Path, weights: Path, tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str
) -> None:
    path = rewritten(datalist, tmp_path, 3, **changes)
    words = ["probe", "--weights", str(weights), "--images", str(path), "--out", str(tmp_path / "out"), "--folds", "2"]
    assert main([*words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and ("03.nii.gz" in error or "gone" in error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--labels", "9"],
            "labels 9, fold 0: expected as many patients outside of the fold",
        ),
        (["--labels", "1"], "found 1, 1 with class 0 and 1 with class 1"),
        (["--folds", "1"], "folds: expected 2 or more, found 1"),
        (["--folds", "13"], "expected patients of both classes for each of 13 folds, found 12 patients"),
        (["--seeds", "0"], "seeds: expected one or more"),
        (["--labels", "all", "4", "all"], "--labels: expected each number once, found ['all', 4, 'all']"),
        (["--cube_size", "8", "8", "8"], "--cube_size: trained with [16, 16, 8], given [8, 8, 8]"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    datalist: Path, weights: Path, tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    words = ["probe", "--weights", str(weights), "--images", str(datalist), "--out", str(tmp_path / "out")]
    words += ["--split", "training", "validation", "--folds", "3", "--seeds", "1", "--device", "cpu"]
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_other_cubes_are_not_compared(datalist: Path, weights: Path, tmp_path: Path, capsys: Any) -> None:
    """They would see more or less of each scan."""
    other = tmp_path / "model.pt"
    save_trained_weights(GenesisUNet(features=(4, 8, 16)).state_dict(), other, SETTINGS | {"cube_size": [8, 8, 8]})
    words = ["probe", "--weights", f"a={weights}", f"b={other}", "--images", str(datalist), "--folds", "2"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "expected one size of cube for all weights, found a [16, 16, 8], b [8, 8, 8]" in error
    assert not (tmp_path / "out").exists()


def test_names_of_others_are_refused(scans: LabelledScans, weights: Path) -> None:
    probe = Probe(scans, seeds=[0])
    probe.add("a", *load_with_settings(weights))
    for name in ("a", "random, as a"):
        with pytest.raises(ValueError, match=f"none that begins with random, found '{name}'"):
            probe.add(name, *load_with_settings(weights))


def test_networks_that_differ_have_random_ones_of_their_own(
    scans: LabelledScans, weights: Path, tmp_path: Path
) -> None:
    """Those that differ in nothing but settings that are spelled out share them."""
    probe = Probe(scans, seeds=[0])
    network, settings = load_with_settings(weights)
    probe.add("a", network, settings)
    probe.add("b", network, {**settings, "axcodes": "RAS", "normalise": "none", "spacing": None})
    other = GenesisUNet(features=(4, 8, 16), norm="instance").eval()
    other.weight_report = network.weight_report
    probe.add("c", other, settings)
    assert probe._baselines == {"a": "random, as a", "b": "random, as a", "c": "random, as c"}


def test_statistics_of_the_scans_are_those_that_random_weights_have(scans: LabelledScans, weights: Path) -> None:
    """Scaling what a batch norm gets changes nothing where the statistics are of the scans, and much where not."""
    scaled, settings = load_with_settings(weights)
    with torch.no_grad():
        scaled.encoder.levels[0].conv1.weight *= 3
        scaled.encoder.levels[0].conv1.bias *= 3
    found = {}
    for kind in ("scans", "own"):
        probe = Probe(scans, seeds=[0], norm_statistics=kind)  # type: ignore[arg-type]
        probe.add("a", *load_with_settings(weights))
        probe.add("b", scaled, settings)
        found[kind] = np.abs(probe._features["a"][0] - probe._features["b"][0]).max()
    assert found["scans"] < 1e-3 and found["own"] > 0.01


def test_scans_with_other_channels_are_refused(scans: LabelledScans, weights: Path) -> None:
    network, settings = load_with_settings(weights)
    other = GenesisUNet(in_channels=2, features=(4, 8, 16)).eval()
    other.weight_report = network.weight_report
    with pytest.raises(BadCaseError, match="expected 2 channels, found 1"):
        Probe(scans, seeds=[0]).add("a", other, settings)


def test_a_scan_that_is_there_twice_is_refused(datalist: Path, tmp_path: Path) -> None:
    path = rewritten(datalist, tmp_path, 3, image=str(datalist.parent / "00.nii.gz"))
    with pytest.raises(ValueError, match=r"expected each scan once, found .*00\.nii\.gz in 2 entries"):
        read_labelled_scans(path, folds=2)
    assert len(read_labelled_scans(datalist, ["training", "training"], folds=2).data) == 16


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert named_weights([f"{tmp_path}/a=b"]) == {f"{tmp_path}/a=b": f"{tmp_path}/a=b"}


@pytest.mark.parametrize("texts", [["a=x", "a=y"], ["=x"], ["a="]])
def test_names_of_weights_are_checked(datalist: Path, tmp_path: Path, capsys: Any, texts: list[str]) -> None:
    assert main(["probe", "--weights", *texts, "--images", str(datalist), "--out", str(tmp_path)]) == 2
    assert "expected NAME=WEIGHTS, each name once" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_refused(weights: Path, tmp_path: Path, capsys: Any, device: str) -> None:
    words = ["--weights", str(weights), "--images", str(tmp_path), "--out", str(tmp_path / "out"), "--device", device]
    for command in ("probe", "embed"):
        with pytest.raises(SystemExit):
            main([command, *words])
        assert f"expected a device of this machine, found '{device}'" in capsys.readouterr().err
