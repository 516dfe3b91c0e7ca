"""GenEval: text-to-image; a folder with four pictures for each prompt."""

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
    file_of,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_lines
from m2chat.evaluation.parts import reply_of


class GenEval(Benchmark):
    """``evaluation_metadata.jsonl``, and outputs as ``<line>/metadata.jsonl`` and ``<line>/samples/<k>.png``."""

    title = "GenEval"
    metrics = ("CLIPScore",)
    hint = "give the folder to evaluation/evaluate_images.py: it holds nothing but the numbered folders"

    def questions(self, source: QuestionSource) -> list[Question]:
        """A question for each picture of each prompt; lines are numbered from 0."""
        path = file_of(source.path, "evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")

        def of_line(number: int, record: JSONRecord) -> Iterator[Question]:
            prompt = record.text("prompt")
            ask = Ask((prompt,), draw=True, caption=prompt)
            for sample in range(source.samples):
                yield Question(f"{number:05d}/{sample:04d}", (ask,), record.fields, "caption")

        lines = enumerate(records_of_lines(path, ("prompt",)))
        return unique((question for number, record in lines for question in of_line(number, record)), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Pictures, and the line of each prompt without a line end."""
        for question, (reply,) in answers:
            line, _, sample = question.id.partition("/")
            save_json(folder / line / "metadata.jsonl", question.record)
            (folder / line / "samples").mkdir(exist_ok=True)
            for pixels in reply.pictures[:1]:
                save_picture(folder / line / "samples" / f"{sample}.png", pixels)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """The k-th picture of a prompt's folder in the order of their names, which are numbers from 0, 1 or another."""
        for question in questions:
            line, _, sample = question.id.partition("/")
            files = [path for path in (folder / line / "samples").glob("*.png") if path.stem.isdecimal()]
            chosen = sorted(files, key=lambda path: int(path.stem))[int(sample) :][:1]
            yield [reply_of([output_picture(path, question.asks[0].caption)]) for path in chosen] or None
