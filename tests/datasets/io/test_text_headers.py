# SPDX-License-Identifier: Apache-2.0
"""MetaImage and NRRD: what ITK reads of a sound file is read here, and headers that end ITK's process are refused."""

from __future__ import annotations

import math
import tracemalloc
import zlib

import itk
import numpy as np
import pytest

from models_genesis.datasets import BadScanError, open_scan
from models_genesis.datasets.io.scan_header import scan_files

SHAPE = (7, 8, 9)
VOXELS = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE, order="F")

META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 3",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "2 2.5 3",
    "DimSize": "7 8 9",
    "ElementType": "MET_SHORT",
}

NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "7 8 9",
    "space directions": "(2,0,0) (0,2.5,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,2,3)",
}


def write_meta(folder, data="v.raw", content=b"", **fields):
    given = {name: text for name, text in {**META, **fields}.items() if text is not None}
    text = "".join(f"{name} = {value}\n" for name, value in given.items()) + f"ElementDataFile = {data}\n"
    path = folder / ("scan.mha" if data == "LOCAL" else "scan.mhd")
    path.write_bytes(text.encode() + content)
    return str(path)


def write_nrrd(folder, data="v.raw", content=b"", **fields):
    given = {name: text for name, text in {**NRRD, **fields}.items() if text is not None}
    text = "NRRD0004\n# made for a test\n" + "".join(f"{name}: {value}\n" for name, value in given.items())
    path = folder / ("scan.nhdr" if data else "scan.nrrd")
    path.write_bytes((text + (f"data file: {data}\n" if data else "\n")).encode() + content)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "v.raw").write_bytes(VOXELS.tobytes("F"))
    return tmp_path


def agrees_with_itk(path, voxels=True):
    header, load = open_scan(path)
    image = itk.imread(path)
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(header.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-9)
    np.testing.assert_array_equal(load(), itk.array_from_image(image).T)
    if voxels:
        np.testing.assert_array_equal(load(), VOXELS)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Offset": None, "Position": "4 5 6"},
        {"Offset": None, "Origin": "4 5 6"},
        {"Offset": None},
        {"TransformMatrix": None},
        {"TransformMatrix": None, "Rotation": "0 1 0 1 0 0 0 0 1"},
        {"TransformMatrix": None, "Orientation": "0 1 0 1 0 0 0 0 1"},
        {"CenterOfRotation": "1 1 1"},
        {"HeaderSize": "-1"},
        {"DistanceUnits": "mm", "Comment": "made by hand", "ElementNumberOfChannels": "1"},
    ],
)
def test_metaimage_fields_mean_what_they_mean_to_itk(fields, folder):
    agrees_with_itk(write_meta(folder, **fields))


FOUR = {
    "NDims": "4",
    "DimSize": "7 8 3 3",
    "ElementSpacing": "2 2.5 3 0.1",
    "Offset": "1 2 3 0",
    "TransformMatrix": "0 1 0 0 -1 0 0 0 0 0 1 0 0 0 0 1",
    "CenterOfRotation": None,
    "AnatomicalOrientation": None,
}


