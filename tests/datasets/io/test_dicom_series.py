# SPDX-License-Identifier: Apache-2.0
"""DICOM series: right places and values, or a refusal that names the file; pydicom and ITK read along."""

from __future__ import annotations

import logging
import re

import itk
import numpy as np
import pytest
from monai.transforms import LoadImage

from models_genesis.datasets import BadScanError, ScanReader, list_folder, open_scan, read_scan_header
from models_genesis.datasets.io.dicom_series import list_series, series_name
from models_genesis.datasets.io.find_scans import find_scans

pydicom = pytest.importorskip("pydicom")

SLICES = 12
LINE = np.arange(SLICES) * 3.0


@pytest.fixture
def scan(tools):
    return tools.make_scan(0)[..., :SLICES]


def places(folder):
    """Read from the files themselves, slice by slice, where the middle of the first pixel lies, in RAS."""
    points = [pydicom.dcmread(path).ImagePositionPatient for path in folder.iterdir()]
    return np.array(sorted(points, key=lambda point: point[2]), float) * (-1, -1, 1)


def refused(folder, message):
    for read in (open_scan, LoadImage(reader=ScanReader)):
        with pytest.raises(BadScanError, match=message):
            read(str(folder))


def without(*names):
    def edit(each, number):
        for name in names:
            delattr(each, name)

    return edit


def setting(**values):
    """Change one slice, the fourth."""

    def edit(each, number):
        if number == 3:
            for name, value in values.items():
                setattr(each, name, value)

    return edit


def everywhere(**values):
    def edit(each, number):
        for name, value in values.items():
            setattr(each, name, value)

    return edit


