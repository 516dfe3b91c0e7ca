"""Checksums in lists and in files: writing them, and telling whether they hold.

A list and a sealed file hold two independent marks that there is a checksum, so that no single flipped bit can turn
a file with a checksum into one without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from m2chat.errors import UserError
from m2chat.files import whole_file

SUMS = "m2chat.sha256"
"""List of a folder's files that `sha256sum --check` understands; its last line is a checksum of the list."""
UNSEALED = {"m2chat.sealed": "sha256", "m2chat.sha256": "0" * 64}
"""Strings for a safetensors file that `seal_safetensors` will seal."""
NPZ_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged ``.npz`` without a checksum can end in."""
_PREFIX = b"sha256:"
_COMMENT = len(_PREFIX) + 64  # bytes; an archive ends with the comment's length in two bytes, and the comment
_END = 22  # bytes of the record that ends a zip archive, with the comment's length
_CLOSING = "# sha256 of the lines above: "
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MANIFEST = ("total_bytes", "limit_bytes", "parts", "sha256")
_CHUNK = 1 << 22  # bytes
_HEADER_LIMIT = 100 << 20  # bytes, as in safetensors


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stated(path: Path) -> tuple[str, str] | None:
    """What a list beside or above a file says that its SHA-256 is, and which list.

    Raises:
        UserError: If the list is damaged.
    """
    path = Path(os.path.abspath(path))
    for folder in list(path.parents)[:3]:
        for listing, read in ((folder / SUMS, read_sums), (folder / "manifest.json", read_listing)):
            if listing != path and listing.is_file() and os.access(listing, os.R_OK):
                if digest := read(listing).get(path.relative_to(folder).as_posix()):
                    return digest, str(listing)
    return None


# Lists


def write_sums(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Writes the list of a folder's files.

    Args:
        folder: The folder; its model card is left out, for people change that.
        digests: SHA-256 by name, where they are known; None reads every file.
    """
    if digests is None:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, "README.md"))
        digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    body = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    with whole_file(folder / SUMS) as part:
        part.write_text(f"{body}{_CLOSING}{hashlib.sha256(body.encode()).hexdigest()}\n", encoding="utf-8")


