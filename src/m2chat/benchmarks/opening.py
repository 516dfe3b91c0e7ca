"""OpenING: interleaved replies to open-ended requests; a JSON file and its pictures for each question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Known,
    Part,
    Question,
    QuestionSource,
    at_marks,
    file_of,
    marks_fault,
    name_of,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, record_of_file, records_of_lines
from m2chat.evaluation.parts import PicturePart, reply_of

_MARK = "<image>"


class OpenING(Benchmark):
    """``test_data.jsonl``, and outputs as ``<name>_output/<uid>.json`` with ``<uid>-o-<k>.jpg`` beside it, k from 0."""

    title = "OpenING"
    metrics = ("CLIPScore", "FID", "InterRel", "TextOverlap")
    hint = "put {name}_output beside the other models' folders in gen_outputs/ of the benchmark"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The lines of the file; ``<BEGIN>`` is left out, and pictures stand in the places of ``<image>``."""
        path = file_of(source.path, "test_data.jsonl", "OpenING-benchmark/test_data.jsonl", "dev_data.jsonl")
        lines = records_of_lines(path, ("total_uid", "conversations"))
        return unique((self._question(source, path, record) for record in lines), path)

    @staticmethod
    def _question(source: QuestionSource, path: Path, record: JSONRecord) -> Question:
        turns = record.records("conversations")
        if not turns:
            raise record.wrong("conversations", "a list with the input and the output")
        sides: list[list[Part]] = [[], []]
        fault = ""
        for side, name, turn in zip(sides, ("input", "output"), turns, strict=False):
            for item in turn.records(name):
                text = item.words("text").replace("<BEGIN>", " ")
                # A reference picture is captioned by the text before it, as everywhere.
                pictures = [source.picture(path.parent, image)] if (image := item.words("image")) else []
                fault = fault or marks_fault(text, pictures)
                side += at_marks(text, pictures)
        asked, reference = map(tuple, sides)
        id_ = name_of(record.fields["total_uid"], record.where)
        return Question(id_, (Ask(asked, reference),), record.fields, fault=fault)

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

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """Pictures are found by their names alone; some models' files are called ``.jsonl``."""
        base = folder / f"{name}_output"
        base = base if base.is_dir() else folder
        for question in questions:
            paths = [base / f"{question.id}{suffix}" for suffix in (".json", ".jsonl")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                yield None
                continue
            turns = record_of_file(path, ("conversations",), "--outputs").records("conversations")
            parts: list[str | PicturePart] = []
            for item in turns[1].records("output", optional=True) if len(turns) > 1 else []:
                text, image = item.words("text"), item.words("image")
                parts.append(text.replace(_MARK, "").strip())
                parts += [output_picture(base / PurePosixPath(image).name)] if image else []
                # Pictures that the text announces and that are not named were due.
                parts += [PicturePart(None)] * (text.count(_MARK) - bool(image))
            yield [reply_of(parts)]
