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
    Part,
    Question,
    QuestionSource,
    fields_of,
    file_of,
    load_json,
    output_picture,
    pixels_at,
    save_json,
    save_picture,
    unique,
)
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, reply_of, text_at
from m2chat.schema import Reply

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

        def parts(items: Any) -> tuple[Part, ...]:
            answer: list[Part] = []
            for item in items if isinstance(items, list) else [{"text": items}]:
                answer += [str(item["text"])] if item.get("text") else []
                answer += [source.picture(path.parent, item["image"])] if item.get("image") else []
            return tuple(answer)

        def question(number: int, record: Any) -> Question:
            id_, asked, expected = fields_of(record, ("id", "question", "gt_answer"), f"{path}: record {number}")
            if not any(kind in str(id_) for kind in _TYPES):
                raise UserError(f"SRC: {path}: the id {id_!r} contains none of {', '.join(_TYPES)}, as the judge needs")
            message = parts(asked)
            room = _SEEN - sum(not isinstance(part, str) for part in message)
            ask = Ask(message, parts(expected), "auto" if room > 0 else "never", max(1, room))
            return Question(str(id_), (ask,), record)

        return unique((question(number, record) for number, record in enumerate(load_json(path))), path)

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

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """By id; an answer may be a text alone."""
        path = file_of(folder, "data.json")
        records = {str(record.get("id")): record.get("answer") for record in load_json(path)}
        for question in questions:
            answer = records.get(question.id)
            parts: list[str | PicturePart] = []
            for item in [{"text": answer}] if isinstance(answer, str) else answer or []:
                where = f"{path}: {question.id}"
                parts.append(text_at(item, "text", where))
                image = text_at(item, "image", where)
                parts += [output_picture(path.parent / image)] if image else []
            yield [reply_of(parts)] if answer else None
