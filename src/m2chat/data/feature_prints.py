"""Fingerprints of what the kept features of a run depend on, beside its networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from m2chat.data.collate import Collator
from m2chat.data.dataset import Source
from m2chat.data.feature_cache import READING
from m2chat.data.index import Shard
from m2chat.data.sources import BadSample
from m2chat.errors import UserError
from m2chat.schema import Segment
from m2chat.text import Layout
from m2chat.text.view import Request

_LOOKS = 16
"""Samples whose bytes are part of a source's fingerprint."""


def settings_of(collator: Collator, stage: str, layers: Sequence[int]) -> dict[str, Any]:
    """Settings on which the outputs depend, beside networks and data.

    Args:
        collator: Collator of the run.
        stage: Stage that trains.
        layers: Layers of the language model that the M³Adapter reads.
    """
    layout = collator.layout
    settings = {
        "data.image_size": collator.image_size,
        "tokens of captions": _digest(repr([ids.tolist() for ids in collator.captions(["a red circle"])])),
    }
    if stage != READING:
        return {**settings, "input of the vision encoder": repr(collator.vision)}
    return {
        **settings,
        "data.max_tokens": layout.max_tokens,
        "num_image_tokens": layout.num_image_tokens,
        "m3adapter.layers": list(layers),
        "prompts": _prompts(layout),
    }


def _prompts(layout: Layout) -> str:
    """A fingerprint of format, template and tokenizer: a sequence with every part that one can have."""
    reply = [Segment("Here it is.", "a red circle, 3 blue squares"), Segment("Done.")]
    whole = replace(layout, max_tokens=10_000)
    encoded = whole.encode(Request("Draw a red circle!", ("User: hello", "Assistant: hello")), reply)
    return _digest(repr((encoded.input_ids, encoded.caption, encoded.image)))


def data_print(source: Source) -> str:
    """A fingerprint of a source's samples: their names, places and sizes, and the bytes of some of them.

    Raises:
        UserError: If one of those cannot be read.
    """
    digest = hashlib.sha256()
    for shard, kept in zip(source.shards, source.kept, strict=True):
        digest.update(shard.entries.lines)
        digest.update(np.ascontiguousarray(kept).tobytes())
    places = [(shard, int(place)) for shard, kept in enumerate(source.kept) for place in _spread(kept, _LOOKS)]
    for shard, place in _spread(places, _LOOKS):
        try:
            for suffix, data in source.shards[shard].members(place).items():
                digest.update(suffix.encode())
                digest.update(data)
        except (BadSample, OSError) as error:
            raise unreadable(source, source.shards[shard], place, error) from error
    return digest.hexdigest()[:16]


def _spread(values: Any, count: int) -> list[Any]:
    """Some of the values, spread evenly."""
    return [values[k * len(values) // count] for k in range(count)] if len(values) > count else list(values)


def unreadable(source: Source, shard: Shard, place: int, error: Exception) -> UserError:
    """The error of a sample that was good when it was indexed."""
    return UserError(
        f"source {source.name!r}: sample {shard.entries[place].key!r} of {shard.path} was good when it was indexed and "
        f"cannot be read any more ({error}): repair the shard"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
