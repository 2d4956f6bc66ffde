# SPDX-License-Identifier: Apache-2.0
"""The settings of a training reach inference, evaluation, ``monai.bundle.load`` and MONAI Label with its weights."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load

from models_genesis.networks import GenesisUNet, save_weights
from models_genesis.training import CandidateScorer, ModelSettingsError, save_trained_weights
from models_genesis.training.engines.model_settings import network_entry
from models_genesis.training.engines.moved_keys import MOVED_KEYS
from models_genesis.training.handlers.run_settings import settings_of_run

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
LUNA, PECAD = "genesis_luna16_nodule_ct_classification", "genesis_pecad_embolism_ct_classification"
PRETRAINING = "genesis_chest_ct_pretraining"

SMALL: dict[str, Any] = {"features": [4, 8, 16], "cube_size": [32, 32, 16]}
CT = {**SMALL, "intensity_range": [-200, 300], "spacing": [2, 2, 2.5]}
TRAINED: dict[str, dict[str, Any]] = {
    LITS: {**CT, "tumour": True},
    LIDC: {**CT, "cube_size": [32, 24], "slice_axis": 0},
    BRATS: {**SMALL, "channels": ["t2", "flair"], "targets": ["whole tumour"], "normalise": "zscore"},
    MSD: {**CT, "task": "Task02_Heart", "normalise": "minmax"},
    LUNA: CT,
    PECAD: {**CT, "cube_size": [16, 16, 16], "slice_axes": [2, 1, 0], "vessel": True, "vessel_voxel_mm": 0.5},
    PRETRAINING: {**SMALL, "axcodes": "LPS", "intensity_range": [-200, 300], "variant": "nonlinear"},
}
OTHERS: dict[str, dict[str, Any]] = {
    LITS: {"tumour": False, "spacing": None, "intensity_range": [-1000, 1000], "features": [4, 8]},
    LIDC: {"spacing": None, "slice_axis": 1},
    BRATS: {"channels": ["flair", "t2"], "normalise": "minmax", "targets": ["tumour core"]},
    MSD: {"task": "Task04_Hippocampus", "normalise": "zscore"},
    LUNA: {"cube_size": [64, 64, 32], "spacing": [1, 1, 1]},
    PECAD: {"vessel": False, "vessel_voxel_mm": 1.0, "slice_axes": [1]},
    PRETRAINING: {"axcodes": "RAS", "intensity_range": [-1000, 1000]},
}
NAMES = sorted(TRAINED)
STAGES = [["inference"], ["train", "evaluate"]]
SETTINGS = "train#run#model_settings"
"""What a training writes next to its weights."""


def where(key: str) -> str:
    """The id at which a config has a setting of ``model.json``."""
    return MOVED_KEYS[key].id if key in MOVED_KEYS else key


def setting(config: ConfigParser, key: str) -> Any:
    """The value that a config has for a setting of ``model.json``: at its id, or where it is checked or recorded."""
    places = (where(key), f"settings_check#given#{key}", f"{SETTINGS}#{key}")
    return config.get_parsed_content(next(place for place in places if place in config))


def parser(bundle: str, stages: list[str], **settings: Any) -> ConfigParser:
    found = ConfigParser()
    found.read_config([str(ROOT / bundle / "configs" / f"{stage}.json") for stage in stages])
    found.update({"bundle_root": str(ROOT / bundle), "device": torch.device("cpu"), **settings})
    return found


@pytest.fixture
def trained(request, tmp_path) -> tuple[ConfigParser, Path]:
    """What a training with other settings than the default's leaves, and its config."""
    config = parser(request.param, ["train"], **TRAINED[request.param])
    state = config.get_parsed_content("network_def").state_dict()
    save_trained_weights(state, tmp_path / "models" / "model.pt", config.get_parsed_content(SETTINGS))
    return config, tmp_path / "models"


@pytest.mark.parametrize("stages", STAGES, ids="+".join)
@pytest.mark.parametrize(("bundle", "trained"), [(name, name) for name in NAMES], indirect=["trained"], ids=NAMES)
def test_keys_that_are_not_given_are_the_weights(bundle, trained, stages):
    config, folder = trained
    now = parser(bundle, stages, ckpt_dir=str(folder))
    for key in (*TRAINED[bundle], *now.get_parsed_content("model_settings")):
        assert setting(now, key) == setting(config, key), key
    now.get_parsed_content("settings_check")
    state = torch.load(folder / "model.pt", weights_only=True)
    now.get_parsed_content("network_def").load_state_dict(state)


