"""The paper's tasks, each a function on top of a pipeline (paper, Figs. 1, 3, 4, 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np

from m2chat.errors import UserError
from m2chat.pipeline.candidates import best_of
from m2chat.pipeline.events import Picture
from m2chat.pipeline.inputs import as_pixels, waiting
from m2chat.pipeline.outputs import ImagePart, PipelineOutput, output_of
from m2chat.pipeline.pipeline import M2ChatPipeline
from m2chat.pipeline.replier import DrawSettings, Given, Replier, noise_seed
from m2chat.pipeline.session import Session, whole
from m2chat.pipeline.turns import finish, in_turns
from m2chat.schema import Image, Sample, Turn

SIMILAR = "a similar picture"
"""What asks for another picture of the same kind (paper, Fig. 6)."""
WISH_GUIDANCE = 2.0
"""Guidance of a wish's pictures: more of it draws what the wish leaves open always in the same way."""


@dataclass(frozen=True)
class Story:
    """A story (paper, Fig. 3).

    Args:
        opener: Its first line.
        parts: Texts and pictures, a part each.
        alone: What the image decoder draws by itself from the same captions, all at one seed: the comparison.
    """

    opener: str
    parts: list[PipelineOutput]
    alone: list[Picture]


def text_to_image(
    pipe: M2ChatPipeline, prompt: str, seeds: Sequence[int] = (0,), stop: Event | None = None, **draw: Any
) -> list[PipelineOutput]:
    """Draws what a prompt says, as it stands, once for each seed.

    Args:
        pipe: Draws.
        prompt: The caption.
        seeds: Of the pictures.
        stop: Set from any thread, it ends the work before its next token or denoising step.
        draw: ``steps``, ``guidance``, ``size``: as for `DrawSettings`.

    Returns:
        One for each seed; none if it was stopped.
    """
    blank = Image(np.zeros((0, 0, 3), np.uint8), prompt)
    sample = Sample("draw", "caption", "tasks", (Turn("user", (prompt,)), Turn("assistant", (0,))), (blank,))
    replier = pipe.replier(draw=_settings(pipe, draw))
    return _at_seeds(pipe, replier, sample, seeds, "caption", stop)


def wish(
    pipe: M2ChatPipeline,
    text: str,
    seeds: Sequence[int] = (0, 1, 2, 3),
    stop: Event | None = None,
    candidates: int = 2,
    **draw: Any,
) -> list[PipelineOutput]:
    """Chat-based generation: the model makes a caption of a vague wish, and draws it once for each seed.

    Args:
        pipe: Replies.
        text: The wish.
        seeds: Of the pictures.
        stop: As for `text_to_image`.
        candidates: Pictures that are drawn for each seed; the one that the image decoder itself finds most like its
            caption is kept. With little guidance a picture is broken now and then.
        draw: As for `text_to_image`; ``guidance`` is `WISH_GUIDANCE` unless given.

    Returns:
        One for each seed; none if it was stopped before each had a candidate.

    Raises:
        UserError: If there shall be no candidate.
    """
    if candidates < 1:
        raise UserError(f"candidates={candidates}: draw at least one picture for each seed")
    sample = Sample("wish", "dialogue", "tasks", (Turn("user", (text,)),), ())
    replier = pipe.replier("force", 1, _settings(pipe, {"guidance": WISH_GUIDANCE, **draw}))
    rounds = []
    for number in range(candidates):  # one after the other: no more pictures at once than there are seeds
        own = [noise_seed(seed, f"candidate {number}") if number else seed for seed in seeds]
        drawn = _at_seeds(pipe, replier, sample, own, "nothing", stop)
        if not drawn:
            break
        rounds.append(drawn)
    if not rounds:
        return []
    return [replace(best_of(pipe, outputs), seed=seed) for seed, *outputs in zip(seeds, *rounds, strict=True)]


def edit(
    pipe: M2ChatPipeline, picture: Any, instructions: Sequence[str], seed: int = 0, **settings: Any
) -> list[PipelineOutput]:
    """Multi-round editing (paper, Figs. 1 and 6): each instruction changes the picture that came before it.

    Args:
        pipe: Replies.
        picture: Where it starts: a Pillow picture, or RGB uint8 (H, W, 3).
        instructions: What to change, to replace, or `SIMILAR` for another of its kind.
        seed: Of the replies.
        settings: As for `SessionSettings`.

    Raises:
        UserError: If there is no instruction.
    """
    return list(edit_rounds(pipe.session(seed=seed, **settings), picture, instructions))


def edit_rounds(session: Session, picture: Any, instructions: Sequence[str]) -> Iterator[PipelineOutput]:
    """The rounds of an edit, each as soon as it is drawn; `Session.stop` ends it.

    Args:
        session: Edits, and remembers.
        picture: Where it starts: a Pillow picture, or RGB uint8 (H, W, 3).
        instructions: What to change, as of `changes`.
    """
    shown: tuple[Any, ...] = (picture,)
    for instruction in changes(instructions):
        yield session.edit(instruction, images=shown)
        if session.is_stopped:
            return
        shown = ()


