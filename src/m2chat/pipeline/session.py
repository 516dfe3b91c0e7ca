"""A conversation that remembers its texts and pictures."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from m2chat.errors import UserError
from m2chat.pipeline.base import PipelineBase
from m2chat.pipeline.events import Event, Finished, PartialReply, in_turns
from m2chat.pipeline.inputs import content_of, waiting
from m2chat.pipeline.outputs import PipelineOutput, whole
from m2chat.pipeline.replier import ImageMode
from m2chat.pipeline.saved_session import MAX_PIXELS, SavedSession, read_session, write_session
from m2chat.pipeline.state import SessionSettings, SessionState
from m2chat.pipeline.streaming import StreamingReplier
from m2chat.ranges import check_ranges
from m2chat.schema import Image, Role, Turn
from m2chat.text.layout import StoppedError

_LOG = logging.getLogger(__name__)
_PICTURE = re.compile(r"\bpicture (\d{1,4})\b", re.IGNORECASE)
"""A reference to an earlier picture by its number."""


class Session:
    """A conversation with one user. Several sessions share one pipeline, independently of each other.

    Pictures are numbered from 1 in the order in which they were shown or drawn, and all are kept: "picture 2" in a
    text, or ``picture=2``, refers to one; otherwise the newest is the context picture of a reply.

    Args:
        pipe: Pipeline that generates the replies.
        settings: Keyword arguments of `SessionSettings`.
    """

    def __init__(self, pipe: PipelineBase, **settings: Any) -> None:
        self.pipe = pipe
        self.settings = SessionSettings(**settings)
        self.state = SessionState()
        self.stopping = threading.Event()
        """Set by `stop`; a new one for each reply."""
        self._running: Iterator[Event] | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, oldest first."""
        return self.state.conversation.turns

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures."""
        return self.state.conversation.images

    @property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """Notes of the replies, one per turn; see `SessionState`."""
        return self.state.notes

    def __repr__(self) -> str:
        return f"Session({len(self.turns)} turns, {len(self.images)} pictures)"

    # Replies

    def stream(
        self,
        text: str | Sequence[Any],
        images: Sequence[Any] = (),
        *,
        image: ImageMode | None = None,
        max_images: int | None = None,
        seed: int | None = None,
        picture: int | None = None,
    ) -> Iterator[Event]:
        """Sends a message and yields the events of the reply; the session changes with the last event.

        Args:
            text: Text of the message, or its texts and pictures in their order.
            images: Pictures before the text: Pillow pictures, or RGB uint8 (H, W, 3).
            image: Whether the reply has pictures; None as in the settings.
            max_images: Maximum number of its pictures; None as in the settings.
            seed: Seed of this reply; None as in the settings.
            picture: Number of the picture to which the text refers, from 1; None takes the number that the text names,
                else the newest picture.

        Returns:
            Events; the last is `Finished`. Closing the iterator stops the reply.

        Raises:
            UserError: If the message is empty, there is no such picture, or another reply is being generated.
        """
        content = content_of(text, images)
        text = " ".join(part for part in content if isinstance(part, str))
        shown = tuple(part for part in content if isinstance(part, Image))
        known = len(self.images) + len(shown)
        if picture is None and (named := _PICTURE.search(text)) and 1 <= int(named[1]) <= known:
            picture = int(named[1])
        if picture is not None and not (isinstance(picture, int) and 1 <= picture <= known):
            raise UserError(f"picture={picture!r}: this session has {known} pictures, numbered from 1")
        numbers = iter(range(len(self.images), known))
        numbered = tuple(part.strip() if isinstance(part, str) else next(numbers) for part in content)
        asked = Turn("user", numbered, context=None if picture is None else picture - 1)
        before = self.state.conversation
        after = replace(before, turns=(*before.turns, asked), images=(*before.images, *shown))
        return self._start(SessionState(after, (*self.notes, {})), image, max_images, seed)

    def go_on(
        self, *, image: ImageMode | None = None, max_images: int | None = None, seed: int | None = None
    ) -> Iterator[Event]:
        """Generates another reply behind the last one, as the next part of a story; arguments as for `stream`.

        Raises:
            UserError: If the conversation is empty.
        """
        if not self.turns:
            raise UserError("there is nothing to continue: say something first")
        return self._start(self.state, image, max_images, seed)

    def reply(self, text: str | Sequence[Any], images: Sequence[Any] = (), **kwargs: Any) -> PipelineOutput:
        """Sends a message and waits for the whole reply; arguments as for `stream`."""
        return whole(self.stream(text, images, **kwargs))

    def edit(self, instruction: str, picture: int | None = None, **kwargs: Any) -> PipelineOutput:
        """Edits a picture: a reply with exactly one picture.

        Args:
            instruction: Text that describes the change.
            picture: Number of the picture; None for the newest.
            kwargs: Further arguments of `stream`.
        """
        return self.reply(instruction, picture=picture, **{"image": "force", "max_images": 1, **kwargs})

    def regenerate(self, text: str | None = None, seed: int | None = None) -> Iterator[Event]:
        """Replaces the last reply; the old one is kept until the new one is complete.

        Args:
            text: Text that replaces that of the user's last turn; None leaves it.
            seed: Seed of the new reply; None draws a new one.

        Raises:
            UserError: If there is no reply yet.
        """
        last = len(self.turns) - 1
        if last < 1:
            raise UserError("there is no reply to regenerate: say something first")
        if text is not None:
            last = max(i for i, turn in enumerate(self.turns) if turn.role == "user") + 1
        state, note = self.state.until(last), self.notes[last]
        if text is not None:
            *earlier, asked = state.conversation.turns
            changed = replace(asked, parts=(*asked.pictures, text.strip()))
            state = replace(state, conversation=replace(state.conversation, turns=(*earlier, changed)))
        seed = secrets.randbelow(2**31) if seed is None else seed
        return self._start(state, note["image"], note["max_images"], seed)

    def stop(self) -> None:
        """Stops the current reply, from any thread, before its next token or denoising step.

        Texts so far and finished pictures are kept.
        """
        self.stopping.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called since the newest reply was started."""
        return self.stopping.is_set()

    # Conversation

    def messages(self) -> list[tuple[Role, list[str | Image]]]:
        """Role, and texts and pictures in their order, of every turn."""
        return [
            (turn.role, [self.images[part] if isinstance(part, int) else part for part in turn.parts])
            for turn in self.turns
        ]

    def undo(self) -> str:
        """Removes the user's last turn and everything behind it.

        Returns:
            The text of that turn.

        Raises:
            UserError: If the conversation is empty.
        """
        asked = max((i for i, turn in enumerate(self.turns) if turn.role == "user"), default=None)
        if asked is None:
            raise UserError("there is nothing to undo")
        text = self.turns[asked].text
        self.state = self.state.until(asked)
        return text

    def configure(self, **settings: Any) -> None:
        """Changes settings of the next replies; arguments as for `SessionSettings`."""
        self.settings = replace(self.settings, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the session into a folder: JSON and PNGs.

        Raises:
            UserError: If it cannot be written.
        """
        write_session(SavedSession(self.state, self.settings, self.pipe.identity), Path(folder))

    @classmethod
    def load(cls, pipe: PipelineBase, folder: str | Path, max_pixels: int = MAX_PIXELS) -> Session:
        """Reads a saved session; a turn with the same seed then gives the same text and pixels.

        A line in the log states it if weights or image decoder are others than those that replied.

        Args:
            pipe: Pipeline of the session.
            folder: Folder of `save`.
            max_pixels: Maximum number of pixels of all pictures together.

        Raises:
            UserError: If the folder has no session, a damaged one, or one that is too large.
        """
        saved = read_session(Path(folder), max_pixels)
        session = cls(pipe)
        session.state, session.settings = saved.state, saved.settings
        weights = {name: value for name, value in saved.weights.items() if name != "decoder"}
        if not pipe.origin.is_known_as(weights):
            _LOG.warning("%s was held with other weights (%s): replies will differ", folder, weights)
        drew = saved.weights.get("decoder")  # sessions of earlier versions do not state it
        if drew is not None and (draws := pipe.identity.get("decoder", drew)) != drew:
            _LOG.warning(
                "%s was held with another image decoder, or other settings of it (%s; here %s): pictures will differ",
                folder, drew, draws,
            )  # fmt: skip
        return session

    # Generation

    def _start(
        self, state: SessionState, image: ImageMode | None, max_images: int | None, seed: int | None
    ) -> Iterator[Event]:
        """Checks the settings of a reply and starts it."""
        settings = self.settings
        seed = settings.seed if seed is None else seed
        seed = secrets.randbelow(2**31) if seed is None else seed
        check_ranges(seed=seed)
        image = image or settings.image
        max_images = settings.max_images if max_images is None else max_images
        replier = self.pipe.replier(  # raises on a wrong setting before anything runs
            image,
            max_images,
            settings.drawing(self.pipe, seed),
            settings.max_new_tokens,
            settings.temperature,
            settings.top_p,
            settings.max_caption_tokens,
        )
        if self._running is not None:
            try:  # an iterator that was dropped without being closed is still suspended
                self._running.close()  # type: ignore[attr-defined]
            except ValueError as error:  # it is running in another thread
                raise UserError("a reply is under way in this session: wait for it, or stop it first") from error
        self.stopping = threading.Event()
        note = {"seed": seed, "image": image, "max_images": max_images}
        self._running = self._run(state, replier, note, self.stopping)
        return self._running

    def _run(
        self, state: SessionState, replier: StreamingReplier, note: dict[str, Any], stop: threading.Event
    ) -> Iterator[Event]:
        """Yields the events of a reply, and adds it to the session.

        Args:
            state: Conversation before the reply, and its notes.
            replier: Generates the reply.
            note: Seed of the reply, and whether and how many pictures it has.
            stop: Event that ends it.
        """
        partial, seed = PartialReply(), note["seed"]
        state = replace(state, conversation=self.pipe.captioned(state.conversation))
        try:
            inputs = waiting([state.conversation], self.pipe.vision, self.pipe.device)
            generator = torch.Generator().manual_seed(seed)
            # A long conversation takes long to tokenise: without the lock, and until nobody waits for it.
            with suppress(StoppedError):
                events = replier.stream(inputs, seed=seed, generator=generator, is_stopped=stop.is_set)
                for event in in_turns(events, self.pipe.lock, stop):
                    partial.add(event)
                    if self.pipe.listener is not None:
                        self.pipe.listener(event)
                    yield event
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(state, partial, {**note, "stopped": True})
            raise
        yield self._keep(state, partial, {**note, "stopped": stop.is_set()})

    def _keep(self, state: SessionState, partial: PartialReply, note: dict[str, Any]) -> Finished:
        """Adds the reply to the session, unless it was stopped while it was empty."""
        reply, note = partial.reply(), note | partial.note()
        self._running = None
        if reply.segments or not note["stopped"]:
            self.state = SessionState(state.conversation.with_reply(reply), (*state.notes, note))
        return Finished(reply, note["stopped"], note)