@pytest.mark.parametrize("stages", STAGES, ids="+".join)
@pytest.mark.parametrize(("bundle", "trained"), [(name, name) for name in NAMES], indirect=["trained"], ids=NAMES)
def test_a_given_key_that_differs_is_refused_by_name(bundle, trained, stages):
    _, folder = trained
    for key, value in OTHERS[bundle].items():
        given = {"ckpt_dir": str(folder), key: value}
        with pytest.raises(RuntimeError) as error:
            parser(bundle, stages, **given).get_parsed_content("settings_check")
        assert isinstance(error.value.__cause__, ModelSettingsError)
        assert f"--{key}: trained with" in str(error.value.__cause__)
        allowed = parser(bundle, stages, **given, allow_changed_settings=True)
        allowed.get_parsed_content("settings_check")
        assert allowed.get_parsed_content(key) == value


@pytest.mark.parametrize("stages", STAGES, ids="+".join)
@pytest.mark.parametrize("bundle", NAMES)
def test_weights_without_settings_go_by_the_bundles_keys(bundle, stages, tmp_path):
    """The defaults are those of training, and any key may be given."""
    train = parser(bundle, ["train"], pretrained="none")  # else of the width of the enclosed weights
    now = parser(bundle, stages, ckpt_dir=str(tmp_path))
    assert now.get_parsed_content("model_settings") == {}
    recorded = train.get_parsed_content(SETTINGS)
    assert {key: setting(now, key) for key in recorded} == recorded
    given = parser(bundle, stages, ckpt_dir=str(tmp_path), **TRAINED[bundle])
    given.get_parsed_content("settings_check")
    assert all(given.get_parsed_content(key) == value for key, value in TRAINED[bundle].items())


@pytest.mark.parametrize("bundle", NAMES)
def test_run_checks_before_anything_is_read(bundle):
    for stage in ("inference", "evaluate"):
        content = json.loads((ROOT / bundle / "configs" / f"{stage}.json").read_text())
        assert content["run"][:2] == ["$refuse_unknown_overrides()", "$@settings_check"]
        checked = set(content["settings_check"]["given"])
        train = json.loads((ROOT / bundle / "configs" / "train.json").read_text())
        assert checked <= set(train["train"]["run"]["model_settings"])


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("bundle", NAMES)
def test_load_gives_the_network_of_the_weights_from_anywhere(bundle, kind, tmp_path, monkeypatch):
    """Also where the process stands in a folder with weights and settings of something else."""
    config = parser(bundle, ["train"], **TRAINED[bundle])
    state = config.get_parsed_content("network_def").state_dict()
    shutil.copytree(ROOT / bundle / "configs", tmp_path / bundle / "configs")
    weights = tmp_path / bundle / "models" / "model.pt"
    save_trained_weights(state, weights, config.get_parsed_content(SETTINGS))
    save_trained_weights(state, tmp_path / "other" / "models" / "model.pt", {"features": [2, 4]})
    monkeypatch.chdir(tmp_path / "other")
    network = load(bundle, bundle_dir=str(tmp_path), source="github", workflow_type=kind, device="cpu")
    loaded = network.state_dict()
    assert list(loaded) == list(state) and all(torch.equal(loaded[key], value) for key, value in state.items())


