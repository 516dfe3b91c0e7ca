"""GenEval: text-to-image; a folder with four pictures for each prompt."""

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
    file_of,
    load_lines,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.evaluation.parts import reply_of
from m2chat.schema import Reply


class GenEval(Benchmark):
    """``evaluation_metadata.jsonl``, and outputs as ``<line>/metadata.jsonl`` and ``<line>/samples/<k>.png``."""

    title = "GenEval"
    metrics = ("CLIPScore",)
    hint = "give the folder to evaluation/evaluate_images.py: it holds nothing but the numbered folders"

    def questions(self, source: QuestionSource) -> list[Question]:
        """A question for each picture of each prompt; lines are numbered from 0."""
        path = file_of(source.path, "evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")

        def of_line(number: int, record: Any) -> Iterator[Question]:
            (prompt,) = fields_of(record, ("prompt",), f"{path}:{number + 1}")
            ask = Ask((str(prompt),), draw=True, caption=str(prompt))
            for sample in range(source.samples):
                yield Question(f"{number:05d}/{sample:04d}", (ask,), record, "caption")

        lines = enumerate(load_lines(path))
        return unique((question for number, record in lines for question in of_line(number, record)), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Pictures, and the line of each prompt without a line end."""
        for question, (reply,) in answers:
            line, _, sample = question.id.partition("/")
            save_json(folder / line / "metadata.jsonl", question.record)
            (folder / line / "samples").mkdir(exist_ok=True)
            for pixels in reply.pictures[:1]:
                save_picture(folder / line / "samples" / f"{sample}.png", pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """The k-th picture of a prompt's folder; its name is a number of any length."""
        for question in questions:
            line, _, sample = question.id.partition("/")
            files = sorted((folder / line / "samples").glob("*.png"))
            known = {int(path.stem): path for path in files if path.stem.isdecimal()}
            there = known.get(int(sample))
            yield None if there is None else [reply_of([output_picture(there, question.asks[0].caption)])]
