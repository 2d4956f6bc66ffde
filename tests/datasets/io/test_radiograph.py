# SPDX-License-Identifier: Apache-2.0
"""DX and CR are shown as their files say: rescaled, windowed, turned; by hand, and of files that pydicom has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalIntraOralXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from models_genesis.datasets import BadScanError, open_scan
from models_genesis.datasets.io import dicom_slice

STORED = np.array([[0, 500, 1000, 1500, 2000, 2500, 3000, 4095]] * 3, np.uint16)  # rows, columns
VALUES = STORED[0].astype(int)


def radiograph(path: Path, stored: np.ndarray = STORED, syntax: Any = ExplicitVRLittleEndian, **values: Any) -> str:
    """Write a DX of 12 bits; a value of None leaves an element out."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    elements: dict[str, Any] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation, "SOPInstanceUID": generate_uid(), "Modality": "DX",
        "PatientID": "p", "SeriesInstanceUID": "1.2.3", "Rows": stored.shape[0], "Columns": stored.shape[1],
        "SamplesPerPixel": 1, "BitsAllocated": 8 * stored.itemsize, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": int(stored.dtype.kind == "i"), "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": stored.tobytes(), "ImagerPixelSpacing": [0.2, 0.1],
    }  # fmt: skip
    for name, value in (elements | values).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def row(path: str) -> np.ndarray:
    voxels = open_scan(path)[1]()
    assert voxels.dtype == np.float32 and voxels.shape[2:] == (1,)
    assert (voxels == voxels[:, :1]).all()
    return voxels[:, 0, 0].astype(np.float64)


def test_without_a_window_full_scale_is_what_the_stored_bits_hold(tmp_path):
    np.testing.assert_allclose(row(radiograph(tmp_path / "a.dcm")), VALUES / 4095, atol=1e-6)
    # the same values in 16 bits are darker: nothing is guessed from the brightest pixel
    deeper = radiograph(tmp_path / "b.dcm", BitsStored=16, HighBit=15)
    np.testing.assert_allclose(row(deeper), VALUES / 65535, atol=1e-6)
    scaled = radiograph(tmp_path / "c.dcm", RescaleSlope=2, RescaleIntercept=-100)
    np.testing.assert_allclose(row(scaled), VALUES / 4095, atol=1e-6)
    signed = radiograph(tmp_path / "d.dcm", (STORED.astype(np.int16) - 2048))
    np.testing.assert_allclose(row(signed), VALUES / 4095, atol=1e-6)


