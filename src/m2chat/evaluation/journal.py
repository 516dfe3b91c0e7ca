"""Replies on disk while an evaluation runs, so that an interrupted one can be resumed.

Each rank writes a file: a first line with the hash of the settings that generate the replies, then a line per reply. A
later run takes the replies from there, with any number of ranks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from m2chat.errors import UserError
from m2chat.evaluation.predictions import PREDICTIONS, line_of, read_reply
from m2chat.evaluation.results import RESULTS
from m2chat.files import cannot_write, write_whole
from m2chat.schema import Reply
from m2chat.textfiles import lines_of

Known: TypeAlias = Mapping[str, tuple[Reply, Mapping[str, Any]]]
"""Prediction id to the generated reply and the prediction's ``meta``."""

_PART = "predictions.{rank}.part.jsonl"
_HEAD = "generation"
_LONGEST_HEAD = 4096  # bytes
_LOG = logging.getLogger(__name__)


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
        if not (keep and self.path.is_file() and _head_of(self.path) is not None):
            write_whole(self.path, [line_of({_HEAD: generation})])
        elif not self.path.read_bytes().endswith(b"\n"):  # the process was killed while it wrote the line
            self._append("\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row of ``predictions.jsonl``, whose pictures are on disk already."""
        self._append(line_of(row))

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        try:
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise cannot_write(self.path, error, len(data)) from error

    def close(self) -> None:
        """Removes the file, once ``predictions.jsonl`` holds its rows."""
        self.path.unlink(missing_ok=True)


def known_replies(
    folder: Path, generation: str, as_before: str | None = None
) -> dict[str, tuple[Reply, Mapping[str, Any]]]:
    """The replies that an earlier evaluation has generated, finished or not.

    Left out, and so generated again, are lines that were cut off or damaged, and replies whose picture cannot be read;
    the log states how many they are.

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
    lost = 0
    remedy = "evaluate the same checkpoint with the same settings, or leave resume out"
    for row in journal_rows(folder, (generation, as_before), f"evaluation.resume={str(folder)!r}", remedy):
        try:
            replies[row["id"]] = read_reply(folder, row["generated"]), dict(row["meta"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            lost += 1  # the process was killed while it wrote the picture
    if lost:
        _LOG.warning("%s: %d replies cannot be read, or their pictures: they are made again", folder, lost)
    return replies


def journal_rows(
    folder: Path, generations: Sequence[str | None], what: str, remedy: str
) -> Iterator[Mapping[str, Any]]:
    """The rows that an earlier run has written, finished or not.

    Lines that were cut off or damaged are left out, and so is a file whose first line is: the log states them.

    Args:
        folder: Folder of the earlier run.
        generations: Hashes of the settings that are those of this one, the newest form first.
        what: What names the folder, for messages.
        remedy: What to do about other settings, for messages.

    Raises:
        UserError: If the rows were written with other settings.
    """
    for path, recorded in _files(folder):
        if recorded is None:
            _LOG.warning("%s is damaged at its beginning, so that nobody knows its settings: it is left out", path)
            continue
        if recorded not in generations:
            raise UserError(
                f"{what} was generated with other settings or weights (hash {recorded}, and {generations[0]} here): "
                f"{remedy}"
            )
        cut = 0
        for line in lines_of(path):
            row = _row_of(line)
            if row is None:
                cut += not line.isspace()
            elif isinstance(row.get("id"), str):
                yield row
            else:
                cut += _HEAD not in row
        if cut:
            _LOG.warning("%s: %d lines are cut or damaged: what they held is made again", path, cut)


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None if it was cut off, or is something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _head_of(path: Path) -> str | None:
    """The hash on the first line of a journal; None if that is damaged."""
    with path.open("rb") as file:
        head = _row_of(file.readline(_LONGEST_HEAD))
    return head[_HEAD] if head is not None and isinstance(head.get(_HEAD), str) else None


def _files(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Files with predictions, each with the recorded hash of its settings; None if that cannot be read."""
    for path in sorted(folder.glob(_PART.format(rank="*"))):
        yield path, _head_of(path)
    results = folder / RESULTS
    if (folder / PREDICTIONS).is_file() and results.is_file():
        content = _row_of(results.read_bytes()) or {}
        protocol = content.get("protocol")
        yield folder / PREDICTIONS, str(protocol.get(_HEAD)) if isinstance(protocol, dict) else None
