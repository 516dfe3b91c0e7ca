"""From raw samples to shards: a shard is a unit of work, done by any process in any order, always with the same bytes.

A run that was killed goes on where it was: a shard appears only when it is complete, and complete ones are skipped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any

from m2chat.data.converters.jsonfiles import new_table
from m2chat.data.converters.pictures import Stored, stored
from m2chat.data.converters.progress import EARLY, Receipt, begin, finish, receipt_of, reject_line
from m2chat.data.converters.raw import Job, PictureFile, RawSample, RawSamples
from m2chat.data.converters.registry import FORMATS, load
from m2chat.data.images import BadImage
from m2chat.data.manifest import Listed
from m2chat.data.record import ImageRecord
from m2chat.data.shards import Group, write_tar
from m2chat.data.sources import MAX_TEXT, BadSample, require_reply, to_record
from m2chat.files import locked
from m2chat.schema import Sample


def convert(job: Job) -> dict[str, Any]:
    """Converts, or goes on converting.

    Args:
        job: Conversion.

    Returns:
        The content of ``index.json``: shards with their SHA-256, samples by kind, rejects by reason.

    Raises:
        UserError: If the raw data are not there or of another shape, nothing or less than allowed became a sample, the
            target folder holds something else, or another process converts into it.
    """
    job.dst.parent.mkdir(parents=True, exist_ok=True)
    with locked(job.dst, wait=False):
        done = begin(job)
        if done is not None:
            return done
        form = FORMATS[job.format]
        reasons: Counter[str] = Counter()
        with closing(form.samples()(job)) as items:
            kept = _without_rejects(job, islice(items, job.limit) if job.limit else items, reasons)
            units = _run(job, _distinct(job, kept))
        return finish(job, units, reasons, load(form.lists)(job) if form.lists else ())


def _without_rejects(job: Job, items: RawSamples, reasons: Counter[str]) -> Iterator[RawSample]:
    """The raw samples; rejects are counted and go to a file at once, since there may be millions."""
    with open(job.work / EARLY, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        for item in items:
            if isinstance(item, RawSample):
                yield item
            else:
                reasons[item.reason] += 1
                file.write(reject_line(item.id, item.reason))


def _distinct(job: Job, samples: Iterator[RawSample]) -> Iterator[RawSample]:
    """The samples with ids of their own: the second of an id ends in ``-2``, and so on.

    Ids of raw data repeat: several questions about one picture, several captions, the same keys in every shard.
    """
    with closing(new_table(job.work / "ids.sqlite")) as table:
        table.execute("CREATE TABLE t (id BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        new = "INSERT OR IGNORE INTO t VALUES (?, 1)"
        for sample in samples:
            name, key = sample.id, sample.id.encode(errors="replace")
            while not table.execute(new, (key,)).rowcount:
                table.execute("UPDATE t SET times = times + 1 WHERE id = ?", (key,))
                (times,) = table.execute("SELECT times FROM t WHERE id = ?", (key,)).fetchone()
                name = f"{name}-{times}"
                key = name.encode(errors="replace")
            yield sample if name == sample.id else replace(sample, id=name)


def _run(job: Job, samples: Iterator[RawSample]) -> int:
    """Makes every shard that is not there yet; returns how many units there are."""
    from tqdm import tqdm

    units = 0
    with tqdm(desc=job.name, unit=" samples", disable=None) as bar, _Workers(job.workers) as workers:
        while unit := list(islice(samples, job.per_shard)):
            if receipt_of(job, units) is None:
                for count in workers.submit(job, units, unit):
                    bar.update(count)
            else:
                bar.update(len(unit))
            units += 1
        for count in workers.rest():
            bar.update(count)
    return units


class _Workers:
    """Processes that make shards; a single worker is the calling process itself.

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self._limit = 2 * count  # Every process has work, and few samples wait.
        self._pending: set[Future[int]] = set()
        self._pool = None
        if count > 1:
            # A fresh interpreter each: smaller than a fork of this one, and without shared locks or files.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_die_with_parent)

    def submit(self, job: Job, number: int, unit: list[RawSample]) -> Iterator[int]:
        """Hands over a unit; yields the sizes of those that are done meanwhile."""
        if self._pool is None:
            yield make_shard(job, number, unit)
            return
        while len(self._pending) >= self._limit:
            yield from self._finished()
        self._pending.add(self._pool.submit(make_shard, job, number, unit))

    def rest(self) -> Iterator[int]:
        """Waits for all that was handed over; yields the sizes."""
        while self._pending:
            yield from self._finished()

    def _finished(self) -> Iterator[int]:
        finished, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """Ends this process when its parent is gone: a killed run must not go on writing beside its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait_for([sentinel]), os._exit(1)), daemon=True).start()


def make_shard(job: Job, number: int, unit: list[RawSample]) -> int:
    """Writes one shard and its receipt.

    Args:
        job: Conversion.
        number: Number of the shard.
        unit: Raw samples of the shard.

    Returns:
        Number of raw samples, rejects included.
    """
    rejects: list[tuple[str, str]] = []
    kinds: Counter[str] = Counter()
    pictures, uncaptioned = 0, 0

    def groups() -> Iterator[Group]:
        nonlocal pictures, uncaptioned
        for place, sample in enumerate(unit):
            try:
                members = _members(job, sample)
            except (BadImage, BadSample) as error:
                rejects.append((sample.id, error.reason))
                continue
            kinds[sample.kind] += 1
            pictures += len(sample.pictures)
            uncaptioned += sum(not picture.caption for picture in sample.pictures)
            yield f"{number * job.per_shard + place:09d}", members

    path = job.dst / f"{job.name}-{number:06d}.tar"
    if count := write_tar(path, groups()):
        shard = Listed.of(path, count)
    else:  # Every sample was rejected: an empty tar would be no shard.
        path.unlink()
        shard = Listed("", 0, 0, "")
    receipt = Receipt(number, shard.name, shard.bytes, shard.sha256, dict(kinds), pictures, uncaptioned, rejects)
    receipt.save(job.work)
    return len(unit)


def _members(job: Job, raw: RawSample) -> dict[str, bytes]:
    """The files of a sample, after every check that the reader makes.

    Raises:
        BadImage: If a picture cannot be used.
        BadSample: If the conversation cannot be used.
    """
    sample = Sample(
        f"{job.name}/{raw.id}",
        raw.turns,
        kind=raw.kind,
        source=job.name,
        meta=raw.meta,
        license=raw.license or job.license,
    )
    require_reply(sample)
    members: dict[str, bytes] = {}
    images = []
    for index, picture in enumerate(raw.pictures):
        if picture.original_size is not None and min(picture.original_size) < job.min_side:
            raise BadImage(f"picture of less than {job.min_side} pixels a side")
        file = stored(picture.read(), job.min_side)
        images.append(_image_record(f"img{index}.{file.suffix}", picture, file))
        members[images[-1].member] = file.data
    members["json"] = to_record(sample, images).to_json()
    if len(members["json"]) > MAX_TEXT:
        raise BadSample("json too large")
    return members


def _image_record(member: str, picture: PictureFile, file: Stored) -> ImageRecord:
    (height, width), original = file.size, picture.original_size or file.original_size
    return ImageRecord(
        member=member,
        width=width,
        height=height,
        original_width=original[1],
        original_height=original[0],
        caption=picture.caption,
        caption_by=picture.caption_by or None,
        sha256=hashlib.sha256(file.data).hexdigest(),
        media_key=picture.media_key or None,
    )
