"""Files that are sent as pictures: those that are none of ours, and those that are, if in unusual forms."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

HEAD = b"\x89PNG\r\n\x1a\n"


def colours(height: int = 32, width: int = 32) -> Any:
    """A picture of which no two corners are alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


def encoded(kind: str, image: Any = None, **how: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    (Image.fromarray(colours()) if image is None else image).save(buffer, kind, **how)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A piece of a PNG."""
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of little data that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        HEAD + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _jpeg_of(side: int) -> bytes:
    """A JPEG whose header claims a size."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", encoded("PNG"))
    return buffer.getvalue()


def malformed() -> dict[str, bytes]:
    """Files that no decoder should take, by what is wrong with them."""
    files: dict[str, bytes] = {"nothing": b"", "a byte": b"\x89", "zeros": bytes(1000), "line feeds": b"\n" * 100}
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = encoded(kind)
        for part in (3, 12, len(whole) // 10, len(whole) // 4, len(whole) // 2):
            files[f"{kind} cut to {part} of {len(whole)}"] = whole[:part]
        files[f"{kind} behind a blank"] = b" " + whole
        files[f"{kind} with zeros inside"] = whole[:12] + bytes(len(whole) - 12)
    whole = encoded("PNG")
    files |= {
        "PNG of no width": png(0, 10),
        "PNG of no height": png(10, 0),
        "PNG of depth 3": png(8, 8, depth=3),
        "PNG of colour type 9": png(8, 8, colour=9),
        "PNG with a wrong sum": HEAD + chunk(b"IHDR", whole[16:29], 0) + whole[33:],
        "PNG without pixels": whole[:33] + chunk(b"IEND", b""),
        "PNG whose pixels are no zlib": whole[:33] + chunk(b"IDAT", b"x" * 100) + chunk(b"IEND", b""),
        "PNG of too few pixels": png(500, 500, colour=2),
        "PNG whose chunk claims 2 GiB": whole[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + whole[41:60],
        "PNG that is a bomb of pixels": png(20_000, 20_000),
        "PNG of the largest size": png(2**31 - 1, 2**31 - 1),
        "PNG of one endless row": png(2**31 - 1, 1),
        "PNG with a bomb of text": png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23)))),
        "JPEG that claims 65500 pixels a side": _jpeg_of(65_500),
        "JPEG of no size": _jpeg_of(0),
        "JPEG of nothing but its ends": b"\xff\xd8\xff\xd9",
        "GIF that claims 65535 pixels a side": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
        "WebP that claims 16384 pixels a side": b"RIFF\x1e\0\0\0WEBPVP8X\n" + bytes(7) + b"\xff\x3f\0\xff\x3f\0VP8L",
        "text": b"this is no picture",
        "UTF-16": "this is no picture".encode("utf-16"),
        "HTML": b"<html><script>alert(1)</script></html>",
        "JSON": json.dumps({"picture": "none"}).encode(),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "SVG with an entity": b"<!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>",
        "PDF": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n",
        "ZIP": _zip(),
        "ELF": b"\x7fELF" + bytes(60),
        "MP4": b"\0\0\0\x18ftypmp42" + bytes(60),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(60),
        "WAV": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "PSD": b"8BPS\0\x01" + bytes(60),
        "XPM": b'/* XPM */ static char *x[] = {"1 1 1 1"};',
        **{kind: encoded(kind) for kind in ("TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "DDS")},
    }  # fmt: skip
    return files


def unusual() -> dict[str, tuple[bytes, Any]]:
    """Files that are pictures, and the RGB that a person would see; None where only the size is sure."""
    seen, image = colours(), Image.fromarray(colours())
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    red = np.asarray(frames[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = np.rot90(colours(32, 48), -1)
    note = PngInfo()
    note.add_text("Comment", "<script>" * 100)
    moving = {"save_all": True, "append_images": frames[1:], "duration": 100}
    rgb = np.stack([np.asarray(grey)] * 3, -1)
    return {
        "GIF that moves": (encoded("GIF", frames[0], **moving), red),
        "PNG that moves": (encoded("PNG", frames[0], **moving), red),
        "WebP that moves": (encoded("WEBP", frames[0], lossless=True, **moving), red),
        "PNG of 16 bits": (encoded("PNG", deep), rgb),
        "PNG of grey and transparency": (encoded("PNG", grey.convert("LA")), rgb),
        "PNG that is clear": (encoded("PNG", clear), np.full((32, 32, 3), 255, np.uint8)),
        "PNG of one bit": (encoded("PNG", Image.new("1", (32, 32), 1)), np.full((32, 32, 3), 255, np.uint8)),
        "PNG of a palette": (encoded("PNG", frames[0].convert("P")), red),
        "PNG turned by EXIF": (encoded("PNG", Image.fromarray(colours(32, 48)), exif=exif), turned),
        "PNG with a comment": (encoded("PNG", pnginfo=note), seen),
        "PNG with something behind it": (encoded("PNG") + b"<script>alert(1)</script>", seen),
        "JPEG of four inks": (encoded("JPEG", image.convert("CMYK")), None),
        "JPEG of grey": (encoded("JPEG", grey), None),
        "JPEG in passes": (encoded("JPEG", progressive=True), None),
        "JPEG turned by EXIF": (encoded("JPEG", Image.fromarray(colours(48, 32)), exif=exif), None),
        "JPEG of two pictures": (encoded("MPO", image, save_all=True, append_images=[image]), None),
        "PNG of one pixel": (encoded("PNG", Image.new("RGB", (1, 1), "red")), red[:1, :1]),
    }


SIZES = {"JPEG turned by EXIF": (32, 48)}
"""(H, W) of those that are not 32 pixels a side."""
