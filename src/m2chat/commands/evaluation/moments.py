"""FID moments of reference pictures in a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from m2chat.commands.evaluation.folder import picture_at
from m2chat.errors import UserError

_BATCH = 64
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
_OTHER_PICTURES = {".avif", ".bmp", ".heic", ".jp2", ".jxl", ".tif", ".tiff"}
"""Pictures that are not decoded."""


def left_out(pictures: Path) -> Counter[str]:
    """Number of pictures of a folder that are not decoded, by suffix."""
    suffixes = (path.suffix.lower() for path in pictures.rglob("*"))
    return Counter(suffix for suffix in suffixes if suffix in _OTHER_PICTURES)


def moments_of_folder(pictures: Path, out: Path, inception: Path | None, crop: bool) -> int:
    """Writes FID moments of reference pictures.

    Args:
        pictures: Folder of pictures, at any depth.
        out: ``.npz`` file to write.
        inception: Weights of Inception; None means the micro world's network.
        crop: Whether to cut out the middle square.

    Returns:
        Number of pictures.

    Raises:
        UserError: If there is no picture, or one cannot be read.
    """
    from m2chat.metrics.extractors import InceptionExtractor, MicroExtractor
    from m2chat.metrics.fid import Moments

    files = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{pictures} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    extractor = MicroExtractor() if inception is None else InceptionExtractor(str(inception), crop=crop)
    total: Moments | None = None
    for start in range(0, len(files), _BATCH):
        batch = [picture_at(path, str(pictures)) for path in files[start : start + _BATCH]]
        moments = Moments.of(extractor.extract(batch))
        total = moments if total is None else total + moments
    assert total is not None
    total.save(out, extractor.name)
    return total.n
