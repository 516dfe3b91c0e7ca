"""The run of a benchmark: questions are answered once each, in shards and after interruptions, and files written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m2chat.benchmarks.base import Ask, Benchmark, Question, is_there, name_of, pixels_at
from m2chat.errors import UserError
from m2chat.evaluation.journal import Journal, journal_rows
from m2chat.evaluation.parts import PicturePart, reply_of
from m2chat.evaluation.predictions import prediction_row, read_reply, write_images
from m2chat.evaluation.results import settings_hash
from m2chat.files import locked, whole_folder
from m2chat.pipeline import Finished, M2ChatPipeline
from m2chat.pipeline.drawing import noise_seed
from m2chat.pipeline.replier import ImageMode
from m2chat.pipeline.tasks import text_to_image
from m2chat.schema import Prediction, Reply
from m2chat.shares import WHOLE, Share

ANSWERS, FILES = "answers", "files"
"""Folders of the answers as they are generated, and of the evaluator's files."""
_NOTHING = Reply((), ())


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of all answers.

    Args:
        seed: Seed; together with a question's id it decides the noise of its pictures.
        image: Whether replies have pictures, where the benchmark leaves that to the model.
        max_images: Maximum number of pictures in a reply.
        max_new_tokens: Maximum length of an answer, in tokens.
        draw: ``steps``, ``guidance``, ``height``, ``width`` as far as they are given.
    """

    seed: int = 0
    image: ImageMode = "auto"
    max_images: int = 10
    max_new_tokens: int = 256
    draw: Mapping[str, Any] | None = None


def missing_pictures(questions: Sequence[Question]) -> tuple[int, int, str]:
    """Pictures of the messages, the missing ones among them, and what the first of these is called."""
    pictures = [picture for question in questions for ask in question.asks for picture in ask.pictures]
    missing = [picture for picture in pictures if not is_there(picture)]
    first = next((picture.path or f"{picture.media_key} ({picture.fault})" for picture in missing), "")
    return len(pictures), len(missing), first


def unaskable(question: Question) -> str:
    """Reason why a question cannot be asked with the pictures that are there; empty if it can."""
    if question.fault:
        return question.fault
    for ask in question.asks:
        if not ask.text and not any(is_there(picture) for picture in ask.pictures):
            return "a message of nothing but missing pictures" if ask.pictures else "a message without text and picture"
    return ""


def askable(
    questions: Sequence[Question], leave_out: bool, missing: bool = True
) -> tuple[list[Question], Counter[str]]:
    """The questions that can be asked, and the number of the others by reason.

    Args:
        questions: Questions.
        leave_out: Whether questions that cannot be asked are left out.
        missing: Whether a message of nothing but missing pictures is such a question.

    Raises:
        UserError: If a question cannot be asked and none may be left out, or none can be asked.
    """
    reasons = {question.id: unaskable(question) if missing else question.fault for question in questions}
    wrong = [id_ for id_, reason in reasons.items() if reason]
    if wrong and not leave_out:
        raise UserError(
            f"{len(wrong)} of {len(questions)} questions cannot be asked, the first is {wrong[0]!r}: "
            f"{reasons[wrong[0]]}; mend them, or leave them out by --allow-missing"
        )
    if len(wrong) == len(questions):
        raise UserError(f"none of {len(questions)} questions can be asked; the first: {reasons[wrong[0]]}")
    kept = [question for question in questions if not reasons[question.id]]
    return kept, Counter(reasons[id_] for id_ in wrong)


def answer_questions(
    pipe: M2ChatPipeline,
    title: str,
    questions: Sequence[Question],
    out: Path,
    settings: AnswerSettings,
    shard: Share = WHOLE,
) -> dict[str, Mapping[str, Any]]:
    """Answers the questions of a share that have no answer yet; each answer is on disk when the next one begins.

    Args:
        pipe: Pipeline.
        title: Name of the benchmark.
        questions: All questions.
        out: Folder of the run; several shares may write to it.
        settings: Settings of all answers.
        shard: The share.

    Returns:
        Rows of all answers that are there now, of every share, by question.

    Raises:
        UserError: If the folder has answers with other settings or weights, or another process answers the same share.
    """
    folder = out / ANSWERS
    generation = settings_hash({"benchmark": title, "model": _model_of(pipe), **asdict(settings)})
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"shard-{shard.number}", wait=False):
        known = _rows(folder, generation, questions)
        mine = shard.of_these(questions)
        waiting = [question for question in mine if question.id not in known]
        journal = Journal(folder, shard.number - 1, generation, keep=True)
        label = f"{title} {shard}" if shard.count > 1 else title
        bar = tqdm(waiting, label, total=len(mine), initial=len(mine) - len(waiting), unit="question")
        for question in bar:
            replies = list(replies_to(pipe, question, settings))
            segments = []
            for turn, reply in enumerate(replies):
                made = Prediction(f"{question.id}#{turn}", question.kind, title, "", _NOTHING, reply)
                segments.append(prediction_row(made, write_images(folder, made))["generated"])
            journal.add({"id": question.id, "asked": _asked(question), "replies": segments})
        return _rows(folder, generation, questions)


def _model_of(pipe: M2ChatPipeline) -> dict[str, Any]:
    """Identity of a model: backbones, the M³Adapter's values, and the image decoder's settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pipe.model.m3adapter.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    decoder = {"folder": Path(pipe.origin.backbone.image_decoder).name, **asdict(pipe.origin.backbone.decoder)}
    return {**pipe.origin.identity, "m3adapter": digest.hexdigest(), "decoder": decoder}


