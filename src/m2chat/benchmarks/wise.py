"""WISE: pictures of what a prompt means without naming it; one folder of pictures."""

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
    fields_of,
    load_json,
    name_of,
    output_picture,
    save_picture,
    unique,
)
from m2chat.errors import UserError
from m2chat.evaluation.parts import reply_of
from m2chat.files import by_number
from m2chat.schema import Reply


class WISE(Benchmark):
    """Lists of prompts, and outputs as ``<prompt_id>.png``."""

    title = "WISE"
    metrics = ("CLIPScore",)
    hint = "give the folder to the benchmark's scorer as its folder of images"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The prompts of a file or of all files of a folder; the model writes the caption that it draws."""
        files = [source.path] if source.path.is_file() else sorted(source.path.glob("*.json"), key=by_number)
        if not files:
            raise UserError(f"SRC: {source.path} is no file and holds no .json of prompts, such as data_verified/ does")

        def question(path: Path, number: int, record: Any) -> Question:
            prompt, id_ = fields_of(record, ("Prompt", "prompt_id"), f"{path}: record {number}")
            ask = Ask((str(prompt),), image="force", max_images=1, caption=str(prompt))
            return Question(name_of(id_, path), (ask,), record, "caption")

        records = ((path, number, record) for path in files for number, record in enumerate(load_json(path)))
        return unique((question(*item) for item in records), source.path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The pictures."""
        for question, (reply,) in answers:
            for pixels in reply.pictures[:1]:
                save_picture(folder / f"{question.id}.png", pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """The picture of each prompt."""
        for question in questions:
            path = folder / f"{question.id}.png"
            yield [reply_of([output_picture(path, question.asks[0].caption)])] if path.is_file() else None