def test_a_turned_series_lies_where_its_slices_say(scan, tmp_path, tools):
    angle = np.deg2rad(20)
    row, column = np.array([np.cos(angle), np.sin(angle), 0]), np.array([0, 0, -1.0])
    points = np.array([10.0, -20, 30]) + LINE[:, None] * np.cross(row, column)
    tools.write_series(tmp_path / "s", scan, positions=points, orientation=[*row, *column])
    header, load = open_scan(str(tmp_path / "s"))
    by_hand = points[5] + 7 * 2 * row + 11 * 2 * column
    np.testing.assert_allclose((header.affine @ [7, 11, 5, 1])[:3], by_hand * (-1, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(load(), scan)


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_slices_are_ordered_by_their_place(step, scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan, positions=np.arange(SLICES) * step)
    header, load = open_scan(str(tmp_path / "s"))
    order = slice(None, None, 1 if step > 0 else -1)
    np.testing.assert_array_equal(load(), scan[..., order])
    found = [header.affine @ [0, 0, number, 1] for number in range(SLICES)]
    np.testing.assert_allclose(np.array(found)[:, :3], places(tmp_path / "s"), atol=1e-6)


RAMP = np.cumsum([0.0, *np.linspace(2, 3, SLICES - 1)])
SHORT = np.cumsum([0.0, 3, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.delete(np.arange(SLICES + 1) * 3.0, 5), "missing slices.*3 to 6 mm"),
        ([*LINE[:-1], LINE[4]], "repeated slices"),
        ([*LINE[:6], *LINE[:6]], "repeated slices"),
        ([*LINE[:6], *(LINE[:6] + 0.5)], "uneven slices|missing slices|repeated slices"),
        (np.cumsum([0, 5, 5, 5, 5, 5, 5, 2.5, 2.5, 2.5, 2.5, 2.5]), "uneven slices.*2.5 to 5 mm"),
        (np.cumsum([0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 5, 5, 5]), "missing slices"),
        (RAMP, "uneven slices.*2 to 3 mm"),
        (SHORT, "uneven slices.*1 to 3 mm"),
        ([[0, np.tan(np.deg2rad(15)) * z, z] for z in LINE], "tilted gantry.*15 degrees"),
        ([[0, np.tan(np.deg2rad(2)) * z, z] for z in LINE], "tilted gantry.*2 degrees"),
        ([[1.5 if number == 4 else 0, 0, z] for number, z in enumerate(LINE)], "uneven slices"),
        (np.zeros(SLICES), "repeated slices"),
    ],
)
def test_slices_that_make_no_grid_are_refused(positions, message, scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan, positions=np.array(positions, float))
    refused(tmp_path / "s", message)


def test_positions_written_with_one_decimal_are_a_grid(scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan, positions=np.round(np.arange(SLICES) * 0.625, 1))
    header = read_scan_header(str(tmp_path / "s"))
    found = np.array([header.affine @ [0, 0, number, 1] for number in range(SLICES)])[:, :3]
    assert np.abs(found - places(tmp_path / "s")).max() <= 0.06


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("ImagePositionPatient"), r"no position: .*\.dcm: expected ImagePositionPatient, found none"),
        (without("ImageOrientationPatient"), "no position"),
        (without("PixelSpacing"), "no position: .*expected PixelSpacing"),
        (everywhere(PixelSpacing=[0, 2]), "bad spacing"),
        (everywhere(PixelSpacing=[2, -2]), "bad spacing"),
        (setting(PixelSpacing=[0, 2]), r"bad spacing: slice\d+_003.dcm"),
        (setting(PixelSpacing=[2.2, 2]), "mixed slices: expected one orientation and pixel spacing"),
        (everywhere(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "bad affine"),
        (everywhere(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "bad affine"),
        (setting(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "mixed slices"),
        (setting(Rows=10, Columns=10), "mixed slices.*columns and rows|bad header.*more than one frame"),
        (setting(PatientID="P2"), "mixed slices: expected one patient"),
        (setting(FrameOfReferenceUID="1.2.3"), "mixed slices: expected one frame of reference"),
        (setting(BitsAllocated=0), r"bad header: slice\d+_003.dcm: expected pixels of 8, 16 or 32 bits"),
        (setting(BitsStored=20), "bad header"),
        (without("BitsAllocated"), "bad header: .*expected a whole number as BitsAllocated, found None$"),
        (setting(NumberOfFrames="1.5"), "bad header: .*expected .* NumberOfFrames"),
        (setting(SamplesPerPixel=0), "not one value a voxel"),
        (everywhere(SamplesPerPixel=3), "not one value a voxel"),
        (setting(NumberOfFrames=2000000000), "too short"),
        (everywhere(NumberOfFrames=2), "too short|multi-frame"),
        (setting(PixelData=b"\0\0"), r"too short: slice\d+_003.dcm: expected 960 bytes of pixels, found 2"),
        (without("PixelData"), "no pixels"),
        (everywhere(ModalityLUTSequence=[pydicom.Dataset()]), "bad scaling: .*found a table of values"),
        (everywhere(PhotometricInterpretation="MONOCHROME1"), "expected MONOCHROME2"),
        (setting(RescaleSlope=0), "bad scaling"),
        (without("RescaleSlope"), "bad scaling: .*expected a slope and an intercept, found none and"),
        (without("RescaleIntercept"), "bad scaling: .*expected a slope and an intercept, found .* and none"),
        (
            setting(RescaleSlope="", RescaleIntercept=""),
            "bad scaling: .*expected a slope and an intercept, found empty",
        ),
        (everywhere(RescaleSlope="", RescaleIntercept=""), "bad scaling: .*found empty ones"),
        (setting(Rows=0), "bad header"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(edit, message, scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan, edit=edit)
    refused(tmp_path / "s", message)
    # and the folder beside it is still listed
    tools.write_series(tmp_path / "good", scan)
    kept = {found.image: found.reason for found in list_folder(tmp_path, min_size=(8, 8, 4)).scans}
    assert kept["good"] == "" and kept["s"]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [0, 100, 400, 900])
def test_a_damaged_slice_is_named_wherever_it_is(last, size, scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan)
    path = next((tmp_path / "s").glob(f"*_{SLICES - 1 if last else 4:03d}.dcm"))
    path.write_bytes(path.read_bytes()[:size])
    refused(tmp_path / "s", path.name)


def test_a_damaged_slice_without_suffix_is_named(scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan, prefix="IM")
    for path in list((tmp_path / "s").iterdir()):
        path.rename(path.with_suffix(""))
    last = next((tmp_path / "s").glob(f"*_{SLICES - 1:03d}"))
    last.write_bytes(b"")
    (tmp_path / "s/README").write_text("not a slice")
    refused(tmp_path / "s", last.name)


def test_slices_of_one_series_that_differ_in_words_are_one_scan(scan, tmp_path, tools):
    def edit(each, number):
        each.SeriesDescription, each.SeriesDate = f"part {number > 5}", f"2020010{1 + (number > 5)}"
        each.SliceThickness, each.AcquisitionNumber, each.SeriesNumber = 3 + number % 2, number, number

    tools.write_series(tmp_path / "s", scan, edit=edit)
    assert list(find_scans(tmp_path)) == ["s"]
    header, load = open_scan(str(tmp_path / "s"))
    assert header.shape == scan.shape
    np.testing.assert_array_equal(load(), scan)


def test_localizers_in_the_series_are_left_out_with_a_word(scan, tmp_path, tools, caplog):
    def edit(each, number):
        if number == SLICES - 1:
            each.ImageType, each.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]

    tools.write_series(tmp_path / "s", scan, edit=edit)
    with caplog.at_level(logging.WARNING):
        header, load = open_scan(str(tmp_path / "s"))
    np.testing.assert_array_equal(load(), scan[..., :-1])
    assert "1 localizers in the series are left out" in caplog.text
    assert header.shape[2] == SLICES - 1


@pytest.mark.parametrize(("number", "more"), [(1, False), (5, False), (6, True)])
def test_five_localizers_are_named(number, more, scan, tmp_path, tools, caplog):
    def edit(each, place):
        if place >= SLICES - number:
            each.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    tools.write_series(tmp_path / "s", scan, edit=edit)
    open_scan(str(tmp_path / "s"))
    said = caplog.records[-1].getMessage()
    assert f"{number} localizers in the series are left out" in said
    assert said.count(".dcm") == min(number, 5) and said.endswith(", ...") == more


def test_what_lies_next_to_a_series_is_not_a_scan(scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan)
    first = pydicom.dcmread(next((tmp_path / "s").iterdir()))
    first.Modality, first.SeriesInstanceUID = "SEG", "1.2.3.4"
    first.save_as(tmp_path / "s/seg.dcm")
    directory = pydicom.dcmread(next((tmp_path / "s").glob("slice*")))
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = "1.2.840.10008.1.3.10"
    for name in ("DICOMDIR", "index.dcm"):
        directory.save_as(tmp_path / "s" / name)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "s/DICOMDIR").read_bytes())
    assert list(find_scans(tmp_path)) == ["s"]
    np.testing.assert_array_equal(open_scan(str(tmp_path / "s"))[1](), scan)