def changes(instructions: Sequence[str]) -> list[str]:
    """Instructions without the blank ones.

    Raises:
        UserError: If nothing is left.
    """
    said = [line.strip() for line in instructions if line.strip()]
    if not said:
        raise UserError("instructions: name at least one change, such as 'paint it red', one a line")
    return said


def similar(
    pipe: M2ChatPipeline, picture: Any, seeds: Sequence[int] = (0,), stop: Event | None = None, **draw: Any
) -> list[PipelineOutput]:
    """Pictures like one: what the model says that it shows, drawn anew with the picture in view (paper, Fig. 6).

    Args:
        pipe: Looks and draws.
        picture: A Pillow picture, or RGB uint8 (H, W, 3).
        seeds: Of the pictures.
        stop: As for `text_to_image`.
        draw: As for `text_to_image`.

    Returns:
        One for each seed; none if it was stopped.
    """
    pixels = as_pixels(picture)
    (caption,) = pipe.caption([pixels])
    asked = Turn("user", (0, SIMILAR))
    images = (Image(pixels, caption), Image(np.zeros((0, 0, 3), np.uint8), caption))
    sample = Sample("similar", "edit", "tasks", (asked, Turn("assistant", (SIMILAR, 1))), images)
    replier = pipe.replier(draw=_settings(pipe, draw))
    return _at_seeds(pipe, replier, sample, seeds, "reply", stop)


def story(pipe: M2ChatPipeline, opener: str, frames: int = 4, seed: int = 0, **settings: Any) -> Story:
    """A story from one opening line (paper, Fig. 3): each part is told and drawn in view of the one before.

    Args:
        pipe: Replies.
        opener: The first line.
        frames: Parts.
        seed: Of the pictures; the comparison has one seed for all of its pictures, as the paper's.
        settings: As for `SessionSettings`.

    Raises:
        UserError: If there shall be no part.
    """
    session = pipe.session(seed=seed, image="force", max_images=1, **settings)
    parts = list(tell(session, opener, frames))
    return Story(opener, parts, alone(session, parts, seed))


def tell(session: Session, opener: str, frames: int = 4) -> Iterator[PipelineOutput]:
    """The parts of a story, each as soon as it is drawn; `Session.stop` ends it.

    Args:
        session: Tells, and remembers the story.
        opener: The first line.
        frames: Parts.

    Raises:
        UserError: If there shall be no part.
    """
    if frames < 1:
        raise UserError(f"frames={frames}: a story has at least one part")
    for frame in range(frames):
        yield whole(session.go_on()) if frame else session.reply(opener)
        if session.is_stopped:
            return


def alone(session: Session, parts: Sequence[PipelineOutput], seed: int = 0) -> list[Picture]:
    """What the image decoder draws by itself from the captions of a story, all at one seed: the paper's comparison.

    Args:
        session: Which told it.
        parts: The story.
        seed: Of every picture.

    Returns:
        One for each picture of the story; none if the session is stopped.
    """
    captions = [part.caption for output in parts for part in output.segments if isinstance(part, ImagePart)]
    if not captions:
        return []
    own, pipe = session.settings, session.pipe
    draw = DrawSettings(own.steps, own.guidance, seed, own.size or pipe.image_size)
    return pipe.draw_captions(captions, [noise_seed(seed, "story")] * len(captions), draw, session.stopping)


def dialogue(
    pipe: M2ChatPipeline, lines: Sequence[str | tuple[str, Any]], seed: int | None = None, **settings: Any
) -> list[PipelineOutput]:
    """A multimodal dialogue: what is said, one after the other, and the replies to it.

    Args:
        pipe: Replies.
        lines: Texts, or a text and the picture that is shown with it.
        seed: Of every reply; None takes another each time.
        settings: As for `SessionSettings`.
    """
    session = pipe.session(seed=seed, **settings)
    replies = []
    for line in lines:
        text, picture = line if isinstance(line, tuple) else (line, None)
        replies.append(session.reply(text, () if picture is None else (picture,)))
    return replies


def _settings(pipe: M2ChatPipeline, draw: dict[str, Any]) -> DrawSettings:
    return DrawSettings(**{"size": pipe.image_size, **draw})


def _at_seeds(
    pipe: M2ChatPipeline, replier: Replier, sample: Sample, seeds: Sequence[int], given: Given, stop: Event | None
) -> list[PipelineOutput]:
    """The reply to turn 0 of a conversation, its pictures once for each seed; nothing if it was stopped."""
    batch = waiting([sample] * len(seeds), pipe.vision, pipe.device, [1] * len(seeds))
    done = finish(in_turns(replier.pieces(batch, given, seeds), pipe.lock, stop))
    if done is None:
        return []
    return [output_of(reply, {**note, "seed": seed}, "pil") for reply, note, seed in zip(*done, seeds, strict=True)]
