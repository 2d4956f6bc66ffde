# SPDX-License-Identifier: Apache-2.0
"""BraTS cases of every year are put together by name, channels in one order, patients in one split."""

from __future__ import annotations

import itertools
import json

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from models_genesis.datasets import ScanReader, list_brats, load_cases, load_datalist, load_labelled_cases
from models_genesis.datasets.__main__ import main

SPLITS = ("training", "validation", "testing")
ORDER = ("flair", "t1", "t1ce", "t2")


def write(path, shape=(5, 4, 3), value=1, affine=None):
    """Write a volume of one value: the sequence's number, so that the order of channels shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.full(shape, value, np.int16)
    if path.suffix == ".mha":
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(volume.T)), str(path))
    else:
        nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def write_case(root, year, name, number=0, parts=(*ORDER, "seg")):
    """Write a case as the given year named its files."""
    for part in parts:
        value = (*ORDER, "seg").index(part)
        if year == "2013":
            kind = {"flair": "MR_Flair", "t1": "MR_T1", "t1ce": "MR_T1c", "t2": "MR_T2", "seg": "OT"}[part]
            series = f"VSD.Brain{'_3more.XX' if part == 'seg' else ''}.XX.O.{kind}.{684 + 10 * number + value}"
            write(root / name / series / f"{series}.mha", value=value)
        elif year == "2023":
            kind = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}[part]
            write(root / name / f"{name}-{kind}.nii.gz", value=value)
        else:
            write(root / name / f"{name.split('/')[-1]}_{part}.nii{'.gz' if number % 2 else ''}", value=value)


NAMES = {
    "2013": [f"{grade}/{number:04d}" for grade in ("HG", "LG") for number in range(4)],
    "2018": [f"{grade}/Brats18_TCIA0{number}_{grade[0]}_1" for grade in ("HGG", "LGG") for number in range(4)],
    "2023": [f"BraTS-GLI-{number:05d}-{visit:03d}" for number in range(4) for visit in range(2)],
}


@pytest.mark.parametrize("year", list(NAMES))
def test_cases_of_each_year(year, tmp_path):
    for number, name in enumerate(NAMES[year]):
        write_case(tmp_path / "raw", year, name, number)
    assert main(["brats", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "list.json")]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["label_convention"] == year and content["modality"] == dict(zip("0123", ORDER, strict=True))
    enhancing = {"2013": "4", "2018": "4", "2023": "3"}[year]
    assert content["labels"][enhancing] == "enhancing tumour" and len(content["labels"]) == (5 if year == "2013" else 4)
    entries = [entry for split in SPLITS for entry in load_datalist(tmp_path / "list.json", tmp_path / "raw", split)]
    assert len(entries) == 8 and content["numTest"] > 0 and content["numValidation"] > 0
    load = LoadImage(reader=ScanReader, ensure_channel_first=True)
    for entry in entries:
        assert load(entry["image"]).amax((1, 2, 3)).tolist() == [0, 1, 2, 3]
        assert float(load(entry["label"]).max()) == 4
    # patients: HG/0001 and LG/0001 are two; two visits are of one, in one split
    patients = {split: {entry["patient"] for entry in content[split]} for split in SPLITS}
    assert len(set.union(*patients.values())) == (4 if year == "2023" else 8)
    for one, other in itertools.combinations(SPLITS, 2):
        assert not patients[one] & patients[other]


def test_one_channel_as_in_the_paper_and_another_order(tmp_path):
    for number in range(3):
        write_case(tmp_path / "raw", "2018", f"BraTS20_Training_00{number}", parts=("flair", "seg", "t2"))
    arguments = ["brats", "--root", str(tmp_path / "raw"), "--out", str(tmp_path / "list.json")]
    assert main([*arguments, "--modalities", "flair"]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    assert content["in_channels"] == 1 and content["training"][0]["image"].endswith("_flair.nii")
    assert len({entry["patient"] for split in SPLITS for entry in content[split]}) == 3
    assert main([*arguments, "--modalities", "t2,flair"]) == 0
    content = json.loads((tmp_path / "list.json").read_text())
    assert [path[-7:] for path in content["training"][0]["image"]] == ["_t2.nii", "air.nii"]
    assert main(arguments) == 2 and main([*arguments, "--modalities", "flair,dwi"]) == 2


def test_the_label_of_2020_with_another_name(tmp_path):
    write_case(tmp_path, "2018", "BraTS20_Training_355", parts=ORDER)
    write(tmp_path / "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    (scan,) = list_brats(tmp_path).scans
    assert scan.label == "BraTS20_Training_355/W39_1998.09.19_Segm.nii" and scan.split == "training"


def test_incomplete_cases_are_named(tmp_path):
    for number in range(4):
        write_case(tmp_path, "2018", f"case{number}")
    (tmp_path / "case0/case0_t1ce.nii").unlink()
    write(tmp_path / "case1/case1_t2.nii", shape=(5, 4, 2))
    write(tmp_path / "case2/case2_seg.nii", affine=np.diag([-1.0, 1, 1, 1]))
    write_case(tmp_path, "2018", "unlabelled", parts=ORDER)
    scans = {scan.patient: scan for scan in list_brats(tmp_path).scans}
    assert {name: (scan.reason, bool(scan.split)) for name, scan in scans.items()} == {
        "case0": ("sequence missing", False),
        "case1": ("channel of another shape", False),
        "case2": ("label in another space", False),
        "case3": ("", True),
        "unlabelled": ("", True),
    }
    assert scans["case0"].detail == "expected flair, t1, t1ce, t2, found no t1ce"
    assert scans["case1"].detail == "case1/case1_t2.nii: expected 5 x 4 x 3 voxels as the image, found 5 x 4 x 2"
    # a mirrored label of 5 voxels lies up to 8 voxels off
    assert "found voxels 8 apart" in scans["case2"].detail
    assert scans["unlabelled"].split == "testing" and not scans["unlabelled"].label


def test_a_visit_without_label_does_not_leak(tmp_path):
    # whatever the seed, a patient's unlabelled visit is not used where the labelled one trains
    for number in range(4):
        write_case(tmp_path, "2023", f"BraTS-GLI-0000{number}-000")
        write_case(tmp_path, "2023", f"BraTS-GLI-0000{number}-001", parts=ORDER)
    scans = list_brats(tmp_path).scans
    testing = {scan.patient for scan in scans if scan.split == "testing"}
    assert not testing & {scan.patient for scan in scans if scan.split in ("training", "validation")}
    left_out = [scan for scan in scans if scan.reason]
    assert len(left_out) == 4 - len(testing) and all(scan.reason == "label missing" for scan in left_out)


def test_years_are_not_mixed(tmp_path):
    write_case(tmp_path, "2018", "Brats18_2013_2_1")
    write_case(tmp_path, "2023", "BraTS-GLI-00001-000")
    with pytest.raises(ValueError, match=r"one meaning of the labels, found Brats18_2013_2_1 \(2018\), BraTS-GLI"):
        list_brats(tmp_path)
    assert len(list_brats(tmp_path, convention="2024").scans) == 2
    with pytest.raises(ValueError, match="convention: expected 'auto' or one of"):
        list_brats(tmp_path, convention="2017")


def test_repeated_sequences_are_refused(tmp_path):
    write_case(tmp_path, "2018", "case")
    write(tmp_path / "case/case_t1.nii.gz")
    with pytest.raises(ValueError, match=r"case_t1\.nii\.gz: expected one file a sequence, found case/case_t1.nii too"):
        list_brats(tmp_path)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected cases such as"):
        list_brats(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        list_brats(tmp_path / "nowhere")
    for modalities in ((), ("t1", "t1")):
        with pytest.raises(ValueError, match="modalities: expected some of"):
            list_brats(tmp_path, modalities)


def test_real_cases(shared, tmp_path):
    root = shared / "data/brats"
    assert main(["brats", "--root", str(root), "--out", str(tmp_path / "list.json")]) == 0
    entries = [
        entry for split in SPLITS for entry in load_datalist(tmp_path / "list.json", root, split, with_label=False)
    ]
    assert sorted(entry["patient"] for entry in entries) == ["TCGA_DU-7294", "TCGA_FG-6692"]
    assert all(len(entry["image"]) == 4 for entry in entries)
    check = ["check", "--datalist", str(tmp_path / "list.json"), "--root", str(root)]
    assert main([*check, "--modality", "MR", "--channels", "4"]) == 0
    assert main([*check, "--modality", "CT"]) == 1


def write_labels(root, name, values):
    """Write a case as from 2023 on, with these values in its label map."""
    write_case(root, "2023", name, parts=ORDER)
    label = np.zeros((5, 4, 3), np.uint8)
    label.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(label, np.eye(4)), root / name / f"{name}-seg.nii.gz")


def listed(root, *more):
    """List by the command line; give the exit code and the list."""
    out = root.parent / "list.json"
    out.unlink(missing_ok=True)
    code = main(["brats", "--root", str(root), "--out", str(out), *more])
    return code, json.loads(out.read_text()) if code == 0 else None


@pytest.mark.parametrize(
    ("code", "convention"),
    [("SSA", "2023"), ("MEN", "2023"), ("GoAT", "2023"), ("GLI", "2023"), ("MET", "2024"), ("ssa", "2023")],
)
def test_sub_challenges_whose_labels_are_the_adults(code, convention, tmp_path):
    root = tmp_path / "raw"
    for number in range(3):
        write_labels(root, f"BraTS-{code}-{number:05d}-000", (1, 2, 3))
    exit_code, content = listed(root)
    assert exit_code == 0 and content["label_convention"] == convention
    assert content["labels"]["2"] == "oedema" and content["labels"]["3"] == "enhancing tumour"
    assert listed(root, "--convention", "2018")[0] == 2 and listed(root, "--convention", "2024-ped")[0] == 2


def test_labels_of_children_s_tumours_are_never_guessed(tmp_path, capsys):
    """1 is enhancing from 2024 on and not in 2023, under the same names."""
    root = tmp_path / "raw"
    for number in range(3):
        write_labels(root, f"BraTS-PED-{number:05d}-000", (1, 2, 3, 4))
    assert listed(root)[0] == 2
    error = capsys.readouterr().err
    assert "BraTS-PED" in error and "2024-ped" in error and "2023" in error
    code, content = listed(root, "--convention", "2024-ped")
    assert code == 0 and content["labels"]["1"] == "enhancing tumour" and content["labels"]["4"] == "oedema"
    assert listed(root, "--convention", "2023")[1]["labels"]["3"] == "enhancing tumour"
    assert listed(root, "--convention", "2018")[0] == 2


@pytest.mark.parametrize(
    ("folder", "convention"),
    [
        ("ASNR-MICCAI-BraTS2023-PED-Challenge-TrainingData", "2023"),
        ("BraTS2024-PED-Challenge-TrainingData", "2024-ped"),
        ("BraTS-PEDs2024_Training", "2024-ped"),
        ("BraTS-PEDs_2025", "2024-ped"),
    ],
)
def test_the_folder_of_a_release_tells_the_year(folder, convention, tmp_path):
    for number in range(3):
        write_labels(tmp_path / folder, f"BraTS-PED-{number:05d}-000", (1, 2, 3))
    assert listed(tmp_path / folder)[1]["label_convention"] == convention


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("BraTS-PED-00001-000", "BraTS-GLI-00001-000"), "BraTS-PED"),
        (("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0002-1"), "gross tumour volume"),
        (("BraTS-XYZ-00001-000", "BraTS-XYZ-00002-000"), "XYZ is not known"),
    ],
)
def test_what_nobody_can_tell_is_refused(names, message, tmp_path, capsys):
    for name in names:
        write_labels(tmp_path / "raw", name, (1, 2))
    assert listed(tmp_path / "raw")[0] == 2
    assert message in capsys.readouterr().err


def test_adults_and_metastases_go_together_with_the_cavity(tmp_path):
    for number in range(2):
        write_labels(tmp_path / "raw", f"BraTS-GLI-{number:05d}-000", (1, 2, 3))
        write_labels(tmp_path / "raw", f"BraTS-MET-{number:05d}-000", (1, 2, 3, 4))
    assert listed(tmp_path / "raw")[1]["label_convention"] == "2024"


def test_training_refuses_a_convention_that_the_names_contradict(tmp_path):
    """With and without a data list, and with one that says nothing of its labels."""
    root = tmp_path / "raw"
    for number in range(3):
        write_labels(root, f"BraTS-PED-{number:05d}-000", (1, 2, 4))
    for convention, right in (("2018", False), ("2024", False), ("2023", True), ("2024-ped", True)):
        listing = listed(root, "--convention", "2024-ped")[1]
        del listing["label_convention"]
        (tmp_path / "mine.json").write_text(json.dumps(listing))
        for datalist in (None, tmp_path / "mine.json"):
            arguments = ("brats", datalist, root, "training", {"label_convention": convention}, ("flair",))
            if right:
                assert load_labelled_cases(*arguments)
            else:
                with pytest.raises(ValueError, match=r"BraTS-PED"):
                    load_labelled_cases(*arguments)


def test_images_alone_need_no_convention(tmp_path):
    for number, code in enumerate(("PED", "GLI", "XYZ")):
        write_case(tmp_path / "raw", "2023", f"BraTS-{code}-{number:05d}-000", parts=ORDER)
    assert len(load_cases("brats", None, tmp_path / "raw", channels=("flair", "t2"))) == 3
