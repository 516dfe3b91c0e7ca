"""The pictures that a reply should hold, each beside the one that was drawn in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2chat.schema import Prediction
from m2chat.world import Attributes, Target


def known_of(meta: Mapping[str, Any], count: int) -> list[tuple[Attributes | None, tuple[str, ...]]]:
    """What is known of the reference pictures of a reply, where the data come from a generated world.

    Args:
        meta: A prediction's `meta`: ``scenes`` (attributes of each picture of the conversation) and ``omitted`` (by
            turn, names of the attributes that only the context picture shows) are the sample's, ``targets`` and
            ``turn`` say which are meant. Files of versions before 0.9 hold ``scene`` and ``omitted`` of the reply.
        count: Number of reference pictures.

    Returns:
        For each picture its attributes, None if they are not known, and the names of the omitted ones.
    """
    if "scene" in meta:
        scene, omitted = meta["scene"], meta.get("omitted")
        return [(_at(scene, index), tuple(_at(omitted, index) or ())) for index in range(count)]
    if not meta.get("scenes"):
        return [(None, ())] * count
    names = tuple(meta.get("omitted", {}).get(str(meta["turn"]), ()))
    return [(meta["scenes"][target], names) for target in meta["targets"]]


def _at(value: Any, index: int) -> Any:
    """An entry that is given once for a single picture, or as a list of one for each picture."""
    several = isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)
    return value[index] if several else value


def targets_of(prediction: Prediction) -> list[Target]:
    """The pictures that the reference reply holds; the k-th is compared with the k-th that was generated."""
    drawn = prediction.generated.pictures
    reply = prediction.reference
    wanted = [
        (segment.caption, image)
        for segment, image in zip(reply.segments, reply.images, strict=True)
        if segment.caption is not None
    ]
    known = known_of(prediction.meta, len(wanted))
    return [
        Target(caption, truth, drawn[index] if index < len(drawn) else None, attributes, omitted)
        for index, ((caption, truth), (attributes, omitted)) in enumerate(zip(wanted, known, strict=True))
    ]