def test_a_window_is_black_below_and_white_above_as_dicom_defines_it(tmp_path):
    """PS3.3 C.11.2.1.2: linear between c - 0.5 -+ (w - 1) / 2; after the rescale."""
    expected = np.clip((VALUES - (2000 - 0.5)) / (2001 - 1) + 0.5, 0, 1)
    window = {"WindowCenter": 2000, "WindowWidth": 2001}
    np.testing.assert_allclose(row(radiograph(tmp_path / "a.dcm", **window)), expected, atol=1e-6)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 4001}
    expected = np.clip((2.0 * VALUES - 1000 - 2999.5) / 4000 + 0.5, 0, 1)
    np.testing.assert_allclose(row(radiograph(tmp_path / "b.dcm", **rescaled)), expected, atol=1e-6)
    exact = {"WindowCenter": 2000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"}
    expected = np.clip((VALUES - 2000) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(row(radiograph(tmp_path / "c.dcm", **exact)), expected, atol=1e-6)
    sigmoid = {"WindowCenter": 2000, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"}
    expected = 1 / (1 + np.exp(-4 * (VALUES - 2000.0) / 2000))
    np.testing.assert_allclose(row(radiograph(tmp_path / "d.dcm", **sigmoid)), expected, atol=1e-6)
    several = {"WindowCenter": [2000, 9], "WindowWidth": [2001, 9]}  # the first is the one to be shown
    expected = np.clip((VALUES - 1999.5) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(row(radiograph(tmp_path / "e.dcm", **several)), expected, atol=1e-6)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 2001}], ids=["bits", "window"])
def test_monochrome1_is_turned_after_the_window(window, tmp_path):
    bright = row(radiograph(tmp_path / "a.dcm", **window))
    dark = row(
        radiograph(
            tmp_path / "b.dcm", **window, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
        )
    )
    np.testing.assert_allclose(dark, 1 - bright, atol=1e-6)


def lut(entries: np.ndarray, first: int, bits: int) -> Items:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Items([item])


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_counts_before_a_window(bits, tmp_path):
    """Of 8 bits too, where pydicom 3.0 by itself looks up the wrong entries: its index has the type of the entries."""
    top = 2**bits - 1
    entries = np.minimum((np.arange(3000) / 2999) ** 2 * top, top).astype(int)
    tables = {"VOILUTSequence": lut(entries, 500, bits), "WindowCenter": 9, "WindowWidth": 9}
    expected = entries[np.clip(VALUES - 500, 0, 2999)] / top
    np.testing.assert_allclose(row(radiograph(tmp_path / "a.dcm", **tables)), expected, atol=1e-6)
    if bits == 8:
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert (apply_voi_lut(dataset.pixel_array, dataset)[0] / top != expected).any()


def test_a_modality_lut_gives_its_own_full_scale(tmp_path):
    entries = 65535 - np.arange(4096) * 15
    tables = {"ModalityLUTSequence": lut(entries, 0, 16)}
    np.testing.assert_allclose(row(radiograph(tmp_path / "a.dcm", **tables)), entries[VALUES] / 65535, atol=1e-6)


def test_tables_are_read_in_a_file_that_states_no_transfer_syntax(tmp_path):
    """Which is little endian with implicit kinds of values then."""
    entries = 65535 - np.arange(4096) * 15
    path = radiograph(tmp_path / "a.dcm", ModalityLUTSequence=lut(entries, 0, 16))
    dataset = pydicom.dcmread(path)
    del dataset.file_meta, dataset.preamble
    dataset.save_as(path, implicit_vr=True, little_endian=True)
    np.testing.assert_allclose(row(path), entries[VALUES] / 65535, atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_is_bright(kind, tmp_path):
    padding = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 2900, "PhotometricInterpretation": kind}
    shown = row(radiograph(tmp_path / "a.dcm", **padding))
    assert (shown[VALUES >= 2900] == 0).all() and (shown[VALUES < 2900][1:] > 0).all()


def test_bits_beyond_the_stored_ones_do_not_count(tmp_path):
    overlay = STORED | 0xF000
    np.testing.assert_allclose(row(radiograph(tmp_path / "a.dcm", overlay)), VALUES / 4095, atol=1e-6)


@pytest.mark.parametrize("decoder", ["pydicom", "gdcm"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_compressed_pixels_are_the_same(decoder, kind, tmp_path, monkeypatch):
    """Where pydicom lacks a decoder, such as for lossless JPEG, ITK's decodes."""
    arguments = {"PhotometricInterpretation": kind, "WindowCenter": 2000, "WindowWidth": 2001}
    stored = np.random.default_rng(0).integers(0, 4096, (32, 48)).astype(np.uint16)  # GDCM wants more than a few pixels
    plain = open_scan(radiograph(tmp_path / "a.dcm", stored, **arguments))[1]()
    path = radiograph(tmp_path / "b.dcm", stored, syntax=RLELossless, **arguments)
    called = []
    if decoder == "gdcm":
        monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: type("", (), {"is_available": False}))
        decode = dicom_slice._decoded_frames
        monkeypatch.setattr(dicom_slice, "_decoded_frames", lambda *args: called.append(1) or decode(*args))
    np.testing.assert_array_equal(open_scan(path)[1](), plain)
    assert called == ([1] if decoder == "gdcm" else [])


def test_the_header_is_that_of_a_scan_of_one_slice(tmp_path):
    header, load = open_scan(
        radiograph(tmp_path / "a", syntax=ImplicitVRLittleEndian, ImageType=["ORIGINAL", "PRIMARY"])
    )
    assert header.shape == load().shape == (8, 3, 1)
    assert header.spacing == (0.1, 0.2, 1.0)  # DICOM names the distance of the rows first
    np.testing.assert_array_equal(header.affine, np.diag([-0.1, -0.2, 1, 1]))
    assert (header.modality, header.patient, header.image_type) == ("DX", "p", "ORIGINAL\\PRIMARY")
    calibrated = open_scan(radiograph(tmp_path / "b", PixelSpacing=[0.15, 0.15]))[0]
    assert calibrated.spacing == (0.15, 0.15, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"Modality": "CT"},
            r"other modality: expected a radiograph \(DX or CR\) .* found the modality CT; for other DICOM series give "
            "the folder, not a file",
        ),
        ({"Modality": None}, "other modality"),
        ({"NumberOfFrames": 2}, "multi-frame: expected one frame, found 2"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour: .* found 3 of RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PresentationLUTShape": "INVERSE"}, "contradiction: .* found MONOCHROME2 with the presentation LUT INVERSE"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw detector values"),
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "raw detector values: .* FOR PROCESSING"),
        ({"SOPClassUID": DigitalIntraOralXRayImageStorageForProcessing}, "raw detector values"),
        ({"SOPClassUID": DigitalMammographyXRayImageStorageForProcessing}, "raw detector values"),
        ({"BitsStored": 12, "HighBit": 13}, "bad header: .* 12 stored up to bit 13"),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, "bad scaling: expected a rescale slope above 0, found -1"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "bad scaling: expected a rescale slope above 0, found 0"),
        ({"RescaleSlope": 2}, "bad scaling: expected a slope and an intercept, found 2 and none"),
        ({"RescaleIntercept": -100}, "bad scaling: expected a slope and an intercept, found none and -100"),
        (
            {"RescaleSlope": 2, "RescaleIntercept": ""},
            "bad scaling: expected a slope and an intercept, found 2 and none",
        ),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, "bad scaling: expected .*, found empty"),
        ({"WindowCenter": 2000}, "bad scaling: expected a window's center and width, found 2000.0 and none"),
        ({"WindowWidth": 2000}, "bad scaling: expected a window's center and width, found none and 2000.0"),
        ({"WindowCenter": 2000, "WindowWidth": 0}, "bad scaling: .*Window Width must be greater than or equal to 1"),
        (
            {"WindowCenter": 2000, "WindowWidth": 9, "VOILUTFunction": "CUBIC"},
            "bad scaling: .*Unsupported .* VOI LUT Function value 'CUBIC'",
        ),
        ({"VOILUTSequence": Items([pydicom.Dataset()])}, "bad scaling"),
        ({"ModalityLUTSequence": Items([pydicom.Dataset()])}, "bad scaling"),
        ({"WindowCenter": "nan", "WindowWidth": 9}, "bad scaling"),
        ({"ImagerPixelSpacing": [0, 0]}, "bad spacing"),
        ({"PixelData": STORED.tobytes()[:-10]}, "too short"),
        ({"PixelData": None}, "no pixels"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, "unreadable"),
    ],
)
def test_what_may_mean_two_things_is_refused_by_name(values, message, tmp_path):
    path = radiograph(tmp_path / "a.dcm", **values)
    with pytest.raises(BadScanError, match=f"{path}: {message}"):
        open_scan(path)


