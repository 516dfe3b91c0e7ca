"""What happens behind the conversation of the web page."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache, save_img_array_to_cache
from gradio.utils import get_upload_folder

from m2chat.app.rendering import Growing, Message, Shelf, asked, figure_of, messages
from m2chat.app.uploads import pack_session, read_picture, unpack_session
from m2chat.data.images import load_image
from m2chat.errors import UserError
from m2chat.pipeline import Event, M2ChatPipeline, Session, Words
from m2chat.pipeline.lens import Lens, charts, look_inside, strip
from m2chat.schema import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Readings: TypeAlias = Callable[[Lens], Sequence[Mapping[str, str]] | None]
"""What a judge reads in the pictures of a lens."""
Shown: TypeAlias = tuple[Session, list[Message], Any]
"""The session, its messages, and the box of words as it shall be."""
_PAUSE = 0.1
"""Seconds between two looks at growing words: a page that is drawn at every token only gets slower."""


def complaint(error: UserError) -> gr.Error:
    """A mistake of the user's as the page tells it; a message may quote the user, and stays text."""
    return gr.Error(escape(str(error)), title="That does not work", print_exception=False)


def uploaded(files: Sequence[str] | None) -> list[Picture]:
    """The pictures of a box of words, decoded."""
    return [read_picture(Path(path).read_bytes()) for path in files or ()]


