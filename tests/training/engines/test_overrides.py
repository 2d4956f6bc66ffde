# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import json
import pydoc
import re
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigWorkflow

from models_genesis.training import OptionTypeError, UnknownOverrideError, refuse_unknown_overrides
from models_genesis.training.engines.moved_keys import MOVED_KEYS, WRITTEN_IN_CONFIG
from models_genesis.training.engines.overrides import convert_settings

PROGRAM = "/somewhere/site-packages/monai/bundle/__main__.py"
BUNDLES = Path(__file__).resolve().parents[3] / "bundles"
NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))
LITS = "genesis_lits_liver_ct_segmentation"


def workflow(name: str, *stages: str, **overrides) -> ConfigWorkflow:
    files = [str(BUNDLES / name / "configs" / f"{stage}.json") for stage in stages or ("train",)]
    return ConfigWorkflow(config_file=files, logging_file=False, **overrides)


@pytest.fixture
def configs(tmp_path):
    train, evaluate = tmp_path / "train.json", tmp_path / "evaluate.json"
    train.write_text(json.dumps({"epochs": 3, "train": {"trainer": {}}}))
    evaluate.write_text(json.dumps({"validate#handlers": [], "split": "test"}))
    return train, evaluate


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "1"],
        ["--epochs=1"],
        ["--train#trainer#max_epochs", "1"],
        ["--train::trainer::max_epochs", "1"],
        ["--meta_file", "m.json", "--tracking", "mlflow"],
        [],
    ],
)
def test_accepts_what_the_config_has(configs, options):
    refuse_unknown_overrides([PROGRAM, "run", "--config_file", str(configs[0]), *options])


