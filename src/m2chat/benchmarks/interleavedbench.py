"""InterleavedBench: interleaved replies; the file of questions with the replies in their place."""

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
    at_marks,
    file_of,
    marks_fault,
    name_of,
    output_picture,
    save_json,
    save_picture,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, records_of_file
from m2chat.data.converters.raw import PictureFile
from m2chat.evaluation.parts import PicturePart, parts_of, reply_of

_MARK = "<image>"
_FILE = "interleaved_bench.json"
_FIELDS = ("id", "image", "conversations")


class InterleavedBench(Benchmark):
    """``interleaved_bench.json``, and the same file with replies and ``<name>_images/<id>_<k>.png`` beside it.

    The form of the questions is that of the published file; no evaluator of it was seen, so its layout is all that is
    kept.
    """

    title = "InterleavedBench"
    metrics = ("CLIPScore", "FID", "InterRel", "TextOverlap", "Structure")
    hint = "its records are those of the benchmark with other replies"

    def questions(self, source: QuestionSource) -> list[Question]:
        """The records; the marks of the request take the first pictures, the rest belongs to the reference."""
        path = file_of(source.path, _FILE)

        def question(record: JSONRecord) -> Question:
            asked, expected, names = _turns(record)
            pictures, first = [source.picture(path.parent, name) for name in names], asked.count(_MARK)
            fault = marks_fault(asked, pictures) or marks_fault(expected, pictures[first:])
            ask = Ask(at_marks(asked, pictures[:first]), at_marks(expected, pictures[first:]))
            return Question(name_of(record.fields["id"], record.where), (ask,), record.fields, fault=fault)

        return unique((question(record) for record in records_of_file(path, _FIELDS)), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """The records with the new replies, and the pictures of the replies."""
        records = []
        for question, (reply,) in answers:
            asked = question.record["conversations"][0]
            words, images = [], list(question.record["image"][: str(asked["value"]).count(_MARK)])
            for part in parts_of(reply):
                words.append(part if isinstance(part, str) else _MARK)
                if isinstance(part, PicturePart) and part.pixels is not None:
                    images.append(f"{name}_images/{question.id}_{len(images)}.png")
                    save_picture(folder / images[-1], part.pixels)
            answer = {"from": "gpt", "value": " ".join(words)}
            records.append({**question.record, "image": images, "conversations": [asked, answer]})
        save_json(folder / _FILE, records, indent=1)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """By id."""
        path = file_of(folder, _FILE)
        records = {record.id("id"): record for record in records_of_file(path, _FIELDS, "--outputs")}
        for question in questions:
            if question.id not in records:
                yield None
                continue
            asked, answer, names = _turns(records[question.id])
            drawn = [PictureFile(str(path.parent / item)) for item in names[asked.count(_MARK) :]]
            # Pictures that the answer announces and that are not named were due.
            drawn += [PictureFile("")] * (answer.count(_MARK) - len(drawn))
            parts = at_marks(answer, drawn)
            yield [reply_of(part if isinstance(part, str) else output_picture(Path(part.path)) for part in parts)]


def _turns(record: JSONRecord) -> tuple[str, str, list[str]]:
    """Request, reply and names of pictures of a record.

    Raises:
        UserError: If it has another form.
    """
    turns = record.records("conversations", ("value",))
    if len(turns) < 2:
        raise record.wrong("conversations", "a list with the request and the reply")
    return turns[0].text("value"), turns[1].words("value"), record.texts("image")
