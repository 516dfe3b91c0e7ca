"""Parts of the web page: messages with pictures, text boxes, buttons, examples."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import gradio as gr
import numpy as np
from gradio.processing_utils import save_img_array_to_cache

from m2chat.pipeline import Drawn, Event, M2ChatPipeline, Notice, Progress, Session, Words
from m2chat.schema import Picture
from m2chat.world import Example

PictureCache: TypeAlias = Callable[[Picture], str]
"""Writes a picture to a file that the page can show, and returns its path."""
Message: TypeAlias = dict[str, Any]
"""A message of gradio's `Chatbot`: ``role`` and ``content``."""
Examples: TypeAlias = Mapping[str, Sequence[dict[str, Any]]]
"""Examples by task, as a message box holds them: ``text`` and ``files``."""
CURSOR = "▍"
AT_ONCE = 4
"""Replies that are generated at a time; they alternate by tokens and denoising steps."""
WAITING = 32
"""Requests that may wait; further ones are refused."""
QUEUED: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": AT_ONCE,
    "api_visibility": "private",
    "show_progress": "hidden",
}
"""Options of events that use the model."""
UNQUEUED: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
"""Options of events that must not wait behind the model."""


def picture_cache(component: Any) -> PictureCache:
    """A cache in gradio's folder of temporary files: a file's name cannot be guessed, and old files are deleted.

    A picture is written once. A growing reply shows it again and again, and a file that is rewritten while a browser
    fetches it would arrive truncated.

    Args:
        component: Component of the page to which the files belong.
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


# Messages


def figure_of(cache: PictureCache, pixels: Picture, caption: str) -> str:
    """HTML of a picture with a caption, which is also its alternative text."""
    url, line = f"./gradio_api/file={quote(cache(pixels))}", escape(caption)
    height, width = pixels.shape[:2]  # the page reserves the place of a picture before it has come
    sizes = f'width="{width}" height="{height}"'
    link = f'<a href="{url}" target="_blank"><img src="{url}" alt="{line}" {sizes}></a>'
    return f"<figure>{link}<figcaption>{line}</figcaption></figure>"


def plain(text: str) -> str:
    """Text of a user or the model, escaped: the page shows text as text, never as markup."""
    return escape(text, quote=False)


def _picture(cache: PictureCache, pixels: Picture, caption: str) -> gr.HTML:
    return gr.HTML(figure_of(cache, pixels, caption), padding=False)


def _remark(text: str) -> gr.HTML:
    """A remark about the conversation that is not part of it."""
    return gr.HTML(f'<p class="remark" role="status">{escape(text)}</p>', padding=False)


def _with_gate(line: str, gate: float | None) -> str:
    return line if gate is None else f"{line} · gate {gate:.2f}"


def messages(session: Session, cache: PictureCache, turns: int | None = None) -> list[Message]:
    """The messages of a session.

    Args:
        session: Session.
        cache: Cache of pictures.
        turns: Number of turns to show; None for all.
    """
    shown: list[Message] = []
    for turn, note in list(zip(session.turns, session.notes, strict=True))[:turns]:
        gates = iter(note.get("gate", ()))
        content: list[Any] = []
        for part in turn.parts:
            if isinstance(part, str):
                content += [plain(part)] if part.strip() else []
                continue
            image = session.images[part]
            line = f"Picture {part + 1}: {image.caption}"
            content.append(_picture(cache, image.pixels, _with_gate(line, next(gates, None))))
        if note.get("cut_tokens"):
            content.append(_remark(f"{note['cut_tokens']} tokens did not fit: the oldest turns were left out."))
        if note.get("finish_reason") == "length":
            content.append(_remark("cut at the maximum length of an answer or a caption"))
        if note.get("stopped"):
            content.append(_remark("stopped"))
        shown.append({"role": turn.role, "content": content or ["…"]})
    return shown


def user_message(text: str, pictures: Sequence[Picture], first: int, cache: PictureCache) -> Message:
    """A message that the session does not hold yet.

    Args:
        text: Text.
        pictures: Pictures.
        first: Number of the first picture, from 1.
        cache: Cache of pictures.
    """
    content: list[Any] = []
    for number, pixels in enumerate(pictures, first):
        content.append(_picture(cache, pixels, f"Picture {number}"))
    return {"role": "user", "content": [*content, *([plain(text)] if text.strip() else [])]}


class GrowingReply:
    """A reply while it is generated.

    Args:
        cache: Cache of pictures.
        first: Number of its first picture, from 1.
    """

    def __init__(self, cache: PictureCache, first: int) -> None:
        self.cache, self.first = cache, first
        self._answers: dict[int, str] = {}
        self._pictures: dict[int, tuple[Picture | None, str]] = {}
        self._notices: list[str] = []

    def add(self, event: Event) -> bool:
        """Adds an event; returns whether the message has changed."""
        if isinstance(event, Notice):
            self._notices.append(event.text)
        elif isinstance(event, Words) and event.text:
            if event.of == "answer":
                self._answers[event.segment] = self._answers.get(event.segment, "") + event.text
            else:
                _, line = self._pictures.get(event.segment, (None, "Drawing: "))
                self._pictures[event.segment] = (None, line + event.text)
        elif isinstance(event, Progress):
            old, _ = self._pictures.get(event.segment, (None, ""))
            preview = old if event.preview is None else event.preview
            self._pictures[event.segment] = (preview, f"Drawing, step {event.step} of {event.steps}")
        elif isinstance(event, Drawn):
            number = self.first + sum(segment < event.segment for segment in self._pictures)
            line = _with_gate(f"Picture {number}: {event.caption}", event.gate)
            self._pictures[event.segment] = (event.picture, line)
        else:
            return False
        return True

    def message(self) -> Message:
        """The reply so far, with a cursor where text is still to come."""
        content: list[Any] = [_remark(text) for text in self._notices]
        for segment in sorted({*self._answers, *self._pictures}):
            answer = plain(self._answers.get(segment, "").strip())
            if segment not in self._pictures:
                content.append(f"{answer} {CURSOR}")
                continue
            pixels, line = self._pictures[segment]
            content += [answer] if answer else []
            content.append(_remark(line) if pixels is None else _picture(self.cache, pixels, line))
        return {"role": "assistant", "content": content or [CURSOR]}


# Components


def as_examples(examples: Mapping[str, Sequence[Example]], cache: PictureCache, component: Any) -> Examples:
    """Examples with their pictures as files that are kept as long as the page.

    Args:
        examples: Examples by task.
        cache: Cache of pictures.
        component: Component of the page to which the files belong.
    """

    def message(example: Example) -> dict[str, Any]:
        text, picture = (example, None) if isinstance(example, str) else example
        if picture is None:
            return {"text": text, "files": []}
        path = cache(picture)
        component.keep_in_cache.add(path)
        gr.set_static_paths(path)  # served from there, instead of from copies that are deleted after a day
        return {"text": text, "files": [path]}

    return {task: [message(example) for example in of_task] for task, of_task in examples.items()}


def first_of(examples: Examples, task: str) -> str:
    """Text of a task's first example."""
    return next((str(example["text"]) for example in examples.get(task, ())), "")