def _asked(question: Question) -> str:
    """A hash of the messages of a question: another file may have other questions by the same ids."""
    messages = [[part if isinstance(part, str) else part.media_key for part in ask.parts] for ask in question.asks]
    return settings_hash({"messages": messages})


def _rows(folder: Path, generation: str, questions: Sequence[Question]) -> dict[str, Mapping[str, Any]]:
    """The rows of the answers to the questions, by question, without those whose pictures cannot be read."""
    asked = {question.id: _asked(question) for question in questions}
    remedy = "name another OUT, or give the settings and weights of the answers that are there"
    rows = {}
    for row in journal_rows(folder, (generation,), f"OUT={str(folder.parent)!r}", remedy):
        if row["id"] in asked and row.get("asked") == asked[row["id"]]:
            with suppress(OSError, ValueError):  # the process was killed while it wrote the picture
                for segments in row["replies"]:
                    read_reply(folder, segments)
                rows[row["id"]] = row
    return rows


def replies_to(pipe: M2ChatPipeline, question: Question, settings: AnswerSettings) -> Iterator[Reply]:
    """A reply to each message of a question, which is one conversation."""
    seed = noise_seed(settings.seed, question.id) % 2**31
    draw = dict(settings.draw or {})
    session = pipe.session(seed=seed, preview_every=0, max_new_tokens=settings.max_new_tokens, **draw)
    for ask in question.asks:
        if ask.draw:
            (output,) = text_to_image(pipe, ask.text, [seed], **draw)
            yield reply_of([PicturePart(np.asarray(part.image), part.caption) for part in output.pictures])
            continue
        image = settings.image if ask.image == "auto" else ask.image
        most = min(ask.max_images or 16, settings.max_images)
        *_, last = session.stream(_content(ask), image=image, max_images=most)
        assert isinstance(last, Finished)
        yield last.reply


def _content(ask: Ask) -> list[Any]:
    """Texts and pixels of a message, without pictures that are missing."""
    parts = [part if isinstance(part, str) else pixels_at(part) for part in ask.parts]
    return [part for part in parts if part is not None]


def write_files(
    benchmark: Benchmark, questions: Sequence[Question], rows: Mapping[str, Mapping[str, Any]], out: Path, name: str
) -> Path:
    """Writes the evaluator's files from the answers of all questions.

    Args:
        benchmark: Benchmark.
        questions: Questions.
        rows: Their answers, from `answer_questions`.
        out: Folder of the run.
        name: Name of the system in the files.

    Returns:
        The folder, which holds nothing but them.
    """
    name_of(name, "--name")
    folder = out / FILES

    def replies(question: Question) -> list[Reply]:
        return [read_reply(out / ANSWERS, segments) for segments in rows[question.id]["replies"]]

    with whole_folder(folder, replace=True) as part:
        benchmark.write(part, name, ((question, replies(question)) for question in questions))
    return folder


def predictions_of_files(
    benchmark: Benchmark, questions: Sequence[Question], folder: Path, name: str, absent: list[str] | None = None
) -> Iterator[Prediction]:
    """What a folder of outputs holds, as predictions beside the reference replies.

    Args:
        benchmark: Benchmark.
        questions: Questions.
        folder: Folder of the outputs.
        name: Name of the system, where it is a part of paths.
        absent: List that gets the ids of replies that are not there, which are then left out; None counts them as
            empty replies.

    Raises:
        UserError: If the folder has the outputs of none of the questions.
    """
    some = False
    for question, replies in zip(questions, benchmark.read(folder, name, questions), strict=True):
        some |= replies is not None
        for turn, ask in enumerate(question.asks):
            id_ = question.id if len(question.asks) == 1 else f"{question.id}#{turn}"
            reply = None if replies is None else replies[turn]
            if reply is None and absent is not None:
                absent.append(id_)
                continue
            context = None if ask.context is None else pixels_at(ask.context)
            meta = {"context_caption": ask.context.caption} if ask.context is not None and ask.context.caption else {}
            yield Prediction(
                id_, question.kind, benchmark.title, ask.text, ask.reference_reply(), reply or _NOTHING, context, meta
            )
    if not some:
        raise UserError(f"{folder} holds outputs to none of the {len(questions)} questions of {benchmark.title}")


def not_drawn(questions: Sequence[Question], rows: Mapping[str, Mapping[str, Any]]) -> int:
    """Number of replies that should have a picture and have none, as where a caption reached its limit."""
    return sum(
        (ask.draw or ask.image == "force") and not any(segment["image"] for segment in segments)
        for question in questions
        for ask, segments in zip(question.asks, rows[question.id]["replies"], strict=True)
    )
