"""InterleavedBench: interleaved replies; the file of questions with the replies in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Question,
    QuestionSource,
    at_marks,
    fields_of,
    file_of,
    load_json,
    name_of,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.data.converters.raw import PictureFile
from m2chat.evaluation.parts import PicturePart, parts_of, reply_of
from m2chat.schema import Reply

_MARK = "<image>"
_FILE = "interleaved_bench.json"


class InterleavedBench(Benchmark):
    """``interleaved_bench.json``, and the same file with replies and ``<name>_images/<id>_<k>.png`` beside it.

    The form of the questions is that of the published file; no evaluator of it was seen, so its layout is all that is
    kept.
    """

    title = "InterleavedBench"
    metrics = ("CLIPScore", "FID", "InterRel", "TextOverlap", "Structure")
    hint = "its records are those of the benchmark with other replies"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The records; the marks of the request take the first pictures, the rest belongs to the reference."""
        path = file_of(source.path, _FILE)

        def question(number: int, record: Any) -> Question:
            where = f"{path}: record {number}"
            id_, names, turns = fields_of(record, ("id", "image", "conversations"), where)
            asked, expected = (fields_of(turn, ("value",), where)[0] for turn in turns[:2])
            pictures = [source.picture(path.parent, name) for name in names]
            first = str(asked).count(_MARK)
            ask = Ask(at_marks(str(asked), pictures[:first]), at_marks(str(expected), pictures[first:]))
            return Question(name_of(id_, where), (ask,), record)

        return unique((question(number, record) for number, record in enumerate(load_json(path))), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The records with the new replies, and the pictures of the replies."""
        records = []
        for question, (reply,) in answers:
            asked = question.record["conversations"][0]
            words, images = [], list(question.record["image"][: str(asked["value"]).count(_MARK)])
            for part in parts_of(reply):
                words.append(part if isinstance(part, str) else _MARK)
                if isinstance(part, PicturePart) and part.pixels is not None:
                    images.append(f"{name}_images/{question.id}_{len(images)}.png")
                    save_picture(folder / images[-1], part.pixels)
            answer = {"from": "gpt", "value": " ".join(words)}
            records.append({**question.record, "image": images, "conversations": [asked, answer]})
        save_json(folder / _FILE, records, indent=1)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """By id."""
        path = file_of(folder, _FILE)
        records = {str(record.get("id")): record for record in load_json(path)}
        for question in questions:
            record = records.get(question.id)
            if record is None:
                yield None
                continue
            asked, answer = (str(turn["value"]) for turn in record["conversations"][:2])
            drawn = [PictureFile(str(path.parent / item)) for item in record["image"][asked.count(_MARK) :]]
            parts = at_marks(answer, drawn)
            yield [reply_of(part if isinstance(part, str) else output_picture(Path(part.path)) for part in parts)]