@pytest.mark.parametrize("option", ["--epoch", "--epoch=1", "--tran#trainer#max_epochs"])
def test_refuses_a_key_that_would_change_nothing_and_names_the_nearest(configs, option):
    near = "train" if "tran" in option else "epochs"
    with pytest.raises(UnknownOverrideError, match=rf"did you mean --{near}\?"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", str(configs[0]), option, "1"])


@pytest.mark.parametrize("key", ["rank", "world_size", "early_stop", "loaded_settings"])
def test_what_is_no_key_of_a_bundle_any_more_is_refused_by_name(key):
    config = str(BUNDLES / LITS / "configs" / "train.json")
    with pytest.raises(UnknownOverrideError, match=f"--{key}: not a key of this bundle any more"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", config, f"--{key}", "1"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["early_stop", "inferer", "metric_name", "rank", "world_size"])
def test_nor_may_a_config_file_of_the_users_own_have_it(name, key):
    """The command line knows a key that any of the files has, so that the bundle's own files must count."""
    with pytest.raises(UnknownOverrideError, match=f"--{key}: not a key of this bundle any more"):
        convert_settings(workflow(name, **{key: {"_target_": "builtins.dict"}}))


def moved_keys_of(name: str) -> list[str]:
    """Keys that a bundle had at the top of its ``train.json``, by the components that take them now."""
    parser = workflow(name).parser
    found = []
    for key, moved in MOVED_KEYS.items():
        owner = parser.get(f"{moved.id.rpartition('#')[0]}#_target_", "")
        if owner.endswith(moved.owner) and not str(parser.get(moved.id)).startswith("@"):
            found.append(key)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_set_at_a_nested_id_now_is_refused_with_that_id(name):
    config = str(BUNDLES / name / "configs" / "train.json")
    keys = moved_keys_of(name)
    assert {"keep_last", "early_stop_patience", "cache_gib"} <= set(keys)
    for key in keys:
        found = re.escape(f"--{key}: not a key of this bundle any more") + f".* it is --{MOVED_KEYS[key].id} now"
        with pytest.raises(UnknownOverrideError, match=found):
            refuse_unknown_overrides([PROGRAM, "run", "--config_file", config, f"--{key}", "1"])
        if key == "keep_last":  # in Python too, and the user may have a key of this name that something refers to
            with pytest.raises(UnknownOverrideError, match=found):
                convert_settings(workflow(name, keep_last=1))
            convert_settings(workflow(name, **{"keep_last": 1, MOVED_KEYS[key].id: "@keep_last"}))


def test_a_moved_key_is_named_by_its_id_where_whole_scans_are_deformed():
    config = str(BUNDLES / "genesis_chest_ct_pretraining" / "configs" / "inference.json")
    with pytest.raises(UnknownOverrideError, match="it is --deformation#mask_ratio now"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", config, "--mask_ratio", "0.5"])


def test_every_moved_key_belongs_to_a_bundle_and_has_the_default_that_it_had():
    """The Python default, or the config's value; and it takes the same kinds of values as before."""
    assert {key for name in NAMES for key in moved_keys_of(name)} == set(MOVED_KEYS)
    for name in NAMES:
        parser = workflow(name).parser
        for key in moved_keys_of(name):
            moved = MOVED_KEYS[key]
            *parents, last = moved.id.split("#")
            component = parser.get("#".join(parents))
            written = component.get(last, WRITTEN_IN_CONFIG)
            if moved.default is WRITTEN_IN_CONFIG:
                assert written is not WRITTEN_IN_CONFIG, key
            else:
                assert written in (WRITTEN_IN_CONFIG, moved.default)
                taken = inspect.signature(pydoc.locate(component["_target_"])).parameters[last].default
                assert taken == moved.default or list(taken) == moved.default, key


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (LITS, {"train#run#keep_last": "5", "train#run#save_every_minutes": "none"}, [5, None]),
        (LITS, {"optimizer#params#slow_parts": "['encoder']"}, [["encoder"]]),
        (LITS, {"train#run#resume_changed": "false", "train#dataset#cache_gib": "4"}, [False, 4]),
        ("genesis_luna16_nodule_ct_classification", {"loss#focal_gamma": "2", "network_def#dropout": "0.5"}, [2, 0.5]),
        ("genesis_chest_ct_pretraining", {"deformation#mask_patch": "[8, 8, 4]"}, [[8, 8, 4]]),
    ],
)
def test_what_has_a_python_default_is_converted_at_its_nested_id(name, given, expected):
    checked = workflow(name, **given)
    assert convert_settings(checked) == dict(zip(given, expected, strict=True))
    assert [checked.parser[key] for key in given] == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (LITS, {"train#run#keep_last": "none"}),
        (LITS, {"train#run#early_stop_patience": 2.5}),
        (LITS, {"optimizer#params#slow_parts": "encoder"}),
        ("genesis_luna16_nodule_ct_classification", {"train#augmentation#affine#prob": 2}),
        ("genesis_luna16_nodule_ct_classification", {"train#augmentation#affine#scale_range": [0.1, 0.1]}),
        ("genesis_chest_ct_pretraining", {"deformation#mask_patch": [8, 8.5, 4]}),
    ],
)
def test_and_refused_by_it(name, given):
    with pytest.raises(OptionTypeError, match=f"--{next(iter(given))}: expected "):
        convert_settings(workflow(name, **given))
    with pytest.raises(OptionTypeError, match=r"--train#augmentation#affine#prob: expected .*found None"):
        dropped = {"train#augmentation#affine#prob": "None"}
        convert_settings(workflow("genesis_luna16_nodule_ct_classification"), dropped)