@pytest.mark.parametrize("fields", [{}, {"TransformMatrix": None}, {"Offset": "4 5 6 7"}])
def test_a_fourth_axis_of_a_metaimage_holds_volumes(fields, folder):
    path = write_meta(folder, **{**FOUR, **fields})
    header, load = open_scan(path)
    image = itk.imread(path)
    assert header.shape == (7, 8, 3) and header.components == 3
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection())[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    np.testing.assert_allclose(header.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-9)
    np.testing.assert_array_equal(load(), itk.array_from_image(image).T)


@pytest.mark.parametrize("fields", [{}, {"TransformMatrix": None, "Offset": None}])
def test_a_fourth_axis_of_length_one_is_dropped(fields, folder):
    header, load = open_scan(write_meta(folder, **{**FOUR, "DimSize": "7 8 9 1", **fields}))
    assert header.shape == SHAPE and header.components == 1
    np.testing.assert_array_equal(load(), VOXELS)
    header, load = open_scan(write_nrrd(folder, dimension="4", sizes="7 8 9 1", **NRRD_FOUR))
    assert header.shape == SHAPE
    np.testing.assert_array_equal(load(), VOXELS)
    np.testing.assert_allclose(header.affine, open_scan(write_nrrd(folder))[0].affine)


NRRD_FOUR = {"space directions": "(2,0,0) (0,2.5,0) (0,0,3) none", "kinds": "domain domain domain list"}


@pytest.mark.parametrize("place", [(3, 0), (3, 1), (3, 2), (0, 3), (1, 3), (2, 3), (3, 3)])
def test_a_fourth_axis_that_is_mixed_with_the_others_is_refused(place, folder):
    matrix = np.eye(4)
    matrix[place] = 2 if place == (3, 3) else 0.5
    with pytest.raises(BadScanError, match=r"scan\.mhd: bad affine: expected a separate fourth axis"):
        open_scan(write_meta(folder, **{**FOUR, "TransformMatrix": " ".join(map(str, matrix.ravel()))}))


def test_metaimage_encodings(folder):
    agrees_with_itk(write_meta(folder, "LOCAL", VOXELS.tobytes("F")))
    packed = zlib.compress(VOXELS.tobytes("F"))
    agrees_with_itk(write_meta(folder, "LOCAL", packed, CompressedData="True", CompressedDataSize=str(len(packed))))
    agrees_with_itk(write_meta(folder, BinaryDataByteOrderMSB="True"), voxels=False)
    (folder / "v.txt").write_text(" ".join(map(str, VOXELS.ravel("F"))))
    np.testing.assert_array_equal(open_scan(write_meta(folder, "v.txt", BinaryData="False"))[1](), VOXELS)
    (folder / "h.raw").write_bytes(bytes(100) + VOXELS.tobytes("F"))
    agrees_with_itk(write_meta(folder, "h.raw", HeaderSize="100"))


def test_slices_in_files_of_their_own(folder):
    for number in range(9):
        (folder / f"s{number:02d}.raw").write_bytes(VOXELS[..., number].tobytes("F"))
    path = write_meta(folder, "s%02d.raw 0 8 1")
    agrees_with_itk(path)
    assert len(scan_files(path)) == 10
    agrees_with_itk(write_nrrd(folder, "s%02d.raw 0 8 1 2"))
    path = write_meta(folder, "LIST", "".join(f"s{number:02d}.raw\n" for number in range(9)).encode())
    agrees_with_itk(path)
    (folder / "s04.raw").write_bytes(b"")
    with pytest.raises(BadScanError, match=r"too short: .*s04.raw"):
        open_scan(path)
    (folder / "s04.raw").unlink()
    with pytest.raises(BadScanError, match=r"voxel file missing: expected s04.raw"):
        open_scan(path)


@pytest.mark.parametrize("kind", ["UC", "US", "SS", "UI", "SI", "F", "D"])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_whatever_itk_writes_is_read(kind, suffix, compressed, tmp_path):
    rng = np.random.default_rng(0)
    image = itk.Image[getattr(itk, kind), 3].New(Regions=[7, 8, 9])
    image.Allocate()
    view = itk.array_view_from_image(image)
    view[:] = rng.uniform(0, 100, view.shape).astype(view.dtype)
    image.SetSpacing([1.5, 2.0, 3.0])
    image.SetOrigin([10.0, -20.0, 30.0])
    image.SetDirection(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
    path = str(tmp_path / f"scan{suffix}")
    itk.imwrite(image, path, compression=compressed)
    agrees_with_itk(path, voxels=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"NDims": "99"}, "not 3D: expected three axes"),
        ({"NDims": "2", "DimSize": "7 8"}, "not 3D"),
        ({"NDims": "5", "DimSize": "7 8 3 3 1"}, "not 3D"),
        ({"NDims": "4"}, "bad header: expected 4 sizes"),
        ({"NDims": "4", "DimSize": "7 8 9 1"}, "expected 4 numbers in ElementSpacing"),
        ({"DimSize": "7 8"}, "bad header: expected 3 sizes"),
        ({"DimSize": "7 8 -9"}, "bad header"),
        ({"DimSize": "7 8 99999999999999"}, "bad header"),
        ({"DimSize": "7000 8000 9000"}, "too short: expected 1,008,000,000,000 bytes"),
        ({"DimSize": "7 8 10"}, "too short"),
        ({"ElementType": "MET_STRING"}, "expected an ElementType of"),
        ({"ElementNumberOfChannels": "3"}, "expected ElementNumberOfChannels 1"),
        ({"ElementSpacing": "2 2 0"}, "bad spacing"),
        ({"ElementSpacing": "-2 2 3"}, "bad spacing"),
        ({"ElementSpacing": "nan 2 3"}, "expected 3 numbers in ElementSpacing"),
        ({"ElementSpacing": None}, "bad spacing"),
        ({"Offset": "1 2"}, "expected 3 numbers in Offset"),
        ({"Offset": "1 2 3 4 5"}, "expected 3 numbers in Offset"),
        ({"Offset": None, "offset": "9 9 9"}, "found offset for Offset"),
        ({"Position": "9 9 9"}, "expected one of Offset"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0.3 1"}, "bad affine|sheared"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0.6 0.8"}, "sheared: expected axes at right angles"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "expected directions of length 1"),
        ({"TransformMatrix": "1 0 0 0 1 0 1 0 0"}, "three independent axes"),
        ({"DistanceUnits": "um"}, "expected DistanceUnits mm"),
        ({"ElementToIntensityFunctionSlope": "2"}, "expected ElementToIntensityFunctionSlope"),
        ({"CompressedData": "maybe"}, "expected CompressedData True or False"),
        ({"HeaderSize": "-7"}, "expected a HeaderSize"),
        ({"Comment": "x" * 5000}, "expected lines of 4096 bytes at most"),
    ],
)
def test_metaimage_headers_that_are_refused(fields, message, folder):
    with pytest.raises(BadScanError, match=message):
        open_scan(write_meta(folder, **fields))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("%s%s%n%n%d.raw 1 9 1", "expected one %d"),
        ("%d%d.raw 1 9 1", "expected one %d"),
        ("%999999999d.raw 1 9 1", "expected one %d"),
        ("%d.raw", "expected first, last and step"),
        ("%d.raw 1 999999999 1", "expected 1 to 100000 files"),
        ("%d.raw 1 9 0", "expected 1 to 100000 files"),
        ("gone.raw", "voxel file missing"),
        (".", "not a file"),
    ],
)
def test_voxel_files_that_are_refused(data, message, folder):
    for path in (write_meta(folder, data), write_nrrd(folder, data)):
        with pytest.raises(BadScanError, match=message):
            open_scan(path)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"space": "right-anterior-superior"},
        {"space": "RAS"},
        {"space": "LAS"},
        {"space directions": "(0,2,0) (-2.5,0,0) (0,0,3)"},
        {"type": "signed short", "encoding": "RAW"},
        {"byte skip": "-1"},
        {"space units": '"mm" "mm" "mm"', "measurement frame": "(0,1,0) (1,0,0) (0,0,1)", "thicknesses": "9 9 9"},
    ],
)
def test_nrrd_fields_mean_what_they_mean_to_itk(fields, folder):
    agrees_with_itk(write_nrrd(folder, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "A" * 5000}, r"expected lines of 4096 bytes at most, found 'space: A{33}'\.\.\. of 5008$"),
        ({"space": None, "space dimension": "3"}, "no orientation"),
        ({"space": "scanner-xyz"}, "no orientation: .*found 'scanner-xyz'"),
        ({"space": None, "space directions": None, "space origin": None, "spacings": "2 2 3"}, "no orientation"),
        ({"space units": '"um" "um" "um"'}, "expected the space units mm"),
        ({"space units": '"mm" "mm" "um" "s" "s"'}, r"expected the space units mm, found \['mm', 'mm', 'um'\]$"),
        ({"space directions": "(2,0,0) (0,2,0) (0,1.5,3)"}, "sheared"),
        ({"space directions": "(2,0,0) (0,nan,0) (0,0,3)"}, "bad spacing"),
        ({"space directions": "(2,0,0) (0,2,0)"}, "bad affine"),
        ({"space origin": None}, "bad affine"),
        ({"dimension": "16"}, "not 3D"),
        ({"dimension": "4", "sizes": "3 7 8 9"}, "not 3D"),
        ({"dimension": "4", "sizes": "7 8 3 3"}, "not 3D: expected three axes, one value a voxel, found 7 x 8 x 3 x 3"),
        ({"dimension": "4"}, "bad header: expected 4 sizes"),
        ({"sizes": "7000 8000 9000"}, "too short"),
        ({"sizes": "7 8 0"}, "bad header"),
        ({"type": "block"}, "expected a type"),
        ({"encoding": "bzip2"}, "expected a type"),
        ({"endian": None}, "expected the endian"),
        ({"line skip": "3"}, "no line skip"),
        ({"SIZES": "7 8 9"}, "sizes twice"),
    ],
)
def test_nrrd_headers_that_are_refused(fields, message, folder):
    with pytest.raises(BadScanError, match=message):
        open_scan(write_nrrd(folder, **fields))


