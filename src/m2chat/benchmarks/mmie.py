"""MMIE: interleaved replies to questions with pictures; one list of records and a folder of numbered pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

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
    pixels_at,
    save_json,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_file
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, reply_of

_TYPES = ("SA", "PBL", "MSR")
"""What an id contains: it chooses the judge's prompt."""
_SEEN = 3
"""Pictures, of question and answer together, at which the evaluator stops reading an answer."""


class MMIE(Benchmark):
    """``data.json`` of questions, and the same with answers beside ``images/<n>.png``."""

    title = "MMIE"
    metrics = ("CLIPScore", "TextOverlap")
    hint = "give the folder to the benchmark's evaluator as its input folder"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The records; answers in them are passed over. Replies have as many pictures as the evaluator looks at."""
        path = file_of(source.path, "data.json", "eval_inputs/data.json")

        def parts(items: Sequence[JSONRecord]) -> tuple[Part, ...]:
            answer: list[Part] = []
            for item in items:
                answer += [text] if (text := item.words("text")) else []
                answer += [source.picture(path.parent, image)] if (image := item.words("image")) else []
            return tuple(answer)

        def question(record: JSONRecord) -> Question:
            id_ = record.id("id")
            if not any(kind in id_ for kind in _TYPES):
                raise UserError(f"SRC: {path}: the id {id_!r} contains none of {', '.join(_TYPES)}, as the judge needs")
            items = _items(record, "question")
            message = parts(items)
            room = _SEEN - sum(not isinstance(part, str) for part in message)
            expected = parts(_items(record, "gt_answer", optional=True))
            ask = Ask(message, expected, "auto" if room > 0 else "never", max(1, room))
            return Question(id_, (ask,), {**record.fields, "question": [item.fields for item in items]})

        return unique((question(record) for record in records_of_file(path, ("id", "question", "gt_answer"))), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The records with answers; pictures of questions and answers are numbered together."""
        numbers, records = count(), []
        for question, (reply,) in answers:
            pictures = iter(question.asks[0].pictures)
            asked = []
            for item in question.record["question"]:
                pixels = pixels_at(next(pictures)) if item.get("image") else None
                asked.append({"text": item.get("text"), "image": self._saved(folder, numbers, pixels)})
            answer = [
                {"text": segment.answer.strip() or None, "image": self._saved(folder, numbers, pixels)}
                for segment, pixels in zip(reply.segments, reply.images, strict=True)
            ]
            records.append({**question.record, "question": asked, "answer": answer, "model": name})
        save_json(folder / "data.json", records, indent=4)

    @staticmethod
    def _saved(folder: Path, numbers: Iterator[int], pixels: Any) -> str | None:
        if pixels is None:
            return None
        image = f"images/{next(numbers)}.png"
        save_picture(folder / image, pixels)
        return image

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """By id; an answer may be a text alone."""
        path = file_of(folder, "data.json")
        records = {record.id("id"): record for record in records_of_file(path, ("id",), "--outputs")}
        for question in questions:
            record = records.get(question.id)
            if record is None or "answer" not in record.fields:
                yield None
                continue
            parts: list[str | PicturePart] = []
            for item in _items(record, "answer", optional=True):
                parts.append(item.words("text"))
                parts += [output_picture(path.parent / image)] if (image := item.words("image")) else []
            yield [reply_of(parts)]


def _items(record: JSONRecord, name: str, optional: bool = False) -> list[JSONRecord]:
    """Texts and pictures of a side of a record, which may be a text alone."""
    if isinstance(record.fields.get(name), str):
        return [JSONRecord({"text": record.fields[name]}, record.where)]
    return record.records(name, optional=optional)
