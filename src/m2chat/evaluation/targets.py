"""The pictures that a reply should hold, each beside the one that was drawn in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m2chat.metrics.encoders import Picture
from m2chat.schema import Prediction


@dataclass(frozen=True)
class Target:
    """A picture of the true reply.

    Args:
        caption: What it should show.
        truth: It, if it is known.
        generated: The generated reply's picture in the same place; None if too few were drawn.
        scene: Attribute name to value of the whole picture, where the micro world knows them.
        omitted: Attributes that only the context picture shows.
    """

    caption: str
    truth: Picture | None
    generated: Picture | None
    scene: Mapping[str, str] | None
    omitted: tuple[str, ...]


def _at(value: Any, index: int) -> Any:
    """An entry of `Sample.meta`: given once for a single picture, or as a list of one for each picture."""
    several = isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)
    return value[index] if several else value


def targets_of(prediction: Prediction) -> list[Target]:
    """The pictures that the true reply holds; the k-th is compared with the k-th that was generated."""
    drawn = prediction.generated.pictures
    reply = prediction.reference
    wanted = [
        (segment.caption, image)
        for segment, image in zip(reply.segments, reply.images, strict=True)
        if segment.caption is not None
    ]
    scene, omitted = prediction.meta.get("scene"), prediction.meta.get("omitted")
    return [
        Target(
            caption,
            truth,
            drawn[index] if index < len(drawn) else None,
            _at(scene, index),
            tuple(_at(omitted, index) or ()),
        )
        for index, (caption, truth) in enumerate(wanted)
    ]
