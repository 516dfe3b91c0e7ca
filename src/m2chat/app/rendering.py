"""A conversation as the messages of gradio's `Chatbot`: texts, pictures, and a caption line under each picture."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from m2chat.pipeline import Drawn, Event, Notice, Progress, Session, Words
from m2chat.schema import Picture

Shelf = Callable[[Picture], str]
"""Puts a picture where the page can show it, and tells its path."""
Message = dict[str, Any]
TYPING = "▍"


def figure_of(shelf: Shelf, pixels: Picture, line: str) -> str:
    """A picture and the line under it, which also stands for it where pictures are not seen."""
    url, told = f"./gradio_api/file={quote(shelf(pixels))}", escape(line)
    shown = f'<a href="{url}" target="_blank"><img src="{url}" alt="{told}"></a>'
    return f"<figure>{shown}<figcaption>{told}</figcaption></figure>"


def _picture(shelf: Shelf, pixels: Picture, line: str) -> gr.HTML:
    return gr.HTML(figure_of(shelf, pixels, line), padding=False)


def _line(text: str) -> gr.HTML:
    """A remark about the conversation, which is no part of it."""
    return gr.HTML(f'<p class="remark" role="status">{escape(text)}</p>', padding=False)


def messages(session: Session, shelf: Shelf, turns: int | None = None) -> list[Message]:
    """What a session has said and shown.

    Args:
        session: The conversation.
        shelf: Where its pictures go.
        turns: Only so many; None for all.
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
            content.append(_picture(shelf, image.pixels, _with_gate(line, next(gates, None))))
        if note.get("cut_tokens"):
            content.append(_line(f"{note['cut_tokens']} tokens did not fit: the oldest turns were left out."))
        if note.get("stopped"):
            content.append(_line("stopped"))
        shown.append({"role": turn.role, "content": content or ["…"]})
    return shown


def asked(text: str, pictures: list[Picture], first: int, shelf: Shelf) -> Message:
    """What a user has just said, before the session knows it.

    Args:
        text: What was said.
        pictures: What was shown.
        first: Number of the first picture, from 1.
        shelf: Where they go.
    """
    content: list[Any] = []
    for number, pixels in enumerate(pictures, first):
        content.append(_picture(shelf, pixels, f"Picture {number}"))
    return {"role": "user", "content": [*content, *([plain(text)] if text.strip() else [])]}


class Growing:
    """A reply as far as it has come.

    Args:
        shelf: Where its pictures go.
        first: Number of its first picture, from 1.
    """

    def __init__(self, shelf: Shelf, first: int) -> None:
        self.shelf, self.first = shelf, first
        self._answers: dict[int, str] = {}
        self._pictures: dict[int, tuple[Picture | None, str]] = {}
        self._notices: list[str] = []

    def add(self, event: Event) -> bool:
        """Takes an event in; tells whether there is something new to see."""
        if isinstance(event, Notice):
            self._notices.append(event.text)
        elif isinstance(event, Words) and event.text:
            if event.of == "answer":
                self._answers[event.segment] = self._answers.get(event.segment, "") + event.text
            else:
                _, told = self._pictures.get(event.segment, (None, "Drawing: "))
                self._pictures[event.segment] = (None, told + event.text)
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
        """It, with a mark where words are still to come."""
        content: list[Any] = [_line(text) for text in self._notices]
        for segment in sorted({*self._answers, *self._pictures}):
            said = plain(self._answers.get(segment, "").strip())
            if segment not in self._pictures:
                content.append(f"{said} {TYPING}")
                continue
            pixels, line = self._pictures[segment]
            content += [said] if said else []
            content.append(_line(line) if pixels is None else _picture(self.shelf, pixels, line))
        return {"role": "assistant", "content": content or [TYPING]}


def plain(text: str) -> str:
    """What anybody says, as text: the page would take it for markup otherwise, if for harmless one."""
    return escape(text, quote=False)


def _with_gate(line: str, gate: float | None) -> str:
    return line if gate is None else f"{line} · gate {gate:.2f}"
