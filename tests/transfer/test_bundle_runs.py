# SPDX-License-Identifier: Apache-2.0
"""Runs of the real bundles, with tiny networks on tiny images."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models_genesis.networks import GenesisUNet, read_checkpoint
from models_genesis.networks.weight_files import save_weights
from models_genesis.training.engines.model_settings import save_trained_weights
from models_genesis.transfer.plan import Run
from models_genesis.transfer.results import VOLATILE, Results
from models_genesis.transfer.settings import Settings, weight_path
from models_genesis.transfer.slices import read_slices
from models_genesis.transfer.study import load_study, study_of
from models_genesis.transfer.subsets import choose_subset, read_cohort
from models_genesis.transfer.widths import check_widths
from models_genesis.transfer.workflow import Execution

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SIDE = 16


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


def study_file(folder, bundle, **content):
    common = {
        "name": "tiny",
        "bundle": str(BUNDLES / bundle),
        "datalist": "list.json",
        "dataset_dir": "data",
        "labels": [2],
        "seeds": [0, 1],
        "steps": 2,
        "rates": {"common": 0.01},
        "arms": {"scratch": {"pretrained": "none"}, "permuted": {"pretrained": "w.pt", "permute": True}},
        "primary": {"arm": "permuted", "against": "scratch"},
    }
    overrides = {"features": [4, 8], "cube_size": [SIDE] * 3, "batch_size": 2}
    path = folder / "study.json"
    path.write_text(json.dumps(common | content | {"overrides": overrides | content.get("overrides", {})}))
    save_weights(GenesisUNet(features=(4, 8)).state_dict(), folder / "w.pt")
    return path


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    """Bright balls in noise, in the layout of the Decathlon."""
    folder, generator = tmp_path_factory.mktemp("segmentation"), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    entries = []
    for number in range(6):
        centre = generator.uniform(5, 11, (3, 1, 1, 1))
        label = (np.sqrt(((grid - centre) ** 2).sum(axis=0)) < 4).astype(np.uint8)
        image = generator.normal(100, 10, (SIDE,) * 3) + 80 * label
        write_image(folder / "data" / f"i{number}.nii.gz", image.astype(np.int16))
        write_image(folder / "data" / f"l{number}.nii.gz", label)
        entries.append({"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", "patient": f"p{number}"})
    labels = {"0": "background", "1": "ball"}
    task = {"name": "Ball", "modality": {"0": "MRI"}, "labels": labels}
    (folder / "data" / "dataset.json").write_text(json.dumps(task | {"training": entries, "test": []}))
    content = {"labels": labels, "training": entries[:3], "testing": entries[3:]}
    (folder / "list.json").write_text(json.dumps(content))
    overrides = {"task": "$@dataset_dir + '/dataset.json'"}
    return study_file(folder, "genesis_msd_segmentation", score="dice", overrides=overrides)


def execution(path, out):
    study = load_study(path)
    return Execution(study, read_cohort(study), Results(out))


def kept(row):
    return {key: value for key, value in row.items() if key not in VOLATILE}


RUN = Run("main", "permuted", 2, 0, 0, 0.01)


def python_lines(command, variables):
    """Give the words of each call of Python in a command, as a shell reads it."""
    said = subprocess.run(
        ["bash", "-euc", f"function python {{ printf '%s\\0' \"$@\"; printf '\\0'; }}\n{command}"],
        check=True, env={**os.environ, **variables}, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [line.split("\0") for line in said.split("\0\0")[:-1]]


def test_runs_leave_nothing_behind_for_the_next_and_their_commands_do_the_same(segmentation, forked_python, tmp_path):
    """A run after another one, a run first of all, and the commands of its row in processes of their own agree."""
    after = execution(segmentation, tmp_path / "after")
    first = after(Run("main", "scratch", 2, 0, 1, 0.01))
    second = after(RUN)
    assert [row["error"] for row in (first, second)] == ["", ""]
    assert kept(execution(segmentation, tmp_path / "alone")(RUN)) == kept(second)
    result = tmp_path / "after" / "runs" / RUN.name
    table = (result / "cases.csv").read_text()
    assert (tmp_path / "alone" / "runs" / RUN.name / "cases.csv").read_text() == table

    out = tmp_path / "by_hand"
    (out / "runs" / RUN.name).mkdir(parents=True)
    (out / "runs" / RUN.name / "datalist.json").write_bytes((result / "datalist.json").read_bytes())
    places = {"OUT": out, "STUDY": segmentation.parent, "DATA": segmentation.parent / "data"}
    places["BUNDLE"] = BUNDLES / "genesis_msd_segmentation"
    for command in (second["train_command"], second["evaluate_command"]):
        for words in python_lines(command, {key: str(value) for key, value in places.items()}):
            done = forked_python([sys.executable, *words], tmp_path, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
    with (out / "runs" / RUN.name / "evaluation" / "segmentation.csv").open(newline="") as file:
        by_hand = {Path(row["case"]).name: float(row["dice"]) for row in csv.DictReader(file)}
    assert by_hand == {row["case"]: float(row["score"]) for row in csv.DictReader(table.splitlines())}
    assert set(by_hand) == {"i3.nii.gz", "i4.nii.gz", "i5.nii.gz"}


@pytest.mark.parametrize("permute", [False, True])
def test_weights_may_be_named_from_the_root(segmentation, permute):
    """As relative ones are: by what the run itself gets, by its hash, and by the commands of its row."""
    content = json.loads(segmentation.read_text())
    weights = str(segmentation.parent / "w.pt")
    found = {}
    for name in ("w.pt", weights):
        arm = {"pretrained": name, "permute": permute}
        study = study_of(content | {"arms": content["arms"] | {"permuted": arm}}, segmentation)
        subset = choose_subset(study, read_cohort(study), 2, 0, 0)
        settings = Settings(study)
        used = settings.train(RUN, subset, "work", "list.json")["pretrained"]
        found[name] = (used, weight_path(study, "permuted"), settings.commands(RUN, subset)["train_command"])
    relative, absolute = found.values()
    assert absolute[:2] == relative[:2] == ("work/permuted.pt" if permute else weights, Path(weights))
    assert "$STUDY/w.pt" in relative[2] and f"$STUDY/{weights}" not in absolute[2] and weights in absolute[2]


def test_arms_take_the_width_of_their_weights_the_permuted_one_that_of_its_source(segmentation, tmp_path):
    """No key of the study tells the width here, and the bundle's own is another one."""
    arms = {name: {"pretrained": "w.pt", "permute": name == "permuted"} for name in ("kept", "permuted")}
    content = json.loads(segmentation.read_text()) | {"arms": arms, "primary": {"arm": "kept", "against": "permuted"}}
    content |= {"datalist": str(segmentation.parent / "list.json"), "dataset_dir": str(segmentation.parent / "data")}
    del content["overrides"]["features"]
    path = tmp_path / "study.json"
    path.write_text(json.dumps(content))
    save_trained_weights(GenesisUNet(features=(4, 8)).state_dict(), tmp_path / "w.pt", {"features": [4, 8]})
    assert check_widths(load_study(path)) == []
    for arm in arms:
        row = execution(path, tmp_path / "out")(Run("main", arm, 2, 0, 0, 0.01))
        assert row["status"] == "done", row["error"]
        log = tmp_path / "out" / "runs" / Run("main", arm, 2, 0, 0, 0.01).name / "log.txt"
        assert "--features [4, 8]: those of the weights" in log.read_text()


