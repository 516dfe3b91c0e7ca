from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2chat.data.converters.pictures import stored
from m2chat.data.images import BadImage, load_image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_what_is_right_keeps_its_bytes(raw: Any, form: str, suffix: str) -> None:
    data = raw.as_bytes(raw.photo(), form)
    kept = stored(data)
    assert (kept.suffix, kept.data, kept.size) == (suffix, data, (40, 48))


@pytest.mark.parametrize(
    ("make", "form", "suffix"),
    [
        (lambda raw: raw.photo(mode="L"), "JPEG", "jpg"),
        (lambda raw: raw.photo(mode="CMYK"), "JPEG", "jpg"),
        (lambda raw: raw.photo(mode="P"), "GIF", "png"),
        (lambda raw: raw.photo(mode="RGBA"), "PNG", "png"),
        (lambda raw: raw.photo(mode="LA"), "PNG", "png"),
        (lambda raw: Image.fromarray(np.full((40, 48), 32768, np.uint16)), "PNG", "png"),
    ],
    ids=["grey", "cmyk", "palette", "alpha", "grey-alpha", "16-bit"],
)
def test_what_is_not_plain_becomes_rgb(raw: Any, make: Callable[[Any], Image.Image], form: str, suffix: str) -> None:
    data = raw.as_bytes(make(raw), form)
    repaired = stored(data)
    assert repaired.suffix == suffix and repaired.size == (40, 48)
    with Image.open(io.BytesIO(repaired.data)) as image:
        assert image.mode == "RGB"
    np.testing.assert_allclose(load_image(repaired.data).astype(int), load_image(data).astype(int), atol=6)


def test_transparency_is_laid_on_white(raw: Any) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert load_image(stored(raw.as_bytes(clear, "PNG")).data).min() == 255


def test_a_turned_photo_stands_upright(raw: Any) -> None:
    repaired = stored(raw.as_bytes(raw.photo(), exif=turned().tobytes()))
    assert (repaired.suffix, repaired.size) == ("jpg", (48, 40))
    with Image.open(io.BytesIO(repaired.data)) as image:
        assert image.size == (40, 48) and 0x0112 not in image.getexif()


def test_a_very_large_photo_is_halved_if_it_has_to_be_turned(raw: Any) -> None:
    large = raw.photo(width=6000, height=3001)
    plain, repaired = stored(raw.as_bytes(large)), stored(raw.as_bytes(large, exif=turned().tobytes()))
    assert plain.size == plain.original_size == (3001, 6000)
    assert (repaired.size, repaired.original_size) == ((3000, 1501), (6000, 3001))


def test_of_a_moving_picture_the_first_frame_is_kept(raw: Any) -> None:
    first, second = raw.photo(1), raw.photo(2)
    moving = raw.as_bytes(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(load_image(stored(moving).data), np.asarray(first))


def bomb(side: int = 9000) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_what_cannot_be_used_says_why(raw: Any) -> None:
    whole = raw.as_bytes(raw.photo(width=200, height=200), quality=95)
    png = raw.as_bytes(raw.photo(width=200, height=200), "PNG")
    for data, reason in (
        (b"", "empty picture file"),
        (b"<html>gone</html>", "undecodable"),
        (whole[: len(whole) // 2], "undecodable"),
        (png[: len(png) // 2], "undecodable"),
        (bomb(), "more than 64 million pixels"),
        (bomb(7500), "PNG of more than 48 million pixels"),
        (raw.as_bytes(raw.photo(width=31)), "less than 32 pixels a side"),
        (raw.as_bytes(raw.photo(), "BMP"), "undecodable"),
    ):
        with pytest.raises(BadImage, match=reason):
            stored(data, 32)


@pytest.mark.fixtures
def test_it_refuses_what_reading_refuses(samples_folder: Path) -> None:
    def taken(read: Callable[[bytes], object], path: Path) -> bool:
        try:
            read(path.read_bytes())
        except BadImage:
            return False
        return True

    files = sorted((samples_folder / "bad_images").iterdir())
    assert {path.name for path in files if taken(stored, path)} == {
        path.name for path in files if taken(load_image, path)
    }
