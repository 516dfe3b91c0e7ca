"""What users send: pictures and saved sessions, checked by decoding them here, whatever their names say."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import lzma
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from m2chat.data.images import BadImage, load_image
from m2chat.errors import UserError
from m2chat.pipeline import Session
from m2chat.schema import Picture

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline

MAX_BYTES = 20 * 2**20
"""Largest file that is taken."""
MAX_SIDE = 1024
"""Longer pictures are made smaller: the eye sees less anyway, and sessions live in memory."""
MAX_UNPACKED = 200 * 2**20
"""Largest session, unpacked: an archive of some kB can claim any size."""
MAX_FILES = 500
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
)
"""What zipfile raises on archives that are broken, encrypted or of a kind that it does not know."""


def read_picture(data: bytes) -> Picture:
    """A picture that somebody sent.

    Args:
        data: A file.

    Returns:
        RGB, its longer side at most `MAX_SIDE`.

    Raises:
        UserError: If it is no picture that we decode, or too large.
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise UserError(f"the picture has {len(data) / 2**20:.0f} MiB: at most {MAX_BYTES // 2**20} are taken")
    try:
        pixels = load_image(data, halve_above=4 * MAX_SIDE**2)
    except BadImage as error:
        raise UserError(f"that is no picture: {error}; send a JPEG, PNG, WebP or GIF file") from error
    if max(pixels.shape[:2]) <= MAX_SIDE:
        return pixels
    small = Image.fromarray(pixels)
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.array(small)


def read_data_url(url: str) -> Picture:
    """A picture inside a URL, ``data:image/png;base64,...``.

    Raises:
        UserError: If it is none.
    """
    head, comma, body = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
        raise UserError("image_url: give the picture itself as 'data:image/png;base64,...'")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise UserError(f"image_url: at most {MAX_BYTES // 2**20} MiB are taken")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"image_url: not base64 ({error})") from error
    return read_picture(data)


def pack_session(session: Session) -> bytes:
    """A session as a zip file: what `Session.save` writes."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="m2chat-") as folder:
        session.save(folder)
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(Path(folder).iterdir()):
                archive.write(path, path.name)
    return buffer.getvalue()


def unpack_session(pipe: M2ChatPipeline, data: bytes) -> Session:
    """Reads a session from a zip file; nothing in it can name a place outside.

    Args:
        pipe: Will reply.
        data: What `pack_session` made, or the folder of `Session.save`, zipped.

    Raises:
        UserError: If it is no session.
    """
    if len(data) > MAX_UNPACKED:
        raise UserError(f"the session is too large: at most {MAX_UNPACKED // 2**20} MiB are taken")
    with tempfile.TemporaryDirectory(prefix="m2chat-") as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _unpack(archive, Path(folder))
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError("that is no saved session: choose the zip file that 'Save' made") from error
        try:
            return Session.load(pipe, folder)
        except UserError as error:  # without the place where it was unpacked, which is nobody's business
            raise UserError(str(error).replace(f"{folder}/", "").replace(folder, "the file")) from error


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Writes the files of an archive by their last names; what a session may name is checked where it is read."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise UserError(f"the session is too large: at most {MAX_FILES} files of {MAX_UNPACKED // 2**20} MiB together")
    for entry in entries:
        name = entry.filename.replace("\\", "/").rpartition("/")[2]
        if name in ("", ".", "..") or "\0" in name:
            continue
        with archive.open(entry) as source:  # ends at the size that the entry claims, and checks its sum
            (folder / name).write_bytes(source.read(MAX_UNPACKED))


def read_url(url: str, hosts: Collection[str] = ()) -> Picture:
    """A picture that a URL holds, or names on a host that may be asked.

    Args:
        url: ``data:``, or ``http(s)://`` of one of the hosts.
        hosts: Hosts that may be asked, exact names; a redirection is never followed.

    Raises:
        UserError: If it is another URL, or there is no picture.
    """
    if url[:5].lower() == "data:":
        return read_data_url(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"image_url: no URL ({error})") from error
    if parts.scheme not in ("http", "https") or parts.hostname not in hosts:
        known = (
            f" or a picture on {', '.join(sorted(hosts))}" if hosts else "; --picture-hosts of the server allows more"
        )
        raise UserError(f"image_url: only 'data:image/png;base64,...' is read{known}")
    try:
        with _OPENER.open(url, timeout=_SECONDS) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"image_url: {parts.hostname} does not give the picture ({error})") from error
    return read_picture(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Goes nowhere: an allowed host must not send us to another."""


_OPENER = urllib.request.build_opener(_NoRedirect)
_SECONDS = 10
