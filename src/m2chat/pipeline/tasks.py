"""The paper's tasks, each a function on top of a pipeline (paper, Figs. 1, 3, 4, 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from m2chat.errors import UserError
from m2chat.models.denoising import Denoising, OnStep
from m2chat.pipeline.base import PipelineBase
from m2chat.pipeline.candidates import best_of
from m2chat.pipeline.drawing import noise_seed
from m2chat.pipeline.events import Progress, finish, in_turns
from m2chat.pipeline.inputs import as_pixels, checked_text, waiting
from m2chat.pipeline.outputs import PipelineOutput, output_of, whole
from m2chat.pipeline.replier import Given, Replier
from m2chat.pipeline.session import Session
from m2chat.schema import Conversation, Image, Picture, Segment, Turn

SIMILAR = "a similar picture"
"""Request for another picture of the same kind (paper, Fig. 6)."""
WISH_GUIDANCE = 2.0
"""Guidance scale of wishes: a higher one draws what the wish leaves open always in the same way."""


@dataclass(frozen=True)
class Story:
    """A story (paper, Fig. 3).

    Args:
        opener: First line, from the user.
        parts: Replies, one per part.
        decoder_alone: Pictures that the image decoder draws by itself from the same captions, all at one seed, for
            comparison.
    """

    opener: str
    parts: list[PipelineOutput]
    decoder_alone: list[Picture]


def text_to_image(
    pipe: PipelineBase, prompt: str, seeds: Sequence[int] = (0,), stop: Event | None = None, **draw: Any
) -> list[PipelineOutput]:
    """Text-to-image: draws a prompt as it is, once for each seed.

    Args:
        pipe: Pipeline.
        prompt: Caption of the pictures.
        seeds: Seed of each picture.
        stop: Event that ends the work before its next token or denoising step; may be set from any thread.
        draw: ``steps``, ``guidance``, ``size``, ``height``, ``width`` of `PipelineBase.draw_settings`.

    Returns:
        One output per seed; none if it was stopped.

    Raises:
        UserError: If the prompt is no text, or a setting is out of its range.
    """
    prompt = checked_text(prompt, "prompt")
    conversation = Conversation("draw", (Turn("user", (prompt,)),), to_draw=(Segment("", prompt),))
    return _at_seeds(pipe, pipe.replier(draw=pipe.draw_settings(**draw)), conversation, seeds, "caption", stop)


def wish(
    pipe: PipelineBase,
    text: str,
    seeds: Sequence[int] = (0, 1, 2, 3),
    stop: Event | None = None,
    candidates: int = 2,
    **draw: Any,
) -> list[PipelineOutput]:
    """Chat-based generation: the model writes a caption for a vague wish and draws it, once for each seed.

    Args:
        pipe: Pipeline.
        text: Wish.
        seeds: Seed of each picture.
        stop: Event that ends the work, as for `text_to_image`.
        candidates: Pictures drawn for each seed, of which the one with the lowest denoising error is kept: with little
            guidance a picture is broken now and then.
        draw: ``steps``, ``guidance``, ``size``, ``height``, ``width`` of `PipelineBase.draw_settings`; ``guidance`` is
            `WISH_GUIDANCE` by default, or that of a preset of few steps.

    Returns:
        One output per seed; none if it was stopped before each seed had a candidate.

    Raises:
        UserError: If `candidates` is below 1.
    """
    if candidates < 1:
        raise UserError(f"candidates={candidates}: draw at least one picture for each seed")
    conversation = Conversation("wish", (Turn("user", (checked_text(text, "text"),)),))
    guidance = min(WISH_GUIDANCE, pipe.model.decoder.config.guidance)
    replier = pipe.replier("force", 1, pipe.draw_settings(**{"guidance": guidance, **draw}))
    rounds = []
    for number in range(candidates):  # one round after another, so that a batch has no more pictures than seeds
        round_seeds = [noise_seed(seed, f"candidate {number}") if number else seed for seed in seeds]
        drawn = _at_seeds(pipe, replier, conversation, round_seeds, "nothing", stop)
        if not drawn:
            break
        rounds.append(drawn)
    if not rounds:
        return []
    return [replace(best_of(pipe, outputs), seed=seed) for seed, *outputs in zip(seeds, *rounds, strict=True)]


def edit(
    pipe: PipelineBase, picture: Any, instructions: Sequence[str], seed: int = 0, **settings: Any
) -> list[PipelineOutput]:
    """Multi-round editing (paper, Figs. 1 and 6): each instruction changes the picture of the round before.

    Args:
        pipe: Pipeline.
        picture: First picture: a Pillow picture, or RGB uint8 (H, W, 3).
        instructions: Changes, or `SIMILAR` for another picture of the same kind.
        seed: Seed of the replies.
        settings: Further settings of `SessionSettings`.

    Raises:
        UserError: If there is no instruction.
    """
    return list(edit_rounds(Session(pipe, seed=seed, **settings), picture, instructions))


def edit_rounds(session: Session, picture: Any, instructions: Sequence[str]) -> Iterator[PipelineOutput]:
    """The rounds of an edit, each as soon as it is drawn; `Session.stop` ends it.

    Args:
        session: Session that replies.
        picture: First picture: a Pillow picture, or RGB uint8 (H, W, 3).
        instructions: Changes, as for `changes`.
    """
    shown: tuple[Any, ...] = (picture,)
    for instruction in changes(instructions):
        yield session.edit(instruction, images=shown)
        if session.is_stopped:
            return
        shown = ()


def changes(instructions: Sequence[str]) -> list[str]:
    """The instructions that are not blank, stripped.

    Raises:
        UserError: If there is none.
    """
    lines = [line.strip() for line in instructions if line.strip()]
    if not lines:
        raise UserError("instructions: name at least one change, such as 'paint it red', one a line")
    return lines


def similar(
    pipe: PipelineBase, picture: Any, seeds: Sequence[int] = (0,), stop: Event | None = None, **draw: Any
) -> list[PipelineOutput]:
    """Pictures similar to one (paper, Fig. 6): the model's caption of it, drawn with the picture as context.

    Args:
        pipe: Pipeline.
        picture: A Pillow picture, or RGB uint8 (H, W, 3).
        seeds: Seed of each picture.
        stop: Event that ends the work, as for `text_to_image`.
        draw: ``steps``, ``guidance``, ``size``, ``height``, ``width`` of `PipelineBase.draw_settings`.

    Returns:
        One output per seed; none if it was stopped.
    """
    pixels = as_pixels(picture)
    (caption,) = pipe.caption([pixels])
    asked = Turn("user", (0, SIMILAR))
    conversation = Conversation("similar", (asked,), (Image(pixels, caption),), (Segment(SIMILAR, caption),))
    return _at_seeds(pipe, pipe.replier(draw=pipe.draw_settings(**draw)), conversation, seeds, "reply", stop)


def story(pipe: PipelineBase, opener: str, frames: int = 4, seed: int = 0, **settings: Any) -> Story:
    """A story from one opening line (paper, Fig. 3): each part has the picture of the one before as context.

    Args:
        pipe: Pipeline.
        opener: First line.
        frames: Number of parts.
        seed: Seed of the pictures; the comparison uses it for all of its pictures, as the paper's does.
        settings: Further settings of `SessionSettings`.

    Raises:
        UserError: If `frames` is below 1.
    """
    session = Session(pipe, seed=seed, image="force", max_images=1, **settings)
    parts = list(story_parts(session, opener, frames))
    return Story(opener, parts, decoder_alone(session, parts, seed))


def story_parts(session: Session, opener: str, frames: int = 4) -> Iterator[PipelineOutput]:
    """The parts of a story, each as soon as it is drawn; `Session.stop` ends it.

    Args:
        session: Session that replies.
        opener: First line.
        frames: Number of parts.

    Raises:
        UserError: If `frames` is below 1.
    """
    if frames < 1:
        raise UserError(f"frames={frames}: a story has at least one part")
    for frame in range(frames):
        yield whole(session.go_on()) if frame else session.reply(opener)
        if session.is_stopped:
            return


def decoder_alone(session: Session, parts: Sequence[PipelineOutput], seed: int = 0) -> list[Picture]:
    """Pictures by the image decoder alone from the captions of a story, all at one seed: the paper's comparison.

    Args:
        session: Session of the story.
        parts: Parts of the story.
        seed: Seed of every picture.

    Returns:
        One for each picture of the story; none if the session is stopped.
    """
    captions = [picture.caption for part in parts for picture in part.pictures]
    if not captions:
        return []
    settings, pipe = session.settings, session.pipe
    draw = settings.drawing(pipe, seed)
    return pipe.draw_captions(captions, [noise_seed(seed, "story")] * len(captions), draw, session.stopping)


def dialogue(
    pipe: PipelineBase, lines: Sequence[str | tuple[str, Any]], seed: int | None = None, **settings: Any
) -> list[PipelineOutput]:
    """A multimodal dialogue: the replies to messages that are sent one after another.

    Args:
        pipe: Pipeline.
        lines: Messages: a text, or a text and a picture.
        seed: Seed of every reply; None draws another one for each.
        settings: Further settings of `SessionSettings`.
    """
    session = Session(pipe, seed=seed, **settings)
    replies = []
    for line in lines:
        text, picture = line if isinstance(line, tuple) else (line, None)
        replies.append(session.reply(text, () if picture is None else (picture,)))
    return replies


def _at_seeds(
    pipe: PipelineBase,
    replier: Replier,
    conversation: Conversation,
    seeds: Sequence[int],
    given: Given,
    stop: Event | None,
) -> list[PipelineOutput]:
    """The next reply of a conversation, once for each seed of its pictures; nothing if it was stopped.

    Raises:
        UserError: If there is no seed.
    """
    if not seeds:
        raise UserError("seeds: name at least one, such as [0]; each gives a picture")
    inputs = waiting([conversation] * len(seeds), pipe.vision, pipe.device)
    pieces = replier.pieces(inputs, given, seeds, _telling(pipe))
    result = finish(in_turns(pieces, pipe.lock, stop))
    if result is None:
        return []
    return [output_of(reply, {**note, "seed": seed}, "pil") for reply, note, seed in zip(*result, seeds, strict=True)]


def _telling(pipe: PipelineBase) -> OnStep | None:
    """Passes denoising steps on to the pipeline's listener, if there is one."""
    listener = pipe.listener
    if listener is None:
        return None

    def tell(state: Denoising) -> bool:
        listener(Progress(0, state.step, state.steps))
        return False

    return tell