def test_a_deflated_file_that_ends_early_or_lies(folder):
    packed = zlib.compress(VOXELS.tobytes("F"))
    path = write_meta(folder, "LOCAL", packed[: len(packed) // 2], CompressedData="True")
    with pytest.raises(BadScanError, match="unreadable"):
        open_scan(path)[1]()
    path = write_meta(folder, "LOCAL", packed, CompressedData="True", DimSize="700 800 900")
    with pytest.raises(BadScanError, match="too short"):
        open_scan(path)


@pytest.mark.parametrize("missing", [0, 1])
def test_text_of_one_character_a_number_is_long_enough(missing, folder):
    """The shortest text that can hold so many numbers: digits and what parts them."""
    digits = VOXELS.ravel("F") % 10
    (folder / "v.txt").write_text(" ".join(map(str, digits[missing:])))
    path = write_meta(folder, "v.txt", BinaryData="False")
    if missing:
        with pytest.raises(BadScanError, match=r"expected 1,008 bytes of voxels in v\.txt .*found 1,005 of text"):
            open_scan(path)
    else:
        np.testing.assert_array_equal(open_scan(path)[1](), VOXELS % 10)


def test_what_follows_the_voxels_is_not_decompressed(folder):
    """A stream that goes on for 64 MiB takes the memory of the 1,008 bytes that the header announces."""
    path = write_meta(folder, "LOCAL", zlib.compress(VOXELS.tobytes("F") + bytes(2**26)), CompressedData="True")
    load = open_scan(path)[1]
    tracemalloc.start()
    try:
        voxels = load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(voxels, VOXELS)
    assert peak < 2**22  # a block of the file, 1 MiB at most, and what zlib has not used of it


def test_the_files_that_ended_the_process(shared, tmp_path):
    for name in ("ndims_99.mhd", "format_pattern.mhd", "long_space.nhdr"):
        with pytest.raises(BadScanError, match=name):
            open_scan(str(shared / "cases/files" / name))


@pytest.mark.parametrize(("name", "line"), [("a.mhd", "ElementDataFile = {}"), ("a.nhdr", "data file: {}")])
def test_voxel_files_of_names_that_no_file_can_have_are_missing(tmp_path, name, line):
    meta = "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 1\nDimSize = 4 4 4\nElementType = MET_SHORT\n"
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
    nrrd += "space directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
    (tmp_path / name).write_text((meta if name == "a.mhd" else nrrd) + line.format("a" * 300) + "\n")
    with pytest.raises(BadScanError, match="voxel file missing"):
        open_scan(str(tmp_path / name))
