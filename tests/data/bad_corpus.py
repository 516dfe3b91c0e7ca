"""A folder of shards with everything in it that has ever gone wrong, and what should become of it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from m2chat.data.images import save_png

Files = list[tuple[str, bytes | tarfile.TarInfo]]
TEXT = ("txt", b"a picture of something")


def pixels(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_bytes(form: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, format=form)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _zero_sized(jpeg: bytes) -> bytes:
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + b"\0\0\0\0" + jpeg[place + 4 :]


def _talk(**changes: Any) -> bytes:
    """An `m2c/1` record; a change of None takes the key away."""
    record: dict[str, Any] = {
        "schema": "m2c/1", "kind": "dialogue", "id": None, "images": [{"member": "img0.png", "caption": "a dog"}],
        "turns": [
            {"role": "user", "content": [{"type": "text", "text": "show me"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "here"}, {"type": "image", "image": 0}]},
        ],
    }  # fmt: skip
    return json.dumps({key: value for key, value in (record | changes).items() if value is not None}).encode()


def _turns(user: Any = None, assistant: Any = None, **more: Any) -> list[Any]:
    said = [{"type": "text", "text": "show me"}] if user is None else user
    answered = [{"type": "image", "image": 0}] if assistant is None else assistant
    return [{"role": "user", "content": said}, {"role": "assistant", "content": answered, **more}]


def _special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


PNG = save_png(pixels(0))
UNDECODABLE = "undecodable picture"
NOT_OURS = "json is not m2c/1"

PICTURES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("jpg", b"", "empty picture file"),
    "page": ("jpg", b"<html><body>404</body></html>", UNDECODABLE),
    "drawing": ("png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNDECODABLE),
    "noise": ("jpg", np.random.default_rng(1).bytes(5000), UNDECODABLE),
    "half jpeg": ("jpg", as_bytes("JPEG")[: len(as_bytes("JPEG")) // 2], UNDECODABLE),
    "half png": ("png", PNG[: len(PNG) // 2], UNDECODABLE),
    "half webp": ("webp", as_bytes("WEBP")[:80], UNDECODABLE),
    "start of a gif": ("jpg", as_bytes("GIF")[:8], UNDECODABLE),
    "start of a jpeg": ("jpg", b"\xff\xd8\xff", UNDECODABLE),
    "jpeg without size": ("jpg", _zero_sized(as_bytes("JPEG")), UNDECODABLE),
    "bmp": ("jpg", as_bytes("BMP"), UNDECODABLE),
    "tiff": ("png", as_bytes("TIFF"), UNDECODABLE),
    "bomb": ("png", _png(9000, 9000), "picture of more than 64 million pixels"),
    "png without pixels": ("png", _png(4, 4), UNDECODABLE),
    "png of no size": ("png", _png(0, 4), UNDECODABLE),
    "flipped bit in a png": ("png", _flipped(PNG, 40), UNDECODABLE),
    "array": ("jpg", pickle.dumps(pixels(0)), UNDECODABLE),
}

SAMPLES: dict[str, tuple[Files, str]] = {
    **{f"picture: {name}": ([(suffix, data), TEXT], why) for name, (suffix, data, why) in PICTURES.items()},
    "no caption": ([("png", PNG)], "no caption"),
    "empty caption": ([("png", PNG), ("txt", b"")], "no caption"),
    "blank caption": ([("png", PNG), ("txt", b" \n\t ")], "no caption"),
    "caption of NULs": ([("png", PNG), ("txt", b"\0\0")], "no caption"),
    "caption is a number": ([("png", PNG), ("json", b'{"caption": 7}')], "no caption"),
    "caption is null": ([("png", PNG), ("json", b'{"caption": null}')], "no caption"),
    "no picture": ([TEXT], "no picture"),
    "broken json": ([("png", PNG), TEXT, ("json", b'{"caption": ')], "broken json"),
    "empty json": ([("png", PNG), TEXT, ("json", b"")], "broken json"),
    "json of wrong bytes": ([("png", PNG), TEXT, ("json", b'{"a": "\xff\xfe\xfa"}')], "broken json"),
    "endless json": ([("png", PNG), TEXT, ("json", b"[" * 100_000)], "broken json"),
    "json is a list": ([("png", PNG), TEXT, ("json", b"[1]")], "json is not an object"),
    "huge json": ([("png", PNG), TEXT, ("json", b'{"a":"' + b"x" * 2**22 + b'"}')], "json too large"),
    "size is a word": ([("png", PNG), TEXT, ("json", b'{"original_width": "wide"}')], "original size is not a number"),
    "unknown kind": ([("img0.png", PNG), ("json", _talk(kind="song"))], NOT_OURS),
    "no turns": ([("img0.png", PNG), ("json", _talk(turns=[]))], "no reply"),
    "turns missing": ([("img0.png", PNG), ("json", _talk(turns=None))], NOT_OURS),
    "images missing": ([("img0.png", PNG), ("json", _talk(images=None))], NOT_OURS),
    "nothing to learn": ([("img0.png", PNG), ("json", _talk(turns=_turns(loss=False)))], "no reply"),
    "unknown role": ([("img0.png", PNG), ("json", _talk(turns=[{"role": "god", "content": []}]))], NOT_OURS),
    "reply comes first": ([("img0.png", PNG), ("json", _talk(turns=_turns()[::-1] + _turns()[1:]))], "the first turn"),
    "content missing": ([("img0.png", PNG), ("json", _talk(turns=[{"role": "user"}]))], NOT_OURS),
    "text is a number": ([("img0.png", PNG), ("json", _talk(turns=_turns([{"type": "text", "text": 3}])))], NOT_OURS),
    "picture 9 of 1": ([("img0.png", PNG), ("json", _talk(turns=_turns([{"type": "image", "image": 9}])))], NOT_OURS),
    "picture -1": ([("img0.png", PNG), ("json", _talk(turns=_turns([{"type": "image", "image": -1}])))], NOT_OURS),
    "context 9 of 1": ([("img0.png", PNG), ("json", _talk(turns=_turns(context=9)))], NOT_OURS),
    "crop is a word": ([("img0.png", PNG), ("json", _talk(images=[{"member": "img0.png", "crop": "no"}]))], NOT_OURS),
    "member missing": ([("json", _talk())], "picture missing"),
    "member elsewhere": ([("json", _talk(images=[{"member": "../../etc/passwd"}]))], "picture missing"),
    "member broken": ([("img0.png", PNG[:100]), ("json", _talk())], UNDECODABLE),
}
"""Bad samples: files, and the start of the reason; each stands between two good ones."""

TOLERATED: dict[str, tuple[Files, str]] = {
    "pickle": ([("png", PNG), TEXT, ("pickle", pickle.dumps(1))], "unknown suffix"),
    "module": ([("png", PNG), TEXT, ("pyd", b"import os")], "unknown suffix"),
    "script": ([("png", PNG), TEXT, ("py", b"import os")], "unknown suffix"),
    "symbolic link": ([("png", PNG), TEXT, ("jpg", _special(tarfile.SYMTYPE, "/etc/passwd"))], "link or device"),
    "hard link": ([("png", PNG), TEXT, ("jpg", _special(tarfile.LNKTYPE, "good00000.png"))], "link or device"),
    "fifo": ([("png", PNG), TEXT, ("jpg", _special(tarfile.FIFOTYPE))], "link or device"),
    "device": ([("png", PNG), TEXT, ("jpg", _special(tarfile.CHRTYPE))], "link or device"),
    "duplicate": ([("png", PNG), TEXT, ("txt", b"another")], "duplicate"),
    "caption of wrong bytes": ([("png", PNG), ("txt", b"caf\xe9 \xff at night")], ""),
    "upper case": ([("PNG", PNG), ("TXT", b"loud")], ""),
}
"""Good samples with something odd about them: files, and the reason for which a file is left out."""


def tar_of(files: list[tuple[str, bytes | tarfile.TarInfo]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name) if isinstance(data, bytes) else data
            member.name = name
            member.size = len(data) if isinstance(data, bytes) else 0
            tar.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


def _damaged(tar: bytes, key: str) -> bytes:
    """The header of a file no longer has its checksum."""
    return _flipped(tar, tar.index(f"{key}.png".encode()))


def _unsigned(tar: bytes, key: str) -> bytes:
    """The header of a file is other bytes."""
    start = tar.index(f"{key}.png".encode())
    return tar[:start] + b"\7" * 512 + tar[start + 512 :]


def _claims(tar: bytes, key: str) -> bytes:
    """The header of a file claims 8 GB less a byte."""
    header = bytearray(tar[(start := tar.index(f"{key}.png".encode())) : start + 512])
    header[124:136], header[148:156] = b"77777777777\0", b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return tar[:start] + bytes(header) + tar[start + 512 :]


REST = "unreadable rest of the shard"
# What is done to a shard of three good samples, how many of them are left, and what is counted.
SHARDS: dict[str, tuple[Callable[[bytes, list[str]], bytes], int, dict[str, int]]] = {
    "nothing": (lambda tar, keys: b"", 0, {REST: 1}),
    "noise": (lambda tar, keys: np.random.default_rng(0).bytes(4096), 0, {REST: 1}),
    "page": (lambda tar, keys: b"<html>" * 500, 0, {REST: 1}),
    "compressed": (lambda tar, keys: gzip.compress(tar), 0, {REST: 1}),
    "cut in a picture": (lambda tar, keys: tar[: tar.index(keys[2].encode()) + 700], 2, {"truncated": 1}),
    "cut in a header": (lambda tar, keys: tar[: tar.index(keys[2].encode()) + 100], 2, {REST: 1}),
    "cut between samples": (lambda tar, keys: tar[: tar.index(f"{keys[1]}.txt".encode()) + 1024], 2, {REST: 1}),
    "no end mark": (lambda tar, keys: tar[: tar.index(f"{keys[2]}.txt".encode()) + 1024], 3, {REST: 1}),
    "bad header": (lambda tar, keys: _unsigned(tar, keys[1]), 1, {REST: 1}),
    "wrong checksum": (lambda tar, keys: _damaged(tar, keys[1]), 1, {REST: 1}),
    "claims too much": (lambda tar, keys: _claims(tar, keys[2]), 2, {"truncated": 1}),
    "zeros": (lambda tar, keys: bytes(10240), 0, {}),
    "key comes back": (lambda tar, keys: tar_of(_interleaved(keys)), 1, {"no picture": 2, "no caption": 2}),
}


def _good(key: str, seed: int) -> Files:
    return [(f"{key}.png", save_png(pixels(seed))), (f"{key}.txt", f"good {seed}".encode())]


def _interleaved(keys: list[str]) -> Files:
    first, second = _good(keys[1], 1), _good(keys[2], 2)
    return [*_good(keys[0], 0), first[0], second[0], first[1], second[1]]


class Corpus(NamedTuple):
    """What was written.

    Args:
        kinds: Names of the faults in it.
        good: Keys of the samples that can be read.
        skipped: What must be counted, by the start of the reason.
    """

    kinds: list[str]
    good: list[str]
    skipped: Counter[str]


def write(folder: Path) -> Corpus:
    """Writes the shards into a folder."""
    kinds, good, skipped, files = list[str](), list[str](), Counter[str](), Files()
    for table in (SAMPLES, TOLERATED):
        for kind, (parts, reason) in table.items():
            plain, odd = f"good{len(kinds):05d}", f"odd{len(kinds):05d}"
            files += _good(plain, len(kinds))
            files += [(f"{odd}.{suffix}", data) for suffix, data in parts]
            kinds.append(kind)
            good += [plain] if table is SAMPLES else [plain, odd]
            if reason:
                skipped[reason] += 1
    for number, name in enumerate(("../../etc/climbs", "/absolute", "-dashed")):
        files += _good(name, number)
        kinds.append(f"key {name}")
        good.append(name.replace("../", "").replace("/", "_").strip("_"))
    (folder / "samples.tar").write_bytes(tar_of(files))
    for number, (kind, (spoil, left, counts)) in enumerate(SHARDS.items()):
        keys = [f"shard{number}-{k}" for k in range(3)]
        whole = tar_of([file for k, key in enumerate(keys) for file in _good(key, k)])
        (folder / f"shard{number}.tar").write_bytes(spoil(whole, keys))
        kinds.append(f"shard: {kind}")
        good += keys[:left]
        skipped.update(counts)
    return Corpus(kinds, good, skipped)
