"""Files from users: pictures and saved sessions, validated by their contents, never by their names."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import lzma
import tempfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np

from m2chat.app.limits import Budget
from m2chat.data.images import BadImage, bytes_to_decode, load_image, opened
from m2chat.errors import UserError
from m2chat.pipeline import Session
from m2chat.schema import Picture

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline

MAX_BYTES = 20 * 2**20
"""Maximum size of a file."""
MAX_TO_DECODE = 168_000_000
"""Maximum memory for decoding a picture, in bytes: 10 million pixels of WebP, 37 of PNG, 64 of most JPEGs and GIFs."""
MAX_SIDE = 1024
"""Larger pictures are scaled down: the vision encoder's input is smaller anyway, and sessions are held in memory."""
MAX_UNPACKED = 200 * 2**20
"""Maximum size of an unpacked session: an archive of some kB can expand to any size."""
MAX_FILES = 500
MAX_SESSION_PIXELS = 64_000_000
"""Maximum number of pixels of an unpacked session's pictures together; each is held at full size."""
SMALL_SIDE = 256
"""Side of pictures beyond those that a request may keep at full size; no vision encoder here sees more."""
_TOO_LARGE = (
    f"the session is too large: at most {MAX_FILES} files of {MAX_BYTES // 2**20} MiB, {MAX_UNPACKED // 2**20} MiB "
    "together, are accepted"
)
_DECODING = threading.Lock()
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


def read_picture(data: bytes, budget: Budget | None = None) -> Picture:
    """A picture from a user.

    Args:
        data: Contents of the file.
        budget: What the pictures of a request may take together; None for a picture alone.

    Returns:
        RGB, (H, W, 3), 0-255, its longer side at most `MAX_SIDE`.

    Raises:
        UserError: If it cannot be decoded, or is too large.
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise UserError(f"the picture has {len(data) / 2**20:.0f} MiB: at most {MAX_BYTES // 2**20} are accepted")
    side = MAX_SIDE
    try:
        # One at a time: several large ones at once would take several times the memory, and no less time.
        with _DECODING:
            with opened(data) as image:
                declared, needed = image.size[0] * image.size[1], bytes_to_decode(image)
            if needed > MAX_TO_DECODE:
                raise UserError(
                    f"the picture would take {needed // 10**6} MB of memory, and {MAX_TO_DECODE // 10**6} are "
                    "accepted: send it smaller, or as a JPEG"
                )
            if budget is not None:
                budget.decode(declared)
                side = MAX_SIDE if budget.kept > 0 else SMALL_SIDE
            pixels = load_image(data, halve_above=4 * MAX_SIDE**2)
    except BadImage as error:
        raise UserError(f"that is no picture: {error}; send a JPEG, PNG, WebP or GIF file") from error
    if max(pixels.shape[:2]) > side:
        small = Image.fromarray(pixels)
        small.thumbnail((side, side))
        pixels = np.array(small)
    if budget is not None:
        budget.kept -= pixels.shape[0] * pixels.shape[1]
    return pixels


def read_data_url(url: str, budget: Budget | None = None) -> Picture:
    """The picture in a ``data:image/png;base64,...`` URL; `budget` as for `read_picture`.

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
    return read_picture(data, budget)


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
    # The list of an archive's files takes ten times its size in memory.
    if len(data) > MAX_UNPACKED or data.count(b"PK\x01\x02") > 2 * MAX_FILES:
        raise UserError(_TOO_LARGE)
    with tempfile.TemporaryDirectory(prefix="m2chat-") as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _unpack(archive, Path(folder))
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError("that is no saved session: choose the zip file that 'Save' made") from error
        try:
            with _DECODING:
                return Session.load(pipe, folder, MAX_SESSION_PIXELS)
        except UserError as error:  # without the path of the temporary folder
            raise UserError(str(error).replace(f"{folder}/", "").replace(folder, "the file")) from error


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Writes the files of an archive without their folders; `read_session` checks which of them a session names."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    sizes = [entry.file_size for entry in entries]
    if len(entries) > MAX_FILES or sum(sizes) > MAX_UNPACKED or max(sizes, default=0) > MAX_BYTES:
        raise UserError(_TOO_LARGE)
    for entry in entries:
        name = entry.filename.replace("\\", "/").rpartition("/")[2]
        if name in ("", ".", "..") or "\0" in name:
            continue
        with archive.open(entry) as source:  # reads at most the claimed size, and checks the CRC
            (folder / name).write_bytes(source.read(MAX_BYTES))


def read_url(url: str, hosts: Collection[str] = (), budget: Budget | None = None) -> Picture:
    """The picture of a URL.

    Args:
        url: ``data:``, or ``http(s)://`` of one of the hosts.
        hosts: Exact names of hosts from which pictures may be fetched, each with its usual ports, or as ``name:port``
            with that one; redirections are never followed.
        budget: As for `read_picture`.

    Raises:
        UserError: If it is another URL, or there is no picture.
    """
    budget = budget or Budget()
    budget.check()
    if url[:5].lower() == "data:":
        return read_data_url(url, budget)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"image_url: no URL ({error})") from error
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    names = {f"{parts.hostname}:{port or usual}"} | ({parts.hostname} if port in (None, usual) else set())
    if usual is None or not names & set(hosts):
        known = (
            f" or a picture on {', '.join(sorted(hosts))}" if hosts else "; --picture-hosts of the server allows more"
        )
        raise UserError(f"image_url: only 'data:image/png;base64,...' is read{known}")
    try:
        data = _fetch(quote(url, safe=_IN_URLS), budget)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"image_url: {parts.hostname} does not give the picture ({error})") from error
    return read_picture(data, budget)


def _fetch(url: str, budget: Budget) -> bytes:
    """What a server gives, within the request's time; a server may send a byte at a time for ever."""
    start, data = time.monotonic(), bytearray()
    try:
        with _OPENER.open(url, timeout=max(0.1, budget.seconds)) as answer:
            while chunk := answer.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    break
                budget.check()
                if time.monotonic() - start > budget.seconds:
                    raise TimeoutError("it takes too long")
    finally:
        budget.seconds -= time.monotonic() - start
    return bytes(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuses: an allowed host must not redirect to another."""


_OPENER = urllib.request.build_opener(_NoRedirect)
_IN_URLS = "%:/?#[]@!$&'()*+,;=~"
"""Letters that stay as they are in a URL; others, such as those of other scripts, are percent-encoded."""