def bundle_with(bundle: str, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Lay a bundle with weights and nothing that describes them; MONAI's `load` goes by the config alone."""
    state = parser(bundle, ["train"], **{**TRAINED[bundle], **settings}).get_parsed_content("network_def").state_dict()
    shutil.copytree(ROOT / bundle / "configs", folder / bundle / "configs")
    save_weights(state, folder / bundle / "models" / "renamed.pt")
    torch.save({"model": state, "epoch": 3}, folder / bundle / "models" / "last_epoch.pt")
    return state


def loaded(bundle: str, folder: Path, file: str = "renamed.pt", **given: Any) -> Any:
    given = {"source": "github", "device": "cpu", **given}
    return load(bundle, bundle_dir=str(folder), model_file=f"models/{file}", **given)


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("bundle", NAMES)
def test_load_without_settings_gives_the_network_that_the_tensors_tell(bundle, kind, tmp_path):
    state = bundle_with(bundle, tmp_path)
    for file, entry in (("renamed.pt", None), ("last_epoch.pt", "model")):
        now = loaded(bundle, tmp_path, file, workflow_type=kind, key_in_ckpt=entry).state_dict()
        assert list(now) == list(state) and all(torch.equal(now[key], value) for key, value in state.items())


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_gives_all_tensors_or_says_which_are_left(kind, tmp_path, monkeypatch):
    """MONAI's `load` passes over what does not fit; only what the caller resizes may be random."""
    state = bundle_with(LITS, tmp_path)
    folder = tmp_path / LITS / "models"
    with pytest.raises(ModelSettingsError, match=r"expected all \d+ tensors of .*GenesisUNet, found 0; .*key_in_ckpt"):
        loaded(LITS, tmp_path, "last_epoch.pt", workflow_type=kind)
    torch.save({key: value for key, value in state.items() if key != "head.bias"}, folder / "partial.pt")
    with pytest.raises(ModelSettingsError, match=r"left over are head\.bias"):
        loaded(LITS, tmp_path, "partial.pt", workflow_type=kind)
    with pytest.raises(ModelSettingsError, match="encoder"):
        loaded(LITS, tmp_path, workflow_type=kind, net_override={"features": [4, 8, 32]})
    network = loaded(LITS, tmp_path, workflow_type=kind, net_override={"out_channels": 7})
    assert network.head.out_channels == 7
    kept = [key for key, value in network.state_dict().items() if torch.equal(value, state.get(key, value * 0))]
    assert set(state) - set(kept) == {"head.weight", "head.bias"}
    own = GenesisUNet(features=SMALL["features"], out_channels=7)
    warnings: list[str] = []
    monkeypatch.setattr("models_genesis.networks.bundle_load.logger.warning", warnings.append)
    loaded(LITS, tmp_path, model=own)
    assert len(warnings) == 1 and warnings[0].endswith("left over are head.weight, head.bias")


ELU = {"network_def#act": "elu", "network_def#batch_statistics": True}
SEGRESNET = {
    "_target_": "SegResNet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "in_channels": 1,
    "out_channels": "@out_channels", "act": ["leakyrelu", {"negative_slope": 0.2}],
}  # fmt: skip


def trained_in(bundle: str, folder: Path, entry: bool = True, **settings: Any) -> Path:
    """What a training leaves, with the entry on its network or, as before there was one, without."""
    config = parser(bundle, ["train"], **{**TRAINED[bundle], **settings})
    config.globals["entry"] = network_entry
    config["entry"] = "$entry(@network_def)"
    recorded = config.get_parsed_content(SETTINGS) | (config.get_parsed_content("entry") if entry else {})
    state = config.get_parsed_content("network_def").state_dict()
    save_trained_weights(state, folder / "models" / "model.pt", json.loads(json.dumps(recorded)))
    return folder / "models"


def refused(bundle: str, stages: list[str], folder: Path, key: str = "settings_check", **settings: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        parser(bundle, stages, ckpt_dir=str(folder), **settings).get_parsed_content(key)
    causes: list[BaseException] = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], ModelSettingsError)
    return str(causes[-1])


