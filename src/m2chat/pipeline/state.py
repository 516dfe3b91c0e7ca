"""The state of a session: its settings, and its conversation with notes of the replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from m2chat.pipeline.base import MAX_NEW_TOKENS, PipelineBase
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.replier import ImageMode
from m2chat.schema import Conversation


@dataclass(frozen=True)
class SessionSettings:
    """Settings of all replies of a session.

    Args:
        image: Whether replies have pictures: ``auto``, ``force``, ``never``.
        max_images: Maximum number of pictures in a reply.
        seed: Seed of every reply; None draws another one for each.
        steps: Denoising steps; None for the image decoder's, 25 unless a preset has others.
        guidance: Scale of classifier-free guidance; None as for `steps`, 5.
        size: Side of the pictures in pixels; None for the model's.
        preview_every: Denoising steps between two previews of a picture; 0 for none.
        max_new_tokens: Maximum length of an answer, in tokens.
        max_caption_tokens: Maximum length of a caption, in tokens; a caption that is cut there is not drawn.
        temperature: Temperature of text sampling; 0 decodes greedily.
        top_p: Cumulative probability of nucleus sampling, 0-1.
        height: Height of the pictures in pixels, in place of `size`.
        width: Width of the pictures in pixels, in place of `size`.
    """

    image: ImageMode = "auto"
    max_images: int = 4
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    preview_every: int = 5
    max_new_tokens: int = MAX_NEW_TOKENS
    max_caption_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 0.75
    height: int | None = None
    width: int | None = None

    def drawing(self, pipe: PipelineBase, seed: int) -> DrawSettings:
        """Settings of the drawing of a reply.

        Raises:
            UserError: If the pipeline cannot draw so.
        """
        return pipe.draw_settings(
            self.steps, self.guidance, seed, self.size, self.preview_every, self.height, self.width
        )


@dataclass(frozen=True)
class SessionState:
    """A conversation with the notes of its replies.

    Args:
        conversation: Turns and pictures, numbered in the order of the turns.
        notes: One per turn: ``seed``, ``image``, ``max_images``, ``gate``, ``cosine``, ``cut_tokens``, ``stopped`` of a
            reply, and ``finish_reason`` of one that a limit has cut; empty for a turn of the user.
    """

    # The name decides the noise of pictures: it is the same in all sessions, so that a seed gives the same picture.
    conversation: Conversation = field(default_factory=lambda: Conversation("session", ()))
    notes: tuple[dict[str, Any], ...] = ()

    def until(self, turn: int) -> SessionState:
        """The state before a turn."""
        return SessionState(self.conversation.until(turn), self.notes[:turn])
