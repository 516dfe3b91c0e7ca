"""Pictures from untrusted bytes, and their sizes as the networks expect them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # It is optional: `pip install 'm2chat[fast]'`.
    simplejpeg = None

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Formats that are decoded at all; every further decoder widens the attack surface."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels: a compressed file of a few kB can declare any size."""
_BAND = 4_000_000
"""Pixels above which a picture other than a JPEG is converted to RGB in bands."""
_EXIF_MARKS = (b"Exif", b"rientation")
"""Bytes that occur before the pixels of every JPEG that states an orientation, as EXIF or as XMP."""
_ORIENTATION = 0x0112
_COLOURS = ("Gray", "RGB", "YCbCr")


_TO_DECODE = {"GIF": 2.5, "PNG": 4.5, "WEBP": 16.5}
"""Memory that decoding takes at its peak, in bytes a pixel, as measured."""
_TO_DECODE_JPEG = (2.0, 6.0)
"""As above, of a JPEG at half its size: one whose rows come one behind the other, and one that grows clearer."""


class BadImage(ValueError):
    """A picture that cannot be used.

    Args:
        reason: Reason, in words that are the same for all pictures with the same fault, so that they can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _flatten(image: PILImage) -> PILImage:
    """Any mode as RGB: 16 bits are scaled, not clipped; transparency is laid on white, as a web page shows it."""
    from PIL import Image

    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535)
        return Image.fromarray((deep // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def pixels_of(image: PILImage) -> NDArray[np.uint8]:
    """The pixels of an open picture as every viewer shows it: the only way from Pillow to RGB.

    Upright by its EXIF orientation, transparency on white, 16 bits scaled, the frame that it stands at.

    Args:
        image: Picture of any mode.

    Returns:
        RGB, (H, W, 3), 0-255.
    """
    from PIL import ImageOps

    upright = image.getexif().get(_ORIENTATION, 1) == 1
    return np.array(_flatten(image if upright else ImageOps.exif_transpose(image)), dtype=np.uint8)


def _in_bands(image: PILImage, factor: int) -> NDArray[np.uint8]:
    """The upright RGB of a large picture, some rows at a time: in one piece, its copies would take 20 bytes a pixel.

    Args:
        image: Picture that was just opened, of any mode.
        factor: Divisor of width and height.

    Returns:
        RGB, (H, W, 3), 0-255.
    """
    from PIL import Image, ImageOps

    width, height = image.size
    whole = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    rows = factor * max(1, _BAND // (8 * width))
    for top in range(0, height, rows):
        band = _flatten(image.crop((0, top, width, min(top + rows, height)))).reduce(factor)
        whole[top // factor :][: band.height] = np.asarray(band)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return whole
    turned = Image.fromarray(whole)
    turned.getexif()[_ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(turned))


def decode_jpeg(data: bytes, side: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Pixels of a JPEG without its orientation, by simplejpeg if installed: a third faster than Pillow, same values.

    Both use libjpeg-turbo. None leaves the file to Pillow: if simplejpeg is missing, and if it refuses the file or only
    warns, so that the same samples are good whether or not simplejpeg is installed.

    Args:
        data: Content of the file.
        side: Shorter side that is needed, in pixels, as in `load_scaled`; None for the whole picture.

    Returns:
        RGB, (H, W, 3), 0-255; and height and width of the whole picture.
    """
    if simplejpeg is None:
        return None
    with suppress(ValueError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in _COLOURS and height * width <= MAX_PIXELS:
            # Pillow knows these scales only, and both must give the same.
            scale = next((n for n in (8, 4, 2) if side is not None and min(height, width) // n >= side), 1)
            least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **(least if scale > 1 else {}))
            return pixels, (height, width)
    return None


@contextmanager
def opened(data: bytes) -> Iterator[PILImage]:
    """A picture whose pixels are not decoded yet; any error until it is closed becomes a `BadImage`.

    Args:
        data: Content of a file of one of `FORMATS`.

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


def bytes_to_decode(image: PILImage) -> int:
    """Memory that decoding a picture by `load_image` takes at its peak, at half its size where it is a JPEG."""
    grows = bool(image.info.get("progressive"))
    return int(_TO_DECODE.get(str(image.format), _TO_DECODE_JPEG[grows]) * image.size[0] * image.size[1])


def load_image(data: bytes, halve_above: int | None = None) -> NDArray[np.uint8]:
    """Decodes a picture: upright by its EXIF orientation, the first frame of an animation.

    Args:
        data: Content of a file of one of `FORMATS`.
        halve_above: Pixels above which width and height are halved; None never halves them.

    Returns:
        RGB, (H, W, 3), 0-255.

    Raises:
        BadImage: If the format is another, the picture is empty, broken or larger than `MAX_PIXELS`.
    """
    if halve_above is None and simplejpeg is not None and _is_plain_jpeg(data):
        decoded = decode_jpeg(data)  # Before Pillow opens it, which takes a third of the time of a small one.
        if decoded is not None:
            return decoded[0]
    with opened(data) as image:
        width, height = image.size
        if halve_above is not None and width * height > halve_above:
            image.draft(None, (width // 2, height // 2))
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        if halve_above is None and upright and image.format == "JPEG" and (decoded := decode_jpeg(data)) is not None:
            return decoded[0]
        if image.format in ("JPEG", "MPO") or width * height <= _BAND:
            return pixels_of(image)
        return _in_bands(image, 2 if halve_above is not None and width * height > halve_above else 1)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG that states no orientation; one of an unusual structure is left to Pillow."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):  # the marks of the segments before the pixels
        mark = data[place + 1]
        if mark == 0xDA:
            return not any(word in data[:place] for word in _EXIF_MARKS)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def load_whole(data: bytes) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture as `load_image` decodes it, and its height and width."""
    pixels = load_image(data)
    return pixels, (pixels.shape[0], pixels.shape[1])


def load_scaled(data: bytes, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `load_whole`, but a JPEG at 1/2, 1/4 or 1/8 of its size where its shorter side stays long enough.

    Its decoder leaves out the high frequencies of each block, which takes a fifth to a third less time, more for large
    pictures, and gives other pixels: after the resizing they differ by 0.3 to 6 grey levels on the average.

    Args:
        data: Content of a file of one of `FORMATS`.
        side: Shorter side that is needed, in pixels.

    Returns:
        RGB, (H, W, 3), 0-255; and height and width of the whole picture.

    Raises:
        BadImage: If the format is another, the picture is empty, broken or larger than `MAX_PIXELS`.
    """
    if simplejpeg is not None and _is_plain_jpeg(data) and (decoded := decode_jpeg(data, side)) is not None:
        return decoded
    with opened(data) as image:
        if image.format == "JPEG":
            width, height = image.size
            image.draft(None, (side, side))
            pixels = pixels_of(image)
            turned = (pixels.shape[0] > pixels.shape[1]) != (height > width)
            return pixels, (width, height) if turned else (height, width)
    return load_whole(data)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture of a file, as `load_image` decodes it.

    Raises:
        OSError: If the file cannot be read.
        BadImage: If it is no picture that `load_image` takes.
    """
    return load_image(path.read_bytes())


def save_png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture of RGB (H, W, 3), 0-255, as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def resize_crop(
    pixels: NDArray[np.uint8], size: int, at: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Crops the largest square and resizes it: bicubic, antialiased, within one grey level of Pillow's result.

    Args:
        pixels: RGB, (H, W, 3), 0-255.
        size: Side of the square, in pixels.
        at: Position of the square, as fractions of the spare height and width, in [0, 1); None means the middle.

    Returns:
        The square, (size, size, 3), the same array if it already was one; and the top and left of the crop, in
        pixels of the resized picture.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels, (0, 0)
    import torch
    from torch.nn.functional import interpolate

    side = min(height, width)
    over = height - side, width - side
    top, left = (n // 2 for n in over) if at is None else (int(u * (n + 1)) for u, n in zip(at, over, strict=True))
    # The square is cut out first: a banner of 1 x 60,000,000 pixels must not explode when its short side grows.
    square = pixels[top : top + side, left : left + side]
    if side != size:
        planes = torch.from_numpy(square).permute(2, 0, 1)[None]  # (1, 3, H, W)
        square = interpolate(planes, (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return square, (round(top * size / side), round(left * size / side))
