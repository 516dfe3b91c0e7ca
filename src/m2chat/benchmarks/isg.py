"""ISG-Bench: interleaved replies of a given structure; one file of JSON lines and a folder of pictures."""

from __future__ import annotations

import json
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
    load_lines,
    name_of,
    output_picture,
    save_picture,
    unique,
)
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, parts_of, reply_of, text_at
from m2chat.files import write_whole
from m2chat.schema import Reply


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

        def parts(items: Any) -> tuple[Part, ...]:
            return tuple(
                str(item["content"]) if item["type"] == "text" else source.picture(path.parent, item["content"])
                for item in items
            )

        def question(number: int, record: Any) -> Question:
            id_, query, golden = fields_of(record, ("id", "Query", "Golden"), f"{path}:{number}")
            return Question(name_of(id_, f"{path}:{number}"), (Ask(parts(query), parts(golden)),), record)

        return unique((question(number, record) for number, record in enumerate(load_lines(path), 1)), path)

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

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """Pictures lie where the file says, or in the folder that holds ``output/``."""
        path = folder if folder.is_file() else folder / "output" / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"--outputs: there is no {path}: name the file, or its system by --name")
        records = {str(record.get("id")): record for record in load_lines(path)}
        for question in questions:
            if question.id not in records:
                yield None
                continue
            parts: list[str | PicturePart] = []
            for item in records[question.id].get("output") or []:
                content = text_at(item, "content", f"{path}: {question.id}")
                if item.get("type") == "text":
                    parts.append(content)
                else:
                    parts.append(output_picture(path.parent.parent / PurePosixPath(content)))
            yield [reply_of(parts)]