def test_steps_of_a_study_are_steps_of_the_optimizer(segmentation):
    """Where gradients are accumulated, each has several batches; the schedule has as many steps as before."""
    content = json.loads(segmentation.read_text())
    found = []
    for accumulation_steps in (1, 3):
        study = study_of(content | {"train_overrides": {"accumulation_steps": accumulation_steps}}, segmentation)
        subset = choose_subset(study, read_cohort(study), 2, 0, 0)
        given = Settings(study).train(RUN, subset, "work", "list.json")
        found.append([given[key] for key in ("train#trainer#epoch_length", "cubes_per_case", "lr_scheduler#t_total")])
    assert found == [[2, 2, 2], [6, 6, 2]]


def test_arms_of_slices_stand_next_to_arms_of_cubes(segmentation, tmp_path):
    """From 2D weights, and from 3D ones by their centre slices; each arm has its own windows and batches."""
    content = json.loads(segmentation.read_text())
    save_weights(GenesisUNet(2, features=(4, 8)).state_dict(), segmentation.parent / "w2.pt")
    slices = {
        "overrides": {"slice_axis": 1, "cube_size": [8, 12]},
        "train_overrides": {"batch_size": 6},
        "evaluate_overrides": {"cube_size": [12, 16], "sw_batch_size": 8},
    }
    content["evaluate_overrides"] = {"cube_size": [SIDE] * 3, "sw_batch_size": 1}
    content["arms"] = {
        "cubes": {"pretrained": "none"},
        "slices": {"pretrained": "w2.pt", **slices},
        "centres": {"pretrained": "w.pt", **slices},
    }
    content["primary"] = {"arm": "slices", "against": "cubes"}
    path = segmentation.with_name("dimensions.json")
    path.write_text(json.dumps(content))
    study = load_study(path)
    runs = Execution(study, read_cohort(study), Results(tmp_path), keep_weights=True)
    for arm, axes in (("cubes", 3), ("slices", 2), ("centres", 2)):
        run = Run("main", arm, 2, 0, 0, 0.01)
        row = runs(run)
        assert row["error"] == "" and row["cases"] == 3
        state = read_checkpoint(tmp_path / "runs" / run.name / "model.pt")
        assert state["encoder.levels.0.conv1.weight"].ndim == axes + 2
        command = row["train_command"], row["evaluate_command"]
        windows = ("[16, 16, 16]", "[16, 16, 16]") if axes == 3 else ("[8, 12]", "[12, 16]")
        assert all(f"--cube_size '{window}'" in line for window, line in zip(windows, command, strict=True))
        assert f"--batch_size {2 if axes == 3 else 6}" in command[0]
        assert ("--slice_axis 1" in command[1]) == (axes == 2)
        log = (tmp_path / "runs" / run.name / "log.txt").read_text()
        assert ("centre slice of each kernel along axis 1" in log) == (arm == "centres")


