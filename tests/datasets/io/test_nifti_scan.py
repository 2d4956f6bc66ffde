# SPDX-License-Identifier: Apache-2.0
"""NIfTI: the rule for where the voxels are, held against nibabel and ITK over all combinations; sizes; predictions."""

from __future__ import annotations

import gzip
import itertools
import math

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage, SaveImage
from scipy.spatial.transform import Rotation

from models_genesis.datasets import BadScanError, ScanReader, ScanWriter, open_scan, read_scan_header
from models_genesis.datasets.io import nifti_scan
from models_genesis.datasets.io.scan_geometry import ScanHeader, check_geometry

SHAPE = (6, 5, 4)
VOXELS = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
PLAIN = np.array([[-1.5, 0, 0, 30], [0, -2, 0, 20], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
TURNED = np.eye(4)
TURNED[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
TURNED = TURNED @ PLAIN
MOVED = PLAIN + np.array([[0, 0, 0, 7]] * 3 + [[0, 0, 0, 0]])
SCALED = PLAIN @ np.diag([1.3, 1, 1, 1])
SHEARED = PLAIN.copy()
SHEARED[1, 2] = 0.9
AFFINES = {"plain": PLAIN, "turned": TURNED, "moved": MOVED, "scaled": SCALED, "sheared": SHEARED}


def write(path, sform, sform_code, qform, qform_code, **fields):
    """Write a file with both forms and their codes, byte by byte, so that no library mends it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header.set_qform(qform, 1)
    header.set_sform(sform, 1)
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    header["vox_offset"], header["magic"] = 352, b"n+1"
    if qform_code == 0 and sform is SHEARED:
        header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes("F"))
    return str(path)


def by_nibabel(path):
    image = nib.load(path)
    unit = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
    return np.diag([unit, unit, unit, 1]) @ image.affine


def by_itk(path):
    image = itk.imread(path)
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


def readings(path):
    found = []
    for read in (by_nibabel, by_itk):
        try:
            found.append(read(path))
        except Exception:
            found.append(None)
    return found


@pytest.mark.parametrize(("sform", "qform"), [*itertools.product(AFFINES, ["plain", "turned", "moved"])])
@pytest.mark.parametrize("codes", [*itertools.product((0, 1, 2, 4), (0, 1, 2))])
def test_the_rule_is_that_on_which_nibabel_and_itk_agree(sform, qform, codes, tmp_path):
    path = write(tmp_path / "scan.nii", AFFINES[sform], codes[0], AFFINES[qform], codes[1])
    nibabels, itks = readings(path)
    if itks is not None and np.allclose(nibabels, itks, atol=1e-3):
        np.testing.assert_allclose(read_scan_header(path).affine, nibabels, atol=1e-5)
    elif itks is None:  # ITK reads no shear: nothing contradicts the sform
        assert sform == "sheared" and codes[1] == 0
        np.testing.assert_allclose(read_scan_header(path).affine, nibabels, atol=1e-5)
    else:
        with pytest.raises(BadScanError, match=r"no orientation|contradictory header"):
            read_scan_header(path)


def test_codes_that_are_both_zero_say_nothing(tmp_path):
    path = write(tmp_path / "scan.nii", PLAIN, 0, PLAIN, 0)
    with pytest.raises(BadScanError, match=r"scan.nii: no orientation: expected an sform_code or a qform_code above 0"):
        read_scan_header(path)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (4, 1), (10, 1), (19, 0.001)])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (1, 1)])
def test_units_are_turned_into_mm(code, factor, forms, tmp_path):
    affine = np.diag([1 / factor] * 3 + [1]) @ PLAIN
    path = write(tmp_path / "scan.nii", affine, forms[0], affine, forms[1], xyzt_units=code)
    np.testing.assert_allclose(read_scan_header(path).affine, PLAIN, rtol=1e-5)
    np.testing.assert_allclose(by_itk(path), PLAIN, rtol=1e-5)


@pytest.mark.parametrize(("side", "good"), [(0.00099, False), (0.001, True), (100.0, True), (100.1, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxel_sides_from_a_thousandth_to_a_hundred_mm_are_read(side, good, axis, tmp_path):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = side
    header = ScanHeader((2, 2, 2), tuple(spacing), np.diag([*spacing, 1.0]))
    if good:
        check_geometry("scan", header)
    else:
        with pytest.raises(BadScanError, match=r"bad spacing: expected voxel sides of 0.001 to 100 mm, found .* mm$"):
            check_geometry("scan", header)


@pytest.mark.parametrize("code", [1, 3])
def test_a_unit_that_cannot_be_true_is_refused(code, tmp_path):
    sides = np.diag([0.0005 if code == 3 else 0.7] * 3 + [1.0])
    with pytest.raises(BadScanError, match=r"bad spacing: expected voxel sides of 0.001 to 100 mm"):
        read_scan_header(write(tmp_path / "scan.nii", sides, 1, sides, 1, xyzt_units=code))


def sides(x, y, z, sign=1.0):
    return np.array([sign, x, y, z, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("pixdim", "forms", "message"),
    [
        (sides(0, 2, 2.5), (1, 0), "bad spacing.*found 0 x 2 x 2.5"),
        (sides(-1.5, 2, 2.5), (1, 1), "bad spacing.*found -1.5"),
        (sides(np.nan, 2, 2.5), (0, 1), "bad spacing.*found nan"),
        (sides(3, 2, 2.5), (1, 0), r"contradictory header: expected an sform with the voxel sides \[3"),
        (sides(3, 2, 2.5), (1, 1), "contradictory header"),
    ],
)
def test_voxel_sides_that_contradict_are_refused(pixdim, forms, message, tmp_path):
    with pytest.raises(BadScanError, match=message):
        read_scan_header(write(tmp_path / "scan.nii", PLAIN, forms[0], PLAIN, forms[1], pixdim=pixdim))


@pytest.mark.parametrize("sign", [1.0, 0.0, -1.0])
def test_the_sign_of_the_third_axis_of_a_qform(sign, tmp_path):
    path = write(tmp_path / "scan.nii", PLAIN, 0, PLAIN, 1, pixdim=sides(1.5, 2, 2.5, sign))
    np.testing.assert_allclose(read_scan_header(path).affine, by_nibabel(path), atol=1e-5)
    np.testing.assert_allclose(read_scan_header(path).affine, by_itk(path), atol=1e-5)


def oblique(seed, sign=1):
    """Voxels turned about all three axes at once, so that no part of the quaternion is zero."""
    R = np.random.RandomState(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=R).as_matrix() * R.uniform(0.5, 3, 3) * (1, 1, sign)
    affine[:3, 3] = R.uniform(-200, 200, 3)
    return affine


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (2, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_voxels_turned_about_all_axes_lie_where_nibabel_and_itk_put_them(seed, codes, sign, tmp_path):
    affine = oblique(seed, sign)
    path = write(tmp_path / "scan.nii", affine, codes[0], affine, codes[1])
    found = read_scan_header(path).affine
    # the header has single precision: 200 mm to 8e-6, and a turn to 1e-7 of 18 mm
    for expected in (affine, by_nibabel(path), by_itk(path)):
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("length", [1.0, 1.000001, 1.0001, 1.0009])
def test_a_quaternion_a_hair_too_long_is_shortened(length, tmp_path):
    path = write(tmp_path / "scan.nii", PLAIN, 0, PLAIN, 1, quatern_b=0, quatern_c=0, quatern_d=length)
    np.testing.assert_allclose(read_scan_header(path).affine, by_itk(path), atol=1e-4)


def test_a_quaternion_much_too_long_is_refused(tmp_path):
    with pytest.raises(BadScanError, match="expected a quaternion of length 1 at most"):
        read_scan_header(write(tmp_path / "scan.nii", PLAIN, 0, PLAIN, 1, quatern_b=0.9, quatern_c=0.9))


@pytest.mark.parametrize("fields", [{"srow_x": np.zeros(4)}, {"srow_y": [0, np.nan, 0, 0]}])
def test_an_sform_that_is_none_is_refused(fields, tmp_path):
    with pytest.raises(BadScanError, match="bad affine"):
        read_scan_header(write(tmp_path / "scan.nii", PLAIN, 1, PLAIN, 1, **fields))


@pytest.mark.parametrize("kind", ["<", ">"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("tail", [(), (1,), (1, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_byte_order_version_and_trailing_axes(kind, version, tail, suffix, tmp_path):
    header = version.header_class(endianness=kind)
    header.set_data_dtype(np.int16)
    image = version(VOXELS.reshape(*SHAPE, *tail), PLAIN, header)
    path = str(tmp_path / f"scan{suffix}")
    nib.save(image, path)
    header, load = open_scan(path)
    assert header.shape == SHAPE
    np.testing.assert_array_equal(load(), VOXELS)
    loaded = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(path)
    assert loaded.shape == (1, *SHAPE) and loaded.dtype.itemsize == 2
    np.testing.assert_allclose(loaded.affine, PLAIN)


@pytest.mark.parametrize("kind", ["<", ">"])
def test_what_follows_the_length_of_the_header_does_not_matter(kind, tmp_path):
    """The ten bytes of data_type are unused, and need not be zero."""
    header = nib.Nifti1Header(endianness=kind)
    header.set_data_dtype(np.int16)
    header["data_type"] = b"anything!"
    content = bytearray(nib.Nifti1Image(VOXELS, PLAIN, header).to_bytes())
    content[4:14] = b"\xffanything!"
    (tmp_path / "scan.nii").write_bytes(content)
    np.testing.assert_array_equal(open_scan(str(tmp_path / "scan.nii"))[1](), VOXELS)


def test_values_are_scaled_as_nibabel_does(tmp_path):
    path = write(tmp_path / "scan.nii", PLAIN, 1, PLAIN, 1, scl_slope=0.5, scl_inter=-3)
    np.testing.assert_array_equal(open_scan(path)[1](), nib.load(path).get_fdata())
    with pytest.raises(BadScanError, match="bad scaling"):
        read_scan_header(write(tmp_path / "inf.nii", PLAIN, 1, PLAIN, 1, scl_slope=np.inf))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 30000, 30000, 4, 1, 1, 1, 1]}, "too short: expected 7,200,000,352 bytes .* found 592"),
        ({"dim": [3, -6, 5, 4, 1, 1, 1, 1]}, "unreadable: expected one to seven axes"),
        ({"dim": [9, 6, 5, 4, 1, 1, 1, 1]}, "unreadable"),
        ({"dim": [5, 6, 5, 2, 1, 2, 1, 1]}, "not 3D: .*found 6 x 5 x 2 x 1 x 2"),
        ({"datatype": 77}, "unreadable: expected a known data type"),
        ({"datatype": 32, "bitpix": 64}, "not one value a voxel.*complex"),
        ({"datatype": 128, "bitpix": 24}, "not one value a voxel"),
        ({"vox_offset": 1e30}, "unreadable: expected voxels behind the header"),
        ({"vox_offset": 0}, "unreadable: expected voxels behind the header"),
        ({"vox_offset": np.nan}, "unreadable"),
        ({"magic": b"ni1"}, "unreadable.*voxels in another file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_claim_what_is_not_there_are_refused(fields, message, packed, tmp_path):
    path = write(tmp_path / "scan.nii", PLAIN, 1, PLAIN, 1, **fields)
    if packed:
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes()))
        path, message = f"{path}.gz", message.replace(" .* found 592", "")
    with pytest.raises(BadScanError, match=message):
        open_scan(path)


@pytest.mark.parametrize("cut", [10, 400, 560])
def test_truncated_files_are_refused_before_they_are_read(cut, tmp_path):
    rng = np.random.default_rng(0)
    content = nib.Nifti1Image(rng.integers(-999, 999, (9, 9, 9)).astype(np.int16), PLAIN).to_bytes()
    (tmp_path / "a.nii").write_bytes(content[:cut])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content)[:cut])
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content[:cut]))
    for name in ("a.nii", "b.nii.gz", "c.nii.gz"):
        with pytest.raises(BadScanError, match=f"{name}: (unreadable|too short)"):
            open_scan(str(tmp_path / name))


def test_a_whole_file_of_one_member_is_not_decompressed_to_be_measured(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(VOXELS, PLAIN), tmp_path / "scan.nii.gz")

    def refuse(scan, needed):
        raise AssertionError("decompressed")

    monkeypatch.setattr(nifti_scan, "_uncompressed_size", refuse)
    np.testing.assert_array_equal(open_scan(str(tmp_path / "scan.nii.gz"))[1](), VOXELS)


def test_a_gzip_file_of_several_members_is_whole(tmp_path):
    content = nib.Nifti1Image(VOXELS, PLAIN).to_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(open_scan(str(tmp_path / "scan.nii.gz"))[1](), VOXELS)


SOURCES = {
    "sform": (PLAIN, 2, PLAIN, 0, {}),
    "qform": (PLAIN, 0, TURNED, 1, {}),
    "both": (TURNED, 1, TURNED, 1, {}),
    "contradictory, but scanner": (PLAIN, 1, MOVED, 2, {}),
    "sheared": (SHEARED, 4, PLAIN, 0, {}),
    "oblique qform": (PLAIN, 0, oblique(1, -1), 1, {}),
    "oblique both": (oblique(2), 1, oblique(2), 1, {}),
    "template": (TURNED, 4, TURNED, 4, {}),
    "metre": (np.diag([1e-3] * 3 + [1]) @ PLAIN, 1, np.diag([1e-3] * 3 + [1]) @ PLAIN, 1, {"xyzt_units": 1}),
    "micrometre": (np.diag([1e3] * 3 + [1]) @ PLAIN, 1, np.diag([1e3] * 3 + [1]) @ PLAIN, 0, {"xyzt_units": 3}),
    "long quaternion": (PLAIN, 0, PLAIN, 1, {"quatern_b": 0, "quatern_c": 0, "quatern_d": 1.000001}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_prediction_lies_on_its_scan_for_nibabel_and_for_itk(kind, tmp_path):
    *forms, fields = SOURCES[kind]
    path = write(tmp_path / "scan.nii", *forms, **fields)
    image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(path)
    SaveImage(tmp_path / "out", "seg", output_dtype=np.uint8, writer=ScanWriter, resample=False, separate_folder=False)(
        image * 0 + 1
    )
    written = str(tmp_path / "out/scan_seg.nii.gz")
    expected, found = nib.load(path) if kind != "long quaternion" else None, nib.load(written)
    assert found.shape == SHAPE
    np.testing.assert_allclose(read_scan_header(written).affine, read_scan_header(path).affine, rtol=1e-6)
    if expected is not None:
        np.testing.assert_array_equal(found.affine, expected.affine)
        for name in ("sform_code", "qform_code", "xyzt_units"):
            assert found.header[name] == expected.header[name]
    if kind != "sheared":
        np.testing.assert_allclose(by_itk(written), by_itk(path), atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 1e-17, 6e-17, 1e-8])
@pytest.mark.parametrize("axes", [*itertools.permutations(range(3))])
def test_a_prediction_keeps_the_voxels_of_scans_along_any_axes(axes, noise, tmp_path):
    """Sagittal and coronal scans too, exactly along the patient's axes and by as little off as sines of 180 degrees."""
    random = np.random.default_rng(list(axes))
    for number, signs in enumerate(itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, list(axes)] * signs * [1, 1.5, 2] + noise * random.standard_normal((3, 3))
        affine[:3, 3] = 30, -20, 10
        header = nib.Nifti1Header()
        header["pixdim"][1:4] = 1, 1.5, 2
        picture = nib.Nifti1Image(VOXELS, None, header)
        picture.set_sform(affine, code=1)
        nib.save(picture, tmp_path / f"scan{number}.nii.gz")
        image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(tmp_path / f"scan{number}.nii.gz")
        save = SaveImage(
            tmp_path, "seg", output_dtype=np.uint8, writer=ScanWriter, resample=False, separate_folder=False
        )
        save(image)
        written = nib.load(tmp_path / f"scan{number}_seg.nii.gz")
        np.testing.assert_array_equal(written.dataobj, VOXELS)
        np.testing.assert_array_equal(written.affine, nib.load(tmp_path / f"scan{number}.nii.gz").affine)


@pytest.mark.parametrize("affine", [PLAIN, TURNED])
def test_a_prediction_on_another_format_lies_there_for_both(affine, tmp_path):
    picture = itk.image_from_array(np.ascontiguousarray(VOXELS.T))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    picture.SetSpacing(lengths.tolist())
    picture.SetDirection(lps[:3, :3] / lengths)
    picture.SetOrigin(lps[:3, 3].tolist())
    itk.imwrite(picture, str(tmp_path / "scan.mha"))
    image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(tmp_path / "scan.mha")
    SaveImage(tmp_path, "seg", output_dtype=np.uint8, writer=ScanWriter, resample=False, separate_folder=False)(image)
    written = str(tmp_path / "scan_seg.nii.gz")
    np.testing.assert_allclose(nib.load(written).affine, affine, atol=1e-4)
    np.testing.assert_allclose(by_itk(written), affine, atol=1e-4)
    header = nib.load(written).header
    assert (header["sform_code"], header["qform_code"], header.get_xyzt_units()[0]) == (1, 1, "mm")


def test_a_single_slice_keeps_its_third_axis(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS[..., :1], PLAIN), tmp_path / "slice.nii.gz")
    image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(tmp_path / "slice.nii.gz")
    assert image.shape == (1, 6, 5, 1)
    SaveImage(tmp_path, "seg", output_dtype=np.uint8, writer=ScanWriter, resample=False, separate_folder=False)(image)
    assert nib.load(tmp_path / "slice_seg.nii.gz").shape == (6, 5, 1)


@pytest.mark.parametrize("magic", [b"n+1\xff", b"ni1\0", b"n+1 "])
def test_another_magic_is_refused(tmp_path, magic):
    """As nibabel and ITK refuse it: all four bytes count."""
    content = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    content[344:348] = magic
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(BadScanError, match=r"a\.nii.*the magic"):
        open_scan(str(tmp_path / "a.nii"))
