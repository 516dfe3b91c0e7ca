"""Event handlers of the conversation on the web page."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from m2chat.app.limits import Budget, require_affordable
from m2chat.app.uploads import pack_session, read_picture, unpack_session
from m2chat.app.widgets import GrowingReply, Message, PictureCache, figure_of, messages, user_message
from m2chat.data.images import load_image
from m2chat.errors import UserError
from m2chat.pipeline import Event, M2ChatPipeline, Session, Words
from m2chat.pipeline.lens import Lens, Readings, charts, look_inside, strip
from m2chat.schema import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LensReader: TypeAlias = Callable[[Lens], Readings]
"""What a judge reads from the pictures of a lens."""
Shown: TypeAlias = tuple[Session, list[Message], Any]
"""The session, its messages, and an update of the message box."""
_INTERVAL = 0.1
"""Seconds between two updates of growing text: a page that is updated at every token becomes slow."""


@contextmanager
def page_errors() -> Iterator[None]:
    """Shows mistakes of the user on the page; their text may quote the user, so it is escaped."""
    try:
        yield
    except UserError as error:
        raise gr.Error(escape(str(error)), title="That does not work", print_exception=False) from error


def uploaded(files: Sequence[str] | None) -> list[Picture]:
    """The pictures of a message box, decoded."""
    budget = Budget()
    return [read_picture(Path(path).read_bytes(), budget) for path in files or ()]


class ChatHandlers:
    """Handlers of one page; a user's session is an input and an output of each.

    Args:
        pipe: Pipeline.
        cache: Cache of pictures.
        readings: Judge of a lens' pictures; None where no judge knows the pictures.
        examples: Example messages: ``text`` and ``files`` each.
    """

    def __init__(
        self,
        pipe: M2ChatPipeline,
        cache: PictureCache,
        readings: LensReader | None = None,
        examples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.pipe, self.cache, self.readings, self.examples = pipe, cache, readings, examples

    def send(self, session: Session | None, message: Mapping[str, Any], *settings: Any) -> Iterator[Shown]:
        """Sends the message of the box, and shows the reply while it grows."""
        with page_errors():
            session = self.configured(session, *settings)
            text, pictures = message.get("text") or "", uploaded(message.get("files"))
            before = messages(session, self.cache)
            count = len(session.images)
            events = session.stream(text, pictures)
            asked = user_message(text, pictures, count + 1, self.cache)
            yield from self._follow(session, [*before, asked], events, count + len(pictures), message)

    def send_example(self, chosen: gr.SelectData, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """Sends an example: the server's of that number, not what the browser claims to be its content."""
        with page_errors():
            if not isinstance(chosen.index, int) or not 0 <= chosen.index < len(self.examples):
                raise UserError("there is no such example")
        yield from self.send(session, self.examples[chosen.index], *settings)

    def regenerate(self, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """Replaces the last reply."""
        with page_errors():
            session = self.configured(session, *settings)
            events = session.regenerate(seed=session.settings.seed)
            kept = len(session.turns) - 1
            count = len(session.state.until(kept).conversation.images)
            yield from self._follow(session, messages(session, self.cache, kept), events, count)

    def go_on(self, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """Generates another reply behind the last one."""
        with page_errors():
            session = self.configured(session, *settings)
            events = session.go_on()
            yield from self._follow(session, messages(session, self.cache), events, len(session.images))

    def undo(self, session: Session | None) -> Shown:
        """Removes the last message and its reply; its text returns into the box."""
        with page_errors():
            session = session or self.pipe.session()
            session.stop()
            text = session.undo()
        return session, messages(session, self.cache), gr.update(value={"text": text, "files": []})

    def new(self, session: Session | None) -> Shown:
        """Starts a new conversation."""
        stop(session)
        return self.pipe.session(), [], gr.update(value=None)

    def save(self, session: Session | None) -> str:
        """Path of a zip file of the session."""
        with page_errors():
            if session is None or not session.turns:
                raise UserError("there is nothing to save yet: say something first")
            name = f"m2chat-{time.strftime('%Y%m%d-%H%M%S')}.zip"
            return str(save_bytes_to_cache(pack_session(session), name, get_upload_folder()))

    def load(self, session: Session | None, path: str) -> Shown:
        """Replaces the session by a saved one."""
        with page_errors():
            loaded = unpack_session(self.pipe, Path(path).read_bytes())
        stop(session)
        return loaded, messages(loaded, self.cache), gr.update(value=None)

    def look(self, session: Session | None) -> tuple[str, str, Any]:
        """The lens of the newest reply with a picture: HTML of layers and plots, and a sentence about the reply."""
        with page_errors():
            turns = session.turns if session is not None else ()
            drawn = [k for k, turn in enumerate(turns) if turn.role == "assistant" and turn.pictures]
            if session is None or not drawn:
                raise UserError("there is no generated picture yet: ask for one first")
            lens = look_inside(session, drawn[-1])
        readings = self.readings(lens) if self.readings else None
        layers = "".join(
            figure_of(self.cache, pixels, f"{title}\n{lines}".strip())
            for pixels, title, lines in strip(lens, readings)
            if pixels is not None
        )
        plots = "".join(figure_of(self.cache, _pixels(plot), name) for name, plot in charts(lens, readings).items())
        gate = f"gate {lens.gates[-1]:.2f} (1: text alone, 0: context picture alone)"
        about = f"“{lens.answer}” was drawn from “{lens.caption}”, {gate}."
        return layers, plots, gr.update(value=about, visible=True)

    def configured(self, session: Session | None, image: str, max_images: int, steps: int, guidance: float,
                   seed: float | None, temperature: float, max_new_tokens: int, height: float | None = None,
                   width: float | None = None) -> Session:  # fmt: skip
        """The user's session, made at the first message, with the settings of the page.

        Raises:
            UserError: If the pictures would be too large for a server.
        """
        session = session or self.pipe.session()
        sides = [None if side is None else int(side) for side in (height, width)]
        require_affordable(self.pipe, *sides)
        session.configure(
            image=image,
            max_images=int(max_images),
            steps=int(steps),
            guidance=float(guidance),
            seed=None if seed is None or seed < 0 else int(seed),
            temperature=float(temperature),
            max_new_tokens=int(max_new_tokens),
            # A loaded session may have other values of what the page does not show.
            size=None,
            height=sides[0],
            width=sides[1],
            preview_every=5,
            top_p=0.75,
            max_caption_tokens=64,
        )
        return session

    def _follow(self, session: Session, before: list[Message], events: Iterator[Event], pictures: int,
                message: Mapping[str, Any] | None = None) -> Iterator[Shown]:  # fmt: skip
        """Shows a reply while it grows.

        Args:
            session: Session that replies.
            before: Messages before the reply.
            events: Events of the reply.
            pictures: Number of pictures before the reply.
            message: Message of the box, which is emptied meanwhile; None if the box is left alone.
        """
        reply, turns = GrowingReply(self.cache, pictures + 1), session.turns
        yield session, [*before, reply.message()], gr.skip() if message is None else gr.update(value=None)
        updated = time.monotonic()
        for event in events:
            is_new = reply.add(event)
            if is_new and (not isinstance(event, Words) or time.monotonic() - updated > _INTERVAL):
                yield session, [*before, reply.message()], gr.skip()
                updated = time.monotonic()
        if session.turns != turns or message is None:
            yield session, messages(session, self.cache), gr.skip()
        else:  # stopped while the reply was empty: the message returns into the box
            gr.Info("stopped before the reply began")
            yield session, messages(session, self.cache), gr.update(value=dict(message))


def _pixels(plot: Figure) -> Picture:
    """A plot as a picture, with about two pixels per point of the page."""
    buffer = io.BytesIO()
    plot.savefig(buffer, dpi=160, format="png")
    return load_image(buffer.getvalue())


def stop(session: Session | None) -> None:
    """Stops the current reply of a session, if there is one."""
    if session is not None:
        session.stop()
