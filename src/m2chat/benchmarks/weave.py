"""WEAVE: conversations of several edits of pictures, with references to earlier ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Known,
    Part,
    Question,
    QuestionSource,
    file_of,
    output_picture,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_file, text_of_file
from m2chat.evaluation.parts import reply_of
from m2chat.files import write_whole

_NAMED = re.compile(r"Image #(\d+)")


class WEAVE(Benchmark):
    """``test.json``, and outputs in ``<name>/imgs/``: pictures named as the true ones, texts ``<first>_<turn>.txt``."""

    title = "WEAVE"
    metrics = ("CLIPScore", "FID", "TextOverlap")
    hint = "put the folder {name} into result/ of the benchmark"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The conversations; a picture is shown where it is first named, ``Image #3`` becomes ``picture 3``."""
        path = file_of(source.path, "test.json", "test/test.json")
        records = records_of_file(path, ("idx", "images", "chats"))
        return unique((self._question(source, path, record) for record in records), path)

    @staticmethod
    def _question(source: QuestionSource, path: Path, record: JSONRecord) -> Question:
        idx, images = record.id("idx"), record.texts("images")
        chats = [(chat.text("type"), chat.text("content")) for chat in record.records("chats", ("type", "content"))]
        if fault := _fault(chats, len(images)):
            return Question(idx, (), record.fields, "edit", fault)
        place: dict[int, int] = {}
        """Number of a picture in the session, by its number in the record."""
        asks: list[Ask] = []
        for (_, asked), (kind, answer) in zip(chats[::2], chats[1::2], strict=True):
            fresh = [k for k in dict.fromkeys(map(int, _NAMED.findall(asked))) if k not in place]
            for k in fresh:
                place[k] = len(place) + 1
            text = _NAMED.sub(lambda match: f"picture {place[int(match[1])]}", asked)
            shown: tuple[Part, ...] = tuple(source.picture(path.parent, images[k - 1]) for k in fresh)
            if kind == "image":
                drawn = int(_NAMED.findall(answer)[0])
                place[drawn] = len(place) + 1
                true = source.picture(path.parent, images[drawn - 1])
                asks.append(Ask((*shown, text), (true,), "force", 1, caption=asked))
            else:
                asks.append(Ask((*shown, text), (answer,), "never"))
        return Question(idx, tuple(asks), record.fields, "edit")

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Pictures and texts of the turns."""
        for question, replies in answers:
            for path, reply in zip(_files(question, folder / name / "imgs"), replies, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".txt":
                    write_whole(path, [" ".join(reply.texts)])
                for pixels in reply.pictures[:1]:
                    save_picture(path, pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """The folder ``imgs``, or one of those above it."""
        base = next((path for path in (folder / name / "imgs", folder / "imgs") if path.is_dir()), folder)
        for question in questions:
            files = _files(question, base)
            replies = [
                None if not path.is_file()
                else reply_of([text_of_file(path) if path.suffix == ".txt" else output_picture(path)])
                for path in files
            ]  # fmt: skip
            yield replies if any(replies) else None


def _fault(chats: Sequence[tuple[str, str]], count: int) -> str:
    """Reason why a conversation cannot be asked; empty if it can.

    Args:
        chats: Type and content of each message.
        count: Number of pictures of the record.
    """
    if not chats or len(chats) % 2 or not count:
        return f"{len(chats)} messages, which are not asked and answered in turn" if count else "it has no pictures"
    for _, content in chats:
        if wrong := [int(k) for k in _NAMED.findall(content) if not 1 <= int(k) <= count]:
            return f"Image #{wrong[0]} is none of its {count} pictures"
    for kind, content in chats[1::2]:
        if kind not in ("image", "text") or (kind == "image" and not _NAMED.search(content)):
            return f"an answer of type {kind!r}" + (" that names no picture" if kind == "image" else "")
    return ""


def _files(question: Question, folder: Path) -> list[Path]:
    """The file of each turn's answer."""
    images = [PurePosixPath(str(name)) for name in question.record["images"]]
    files = []
    for turn, answer in enumerate(question.record["chats"][1::2]):
        if answer["type"] == "image":
            files.append(folder / images[int(_NAMED.findall(str(answer["content"]))[0]) - 1].name)
        else:
            files.append(folder / f"{images[0].stem}_{turn}.txt")
    return files
