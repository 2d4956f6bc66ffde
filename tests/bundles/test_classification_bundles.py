# SPDX-License-Identifier: Apache-2.0
"""The two classification bundles learn the phantom's candidates, in processes of their own, from another directory."""

from __future__ import annotations

import ast
import csv
import gc
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.metrics import compute_roc_auc
from scipy.special import logit

from models_genesis.datasets import load_candidates
from models_genesis.networks import GenesisUNet, save_weights
from models_genesis.training import CandidateScorer, score_candidates

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LUNA, PE = "genesis_luna16_nodule_ct_classification", "genesis_pecad_embolism_ct_classification"
BUNDLES = [LUNA, PE]
STAGES = ["train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate", "paper"]

SHAPE_OF = {
    LUNA: {"features": [8, 16, 32], "cube_size": [16, 16, 16]},
    PE: {"features": [8, 16, 32], "cube_size": [12, 12, 12], "vessel": True, "intensity_range": [-200, 600]},
}
TRAINING = {"warmup_epochs": 1, "learning_rate": 0.003, "train#augmentation#affine#prob": 0, "amp": False}
TRAINING_OF = {
    LUNA: {"epochs": 24, "val_interval": 6, "batch_size": 8, "max_shift": 1},
    PE: {"epochs": 36, "val_interval": 9, "batch_size": 16, "max_shift": 0, "negatives_per_positive": 1.3},
}


