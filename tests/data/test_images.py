from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2chat.data import images
from m2chat.data.images import BadImage, load_image, load_scaled, resize_crop, save_png


def as_bytes(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def test_png_survives_a_round_trip() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(save_png(pixels)), pixels)


def test_transparent_pixels_become_white() -> None:
    assert load_image(as_bytes(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")).min() == 255
    half = load_image(as_bytes(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"))
    assert abs(int(half[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    pixels = load_image(as_bytes(Image.new(mode, (3, 2)), "PNG"))
    assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert load_image(as_bytes(deep, "PNG"))[0, :, 0].tolist() == [0, 127, 255]


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(as_bytes(Image.new("RGB", (8, 4)), "JPEG", exif=exif.tobytes())).shape == (8, 4, 3)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="million pixels"):
        load_image(bomb)


@pytest.mark.parametrize(
    "data", [b"", b"<html>gone</html>", b"\xff\xd8\xff", as_bytes(Image.new("RGB", (2, 2)), "BMP")]
)
def test_what_is_no_picture_of_a_known_format_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        load_image(data)


def test_half_a_picture_is_refused() -> None:
    whole = save_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(BadImage):
        load_image(whole[: len(whole) // 2])


def test_resize_crop() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200  # the central square
    square, corner = resize_crop(pixels, 20)
    assert square.shape == (20, 20, 3) and corner == (0, 10)
    assert square[:, 3:-3].min() >= 198
    assert resize_crop(square, 20)[0] is square
    assert resize_crop(np.zeros((3000, 1, 3), np.uint8), 64)[0].shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_large_pictures_are_the_same_in_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 21, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_bytes(picture if mode == "I;16" else picture.convert(mode), "PNG", exif=exif)
    whole = load_image(data)
    assert whole.shape == (21, 37, 3)
    monkeypatch.setattr(images, "_BAND", 500)
    np.testing.assert_array_equal(load_image(data), whole)
    half = load_image(data, halve_above=700)
    assert half.shape == (11, 19, 3) and abs(half.mean() - whole.mean()) < 3


@pytest.mark.fixtures
def test_hostile_files_are_read_or_refused(samples_folder: Path) -> None:
    good = set()
    for path in sorted((samples_folder / "bad_images").iterdir()):
        try:
            pixels = load_image(path.read_bytes())
        except BadImage:
            continue
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
        good.add(path.name)
    assert {"alpha.png", "cmyk.jpg", "exif6.jpg", "i16.png", "palette.gif", "webp.webp", "tiny.jpg"} <= good
    assert not good & {"empty.jpg", "html.jpg", "truncated.jpg", "pillow_zero_width.gif", "pillow_16bit.cropped.tif"}


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_scaled_picture_is_nearly_the_same(decoder: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed: pip install 'm2chat[fast]'")
    rows, columns = np.mgrid[:301, :402]
    smooth = np.stack([rows / 301 * 255, columns / 402 * 255, np.full(rows.shape, 90)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(Image.fromarray(smooth), "JPEG", quality=95, exif=exif)
    whole = load_image(data)
    for side, factor in ((64, 4), (75, 4), (76, 2), (150, 2), (151, 1), (30, 8)):
        scaled, size = load_scaled(data, side)
        assert size == whole.shape[:2] == ((301, 402) if orientation == 1 else (402, 301))
        assert scaled.shape[:2] == tuple(-(-length // factor) for length in size) and min(scaled.shape[:2]) >= side
        ours, theirs = resize_crop(scaled, 30)[0], resize_crop(whole, 30)[0]
        assert np.abs(ours.astype(int) - theirs).max() <= 6
    assert load_scaled(save_png(smooth), 10)[0].shape == smooth.shape
    with pytest.raises(BadImage, match="undecodable picture"):
        load_scaled(data[:500], 30)
