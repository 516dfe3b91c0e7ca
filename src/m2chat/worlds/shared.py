"""What the worlds have in common: shards that are written once, a builder of conversations, verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from m2chat.files import locked, whole_folder
from m2chat.schema import Image, Kind, Picture, Sample, Turn
from m2chat.world import MARK, Attributes, Judged, Target


def generate_once(root: Path, version: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Generates a folder, unless this version of it is there already.

    Of several processes that want it at once, one generates and the others wait for it.

    Args:
        root: Folder to write; it appears only when it is complete, so an interrupted run leaves nothing half made.
        version: What decides the contents; recorded in the folder's `MARK`.
        write: Writes the contents into the folder that it is given.
    """
    mark, wanted = root / MARK, json.dumps(version) + "\n"

    def is_there() -> bool:
        return mark.is_file() and mark.read_text() == wanted

    if is_there():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if not is_there():
            print(f"Writing generated data sets to {root} ...", flush=True)
            with whole_folder(root, replace=True) as part:
                write(part)
                (part / MARK).write_text(wanted)


class HasAttributes(Protocol):
    """A scene: what a picture shows."""

    @property
    def attributes(self) -> dict[str, str]:
        """Everything that a judge reads."""


S = TypeVar("S", bound=HasAttributes)


class BaseConversationBuilder(Generic[S]):
    """Collects turns, pictures and scenes of a conversation.

    Args:
        draw: The picture of a scene.
        named_in: Attributes that a text names.
        hidden: Attributes that a caption may leave to the context picture.
    """

    def __init__(
        self, draw: Callable[[S], Picture], named_in: Callable[[str], Attributes], hidden: Sequence[str]
    ) -> None:
        self.draw, self.named_in, self.hidden = draw, named_in, hidden
        self.turns: list[Turn] = []
        self.images: list[Image] = []
        self.scenes: list[S] = []
        self.omitted: dict[str, list[str]] = {}

    def picture(self, scene: S, caption: str) -> int:
        """Draws a scene and returns its index."""
        pixels = self.draw(scene)
        self.images.append(Image(pixels, caption, (pixels.shape[0], pixels.shape[1])))
        self.scenes.append(scene)
        return len(self.images) - 1

    def unnamed(self) -> list[str]:
        """What the newest picture's caption leaves out; the next one's does too, unless it changes just that."""
        named = self.named_in(self.images[-1].caption)
        return [name for name in self.hidden if name not in named]

    def user(self, *parts: str | int) -> None:
        """The user's turn."""
        self.turns.append(Turn("user", parts))

    def assistant(self, *parts: str | int, looks_back: bool = True) -> None:
        """A reply; records the attributes of its picture that only the context picture shows.

        Args:
            parts: Texts and pictures.
            looks_back: Whether the picture continues an earlier one.
        """
        turn = Turn("assistant", tuple(part for part in parts if part != ""))
        for target in turn.pictures:
            attributes = self.scenes[target].attributes
            texts = [image.caption for image in self.images] + [item.text for item in self.turns]
            named = {name for text in texts for name in self.named_in(text)}
            if target and looks_back:
                before = self.scenes[target - 1].attributes
                there = [name for name in self.hidden if attributes.get(name) and name not in named]
                if hidden := [name for name in there if before.get(name) == attributes[name]]:
                    self.omitted[str(len(self.turns))] = hidden
        self.turns.append(turn)

    def sample(self, kind: Kind, source: str, number: int, **more: Any) -> Sample:
        """The finished conversation.

        Args:
            kind: Task that it is an example of.
            source: Name of the data set.
            number: Number in the data set.
            more: Further fields of the sample.
        """
        meta = {"scenes": [scene.attributes for scene in self.scenes], "omitted": self.omitted}
        turns, images = tuple(self.turns), tuple(self.images)
        return Sample(f"{source}/{number:06d}", turns, images, kind=kind, source=source, meta=meta, **more)


class _Verdict(Protocol):
    """What a judge sees in a picture."""

    @property
    def key(self) -> str:
        """Key of the scene that the picture was taken for."""

    def right(self, wanted: Attributes) -> dict[str, bool]:
        """Whether each wanted attribute is there."""

    def all_right(self, wanted: Attributes) -> bool:
        """Whether every wanted attribute is there, and nothing that is not wanted."""


def judge_targets(
    targets: Sequence[Target],
    read: Callable[[str], Attributes],
    judge: Callable[[Sequence[Picture | None]], Sequence[_Verdict | None]],
    size: int,
) -> Judged:
    """Judges the generated and the true pictures of a reply; those that were not drawn are left out.

    So are targets from outside the world, whose captions name nothing and whose attributes are not known.

    Args:
        targets: Reference pictures and the generated ones in their place.
        read: Attributes that a caption names.
        judge: A verdict a picture; None where it is missing.
        size: Side of the world's pictures; true pictures of another size are not judged.
    """
    judged = Judged()
    named = [(target, read(target.caption)) for target in targets]
    named = [(target, wanted) for target, wanted in named if wanted or target.attributes is not None]
    truths = [t.truth if t.truth is not None and t.truth.shape == (size, size, 3) else None for t, _ in named]
    verdicts = judge([*(target.generated for target, _ in named), *truths])
    for (target, wanted), verdict in zip(named, verdicts, strict=False):
        if verdict is None:
            continue
        judged.seen.append(verdict.key)
        judged.all_right.append(verdict.all_right(wanted))
        for name, is_right in verdict.right(wanted).items():
            judged.attributes.setdefault(name, []).append(is_right)
        if target.attributes is not None:
            judged.scene_right.append(verdict.all_right(target.attributes))
            judged.omitted_right += verdict.right({name: target.attributes[name] for name in target.omitted}).values()
    for (_, wanted), verdict in zip(named, verdicts[len(named) :], strict=True):
        if verdict is not None:
            judged.oracle.append(verdict.all_right(wanted))
    return judged
