"""ISG-Bench: interleaved replies of a given structure; one file of JSON lines and a folder of pictures."""

from __future__ import annotations

import json
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
    name_of,
    output_picture,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_lines
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, parts_of, reply_of
from m2chat.files import write_whole

_SIDES = ("Query", "Golden")
_TYPES = ("text", "image")


class ISGBench(Benchmark):
    """``ISG-Bench.jsonl``, and outputs as ``output/<name>.jsonl`` with ``output_images/<name>/<id>_<k>.png``."""

    title = "ISG-Bench"
    metrics = ("CLIPScore", "FID", "InterRel", "TextOverlap", "Structure")
    hint = (
        "copy both folders into ISG_eval/ and give its judge `--end {n}`: by default it leaves out the last line of "
        "output/{name}.jsonl"
    )

    def questions(self, source: QuestionSource) -> list[Question]:
        """The lines of the file, each a list of texts and pictures on either side."""
        path = file_of(source.path, "ISG-Bench.jsonl", "ISG_eval/ISG-Bench.jsonl")

        def parts(items: Sequence[JSONRecord]) -> tuple[Part, ...]:
            content = ((item.text("type"), item.text("content", blank=True)) for item in items)
            return tuple(text if kind == "text" else source.picture(path.parent, text) for kind, text in content)

        def question(record: JSONRecord) -> Question:
            id_, sides = name_of(record.fields["id"], record.where), [record.records(side) for side in _SIDES]
            kinds = dict.fromkeys(item.text("type") for side in sides for item in side)
            if fault := ", ".join(f"an item of type {kind!r}" for kind in kinds if kind not in _TYPES):
                return Question(id_, (), record.fields, fault=fault)
            query, golden = map(parts, sides)
            return Question(id_, (Ask(query, golden),), record.fields)

        return unique((question(record) for record in records_of_lines(path, ("id", *_SIDES))), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The whole records, which the evaluator reads too, and ``output``; null where nothing was generated."""
        (folder / "output").mkdir()
        write_whole(folder / "output" / f"{name}.jsonl", self._lines(folder, name, answers))

    @staticmethod
    def _lines(folder: Path, name: str, answers: Iterable[Answer]) -> Iterator[str]:
        for question, (reply,) in answers:
            items = []
            for part in parts_of(reply):
                if isinstance(part, str):
                    items.append({"type": "text", "content": part})
                elif part.pixels is not None:
                    number = 1 + sum(item["type"] == "image" for item in items)
                    image = f"output_images/{name}/{question.id}_{number}.png"
                    save_picture(folder / image, part.pixels)
                    items.append({"type": "image", "content": image})
            yield json.dumps({**question.record, "output": items or None}, ensure_ascii=False) + "\n"

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """Pictures lie at the paths of the file, or in the folder that holds ``output/``."""
        path = folder if folder.is_file() else folder / "output" / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"--outputs: there is no {path}: name the file, or its system by --name")
        records = {record.id("id"): record for record in records_of_lines(path, ("id",), "--outputs")}
        for question in questions:
            if question.id not in records:
                yield None
                continue
            parts: list[str | PicturePart] = []
            for item in records[question.id].records("output", optional=True):
                if (kind := item.text("type")) not in _TYPES:
                    raise item.wrong("type", " or ".join(_TYPES))
                content = item.text("content", blank=kind == "text")
                parts.append(content if kind == "text" else output_picture(path.parent.parent / PurePosixPath(content)))
            yield [reply_of(parts)]
