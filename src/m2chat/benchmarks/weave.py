"""WEAVE: conversations of several edits of pictures, with references to earlier ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Part,
    Question,
    QuestionSource,
    fields_of,
    file_of,
    load_json,
    output_picture,
    save_picture,
    unique,
)
from m2chat.evaluation.parts import reply_of
from m2chat.files import write_whole
from m2chat.schema import Reply

_NAMED = re.compile(r"Image #(\d+)")


class WEAVE(Benchmark):
    """``test.json``, and outputs in ``<name>/imgs/``: pictures named as the true ones, texts ``<first>_<turn>.txt``."""

    title = "WEAVE"
    metrics = ("CLIPScore", "FID", "TextOverlap")
    hint = "put the folder {name} into result/ of the benchmark"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The conversations; a picture is shown where it is first named, ``Image #3`` becomes ``picture 3``."""
        path = file_of(source.path, "test.json", "test/test.json")
        return unique((self._question(source, path, item) for item in enumerate(load_json(path))), path)

    @staticmethod
    def _question(source: QuestionSource, path: Path, item: tuple[int, Any]) -> Question:
        number, record = item
        idx, images, chats = fields_of(record, ("idx", "images", "chats"), f"{path}: record {number}")
        place: dict[int, int] = {}
        """Number of a picture in the session, by its number in the record."""
        asks: list[Ask] = []
        for asked, answer in zip(chats[::2], chats[1::2], strict=False):
            named = [int(name) for name in _NAMED.findall(str(asked["content"]))]
            fresh = [k for k in dict.fromkeys(named) if k not in place and 1 <= k <= len(images)]
            for k in fresh:
                place[k] = len(place) + 1
            text = _NAMED.sub(lambda match: f"picture {place.get(int(match[1]), match[1])}", str(asked["content"]))
            shown: tuple[Part, ...] = tuple(source.picture(path.parent, images[k - 1]) for k in fresh)
            if answer["type"] == "image":
                drawn = int(_NAMED.findall(str(answer["content"]))[0])
                place[drawn] = len(place) + 1
                true = source.picture(path.parent, images[drawn - 1])
                asks.append(Ask((*shown, text), (true,), "force", 1, caption=str(asked["content"])))
            else:
                asks.append(Ask((*shown, text), (str(answer["content"]),), "never"))
        return Question(str(idx), tuple(asks), record, "edit")

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Pictures and texts of the turns."""
        for question, replies in answers:
            for path, reply in zip(_files(question, folder / name / "imgs"), replies, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".txt":
                    write_whole(path, [" ".join(reply.texts)])
                for pixels in reply.pictures[:1]:
                    save_picture(path, pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """The folder ``imgs``, or one of those above it."""
        base = next((path for path in (folder / name / "imgs", folder / "imgs") if path.is_dir()), folder)
        for question in questions:
            files = _files(question, base)
            replies = [
                reply_of([path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""])
                if path.suffix == ".txt" else reply_of([output_picture(path)])
                for path in files
            ]  # fmt: skip
            yield replies if any(path.is_file() for path in files) else None


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