def test_other_files_are_no_radiographs(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"text" * 200)
    with pytest.raises(BadScanError, match=r"a\.dcm: "):
        open_scan(str(tmp_path / "a.dcm"))


def test_an_older_pydicom_is_named(tmp_path, monkeypatch):
    """MONAI Label's environment has pydicom 2, which has no ``pydicom.pixels``; what is listed can be read."""
    path = radiograph(tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    with pytest.raises(ImportError, match=r"a\.dcm: expected pydicom 3 or later to read a radiograph"):
        open_scan(path)


CR = [f"dicomdirtests/77654033/{name}" for name in ("CR1/6154", "CR2/6247", "CR3/6278")]


@pytest.mark.parametrize("name", CR)
def test_real_radiographs(name):
    """Computed radiographs that come with pydicom: 16 x 16 pixels, 12 bits, MONOCHROME1, with a window."""
    path = Path(DATA_ROOT) / "test_files" / name
    dataset = pydicom.dcmread(path)
    assert (dataset.Modality, dataset.PhotometricInterpretation) == ("CR", "MONOCHROME1")
    assert dataset.SOPClassUID == ComputedRadiographyImageStorage
    header, load = open_scan(str(path))
    assert header.shape == (16, 16, 1) and header.modality == "CR" and header.patient == dataset.PatientID
    # by the standard's formula, from the file's numbers
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    values = dataset.pixel_array * slope + intercept
    shown = np.clip((values - (dataset.WindowCenter - 0.5)) / (dataset.WindowWidth - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(load()[..., 0].T, 1 - shown, atol=1e-6)
    assert np.ptp(load()) > 0


def test_pixels_that_cannot_be_decoded_are_named_once(tmp_path):
    """Fragments that end as they should and hold no RLE."""
    path = radiograph(tmp_path / "a.dcm", syntax=RLELossless)
    load = open_scan(path)[1]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\x7f" * 80])
    dataset.save_as(path)
    with pytest.raises(BadScanError, match="unreadable: expected a whole radiograph in DICOM, found") as raised:
        load()
    assert str(raised.value).count("a.dcm") == 1
