"""The emoji world: pictures of three open sets with names and keywords that people wrote.

The pocket scale lives in it: `shards` makes its data from the shipped pictures, `recipe` pretrains its networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.schema import Picture
from m2chat.world import Attributes, Example, Judged, Target, World
from m2chat.worlds.emoji.scenes import MAX_ERROR, SIZE, STYLES


class Emoji:
    """The emoji world as a `m2chat.world.World`; what needs more than NumPy is imported when it is called."""

    name = "emoji"
    image_size = SIZE
    attributes: tuple[str, ...] = ("concept", "style", "tone", "hair", "gender")
    knows = (
        "It knows what emoji show (animals, food, faces, hearts, weather, people, things), as "
        f"{', '.join(list(STYLES.values())[:-1])} or {list(STYLES.values())[-1]} draw it, and some small talk."
    )
    licence = "Apache-2.0 (Noto), CC-BY-4.0 (Twemoji), MIT (Fluent): each sample's `license`"
    shards = Path("data/pocket/shards")
    max_error = MAX_ERROR

    def write_shards(self, root: Path) -> None:
        """Makes every data set below a folder from the shipped pictures, unless this version of them is there."""
        from m2chat.worlds.emoji.shards import write_world

        write_world(root)

    def named_in(self, caption: str) -> Attributes:
        """Attributes that a caption names."""
        from m2chat.worlds.emoji.judge import caption_reader

        return caption_reader().read(caption)

    def seen_in(self, pictures: Sequence[Picture | None]) -> list[Attributes]:
        """Attributes that the judge reads; empty where a picture is missing or resembles nothing."""
        from m2chat.worlds.emoji.judge import seen_in

        return list(seen_in(pictures))

    def summary(self, seen: Attributes) -> str:
        """Concept, attributes of a person, and style."""
        if not seen:
            return "–"
        details = " ".join(seen[name] for name in ("tone", "hair", "gender") if seen.get(name))
        return "\n".join((seen["concept"], details, seen["style"]))

    def judge(self, targets: Sequence[Target]) -> Judged:
        """Verdicts on the generated and the reference pictures of a reply."""
        from m2chat.worlds.emoji.judge import caption_reader, verdicts
        from m2chat.worlds.shared import judge_targets

        return judge_targets(targets, caption_reader().read, verdicts, SIZE)

    def examples(self) -> Mapping[str, Sequence[Example]]:
        """Requests that the pocket model understands."""
        from m2chat.worlds.emoji.pictures import picture_of

        dog = picture_of("dog face", "noto")
        return {
            "chat": ["draw a red apple", "I saw an octopus today", "something about the ocean",
                     *([] if dog is None else [("turn it into a cat's face", dog)])],
            "draw": ["a red apple", "a sleeping face", "an octopus in Noto style", "a rocket, Twemoji style"],
            "wish": ["something about the ocean", "it has to do with winter and water"],
            "edit": [] if dog is None else [("turn it into a cat's face\nturn it into a dog's face", dog)],
            "story": ["tell me how a chick is born", "tell me how a plant grows"],
        }  # fmt: skip

    def measure(self, pipeline: Any, **settings: Any) -> list[dict[str, Any]]:
        """Rows of ``m2chat measure``; settings as for `m2chat.worlds.emoji.measure.measure`."""
        from m2chat.worlds.emoji.measure import measure

        return measure(pipeline, **settings)


WORLD: World = Emoji()
