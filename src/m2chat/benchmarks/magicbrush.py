"""MagicBrush: sessions of edits, each later turn once from what was drawn and once from the true picture before it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from m2chat.benchmarks.base import (
    Answer,
    Ask,
    Benchmark,
    Known,
    Question,
    QuestionSource,
    name_of,
    output_picture,
    pixels_at,
    save_picture,
    unique,
)
from m2chat.data.converters import parquet
from m2chat.data.converters.raw import Job, PictureFile, RawSample
from m2chat.errors import UserError
from m2chat.evaluation.parts import reply_of


class MagicBrush(Benchmark):
    """Parquet files of edits; outputs as ``testResults/<id>/<id>_1.png``, ``<id>_inde_<k>.png``, ``<id>_iter_<k>.png``.

    The true pictures are written beside, as ``test/images/<id>/<id>-input.png`` and ``<id>-output<k>.png``, since the
    evaluator wants the same sessions on both sides.
    """

    title = "MagicBrush"
    metrics = ("CLIPScore", "FID", "EditScores")
    hint = "give its evaluator testResults/ and test/images/; the captions and edit_sessions.json are the benchmark's"

    def questions(self, source: QuestionSource) -> list[Question]:
        """Each session as one conversation, and each of its later turns alone."""
        with tempfile.TemporaryDirectory(prefix="m2chat-") as work:
            job = Job("parquet", source.path, Path(work), "magicbrush", images=source.pictures)
            job.work.mkdir(parents=True, exist_ok=True)
            sessions = list(parquet.samples(job))
        questions: list[Question] = []
        for session in sessions:
            if not isinstance(session, RawSample) or session.kind != "edit":
                fault = "no edit" if isinstance(session, RawSample) else session.reason
                raise UserError(f"SRC: {source.path}: session {session.id!r}: {fault}")
            questions += self._of_session(session)
        return unique(questions, source.path)

    @staticmethod
    def _of_session(session: RawSample) -> Iterator[Question]:
        name_of(session.id, "SRC: session")
        asks: list[Ask] = []
        for asked, edited in zip(session.turns[::2], session.turns[1::2], strict=True):
            place = asked.pictures[0] if asked.pictures else asked.context
            assert place is not None, "an edit shows its picture, or refers to an earlier one"
            before, after = session.pictures[place], session.pictures[edited.pictures[0]]
            asks.append(Ask((before, asked.text), (after,), "force", 1, caption=asked.text, context=before))
        first, *later = asks
        # What was drawn before is the picture of the next turn: only the first turn shows one.
        alone = [Ask((ask.text,), ask.reference, "force", 1, caption=ask.text, context=ask.context) for ask in later]
        yield Question(session.id, (first, *alone), session.id, "edit")
        for number, ask in enumerate(later, 2):
            yield Question(f"{session.id}/inde_{number}", (ask,), session.id, "edit")

    def write(self, folder: Path, name: str, answers: Iterable[Answer]) -> None:
        """Results, and the true pictures."""
        for question, replies in answers:
            for stem, ask, reply in zip(_stems(question), question.asks, replies, strict=True):
                for pixels in reply.pictures[:1]:
                    save_picture(folder / "testResults" / question.record / f"{stem}.png", pixels)
                if "_inde_" in stem:
                    continue
                number = int(stem.rpartition("_")[2])
                names: dict[str, PictureFile | None] = {f"output{number}": ask.reference_pictures[0]}
                names |= {"input": ask.context} if number == 1 else {}
                for end, picture in names.items():
                    true = None if picture is None else pixels_at(picture)
                    if true is not None:
                        path = folder / "test/images" / question.record / f"{question.record}-{end}.png"
                        save_picture(path, true)

    def read(self, folder: Path, name: str, questions: Sequence[Question]) -> Iterator[Known]:
        """The folder of the sessions, or one with ``testResults/`` in it."""
        base = folder / "testResults" if (folder / "testResults").is_dir() else folder
        for question in questions:
            paths = [base / question.record / f"{stem}.png" for stem in _stems(question)]
            replies = [reply_of([output_picture(path)]) if path.is_file() else None for path in paths]
            yield replies if any(replies) else None


def _stems(question: Question) -> list[str]:
    """Names of the pictures of a question's turns, without suffix."""
    if question.id != question.record:
        return [f"{question.record}_{question.id.rpartition('/')[2]}"]
    turns = range(1, len(question.asks) + 1)
    return [f"{question.record}_1" if turn == 1 else f"{question.record}_iter_{turn}" for turn in turns]