@pytest.mark.parametrize("stages", STAGES, ids="+".join)
@pytest.mark.parametrize("bundle", [LITS, LUNA, PRETRAINING])
def test_a_network_with_another_activation_than_the_weights_is_refused(bundle, stages, tmp_path):
    folder = trained_in(bundle, tmp_path, **ELU)
    message = refused(bundle, stages, folder)
    assert '--network_def#act: trained with "elu", given "relu"' in message
    assert "--network_def#batch_statistics: trained with true, given false" in message
    assert "Give those of the network" in message and "Leave the keys out" not in message
    assert "batch_statistics" in refused(bundle, stages, folder, **{"network_def#act": "elu"})
    assert "act" in refused(bundle, ["inference"], folder, "preprocessing", **{"network_def#batch_statistics": True})
    for allowed in (ELU, {"allow_changed_settings": True}, {**ELU, "network_def#use_checkpointing": True}):
        parser(bundle, stages, ckpt_dir=str(folder), **allowed).get_parsed_content("settings_check")
    plain = trained_in(bundle, tmp_path / "plain")
    parser(bundle, stages, ckpt_dir=str(plain), **{"network_def#act": "relu"}).get_parsed_content("settings_check")
    assert "act" in refused(bundle, stages, plain, **{"network_def#act": "elu"})
    earlier = trained_in(bundle, tmp_path / "earlier", entry=False)
    parser(bundle, stages, ckpt_dir=str(earlier), **ELU).get_parsed_content("settings_check")


@pytest.mark.parametrize("stages", STAGES, ids="+".join)
def test_another_network_than_the_weights_is_refused(stages, tmp_path):
    given = {"network_def": SEGRESNET}
    folder = trained_in(LITS, tmp_path, **given)
    state = torch.load(folder / "model.pt", weights_only=True)
    now = parser(LITS, stages, ckpt_dir=str(folder), **given)
    now.get_parsed_content("settings_check")
    now.get_parsed_content("network_def").load_state_dict(state)
    dotted = {"network_def": {**SEGRESNET, "_target_": "monai.networks.nets.SegResNet"}}
    parser(LITS, stages, ckpt_dir=str(folder), **dotted).get_parsed_content("settings_check")
    names = r"monai\.networks\.nets\..*SegResNet.*models_genesis\.networks\.GenesisUNet"
    assert re.search(names, refused(LITS, stages, folder))
    flatter = {"network_def": {**SEGRESNET, "act": ["leakyrelu", {"negative_slope": 0.1}]}}
    assert '--network_def#act: trained with ["leakyrelu", {"negative_slope": 0.2}]' in refused(
        LITS, stages, folder, **flatter
    )
    script = {"network_def": "$torch.nn.Identity()"}  # of a TorchScript the tensors are compared
    parser(LITS, stages, ckpt_dir=str(folder), **script).get_parsed_content("settings_check")


@pytest.mark.parametrize("bundle", [LITS, LUNA])
def test_fine_tuning_says_the_activation_of_its_weights_or_another_on_purpose(bundle, tmp_path):
    weights = trained_in(PRETRAINING, tmp_path, **{"network_def#act": "elu"}) / "model.pt"
    given = {"pretrained": str(weights), "cube_size": [32, 32, 16]}

    def start(**settings: Any) -> Any:
        config = parser(bundle, ["train"], **given, **settings)
        config["begin"] = "$load_pretrained_weights(@network_def, @pretrained)"
        return config.get_parsed_content("begin")

    with pytest.raises(RuntimeError) as error:
        start()
    assert isinstance(error.value.__cause__, ModelSettingsError)
    assert "act: trained with elu, here relu. Give --network_def#act" in str(error.value.__cause__)
    for act in ("elu", "relu"):
        assert start(**{"network_def#act": act}).matched


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_and_export_ask_for_the_activation_of_the_weights(kind, tmp_path):
    folder = trained_in(LITS, tmp_path / LITS, **ELU)
    shutil.copytree(ROOT / LITS / "configs", tmp_path / LITS / "configs")
    with pytest.raises(ModelSettingsError, match=r"expected the network that was trained, with \{'act': 'elu', 'batch"):
        loaded(LITS, tmp_path, "model.pt", workflow_type=kind)
    wanted = {"act": "elu", "batch_statistics": True}
    config = json.loads((ROOT / LITS / "configs" / "train.json").read_text())["network_def"] | wanted
    state = {"model": torch.load(folder / "model.pt", weights_only=True), "settings": {"network_def": config}}
    torch.save(state, folder / "last_epoch.pt")
    with pytest.raises(ModelSettingsError, match=r"expected the network that was trained, with \{'act': 'elu', 'batch"):
        loaded(LITS, tmp_path, "last_epoch.pt", workflow_type=kind, key_in_ckpt="model")
    network = loaded(LITS, tmp_path, "last_epoch.pt", workflow_type=kind, key_in_ckpt="model", net_override=wanted)
    again = GenesisUNet.from_pretrained(folder / "last_epoch.pt")
    assert wanted.items() <= network.architecture.items() and again.architecture == network.architecture
    network = loaded(LITS, tmp_path, "model.pt", workflow_type=kind, net_override=wanted)
    assert wanted.items() <= network.architecture.items()
    assert wanted.items() <= GenesisUNet.from_pretrained(folder / "model.pt").architecture.items()
    export = {
        "net_id": "network_def", "filepath": str(folder / "model.ts"), "ckpt_file": str(folder / "model.pt"),
        "config_file": str(ROOT / LITS / "configs" / "inference.json"), "ckpt_dir": str(folder),
        "meta_file": str(ROOT / LITS / "configs" / "metadata.json"),
    }  # fmt: skip
    with pytest.raises(ModelSettingsError, match="--network_def#act of ckpt_export"):
        ckpt_export(**export)
    ckpt_export(**export, **ELU)
    cube = torch.rand(1, 1, 16, 16, 8)
    torch.testing.assert_close(torch.jit.load(folder / "model.ts")(cube), network.eval()(cube))


