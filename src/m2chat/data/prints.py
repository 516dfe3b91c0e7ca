"""Fingerprints by which a sample is recognised in another data set: its id, its text and the bytes of its pictures.

The prints of a shard are kept, so that a large data set is read once: beside the tar as ``<tar>.prints.npz``, or in the
user's cache where that folder is read-only.
"""

from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.checksums import NPZ_ERRORS, is_sealed, seal_zip
from m2chat.data.index import Entries, Shard
from m2chat.data.record import SCHEMA
from m2chat.data.sources import PICTURES, BadSample, json_of
from m2chat.errors import UserError
from m2chat.files import write_whole

WHAT = ("id", "picture", "conversation", "id and words")
"""Kinds of prints; `Prints.what` holds indices into it."""
_ID, _PICTURE, _CONVERSATION, _WORDS = range(len(WHAT))
_LEAST_REQUESTS = 2
"""User turns from which on a conversation is recognised by its text: a greeting and its answer prove nothing."""
_VERSION = 1


@dataclass(frozen=True)
class Prints:
    """The prints of a shard's samples; all arrays have shape (prints,).

    Args:
        hashes: First eight bytes of a SHA-256.
        what: Kind of the print, an index into `WHAT`.
        sample: Index of the sample in `Shard.entries`.
    """

    hashes: NDArray[np.uint64]
    what: NDArray[np.uint8]
    sample: NDArray[np.int64]


def identity(record: Mapping[str, Any], key: str) -> str:
    """The name of a sample: the id that its JSON states, else its key.

    Args:
        record: Content of its JSON.
        key: Name in the shard.
    """
    stated = record.get("id") if record.get("schema") == SCHEMA else None
    return stated if isinstance(stated, str) and stated else key


def digest(kind: str, *parts: str | bytes) -> int:
    """The first eight bytes of a SHA-256, as a number; it depends on where one part ends and the next begins."""
    whole = hashlib.sha256(kind.encode())
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(whole.digest()[:8], "big")


def prints_of(members: Mapping[str, bytes], key: str) -> Iterator[tuple[int, int]]:
    """The prints of a sample.

    Args:
        members: Suffix to bytes of each file.
        key: Name in the shard.

    Yields:
        Hash, and index of its kind in `WHAT`.

    Raises:
        BadSample: If its JSON is broken.
    """
    record = json_of(members)
    name = identity(record, key)
    # An id that is a mere number within its source is a position, and every split counts from 0; a key that no JSON
    # confirms is no better. Such a name counts only together with the text.
    if name is not key and any(letter.isalpha() for letter in name.removeprefix(f"{record.get('source')}/")):
        yield digest("id", name), _ID
    requests, texts, captions = _texts(record, members)
    yield digest("words", name, *texts, *captions), _WORDS
    if requests >= _LEAST_REQUESTS:
        yield digest("conversation", *texts), _CONVERSATION
    for suffix, data in members.items():
        if data and suffix.rpartition(".")[2] in PICTURES:
            yield digest("picture", data), _PICTURE


def _texts(record: Mapping[str, Any], members: Mapping[str, bytes]) -> tuple[int, list[str], list[str]]:
    """Number of the user's turns, all texts, and the captions."""
    if record.get("schema") != SCHEMA:
        caption = members["txt"].decode("utf-8", errors="replace") if "txt" in members else record.get("caption")
        return 1, [], [normalised(str(caption))]
    try:
        roles = [turn["role"] for turn in record["turns"]]
        texts = [part["text"] for turn in record["turns"] for part in turn["content"] if part["type"] == "text"]
        captions = [image.get("caption") or "" for image in record["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSample(f"json is not {SCHEMA}") from error
    return roles.count("user"), [normalised(str(text)) for text in texts], [normalised(str(text)) for text in captions]


def normalised(text: str) -> str:
    """A text in one of its spellings: case, width and form of letters, and kind and number of blanks are unified."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_pictures(shard: Shard) -> Shard:
    """The same shard with JSON and text files only, which are read quickly."""
    entries = [
        entry._replace(members=[member for member in entry.members if member[0] in ("json", "txt")])
        for entry in shard.entries
    ]
    return Shard(shard.path, Entries.of(entries), shard.skipped)


def prints_of_shard(shard: Shard) -> Prints:
    """The prints of a shard: those that were kept if they still fit, else new ones."""
    stamp = _stamp(shard)
    for place in _places(shard):
        # A file that cannot be read is replaced by a new one.
        with suppress(UserError, *NPZ_ERRORS):
            is_sealed(place)
            with np.load(place, allow_pickle=False) as kept:
                if np.array_equal(kept["stamp"], stamp):
                    return Prints(kept["hashes"], kept["what"], kept["sample"])
    prints = _scan(shard)
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, hashes=prints.hashes, what=prints.what, sample=prints.sample)
    seal_zip(buffer)
    for place in _places(shard):
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, buffer.getvalue())
            break
    return prints


def are_kept(shard: Shard) -> bool:
    """Whether a file of the shard's prints exists; whether it still fits is not checked."""
    return any(place.is_file() for place in _places(shard))


def _stamp(shard: Shard) -> NDArray[np.uint64]:
    """A value that changes with a shard's content: size and time of a local file, else the places of the samples."""
    local = Path(shard.path)
    if not local.is_file():
        return np.array([_VERSION, digest("entries", repr(shard.entries))], np.uint64)
    stat = local.stat()
    return np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.uint64)


def _places(shard: Shard) -> list[Path]:
    """Possible files of a shard's prints: beside it, or in the user's cache."""
    local = Path(shard.path)
    beside = [local.with_name(f"{local.name}.prints.npz")] if local.is_file() else []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2chat" / "prints"
    name = str(local.resolve()) if beside else shard.path
    return [*beside, cache / f"{digest('path', name):016x}.npz"]


def _scan(shard: Shard) -> Prints:
    rows: list[tuple[int, int, int]] = []
    for index, entry in enumerate(shard.entries):
        with suppress(BadSample):  # It is neither trained nor tested on.
            rows += [(hashed, what, index) for hashed, what in prints_of(shard.members(index), entry.key)]
    hashes, what, sample = zip(*rows, strict=True) if rows else ((), (), ())
    return Prints(np.array(hashes, np.uint64), np.array(what, np.uint8), np.array(sample, np.int64))
