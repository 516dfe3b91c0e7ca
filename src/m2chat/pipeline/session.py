"""A conversation that remembers its words and pictures."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m2chat.errors import UserError
from m2chat.pipeline.events import Draft, Event, Finished
from m2chat.pipeline.inputs import as_pixels, waiting
from m2chat.pipeline.outputs import PipelineOutput, output_of
from m2chat.pipeline.plan import ImageMode, Plan, SessionSettings, as_turn, pictures_in
from m2chat.pipeline.replier import DrawSettings
from m2chat.pipeline.turns import in_turns
from m2chat.schema import Image, Role, Sample, Turn

if TYPE_CHECKING:
    from m2chat.pipeline.pipeline import M2ChatPipeline

_PICTURE = re.compile(r"\bpicture (\d{1,4})\b", re.IGNORECASE)
"""How a user speaks of an earlier picture: by its number."""


class Session:
    """A conversation. Several share one pipeline and never see each other.

    Pictures are numbered from 1 in the order in which they were shown or drawn, and every one stays: "picture 2" in a
    text, or ``picture=2``, refers to it; otherwise a reply looks at the newest.

    Args:
        pipe: Replies.
        settings: Keyword arguments of `SessionSettings`.
    """

    def __init__(self, pipe: M2ChatPipeline, **settings: Any) -> None:
        self.pipe = pipe
        self.settings = SessionSettings(**settings)
        self.turns: tuple[Turn, ...] = ()
        self.images: tuple[Image, ...] = ()
        self.notes: tuple[dict[str, Any], ...] = ()
        """One a turn: ``seed``, ``gate``, ``cosine``, ``cut_tokens``, ``stopped`` of replies, empty for the user's."""
        self.stopping = threading.Event()
        """Set by `stop`; a new one for each reply."""
        self._running: Iterator[Event] | None = None

    # To reply

    def stream(
        self,
        text: str,
        images: Sequence[Any] = (),
        *,
        image: ImageMode | None = None,
        max_images: int | None = None,
        seed: int | None = None,
        picture: int | None = None,
    ) -> Iterator[Event]:
        """Says something and listens to the reply; the session changes when the last event has come.

        Args:
            text: What the user says.
            images: What the user shows: Pillow pictures, or RGB uint8 (H, W, 3).
            image: Whether there will be pictures; None as in the settings.
            max_images: Most pictures; None as in the settings.
            seed: Of this reply; None as in the settings.
            picture: Number of the picture that the text refers to, from 1; None reads it from the text, else it is
                the newest.

        Returns:
            Events; the last is `Finished`. A listener who closes it stops the reply.

        Raises:
            UserError: If nothing is said or shown, or there is no such picture, or a reply is under way elsewhere.
        """
        shown = tuple(Image(as_pixels(item)) for item in images)
        if not text.strip() and not shown:
            raise UserError("text: say something, or show a picture")
        known = len(self.images) + len(shown)
        if picture is None and (named := _PICTURE.search(text)) and 1 <= int(named[1]) <= known:
            picture = int(named[1])
        if picture is not None and not 1 <= picture <= known:
            raise UserError(f"picture={picture}: this session has {known} pictures, numbered from 1")
        numbers = range(len(self.images), known)
        asked = Turn("user", (*numbers, text.strip()), context=None if picture is None else picture - 1)
        return self._start((*self.turns, asked), (*self.images, *shown), (*self.notes, {}), image, max_images, seed)

    def go_on(self, **kwargs: Any) -> Iterator[Event]:
        """Lets the other side speak again, as the next part of a story; arguments as for `stream`.

        Raises:
            UserError: If nothing has been said yet.
        """
        if not self.turns:
            raise UserError("there is nothing to go on from: say something first")
        options = {"image": None, "max_images": None, "seed": None, **kwargs}
        return self._start(self.turns, self.images, self.notes, **options)

    def reply(self, text: str, images: Sequence[Any] = (), **kwargs: Any) -> PipelineOutput:
        """Says something and waits for the whole reply; arguments as for `stream`."""
        return whole(self.stream(text, images, **kwargs))

    def edit(self, instruction: str, picture: int | None = None, **kwargs: Any) -> PipelineOutput:
        """Has a picture changed: a reply that must draw.

        Args:
            instruction: The change.
            picture: Number of the picture; None for the newest.
            kwargs: As for `stream`.
        """
        return self.reply(instruction, picture=picture, **{"image": "force", "max_images": 1, **kwargs})

    def regenerate(self, text: str | None = None, seed: int | None = None) -> Iterator[Event]:
        """Replies to the last turn anew; the old reply stays until the new one is there.

        Args:
            text: Other words in place of the user's last ones.
            seed: Of the new reply; None takes another than before.

        Raises:
            UserError: If there is no reply yet.
        """
        last = len(self.turns) - 1
        if last < 1:
            raise UserError("there is no reply to make anew: say something first")
        if text is not None:
            last = max(i for i, turn in enumerate(self.turns) if turn.role == "user") + 1
        turns, note = self.turns[:last], self.notes[last]
        if text is not None:
            asked = turns[-1]
            turns = (*turns[:-1], replace(asked, parts=(*asked.pictures, text.strip())))
        images = self.images[: pictures_in(turns)]
        seed = secrets.randbelow(2**31) if seed is None else seed
        return self._start(turns, images, self.notes[:last], note["image"], note["max_images"], seed)

    def stop(self) -> None:
        """Ends the reply that is under way, from any thread, before its next token or denoising step.

        What has been said, and pictures that are ready, stay.
        """
        self.stopping.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called since the newest reply was begun."""
        return self.stopping.is_set()

    # The conversation

    def messages(self) -> list[tuple[Role, list[str | Image]]]:
        """Who said and showed what: texts and pictures of every turn in their order."""
        return [
            (turn.role, [self.images[part] if isinstance(part, int) else part for part in turn.parts])
            for turn in self.turns
        ]

    def undo(self) -> str:
        """Forgets the user's last turn and what came of it.

        Returns:
            What the user had said.

        Raises:
            UserError: If nothing has been said.
        """
        asked = max((i for i, turn in enumerate(self.turns) if turn.role == "user"), default=None)
        if asked is None:
            raise UserError("there is nothing to undo")
        said = self.turns[asked].text
        self.turns, self.notes = self.turns[:asked], self.notes[:asked]
        self.images = self.images[: pictures_in(self.turns)]
        return said

    def configure(self, **settings: Any) -> None:
        """Changes settings for the replies to come; arguments as for `SessionSettings`."""
        self.settings = replace(self.settings, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the session into a folder: JSON and PNGs."""
        from m2chat.pipeline.store import save_session

        save_session(self, Path(folder))

    @classmethod
    def load(cls, pipe: M2ChatPipeline, folder: str | Path) -> Session:
        """Reads a session that was saved; the same seeded turn then gives the same text and pixels.

        Raises:
            UserError: If the folder holds no session, or a damaged one.
        """
        from m2chat.pipeline.store import load_session

        return load_session(pipe, Path(folder))

    # At work

    def _start(
        self,
        turns: tuple[Turn, ...],
        images: tuple[Image, ...],
        notes: tuple[dict[str, Any], ...],
        image: ImageMode | None,
        max_images: int | None,
        seed: int | None,
    ) -> Iterator[Event]:
        own = self.settings
        seed = own.seed if seed is None else seed
        seed = secrets.randbelow(2**31) if seed is None else seed
        plan = Plan(turns, images, notes, image or own.image, max_images or own.max_images, seed)
        self.pipe.replier(plan.image, plan.max_images)  # refuses what cannot be, before anything runs
        if self._running is not None:
            try:  # a listener who went away without closing it left it waiting
                self._running.close()  # type: ignore[attr-defined]
            except ValueError as error:
                raise UserError("a reply is under way in this session: wait for it, or stop it first") from error
        self.stopping = threading.Event()
        self._running = self._run(plan, self.stopping)
        return self._running

    def _run(self, plan: Plan, stop: threading.Event) -> Iterator[Event]:
        """Makes a reply an event at a time, and keeps it."""
        draft = Draft()
        plan = self._described(plan)
        try:
            for event in in_turns(self._steps(plan), self.pipe.lock, stop):
                draft.add(event)
                yield event
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(plan, draft, stopped=True)
            raise
        yield self._keep(plan, draft, stopped=stop.is_set())

    def _described(self, plan: Plan) -> Plan:
        """The same with a caption for every picture that was shown without one."""
        blank = [k for k, item in enumerate(plan.images) if not item.caption]
        told = dict(zip(blank, self.pipe.caption([plan.images[k].pixels for k in blank]), strict=True))
        images = tuple(
            replace(item, caption=told[k], caption_by="model") if k in told else item
            for k, item in enumerate(plan.images)
        )
        return replace(plan, images=images)

    def _steps(self, plan: Plan) -> Generator[Event, None, None]:
        own = self.settings
        replier = self.pipe.replier(
            plan.image,
            plan.max_images,
            DrawSettings(own.steps, own.guidance, plan.seed, own.size or self.pipe.image_size, own.preview_every),
            own.max_new_tokens,
            own.temperature,
            own.top_p,
        )
        sample = Sample("session", "dialogue", "session", plan.turns, plan.images)
        batch = waiting([sample], self.pipe.vision, self.pipe.device)
        return replier.stream(batch, seed=plan.seed, generator=torch.Generator().manual_seed(plan.seed))

    def _keep(self, plan: Plan, draft: Draft, stopped: bool) -> Finished:
        """Adds the reply to the session, unless it was stopped before there was any."""
        reply = draft.reply()
        note = {"seed": plan.seed, "image": plan.image, "max_images": plan.max_images, "stopped": stopped}
        note |= draft.note()
        self._running = None
        if reply.segments or not stopped:
            turn, images = as_turn(reply, plan.images)
            self.turns, self.images = (*plan.turns, turn), images
            self.notes = (*plan.notes, note)
        return Finished(reply, stopped, note)


def whole(events: Iterator[Event]) -> PipelineOutput:
    """Listens to a reply to its end."""
    *_, last = events
    assert isinstance(last, Finished)
    return output_of(last.reply, last.note, "pil")
