# SPDX-License-Identifier: Apache-2.0
"""Each format that is read here: a small good file made on the spot, its reader, and what a reading must hold."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import random
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from mutations import Edit, edit_fields, edit_text, edit_zip
from PIL import Image

from models_genesis.datasets import BadScanError, ScanReader, load_datalist, open_scan, read_candidates
from models_genesis.datasets.layouts.lidc_xml import LARGEST_SIDE, MAX_READERS, read_lidc_xml
from models_genesis.networks import GenesisUNet, load_pretrained
from models_genesis.networks.weight_container import DamagedFileError, read_checkpoint

SHAPE = (8, 7, 6)
SCAN = np.random.default_rng(0).integers(-1000, 80, SHAPE).astype(np.int16)
UNPACK = Path(__file__).resolve().parents[2] / "bundles" / "unpack.py"

META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 2 2 3
DimSize = 8 7 6
ElementType = MET_SHORT
ElementDataFile = {}
"""
NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 8 7 6
space directions: (2,0,0) (0,2,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: {}
space origin: (0,0,0)
{}
"""
NIFTI_FIELDS = (
    *((place, "H") for place in (*range(40, 56, 2), 68, 70, 72, 74, 252, 254)),
    *((place, "f") for place in (*range(76, 120, 4), *range(256, 328, 4))),
    *((place, "I") for place in (0, 344)),
    (123, "B"),
)


class WrongReadingError(AssertionError):
    """A file that was read, and wrongly."""


@dataclass(frozen=True)
class Format:
    """A format to be damaged and read.

    Attributes:
        file: name of the file that is damaged.
        make: writes a good one, and what it needs, to a folder.
        read: reads it and checks what was read: :class:`WrongReadingError`.
        refusals: the errors that are documented for it.
        edit: damages what has a meaning.
        reach: bytes of its header.
        inside: whether what a gzip file holds is damaged and compressed again, in half of the cases.
        claims: whether memory that a header claims, and that is never filled, may be asked for before it is refused.
    """

    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    refusals: tuple[type[Exception], ...]
    edit: Edit
    reach: int = 1 << 20
    inside: bool = False
    claims: bool = False


def expect(right: bool, what: str) -> None:
    if not right:
        raise WrongReadingError(what)


def read_scan(path: Path) -> tuple[Any, np.ndarray]:
    """Read a scan by both ways, which must agree; a refusal names it."""
    try:
        header, load = open_scan(str(path))
        voxels = load()
        again, meta = ScanReader().get_data([str(path)])
    except BadScanError as error:
        expect(error.scan == str(path), f"the error names {error.scan}")
        raise
    expect(voxels.shape[:3] == header.shape, f"{voxels.shape} voxels under a header of {header.shape}")
    expect(bool(np.isfinite(header.affine).all()), f"affine {header.affine}")
    expect(np.array_equal(voxels, again, equal_nan=True), "two readings of the voxels differ")
    expect(np.array_equal(header.affine, meta["affine"]), "two readings of the affine differ")
    return header, voxels


def read_image(path: Path) -> None:
    read_scan(path)


def read_nifti(path: Path) -> None:
    """Compare with nibabel, which reads on its own."""
    _, voxels = read_scan(path)
    other = np.asanyarray(nib.load(path).dataobj)
    expect(np.array_equal(voxels.ravel("F"), other.ravel("F"), equal_nan=True), "other voxels than nibabel's")


def nifti() -> bytes:
    return nib.Nifti1Image(SCAN, np.diag([2, 2, 3, 1.0])).to_bytes()


def make_bytes(name: str, *parts: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(b"".join(parts))

    return make


def make_with_voxels(name: str, header: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text(header)
        (folder / "a.raw").write_bytes(SCAN.tobytes("F"))

    return make


# DICOM


def make_series(folder: Path) -> None:
    uid, series = "1.2.826.0.1.3680043.8.498", "1.2.826.0.1.3680043.8.498.1"
    for z in range(4):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{series}.{z}")
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID = series, uid
        one.PatientID, one.PatientName, one.Modality, one.InstanceNumber = "P1", "P1", "CT", z + 1
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient, one.ImageOrientationPatient = [0.0, 0.0, 2.0 * z], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [2.0, 2.0], 2.0
        one.Columns, one.Rows = SHAPE[:2]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleIntercept, one.RescaleSlope = -1024, 1
        one.PixelData = (SCAN[:, :, z].T + 1024).astype("<u2").tobytes()
        one.save_as(folder / f"{z}.dcm", enforce_file_format=True)


DICOM_VALUES: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 65535),
    "Columns": (0, 1, 65535),
    "BitsAllocated": (0, 1, 8, 12, 32, 64),
    "BitsStored": (0, 1, 12, 17, 65535),
    "HighBit": (0, 16, 65535),
    "PixelRepresentation": (1, 2),
    "SamplesPerPixel": (0, 3, 65535),
    "NumberOfFrames": (0, 1, -1, 2, 10**9),
    "PixelSpacing": ([0, 0], [2, -2], [1e30, 1e-30], [2.0], []),
    "ImagePositionPatient": ([0, 0, 1e30], [0, 0], [0, 0, 2.0], []),
    "ImageOrientationPatient": ([0] * 6, [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0.9, 0.4], [1, 0]),
    "RescaleSlope": (0, 1e30, -1),
    "RescaleIntercept": (1e30, -1e30),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", ""),
    "PixelPaddingValue": (0, 65535),
    "SeriesInstanceUID": ("1.2.3", "", "x" * 64),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.3"),
    "ImageType": (["DERIVED", "SECONDARY", "LOCALIZER"], []),
    "PixelData": (b"", b"\0\0", b"\0" * 10**6),
}


RADIOGRAPH_VALUES = DICOM_VALUES | {
    "Modality": ("CT", "CR", ""),
    "WindowCenter": (0, -1e30, [100, 200], ""),
    "WindowWidth": (0, 1, 1e-30, 1e30, -5, [100, 200], ""),
    "VOILUTFunction": ("LINEAR_EXACT", "SIGMOID", "CUBIC", ""),
    "PresentationLUTShape": ("IDENTITY", "INVERSE", "LIN OD"),
    "PixelPaddingRangeLimit": (0, 65535),
}


def edit_dicom(values: dict[str, tuple[Any, ...]]) -> Edit:
    def edit(content: bytes, rng: random.Random) -> bytes:
        """Change or remove an element, where the file can still be parsed."""
        name = rng.choice(list(values))
        try:
            dataset = pydicom.dcmread(io.BytesIO(content), force=True)
            if rng.random() < 0.3:
                delattr(dataset, name)
            else:
                setattr(dataset, name, rng.choice(values[name]))
            found = io.BytesIO()
            dataset.save_as(found)
            return found.getvalue()
        except Exception:  # an earlier change has left nothing to edit
            return content

    return edit


def read_series(path: Path) -> None:
    read_scan(path.parent)


# Pictures and radiographs


def make_radiograph(folder: Path) -> None:
    make_series(folder)
    one = pydicom.dcmread(folder / "1.dcm")
    one.Modality, one.WindowCenter, one.WindowWidth = "DX", -500, 1000
    one.save_as(folder / "1.dcm")


def make_picture(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        Image.fromarray((np.arange(40 * 30) % 251).astype(np.uint8).reshape(40, 30)).save(folder / name)

    return make


def edit_png(content: bytes, rng: random.Random) -> bytes:
    """Change a field of the header and the checksum with it."""
    if len(content) < 33:
        return content
    head = bytearray(content[12:29])
    place = rng.choice((4, 8, 12, 13, 14, 15, 16))
    if place < 12:
        head[place : place + 4] = rng.choice((0, 1, 7, 30, 41, 9000, 30000, 2**31 - 1)).to_bytes(4, "big")
    else:
        head[place] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return content[:12] + bytes(head) + zlib.crc32(head).to_bytes(4, "big") + content[33:]


def read_shares(path: Path) -> None:
    _, voxels = read_scan(path)
    expect(voxels.dtype == np.float32 and bool(((voxels >= 0) & (voxels <= 1)).all()), "values beyond full scale")


# Tables, lists and outlines


def make_table(folder: Path) -> None:
    rows = [f"1.2.{row % 3},{row * 1.5:.2f},{-row * 2},{row},{row % 2},0.{row},p{row % 3}" for row in range(12)]
    header = "seriesuid,coordX,coordY,coordZ,class,probability,patient"
    (folder / "a.csv").write_text("\n".join([header, *rows, '"1.2,3",1,2,3,0,0.5,"p ""q"""', ""]))


def read_table(path: Path) -> None:
    table = read_candidates(path)
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    expect(len(table) == len(lines) - 1, f"{len(table)} rows of {len(lines)} lines")
    expect(bool(np.isfinite(table.world[table.good]).all()), "a good row without a place")
    expect(set(table.label[table.good].tolist()) <= {0, 1}, "a good row without a class")
    expect(table.write_bad_rows(path.with_name("bad.csv")) == int((~table.good).sum()), "bad rows are lost")
    expect(bool(table.summary()), "no summary")


def make_xml(folder: Path) -> None:
    edges = "\n".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in [(4, 4), (4, 9), (9, 9), (9, 4)]
    )
    roi = f"<roi><imageSOP_UID>1.2</imageSOP_UID><inclusion>TRUE</inclusion>\n{edges}\n</roi>"
    ratings = "<characteristics><malignancy>3</malignancy>\n<texture>5</texture></characteristics>"
    nodule = f"<unblindedReadNodule><noduleID>1</noduleID>\n{ratings}\n{roi}\n{roi}\n</unblindedReadNodule>"
    sessions = f"<readingSession>\n{nodule}\n</readingSession>\n" * 3
    head = "<ResponseHeader>\n<SeriesInstanceUid>1.2.3</SeriesInstanceUid>\n</ResponseHeader>"
    (folder / "a.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<LidcReadMessage xmlns="http://www.nih.gov">\n{head}\n{sessions}</LidcReadMessage>\n'
    )


