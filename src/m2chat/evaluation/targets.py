"""Reference pictures of a reply, each with the generated picture in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2chat.schema import Prediction
from m2chat.world import Attributes, Target


def known_of(meta: Mapping[str, Any], count: int) -> list[tuple[Attributes | None, tuple[str, ...]]]:
    """What is known of the reference pictures of a reply, where the data come from a generated world.

    Args:
        meta: A prediction's `meta`. ``scenes`` (attributes of each picture of the conversation) and ``omitted`` (by
            turn, names of the attributes that only the context picture shows) come from the sample; ``targets`` and
            ``turn`` select this reply's. Earlier versions wrote ``scene`` and ``omitted`` of the reply alone.
        count: Number of reference pictures.

    Returns:
        For each picture its attributes, None if they are not known, and the names of the omitted ones.
    """
    if not count:  # earlier versions recorded nothing more of a reply without pictures
        return []
    if "scene" in meta:
        scene, omitted = meta["scene"], meta.get("omitted")
        return [(_at(scene, index), tuple(_at(omitted, index) or ())) for index in range(count)]
    if not meta.get("scenes"):
        return [(None, ())] * count
    names = tuple(meta.get("omitted", {}).get(str(meta["turn"]), ()))
    return [(meta["scenes"][target], names) for target in meta["targets"]]


def _at(value: Any, index: int) -> Any:
    """The entry of one picture: `value` is a list of entries, or the entry of the only picture."""
    is_list = isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)
    return value[index] if is_list else value


def targets_of(prediction: Prediction) -> list[Target]:
    """The pictures of the reference reply; the k-th is compared with the k-th generated one."""
    generated = prediction.generated.pictures
    reply = prediction.reference
    references = [
        (segment.caption, image)
        for segment, image in zip(reply.segments, reply.images, strict=True)
        if segment.caption is not None
    ]
    known = known_of(prediction.meta, len(references))
    return [
        Target(caption, picture, generated[index] if index < len(generated) else None, *known[index])
        for index, (caption, picture) in enumerate(references)
    ]
