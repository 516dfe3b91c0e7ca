"""What a sample is recognised by, wherever it turns up again: its id, its words and the bytes of its pictures.

The prints of a shard are kept, so that a large data set is read once: beside the tar as ``<tar>.prints.npz``, or in the
user's cache where that folder is read-only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.data.entries import Entries
from m2chat.data.record import SCHEMA
from m2chat.data.shards import Shard
from m2chat.data.sources import PICTURES, BadSample
from m2chat.files import write_whole

WHAT = ("id", "picture", "conversation", "id and words")
"""What a print is of; `Prints.what` holds indices into it."""
_ID, _PICTURE, _CONVERSATION, _WORDS = range(len(WHAT))
_LEAST_REQUESTS = 2
"""User turns from which on a conversation is recognised by its words: a greeting and its answer prove nothing."""
_VERSION = 1


@dataclass(frozen=True)
class Prints:
    """The prints of a shard's samples; all arrays have one entry a print.

    Args:
        hashes: First eight bytes of a SHA-256.
        what: Of what, an index into `WHAT`.
        sample: Place of the sample in `Shard.entries`.
    """

    hashes: NDArray[np.uint64]
    what: NDArray[np.uint8]
    sample: NDArray[np.int64]


def record_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The JSON of a sample, empty if it has none.

    Raises:
        BadSample: If it is broken.
    """
    try:
        record = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BadSample("broken json") from error
    if not isinstance(record, dict):
        raise BadSample("json is not an object")
    return record


def identity(record: Mapping[str, Any], key: str) -> str:
    """What a sample is called: the id that its JSON states, else its key.

    Args:
        record: Its JSON.
        key: Its name in the shard.
    """
    stated = record.get("id") if record.get("schema") == SCHEMA else None
    return stated if isinstance(stated, str) and stated else key


def digest(kind: str, *parts: str | bytes) -> int:
    """The first eight bytes of a SHA-256, as a number. The parts are told apart, whatever they hold."""
    whole = hashlib.sha256(kind.encode())
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(whole.digest()[:8], "big")


def prints_of(members: Mapping[str, bytes], key: str) -> Iterator[tuple[int, int]]:
    """The prints of a sample.

    Args:
        members: Its files, suffix to bytes.
        key: Its name in the shard.

    Yields:
        Hash, and of what it is.

    Raises:
        BadSample: If its JSON is broken.
    """
    record = record_of(members)
    name = identity(record, key)
    # An id that is only a number within its source says where the sample stood, and every split counts from 0; nor
    # does a key that no JSON confirms say more. Such a name counts together with the words.
    if name is not key and any(letter.isalpha() for letter in name.removeprefix(f"{record.get('source')}/")):
        yield digest("id", name), _ID
    requests, said, shown = _words(record, members)
    yield digest("words", name, *said, *shown), _WORDS
    if requests >= _LEAST_REQUESTS:
        yield digest("conversation", *said), _CONVERSATION
    for suffix, data in members.items():
        if data and suffix.rpartition(".")[2] in PICTURES:
            yield digest("picture", data), _PICTURE


def _words(record: Mapping[str, Any], members: Mapping[str, bytes]) -> tuple[int, list[str], list[str]]:
    """How many turns are the user's, what is said, and the captions."""
    if record.get("schema") != SCHEMA:
        caption = members["txt"].decode("utf-8", errors="replace") if "txt" in members else record.get("caption")
        return 1, [], [normalised(str(caption))]
    try:
        roles = [turn["role"] for turn in record["turns"]]
        said = [part["text"] for turn in record["turns"] for part in turn["content"] if part["type"] == "text"]
        shown = [image.get("caption") or "" for image in record["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSample(f"json is not {SCHEMA}") from error
    return roles.count("user"), [normalised(str(text)) for text in said], [normalised(str(text)) for text in shown]


def normalised(text: str) -> str:
    """A text without what does not change what it says: case, width and form of letters, kind and number of blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_pictures(shard: Shard) -> Shard:
    """The same shard with nothing but JSON and text files: what is left is read in a moment."""
    entries = [
        replace(entry, members=[member for member in entry.members if member[0] in ("json", "txt")])
        for entry in shard.entries
    ]
    return Shard(shard.path, Entries.of(entries), shard.skipped)


def prints_of_shard(shard: Shard) -> Prints:
    """The prints of a shard: those that were kept if they still fit, else new ones."""
    stamp = _stamp(shard)
    for place in _places(shard):
        # Whatever is wrong with a file, another one is made.
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(place) as kept:
            if np.array_equal(kept["stamp"], stamp):
                return Prints(kept["hashes"], kept["what"], kept["sample"])
    prints = _scan(shard)
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, hashes=prints.hashes, what=prints.what, sample=prints.sample)
    for place in _places(shard):
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, buffer.getvalue())
            break
    return prints


def are_kept(shard: Shard) -> bool:
    """Whether prints of a shard lie somewhere, without a look at whether they still fit."""
    return any(place.is_file() for place in _places(shard))


def _stamp(shard: Shard) -> NDArray[np.uint64]:
    """What changes with a shard's content: size and time of the file, else where its samples lie."""
    local = Path(shard.path)
    if not local.is_file():
        return np.array([_VERSION, digest("entries", repr(shard.entries))], np.uint64)
    stat = local.stat()
    return np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.uint64)


def _places(shard: Shard) -> list[Path]:
    """Where the prints of a shard may lie: beside it, or in the user's cache."""
    local = Path(shard.path)
    beside = [local.with_name(f"{local.name}.prints.npz")] if local.is_file() else []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2chat" / "prints"
    name = str(local.resolve()) if beside else shard.path
    return [*beside, cache / f"{digest('path', name):016x}.npz"]


def _scan(shard: Shard) -> Prints:
    found: list[tuple[int, int, int]] = []
    for index, entry in enumerate(shard.entries):
        with suppress(BadSample):  # Nobody trains on it or is tested on it.
            found += [(hashed, what, index) for hashed, what in prints_of(shard.members(index), entry.key)]
    hashes, what, sample = zip(*found, strict=True) if found else ((), (), ())
    return Prints(np.array(hashes, np.uint64), np.array(what, np.uint8), np.array(sample, np.int64))
