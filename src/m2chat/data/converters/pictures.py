"""From an untrusted picture file to one that a shard may hold: unchanged if there is no fault in it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m2chat.data.images import MAX_PIXELS, BadImage, load_image, opened, save_png

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112
_QUALITY = 95
"""Quality of a JPEG that had to be written again; chroma keeps its full resolution."""
_HALVE_ABOVE = 16_000_000
"""Pixels above which a picture that has to be written again is halved: rotating a JPEG of 60 million takes 900 MB."""
_MOST = {"PNG": 48_000_000, "GIF": 48_000_000, "WEBP": 16_000_000}
"""Largest picture of a format that cannot be decoded at a smaller size: what fits into 300 MB of memory."""


@dataclass(frozen=True)
class Stored:
    """A picture as it goes into the shard.

    Args:
        suffix: Suffix of the file.
        data: Content of the file.
        size: Height and width, upright, in pixels.
        original_size: Height and width before it was halved, upright, in pixels.
    """

    suffix: str
    data: bytes
    size: tuple[int, int]
    original_size: tuple[int, int]


def stored(data: bytes, min_side: int = 1) -> Stored:
    """Checks a picture down to its last byte, and repairs it if needed.

    RGB files that stand upright keep their bytes. Everything else (grey, CMYK, palettes, 16 bits, transparency, EXIF
    orientation, moving pictures) becomes plain RGB: JPEG stays JPEG, the rest PNG, which loses nothing.

    Args:
        data: Content of a picture file.
        min_side: Least width and height, in pixels.

    Raises:
        BadImage: If it is empty, broken, of an unknown format, too large or too small.
    """
    with opened(data) as image:
        width, height = image.size
        if min(width, height) < min_side:
            raise BadImage(f"picture of less than {min_side} pixels a side")
        if width * height > _MOST.get(str(image.format), MAX_PIXELS):
            raise BadImage(f"{image.format} of more than {_MOST[str(image.format)] // 10**6} million pixels")
        lossy = image.format in ("JPEG", "MPO")
        rotated = image.getexif().get(_ORIENTATION, 1) >= 5  # by 90 or 270 degrees: width and height change places
        if _is_plain(image):
            # An eighth of a JPEG's size costs a fraction of time and memory, and still needs every byte of the file.
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
            return Stored(_SUFFIXES[str(image.format)], data, (height, width), (height, width))
    del image  # Reading a PNG's EXIF has decoded it: it must not stay in memory beside its second copy.
    pixels = load_image(data, _HALVE_ABOVE)
    size = (pixels.shape[0], pixels.shape[1])
    upright = (width, height) if rotated else (height, width)
    if not lossy:
        return Stored("png", save_png(pixels), size, upright)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    return Stored("jpg", buffer.getvalue(), size, upright)


def _is_plain(image: PILImage) -> bool:
    return (
        image.format in _SUFFIXES
        and image.mode == "RGB"
        and not image.has_transparency_data
        and not getattr(image, "is_animated", False)
        and image.getexif().get(_ORIENTATION, 1) == 1
    )
