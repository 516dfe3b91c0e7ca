"""What the worlds have in common: shards that are written once, and the judging of a reply by verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from m2chat.files import locked, whole_folder
from m2chat.schema import Picture
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
            with whole_folder(root, replace=True) as part:
                write(part)
                (part / MARK).write_text(wanted)


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