def test_merged_configs_know_the_keys_of_both(configs):
    both = f"['{configs[0]}','{configs[1]}']"
    refuse_unknown_overrides([PROGRAM, "run", "--config_file", both, "--split", "a", "--epochs", "2"])
    with pytest.raises(UnknownOverrideError, match="--splits"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", both, "--splits", "a"])


def test_the_keys_of_an_args_file_are_held_to_the_same(configs, tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": str(configs[0]), "epoch": 1}))
    with pytest.raises(UnknownOverrideError, match="--epoch "):
        refuse_unknown_overrides([PROGRAM, "run", "--args_file", str(arguments)])


def test_other_programs_are_left_alone():
    refuse_unknown_overrides(["/usr/bin/monailabel", "--epoch", "1"])


PRETRAINING, LUNA = "genesis_chest_ct_pretraining", "genesis_luna16_nodule_ct_classification"


@pytest.mark.parametrize(
    ("name", "stages", "overrides", "named"),
    [
        (PRETRAINING, ("train",), {"cube_size": [64, 64]}, "a list of 3 sides, two where --slice_axis is 0, 1 or 2"),
        (PRETRAINING, ("train",), {"slice_axis": 1}, "a list of 2 sides, for --slice_axis is 1, found [64, 64, 32]"),
        (PRETRAINING, ("train", "2d"), {"cube_size": [64, 64, 32]}, "a list of 2 sides, for --slice_axis is 2"),
        (LITS, ("train",), {"cube_size": [64, 64]}, "a list of 3 sides, two where --slice_axis is 0, 1 or 2"),
        (LITS, ("train", "2d"), {"slice_axis": None}, "a list of 3 sides, two where --slice_axis is 0, 1 or 2"),
        (
            LUNA,
            ("train",),
            {"cube_size": [64, 64]},
            "a list of 3 sides, of which --slice_axes takes slices, found [64, 64]",
        ),
    ],
)
def test_a_cube_of_two_sides_needs_an_axis_and_one_of_three_has_none(name, stages, overrides, named):
    with pytest.raises(OptionTypeError, match=re.escape(f"--cube_size: expected {named}")):
        convert_settings(workflow(name, *stages, **overrides))


def test_slices_have_two_sides():
    assert convert_settings(workflow(PRETRAINING, "train", "2d", cube_size=[96, 64], slice_axis=0)) == {}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("classification")])
def test_slices_across_several_axes_need_voxels_of_equal_sides(name):
    for stages, given in ((("train", "2.5d", "paper"), {}), (("train", "2.5d"), {"spacing": [1.0, 1.0, 2.0]})):
        with pytest.raises(OptionTypeError, match=r"--spacing: expected three equal sides .* --slice_axes \[2, 1, 0\]"):
            convert_settings(workflow(name, *stages, **given))
    assert convert_settings(workflow(name, "train", "paper", "2.5d")) == {}
    assert convert_settings(workflow(name, "train", "2d", "paper")) == {}
    if "vessel" in workflow(name, "train").parser.config:  # vessel cubes have voxels of equal sides in any scan
        assert convert_settings(workflow(name, "train", "2.5d", spacing=None, vessel=True)) == {}


