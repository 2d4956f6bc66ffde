# SPDX-License-Identifier: Apache-2.0
"""DICOM in, DICOM segmentation out: every voxel where it was, coded, referring to its slice."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle
from scipy.spatial.transform import Rotation

from models_genesis.datasets import make_phantom
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.io.dicom_seg import SegmentationSource, read_bundle_source, write_dicom_seg

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install '.[dicom]'")
pydicom = pytest.importorskip("pydicom")

BUNDLES = Path(__file__).resolve().parents[3] / "bundles"
LITS = BUNDLES / "genesis_lits_liver_ct_segmentation"
LIVER = SegmentationSource({1: "liver"}, "test", "1.0")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(folder: Path, scan: np.ndarray, affine: np.ndarray, skip: tuple[int, ...] = ()) -> None:
    """Write a volume in HU, axes columns, rows, slices, at its place in RAS, as a DICOM CT series."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (pydicom.uid.generate_uid(None) for _ in range(3))
    place = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    columns, rows = (place[:3, :2] / spacing[:2]).T
    for z in (z for z in range(scan.shape[2]) if z not in skip):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(None)
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        each = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        each.SOPClassUID, each.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        each.StudyInstanceUID, each.SeriesInstanceUID, each.FrameOfReferenceUID = study, series, frame
        each.PatientID, each.PatientName, each.Modality = "P1", "Test^One", "CT"
        each.PatientBirthDate = each.PatientSex = each.AccessionNumber = each.StudyID = ""
        each.ReferringPhysicianName, each.StudyDate, each.StudyTime = "", "20200101", "120000"
        each.SeriesNumber, each.InstanceNumber, each.ImageType = 3, z + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        each.ImagePositionPatient = [round(float(x), 6) for x in (place @ [0, 0, z, 1])[:3]]
        each.ImageOrientationPatient = [round(float(x), 10) for x in (*columns, *rows)]
        each.PixelSpacing, each.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
        each.Columns, each.Rows = scan.shape[:2]
        each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 0
        each.RescaleIntercept, each.RescaleSlope = -1024, 1
        each.PixelData = (np.clip(scan[:, :, z], -1024, 3000) + 1024).T.astype("<u2").tobytes()
        each.save_as(folder / f"{(7 * z + 3) % 10}_{z:03d}.dcm", enforce_file_format=True)


