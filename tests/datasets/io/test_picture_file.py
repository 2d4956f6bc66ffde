# SPDX-License-Identifier: Apache-2.0
"""Gray PNG and JPEG become shares of the full scale that the file states; what may mean two things is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from monai.transforms import LoadImage, Orientation
from PIL import Image, PngImagePlugin

from models_genesis.datasets import BadScanError, ScanReader, open_scan, read_scan_header

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)  # rows, columns


def save(tmp_path, array, name="a.png", mode=None, **arguments):
    path = tmp_path / name
    image = Image.fromarray(array) if mode is None else Image.fromarray(array, mode)
    image.save(path, **arguments)
    return str(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_value_is_its_share_of_what_the_bits_can_state(dtype, top, tmp_path):
    """Not of the brightest pixel: a dark picture stays dark."""
    array = (GRAY.astype(np.int64) * top // 255 // 3).astype(dtype)
    path = save(tmp_path, array)
    header, load = open_scan(path)
    assert header.shape == (30, 20, 1) and header.spacing == (1, 1, 1) and header.modality == ""
    voxels = load()
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels[..., 0].T, array / top, rtol=1e-6)


def test_two_and_four_bits_are_shares_of_their_own_full_scale(tmp_path):
    """Written by hand, since PIL writes no gray of 4 bits."""
    rows = np.arange(16, dtype=np.uint8).reshape(2, 8)
    packed = b"".join(b"\0" + bytes((row[::2] << 4 | row[1::2]).tolist()) for row in rows)

    path = tmp_path / "four.png"
    head = struct.pack(">IIBBBBB", 8, 2, 4, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    )
    np.testing.assert_allclose(open_scan(str(path))[1]()[..., 0].T, rows / 15, atol=1e-6)


def test_a_gray_jpeg_is_read_as_pil_decodes_it(tmp_path):
    path = save(tmp_path, GRAY, "a.jpg", quality=90)
    np.testing.assert_allclose(open_scan(path)[1]()[..., 0].T, np.asarray(Image.open(path)) / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "P"])
def test_channels_that_are_alike_are_gray(kind, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GRAY).convert(kind).save(path)
    np.testing.assert_allclose(open_scan(str(path))[1]()[..., 0].T, GRAY / 255, rtol=1e-6)


def colour(tmp_path):
    array = np.stack([GRAY] * 3, -1)
    array[3, 4, 0] ^= 1  # one value of one pixel, by one
    return save(tmp_path, array)


def seen_through(tmp_path):
    alpha = np.full_like(GRAY, 255)
    alpha[0, 0] = 254
    return save(tmp_path, np.stack([GRAY, GRAY, GRAY, alpha], -1))


def turned(tmp_path, name="a.jpg"):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(tmp_path, GRAY, name, exif=exif)


def turned_png(tmp_path):
    return turned(tmp_path, "a.png")


def turned_by_xmp(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    return save(tmp_path, GRAY, pnginfo=info)


def several(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GRAY).save(path, save_all=True, append_images=[Image.fromarray(255 - GRAY)])
    return str(path)


def cmyk(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.stack([GRAY] * 4, -1), "CMYK").save(path)
    return str(path)


def one_bit(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GRAY).convert("1").save(path)
    return str(path)


def palette_of_colours(tmp_path):
    path = tmp_path / "a.png"
    picture = Image.fromarray(GRAY).convert("P")
    picture.putpalette([value for number in range(256) for value in (number, 255 - number, 0)])
    picture.save(path)
    return str(path)


def not_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text" * 100)
    return str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (colour, r"colour: expected gray, .* found them up to 1 of 255 apart"),
        (palette_of_colours, "colour: expected gray"),
        (cmyk, "colour: .* found the kind CMYK"),
        (one_bit, "colour: expected gray values of 2 to 16 bits, found the kind 1"),
        (seen_through, "transparent"),
        (turned, "rotated by EXIF: expected an upright picture, found orientation 6"),
        (turned_png, "rotated by EXIF: expected an upright picture, found orientation 6"),
        (turned_by_xmp, "rotated by EXIF: expected an upright picture, found orientation 6"),
        (several, "several pictures: expected one picture, found 2"),
        (not_a_picture, "unreadable"),
    ],
)
def test_what_is_not_surely_gray_is_refused_by_name(make, reason, tmp_path):
    path = make(tmp_path)
    with pytest.raises(BadScanError, match=f"{path}: {reason}"):
        read_scan_header(path)


def test_gray_of_16_bits_with_transparency_is_refused_since_pil_would_give_8(tmp_path):
    path = tmp_path / "a.png"
    head = struct.pack(">IIBBBBB", 4, 4, 16, 4, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34\xff\xff" * 4) * 4)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(BadScanError, match="colour: expected one gray value a pixel where it has 16 bits"):
        open_scan(str(path))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_that_is_cut_off_is_named_when_it_is_read(name, tmp_path):
    """Its header is whole, and says all that a data list needs."""
    path = save(tmp_path, np.tile(GRAY, (5, 5)), name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    header, load = open_scan(path)
    assert header.shape == (150, 100, 1)
    with pytest.raises(BadScanError, match=f"{path}: unreadable: expected a whole PNG or JPEG file, found .*truncated"):
        load()


def test_the_size_is_checked_before_a_pixel_is_decoded(tmp_path, monkeypatch):
    """A small file may claim, and hold, gigabytes."""
    path = tmp_path / "a.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9001)) + chunk(b"IEND", b""))
    loaded = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda picture: loaded.append(picture))
    with pytest.raises(BadScanError, match="too large: expected at most 67,108,864 pixels, found 9000 x 9000"):
        open_scan(str(path))
    assert open_scan(save(tmp_path, GRAY, "b.png"))[0].shape == (30, 20, 1)
    assert not loaded


def test_an_orientation_after_the_pixels_is_found_when_they_are_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, GRAY)
    content = (tmp_path / "a.png").read_bytes()
    end = content.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + content[end:])
    load = open_scan(path)[1]
    with pytest.raises(BadScanError, match=f"{path}: rotated by EXIF"):
        load()


def test_monai_loads_and_turns_it_as_an_axial_slice_that_is_shown_alike(tmp_path):
    """Columns count to the patient's left and rows to the back, as in a slice of a CT."""
    image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(save(tmp_path, GRAY))
    assert image.shape == (1, 30, 20, 1)
    turned_to_ras = Orientation(axcodes="RAS", labels=None)(image)
    np.testing.assert_allclose(np.asarray(turned_to_ras)[0, ::-1, ::-1, 0].T, GRAY / 255, rtol=1e-6)
