"""Pictures from bytes that nobody vouches for, and pictures as the networks want them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PILImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Formats that are decoded at all; every further decoder is a further door."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels: a compressed file of some kB can claim any size."""


class BadImage(ValueError):
    """A picture that cannot be used.

    Args:
        reason: Why, in words that are the same for all pictures with the same fault, so that they can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _flatten(image: PILImage) -> PILImage:
    """Any mode as RGB: 16-bit scaled and not clipped, transparency on white as a page would show it."""
    from PIL import Image

    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


@contextmanager
def opened(data: bytes) -> Iterator[PILImage]:
    """A picture whose pixels are not decoded yet; whatever goes wrong until it is closed is a `BadImage`.

    Args:
        data: A file of one of `FORMATS`.

    Raises:
        BadImage: If the format is another, the picture is empty, broken or larger than `MAX_PIXELS`.
    """
    from PIL import Image

    if not data:
        raise BadImage("empty picture file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"picture of more than {MAX_PIXELS // 10**6} million pixels")
            if not width * height:
                raise BadImage("picture without pixels")
            yield image
    except BadImage:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError and more on broken files.
        raise BadImage(f"undecodable picture ({type(error).__name__})") from error


def load_image(data: bytes, halve_above: int | None = None) -> NDArray[np.uint8]:
    """Decodes a picture; upright by its EXIF orientation, the first frame if it moves.

    Args:
        data: A file of one of `FORMATS`.
        halve_above: A JPEG of more pixels is decoded at half its width and height; None never does.

    Returns:
        RGB, (H, W, 3), 0-255.

    Raises:
        BadImage: If the format is another, the picture is empty, broken or larger than `MAX_PIXELS`.
    """
    from PIL import ImageOps

    with opened(data) as image:
        width, height = image.size
        if halve_above is not None and width * height > halve_above:
            image.draft(None, (width // 2, height // 2))
        return np.array(_flatten(ImageOps.exif_transpose(image)), dtype=np.uint8)


def save_png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture of RGB (H, W, 3), 0-255, as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def resize_crop(pixels: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Brings the short side to a length, then takes the central square.

    Args:
        pixels: RGB, (H, W, 3), 0-255.
        size: Side of the square, in pixels.

    Returns:
        The square, (size, size, 3), the same array if it already was one; and the top and left of the crop, in
        pixels of the resized picture.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels, (0, 0)
    from PIL import Image

    scale = size / min(height, width)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    top, left = (high - size) // 2, (wide - size) // 2
    # Pillow resizes just the part that the square needs: a banner of 1 x 60,000,000 pixels must not explode.
    box = (left / wide * width, top / high * height, (left + size) / wide * width, (top + size) / high * height)
    square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square), (top, left)


def to_unit_range(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """A picture of (H, W, 3), 0-255, as the image decoder wants it: (3, H, W), float, in [-1, 1]."""
    import torch

    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def normalised(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A picture as the vision encoder wants it.

    Args:
        pixels: RGB, (H, W, 3), 0-255.
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].

    Returns:
        (3, H, W), float.
    """
    import torch

    scaled = (pixels.astype(np.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(scaled).permute(2, 0, 1)