def read_xml(path: Path) -> None:
    found = read_lidc_xml(path)
    if found is None:
        return
    expect(found.readers <= MAX_READERS, f"{found.readers} readers")
    for nodule in found.nodules:
        points = np.concatenate([contour.points for contour in nodule.contours])
        expect(bool(((points >= 0) & (points <= LARGEST_SIDE)).all()), "an outline beside the image")
        expect(all(1 <= value <= 6 for value in nodule.ratings.values()), f"ratings {nodule.ratings}")


def make_datalist(folder: Path) -> None:
    for name in ("a.nii", "b.nii", "c.nii"):
        (folder / name).write_bytes(b"")
    entries = [{"image": "a.nii", "label": "b.nii", "patient": "p1"}, {"image": ["a.nii", "c.nii"], "patient": "p2"}]
    content = {"labels": {"0": "background"}, "numTraining": 2, "training": entries, "testing": ["c.nii"]}
    (folder / "a.json").write_text(json.dumps(content, indent=1))


def read_list(path: Path) -> None:
    for entry in [*load_datalist(path), *load_datalist(path, with_label=True), *load_datalist(path, key="testing")]:
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        expect(bool(images), "an entry without an image")
        for image in [*images, *([entry["label"]] if entry.get("label") else [])]:
            expect(isinstance(image, str) and Path(image.split("::")[0]).exists(), f"a path to nothing: {image!r}")


