"""Raw data in their true forms, made small."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2chat.data.converters.engine import convert
from m2chat.data.converters.raw import Job
from m2chat.data.converters.registry import FORMATS
from m2chat.data.shards import find_shards, open_shard
from m2chat.data.sources import sample_of
from m2chat.schema import Sample


@dataclass
class Raw:
    """A folder of raw data while a test makes it."""

    path: Path

    @staticmethod
    def photo(seed: int = 0, width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
        """A smooth picture, so that a JPEG of it is nearly the same."""
        corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR).convert(mode)

    @staticmethod
    def as_bytes(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=form, **options)
        return buffer.getvalue()

    def put(self, name: str, data: Any) -> Path:
        """Writes bytes as they are, text as UTF-8, anything else as JSON."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(data, bytes):
            data = (data if isinstance(data, str) else json.dumps(data)).encode()
        path.write_bytes(data)
        return path

    def put_photo(self, name: str, seed: int = 0) -> bytes:
        data = self.as_bytes(self.photo(seed), {"jpg": "JPEG"}.get(name[-3:], name[-3:]))
        self.put(name, data)
        return data

    def put_lines(self, name: str, rows: list[Any]) -> Path:
        return self.put(name, "".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Converted:
    """What a conversion has left."""

    samples: list[Sample]
    members: list[dict[str, bytes]]
    index: dict[str, Any]
    rejects: dict[str, str]
    folder: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(members["json"]) for members in self.members]

    def sample(self, name: str) -> Sample:
        (found,) = (sample for sample in self.samples if sample.id.partition("/")[2] == name)
        return found


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path / "raw")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A conversion from `raw` to `dst`, unless told otherwise."""

    def make(raw_format: str, src: Path | None = None, **settings: Any) -> Job:
        chosen = {
            "name": FORMATS[raw_format].source or "own",
            "license": FORMATS[raw_format].license,
            "dst": tmp_path / "dst",
            "max_rejects": 1.0,  # most of what the tests convert is faulty on purpose
        }
        return Job(raw_format, src or tmp_path / "raw", **{**chosen, **settings})

    return make


@pytest.fixture
def run(job: Callable[..., Job]) -> Callable[..., Converted]:
    """Converts, and reads the shards as training would."""

    def go(raw_format: str, src: Path | None = None, **settings: Any) -> Converted:
        wanted = job(raw_format, src, **settings)
        index = convert(wanted)
        shards = [open_shard(path) for path in find_shards(wanted.dst)] if index["shards"] else []
        members = [shard.members(i) for shard in shards for i in range(len(shard.entries))]
        samples = [sample_of(files, "key", "elsewhere") for files in members]
        assert index["samples"] == len(samples)
        assert all(sample.source == wanted.name and sample.id.startswith(f"{wanted.name}/") for sample in samples)
        rows = [json.loads(line) for line in (wanted.dst / "rejects.jsonl").read_text().splitlines()]
        rejects = {row["id"]: row["reason"] for row in rows}
        assert sum(index["rejects"].values()) == len(rows) == len(rejects)
        assert not (wanted.dst / ".progress").exists()
        return Converted(samples, members, index, rejects, wanted.dst)

    return go
