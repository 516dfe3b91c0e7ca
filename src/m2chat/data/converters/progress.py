"""What a conversion has done so far, and what it leaves behind: ``index.json`` and ``rejects.jsonl``."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from m2chat.data.converters.drafts import Job
from m2chat.data.record import SCHEMA
from m2chat.errors import UserError
from m2chat.files import write_whole

INDEX = "index.json"
REJECTS = "rejects.jsonl"
EARLY = "early-rejects.jsonl"
"""Rejects of the converter itself, who looks at no picture; written anew by each run, and first in `REJECTS`."""
_RUN_ONLY = ("dst", "workers")
_PATHS = ("src", "images", "captions")


@dataclass(frozen=True)
class Receipt:
    """A finished unit of work: a shard, unless every draft of it was rejected.

    Args:
        unit: Number of the unit.
        file: Name of the shard; empty if there is none.
        bytes: Its length.
        sha256: Of its bytes.
        kinds: Samples by kind.
        pictures: Number of pictures.
        uncaptioned: Pictures without a caption.
        rejects: Id and reason of each draft that did not become a sample.
    """

    unit: int
    file: str
    bytes: int
    sha256: str
    kinds: dict[str, int]
    pictures: int
    uncaptioned: int
    rejects: list[tuple[str, str]] = field(default_factory=list)

    def save(self, work: Path) -> None:
        """Writes it down; from then on the unit is done."""
        write_whole(work / f"{self.unit:06d}.json", [json.dumps(asdict(self))])


def settings_of(job: Job) -> dict[str, Any]:
    """What decides the bytes of the shards, without the paths, which differ between machines."""
    chosen = {key: value for key, value in asdict(job).items() if key not in (*_RUN_ONLY, *_PATHS)}
    return {key: value for key, value in chosen.items() if value not in (None, "", 0, False)}


def _raw_of(job: Job) -> dict[str, Any]:
    """The raw data as they are now: a half done conversion must not go on with others."""
    raw: dict[str, Any] = {}
    for key in _PATHS:
        path: Path | None = getattr(job, key)
        if path is not None:
            stat = path.stat() if path.is_file() else None
            raw[key] = [str(path.absolute()), *(() if stat is None else (stat.st_size, stat.st_mtime_ns))]
    return raw


def begin(job: Job) -> dict[str, Any] | None:
    """Looks at the target folder and makes it ready.

    Returns:
        The index if the conversion is complete already, else None.

    Raises:
        UserError: If the folder holds something else.
    """
    remedy = "choose another folder, or delete this one to start anew"
    index = job.dst / INDEX
    if index.is_file():
        found = read_index(index)
        if found.get("settings") != settings_of(job):
            raise UserError(
                f"DST: {job.dst} holds a conversion with other settings ({found.get('settings')}): {remedy}"
            )
        for shard in found["shards"]:
            path = job.dst / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"DST: {path} is not as {index} says: {remedy}")
        shutil.rmtree(job.work, ignore_errors=True)
        return found
    begun = job.work / "settings.json"
    now = {"settings": settings_of(job), "raw": _raw_of(job)}
    if not begun.is_file():
        if job.dst.is_dir() and any(path.name != job.work.name for path in job.dst.iterdir()):
            raise UserError(f"DST: {job.dst} is not empty: {remedy}")
    elif any(job.dst.glob("*.tar")) or any(job.work.glob("[0-9]*.json")):  # A run without a result binds nobody.
        if json.loads(begun.read_text(encoding="utf-8")) != json.loads(json.dumps(now)):
            raise UserError(
                f"DST: {job.dst} holds a half done conversion with other settings or of raw data that have changed "
                f"since: {remedy}"
            )
    job.work.mkdir(parents=True, exist_ok=True)
    _sweep(job)
    write_whole(begun, [json.dumps(now)])
    return None


def _sweep(job: Job) -> None:
    """Removes what killed processes have begun to write."""
    for folder in (job.dst, job.work):
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)


def receipt_of(job: Job, unit: int) -> Receipt | None:
    """The receipt of a unit, None if it is not done."""
    path = job.work / f"{unit:06d}.json"
    if not path.is_file():
        return None
    receipt = Receipt(**json.loads(path.read_text(encoding="utf-8")))
    shard = job.dst / receipt.file
    return receipt if not receipt.file or (shard.is_file() and shard.stat().st_size == receipt.bytes) else None


def finish(job: Job, units: int, early: Counter[str], lists: Iterable[tuple[str, Iterable[Any]]]) -> dict[str, Any]:
    """Writes ``rejects.jsonl``, side files and ``index.json``; the last of them says that all is complete.

    Args:
        job: The conversion.
        units: How many there are.
        early: Rejects of `EARLY`, by reason.
        lists: Names and rows of side files, written as JSON lines.

    Returns:
        The index.
    """

    def receipts() -> Iterator[Receipt]:
        for unit in range(units):
            receipt = receipt_of(job, unit)
            assert receipt is not None, f"unit {unit} of {job.dst} is gone"
            yield receipt

    late = (reject_line(*reject) for receipt in receipts() for reject in receipt.rejects)
    with open(job.work / EARLY, encoding="utf-8") as file:
        write_whole(job.dst / REJECTS, chain(file, late))
    for name, entries in lists:
        write_whole(job.dst / name, _json_lines(entries))
    kinds: Counter[str] = Counter()
    reasons = early.copy()
    shards, pictures, uncaptioned = [], 0, 0
    for receipt in receipts():
        kinds.update(receipt.kinds)
        reasons.update(reason for _, reason in receipt.rejects)
        pictures += receipt.pictures
        uncaptioned += receipt.uncaptioned
        if receipt.file:
            count = sum(receipt.kinds.values())
            shards.append({"name": receipt.file, "samples": count, "bytes": receipt.bytes, "sha256": receipt.sha256})
    index = {
        "schema": SCHEMA,
        "settings": settings_of(job),
        "samples": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "pictures": pictures,
        "uncaptioned": uncaptioned,
        "rejects": dict(sorted(reasons.items())),
        "shards": shards,
    }
    _sweep(job)
    write_index(job.dst, index)
    shutil.rmtree(job.work)
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes a folder's ``index.json``."""
    write_whole(folder / INDEX, [json.dumps(index, indent=1, ensure_ascii=False), "\n"])


def read_index(path: Path) -> dict[str, Any]:
    """Reads an ``index.json``.

    Raises:
        UserError: If it is something else.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): delete the folder to start anew") from error
    if not isinstance(index, dict) or not isinstance(index.get("shards"), list):
        raise UserError(f"{path} is no index of shards: choose another folder")
    return index


def reject_line(name: str, reason: str) -> str:
    """A line of ``rejects.jsonl``."""
    return json.dumps({"id": name, "reason": reason}, ensure_ascii=False) + "\n"


def _json_lines(rows: Iterable[Any]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
