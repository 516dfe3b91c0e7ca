"""What a benchmark is: questions, and how answers are written for its evaluator and read from other systems."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from PIL import Image

from m2chat.data.converters.raw import PictureFile, file_in
from m2chat.data.images import BadImage, load_image, read_image
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, reply_of
from m2chat.files import whole_file, write_whole
from m2chat.pipeline.replier import ImageMode
from m2chat.schema import Kind, Picture, Reply, Segment

_NAME = re.compile(r"(?!\.)[\w.+-]{1,100}")

Part: TypeAlias = str | PictureFile
"""A text, or a picture and where it lies."""


@dataclass(frozen=True)
class QuestionSource:
    """What the user names of a benchmark.

    Args:
        path: Folder or file of the questions.
        pictures: Folder to which the paths of pictures are relative; None for the benchmark's usual place.
        samples: Pictures for each prompt of text-to-image.
    """

    path: Path
    pictures: Path | None = None
    samples: int = 4

    def picture(self, folder: Path, name: object, caption: str = "") -> PictureFile:
        """The picture that a record names, relative to the folder of ``pictures`` or else to `folder`."""
        return file_in(self.pictures or folder, name, caption=caption, media_key=str(name))


@dataclass(frozen=True)
class Ask:
    """A message to which a reply is expected.

    Args:
        parts: Texts and pictures in their order.
        reference: Reference reply; empty if there is none.
        image: Whether the reply has pictures.
        max_images: Maximum number of them; None for that of the run.
        draw: Whether the text is drawn as it is (text-to-image).
        caption: What the picture should show, where there is no reference reply.
        context: Picture that is edited, for reports.
    """

    parts: tuple[Part, ...]
    reference: tuple[Part, ...] = ()
    image: ImageMode = "auto"
    max_images: int | None = None
    draw: bool = False
    caption: str = ""
    context: PictureFile | None = None

    @property
    def text(self) -> str:
        """The texts of the message, joined by spaces."""
        return " ".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def pictures(self) -> list[PictureFile]:
        """The pictures of the message."""
        return [part for part in self.parts if isinstance(part, PictureFile)]

    @property
    def reference_pictures(self) -> list[PictureFile]:
        """The pictures of the reference reply."""
        return [part for part in self.reference if isinstance(part, PictureFile)]

    def reference_reply(self) -> Reply:
        """The reference reply; pictures that are missing are None in it."""
        if not self.reference and self.caption:
            return Reply((Segment("", self.caption),), (None,))
        parts = (
            part if isinstance(part, str) else PicturePart(pixels_at(part), part.caption or None)
            for part in self.reference
        )
        return reply_of(parts, self.caption)


@dataclass(frozen=True)
class Question:
    """One or more messages of a user, each of which is answered before the next.

    Args:
        id: Name, unique in the benchmark; it decides the noise of generated pictures.
        asks: Messages.
        record: What the benchmark needs to write the answer.
        kind: Kind of the replies.
        fault: Reason why it cannot be asked; empty if it can.
    """

    id: str
    asks: tuple[Ask, ...]
    record: Any = None
    kind: Kind = "dialogue"
    fault: str = ""


Answer: TypeAlias = tuple[Question, Sequence[Reply]]
"""A question with a reply to each of its messages."""
Known: TypeAlias = Sequence[Reply | None] | None
"""A reply to each message of a question, None where a folder has none; None if it has none to the question."""


class Benchmark(Protocol):
    """A benchmark."""

    title: str
    """Its name."""
    metrics: tuple[str, ...]
    """Metric callbacks that score it without a judge."""
    hint: str
    """How its evaluator is given the files, in a sentence; ``{name}`` and ``{n}`` stand for system and questions."""

    def questions(self, source: QuestionSource) -> list[Question]:
        """The questions in their order.

        Raises:
            UserError: If the files are not the benchmark's.
        """
        ...

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Writes the files of the evaluator.

        Args:
            folder: Empty folder.
            name: Name of the system.
            answers: All questions with their answers.
        """
        ...

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """The replies to each question from a folder that `write` or another system has written.

        Args:
            folder: The folder, or what its makers publish of it.
            name: Name of the system, where it is a part of paths.
            questions: Questions.

        Yields:
            What the folder has to each question.

        Raises:
            UserError: If a file has another form.
        """
        ...


def is_there(picture: PictureFile) -> bool:
    """Whether there is a file to read."""
    return not picture.fault and os.path.isfile(picture.path)


def pixels_at(picture: PictureFile) -> Picture | None:
    """The pixels of a picture, RGB (H, W, 3); None if it is missing.

    Raises:
        UserError: If it is broken.
    """
    if not is_there(picture):
        return None
    try:
        return load_image(picture.read())
    except BadImage as error:
        raise UserError(f"the picture {picture.media_key or picture.path} cannot be read: {error}") from error


def output_picture(path: Path, caption: str | None = None) -> PicturePart:
    """A picture of a system's output; missing ones count as not drawn, as the evaluators count them.

    Raises:
        UserError: If it is broken.
    """
    if not path.is_file():
        return PicturePart(None, caption)
    try:
        return PicturePart(read_image(path), caption)
    except (OSError, BadImage) as error:
        raise UserError(f"the picture {path} cannot be read: {error}") from error


def save_picture(path: Path, pixels: Picture) -> None:
    """Writes a picture in the format of its name; JPEG with little loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, "JPEG" if options else "PNG", **options)


def save_json(path: Path, value: object, **options: Any) -> None:
    """Writes a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(value, ensure_ascii=False, **options)])


def file_of(source: Path, *names: str) -> Path:
    """The file of questions: `source` itself, or the first of some names below it.

    Raises:
        UserError: If there is none.
    """
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise UserError(f"SRC: {source} is no file, and no folder with {' or '.join(names)}")


def name_of(value: object, where: object) -> str:
    """An id that may be a part of the name of a file.

    Raises:
        UserError: If it may not.
    """
    name = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not _NAME.fullmatch(name):
        raise UserError(f"{where}: {value!r} becomes the name of a file: only letters, digits and . _ + - are allowed")
    return name


def unique(questions: Iterable[Question], where: Path) -> list[Question]:
    """The questions, if their ids are unique.

    Raises:
        UserError: If an id comes twice, or there is no question.
    """
    known: dict[str, Question] = {}
    for question in questions:
        if question.id in known:
            raise UserError(f"SRC: {where}: the question {question.id!r} comes twice: name the file of one set")
        known[question.id] = question
    if not known:
        raise UserError(f"SRC: {where} holds no questions")
    return list(known.values())


def marks_fault(text: str, pictures: Sequence[PictureFile], mark: str = "<image>") -> str:
    """Reason why `at_marks` would have to guess which marks of a text the pictures belong to; empty if it need not."""
    marks = text.count(mark)
    plural = "" if len(pictures) == 1 else "s"
    return f"marks {mark}: {marks}, for {len(pictures)} picture{plural}" if marks > len(pictures) else ""


def at_marks(text: str, pictures: Sequence[PictureFile], mark: str = "<image>") -> tuple[Part, ...]:
    """A text with pictures in the places of its marks, of which there is one each; those without stand behind it."""
    parts: list[Part] = []
    waiting = list(pictures)
    for index, piece in enumerate(text.split(mark)):
        if index and waiting:
            parts.append(waiting.pop(0))
        parts += [piece.strip()] if piece.strip() else []
    return (*parts, *waiting)
