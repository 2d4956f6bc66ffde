# SPDX-License-Identifier: Apache-2.0
"""The studies in docs/evidence, and the makers of their data."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models_genesis.transfer.study import load_study
from models_genesis.transfer.subsets import read_cohort

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def maker(load_script):
    return load_script(ROOT / "tools" / "study_data.py")


@pytest.mark.parametrize("name", ["hippocampus", "hippocampus_people", "nodules", "candidates"])
def test_studies_fit_their_bundles(name):
    study = load_study(ROOT / "docs" / "evidence" / f"{name}.json")
    assert {arm.permute for arm in study.arms.values()} == {False, True}
    assert study.contrasts[0] == study.primary


def test_hippocampus_has_150_patients_to_train_and_58_to_test():
    cohort = read_cohort(load_study(ROOT / "docs" / "evidence" / "hippocampus.json"))
    assert (len(cohort.train), len(cohort.test)) == (150, 58)


def write(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


# patient, folds, planes of the crop, side of the crop
NODULES = [("a", 0, 2, 43), ("b", 7, 6, 47), ("c", 8, 40, 90), ("d", 8, 3, 44), ("d", 2, 4, 44)]
NODULES += [("LIDC-IDRI-0001", 8, 5, 43)]


@pytest.fixture(scope="module")
def nodules(maker, tmp_path_factory):
    """Crops whose grey value is the height in the world, in tenths of a mm, with a nodule through all planes."""
    source, out = tmp_path_factory.mktemp("voi"), tmp_path_factory.mktemp("fields")
    rows = []
    for number, (patient, fold, planes, side) in enumerate(NODULES):
        affine = np.array([[-0.7, 0, 0, 5], [0, -0.7, 0, 7], [0, 0, 2.5, -20 + number], [0, 0, 0, 1]])
        shape = (side, side + 1, planes)
        height = np.broadcast_to(10 * (2.5 * np.arange(planes) - 20 + number), shape)
        mask = np.zeros(shape, np.int16)
        mask[side // 2 - 3 : side // 2 + 3, side // 2 - 3 : side // 2 + 3] = 1
        name = f"n{number}.nii.gz"
        write(source / "image" / name, height.astype(np.int16), affine)
        write(source / "nodule_mask" / name, mask, affine)
        rows.append({"patient_id": patient, "luna16_fold": fold, "file": name})
    with (source / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    maker.nodules(source, out, 0)
    return out, json.loads((out / "dataset.json").read_text())


def test_all_nodules_have_one_field_and_none_is_padded(nodules):
    out, content = nodules
    for entry in content["training"] + content["testing"]:
        image, label = nib.load(out / entry["image"]), nib.load(out / entry["label"])
        assert image.shape == label.shape == (40, 40, 16)
        assert np.array_equal(image.affine, label.affine)
        # the nodule of the crop goes through all its planes, and so it does here
        assert np.asarray(label.dataobj).any(axis=(0, 1)).all()
        assert np.asarray(label.dataobj).sum() == 6 * 6 * 16
        # no plane of padding: heights rise from plane to plane, but for the outer halves of the first and last voxel
        heights = np.asarray(image.dataobj)[0, 0].astype(float)
        assert (np.diff(heights) >= 0).all()
        assert heights[-1] > heights[0]


def test_fields_are_where_their_crops_were(nodules):
    out, content = nodules
    for entry in content["training"] + content["testing"]:
        image = nib.load(out / entry["image"])
        planes = dict((f"image/n{number}.nii.gz", each[2]) for number, each in enumerate(NODULES))[entry["image"]]
        world = 10 * (image.affine[2, 2] * np.arange(16) + image.affine[2, 3])
        values = np.asarray(image.dataobj)[20, 20].astype(float)
        first = 10 * (image.affine[2, 3] - image.affine[2, 2] / 2) + 12.5  # middle of the crop's first plane
        expected = np.clip(world, first, first + 25 * (planes - 1))  # beyond the outer middles nothing is known
        assert values == pytest.approx(expected, abs=1)


def test_no_nodule_of_a_patient_that_was_seen_is_tested(nodules):
    _, content = nodules
    assert {entry["patient"] for entry in content["training"]} == {"a"}
    assert {entry["patient"] for entry in content["testing"]} == {"b", "c"}
    # of d one nodule lies in a training fold; 0001 is among the unlabelled scans
    assert set(content["left_out"]) == {"n3.nii.gz", "n4.nii.gz", "n5.nii.gz"}


def test_pretraining_gets_training_patients_without_masks(nodules):
    out, content = nodules
    pretraining = json.loads((out / "pretraining.json").read_text())
    assert [set(entry) for entry in pretraining["training"]] == [{"image", "patient"}] * len(content["training"])
    assert {entry["patient"] for entry in pretraining["training"]} == {"a"}


def test_candidates_lie_in_the_middle_of_their_scans(maker, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(-1000, 400, (3, 24, 24, 24)).astype(np.int16)
    np.savez(tmp_path / "candidates.npz", image=images, label=np.array([1, 0, 0], np.uint8))
    lines = ["index,patient,class", "0,5,1", "1,5,0", "2,7,0"]
    (tmp_path / "candidates.csv").write_text("\n".join(lines) + "\n")
    maker.candidates(tmp_path, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [entry["patient"] for entry in content["training"]] == ["p0005", "p0005", "p0007"]
    with (tmp_path / "out" / "candidates.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for entry, row, image in zip(content["training"], table, images, strict=True):
        scan = nib.load(tmp_path / "out" / entry["image"])
        assert np.array_equal(np.asarray(scan.dataobj), image)
        lps = np.array([float(row[side]) for side in ("coordX", "coordY", "coordZ")])
        voxel = np.linalg.inv(scan.affine) @ [*(lps * (-1, -1, 1)), 1]
        assert voxel[:3] == pytest.approx([11.5] * 3)
    (tmp_path / "candidates.csv").write_text("\n".join(lines).replace("2,7,0", "2,7,1") + "\n")
    with pytest.raises(ValueError, match="expected class 0 of cube 2"):
        maker.candidates(tmp_path, tmp_path / "out")


def test_pretraining_of_the_hippocampus_sees_no_test_patient():
    folder = ROOT / "docs" / "evidence"
    study, unlabelled = (
        json.loads((folder / f"hippocampus.{name}.json").read_text()) for name in ("datalist", "pretraining")
    )
    seen = [entry["patient"] for name in ("training", "validation") for entry in unlabelled[name]]
    assert sorted(seen) == sorted(entry["patient"] for entry in study["training"])
    assert not any("label" in entry for name in ("training", "validation") for entry in unlabelled[name])


TASK = ROOT.parent / "shared" / "data" / "msd" / "Task04_Hippocampus"
VOI = ROOT.parent / "shared" / "data" / "lidc" / "voi"


@pytest.mark.skipif(not TASK.is_dir(), reason="needs ../shared/data, which is not part of the project")
def test_the_committed_lists_of_the_hippocampus_are_what_the_tool_writes(maker, tmp_path):
    maker.hippocampus(TASK, tmp_path / "hippocampus.datalist.json", 0)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"hippocampus.{kind}.json" for kind in ("datalist", "pretraining", "tested", "weights")]
    for name in written:
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "evidence" / name).read_bytes(), name


@pytest.mark.skipif(not VOI.is_dir(), reason="needs ../shared/data, which is not part of the project")
def test_the_committed_list_of_the_nodules_is_what_the_tool_writes(maker, tmp_path):
    maker.nodule_crops(VOI, tmp_path / "nodules.weights.json")
    path = ROOT / "docs" / "evidence" / "nodules.weights.json"
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["hippocampus", "nodules"])
def test_no_patient_whose_scan_is_tested_trains_or_chooses_the_weights(name):
    content = json.loads((ROOT / "docs" / "evidence" / f"{name}.weights.json").read_text())
    parts = [{entry["patient"] for entry in content[key]} for key in ("training", "validation", "testing")]
    assert sum(map(len, parts)) == len(set.union(*parts)) and len(parts[1]) == sum(map(len, parts[:2])) // 10
    if name == "hippocampus":
        study = json.loads((ROOT / "docs" / "evidence" / "hippocampus.datalist.json").read_text())
        assert {entry["patient"] for entry in study["testing"]} == parts[2]


def test_the_probe_looks_at_training_patients_alone():
    lists = {
        kind: json.loads((ROOT / "docs" / "evidence" / f"hippocampus.{kind}.json").read_text())
        for kind in ("probe", "pretraining", "datalist")
    }
    training = {entry["patient"] for entry in lists["pretraining"]["training"]}
    probed = [{entry["patient"] for entry in lists["probe"][key]} for key in ("training", "validation")]
    assert probed[0].isdisjoint(probed[1]) and set.union(*probed) <= training
    assert training.isdisjoint(entry["patient"] for entry in lists["datalist"]["testing"])


def test_the_enclosed_weights_are_tested_on_other_people(maker):
    lists = {
        kind: json.loads((ROOT / "docs" / "evidence" / f"hippocampus.{kind}.json").read_text())
        for kind in ("weights", "tested")
    }
    seen = {maker.person_of(e["patient"]) for key in ("training", "validation") for e in lists["weights"][key]}
    tested = [entry["patient"] for entry in lists["tested"]["testing"]]
    assert len(tested) == 43 and not {maker.person_of(name) for name in tested} & seen
    assert {maker.person_of(name) for name in ("hippocampus_007", "hippocampus_008")} == {4}


@pytest.mark.skipif(not TASK.is_dir(), reason="needs ../shared/data, which is not part of the project")
def test_the_committed_lists_by_person_are_what_the_tool_writes(maker, tmp_path):
    maker.by_person(TASK, tmp_path / "hippocampus_people.datalist.json", 0)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "docs" / "evidence" / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 3


def test_no_person_is_in_two_parts_of_the_split_by_person(maker):
    lists = {
        kind: json.loads((ROOT / "docs" / "evidence" / f"hippocampus_people.{kind}.json").read_text())
        for kind in ("datalist", "pretraining", "probe")
    }

    def people(kind: str, key: str) -> set[str]:
        entries = lists[kind][key]
        for entry in entries:  # the list's patient is the person of the file
            number = maker.person_of(Path(entry["image"]).name.removesuffix(".nii.gz"))
            assert entry["patient"] == f"person_{number:03d}"
        return {entry["patient"] for entry in entries}

    train, test = people("datalist", "training"), people("datalist", "testing")
    assert train.isdisjoint(test) and (len(train), len(test)) == (111, 43)
    seen, validated = people("pretraining", "training"), people("pretraining", "validation")
    assert seen.isdisjoint(validated) and seen | validated == train
    fitted, scored = people("probe", "training"), people("probe", "validation")
    assert (len(fitted), len(scored)) == (8, 12) and fitted.isdisjoint(scored) and fitted | scored <= seen