def read_sums(path: Path) -> dict[str, str]:
    """SHA-256 by name, from what `write_sums` wrote.

    Raises:
        UserError: If it is damaged.
    """
    body, _, closing = path.read_bytes().rpartition(_CLOSING.encode())
    lines = [_LINE.fullmatch(line) for line in body.decode("utf-8", errors="replace").split("\n")[:-1]]
    if closing != f"{hashlib.sha256(body).hexdigest()}\n".encode() or None in lines:
        raise UserError(f"{path} is damaged: copy the folder again, or remove this list if you trust the folder")
    return {line[2]: line[1] for line in lines if line}


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """What ``sha256`` of a manifest of several parts must be, whatever its spacing."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    plain = json.loads(json.dumps(rest))  # as it will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_listing(path: Path) -> dict[str, str]:
    """SHA-256 by name from a ``manifest.json``: of several parts (``data/micro``), or of exported weights.

    Returns:
        Empty for other people's files of that name.

    Raises:
        UserError: If it is a damaged one of ours.
    """
    data = path.read_bytes()
    # A single flip cannot hide more than one of these names.
    ours = sum(f'"{name}"'.encode() in data for name in _MANIFEST[:3]) > 1
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        manifest = None
    if not ours:
        listed = manifest.get("m2chat") if isinstance(manifest, dict) else None
        digest = listed.get("sha256") if isinstance(listed, dict) else None
        return {"model.safetensors": digest} if isinstance(digest, str) else {}
    # Manifests had no checksum of their own once.
    whole = isinstance(manifest, dict) and manifest.keys() in (set(_MANIFEST), set(_MANIFEST[:3]))
    if whole and manifest.get("sha256", manifest_digest(manifest)) == manifest_digest(manifest):
        with suppress(KeyError, AttributeError, TypeError):
            parts = manifest["parts"].values()
            return {name: entry["sha256"] for part in parts for name, entry in part["files"].items()}
    raise UserError(f"{path} is damaged: get it again, or write it anew with `m2chat backbones --manifest`")


# Sealed files


def seal_zip(file: BinaryIO) -> None:
    """Puts the checksum into the comment of a zip archive that has none.

    Args:
        file: Open for reading and writing.
    """
    body = file.seek(0, os.SEEK_END) - 2
    comment = _zip_digest(file, body)
    file.seek(body)
    file.write(len(comment).to_bytes(2, "little") + comment)


def seal_safetensors(path: Path) -> None:
    """Puts the checksum into a safetensors file that was written with the strings `UNSEALED`."""
    with path.open("r+b") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
        blank = UNSEALED["m2chat.sha256"].encode()
        place = 8 + header.index(blank)
        digest = _digest_with_blank(file, place)
        file.seek(place)
        file.write(digest.encode())


def is_sealed(path: Path) -> bool:
    """Whether a file carries a checksum of itself; it is compared.

    Raises:
        UserError: If the contents differ from it.
    """
    if is_cut_off(path):
        raise UserError(f"{path} is truncated: the end of the archive is missing; use another copy")
    with path.open("rb") as file:
        sealed = _safetensors_seal(file) if path.suffix == ".safetensors" else _zip_seal(file)
    if sealed is False:
        raise UserError(f"{path} is damaged: its contents differ from its checksum; use another copy")
    return sealed is not None


def is_cut_off(path: Path) -> bool:
    """Whether a file starts as a zip archive and does not end as one."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END - (1 << 16)))
        tail = file.read()
    end = tail[tail.rfind(b"PK\x05\x06") :]
    return len(end) < _END or len(end) != _END + int.from_bytes(end[20:22], "little")


def _zip_seal(file: BinaryIO) -> bool | None:
    """Whether the checksum of an archive holds; None if it has none."""
    body = file.seek(0, os.SEEK_END) - _COMMENT - 2
    if body < _END - 2:
        return None
    file.seek(body - _END + 2)
    end, comment = file.read(_END), file.read()
    declared = end[:4] == b"PK\x05\x06" and end[-2:] == _COMMENT.to_bytes(2, "little")
    if not declared and not comment.startswith(_PREFIX):
        return None
    return declared and _zip_digest(file, body) == comment


def _zip_digest(file: BinaryIO, size: int) -> bytes:
    """The checksum of a file's first bytes, as it stands in the comment."""
    sha = hashlib.sha256()
    _feed(sha, file, 0, size)
    return _PREFIX + sha.hexdigest().encode()


def _safetensors_seal(file: BinaryIO) -> bool | None:
    """Whether the checksum of a safetensors file holds; None if it has none, or cannot be read at all."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= _HEADER_LIMIT:
        return None
    header = file.read(length)
    try:
        strings = json.loads(header).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        return None
    mark, digest = (strings.get(name) if isinstance(strings, dict) else None for name in UNSEALED)
    if mark is None and digest is None:
        return None
    if mark != UNSEALED["m2chat.sealed"] or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        return False
    return _digest_with_blank(file, 8 + header.index(digest.encode())) == digest


def _digest_with_blank(file: BinaryIO, place: int) -> str:
    """The checksum of a file in which 64 zeros stand where its own checksum does."""
    sha = hashlib.sha256()
    _feed(sha, file, 0, place)
    sha.update(UNSEALED["m2chat.sha256"].encode())
    _feed(sha, file, place + 64, None)
    return sha.hexdigest()


def _feed(sha: Any, file: BinaryIO, start: int, stop: int | None) -> None:
    file.seek(start)
    left = file.seek(0, os.SEEK_END) - start if stop is None else stop - start
    file.seek(start)
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        sha.update(chunk)
        left -= len(chunk)