# Archives and weights

MEMBERS = {"a_bundle/LICENSE": b"terms", "a_bundle/configs/train.json": b"{}" * 1000}


def load_unpack() -> Any:
    spec = importlib.util.spec_from_file_location("unpack", UNPACK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


unpack = load_unpack()


def make_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a_bundle_v0.1.0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def read_zip(path: Path) -> None:
    """Unpack with the right checksum of the whole, so that only what is inside is wrong."""
    out = path.parent / "out"
    try:
        base = unpack.unpack(path, out, hashlib.sha256(path.read_bytes()).hexdigest())
        found = [file for file in out.rglob("*") if file.is_file()]
        expect(all(file.resolve().is_relative_to(base.resolve()) for file in found), "files outside of the base")
        expect(all(file.read_bytes() in MEMBERS.values() for file in found), "content that was not packed")
    except unpack.UnsafeArchiveError:
        expect(not out.exists() or not any(out.iterdir()), "something is left after a refusal")
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)


@dataclass
class Weights:
    """One small network and its weights, made when they are first needed."""

    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def get(self) -> dict[str, torch.Tensor]:
        if not self.state:
            torch.manual_seed(0)
            self.state.update(GenesisUNet(features=(2, 4)).state_dict())
        return self.state


WEIGHTS = Weights()


