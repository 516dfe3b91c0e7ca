"""Checksums of published files, to detect a damaged or a different download."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m2chat.checksums import is_sealed, sha256, stated
from m2chat.errors import UserError
from m2chat.integrity import seen

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A published file.

    Args:
        title: Description of the file.
        sha256: Checksum; for LLaMA-Adapter's files the first eight and the last four digits.
        file: File name, where no other file has it; else empty.
    """

    title: str
    sha256: str
    file: str = ""

    def matches(self, digest: str) -> bool:
        """Whether a checksum is this file's."""
        first, _, last = self.sha256.partition("...")
        return digest.startswith(first) and digest.endswith(last)


PUBLISHED = (
    Published("LLaMA 7B", "700df0d3013b703a806d2ae7f1bfb8e59814e3d06ae78be0c66368a50059f33d"),
    Published("LLaMA's tokenizer", "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"),
    Published("LLaMA-Adapter V2 BIAS-7B", "7fa55208...c813", "BIAS-7B.pth"),
    Published("LLaMA-Adapter V2 LORA-BIAS-7B", "1bcbffc4...24d1", "LORA-BIAS-7B.pth"),
    Published("LLaMA-Adapter V2 CAPTION-7B", "5088aeb6...abf0", "CAPTION-7B.pth"),
    Published("Inception-v3 for FID", "6726825d...", "weights-inception-2015-12-05-6726825d.pth"),
    Published(
        "OpenAI's CLIP ViT-L/14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"
    ),
    Published(
        "SDXL base 1.0",
        "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
        "sd_xl_base_1.0.safetensors",
    ),
    Published(
        "SDXL refiner 1.0",
        "7440042bbdc8a24813002c09b6b69b64dc90fded4472613437b7f55f9b7d9c5f",
        "sd_xl_refiner_1.0.safetensors",
    ),
)


@dataclass(frozen=True)
class FileCheck:
    """Result of checking a file's checksum.

    Args:
        file: The file.
        sha256: Checksum of the file.
        state: ``good``: as stated somewhere; ``bad``: differs from what is stated; ``unknown``: stated nowhere.
        reason: Source of the checksum, in words.
    """

    file: Path
    sha256: str
    state: Literal["good", "bad", "unknown"]
    reason: str


def verify_file(path: Path) -> FileCheck:
    """Compares a file's SHA-256 with published ones, with its file name, and with the lists beside it.

    The lists are those of `m2chat.checksums.stated`, and Meta's ``checklist.chk``, which holds MD5 sums. A file of
    which nothing is stated is held against what it was when it was first read here.
    """
    digest = sha256(path)
    for published in PUBLISHED:
        if published.matches(digest):
            return FileCheck(path, digest, "good", f"is the published {published.title}")
    named = re.match(r"([0-9a-f]{64})_", path.name)
    claims = [(named.group(1) == digest, "its own name")] if named else []
    claims += [(False, f"the published {known.title}") for known in PUBLISHED if known.file == path.name]
    if listed := stated(path):
        claims.append((listed[0] == digest, listed[1]))
    try:
        claims += [(True, "its own checksum")] if is_sealed(path) else []
    except UserError:
        claims.append((False, "its own checksum"))
    checklist = path.parent / "checklist.chk"
    if checklist.is_file():
        lines = [line.split(maxsplit=1) for line in checklist.read_text(encoding="utf-8").split("\n") if " " in line]
        sums = {name.strip(): md5 for md5, name in lines}
        if md5 := sums.get(path.name):
            with path.open("rb") as file:
                claims.append((hashlib.file_digest(file, "md5").hexdigest() == md5, "checklist.chk"))
    for holds, where in claims:
        if not holds:
            return FileCheck(path, digest, "bad", f"differs from {where}: damaged, or another file; get it again")
    if claims:
        return FileCheck(path, digest, "good", f"as in {claims[0][1]}")
    if before := seen(path):
        if before.sha256 != digest:
            return FileCheck(path, digest, "bad", "has changed since it was first read here: damaged, or replaced")
        return FileCheck(path, digest, "unknown", "stated nowhere that is known here; as when it was first read here")
    return FileCheck(path, digest, "unknown", "stated nowhere that is known here")


def warn_if_not_published(path: Path) -> None:
    """Says so when a file has the name of a published one and other contents; nothing is read for that."""
    for published in PUBLISHED:
        if published.file == path.name and (before := seen(path)) and not published.matches(before.sha256):
            _LOG.warning(
                "%s is not the published %s, whose name it has: damaged, or another file", path, published.title
            )
