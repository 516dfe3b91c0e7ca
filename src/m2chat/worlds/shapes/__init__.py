"""The shapes world: coloured shapes on a plain ground, with captions and conversations about them.

The micro scale lives in it: `shards` generates its data, `recipe` pretrains its frozen networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.schema import Picture
from m2chat.world import Attributes, Example, Judged, Target, World
from m2chat.worlds.shapes.captions import parse_caption
from m2chat.worlds.shapes.judge import MAX_ERROR, seen_in, verdicts
from m2chat.worlds.shapes.phrases import examples
from m2chat.worlds.shapes.scenes import ATTRIBUTES, IMAGE_SIZE
from m2chat.worlds.shared import judge_targets


class Shapes:
    """The shapes world as a `m2chat.world.World`; what needs more than NumPy is imported when it is called."""

    name = "shapes"
    image_size = IMAGE_SIZE
    attributes: tuple[str, ...] = ATTRIBUTES
    licence = "Apache-2.0"
    knows = "It knows shapes: colour, size, place, background."
    shards = Path("data/micro/shards")
    max_error = MAX_ERROR

    def write_shards(self, root: Path) -> None:
        """Generates every data set below a folder, unless this version of them is there already."""
        from m2chat.worlds.shapes.shards import write_world

        write_world(root)

    def named_in(self, caption: str) -> Attributes:
        """Attributes that a caption names."""
        return parse_caption(caption)

    def seen_in(self, pictures: Sequence[Picture | None]) -> list[Attributes]:
        """Attributes that the judge reads; empty where a picture is missing or resembles no scene."""
        return list(seen_in(pictures))

    def summary(self, seen: Attributes) -> str:
        """Object, second object or position, and background."""
        if not seen:
            return "–"
        first = " ".join(seen.get(name, "") for name in ("size", "colour", "shape")).strip()
        other = " ".join(seen.get(name, "") for name in ("colour_2", "shape_2")).strip()
        return f"{first}\n{other or seen.get('position', '')}\non {seen.get('background', '?')}"

    def judge(self, targets: Sequence[Target]) -> Judged:
        """Verdicts on the generated and the reference pictures of a reply."""
        return judge_targets(targets, parse_caption, verdicts, IMAGE_SIZE)

    def examples(self) -> Mapping[str, Sequence[Example]]:
        """Requests that the micro model understands."""
        return examples()

    def measure(self, pipeline: Any, **settings: Any) -> list[dict[str, Any]]:
        """Rows of ``m2chat measure``; settings as for `m2chat.worlds.shapes.measure.measure`."""
        from m2chat.worlds.shapes.measure import measure

        return measure(pipeline, **settings)


WORLD: World = Shapes()
