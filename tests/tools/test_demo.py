# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import doctest
import html
import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread, imsave
from monai.bundle import ConfigParser

from models_genesis.training import refuse_unknown_overrides
from models_genesis.transfer.study import load_study

ROOT = Path(__file__).resolve().parents[2]
TIMING = {
    "start": 10.0,
    "pretraining_step": 0.5,
    "fine_tuning_step": 0.25,
    "window": 0.01,
    "phantom_voxel": 1e-6,
    "device": "processor",
}


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("demo")


@pytest.fixture
def demo_report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("demo_report")


def all_stages(demo: Any, out: Path) -> list[Any]:
    settings = demo.Settings(out)
    return demo.pretraining(settings) + demo.fine_tuning(settings) + demo.comparing(settings)


def test_every_key_of_every_stage_is_one_of_its_bundle(demo, tmp_path):
    commands = [stage.command for stage in all_stages(demo, tmp_path)]
    runs = [command[len(demo.RUN) :] for command in commands if command[: len(demo.RUN)] == demo.RUN]
    assert len(runs) == len(commands) - 3  # the phantom, the study and its report
    for arguments in runs:
        refuse_unknown_overrides(["monai/bundle/__main__.py", "run", *arguments])


def test_every_stage_goes_on_from_the_pretrained_weights(demo, tmp_path):
    """The restoring ones by the configs' own default, fine-tuning by its key."""
    restoring = demo.restoring(demo.Settings(tmp_path))
    train, inference = (demo.PRETRAINING / "configs" / f"{name}.json" for name in ("train", "inference"))
    for stage, files in zip(restoring, ([train, train.with_name("evaluate.json")], [inference]), strict=True):
        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
        parser["ckpt_dir"] = stage.command[stage.command.index("--ckpt_dir") + 1]
        handlers = parser["handlers" if files == [inference] else "validate#handlers"]
        assert handlers[0]["_target_"] == "models_genesis.training.WeightLoader"
        prefix = "" if files == [inference] else "validate#"
        assert parser.get_parsed_content(f"{prefix}handlers#0#load_path") == str(tmp_path / "models" / "model.pt")
    train_livers = demo.fine_tuning(demo.Settings(tmp_path))[0].command
    assert train_livers[train_livers.index("--pretrained") + 1] == str(tmp_path / "models" / "model.pt")


def test_estimates_count_the_steps_that_the_stages_take(demo, tmp_path):
    settings = demo.Settings(
        tmp_path, patients=10, epochs=6, cubes_per_scan=10, pretraining_batch=3, val_cubes_per_scan=5
    )
    stages = {stage.title.split()[0]: stage.estimate(TIMING) for stage in demo.pretraining(settings)}
    # 8 scans of 10 cubes are 27 batches of 3; two validations (every third epoch) of 2 scans with 5 cubes
    assert stages["Pretrain"] == pytest.approx(10 + 6 * 27 * 0.5 + 2 * 10 * 0.01)
    assert stages["Measure"] == pytest.approx(10 + 10 * 0.01)


def test_the_last_epoch_is_validated_and_examples_hold(demo):
    for epochs in range(1, 30):
        assert epochs % demo.validation_interval(epochs, 3) == 0
    results = doctest.testmod(demo)
    assert results.failed == 0 and results.attempted >= 2


