"""Replies as they come, on disk: an evaluation that was interrupted goes on where it stopped.

Each rank appends a line a reply to a file of its own, behind a line that says by which settings the replies were
generated. A later run takes the replies from there, with any number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from m2chat.errors import UserError
from m2chat.evaluation.results import PREDICTIONS, RESULTS, line_of
from m2chat.schema import Reply, Segment

Known: TypeAlias = Mapping[str, tuple[Reply, Mapping[str, Any]]]
"""Prediction id to the generated reply, and what was noted of it."""

_PART = "predictions.{rank}.part.jsonl"
_HEAD = "generation"


class Journal:
    """The lines of one rank.

    Args:
        folder: Of the evaluation.
        rank: Of this process.
        generation: Hash of the settings on which replies depend.
    """

    def __init__(self, folder: Path, rank: int, generation: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _PART.format(rank=rank)
        self.path.write_text(line_of({_HEAD: generation}), encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line whose pictures are on disk already."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line_of(row))

    def close(self) -> None:
        """Removes the file, once ``predictions.jsonl`` holds its lines."""
        self.path.unlink(missing_ok=True)


def known_replies(folder: Path, generation: str) -> dict[str, tuple[Reply, Mapping[str, Any]]]:
    """The replies that an earlier evaluation has generated, finished or not.

    A line that was cut off and a reply whose picture cannot be read are left out, and so generated again.

    Args:
        folder: Of the earlier evaluation.
        generation: Hash of the settings of this one.

    Raises:
        UserError: If the folder holds no evaluation, or one with other settings.
    """
    found: dict[str, tuple[Reply, Mapping[str, Any]]] = {}
    files = list(_files(folder))
    if not files:
        raise UserError(f"evaluation.resume={str(folder)!r} holds no predictions: name a folder of `lightning test`")
    for path, theirs in files:
        if theirs != generation:
            raise UserError(
                f"evaluation.resume={str(folder)!r} was generated with other settings or weights (hash {theirs}, and "
                f"{generation} here): evaluate the same checkpoint with the same settings, or leave resume out"
            )
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the process was killed in the middle of the line
                continue
            if "id" in row and (reply := _reply(folder, row["generated"])) is not None:
                found[row["id"]] = reply, row["meta"]
    return found


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files with predictions, each with the hash of its settings."""
    for path in sorted(folder.glob(_PART.format(rank="*"))):
        head = path.read_text(encoding="utf-8").partition("\n")[0]
        yield path, str(json.loads(head).get(_HEAD)) if head else "none"
    results = folder / RESULTS
    if (folder / PREDICTIONS).is_file() and results.is_file():
        yield folder / PREDICTIONS, str(json.loads(results.read_text(encoding="utf-8"))["protocol"].get(_HEAD))


def _reply(folder: Path, segments: list[dict[str, str | None]]) -> Reply | None:
    from PIL import Image

    images = []
    for segment in segments:
        name = segment["image"]
        try:
            images.append(None if name is None else np.asarray(Image.open(folder / name).convert("RGB")))
        except OSError:
            return None
    return Reply(tuple(Segment(s["answer"] or "", s["caption"]) for s in segments), tuple(images))
