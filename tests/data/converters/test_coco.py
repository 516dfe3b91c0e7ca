from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from m2chat.data.converters.engine import convert
from m2chat.errors import UserError


def annotate(raw: Any, count: int = 12) -> None:
    """Pictures 100, 101, ... with five captions each; the first has none, one of the second's is empty."""
    numbers = [100 + i for i in range(count)]
    annotations = [
        {"image_id": number, "id": 10 * number + k, "caption": f"caption {k} of {number} .\n"}
        for number in reversed(numbers[1:])
        for k in range(5)
    ]
    annotations[-1]["caption"] = "\n"
    images = [
        {"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg", "license": 3, "height": 40, "width": 48} for n in numbers
    ]
    terms = [{"id": 3, "name": "Attribution", "url": "http://example.invalid/by/2.0/"}]
    file = {"info": {}, "images": images, "licenses": terms, "annotations": annotations}
    raw.put("annotations/captions_val2014.json", file)
    for number in numbers:
        raw.put_photo(f"val2014/COCO_val2014_{number:012d}.jpg", number)


def test_a_sample_a_picture_with_all_captions(raw: Any, run: Callable[..., Any]) -> None:
    annotate(raw)
    done = run("coco-captions", per_shard=5)
    assert [s.id for s in done.samples] == [f"coco/{n}" for n in range(101, 112)] and done.rejects == {
        "100": "no caption"
    }
    listed = [json.loads(line) for line in (done.folder / "captions.jsonl").read_text().splitlines()]
    for sample, row in zip(done.samples, listed, strict=True):
        assert (row["image_id"], row["ann_id"]) == (sample.meta["image_id"], sample.meta["ann_id"])
        assert sample.images[0].caption == row["caption"] == sample.meta["captions"][0]
        assert row["ann_id"] // 10 == row["image_id"] and row["caption"].endswith(" .")
        assert row["caption"] == f"caption {row['ann_id'] % 10} of {row['image_id']} ."
        assert sample.license == "http://example.invalid/by/2.0/"
    assert [len(s.meta["captions"]) for s in done.samples] == [4] + [5] * 10


def test_the_seed_chooses(raw: Any, run: Callable[..., Any]) -> None:
    annotate(raw, 30)
    (raw.path / "val2014" / "COCO_val2014_000000000105.jpg").unlink()

    def chosen(folder: str, seed: int) -> list[str]:
        done = run("coco-captions", sample=20, seed=seed, dst=raw.path / folder)
        rows = (done.folder / "captions.jsonl").read_text().splitlines()
        assert (
            len(rows) == 20 and len(done.samples) + len(done.rejects) == 20
        )  # the list does not depend on the pictures
        return rows

    assert chosen("a", 0) == chosen("b", 0) != chosen("c", 1)


def test_too_few(raw: Any, job: Callable[..., Any]) -> None:
    annotate(raw)
    with pytest.raises(UserError, match=r"--sample 30000: .* has 11 pictures"):
        convert(job("coco-captions", sample=30000))
    with pytest.raises(UserError, match="--split names the split"):
        convert(job("coco-captions", split="train2014", images=raw.path))