@pytest.mark.parametrize("stages", [("train",), ("train", "paper"), ("train", "evaluate"), ("inference",)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_as_it_is_has_nothing_to_convert(name, stages):
    assert convert_settings(workflow(name, *stages)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_every_switch_and_number_of_every_bundle_are_read_as_such(name):
    for stage in ("train", "inference"):
        content = json.loads((BUNDLES / name / "configs" / f"{stage}.json").read_text())
        plain = {key: value for key, value in content.items() if isinstance(value, bool | int | float)}
        texts = {key: str(value).lower() for key, value in plain.items()}
        assert "amp" in texts
        checked = workflow(name, stage, **texts)
        assert convert_settings(checked) == plain
        assert {key: checked.parser.get_parsed_content(key) for key in plain} == plain


CONVERTED = [
    ({"tumour": "false"}, {"tumour": False}),
    ({"resume": "False", "amp": "true"}, {"resume": False, "amp": True}),
    ({"loss#softmax": "false"}, {"loss#softmax": False}),
    ({"train#dataloader#num_workers": "3"}, {"train#dataloader#num_workers": 3}),
    ({"train#dataloader#pin_memory": "true"}, {"train#dataloader#pin_memory": True}),
    ({"train#random_transforms#transforms#5#prob": "0.7"}, {"train#random_transforms#transforms#5#prob": 0.7}),
    ({"validate::dataset::on_bad_case": "skip"}, {}),
    ({"train#trainer#max_epochs": "7"}, {"train#trainer#max_epochs": 7}),
    ({"train#run#keep_last": "5"}, {"train#run#keep_last": 5}),
    ({"train#run#progress": "false"}, {"train#run#progress": False}),
    ({"optimizer#weight_decay": 0.1, "optimizer#amsgrad": "True"}, {"optimizer#amsgrad": True}),
    ({"loss": {"_target_": "DiceLoss", "softmax": "False"}}, {"loss#softmax": False}),
    ({"loss": {"_target_": "DiceLoss", "reduction": "none"}}, {}),
]


@pytest.mark.parametrize(("overrides", "expected"), CONVERTED)
def test_nested_ids_are_converted_alike(overrides, expected):
    checked = workflow(LITS, **overrides)
    assert convert_settings(checked) == expected
    for key, value in expected.items():
        assert checked.parser[key] is value or checked.parser[key] == value


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"train#trainer#max_epochs": "soon"}, "--train#trainer#max_epochs"),
        ({"loss#softmax": "perhaps"}, "--loss#softmax"),
        ({"optimizer#lr": True}, "--optimizer#lr"),
        ({"train#run#early_stop_patience": "long"}, "--train#run#early_stop_patience"),
        ({"loss": {"_target_": "DiceLoss", "softmax": "2"}}, "--loss#softmax"),
    ],
)
def test_nested_ids_are_refused_by_name(overrides, named):
    with pytest.raises(OptionTypeError, match=named):
        convert_settings(workflow(LITS, **overrides))


def test_a_nested_key_that_nothing_uses_is_refused():
    with pytest.raises(UnknownOverrideError, match=r"did you mean --train#handlers\?"):
        convert_settings(workflow(LITS, **{"train#handler": []}))
    convert_settings(workflow(LITS, **{"train#own": 4, "batch_size": "@train#own"}))


def test_so_is_a_misspelt_key_given_to_a_workflow_in_python():
    """MONAI accepts it silently: the default number of epochs would be trained."""
    typo = workflow(LITS, "train", epoch=1)
    with pytest.raises(UnknownOverrideError, match=r"epoch \(did you mean epochs\?\): .*nothing uses it"):
        convert_settings(typo)


@pytest.mark.parametrize(
    ("overlay", "options"),
    [
        ({"my_rate": 0.1, "learning_rate": "@my_rate"}, {}),
        ({"my_wd": 0.1, "optimizer#weight_decay": "%my_wd"}, {}),
        ({"initialize": ["$print(@epoch_)"], "epoch_": 1}, {}),
        ({"my_init": ["$print(1)"]}, {"init_id": "my_init"}),
        ({"_epoch": "a remark"}, {}),
        ({}, {"tracking": "mlflow"}),
    ],
)
def test_keys_of_the_users_own_are_accepted(overlay, options, tmp_path):
    overlay_file = tmp_path / "overlay.json"
    overlay_file.write_text(json.dumps(overlay))
    files = [str(BUNDLES / LITS / "configs" / "train.json"), str(overlay_file)]
    own = ConfigWorkflow(files, logging_file=False, bundle_root=str(BUNDLES / LITS), **options)
    own.parser.parse(True)  # as a workflow is when its run begins: macros are in place
    convert_settings(own)


def test_a_note_is_warned_of_and_a_key_of_another_stage_is_not(caplog):
    convert_settings(workflow(LITS, "train", description="my liver run"))
    assert "description is not in the bundle's configs, and nothing of the config uses it" in caplog.text
    caplog.clear()
    convert_settings(workflow(LITS, "inference", epochs=1))
    assert "nothing of the config uses it" not in caplog.text


def test_the_users_config_may_come_first(tmp_path):
    overlay_file = tmp_path / "mine.json"
    overlay_file.write_text(json.dumps({"epochs": 1}))
    files = [str(overlay_file), str(BUNDLES / LITS / "configs" / "train.json")]
    convert_settings(ConfigWorkflow(files, logging_file=False))