def make_weights(zipped: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        torch.save({"epoch": 3, "model": WEIGHTS.get()}, folder / "a.pt", _use_new_zipfile_serialization=zipped)

    return make


def read_weight_file(path: Path) -> None:
    """Read a file with checksums: the numbers that were saved, or none."""
    content = read_checkpoint(path)
    report = load_pretrained(GenesisUNet(features=(2, 4)), path, strict=True, need_checksums=True)
    for name, tensor in WEIGHTS.get().items():
        expect(torch.equal(content["model"][name], tensor), f"{name} has other numbers")
    expect(len(report.matched) == len(WEIGHTS.get()), "fewer tensors")


def read_old_weights(path: Path) -> None:
    """Read a file without checksums, whose numbers cannot be known: finite ones."""
    network = GenesisUNet(features=(2, 4))
    load_pretrained(network, path)
    expect(all(bool(torch.isfinite(each).all()) for each in network.state_dict().values()), "NaN or infinity")


META_LOCAL, NRRD_LOCAL = META.format("LOCAL"), NRRD.format("raw", "")
NRRD_GZIP = NRRD.format("gzip", "")
VOXELS = SCAN.tobytes("F")
SCAN_ERRORS = (BadScanError,)
NIFTI_EDIT = edit_fields(NIFTI_FIELDS)

FORMATS: dict[str, Format] = {
    "nii": Format("a.nii", make_bytes("a.nii", nifti()), read_nifti, SCAN_ERRORS, NIFTI_EDIT, 352),
    "nii.gz": Format(
        "a.nii.gz", make_bytes("a.nii.gz", gzip.compress(nifti())), read_nifti, SCAN_ERRORS, NIFTI_EDIT, 352, True
    ),
    "mha": Format(
        "a.mha",
        make_bytes("a.mha", META_LOCAL.encode(), VOXELS),
        read_image,
        SCAN_ERRORS,
        edit_text(len(META_LOCAL)),
        len(META_LOCAL),
    ),
    "mhd": Format("a.mhd", make_with_voxels("a.mhd", META.format("a.raw")), read_image, SCAN_ERRORS, edit_text()),
    "nrrd": Format(
        "a.nrrd",
        make_bytes("a.nrrd", NRRD_LOCAL.encode(), VOXELS),
        read_image,
        SCAN_ERRORS,
        edit_text(len(NRRD_LOCAL)),
        len(NRRD_LOCAL),
    ),
    "nrrd, gzip": Format(
        "a.nrrd",
        make_bytes("a.nrrd", NRRD_GZIP.encode(), gzip.compress(VOXELS)),
        read_image,
        SCAN_ERRORS,
        edit_text(len(NRRD_GZIP)),
    ),
    "nhdr": Format(
        "a.nhdr",
        make_with_voxels("a.nhdr", NRRD.format("raw", "data file: a.raw\n")),
        read_image,
        SCAN_ERRORS,
        edit_text(),
    ),
    "dicom": Format("1.dcm", make_series, read_series, SCAN_ERRORS, edit_dicom(DICOM_VALUES), 900),
    "radiograph": Format("1.dcm", make_radiograph, read_shares, SCAN_ERRORS, edit_dicom(RADIOGRAPH_VALUES), 900),
    "png": Format("a.png", make_picture("a.png"), read_shares, SCAN_ERRORS, edit_png, 60),
    "jpeg": Format("a.jpg", make_picture("a.jpg"), read_shares, SCAN_ERRORS, edit_text(), 330),
    "candidates": Format("a.csv", make_table, read_table, (ValueError,), edit_text()),
    "lidc": Format("a.xml", make_xml, read_xml, (ValueError,), edit_text()),
    "datalist": Format("a.json", make_datalist, read_list, (ValueError, FileNotFoundError), edit_text()),
    "zip": Format("a_bundle_v0.1.0.zip", make_zip, read_zip, (unpack.UnsafeArchiveError,), edit_zip),
    "weights": Format("a.pt", make_weights(True), read_weight_file, (DamagedFileError,), edit_zip),
    "weights, old": Format(
        "a.pt", make_weights(False), read_old_weights, (ValueError,), edit_text(), 2000, claims=True
    ),
}