def oblique(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tilt a volume about all axes, and let its slices run against the normal of their planes."""
    turn, flip = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix()
    flip[2, 2:] = -1, shape[2] - 1
    return turn @ affine @ flip


def foreground(path: Path) -> tuple[Any, dict[int, np.ndarray]]:
    """Read a segmentation with highdicom; the places of each segment's voxels in RAS, mm."""
    segmentation = highdicom.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=False)
    places = {}
    for number in segmentation.segment_numbers:
        index = np.argwhere(volume.array[..., number - 1])
        places[number] = (RAS_TO_LPS @ volume.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    return segmentation, places


def assert_same_voxels(places: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> None:
    """Each place lies on a voxel of the mask, to a thousandth of a mm, and all voxels of the mask are met once."""
    index = (np.linalg.inv(affine) @ np.c_[places, np.ones(len(places))].T)[:3].T
    nearest = np.rint(index).astype(int)
    off = (affine[:3, :3] @ (index - nearest).T).T
    assert np.abs(off).max() < 1e-3
    assert sorted(map(tuple, nearest)) == sorted(map(tuple, np.argwhere(mask)))


def phantom_scan(shared: Path | None) -> tuple[np.ndarray, np.ndarray]:
    phantom = make_phantom(0, region="abdomen", shape=(48, 40, 32))
    return phantom.image, phantom.affine


def real_scan(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(shared / "data" / "lits" / "volume-1.nii.gz")
    return np.asarray(image.dataobj)[40:-40], image.affine @ nib.affines.from_matvec(np.eye(3), [40, 0, 0])


@pytest.mark.parametrize("source", [phantom_scan, real_scan])
def test_a_bundle_segments_a_dicom_series(
    source: Callable[[Path], tuple[np.ndarray, np.ndarray]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Liver is what lies above 50 HU, so that the whole way can be compared with the scan itself."""
    scan, affine = source(request.getfixturevalue("shared") if source is real_scan else None)
    affine = oblique(affine, scan.shape)
    write_series(tmp_path / "dicom" / "one", scan, affine)
    threshold = (50.5 + 1000) / 2000  # of the intensities that the network sees
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    weights = torch.tensor([0.0, 1000.0]).reshape(2, 1, 1, 1, 1)
    (tmp_path / "models").mkdir()
    torch.save({"weight": weights, "bias": torch.tensor([0.0, -1000.0 * threshold])}, tmp_path / "models" / "model.pt")
    run_bundle(
        config_file=str(LITS / "configs" / "inference.json"),
        bundle_root=str(LITS),
        dataset_dir=str(tmp_path / "dicom"),
        ckpt_dir=str(tmp_path / "models"),
        output_dir=str(tmp_path / "out"),
        network_def=network,
        amp=False,
    )
    prediction, target = tmp_path / "out" / "one" / "one_seg.nii.gz", tmp_path / "one.dcm"
    command = ["dicom-seg", "--prediction", str(prediction), "--series", str(tmp_path / "dicom" / "one")]
    assert main([*command, "--out", str(target), "--bundle", str(LITS)]) == 0

    segmentation, places = foreground(target)
    predicted = nib.load(prediction)
    assert_same_voxels(places[1], np.asarray(predicted.dataobj) == 1, predicted.affine)
    assert_same_voxels(places[1], np.clip(scan, -1000, 1000) > 50, affine)

    slices = {each.SOPInstanceUID: each for each in map(pydicom.dcmread, (tmp_path / "dicom" / "one").iterdir())}
    assert segmentation.PatientID == "P1"
    assert segmentation.SeriesNumber == 3 + 1000  # the scanner's own has 3
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, slices[reference].ImagePositionPatient, atol=1e-5)
    (described,) = segmentation.SegmentSequence
    assert described.SegmentLabel == "liver"
    assert described.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert described.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    algorithm = described.SegmentationAlgorithmIdentificationSequence[0]
    metadata = json.loads((LITS / "configs" / "metadata.json").read_text())
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (metadata["name"], metadata["version"])
    assert {each.StudyInstanceUID for each in slices.values()} == {segmentation.StudyInstanceUID}
    assert {each.FrameOfReferenceUID for each in slices.values()} == {segmentation.FrameOfReferenceUID}


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A small series in ``dicom``, a label map of three values for it, and its affine."""
    scan = np.random.default_rng(0).integers(-100, 100, (12, 10, 6))
    affine = oblique(np.array([[-2.0, 0, 0, 9], [0, -1.5, 0, 4], [0, 0, 3, -7], [0, 0, 0, 1]]), scan.shape)
    write_series(tmp_path / "dicom", scan, affine)
    labels = np.random.default_rng(1).choice(np.array([0, 0, 1, 2, 4], np.uint8), scan.shape)
    return tmp_path, labels, affine


def save(folder: Path, labels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(labels, affine), folder / "seg.nii.gz")
    return folder / "seg.nii.gz"


def test_values_of_brats_become_coded_segments(case: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """Also where the label map's axes are turned and flipped to RAS; the values 1, 2, 4 are segments 1, 2, 3."""
    folder, labels, affine = case
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels, affine))
    assert turned.shape != labels.shape or not np.array_equal(np.asarray(turned.dataobj), labels)
    path = save(folder, np.asarray(turned.dataobj), turned.affine)
    source = read_bundle_source(BUNDLES / "genesis_brats_mri_segmentation")
    assert list(source.labels) == [1, 2, 4]
    voxels = write_dicom_seg(path, folder / "dicom", folder / "seg.dcm", source)
    segmentation, places = foreground(folder / "seg.dcm")
    codes = [each.SegmentedPropertyTypeCodeSequence[0].CodeValue for each in segmentation.SegmentSequence]
    assert codes == ["108369006", "79654002", "C113842"]  # neoplasm, oedema, enhancing lesion
    for number, (value, name) in enumerate(source.labels.items(), start=1):
        assert_same_voxels(places[number], labels == value, affine)
        assert segmentation.SegmentSequence[number - 1].SegmentLabel == name
        assert segmentation.SegmentSequence[number - 1].AnatomicRegionSequence[0].CodeMeaning == "Brain"
        assert voxels[name] == np.count_nonzero(labels == value)


@pytest.mark.parametrize(
    ("bundle", "labels"),
    [("lits_liver_ct", {1: "liver"}), ("lidc_nodule_ct", {1: "nodule"}), ("msd", {1: "Anterior", 2: "Posterior"})],
)
def test_bundles_say_what_they_predict(bundle: str, labels: dict[int, str]) -> None:
    assert read_bundle_source(BUNDLES / f"genesis_{bundle}_segmentation").labels == labels


def test_nothing_found_is_a_result_too(case: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, labels, affine = case
    assert write_dicom_seg(save(folder, labels * 0, affine), folder / "dicom", folder / "seg.dcm", LIVER) == {
        "liver": 0
    }
    segmentation, places = foreground(folder / "seg.dcm")
    assert (segmentation.NumberOfFrames, len(places[1])) == (labels.shape[2], 0)


def shifted(affine: np.ndarray, mm: float) -> np.ndarray:
    moved = affine.copy()
    moved[0, 3] += mm
    return moved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels, affine: (labels, shifted(affine, 2.0)), "up to 2 mm away"),
        (lambda labels, affine: (labels[:-1], affine), r"expected the \(12, 10, 6\) voxels of .*dicom, found \(11,"),
        (lambda labels, affine: (labels[None], affine), "expected a label map of three axes"),
        (
            lambda labels, affine: (np.where(labels == 4, 7, labels), affine),
            r"expected the values \[0, 1, 2, 4\], found \[7\] too",
        ),
        (lambda labels, affine: (labels * np.float32(0.5), affine), "expected whole numbers from 0 to 255, found 0.0"),
        (lambda labels, affine: (labels * np.float32(np.nan), affine), "expected whole numbers"),
        (lambda labels, affine: (labels.astype(np.int16) * 300, affine), "expected whole numbers"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    change: Callable[..., tuple[np.ndarray, np.ndarray]], message: str, case: tuple[Path, np.ndarray, np.ndarray]
) -> None:
    folder, labels, affine = case
    source = SegmentationSource({1: "liver", 2: "spleen", 4: "tumour"})
    target = folder / "seg.dcm"
    target.write_text("precious")
    with pytest.raises(ValueError, match=message):
        write_dicom_seg(save(folder, *change(labels, affine)), folder / "dicom", target, source)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["dicom", "seg.dcm", "seg.nii.gz"]
    # a shift below a tenth of a voxel is what headers round off
    write_dicom_seg(save(folder, labels, shifted(affine, 0.1)), folder / "dicom", target, source)


def test_series_that_are_not_whole_are_refused(case: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, labels, affine = case
    path, target = save(folder, np.minimum(labels, 1), affine), folder / "seg.dcm"
    scan = np.zeros(labels.shape, int)

    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            write_dicom_seg(path, folder / name, target, LIVER)
        assert not target.exists()

    write_series(folder / "gap", scan, affine, skip=(3,))
    refused("gap", "missing slices")
    write_series(folder / "short", scan, affine, skip=(0,))
    refused("short", r"expected the \(12, 10, 5\) voxels")
    write_series(folder / "two", scan, affine)
    for name in list((folder / "dicom").iterdir()):
        (folder / "two" / f"other_{name.name}").write_bytes(name.read_bytes())
    refused("two", "series missing: expected one DICOM series.*found 2 series")
    refused("two::2.25", "expected the DICOM series 2.25, found 2 series")
    uid = pydicom.dcmread(next((folder / "dicom").iterdir())).SeriesInstanceUID
    write_dicom_seg(path, f"{folder / 'two'}::{uid}", folder / "named.dcm", LIVER)
    reference = pydicom.dcmread(folder / "named.dcm").ReferencedSeriesSequence[0].SeriesInstanceUID
    assert reference == uid
    write_series(folder / "anonymous", scan, affine)
    for name in (folder / "anonymous").iterdir():
        each = pydicom.dcmread(name)
        del each.FrameOfReferenceUID
        each.save_as(name)
    refused("anonymous", "attributes missing: .*found no FrameOfReferenceUID")
    tilted = affine.copy()
    tilted[:3, 2] += affine[:3, 1]
    write_series(folder / "tilted", scan, tilted)
    refused("tilted", "tilted: tilted gantry: .*found the last 7.5 mm off the first")
    write_series(folder / "frames", scan[:, :, :1], affine)
    (name,) = (folder / "frames").iterdir()
    each = pydicom.dcmread(name)
    each.NumberOfFrames, each.PixelData = labels.shape[2], each.PixelData * labels.shape[2]
    each.save_as(name)
    refused("frames", "multi-frame")
    refused("nowhere", "missing: expected an existing file or folder")


def test_the_command_line(
    case: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, affine = case
    path, target = save(folder, labels, affine), folder / "seg.dcm"
    command = ["dicom-seg", "--prediction", str(path), "--series", str(folder / "dicom"), "--out", str(target)]
    assert main(command) == 2
    assert "expected --bundle, or --labels" in capsys.readouterr().err
    named = [*command, "--labels", "1=liver", "2=tumor", "4=kidney"]
    assert main(named) == 2
    assert "no DICOM codes are known for the label 'kidney'" in capsys.readouterr().err
    terms = folder / "terms.json"
    terms.write_text(json.dumps({"Kidney": ["SCT:AnatomicalStructure", ["64033007", "SCT", "Kidney"], "SCT:Abdomen"]}))
    assert main([*named, "--terms", str(terms)]) == 0
    assert f"kidney: {np.count_nonzero(labels == 4):,} voxels" in capsys.readouterr().out
    segmentation, places = foreground(target)
    assert segmentation.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    assert_same_voxels(places[3], labels == 4, affine)
    terms.write_text(json.dumps({"kidney": ["SCT:AnatomicalStructure", "SCT:NoSuchOrgan"]}))
    assert main([*named, "--terms", str(terms)]) == 2
    assert "kidney: expected scheme:Keyword" in capsys.readouterr().err
    assert main([*command, "--labels", "liver"]) == 2
    assert "expected VALUE=NAME such as 1=liver, found 'liver'" in capsys.readouterr().err
    assert main([*command, "--bundle", str(folder)]) == 2
    assert "expected a bundle with configs/inference.json" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(named) == 2
    assert "need highdicom: pip install 'models-genesis[dicom]'" in capsys.readouterr().err
