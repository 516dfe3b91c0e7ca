"""Replies on disk while an evaluation runs, so that an interrupted one can be resumed.

Each rank writes a file: a first line with the hash of the settings that generate the replies, then a line per reply. A
later run takes the replies from there, with any number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from m2chat.errors import UserError
from m2chat.evaluation.results import PREDICTIONS, RESULTS, line_of, read_reply
from m2chat.schema import Reply
from m2chat.textfiles import lines_of

Known: TypeAlias = Mapping[str, tuple[Reply, Mapping[str, Any]]]
"""Prediction id to the generated reply and the prediction's ``meta``."""

_PART = "predictions.{rank}.part.jsonl"
_HEAD = "generation"


class Journal:
    """The file of one rank; an older one is overwritten.

    Args:
        folder: Folder of the evaluation; made if it does not exist.
        rank: Rank of this process.
        generation: Hash of the settings on which replies depend.
        keep: Whether the rows of an older file stay, which has the same settings.
    """

    def __init__(self, folder: Path, rank: int, generation: str, keep: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _PART.format(rank=rank)
        if not (keep and self.path.is_file() and self.path.stat().st_size):
            self.path.write_text(line_of({_HEAD: generation}), encoding="utf-8")
        elif not self.path.read_bytes().endswith(b"\n"):  # the process was killed while it wrote the line
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row of ``predictions.jsonl``, whose pictures are on disk already."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line_of(row))

    def close(self) -> None:
        """Removes the file, once ``predictions.jsonl`` holds its rows."""
        self.path.unlink(missing_ok=True)


def known_replies(
    folder: Path, generation: str, as_before: str | None = None
) -> dict[str, tuple[Reply, Mapping[str, Any]]]:
    """The replies that an earlier evaluation has generated, finished or not.

    Left out, and so generated again, are a line that was cut off and a reply whose picture cannot be read.

    Args:
        folder: Folder of the earlier evaluation.
        generation: Hash of the settings of this one.
        as_before: The same as earlier versions computed it.

    Raises:
        UserError: If the folder holds no evaluation, or one with other settings.
    """
    if not any(_files(folder)):
        raise UserError(f"evaluation.resume={str(folder)!r} holds no predictions: name a folder of `lightning test`")
    replies: dict[str, tuple[Reply, Mapping[str, Any]]] = {}
    remedy = "evaluate the same checkpoint with the same settings, or leave resume out"
    for row in journal_rows(folder, (generation, as_before), f"evaluation.resume={str(folder)!r}", remedy):
        with suppress(OSError, ValueError):  # the process was killed while it wrote the picture
            replies[row["id"]] = read_reply(folder, row["generated"]), row["meta"]
    return replies


def journal_rows(
    folder: Path, generations: Sequence[str | None], what: str, remedy: str
) -> Iterator[Mapping[str, Any]]:
    """The rows that an earlier run has written, finished or not; a line that was cut off is left out.

    Args:
        folder: Folder of the earlier run.
        generations: Hashes of the settings that are those of this one, the newest form first.
        what: What names the folder, for messages.
        remedy: What to do about other settings, for messages.

    Raises:
        UserError: If the rows were written with other settings.
    """
    for path, recorded in _files(folder):
        if recorded not in generations:
            raise UserError(
                f"{what} was generated with other settings or weights (hash {recorded}, and {generations[0]} here): "
                f"{remedy}"
            )
        for line in lines_of(path):
            with suppress(ValueError):  # the process was killed while it wrote the line
                row = json.loads(line)
                if "id" in row:
                    yield row


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files with predictions, each with the recorded hash of its settings."""
    for path in sorted(folder.glob(_PART.format(rank="*"))):
        head = path.read_text(encoding="utf-8").partition("\n")[0]
        yield path, str(json.loads(head).get(_HEAD)) if head else "none"
    results = folder / RESULTS
    if (folder / PREDICTIONS).is_file() and results.is_file():
        yield folder / PREDICTIONS, str(json.loads(results.read_text(encoding="utf-8"))["protocol"].get(_HEAD))