@pytest.mark.parametrize(
    ("signed", "padding", "limit"),
    [
        (0, 63536, None),
        (1, -2000, None),
        (1, 63536, None),
        (0, 0, 20),
        (0, -1, None),
        (1, -1, None),
        (1, 65535, None),
        (1, 32768, None),
        (1, 32767, None),
        (0, 32768, None),
    ],
)
@pytest.mark.parametrize("kind", ["US", "SS"])
def test_padding_is_air(signed, padding, limit, kind, scan, tmp_path, tools):
    """Whichever sign the element itself is written with, its bits are those of the pixels."""
    inside = np.hypot(*np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 20), indexing="ij")) < 1

    def edit(each, number):
        stored = scan[..., number].astype(np.int64) + 1024
        stored[~inside] = padding
        each.PixelRepresentation = signed
        each.PixelData = (stored % 2**16).T.astype("<u2").tobytes()
        bits = np.array([padding, limit or 0]).astype(np.uint16)
        written = (bits if kind == "US" else bits.view(np.int16)).tolist()
        each.add_new("PixelPaddingValue", kind, written[0])
        if limit is not None:
            each.add_new("PixelPaddingRangeLimit", kind, written[1])

    tools.write_series(tmp_path / "s", scan, edit=edit)
    found = open_scan(str(tmp_path / "s"))[1]()
    np.testing.assert_array_equal(found[inside], scan[inside])
    assert (found[~inside] == -1000).all()