def config(bundle: str, stage: str) -> dict:
    return json.loads((ROOT / bundle / "configs" / f"{stage}.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path) -> dict:
    return json.loads((folder / "classification.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """What the pretraining bundle leaves: the plain state dict of a network of one input and one output channel."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pretraining") / "model.pt"
    save_weights(GenesisUNet(features=[8, 16, 32]).state_dict(), path)
    return path


@pytest.fixture(scope="module", params=BUNDLES)
def trained(request, run_bundle, data_of, weights, tmp_path_factory) -> tuple[str, Path, str]:
    """A finished training: the bundle, its folder and its log."""
    bundle, folder = request.param, tmp_path_factory.mktemp(request.param)
    given = {**data_of(bundle), **SHAPE_OF[bundle], **TRAINING, **TRAINING_OF[bundle], "pretrained": weights}
    done = run_bundle(bundle, ["train"], **given, output_dir=folder / "eval", ckpt_dir=folder / "models")
    return bundle, folder, done.stdout


@pytest.fixture(scope="module")
def evaluated(trained, run_bundle, data_of) -> Path:
    """The report of the test fold."""
    bundle, folder, _ = trained
    own = {**data_of(bundle), **SHAPE_OF[bundle], "ckpt_dir": folder / "models"}
    run_bundle(bundle, ["train", "evaluate"], **own, output_dir=folder / "test", split="testing")
    return folder / "test"


def test_it_learns_what_chance_does_not_give(trained, evaluated, data_of):
    """Without learning the AUC is 0.5, its variance (P + N + 1) / (12 P N) (Mann and Whitney); 3 deviations over it."""
    bundle, folder, log = trained
    assert "matched" in log and "pretrained" not in {path.name for path in folder.iterdir()}
    made = {path.name for path in (folder / "eval").iterdir() if "tfevents" not in path.name}
    assert made == {"history.csv", "history.png"}
    assert torch.load(folder / "models" / "last_epoch.pt", weights_only=True)["epoch"] == TRAINING_OF[bundle]["epochs"]
    summary = report(evaluated)
    ranking = summary["ranking"]
    positives, negatives = ranking["positives"], ranking["negatives"]
    spread = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    print(f"{bundle}: AUC {ranking['auc']:.3f}, {positives} positives, {negatives} negatives")
    assert ranking["auc"] > 0.5 + 3 * spread
    assert ranking["auc_low"] < ranking["auc"] < ranking["auc_high"]
    # the area of what was written for the challenge is that of the report
    data = load_candidates(data_of(bundle)["datalist"], data_of(bundle)["dataset_dir"], "testing")
    written = rows_of(evaluated / "predictions.csv")
    assert list(written[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    order = np.sort(np.concatenate(data.rows))
    assert [float(row["coordX"]) for row in written] == data.table.world[order, 0].tolist()
    values = torch.tensor([float(row["probability"]) for row in written], dtype=torch.float64)
    area = compute_roc_auc(values, torch.from_numpy(data.table.label[order].astype(int)))
    assert float(area) == pytest.approx(ranking["auc"], abs=1e-6)


def test_the_birth_certificate_lists_the_scans_of_both_parts(trained, data_of):
    bundle, folder, _ = trained
    certificate = json.loads((folder / "models" / "birth_certificate.json").read_text())
    for part in ("training", "validation"):
        expected = load_candidates(data_of(bundle)["datalist"], data_of(bundle)["dataset_dir"], part).data
        assert [scan["image"]["file"].split("/")[-1] for scan in certificate["data"][part]] == [
            Path(entry["image"]).name for entry in expected
        ]


def test_the_report_is_complete(trained, evaluated):
    bundle, _, _ = trained
    names = {path.name for path in evaluated.iterdir() if "tfevents" not in path.name}
    assert names == {
        "bad_rows.csv", "classification.csv", "classification.json", "curves.png", "froc.csv", "predictions.csv",
    }  # fmt: skip
    summary = report(evaluated)
    assert summary["froc"]["cpm"] == pytest.approx(np.mean(summary["froc"]["sensitivity"]))
    assert summary["rows_not_scored"] == 0 and not summary["bad_rows"]
    lines = {row["measure"]: row for row in rows_of(evaluated / "classification.csv")}
    assert float(lines["CPM"]["value"]) == pytest.approx(summary["froc"]["cpm"], abs=1e-4)
    assert float(lines["auc (DeLong)"]["low"]) == pytest.approx(summary["ranking"]["auc_low"], abs=1e-4)
    if bundle == LUNA:
        assert "LUNA16" in summary["hit_rule"]
        # each patient has two candidates on excluded findings; they are in the area and not among the false positives
        assert summary["marks"]["ignored"] == 2 * summary["scans"]
        curve = rows_of(evaluated / "froc.csv")
        false = summary["ranking"]["negatives"] - summary["marks"]["ignored"]
        assert float(curve[-1]["false_positives_per_scan"]) == pytest.approx(false / summary["scans"], rel=1e-4)


def evaluation(bundle: str, **overrides) -> ConfigWorkflow:
    files = [str(ROOT / bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    given = {key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()}
    workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **given)
    workflow.initialize()
    return workflow


def test_training_and_evaluation_agree_and_a_temperature_is_fitted_on_validation_alone(trained, evaluated, data_of):
    bundle, folder, _ = trained
    if bundle == PE:
        pytest.skip("the bundles share this part")
    own = {**data_of(bundle), **SHAPE_OF[bundle], "ckpt_dir": folder / "models", "device": torch.device("cpu")}
    fitted = {**own, "output_dir": folder / "validation", "calibrate": "temperature"}
    evaluation(bundle, **fitted, split="validation").parser.get_parsed_content("validate#evaluator").run()
    history = rows_of(folder / "eval" / "history.csv")
    found = report(folder / "validation")
    best = max(float(row["val_metric"]) for row in history if row["val_metric"])
    assert found["ranking"]["auc"] == pytest.approx(best, abs=1e-6)
    stored = json.loads((folder / "models" / "temperature.json").read_text())
    assert stored["nll_after"] <= stored["nll_before"] and stored["split"] == "validation"
    assert stored["nll_before"] == pytest.approx(found["nll"])
    # applied to the test fold: another probability, the same ranking
    calibrated = {**own, "output_dir": folder / "calibrated", "temperature": "calibrated"}
    evaluation(bundle, **calibrated, split="testing").parser.get_parsed_content("validate#evaluator").run()
    plain, scaled = (rows_of(folder / name / "predictions.csv") for name in ("test", "calibrated"))
    before, after = (np.array([float(row["probability"]) for row in rows]) for rows in (plain, scaled))
    np.testing.assert_allclose(logit(after) * stored["temperature"], logit(before), atol=1e-5)
    assert report(folder / "calibrated")["ranking"] == report(folder / "test")["ranking"]
    assert report(folder / "calibrated")["froc"] == report(folder / "test")["froc"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(trained, evaluated, data_of, tmp_path):
    bundle, folder, _ = trained
    given = {
        **data_of(bundle),
        **SHAPE_OF[bundle],
        "ckpt_dir": folder / "models",
        "split": "testing",
        "output_dir": tmp_path,
    }
    given = {**given, "eval_batch_size": 8, "device": torch.device("cpu")}

    def stop(engine):
        if engine.state.iteration == 3:
            raise KeyboardInterrupt

    workflow = evaluation(bundle, **given)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run()
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished.csv"}
    # as a process killed in the middle of a line leaves it
    with (tmp_path / "unfinished.csv").open("a") as file:
        file.write("7,0.1")
    # the lock of the table ends with what holds it, as it does with a process
    del workflow, evaluator
    gc.collect()
    workflow = evaluation(bundle, **given)
    assert len(workflow.parser.get_parsed_content("store").done) == 24
    scored = []
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: scored.append(len(engine.state.batch)))
    evaluator.run()
    assert sum(scored) == report(evaluated)["candidates"] - 24
    assert not (tmp_path / "unfinished.csv").exists()
    # a batch of another size may be summed in another order
    whole, parts = (rows_of(path / "predictions.csv") for path in (evaluated, tmp_path))
    assert [row["coordX"] for row in whole] == [row["coordX"] for row in parts]
    values = [[float(row["probability"]) for row in rows] for rows in (whole, parts)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)
    # other weights start a new file
    shutil.copytree(folder / "models", tmp_path / "models", ignore=shutil.ignore_patterns("model.json"))
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 0.5 for name, value in state.items()}, tmp_path / "models" / "model.pt")
    (tmp_path / "unfinished.csv").write_text("{}\n0,0.5\n")
    other = evaluation(bundle, **{**given, "ckpt_dir": tmp_path / "models"})
    assert len(other.parser.get_parsed_content("store").done) == 0


def test_inference_keeps_the_table_and_names_what_it_cannot_score(trained, evaluated, run_bundle, data_of, tmp_path):
    """The scans of the test fold and a broken one; rows of every fault; the same probabilities as the evaluation's."""
    bundle, folder, _ = trained
    data = load_candidates(data_of(bundle)["datalist"], data_of(bundle)["dataset_dir"], "testing")
    scans = tmp_path / "scans"
    scans.mkdir()
    for entry in data.data:
        for path in Path(entry["image"]).parent.glob(f"{entry['seriesuid']}.*"):
            shutil.copy(path, scans / path.name)
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    lines = data.table.path.read_text().splitlines()
    wanted = {entry["seriesuid"] for entry in data.data}
    good = [line for line in lines[1:] if line.split(",")[0] in wanted]
    name, width = good[0].split(",")[0], lines[0].count(",")
    bad = [
        f"{name},1,2",
        ",".join([name, "nan", "0", "0", "0"]) + "," * (width - 4),
        ",".join([name, "9999", "0", "0", "0"]) + "," * (width - 4),
        ",".join(["nobody", "0", "0", "0", "0"]) + "," * (width - 4),
        ",".join(["broken", "0", "0", "0", "0"]) + "," * (width - 4),
        good[3],
    ]
    table = [lines[0], bad[0], *good[:10], *bad[1:], *good[10:]]
    (tmp_path / "candidates.csv").write_text("\n".join(table) + "\n")
    own = {
        **SHAPE_OF[bundle],
        "dataset_dir": scans,
        "candidates": tmp_path / "candidates.csv",
        "ckpt_dir": folder / "models",
    }
    done = run_bundle(bundle, ["inference"], status=1, **own, output_dir=tmp_path / "out")
    assert "5 candidates could not be scored" in done.stderr
    written = (tmp_path / "out" / "candidates.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in written[2:]] == table[2:]
    assert written[0] == table[0] + ",probability" and written[1] == table[1]
    reasons = {int(row["line"]): row["reason"] for row in rows_of(tmp_path / "out" / "candidates_bad_rows.csv")}
    assert reasons == {
        2: "malformed row", 13: "bad coordinate", 14: "outside its scan", 15: "unknown seriesuid",
        16: "scan cannot be read", 17: "duplicate",
    }  # fmt: skip
    values = [line.rpartition(",")[2] for line in written[2:]]
    assert values[10:14] == [""] * 4 and values[14] == values[3]
    found = [float(value) for place, value in enumerate(values) if not 10 <= place < 15]
    expected = [float(row["probability"]) for row in rows_of(evaluated / "predictions.csv")]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_single_points_from_python(trained, evaluated, data_of):
    """The function for viewers gives what the evaluation gave, in either world's coordinates."""
    bundle, folder, _ = trained
    data = load_candidates(data_of(bundle)["datalist"], data_of(bundle)["dataset_dir"], "testing")
    rows = data.rows[0]
    series = data.data[0]["seriesuid"]
    expected = [
        float(row["probability"]) for row in rows_of(evaluated / "predictions.csv") if row["seriesuid"] == series
    ]
    scorer = CandidateScorer(ROOT / bundle, folder / "models", device="cpu", overrides=SHAPE_OF[bundle])
    points = data.table.world[np.sort(rows)]
    found = scorer(data.data[0]["image"], points)
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    assert set(found.reason) == {""}
    mixed = np.concatenate([points[:2] * (-1, -1, 1), [[1e5, 0, 0], [math.nan, 0, 0]]])
    options = {"ckpt_dir": folder / "models", "device": "cpu", "overrides": SHAPE_OF[bundle], "temperature": 2.0}
    once = score_candidates(ROOT / bundle, data.data[0]["image"], mixed, "RAS", **options)
    np.testing.assert_allclose(logit(once.probability[:2]), logit(expected[:2]) / 2, atol=1e-4)
    assert once.reason == ("", "", "outside its scan", "bad coordinate")
    assert np.isnan(once.probability[2:]).all()
    with pytest.raises(ValueError, match="cube_sise"):
        CandidateScorer(ROOT / bundle, folder / "models", overrides={"cube_sise": 1})


def test_two_processes_train_by_the_paper_s_settings_and_evaluate(run_two_processes, data_of, tmp_path):
    given = {**data_of(LUNA), **SHAPE_OF[LUNA], "ckpt_dir": tmp_path / "models", "pretrained": "none", "amp": False}
    own = {"epochs": 1, "samples_per_epoch": 24, "negatives_per_positive": 2, "output_dir": tmp_path / "paper"}
    run_two_processes(LUNA, ["train", "paper", "multi_gpu_train"], **given, **own)
    given |= {"split": "training", "output_dir": tmp_path / "evaluate"}
    run_two_processes(LUNA, ["train", "evaluate", "multi_gpu_evaluate"], **given)
    written = rows_of(tmp_path / "evaluate" / "predictions.csv")
    data = load_candidates(given["datalist"], given["dataset_dir"], "training")
    assert len(written) == sum(map(len, data.rows))  # each process scored its scans, one wrote all
    assert not list((tmp_path / "evaluate").glob("unfinished*"))


def default_of(value):
    """What a key is where the weights' own settings do not say it."""
    own = r"\$(?:settings_of_load..|@model_settings)\.get\('\w+'(?:\) or features_of_pretrained\(@pretrained)?, (.*)\)"
    found = re.fullmatch(own, value) if isinstance(value, str) else None
    return json.dumps(literal(found[1]) if found else value).strip('"$')


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_configs_of_a_bundle_agree(bundle):
    configs = {stage: config(bundle, stage) for stage in STAGES}
    train, inference, paper = configs["train"], configs["inference"], configs["paper"]
    shared = ["network_def", "precision", "network", "features", "cube_size", "spacing", "intensity_range"]
    assert [default_of(train[key]) for key in shared] == [default_of(inference[key]) for key in shared]
    assert inference["inferer"] == train["validate"]["inferer"]
    assert inference["cubes"] == train["validate"]["cubes"]
    assert train["validate"]["preprocessing"] == "%train#preprocessing"
    *steps, guard = inference["preprocessing"]["transforms"]
    assert steps == train["train"]["preprocessing"]["transforms"]
    assert guard["_target_"] == "models_genesis.training.ModelSettingsGuard"
    # the paper stops and halves the rate by the loss: less of it is better, for the evaluator and for the schedule
    assert set(paper["validate#key_metric"]) == {"val_loss"} and paper["train#run#metric"] == "loss"
    assert (paper["validate#evaluator#metric_cmp_fn"], paper["lr_scheduler"]["mode"]) == ("$operator.lt", "min")
    for stage in ("evaluate", "paper"):
        top = {key.split("#")[0] for key in configs[stage]}
        own = {"num_resamples", "model_settings", "store", "temperature", "calibrate", "+imports"}
        assert top - set(train) <= {*own, "allow_changed_settings", "settings_check"}, stage


@pytest.mark.parametrize(
    ("bundle", "patience", "cube"), [(LUNA, 10, [64, 64, 32]), (PE, 38, [64, 64, 64])], ids=["NCC", "ECC"]
)
def test_the_paper_s_settings(bundle, patience, cube):
    """arXiv:2004.07882, target tasks: Adam 1e-3, batch 24, cross-entropy, halving after 6 epochs, early stop."""
    paper = config(bundle, "paper")
    assert paper["optimizer"]["_target_"] == "torch.optim.Adam"
    assert (paper["learning_rate"], paper["batch_size"]) == (1e-3, 24)
    assert (paper["train#run#early_stop_patience"], paper["cube_size"]) == (patience, cube)
    assert (paper["lr_scheduler"]["factor"], paper["lr_scheduler"]["patience"]) == (0.5, 6)
    assert paper["lr_scheduler"]["min_lr"] == 1e-6
