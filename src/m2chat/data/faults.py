"""All faults of some shards, each with its place. Reading only skips and counts them."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from m2chat.checksums import sha256
from m2chat.data.images import BadImage, load_image
from m2chat.data.manifest import NAME, Listed, read_manifest
from m2chat.data.peek import is_picture, peek
from m2chat.data.prints import identity
from m2chat.data.record import SCHEMA
from m2chat.data.shards import local_shards
from m2chat.data.sources import PICTURES, BadSample, json_of
from m2chat.data.tar_files import BLOCK, MAX_MEMBER, REST, SUFFIXES
from m2chat.errors import UserError
from m2chat.textfiles import is_utf8

_CHUNK = 2**20


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        shard: Path of the shard.
        key: Sample, as the tar names it; empty if the whole shard is at fault.
        member: Suffix or name of the file; empty if the whole sample is at fault.
        reason: Reason, in words that are the same for all faults of the kind.
        detail: Further facts.
    """

    shard: str
    key: str
    member: str
    reason: str
    detail: str = ""


@dataclass
class Report:
    """The result of `check`.

    Args:
        shards: Number of shards.
        samples: Number of groups of files, good or bad.
        faults: Faults in the order of the shards.
    """

    shards: int = 0
    samples: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Faults by reason."""
        return Counter(fault.reason for fault in self.faults)


class _File(NamedTuple):
    """A file of a tar that is read: its key with folders, lower-case suffix, and place in bytes."""

    key: str
    suffix: str
    offset: int
    size: int


def check(path: str | Path) -> Report:
    """Looks for every fault of some shards.

    Args:
        path: ``.tar`` shard, folder of them, or pattern.

    Raises:
        UserError: If there are no shards.
    """
    shards = local_shards(path, "PATH")
    report = Report(shards=len(shards))
    listed: dict[Path, dict[str, Listed] | None] = {}
    for folder in dict.fromkeys(shard.parent for shard in shards):
        try:
            listed[folder] = read_manifest(folder)
        except UserError as error:
            listed[folder] = None
            report.faults.append(Fault(str(folder / NAME), "", "", f"unreadable {NAME}", str(error)))
    ids: dict[str, str] = {}
    for shard in shards:
        checker = _Checker(shard, ids)
        report.faults += checker.check()
        report.samples += checker.samples
        manifest = listed[shard.parent]
        if manifest is not None:
            report.faults += _differences(shard, manifest.get(shard.name), checker.samples)
    manifest = listed.get(Path(path))
    for name in sorted(set(manifest or ()) - {shard.name for shard in shards}):
        report.faults.append(Fault(str(Path(path) / name), "", "", f"missing, though {NAME} lists it"))
    return report


def _differences(path: Path, listed: Listed | None, samples: int) -> Iterator[Fault]:
    """Differences between a shard and its entry in the manifest."""
    if listed is None:
        yield Fault(str(path), "", "", f"not in {NAME}")
    elif path.stat().st_size != listed.bytes:
        detail = f"{path.stat().st_size} bytes, listed {listed.bytes}"
        yield Fault(str(path), "", "", f"length differs from {NAME}", detail)
    elif (digest := sha256(path)) != listed.sha256:
        yield Fault(str(path), "", "", f"checksum differs from {NAME}", f"SHA-256 {digest}, listed {listed.sha256}")
    elif samples != listed.samples:
        yield Fault(str(path), "", "", f"number of samples differs from {NAME}", f"{samples}, listed {listed.samples}")


class _Checker:
    """The search within one shard.

    Args:
        path: Tar.
        ids: First shard in which each id of the data set occurs; grows.
    """

    def __init__(self, path: Path, ids: dict[str, str]) -> None:
        self.path, self.ids = path, ids
        self.samples = 0
        self._faults: list[Fault] = []
        self._size = path.stat().st_size

    def check(self) -> list[Fault]:
        """All faults, those of the tar itself first where it breaks off."""
        keys: set[str] = set()
        with self.path.open("rb") as file:
            for key, group in groupby(self._files(), key=lambda item: item.key):
                self.samples += 1
                members: dict[str, bytes] = {}
                for item in group:
                    if item.suffix in members:
                        self._add(key, item.suffix, "duplicate file")
                    elif item.size > MAX_MEMBER:
                        self._add(key, item.suffix, f"file of more than {MAX_MEMBER // 2**20} MiB")
                    else:
                        file.seek(item.offset)
                        members[item.suffix] = file.read(item.size)
                if key in keys:
                    self._add(key, "", "files of the sample do not stand together")
                self._sample(key, members, first=key not in keys)
                keys.add(key)
        if not self.samples and not self._faults:
            self._add("", "", "no sample")
        return self._faults

    def _add(self, key: str, member: str, reason: str, detail: str = "") -> None:
        self._faults.append(Fault(str(self.path), key, member, reason, detail))

    def _files(self) -> Iterator[_File]:
        """The files that the reader takes; all others are faults."""
        end = 0
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                    if not member.isdir() and (item := self._file(member)) is not None:
                        yield item
                end = tar.offset  # type: ignore[attr-defined]
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if not self._size:
                self._add("", "", "empty shard file")
            elif not any(fault.reason == "cut off" for fault in self._faults):
                self._add("", "", "not a tar" if not self.samples else REST, str(error))
        else:
            self._end(end)

    def _file(self, member: tarfile.TarInfo) -> _File | None:
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        suffix = suffix.lower()
        key = f"{folder}{slash}{stem}"
        if member.name.startswith("/") or ".." in member.name.split("/"):
            self._add(key, suffix, "name leaves the folder")
        if not member.isreg() or member.issparse():
            self._add(key, suffix, "link or device, never read")
        elif suffix.rpartition(".")[2] not in SUFFIXES:
            self._add(key, suffix, "unknown suffix, never read")
        elif member.offset_data + member.size > self._size:
            self._add(key, suffix, "cut off", f"ends {member.offset_data + member.size - self._size} bytes early")
        else:
            return _File(key, suffix, member.offset_data, member.size)
        return None

    def _end(self, offset: int) -> None:
        """Checks the end mark, blocks of zeros: Python's tar reader stops silently at anything else."""
        with self.path.open("rb") as file:
            file.seek(offset)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                self._add("", "", "cut off", "no end mark")
            elif any(block):
                self._add("", "", REST, f"no header at byte {offset} of {self._size}")
            else:
                while chunk := file.read(_CHUNK):
                    if any(chunk):
                        self._add("", "", REST, f"data behind the end mark at byte {offset}")
                        break

    def _sample(self, key: str, members: Mapping[str, bytes], *, first: bool) -> None:
        for suffix, data in members.items():
            if is_picture(suffix):
                try:
                    load_image(data)
                except BadImage as error:
                    self._add(key, suffix, error.reason)
            elif not is_utf8(data):
                self._add(key, suffix, "not UTF-8")
        record = self._structure(key, members)
        if record is None:
            return
        pictures = _pictures(record)
        for name, digest in pictures.items():
            if digest and name in members and hashlib.sha256(members[name]).hexdigest() != digest:
                self._add(key, name, "checksum differs from the JSON")
        chosen = next((suffix for suffix in PICTURES if suffix in members), "")
        for suffix in sorted(members.keys() - ({"json", *pictures} if _is_m2c(record) else {"json", "txt", chosen})):
            if re.fullmatch(r"img\d+\.\w+", suffix):
                self._add(key, suffix, "no JSON names it, never read")
            elif "." in suffix:
                self._add(key, suffix, "dot in the key", f"read as key {key!r} and suffix {suffix!r}")
            else:
                self._add(key, suffix, "never read beside the sample's other files")
        if first:  # A later fragment of the sample has been reported already.
            name = identity(record, key)
            if name in self.ids:
                self._add(key, "", "duplicate id", f"{name!r} is also in {self.ids[name]}")
            self.ids.setdefault(name, str(self.path))

    def _structure(self, key: str, members: Mapping[str, bytes]) -> dict[str, Any] | None:
        """The content of a sample's JSON, empty if there is none, None if it is broken; adds what the sample lacks."""
        try:
            record: dict[str, Any] | None = json_of(members)
        except BadSample:
            record = None
        try:
            peek(members, key, "")
        except BadSample as error:
            if error.reason == "picture missing" and record is not None:
                for name in sorted(_pictures(record).keys() - members.keys()):
                    self._add(key, name, error.reason)
            else:
                self._add(key, "json" if record is None or _is_m2c(record) else "", error.reason)
        return record


def _is_m2c(record: Mapping[str, Any]) -> bool:
    return record.get("schema") == SCHEMA


def _pictures(record: Mapping[str, Any]) -> dict[str, str]:
    """Suffixes of the pictures that a JSON names, and their SHA-256; empty where it is not stated."""
    entries = record.get("images") if _is_m2c(record) else ()
    rows = [row for row in entries if isinstance(row, dict)] if isinstance(entries, list) else []
    return {str(row["member"]): str(row.get("sha256") or "") for row in rows if "member" in row}
