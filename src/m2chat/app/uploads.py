"""Files from users: pictures and saved sessions, validated by their contents, never by their names."""

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
"""Maximum size of a file."""
MAX_SIDE = 1024
"""Larger pictures are scaled down: the vision encoder's input is smaller anyway, and sessions are held in memory."""
MAX_UNPACKED = 200 * 2**20
"""Maximum size of an unpacked session: an archive of some kB can expand to any size."""
MAX_FILES = 500
_URL_SAFE = str.maketrans("-_", "+/")
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
"""Exceptions of zipfile on archives that are broken, encrypted or of an unsupported kind."""


def read_picture(data: bytes) -> Picture:
    """A picture from a user.

    Args:
        data: Contents of the file.

    Returns:
        RGB, (H, W, 3), 0-255, its longer side at most `MAX_SIDE`.

    Raises:
        UserError: If it cannot be decoded, or is too large.
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise UserError(f"the picture has {len(data) / 2**20:.0f} MiB: at most {MAX_BYTES // 2**20} are accepted")
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
    """The picture in a ``data:image/png;base64,...`` URL.

    Raises:
        UserError: If there is none.
    """
    head, comma, body = url.partition(",")
    if not comma or not head.lower().startswith("data:") or not head.lower().rstrip().endswith(";base64"):
        raise UserError("image_url: give the picture itself as 'data:image/png;base64,...'")
    # Mail programs break the lines, some libraries leave out the padding, URLs have other letters for + and /.
    body = "".join(body.split()).rstrip("=").translate(_URL_SAFE)
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise UserError(f"image_url: at most {MAX_BYTES // 2**20} MiB are accepted")
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"image_url: not base64 ({error})") from error
    return read_picture(data)


def pack_session(session: Session) -> bytes:
    """A session as a zip file of what `Session.save` writes."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="m2chat-") as folder:
        session.save(folder)
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(Path(folder).iterdir()):
                archive.write(path, path.name)
    return buffer.getvalue()


def unpack_session(pipe: M2ChatPipeline, data: bytes) -> Session:
    """Reads a session from a zip file; no entry can be written outside a temporary folder.

    Args:
        pipe: Pipeline of the session.
        data: Zip file from `pack_session`, or of a folder of `Session.save`.

    Raises:
        UserError: If it is no session.
    """
    if len(data) > MAX_UNPACKED:
        raise UserError(f"the session is too large: at most {MAX_UNPACKED // 2**20} MiB are accepted")
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
        except UserError as error:  # without the path of the temporary folder
            raise UserError(str(error).replace(f"{folder}/", "").replace(folder, "the file")) from error


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Writes the files of an archive without their folders; `read_session` checks which of them a session names."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise UserError(f"the session is too large: at most {MAX_FILES} files of {MAX_UNPACKED // 2**20} MiB together")
    for entry in entries:
        name = entry.filename.replace("\\", "/").rpartition("/")[2]
        if name in ("", ".", "..") or "\0" in name:
            continue
        with archive.open(entry) as source:  # reads at most the claimed size, and checks the CRC
            (folder / name).write_bytes(source.read(MAX_UNPACKED))


def read_url(url: str, hosts: Collection[str] = ()) -> Picture:
    """The picture of a URL.

    Args:
        url: ``data:``, or ``http(s)://`` of one of the hosts.
        hosts: Exact names of hosts from which pictures may be fetched; redirections are never followed.

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
        """Refuses: an allowed host must not redirect to another."""


_OPENER = urllib.request.build_opener(_NoRedirect)
_SECONDS = 10