def test_the_allocator_is_set_where_the_user_did_not(demo, monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert demo.environment()["THP_MEM_ALLOC_ENABLE"] == "1"
    assert demo.environment()["MALLOC_MMAP_MAX_"] == "7"


def write_errors(out: Path, restored: float) -> None:
    folder = out / "restoration"
    folder.mkdir()
    header = "scan,cubes,mse_restored,mse_deformed,mse_mean_image\n"
    rows = f"{out}/phantom/imagesTr/a.nii.gz,5,{restored},0.13,0.04\nall,5,{restored},0.13,0.04\n"
    (folder / "restoration.csv").write_text(header + rows)
    imsave(folder / "restoration.png", np.zeros((4, 4)))


STUDY = {
    "answer": ["With 2 labelled patients, pretrained against scratch: Dice +0.123 <shown>."],
    "scores": [
        {"arm": "scratch", "score": 0.5, "by_seed": [0.4, 0.6]},
        {"arm": "pretrained", "score": 0.6234, "by_seed": [0.6, 0.65]},
    ],
}
STUDY_REPORT = '<!DOCTYPE html><p class="answer">"all" & more</p>'


def write_study_results(out: Path) -> None:
    (out / "study").mkdir()
    (out / "study" / "results.json").write_text(json.dumps(STUDY))
    (out / "study" / "report.html").write_text(STUDY_REPORT)


def write_results(out: Path, restored: float, dice: str) -> None:
    """What the stages leave behind, as far as the report reads it."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    image = np.zeros((6, 5, 7), np.int16)
    (out / "phantom" / "imagesTr").mkdir(parents=True)
    nib.save(nib.Nifti1Image(image, affine), out / "phantom" / "imagesTr" / "a.nii.gz")
    (out / "phantom" / "dataset.json").write_text(json.dumps({"validation": [{"image": "./imagesTr/a.nii.gz"}]}))
    write_errors(out, restored)
    write_study_results(out)
    folder = out / "restored" / "a"
    folder.mkdir(parents=True)
    for kind in ("deformed", "restored"):
        nib.save(nib.Nifti1Image(image, affine), folder / f"a_{kind}.nii.gz")
    for name in ("pretraining", "liver_training", "liver_evaluation"):
        (out / name).mkdir()
        imsave(out / name / ("a.png" if name == "liver_evaluation" else "history.png"), np.zeros((4, 4)))
    header = "case,region,dice,iou,surface_dice,hd95_mm,predicted_ml,label_ml\n"
    scores = f"{out}/phantom/imagesTr/a.nii.gz,liver,{dice},0.7,0.9,5,1400,1500\n"
    (out / "liver_evaluation" / "segmentation.csv").write_text(header + scores)


def page_of(demo: Any, demo_report: Any, out: Path, restored: float, dice: str) -> str:
    write_results(out, restored, dice)
    stages = [
        demo_report.StageRecord(stage.title, stage.command, stage.estimate(TIMING), 60.0)
        for stage in all_stages(demo, out)
    ]
    run = demo_report.Run(ROOT, stages, "processor", 4, demo.Settings(out).as_text())
    return demo_report.write_report(out, run).read_text()


def test_the_report_is_one_file_without_folders_of_the_machine(demo, demo_report, tmp_path):
    page = page_of(demo, demo_report, tmp_path / "results", 0.015, "0.86")
    for folder in (str(tmp_path), str(ROOT), sys.executable, sys.prefix):
        assert folder not in page
    assert "--out results/phantom" in page and "bundles/genesis_chest_ct_pretraining/configs/train.json" in page
    evaluation = "\"['bundles/genesis_chest_ct_pretraining/configs/train.json'"
    assert html.escape(evaluation) in page
    sources = re.findall(r'src="([^"]*)"', page)
    # a scan three ways, a liver, a picture of cubes, two curves
    assert len(sources) == 3 + 1 + 1 + 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert 'name="viewport"' in page


@pytest.mark.parametrize(
    ("restored", "dice", "kinds", "share"),
    [
        (0.015, "0.86", ["good", "good"], "38%"),
        (0.03, "0.5", ["bad", "bad"], "75%"),
        (0.02, "", ["good", "bad"], "50%"),
    ],
)
def test_the_answer_comes_first_and_is_what_was_measured(demo, demo_report, tmp_path, restored, dice, kinds, share):
    page = page_of(demo, demo_report, tmp_path / "results", restored, dice)
    shown = re.findall(r'<div class="answer (\w+)"><b>([^<]*)</b>', page)
    assert [kind for kind, _ in shown[:2]] == kinds
    assert shown[0][1] == share and shown[1][1] == (f"{float(dice):.2f}" if dice else "nan")
    order = [page.index(text) for text in ('class="answers"', "<img", "<details", "monai.bundle")]
    assert order == sorted(order)


def test_the_page_ends_with_the_study_its_answer_and_its_whole_report(demo, demo_report, tmp_path):
    page = page_of(demo, demo_report, tmp_path / "results", 0.015, "0.86")
    end = page[page.index("Does the pretraining help?") :]
    assert "monai.bundle run" not in end and "<h2>" not in end
    assert html.escape(STUDY["answer"][0]) in end
    cells = re.findall("<td>([^<]*)</td>", end)
    assert cells == ["scratch", "0.500", "0.400, 0.600", "pretrained", "0.623", "0.600, 0.650"]
    assert html.unescape(re.findall('srcdoc="([^"]*)"', end)[0]) == STUDY_REPORT


def test_the_study_is_one_of_its_bundle_and_starts_from_the_pretrained_weights(demo, tmp_path):
    settings = demo.Settings(tmp_path / "new", study_seeds=2, study_labels=3)
    demo.write_study(demo.SEGMENTATION, settings)
    arguments = demo.comparing(settings)[0].command[len(demo.TRANSFER) + 1 :]
    study = load_study(arguments[0])
    assert study.seeds == (0, 1) and study.labels == (3,) and not study.folds > 1
    assert [arm.weights for arm in study.arms.values()] == [None, "models/model.pt"]
    assert study.datalist == settings.out / "phantom" / "dataset.json"
    assert study.test_lists == ("validation",)
    trained = demo.fine_tuning(settings)[0].command
    for key in ("features", "cube_size", "batch_size", "flip_prob", "intensity_prob", "learning_rate"):
        value = {**study.overrides, **study.train_overrides, "learning_rate": study.rates.common}[key]
        assert json.loads(trained[trained.index(f"--{key}") + 1]) == value


def test_an_earlier_study_does_not_stand_in_the_way(demo, tmp_path):
    """Other weights behind an arm are refused in the folder of results, so a second demo starts with none."""
    settings = demo.Settings(tmp_path)
    write_study_results(tmp_path)
    with pytest.raises(FileExistsError, match="expected nothing or an earlier demo's results"):
        demo.write_study(demo.SEGMENTATION, settings)
    for own in ('{"name": "my_own_liver_study"}', "{}", "no study"):  # a study of somebody's own has such names, too
        (tmp_path / "study.json").write_text(own)
        with pytest.raises(FileExistsError, match="expected nothing or an earlier demo's results"):
            demo.write_study(demo.SEGMENTATION, settings)
        assert (tmp_path / "study" / "report.html").is_file() and (tmp_path / "study.json").read_text() == own
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(FileExistsError, match=r"study\.json: expected nothing"):
        demo.write_study(demo.SEGMENTATION, settings)
    (tmp_path / "study.json").unlink()
    demo.write_study(demo.SEGMENTATION, settings)
    former = {**json.loads((tmp_path / "study.json").read_text()), "name": "demo"}  # of an earlier version
    (tmp_path / "study.json").write_text(json.dumps(former))
    write_study_results(tmp_path)
    demo.write_study(demo.SEGMENTATION, settings)
    assert not (tmp_path / "study").exists() and (tmp_path / "study.json").is_file()


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR"])
def test_scans_are_seen_from_the_front_whatever_their_axes(demo_report, tmp_path, axcodes):
    voxels = np.zeros((5, 4, 4), np.int16)
    voxels[4, 3, 3] = 7  # the patient's right, head, in the middle of the second block from the back
    scan = nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 5.0, 1.0]))
    wanted = nib.orientations.axcodes2ornt(axcodes)
    turned = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), wanted))
    nib.save(turned, tmp_path / "scan.nii.gz")
    pixels, (width, height) = demo_report.front_view(tmp_path / "scan.nii.gz", 2)
    assert pixels[0, 0] == 7 and pixels.sum() == 7
    assert pixels.shape == (4, 5) and (width, height) == (10, 20)


def test_pictures_of_scans_show_the_hounsfield_range(demo_report, tmp_path):
    voxels = np.zeros((5, 3, 4), np.int16)
    voxels[0], voxels[4] = -2000, 1000
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    source = re.findall(r"base64,([^\"]*)", demo_report._scan_figure(tmp_path / "scan.nii.gz", "a scan", 4))[0]
    shades = imread(io.BytesIO(base64.b64decode(source)), format="png")[..., 0]
    assert shades[0, 0] == 1 and shades[0, -1] == 0 and shades[0, 2] == pytest.approx(0.5, abs=0.01)