@pytest.mark.parametrize("trained", [LITS], indirect=True)
def test_monai_labels_parts_of_the_config_carry_the_check(trained):
    """It asks for the network, the preprocessing, the inferer and the postprocessing, and runs nothing else."""
    config, folder = trained
    now = parser(LITS, ["inference"], ckpt_dir=str(folder))
    assert now.get_parsed_content("inferer").inferer.inferer.roi_size == config.get_parsed_content("cube_size")
    scale = now.get_parsed_content("preprocessing").transforms[-2]
    assert scale.scale.intensity_range == (-200, 300)
    with pytest.raises(RuntimeError) as error:
        parser(LITS, ["inference"], ckpt_dir=str(folder), spacing=[1, 1, 1]).get_parsed_content("preprocessing")
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], ModelSettingsError) and "--spacing" in str(causes[-1])


@pytest.mark.parametrize("trained", [LUNA], indirect=True)
def test_scoring_from_python_takes_them_too(trained):
    _, folder = trained
    scorer = CandidateScorer(ROOT / LUNA, ckpt_dir=folder, device="cpu")
    assert scorer.cubes.transforms[0].cube_size == tuple(SMALL["cube_size"])
    with pytest.raises(RuntimeError) as error:
        CandidateScorer(ROOT / LUNA, ckpt_dir=folder, device="cpu", overrides={"intensity_range": [-1000, 1000]})
    assert isinstance(error.value.__cause__, ModelSettingsError)


def cases(folder: Path) -> Path:
    """Three small livers in the layout of LiTS."""
    rng = np.random.default_rng(0)
    for number in (0, 1, 100):
        image = rng.normal(40, 5, (40, 40, 24)).astype(np.int16)
        image[:, :, :4] = -1000
        image[10:25, 12:28, 8:16] = 160
        for name, array in (("volume", image), ("segmentation", (image > 100).astype(np.uint8))):
            folder.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 2, 1])), folder / f"{name}-{number}.nii.gz")
    return folder


def run(stages: list[str], folder: Path, **settings: Any) -> ConfigWorkflow:
    given = {
        "bundle_root": str(ROOT / LITS), "dataset_dir": str(folder / "data"), "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"), "device": torch.device("cpu"), "overlap": 0.1, **settings,
    }  # fmt: skip
    files = [str(ROOT / LITS / "configs" / f"{stage}.json") for stage in stages]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **given)
    workflow.initialize()
    workflow.run()
    return workflow