def test_none_which_monai_drops_is_set_or_refused():
    checked = workflow(LITS, spacing=[1, 1, 1])
    assert convert_settings(checked, {"spacing": "None", "config_file": "None"}) == {"spacing": None}
    assert checked.parser["spacing"] is None
    with pytest.raises(OptionTypeError, match="--epochs"):
        convert_settings(workflow(LITS), {"epochs": "None"})


@pytest.mark.parametrize("key", ["output_dir", "dataset_dir", "ckpt_dir", "candidates", "calibrate", "split", "store"])
@pytest.mark.parametrize(
    "written", ["1.10", "2024_11_28", "1_0", "0x10", "(old)", "1e3", "2024", "run", "run 3", "../2024_11_28"]
)
def test_a_name_stays_as_it_was_written_whatever_fire_makes_of_it(key, written):
    """Fire reads Python, where 2024_11_28 is a number."""
    stages = ("train", "evaluate")
    checked = workflow("genesis_luna16_nodule_ct_classification", *stages, **{key: DefaultParseValue(written)})
    convert_settings(checked, {key: written})
    assert checked.parser[key] == written


@pytest.mark.parametrize("key", ["output_dir", "dataset_dir", "ckpt_dir", "candidates", "split", "store"])
@pytest.mark.parametrize("written", ["run #3", "fold#1", "testing #2", "/data/fold#1"])
def test_a_name_with_a_number_sign_is_refused_since_nothing_keeps_it(key, written):
    """Fire takes it for a comment's begin, MONAI for the separator of its ids."""
    stages = ("train", "evaluate")
    checked = workflow("genesis_luna16_nodule_ct_classification", *stages, **{key: DefaultParseValue(written)})
    with pytest.raises(OptionTypeError, match=f"--{key}: expected a name without #, found '{written}'"):
        convert_settings(checked, {key: written})


@pytest.mark.parametrize("key", ["output_dir", "ckpt_dir", "cache_dir"])
def test_so_it_is_in_python_where_the_folder_would_be_made_under_another_name(key):
    checked = workflow(LITS, **{key: "/data/fold#1"})
    checked.initialize()
    with pytest.raises(OptionTypeError, match=f"--{key}: expected a name without #"):
        convert_settings(checked)


def test_a_name_in_quotes_of_its_own_is_what_they_enclose_and_numbers_stay_numbers():
    checked = workflow(LITS, "inference", output_dir="0x10", overlap=0.5, seed=2024)
    convert_settings(checked, {"output_dir": "'0x10'", "overlap": "5e-1", "seed": "2_024"})
    assert [checked.parser[key] for key in ("output_dir", "overlap", "seed")] == ["0x10", 0.5, 2024]


def test_conversion_comes_before_anything_uses_the_value():
    """Objects that `initialize` built with the text are built again."""
    checked = workflow(LITS, tumour="false", seed="7", features=[4, 8])
    checked.initialize()
    assert checked.parser.get_parsed_content("out_channels") == 3  # what the text would have meant
    checked.parser["run"] = ["$refuse_unknown_overrides()", "$@out_channels", "$@network_def.head.out_channels"]
    checked.parser.parse(reset=True)
    assert checked.run()[1:] == [2, 2]
    assert checked.parser.get_parsed_content("seed") == 7


def test_the_command_lines_single_dash_counts_too(configs):
    with pytest.raises(UnknownOverrideError, match="did you mean --epochs"):
        refuse_unknown_overrides([PROGRAM, "run", "--config_file", str(configs[0]), "-epoch", "1"])


def test_other_files_next_to_the_configs_do_not_matter(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "train.json").write_text((BUNDLES / LITS / "configs" / "train.json").read_text())
    (folder / "list.json").write_text("[1, 2]")
    (folder / "broken.json").write_text("{")
    (folder / "macro.json").write_text(json.dumps({"a": "%gone.json::b"}))
    checked = ConfigWorkflow(config_file=str(folder / "train.json"), logging_file=False, tumour="false")
    assert convert_settings(checked) == {"tumour": False}