def add_examples(examples: Examples, task: str, box: Any) -> None:
    """Adds a task's examples; a click copies one into a text or message box."""
    with_pictures = isinstance(box, gr.MultimodalTextbox)
    rows = [[example if with_pictures else example["text"]] for example in examples.get(task, ())]
    if rows:
        gr.Examples(rows, [box], label="Examples", cache_examples=False)


def message_box(elem_id: str, placeholder: str, lines: int = 1, autofocus: bool = False) -> Any:
    """A box for text and pictures."""
    return gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        lines=lines,
        placeholder=placeholder,
        show_label=False,
        label="Message",
        elem_id=elem_id,
        elem_classes="message-box",
        autofocus=autofocus,
        max_plain_text_length=100_000,
    )


def gallery(label: str, task: str) -> Any:
    """A place for pictures with captions."""
    gr.HTML(f"<h2>{label}</h2>")
    return gr.HTML(elem_id=f"{task}-pictures", elem_classes="pictures", padding=False, min_height=80)


def size_sliders(pipe: M2ChatPipeline) -> tuple[Any, Any]:
    """Height and width of pictures in pixels: what the image decoder can draw, up to twice its usual side."""
    unit, side = pipe.model.decoder.size_unit, pipe.image_size
    low = max(unit, side // 2 // unit * unit)
    height, width = (gr.Slider(low, 2 * side, side, step=unit, label=label) for label in ("Height", "Width"))
    return height, width


def draw_settings(pipe: M2ChatPipeline) -> list[Any]:
    """The settings of a tab, collapsed: seed, denoising steps, height and width."""
    with gr.Accordion("Settings", open=False):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
        steps = gr.Slider(1, 50, pipe.draw_settings().steps, step=1, label="Denoising steps")
        with gr.Row():
            height, width = size_sliders(pipe)
    return [seed, steps, height, width]