def test_a_run_keeps_a_slice_of_each_case(segmentation, tmp_path):
    assert execution(segmentation, tmp_path)(RUN)["error"] == ""
    slices, regions = read_slices(tmp_path / "runs" / RUN.name / "slices.npz")
    assert regions == ["ball"]
    assert set(slices) == {"i3.nii.gz", "i4.nii.gz", "i5.nii.gz"}
    for case, each in slices.items():
        label = np.asarray(nib.load(segmentation.parent / "data" / case.replace("i", "l", 1)).dataobj)
        # the slice with the largest area of the ball, all of it
        assert (each.label == 1).sum() == label.sum(axis=(0, 1)).max()
        assert each.image[each.label == 1].mean() > each.image[each.label == 0].mean() + 50


def test_a_run_that_fails_in_the_bundle_says_why(segmentation, tmp_path):
    content = json.loads(segmentation.read_text())
    content["overrides"]["normalise"] = "zscore"
    content["arms"]["permuted"]["overrides"] = {"features": [4, 8, 16, 32, 64, 128]}
    path = segmentation.with_name("failing.json")
    path.write_text(json.dumps(content))
    row = execution(path, tmp_path)(RUN)
    assert row["status"] == "failed"
    assert row["error"]
    assert row["score"] is None
    assert (tmp_path / "runs" / RUN.name / "log.txt").read_text().count("Traceback")


def test_candidates_are_scored_by_their_auc(tmp_path):
    generator, entries = np.random.default_rng(0), []
    lines = ["seriesuid,coordX,coordY,coordZ,class"]
    for number in range(16):
        image = generator.normal(-800, 50, (SIDE,) * 3)
        image[6:10, 6:10, 6:10] += 600 * (number % 2)
        write_image(tmp_path / "data" / f"c{number}.nii.gz", image.astype(np.int16))
        lines.append(f"c{number},7.5,7.5,7.5,{number % 2}")
        entries.append({"image": f"c{number}.nii.gz", "seriesuid": f"c{number}", "patient": f"p{number // 2}"})
    (tmp_path / "data" / "candidates.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "list.json").write_text(json.dumps({"candidates": "candidates.csv", "training": entries}))
    path = study_file(
        tmp_path,
        "genesis_luna16_nodule_ct_classification",
        score="auc",
        split={"folds": 2},
        overrides={"max_shift": [1, 1, 1], "eval_batch_size": 8},
    )
    row = execution(path, tmp_path / "out")(RUN)
    assert row["error"] == ""
    table = (tmp_path / "out" / "runs" / RUN.name / "cases.csv").read_text()
    cases = list(csv.DictReader(table.splitlines()))
    assert len(cases) == row["cases"] == 8
    wins = [
        (float(a["score"]) > float(b["score"])) + 0.5 * (a["score"] == b["score"])
        for a in cases
        for b in cases
        if (a["label"], b["label"]) == ("1", "0")
    ]
    assert row["score"] == pytest.approx(np.mean(wins))
    for case in cases:
        assert int(case["label"]) == int(case["case"].split(":")[0][1:]) % 2
