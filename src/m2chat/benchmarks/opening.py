"""OpenING: interleaved replies to open-ended requests; a JSON file and its pictures for each question."""

from __future__ import annotations

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
    at_marks,
    fields_of,
    file_of,
    load_json,
    load_lines,
    name_of,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.evaluation.parts import PicturePart, reply_of, text_at
from m2chat.schema import Reply


class OpenING(Benchmark):
    """``test_data.jsonl``, and outputs as ``<name>_output/<uid>.json`` with ``<uid>-o-<k>.jpg`` beside it, k from 0."""

    title = "OpenING"
    metrics = ("CLIPScore", "FID", "InterRel", "TextOverlap")
    hint = "put {name}_output beside the other models' folders in gen_outputs/ of the benchmark"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The lines of the file; ``<BEGIN>`` is left out, and pictures stand in the places of ``<image>``."""
        path = file_of(source.path, "test_data.jsonl", "OpenING-benchmark/test_data.jsonl", "dev_data.jsonl")
        lines = enumerate(load_lines(path), 1)
        return unique((self._question(source, path, number, record) for number, record in lines), path)

    @staticmethod
    def _question(source: QuestionSource, path: Path, number: int, record: Any) -> Question:
        where = f"{path}:{number}"
        uid, conversations = fields_of(record, ("total_uid", "conversations"), where)
        sides: list[list[Part]] = []
        for turn, side in zip(conversations, ("input", "output"), strict=False):
            (items,) = fields_of(turn, (side,), where)
            parts: list[Part] = []
            for item in items:
                text = str(item.get("text") or "").replace("<BEGIN>", " ")
                # A reference picture is captioned by the text before it, as everywhere.
                pictures = [source.picture(path.parent, item["image"])] if item.get("image") else []
                parts += at_marks(text, pictures)
            sides.append(parts)
        asked, reference = (*sides, [])[:2]
        return Question(name_of(uid, where), (Ask(tuple(asked), tuple(reference)),), record)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The record without ``total_uid``, its output replaced; an item for each text with its picture."""
        for question, (reply,) in answers:
            items: list[dict[str, Any]] = []
            for segment, pixels in zip(reply.segments, reply.images, strict=True):
                image = None
                if pixels is not None:
                    image = f"{question.id}-o-{len(items)}.jpg"
                    save_picture(folder / f"{name}_output" / image, pixels)
                if segment.answer.strip() or pixels is not None:
                    items.append({"text": segment.answer.strip(), "image": image})
            record = {key: value for key, value in question.record.items() if key != "total_uid"}
            asked = question.record["conversations"][0]
            record["conversations"] = [asked, {"output": items or [{"text": "", "image": None}]}]
            save_json(folder / f"{name}_output" / f"{question.id}.json", record, indent=4)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Sequence[Reply] | None]:
        """Pictures are found by their names alone; some models' files are called ``.jsonl``."""
        base = folder / f"{name}_output"
        base = base if base.is_dir() else folder
        for question in questions:
            paths = [base / f"{question.id}{suffix}" for suffix in (".json", ".jsonl")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                yield None
                continue
            (conversations,) = fields_of(load_json(path), ("conversations",), str(path))
            parts: list[str | PicturePart] = []
            for item in (conversations[1:2] or [{}])[0].get("output") or []:
                parts.append(text_at(item, "text", str(path)).replace("<image>", "").strip())
                if image := text_at(item, "image", str(path)):
                    parts.append(output_picture(base / PurePosixPath(image).name))
            yield [reply_of(parts)]
