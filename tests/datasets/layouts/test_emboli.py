# SPDX-License-Identifier: Apache-2.0
"""Emboli: the phantom's, those of masks, the simple detector, and the readers of FUMPE, CAD-PE and RSPECT."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged, Orientationd
from scipy import ndimage
from scipy.io import savemat

from models_genesis.datasets import (
    CandidateDataset,
    CandidateStream,
    Phantom,
    list_cadpe,
    list_fumpe,
    list_rspect,
    load_candidates,
    make_phantom,
    write_embolism_phantom,
)
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.embolus_detector import DetectorRules, emboli_of, lung_region, vessel_candidates
from models_genesis.transforms import CandidateCubed, ClipHounsfieldd, VesselCubed

SHAPE, SPACING = (84, 76, 64), (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    """Two angiograms of the size that a data set has by default."""
    return [make_phantom(seed, "chest", (128, 112, 96), (1.6, 1.6, 1.6), "pulmonary") for seed in (102, 107)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three patients, one for each split."""
    return write_embolism_phantom(
        tmp_path_factory.mktemp("emboli") / "set", 3, 5, SHAPE, SPACING, validation_fraction=0.34, test_fraction=0.34
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def voxel_of(phantom: Phantom, center: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(np.rint((np.array(center) - phantom.affine[:3, 3]) / phantom.spacing).astype(int))


# phantom


def test_emboli_are_dark_in_bright_arteries(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.phase == "pulmonary"
        mask = phantom.embolus_mask
        assert mask is not None
        assert 3 <= len(phantom.emboli) <= 7
        assert np.unique(mask).tolist() == list(range(len(phantom.emboli) + 1))
        for number, embolus in enumerate(phantom.emboli, 1):
            own = mask == number
            assert own[voxel_of(phantom, embolus.center_mm)]
            volume = own.sum() * np.prod(phantom.spacing)
            assert embolus.diameter_mm == pytest.approx(2 * (0.75 * volume / np.pi) ** (1 / 3))
            # clot is 25 to 70 HU, contrast about 340: noise and blur leave the middle below 150
            assert phantom.image[voxel_of(phantom, embolus.center_mm)] < 150
            around = ndimage.binary_dilation(own, iterations=4) & ~own
            assert phantom.image[around].max() > 200


def test_lookalikes_are_none(phantoms: list[Phantom]) -> None:
    kinds: Counter[str] = Counter()
    for phantom in phantoms:
        assert phantom.embolus_mask is not None
        away = ndimage.distance_transform_edt(phantom.embolus_mask == 0, sampling=phantom.spacing)
        for found in phantom.lookalikes:
            kinds[found.kind] += 1
            place = voxel_of(phantom, found.center_mm)
            assert away[place] > 4
            value = phantom.image[place]
            if found.kind in ("branching", "vessel"):
                assert value > 170
            elif found.kind == "mixing":
                assert 80 < value < 300
            else:
                assert -60 < value < 130
    assert set(kinds) == {"branching", "node", "mixing", "vessel"}


def test_findings_lie_apart_and_repeat(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        centers = np.array([found.center_mm for found in (*phantom.emboli, *phantom.lookalikes)])
        distance = np.linalg.norm(centers[:, None] - centers, axis=2)[np.triu_indices(len(centers), 1)]
        # a node lies beside its artery, so nearer to the next finding than the artery's own points are
        assert distance.min() > 4
        assert np.median(distance) > 14
    again = make_phantom(102, "chest", (128, 112, 96), (1.6, 1.6, 1.6), "pulmonary")
    assert np.array_equal(again.image, phantoms[0].image)
    assert again.emboli == phantoms[0].emboli


def test_other_phases_have_none() -> None:
    phantom = make_phantom(1, "chest", (48, 40, 40), phase="arterial")
    assert phantom.emboli == phantom.lookalikes == ()
    assert phantom.embolus_mask is None


def test_data_set_holds_the_contract(written: Path) -> None:
    root = written.parent
    content = json.loads(written.read_text())
    rows, emboli = rows_of(root / "candidates.csv"), rows_of(root / "annotations.csv")
    assert list(rows[0])[:6] == ["seriesuid", "coordX", "coordY", "coordZ", "class", "patient"]
    assert [len(content[split]) for split in ("training", "validation", "testing")] == [1, 1, 1]
    for row in rows:
        assert (row["class"] == "1") == (row["lesion"] != "") == (row["kind"] in ("central", "occlusive"))
        mask = nib.load(root / "labelsTr" / f"{row['seriesuid']}.nii.gz")
        ras = np.array([-float(row["coordX"]), -float(row["coordY"]), float(row["coordZ"]), 1])
        voxel = np.rint(np.linalg.inv(mask.affine) @ ras)[:3].astype(int)
        near = np.asarray(mask.dataobj)[tuple(slice(max(side - 2, 0), side + 3) for side in voxel)]
        assert (int(row["lesion"]) in near) if row["class"] == "1" else True
    named = {(row["seriesuid"], row["lesion"]) for row in rows if row["class"] == "1"}
    assert named == {(row["seriesuid"], row["lesion"]) for row in emboli}
    before = written.stat().st_mtime_ns
    again = write_embolism_phantom(root, 3, 5, SHAPE, SPACING, validation_fraction=0.34, test_fraction=0.34)
    assert again.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError):
        write_embolism_phantom(root, 4, 5, SHAPE, SPACING)
    with pytest.raises(ValueError, match="num_patients"):
        write_embolism_phantom(root.parent / "none", 0)


def test_data_set_trains_and_streams_along_vessels(written: Path) -> None:
    preprocessing = [
        LoadImaged("image", reader="models_genesis.datasets.ScanReader", dtype=None, ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        ClipHounsfieldd("image"),
    ]
    data = CandidateDataset(
        load_candidates(written), preprocessing, CandidateCubed("image", 8), samples_per_epoch=4, progress=False
    )
    assert [data[index]["label"][0] for index in range(4)] == [1, 1, 0, 0]
    stream = CandidateStream(load_candidates(written, key="testing"), preprocessing, VesselCubed("image", 12))
    items = list(stream)
    assert len(items) == len(stream) > 5
    assert all(item["image"].shape == (1, 12, 12, 12) for item in items)
    assert stream.table.good.all()


# masks


def test_emboli_of_a_binary_mask_are_its_parts() -> None:
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    mask[5, 5, 5] = 1  # touches by a corner: the same
    mask[10:14, 10, 10] = 1
    mask[18, 18, 18] = 1
    emboli, numbers, small = emboli_of(mask, (1.0, 1.0, 2.0), min_mm3=4)
    assert small == 1
    assert [embolus.lesion for embolus in emboli] == [1, 2]
    assert emboli[0].center == (3, 3, 3)
    assert emboli[0].diameter_mm == pytest.approx(2 * (0.75 * 28 * 2 / np.pi) ** (1 / 3))
    assert emboli[1].center[0] in (11, 12)
    assert np.bincount(numbers.ravel())[1:].tolist() == [28, 4]


def test_emboli_of_a_numbered_mask_are_its_numbers() -> None:
    mask = np.zeros((12, 12, 12), np.int16)
    mask[2:6, 2:6, 2:6] = 7
    mask[6:9, 2:6, 2:6] = 3  # touches, but is another
    mask[10, 10, 10] = 3  # apart, but the same
    emboli, numbers, small = emboli_of(mask, (1.0, 1.0, 1.0), min_mm3=2)
    assert (len(emboli), small) == (2, 0)
    assert sorted(np.bincount(numbers.ravel())[1:].tolist()) == [49, 64]
    # the middle of a bent or broken embolus is a voxel of it
    for embolus in emboli:
        assert numbers[tuple(int(side) for side in embolus.center)] == embolus.lesion
    assert emboli_of(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0))[0] == []
    with pytest.raises(ValueError, match="whole numbers"):
        emboli_of(mask * 0.5, (1.0, 1.0, 1.0))


# detector


def test_lungs_take_in_their_vessels_but_not_the_air_around(phantoms: list[Phantom]) -> None:
    phantom = phantoms[0]
    # the field of view ends within the chest: a wall around it, and air around that
    wall = np.pad(phantom.image, 3, constant_values=40)
    region = lung_region(np.pad(wall, 5, constant_values=-1000), phantom.spacing)
    inner, label = region[8:-8, 8:-8, 8:-8], phantom.label
    assert inner[label == 2].mean() > 0.99
    near = ndimage.binary_dilation(label == 2, iterations=3)
    assert inner[(label == 5) & near].mean() > 0.9
    assert not region[:5].any()
    assert not region[..., -5:].any()
    assert not lung_region(np.zeros((8, 8, 8)), (1.0, 1.0, 1.0)).any()


def test_detector_misses_little(phantoms: list[Phantom]) -> None:
    """On eight phantoms it found 37 of 38 emboli with 81 false candidates a scan; here are two of them."""
    hits = total = 0
    for phantom in phantoms:
        found = vessel_candidates(phantom.image, phantom.spacing)
        assert 20 < len(found) < 200
        # in an embolus or in a voxel beside it
        hit = ndimage.maximum_filter(phantom.embolus_mask, 3)[tuple(found.T)]
        hits += len(set(hit.tolist()) - {0})
        total += len(phantom.emboli)
        world = found * phantom.spacing
        distance = np.linalg.norm(world[:, None] - world, axis=2)[np.triu_indices(len(found), 1)]
        assert distance.min() >= DetectorRules().apart_mm
    assert hits >= 0.85 * total


def test_detector_without_contrast_finds_none() -> None:
    phantom = make_phantom(3, "chest", (64, 52, 48), phase="none")
    assert vessel_candidates(phantom.image, phantom.spacing, DetectorRules(contrast_hu=400)).shape == (0, 3)
    assert vessel_candidates(np.zeros((9, 9, 9)), (1.0, 1.0, 1.0)).shape == (0, 3)


# readers


@pytest.fixture(scope="module")
def angiogram() -> Phantom:
    """A small angiogram for the readers."""
    return make_phantom(107, "chest", SHAPE, SPACING, "pulmonary")


def write_nrrd(path: Path, array: np.ndarray, phantom: Phantom) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = itk.image_from_array(np.ascontiguousarray(array[::-1, ::-1].T))
    last = phantom.affine[:3, :3] @ [*np.array(array.shape[:2]) - 1, 0] + phantom.affine[:3, 3]
    picture.SetOrigin((last * (-1, -1, 1)).tolist())
    picture.SetSpacing(list(phantom.spacing))
    itk.imwrite(picture, str(path), compression=True)


def check_candidates(root: Path, phantom: Phantom, uid: str) -> None:
    """Positives lie in emboli, negatives away from all of them, and each embolus has one and an annotation."""
    mask = phantom.embolus_mask
    assert mask is not None
    away = ndimage.distance_transform_edt(mask == 0, sampling=phantom.spacing)
    rows = [row for row in rows_of(root / "candidates.csv") if row["seriesuid"] == uid]
    for row in rows:
        ras = np.array([-float(row["coordX"]), -float(row["coordY"]), float(row["coordZ"])])
        distance = away[voxel_of(phantom, tuple(ras))]
        assert distance <= 3 if row["class"] == "1" else distance > 8
    counts = Counter((row["class"], row["kind"]) for row in rows)
    large = sum((mask == number).sum() * np.prod(phantom.spacing) >= 8 for number in range(1, int(mask.max()) + 1))
    assert counts["1", "mask"] == large
    assert counts["0", "detected"] > 10
    annotations = [row for row in rows_of(root / "annotations.csv") if row["seriesuid"] == uid]
    assert [row["lesion"] for row in annotations] == [str(number) for number in range(1, large + 1)]
    assert {row["lesion"] for row in rows if row["class"] == "1"} == {row["lesion"] for row in annotations}


def test_cadpe(angiogram: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "raw", tmp_path / "out" / "list.json"
    write_nrrd(root / "images" / "001.nrrd", angiogram.image, angiogram)
    write_nrrd(root / "rs" / "001RefStd.nrrd", angiogram.embolus_mask, angiogram)
    write_nrrd(root / "images" / "002.nrrd", angiogram.image, angiogram)
    write_nrrd(root / "images" / "003.nrrd", angiogram.image, angiogram)
    write_nrrd(root / "rs" / "003RefStd.nrrd", angiogram.embolus_mask[:-2], angiogram)
    write_nrrd(root / "images" / "004.nrrd", angiogram.image, angiogram)
    write_nrrd(root / "rs" / "004RefStd.nrrd", (angiogram.image < -900).astype(np.uint8), angiogram)
    assert main(["cadpe", "--root", str(root), "--out", str(out)]) == 0
    check_candidates(out.parent, angiogram, "001")
    content = json.loads(out.read_text())
    assert content["left_out"] == {} or set(content["left_out"]) == {"003", "004"}
    assert content["left_out"]["003"].startswith("mask does not fit: expected 84 x 76 x 64 voxels, found 82 x 76 x 64")
    assert "found a median of" in content["left_out"]["004"]
    printed = capsys.readouterr().out
    assert "left out, mask missing" in printed
    assert "expected 002RefStd.nrrd" in printed
    assert "the detector found" in printed
    data = load_candidates(out, root)
    assert data.table.good.all()
    assert len(data.rows[0]) == len(data.table)
    with pytest.raises(FileNotFoundError, match="expected CAD-PE's"):
        list_cadpe(tmp_path / "nowhere", tmp_path)


def test_cadpe_mask_elsewhere(angiogram: Phantom, tmp_path: Path) -> None:
    write_nrrd(tmp_path / "images" / "001.nrrd", angiogram.image, angiogram)
    picture = itk.image_from_array(np.ascontiguousarray(angiogram.embolus_mask[::-1, ::-1].T))
    (tmp_path / "rs").mkdir()
    itk.imwrite(picture, str(tmp_path / "rs" / "001RefStd.nrrd"))
    with pytest.raises(ValueError, match="expected the geometry of its image"):
        list_cadpe(tmp_path, tmp_path / "out")


def test_fumpe(angiogram: Phantom, tmp_path: Path, tools: SimpleNamespace) -> None:
    """The DICOM files' names are not in the order of the slices; a mask follows the names, as MATLAB does."""
    root, out = tmp_path / "raw", tmp_path / "out" / "list.json"
    mask = angiogram.embolus_mask
    assert mask is not None
    # the test's DICOM has the spacing (1, 2, 3); what is 2 mm wide in the phantom is taken for that here
    folder = root / "CT_scans" / "PAT001"
    tools.write_series(folder, angiogram.image, patient="PAT001")
    names = sorted(path.name for path in folder.iterdir())
    order = [int(name[-7:-4]) for name in names]
    assert order != sorted(order)
    (root / "GroundTruth").mkdir()
    savemat(root / "GroundTruth" / "PAT001.mat", {"Mask": mask.transpose(1, 0, 2)[:, :, order]}, do_compression=True)
    tools.write_series(root / "CT_scans" / "PAT002", angiogram.image[..., :8], patient="PAT002")
    for patient, content in (("PAT003", {"Mask": mask}), ("PAT004", {"a": mask, "b": mask})):
        tools.write_series(root / "CT_scans" / patient, angiogram.image[..., :8], patient=patient)
        savemat(root / "GroundTruth" / f"{patient}.mat", content)
    assert main(["fumpe", "--root", str(root), "--out", str(out), "--min-mm3", "0"]) == 0
    content = json.loads(out.read_text())
    (entry,) = content["training"]
    assert (entry["image"], entry["patient"]) == ("CT_scans/PAT001", "PAT001")
    assert content["left_out"]["PAT003"].endswith("expected 8 slices, found 64")
    assert "expected one array of three axes, found ['a', 'b']" in content["left_out"]["PAT004"]
    # every embolus' middle is a voxel of it: the slices are in their order
    centers = rows_of(out.parent / "annotations.csv")
    assert len(centers) == len(ndimage.find_objects(ndimage.label(mask, np.ones((3, 3, 3)))[0]))
    for row in centers:
        voxel = np.rint(np.array([float(row[key]) for key in ("coordX", "coordY", "coordZ")]) / tools.spacing)
        assert mask[tuple(voxel.astype(int))] > 0
    with pytest.raises(FileNotFoundError, match="expected FUMPE's folders"):
        list_fumpe(tmp_path / "nowhere", tmp_path)


def test_a_patient_without_emboli_has_negatives_only(angiogram: Phantom, tmp_path: Path) -> None:
    for number, mask in enumerate((angiogram.embolus_mask, np.zeros(SHAPE, np.uint8)), 1):
        write_nrrd(tmp_path / "images" / f"00{number}.nrrd", angiogram.image, angiogram)
        write_nrrd(tmp_path / "rs" / f"00{number}RefStd.nrrd", mask, angiogram)
    summary = list_cadpe(tmp_path, tmp_path / "out", validation_fraction=0.0, test_fraction=0.0)
    positives = {scan.patient: scan.facts["positives"] for scan in summary.scans}
    assert positives["002"] == 0 < positives["001"]
    assert all(scan.facts["candidates"] > 10 for scan in summary.scans)


def test_the_file_at_fault_is_named_scan_or_mask(angiogram: Phantom, tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        write_nrrd(tmp_path / "images" / f"00{number}.nrrd", angiogram.image, angiogram)
        write_nrrd(tmp_path / "rs" / f"00{number}RefStd.nrrd", angiogram.embolus_mask, angiogram)
    (tmp_path / "images" / "002.nrrd").write_text("no scan")
    (tmp_path / "rs" / "003RefStd.nrrd").write_text("no mask")
    write_nrrd(tmp_path / "rs" / "004RefStd.nrrd", angiogram.embolus_mask[1:], angiogram)
    summary = list_cadpe(tmp_path, tmp_path / "out", validation_fraction=0.0, test_fraction=0.0)
    found = {scan.patient: (scan.reason, scan.detail) for scan in summary.scans}
    assert found["001"] == ("", "")
    assert found["002"][0] == "unreadable" and "RefStd" not in found["002"][1]
    assert found["003"][0] == "mask unreadable" and found["003"][1].startswith("rs/003RefStd.nrrd: ")
    assert found["004"][0] == "mask does not fit" and found["004"][1].endswith(", in rs/004RefStd.nrrd")


def test_rspect_lists_studies_and_makes_no_candidates(tmp_path: Path, tools: SimpleNamespace) -> None:
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "pe_present_on_image", "negative_exam_for_pe")
    lines = [",".join(names)]
    for study, positive in (("s1", 1), ("s2", 0), ("s3", 0)):
        lines += [
            f"{study},{study}.1,{study}.1.{number},{int(positive and number < 2)},{1 - positive}" for number in range(5)
        ]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    for study in ("s1", "s2"):
        tools.write_series(tmp_path / "train" / study / f"{study}.1", tools.make_scan(0))
    out = tmp_path / "list.json"
    assert main(["rspect", "--root", str(tmp_path), "--out", str(out), "--validation-fraction", "0.5"]) == 0
    content = json.loads(out.read_text())
    entries = {entry["patient"]: entry for entry in (*content["training"], *content["validation"])}
    assert set(entries) == {"s1", "s2"}
    assert entries["s1"]["negative_exam_for_pe"] == 0
    assert (entries["s1"]["slices_with_pe"], entries["s2"]["slices_with_pe"], entries["s1"]["slices"]) == (2, 0, 5)
    assert "candidates" not in content
    with pytest.raises(ValueError, match="expected the name of a candidate table"):
        load_candidates(out, tmp_path)
    summary = list_rspect(tmp_path)
    assert any("no candidates can be made" in note for note in summary.notes)
    assert [scan.reason for scan in summary.scans] == ["", "", "missing"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns"):
        list_rspect(tmp_path, tmp_path / "other.csv")
    with pytest.raises(FileNotFoundError, match="table of labels"):
        list_rspect(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("command", "table"), [("phantom-emboli", "candidates.csv"), ("phantom-luna16", "candidates_V2.csv")]
)
def test_phantoms_from_the_command_line(
    tmp_path: Path, command: str, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    arguments = ["--patients", "1", "--shape", "64", "56", "48", "--spacing", "2.5", "2.5", "2.5"]
    assert main([command, "--out", str(out), *arguments]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    assert len(rows_of(out / table)) > 5