class Talk:
    """The handlers of one page; what is a user's own comes in as the session and goes out again.

    Args:
        pipe: Replies.
        shelf: Where pictures go for the page to show.
        readings: Reads the pictures of a lens; None where no judge knows the pictures.
        examples: What to say with a click: ``text`` and ``files`` each.
    """

    def __init__(
        self,
        pipe: M2ChatPipeline,
        shelf: Shelf,
        readings: Readings | None = None,
        examples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.pipe, self.shelf, self.readings, self.examples = pipe, shelf, readings, examples

    def say(self, session: Session | None, message: Mapping[str, Any], *settings: Any) -> Iterator[Shown]:
        """Says what is in the box, and follows the reply."""
        try:
            session = self.configured(session, *settings)
            text, pictures = message.get("text") or "", uploaded(message.get("files"))
            before = messages(session, self.shelf)
            count = len(session.images)
            events = session.stream(text, pictures)
            said = asked(text, pictures, count + 1, self.shelf)
            yield from self._follow(session, [*before, said], events, count + len(pictures), message)
        except UserError as error:
            raise complaint(error) from error

    def example(self, chosen: gr.SelectData, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """Says one of the examples: ours of that number, whatever the browser says of it."""
        if not isinstance(chosen.index, int) or not 0 <= chosen.index < len(self.examples):
            raise complaint(UserError("there is no such example"))
        yield from self.say(session, self.examples[chosen.index], *settings)

    def again(self, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """Another reply in the place of the last one."""
        try:
            session = self.configured(session, *settings)
            events = session.regenerate(seed=session.settings.seed)
            kept = len(session.turns) - 1
            before = messages(session, self.shelf, kept)
            count = sum(len(turn.pictures) for turn in session.turns[:kept])
            yield from self._follow(session, before, events, count)
        except UserError as error:
            raise complaint(error) from error

    def go_on(self, session: Session | None, *settings: Any) -> Iterator[Shown]:
        """The other side speaks again."""
        try:
            session = self.configured(session, *settings)
            events = session.go_on()
            yield from self._follow(session, messages(session, self.shelf), events, len(session.images))
        except UserError as error:
            raise complaint(error) from error

    def undo(self, session: Session | None) -> Shown:
        """Takes the last turn back; its words return into the box."""
        try:
            session = session or self.pipe.session()
            session.stop()
            said = session.undo()
        except UserError as error:
            raise complaint(error) from error
        return session, messages(session, self.shelf), gr.update(value={"text": said, "files": []})

    def new(self, session: Session | None) -> Shown:
        """A new conversation."""
        stop(session)
        return self.pipe.session(), [], gr.update(value=None)

    def save(self, session: Session | None) -> str:
        """A zip file of the session."""
        try:
            if session is None or not session.turns:
                raise UserError("there is nothing to save yet: say something first")
            name = f"m2chat-{time.strftime('%Y%m%d-%H%M%S')}.zip"
            return str(save_bytes_to_cache(pack_session(session), name, get_upload_folder()))
        except UserError as error:
            raise complaint(error) from error

    def load(self, session: Session | None, path: str) -> Shown:
        """A session that was saved, in the place of the present one."""
        try:
            loaded = unpack_session(self.pipe, Path(path).read_bytes())
        except UserError as error:
            raise complaint(error) from error
        stop(session)
        return loaded, messages(loaded, self.shelf), gr.update(value=None)

    def look(self, session: Session | None) -> tuple[str, str, str]:
        """The inside of the newest reply that has a picture: layers, plots, and a sentence on it."""
        try:
            turns = session.turns if session is not None else ()
            drawn = [k for k, turn in enumerate(turns) if turn.role == "assistant" and turn.pictures]
            if session is None or not drawn:
                raise UserError("there is no picture to look into yet: ask for one first")
            lens = look_inside(session, drawn[-1])
        except UserError as error:
            raise complaint(error) from error
        readings = self.readings(lens) if self.readings else None
        layers = "".join(
            figure_of(self.shelf, pixels, f"{title}\n{said}".strip())
            for pixels, title, said in strip(lens, readings)
            if pixels is not None
        )
        plots = "".join(figure_of(self.shelf, _pixels(plot), name) for name, plot in charts(lens, readings).items())
        gate = f"gate {lens.gates[-1]:.2f} (1: the words alone, 0: the picture alone)"
        return layers, plots, f"“{lens.answer}” was drawn from “{lens.caption}”, {gate}."

    def configured(self, session: Session | None, image: str, max_images: int, steps: int, guidance: float,
                   seed: float | None, temperature: float, max_new_tokens: int) -> Session:  # fmt: skip
        """The user's session, made with the first words, with the settings of the page."""
        session = session or self.pipe.session()
        session.configure(
            image=image,
            max_images=int(max_images),
            steps=int(steps),
            guidance=float(guidance),
            seed=None if seed is None or seed < 0 else int(seed),
            temperature=float(temperature),
            max_new_tokens=int(max_new_tokens),
            size=None,
            preview_every=5,
            top_p=0.75,
        )
        return session

    def _follow(self, session: Session, before: list[Message], events: Iterator[Event], pictures: int,
                message: Mapping[str, Any] | None = None) -> Iterator[Shown]:  # fmt: skip
        """Shows a reply as it grows, and in the end what the session holds; a message leaves the box meanwhile."""
        reply, turns = Growing(self.shelf, pictures + 1), session.turns
        yield session, [*before, reply.message()], gr.skip() if message is None else gr.update(value=None)
        seen = time.monotonic()
        for event in events:
            is_new = reply.add(event)
            if is_new and (not isinstance(event, Words) or time.monotonic() - seen > _PAUSE):
                yield session, [*before, reply.message()], gr.skip()
                seen = time.monotonic()
        if session.turns != turns or message is None:
            yield session, messages(session, self.shelf), gr.skip()
        else:  # stopped before there was anything to keep: the words go back into the box
            gr.Info("stopped before anything was said")
            yield session, messages(session, self.shelf), gr.update(value=dict(message))


def _pixels(plot: Figure) -> Picture:
    """A plot as a picture, sharp enough for two pixels a point of the page."""
    buffer = io.BytesIO()
    plot.savefig(buffer, dpi=160, format="png")
    return load_image(buffer.getvalue())


def stop(session: Session | None) -> None:
    """Ends the reply that is under way, if there is one."""
    if session is not None:
        session.stop()


def as_shelf(component: Any) -> Shelf:
    """A shelf in gradio's cache: only who knows a picture can name its file there, and old files go away.

    A picture is written once: a reply that grows shows it again and again, and a file that is written anew while a
    browser fetches it would reach it cut.

    Args:
        component: Of the page, among whose files they count.
    """
    written: dict[bytes, str] = {}
    lock = threading.Lock()

    def put(pixels: Picture) -> str:
        pixels = np.ascontiguousarray(pixels)
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        with lock:
            if key not in written or not Path(written[key]).is_file():
                written[key] = str(save_img_array_to_cache(pixels, component.GRADIO_CACHE, format="png"))
                component.temp_files.add(written[key])
            return written[key]

    return put
