"""Short names of the backbones' files, by their first and last MiB: weights of early versions state these."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m2chat.checksums import SUMS
from m2chat.models.config import NEW, BackboneConfig

_BYTES = 1 << 20


def name_of_files(backbone: BackboneConfig) -> str:
    """One name of all backbones."""
    digest = hashlib.sha256()
    for root in _roots(backbone).values():
        _add_files(digest, root)
    digest.update(backbone.channel_order.encode())
    if backbone.adapter == NEW:
        digest.update(repr(backbone.new_adapter).encode())
    return digest.hexdigest()[:16]


def names_of_files(backbone: BackboneConfig) -> dict[str, str]:
    """A name of each backbone, by its setting."""
    names = {}
    for setting, root in _roots(backbone).items():
        digest = hashlib.sha256()
        _add_files(digest, root)
        names[setting] = digest.hexdigest()[:16]
    if backbone.adapter == NEW:
        names["adapter"] = hashlib.sha256(repr(backbone.new_adapter).encode()).hexdigest()[:16]
    return names


def _roots(backbone: BackboneConfig) -> dict[str, Path]:
    """Files or folder of each backbone, by its setting; those of an empty setting are left out."""
    from m2chat.models.weights.clip import local_clip_file
    from m2chat.models.weights.llama import llama_folder

    roots = {
        "language_model": llama_folder(Path(backbone.language_model)),
        "adapter": Path(backbone.adapter),
        "vision_encoder": local_clip_file(backbone.vision_encoder) or Path(backbone.vision_encoder),
        "image_decoder": Path(backbone.image_decoder),
    }
    return {setting: root for setting, root in roots.items() if getattr(backbone, setting) not in ("", NEW)}


def _add_files(digest: Any, root: Path) -> None:
    for path in _files(root):
        digest.update((path.relative_to(root).as_posix() if root.is_dir() else path.name).encode())
        if path.is_file():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(str(size).encode())
                for start in (0, max(0, size - _BYTES)):
                    file.seek(start)
                    digest.update(file.read(_BYTES))


def _files(root: Path) -> Iterable[Path]:
    """Downloaders leave notes in hidden folders, with the time in them. A list of checksums is no content."""
    paths = (path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    return sorted(
        path
        for path in paths
        if path.name != SUMS and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
