"""The state of a conversion while it runs, and what it leaves behind: ``index.json`` and ``rejects.jsonl``."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from m2chat.data import manifest
from m2chat.data.converters.raw import Job, by_choice
from m2chat.data.manifest import Listed, read_index, write_index
from m2chat.data.record import SCHEMA
from m2chat.errors import UserError
from m2chat.files import write_whole

REJECTS = "rejects.jsonl"
EARLY = "early-rejects.jsonl"
"""Rejects of the converter itself, which looks at no picture; written anew by each run, and first in `REJECTS`."""
_RUN_ONLY = ("dst", "workers", "max_rejects")
_PATHS = ("src", "images", "captions")


@dataclass(frozen=True)
class Receipt:
    """A finished unit of work: a shard, unless every sample of it was rejected.

    Args:
        unit: Number of the unit.
        file: Name of the shard; empty if there is none.
        bytes: Length of the shard.
        sha256: SHA-256 of the shard.
        kinds: Number of samples by kind.
        pictures: Number of pictures.
        uncaptioned: Number of pictures without a caption.
        rejects: Id and reason of each raw sample that was rejected.
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
        """Writes the receipt; from then on the unit is done."""
        write_whole(work / f"{self.unit:06d}.json", [json.dumps(asdict(self))])


def settings_of(job: Job) -> dict[str, Any]:
    """The settings that decide the bytes of the shards, without the paths, which differ between machines."""
    chosen = {key: value for key, value in asdict(job).items() if key not in (*_RUN_ONLY, *_PATHS)}
    return {key: value for key, value in chosen.items() if value not in (None, "", 0, False)}


def _raw_of(job: Job) -> dict[str, Any]:
    """Paths, sizes and times of the raw data: a half done conversion must not go on with other data."""
    raw: dict[str, Any] = {}
    for key in _PATHS:
        path: Path | None = getattr(job, key)
        if path is not None:
            stat = path.stat() if path.is_file() else None
            raw[key] = [str(path.absolute()), *(() if stat is None else (stat.st_size, stat.st_mtime_ns))]
    return raw


def begin(job: Job) -> dict[str, Any] | None:
    """Checks the target folder and makes it ready.

    Returns:
        The index if the conversion is complete already, else None.

    Raises:
        UserError: If the folder holds something else.
    """
    remedy = "choose another folder, or delete this one to start anew"
    path = job.dst / manifest.NAME
    if path.is_file():
        index = read_index(job.dst)
        if index.get("settings") != settings_of(job):
            raise UserError(
                f"DST: {job.dst} holds a conversion with other settings ({index.get('settings')}): {remedy}"
            )
        for row in index["shards"]:
            shard = job.dst / row["name"]
            if not shard.is_file() or shard.stat().st_size != row["bytes"]:
                raise UserError(f"DST: {shard} differs from what {path} lists: {remedy}")
        shutil.rmtree(job.work, ignore_errors=True)
        return index
    begun = job.work / "settings.json"
    now = {"settings": settings_of(job), "raw": _raw_of(job)}
    if not begun.is_file():
        if job.dst.is_dir() and any(path.name != job.work.name for path in job.dst.iterdir()):
            raise UserError(f"DST: {job.dst} is not empty: {remedy}")
    # A run that was stopped before its first shard was complete may be repeated with any settings.
    elif any(job.dst.glob("*.tar")) or any(job.work.glob("[0-9]*.json")):
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
    """Removes the partial files of killed processes."""
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
    """Writes ``rejects.jsonl``, side files and, as the mark of completion, ``index.json``.

    Args:
        job: Conversion.
        units: Number of units.
        early: Number of rejects in `EARLY`, by reason.
        lists: Names and rows of side files, written as JSON lines.

    Returns:
        The index.

    Raises:
        UserError: If nothing, or less than the conversion allows, became a sample.
    """

    def receipts() -> Iterator[Receipt]:
        for unit in range(units):
            receipt = receipt_of(job, unit)
            assert receipt is not None, f"unit {unit} of {job.dst} is gone"
            yield receipt

    late = (reject_line(*reject) for receipt in receipts() for reject in receipt.rejects)
    with open(job.work / EARLY, encoding="utf-8") as file:
        write_whole(job.dst / REJECTS, chain(file, late))
    kinds: Counter[str] = Counter()
    reasons = early.copy()
    shards, pictures, uncaptioned = [], 0, 0
    for receipt in receipts():
        kinds.update(receipt.kinds)
        reasons.update(reason for _, reason in receipt.rejects)
        pictures += receipt.pictures
        uncaptioned += receipt.uncaptioned
        if receipt.file:
            shards.append(Listed(receipt.file, sum(receipt.kinds.values()), receipt.bytes, receipt.sha256))
    _require_kept(job, kinds.total(), reasons)
    for name, rows in lists:
        write_whole(job.dst / name, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    index = index_of(settings_of(job), shards, kinds, pictures, uncaptioned, reasons)
    _sweep(job)
    write_index(job.dst, index)
    shutil.rmtree(job.work)
    return index


def _require_kept(job: Job, kept: int, reasons: Counter[str]) -> None:
    """Checks that the raw data were what they were taken for.

    Raises:
        UserError: If nothing was kept, or too many records were rejected.
    """
    faults = Counter({reason: count for reason, count in reasons.items() if not by_choice(reason)})
    all_of_them = kept + reasons.total()
    if kept and faults.total() <= job.max_rejects * (kept + faults.total()):
        return
    if not all_of_them:
        shutil.rmtree(job.work)
        (job.dst / REJECTS).unlink()
        raise UserError(f"SRC: {job.src} has no record of {job.format}: is it empty, or data of another kind?")
    reason, count = (faults or reasons).most_common(1)[0]
    commonest = f"the commonest reason, {count} times: {reason}; {job.dst / REJECTS} lists them all"
    if not kept:  # Another call may have other settings.
        for path in job.work.glob("[0-9]*.json"):
            path.unlink()
        raise UserError(f"{job.src}: none of {all_of_them} records became a sample; {commonest}")
    raise UserError(
        f"{job.src}: {faults.total()} of {kept + faults.total()} records became no sample; {commonest}. Mend the data "
        f"and convert into a new folder, or take the {kept} with --max-rejects 1"
    )


def index_of(
    settings: dict[str, Any],
    shards: Iterable[Listed],
    kinds: Counter[str],
    pictures: int,
    uncaptioned: int,
    rejects: Counter[str],
) -> dict[str, Any]:
    """The content of ``index.json``.

    Args:
        settings: Settings that decide the bytes of the shards.
        shards: All shards.
        kinds: Number of samples by kind.
        pictures: Number of pictures.
        uncaptioned: Number of pictures without a caption.
        rejects: Number of rejected samples by reason.
    """
    return {
        "schema": SCHEMA,
        "settings": settings,
        "samples": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "pictures": pictures,
        "uncaptioned": uncaptioned,
        "rejects": dict(sorted(rejects.items())),
        "shards": [asdict(shard) for shard in shards],
    }


def reject_line(name: str, reason: str) -> str:
    """A line of ``rejects.jsonl``."""
    return json.dumps({"id": name, "reason": reason}, ensure_ascii=False) + "\n"
