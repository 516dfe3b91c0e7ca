"""VIST: a story in words for five photos; the file of its challenge, and the stories by album."""

from __future__ import annotations

import re
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
    save_json,
    unique,
)
from m2chat.benchmarks.records import JSONRecord, record_of_file
from m2chat.data.converters.vist import photo_file
from m2chat.evaluation.parts import reply_of

_REQUEST = "Tell a story of these pictures, a sentence for each."
_FIELDS = ("story_id", "album_id", "photo_flickr_id", "worker_arranged_photo_order", "text")


class VISTStories(Benchmark):
    """``<split>.story-in-sequence.json``, and outputs as ``challenge.json`` and ``prediction_test.json``."""

    title = "VIST"
    metrics = ("TextOverlap",)
    hint = "challenge.json is the form of the challenge's server, prediction_test.json that of AREL's evaluator"

    def questions(self, source: QuestionSource) -> list[Question]:
        """A question for each sequence of photos; of several stories about one, the first is the reference."""
        names = [f"{folder}{split}.story-in-sequence.json" for split in ("test", "val") for folder in ("", "sis/")]
        path = file_of(source.path, *names)
        photos = source.pictures or path.parent / "images"
        stories: dict[str, list[JSONRecord]] = {}
        for row in _rows(record_of_file(path, ("annotations",))):
            stories.setdefault(row.id("story_id"), []).append(row)
        sequences: dict[str, Question] = {}
        for rows in stories.values():
            rows.sort(key=lambda row: row.whole("worker_arranged_photo_order"))
            ids = [row.id("photo_flickr_id") for row in rows]
            album = rows[0].id("album_id")
            text = normalised_story(
                " ".join(row.words("original_text") or row.text("text", blank=True) for row in rows)
            )
            ask = Ask((_REQUEST, *(photo_file(photos, id_, media_key=id_) for id_ in ids)), (text,), "never")
            key = f"{album}/{'-'.join(ids)}"
            sequences.setdefault(key, Question(key, (ask,), {"album_id": album, "photo_sequence": ids}, "story"))
        return unique(sequences.values(), path)

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """All stories, and the first of each album."""
        stories, albums = [], dict[str, list[str]]()
        for question, (reply,) in answers:
            text = normalised_story(" ".join(reply.texts))
            stories.append(
                {
                    "photo_sequence": question.record["photo_sequence"],
                    "story_text_normalized": text,
                    "album_id": question.record["album_id"],
                }
            )
            albums.setdefault(question.record["album_id"], [text])
        about = {"additional_description": f"{name}, written by M²Chat's bench command"}
        save_json(folder / "challenge.json", {"team_name": name, "evaluation_info": about, "output_stories": stories})
        save_json(folder / "prediction_test.json", albums)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """Either file; that of albums has a story for the first sequence of each."""
        content = record_of_file(file_of(folder, "challenge.json", "prediction_test.json"), (), "--outputs")
        stories = content.records("output_stories", ("photo_sequence", "story_text_normalized"), optional=True)
        by_photos = {_sequence(story): story.text("story_text_normalized", blank=True) for story in stories}
        by_album = {} if by_photos else {album: content.texts(album) for album in content.fields}
        for question in questions:
            text = by_photos.get(tuple(question.record["photo_sequence"]))
            if text is None:
                text = next(iter(by_album.pop(question.record["album_id"], [])), None)
            yield None if text is None else [reply_of([normalised_story(text)])]


def _rows(file: JSONRecord) -> Iterator[JSONRecord]:
    """The annotations, each of which may be a list of one."""
    annotations = file.fields["annotations"]
    if not isinstance(annotations, list):
        raise file.wrong("annotations", "a list")
    for number, rows in enumerate(annotations):
        for row in rows if isinstance(rows, list) else [rows]:
            yield JSONRecord.of(row, f"{file.where}: annotation {number}", _FIELDS)


def _sequence(story: JSONRecord) -> tuple[str, ...]:
    """The photos of a story."""
    photos = story.fields["photo_sequence"]
    if not isinstance(photos, list):
        raise story.wrong("photo_sequence", "a list of photos")
    return tuple(map(str, photos))


def normalised_story(text: str) -> str:
    """Lower case, with spaces between words and punctuation, as the challenge's texts are."""
    apart = re.sub(r"(\w)(n't)\b", r"\1 \2", text.lower())
    return " ".join(re.findall(r"n't\b|'\w+|\w+|[^\w\s]", apart))
