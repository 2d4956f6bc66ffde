# SPDX-License-Identifier: Apache-2.0
"""Gray PNG and JPEG become shares of the full scale that the file states; what may mean two things is refused."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import LoadImage, Orientation
from PIL import Image

from models_genesis.datasets import BadScanError, ScanReader, open_scan, read_scan_header

GREY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)  # rows, columns


def save(tmp_path, array, name="a.png", mode=None, **arguments):
    path = tmp_path / name
    image = Image.fromarray(array) if mode is None else Image.fromarray(array, mode)
    image.save(path, **arguments)
    return str(path)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_value_is_its_share_of_what_the_bits_can_state(dtype, top, tmp_path):
    """Not of the brightest pixel: a dark picture stays dark."""
    array = (GREY.astype(np.int64) * top // 255 // 3).astype(dtype)
    path = save(tmp_path, array)
    header, load = open_scan(path)
    assert header.shape == (30, 20, 1) and header.spacing == (1, 1, 1) and header.modality == ""
    voxels = load()
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels[..., 0].T, array / top, rtol=1e-6)


def test_two_and_four_bits_are_shares_of_their_own_full_scale(tmp_path):
    """Written by hand, since PIL writes no gray of 4 bits."""
    import struct
    import zlib

    rows = np.arange(16, dtype=np.uint8).reshape(2, 8)
    packed = b"".join(b"\0" + bytes((row[::2] << 4 | row[1::2]).tolist()) for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "four.png"
    head = struct.pack(">IIBBBBB", 8, 2, 4, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    )
    np.testing.assert_allclose(open_scan(str(path))[1]()[..., 0].T, rows / 15, atol=1e-6)


def test_a_gray_jpeg_is_read_as_pil_decodes_it(tmp_path):
    path = save(tmp_path, GREY, "a.jpg", quality=90)
    np.testing.assert_allclose(open_scan(path)[1]()[..., 0].T, np.asarray(Image.open(path)) / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "P"])
def test_channels_that_are_alike_are_gray(kind, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).convert(kind).save(path)
    np.testing.assert_allclose(open_scan(str(path))[1]()[..., 0].T, GREY / 255, rtol=1e-6)


def colour(tmp_path):
    array = np.stack([GREY] * 3, -1)
    array[3, 4, 0] ^= 1  # one value of one pixel, by one
    return save(tmp_path, array)


def seen_through(tmp_path):
    alpha = np.full_like(GREY, 255)
    alpha[0, 0] = 254
    return save(tmp_path, np.stack([GREY, GREY, GREY, alpha], -1))


def turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(tmp_path, GREY, "a.jpg", exif=exif)


def several(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    return str(path)


def cmyk(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.stack([GREY] * 4, -1), "CMYK").save(path)
    return str(path)


def one_bit(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).convert("1").save(path)
    return str(path)


def palette_of_colours(tmp_path):
    path = tmp_path / "a.png"
    picture = Image.fromarray(GREY).convert("P")
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
        (turned, "to be turned: .* EXIF orientation 6"),
        (several, "several pictures: expected one picture, found 2"),
        (not_a_picture, "unreadable"),
    ],
)
def test_what_is_not_surely_gray_is_refused_by_name(make, reason, tmp_path):
    path = make(tmp_path)
    with pytest.raises(BadScanError, match=f"{path}: {reason}"):
        read_scan_header(path)


def test_gray_of_16_bits_with_transparency_is_refused_since_pil_would_give_8(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "a.png"
    head = struct.pack(">IIBBBBB", 4, 4, 16, 4, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34\xff\xff" * 4) * 4)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(BadScanError, match="colour: expected one gray value a pixel where it has 16 bits"):
        open_scan(str(path))


def test_a_picture_that_is_cut_off_is_named_when_it_is_read(tmp_path):
    path = save(tmp_path, GREY)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadScanError, match=r"a\.png: unreadable"):
        open_scan(path)[1]()


def test_monai_loads_and_turns_it_as_an_axial_slice_that_is_shown_alike(tmp_path):
    """Columns count to the patient's left and rows to the back, as in a slice of a CT."""
    image = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(save(tmp_path, GREY))
    assert image.shape == (1, 30, 20, 1)
    turned_to_ras = Orientation(axcodes="RAS", labels=None)(image)
    np.testing.assert_allclose(np.asarray(turned_to_ras)[0, ::-1, ::-1, 0].T, GREY / 255, rtol=1e-6)
