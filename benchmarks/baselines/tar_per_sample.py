"""How the published code reads a caption pair, written anew from its description.

A sample is named by its tar and its member; for each sample the tar is opened, its members are walked until the name is
found, the picture is decoded and brought to 256 pixels (short side, then the middle). No index is kept.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read(tar: Path, member: str, size: int = 256) -> NDArray[np.uint8]:
    """One picture of a tar, RGB, (size, size, 3)."""
    with tarfile.open(tar) as archive:
        file = archive.extractfile(member)
        assert file is not None
        image = Image.open(file).convert("RGB")
    width, height = image.size
    scale = size / min(width, height)
    image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
