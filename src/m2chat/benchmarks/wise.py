"""WISE: pictures of what a prompt means without naming it; one folder of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Known,
    Question,
    QuestionSource,
    name_of,
    output_picture,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_file
from m2chat.errors import UserError
from m2chat.evaluation.parts import reply_of


class WISE(Benchmark):
    """Lists of prompts, and outputs as ``<prompt_id>.png``."""

    title = "WISE"
    metrics = ("CLIPScore",)
    hint = "give the folder to the benchmark's scorer as its folder of images"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The prompts of a file, or of all files of a folder or its ``data_verified/``; the model writes captions."""
        folder = source.path
        lists = sorted(folder.glob("*.json")) or sorted((folder / "data_verified").glob("*.json"))
        files = [folder] if folder.is_file() else lists
        if not files:
            raise UserError(f"SRC: {source.path} is no file and holds no .json of prompts, such as data_verified/ does")

        def question(record: JSONRecord) -> Question:
            prompt = record.text("Prompt")
            ask = Ask((prompt,), image="force", max_images=1, caption=prompt)
            return Question(name_of(record.fields["prompt_id"], record.where), (ask,), record.fields, "caption")

        records = (record for path in files for record in records_of_file(path, ("Prompt", "prompt_id")))
        return unique((question(record) for record in records), source.path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The pictures."""
        for question, (reply,) in answers:
            for pixels in reply.pictures[:1]:
                save_picture(folder / f"{question.id}.png", pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """The picture of each prompt."""
        for question in questions:
            path = folder / f"{question.id}.png"
            yield [reply_of([output_picture(path, question.asks[0].caption)])] if path.is_file() else None
