"""Samples without their pixels: nothing is decoded, so that large pictures cost no time."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping

import numpy as np

from m2chat.data.images import FORMATS
from m2chat.data.sources import read_record, sample_of
from m2chat.schema import Sample
from m2chat.textfiles import is_utf8

ENDINGS = ("jpg", "jpeg", "png", "webp", "gif")
"""Last parts of the suffixes of pictures."""
UNKNOWN_SIZE = (1, 1)
"""Original size, in `peek`'s samples, of a picture whose size is not recorded."""
_DOT = np.zeros((*UNKNOWN_SIZE, 3), np.uint8)


def is_picture(suffix: str) -> bool:
    """Whether a file is a picture, by its suffix."""
    return suffix.rpartition(".")[2] in ENDINGS


def peek(members: Mapping[str, bytes], key: str, source: str) -> Sample:
    """The sample that `sample_of` would read, with one black pixel in the place of each picture.

    Args:
        members: Suffix to the bytes of the file.
        key: Name of the sample in its shard.
        source: Name of the data set, for samples that do not state one.

    Raises:
        BadSample: If it is broken or incomplete; faults within the pictures are not seen.
    """
    return sample_of(members, key, source, lambda _: (_DOT, UNKNOWN_SIZE))


def has_replacements(members: Mapping[str, bytes]) -> bool:
    """Whether the caption of an img2dataset sample is read with letters in the place of bytes that are no UTF-8.

    Args:
        members: Files of the sample; only ``txt`` and ``json`` are read.

    Raises:
        BadSample: If the JSON is broken.
    """
    return not is_utf8(members.get("txt", b"")) and read_record(members) is None


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width of a picture as its file declares them, None if that cannot be read."""
    from PIL import Image

    broken = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except broken:  # what Pillow's readers of `FORMATS` raise on damaged heads and sizes beyond reason
        return None