def test_from_training_to_prediction_and_on(tmp_path):
    """A training of its own, inference and evaluation without a key, and two ways of going on."""
    cases(tmp_path / "data")
    own = {"features": [4, 8], "cube_size": [16, 16, 16], "intensity_range": [-1000, 600]}
    training = {
        "val_interval": 1, "warmup_epochs": 0, "cubes_per_case": 2, "batch_size": 2, "pretrained": "none",
        "amp": "false",
    }  # fmt: skip
    workflow = run(["train"], tmp_path, epochs="2", **own, **training)
    assert workflow.parser.get_parsed_content("amp") is False
    run(["inference"], tmp_path)
    taken = {path.name: path.read_bytes() for path in (tmp_path / "eval").rglob("*_seg.nii.gz")}
    run(["inference"], tmp_path, **own)
    given = {path.name: path.read_bytes() for path in (tmp_path / "eval").rglob("*_seg.nii.gz")}
    assert taken == given and len(taken) == 3
    run(["train", "evaluate"], tmp_path)
    described = json.loads((tmp_path / "models" / "model.json").read_text())["settings"]["network_def"]
    assert described["target"] == "models_genesis.networks.GenesisUNet" and described["arguments"]["act"] == "relu"
    with pytest.raises(RuntimeError) as error:
        run(["inference"], tmp_path, **{"network_def#act": "elu"})
    assert '--network_def#act: trained with "relu", given "elu"' in str(error.value.__cause__)
    state = torch.load(tmp_path / "models" / "last_epoch.pt", weights_only=True)
    assert state["settings"]["epochs"] == 2 and state["settings"]["intensity_range"] == [-1000, 600]
    with pytest.raises(RuntimeError) as error:
        run(["train"], tmp_path, epochs=4, resume=True, **own, **training)
    assert "last_epoch.pt was written with other settings: epochs 2 -> 4" in str(error.value.__cause__)
    run(["train"], tmp_path, epochs=4, resume=True, **{"train#run#resume_changed": True}, **own, **training)
    with (tmp_path / "eval" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["changed"] for row in rows] == ["", "", "epochs 2 -> 4", ""]
    rates = [float(row["learning_rate"]) for row in rows[2:]]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0


@pytest.mark.parametrize("bundle", NAMES)
def test_every_key_of_a_training_is_kept_with_it_or_known_not_to_matter(bundle):
    """What is not among the settings is a place, hardware, or says what is done with the result."""
    files = [str(ROOT / bundle / "configs" / "train.json")]
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False)
    content = workflow.parser.config
    gathered: list[dict[str, Any]] = []
    content["run"] = ["$gather()"]
    workflow.parser.globals["gather"] = lambda: gathered.append(settings_of_run())
    workflow.initialize()
    workflow.run()
    left_out = {key for key in content if key not in gathered[0]}
    assert left_out <= {
        "bundle_root", "dataset_dir", "datalist", "candidates", "output_dir", "ckpt_dir", "cache_dir",
        "pretrained", "split", "store", "device", "num_workers", "network", "precision", "inferer", "sw_batch_size",
        "imports", "initialize", "run", "resume", "on_bad_scan", "epochs", "metric_name", "eval_batch_size", "_meta_",
        "probe_datalist", "loading", "task",  # counted by its task_facts
    }  # fmt: skip
    assert {"batch_size", "learning_rate", "warmup_epochs", "seed", "features"} <= set(gathered[0])
    assert json.loads(json.dumps(gathered[0])) == gathered[0]


def test_stale_settings_stop_inference(tmp_path):
    config = parser(LIDC, ["train"], **TRAINED[LIDC])
    network = config.get_parsed_content("network_def")
    save_trained_weights(network.state_dict(), tmp_path / "model.pt", config.get_parsed_content(SETTINGS))
    save_weights({key: value + 1 for key, value in network.state_dict().items()}, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as error:
        parser(LIDC, ["inference"], ckpt_dir=str(tmp_path)).get_parsed_content("settings_check")
    assert isinstance(error.value.__cause__, ModelSettingsError) and "SHA-256" in str(error.value.__cause__)


@pytest.mark.parametrize("bundle", [name for name in NAMES if name != PRETRAINING])
def test_fine_tuning_takes_its_width_from_the_pretrained_weights(bundle, tmp_path):
    save_trained_weights({"head.weight": torch.ones(2, 1)}, tmp_path / "model.pt", {"features": [4, 8]})
    for given, width in (
        ({"pretrained": str(tmp_path / "model.pt")}, [4, 8]),
        ({"pretrained": "none"}, [64, 128, 256, 512]),
        ({"pretrained": str(tmp_path / "model.pt"), "features": [8, 16]}, [8, 16]),
    ):
        assert parser(bundle, ["train"], **given).get_parsed_content("features") == width