def test_padding_without_hu_is_the_least_value(scan, tmp_path, tools):
    def edit(each, number):
        each.Modality, each.RescaleIntercept = "MR", 0
        stored = (scan[..., number] + 1024).T.astype("<u2")
        stored[0] = 50000
        each.PixelData = stored.tobytes()
        each.add_new("PixelPaddingValue", "US", 50000)

    tools.write_series(tmp_path / "s", scan, edit=edit)
    found = open_scan(str(tmp_path / "s"))[1]()
    assert found[:, 0].max() == found.min() == (scan[:, 1:] + 1024).min()


@pytest.mark.parametrize(("modality", "least"), [("MR", 0), ("CT", -1000)])
def test_a_series_of_nothing_but_padding_is_air_or_zero(modality, least, scan, tmp_path, tools):
    tools.write_series(
        tmp_path / "s",
        np.full_like(scan, 7 - 1024),
        modality=modality,
        edit=lambda each, number: each.add_new("PixelPaddingValue", "US", 7),
    )
    assert (open_scan(str(tmp_path / "s"))[1]() == least).all()


@pytest.mark.parametrize(("bits", "signed"), [(16, 0), (16, 1), (12, 0), (12, 1), (8, 0)])
def test_values_are_those_that_pydicom_and_itk_read(bits, signed, scan, tmp_path, tools):
    rng = np.random.default_rng(0)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)

    def edit(each, number):
        stored = rng.integers(low, high, (20, 24))
        each.BitsStored, each.HighBit, each.PixelRepresentation = bits, bits - 1, signed
        each.RescaleSlope, each.RescaleIntercept = (0.5, -7.25) if number % 2 else (2, -1000)
        if bits == 8:
            each.BitsAllocated = 8
        each.PixelData = (stored & (2**bits - 1)).astype("u1" if bits == 8 else "<u2").tobytes()

    tools.write_series(tmp_path / "s", scan, edit=edit)
    found = open_scan(str(tmp_path / "s"))[1]()
    for number, path in enumerate(list_series(str(tmp_path / "s")).popitem()[1]):
        each = pydicom.dcmread(path)
        expected = each.pixel_array.T * float(each.RescaleSlope) + float(each.RescaleIntercept)
        np.testing.assert_allclose(found[..., number], expected, rtol=1e-6)
        np.testing.assert_allclose(found[..., number], itk.array_from_image(itk.imread(path))[0].T, rtol=1e-6)


def test_compressed_slices_are_decoded(scan, tmp_path, tools):
    def edit(each, number):
        each.compress(pydicom.uid.RLELossless, generate_instance_uid=False)

    tools.write_series(tmp_path / "s", scan, edit=edit)
    np.testing.assert_array_equal(open_scan(str(tmp_path / "s"))[1](), scan)
    path = next((tmp_path / "s").iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    refused(tmp_path / "s", f"too short: {path.name}: expected compressed pixels to their end")


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_that_are_lost_after_the_headers_were_read_are_named(compressed, scan, tmp_path, tools):
    def edit(each, number):
        if compressed:
            each.compress(pydicom.uid.RLELossless, generate_instance_uid=False)

    tools.write_series(tmp_path / "s", scan, edit=edit)
    load = open_scan(str(tmp_path / "s"))[1]
    path = next((tmp_path / "s").glob("*_004.dcm"))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadScanError, match=rf"s: unreadable: {path.name}: expected pixels, found"):
        load()
    path.unlink()
    with pytest.raises(BadScanError, match=rf"s: unreadable: {path.name}: expected pixels, found"):
        load()


@pytest.mark.parametrize("transfer", ["ImplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_other_encodings_of_the_header(transfer, scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan)
    for path in (tmp_path / "s").iterdir():
        each = pydicom.dcmread(path)
        each.file_meta.TransferSyntaxUID = getattr(pydicom.uid, transfer)
        if "Big" in transfer:
            each.PixelData = np.frombuffer(each.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(path, each, implicit_vr="Implicit" in transfer, little_endian="Little" in transfer)
    np.testing.assert_array_equal(open_scan(str(tmp_path / "s"))[1](), scan)


def enhanced(scan, folder, tools, groups=True, order=None):
    """Write a volume as one file of several frames, in an order that need not be that of their places."""
    tools.write_series(folder / "parts", scan)
    files = sorted((folder / "parts").iterdir(), key=lambda path: path.stem[-3:])
    parts = [pydicom.dcmread(path) for path in files]
    whole = parts[0]
    numbers = list(order if order is not None else range(len(parts)))
    whole.NumberOfFrames = len(parts)
    whole.PixelData = b"".join(parts[number].PixelData for number in numbers)
    if groups:
        shared, measures, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, 3
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
        turn = pydicom.Dataset()
        turn.ImageOrientationPatient = whole.ImageOrientationPatient
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
        shared.PixelValueTransformationSequence = [values]
        whole.SharedFunctionalGroupsSequence = [shared]
        frames = []
        for number in numbers:
            frame, place = pydicom.Dataset(), pydicom.Dataset()
            place.ImagePositionPatient = parts[number].ImagePositionPatient
            frame.PlanePositionSequence = [place]
            frames.append(frame)
        whole.PerFrameFunctionalGroupsSequence = frames
        for name in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
        ):
            delattr(whole, name)
    (folder / "one").mkdir()
    whole.save_as(folder / "one/all.dcm", enforce_file_format=True)
    return str(folder / "one")


@pytest.mark.parametrize("order", [None, [3, 0, 11, 1, 2, 4, 10, 9, 8, 7, 6, 5]])
def test_frames_with_functional_groups_lie_where_those_say(order, scan, tmp_path, tools):
    path = enhanced(scan, tmp_path, tools, order=order)
    header, load = open_scan(path)
    np.testing.assert_array_equal(load(), scan)
    np.testing.assert_allclose(header.affine, read_scan_header(str(tmp_path / "parts")).affine)


def test_frames_without_functional_groups_are_refused(scan, tmp_path, tools):
    refused(enhanced(scan, tmp_path, tools, groups=False), "multi-frame: all.dcm: expected functional groups")


@pytest.mark.parametrize(("thickness", "message"), [(5, ""), (None, "bad spacing"), (0, "bad spacing")])
def test_a_single_slice_needs_a_thickness(thickness, message, scan, tmp_path, tools):
    def edit(each, number):
        if thickness is not None:
            each.SliceThickness = thickness

    tools.write_series(tmp_path / "s", scan[..., :1], edit=edit)
    if message:
        refused(tmp_path / "s", message)
    else:
        header = read_scan_header(str(tmp_path / "s"))
        assert header.shape == (24, 20, 1) and header.spacing == (2, 2, 5)


@pytest.mark.parametrize("tail", ["2", ".2", ".20200101", "20200101512512"])
def test_a_series_that_is_gone_is_not_replaced_by_one_whose_name_begins_alike(scan, tmp_path, tools, tail):
    tools.write_series(tmp_path / "s", scan)
    (there,) = list_series(str(tmp_path / "s"))
    with pytest.raises(BadScanError, match=f"expected the DICOM series {re.escape(there + tail)}, found 1 series"):
        read_scan_header(f"{tmp_path / 's'}::{there}{tail}")
    assert series_name([there], there + tail) is None


def test_a_changed_file_is_read_again(scan, tmp_path, tools):
    tools.write_series(tmp_path / "s", scan)
    read_scan_header(str(tmp_path / "s"))
    path = next((tmp_path / "s").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path / "s", "too short")
