"""Buttons of the web page that can be clicked only while they have something to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from m2chat.app.widgets import QUEUED, UNQUEUED
from m2chat.pipeline import Session

CHAT_BUTTONS = ("stop", "more", "new", "save", "look")
"""Buttons of the conversation, in their order on the page."""


def run_and_stop(task: str, label: str, *more: tuple[str, str]) -> list[Any]:
    """The buttons of a tab: those that start something, and behind them the one that stops it.

    Args:
        task: Name of the task.
        label: Label of the first button.
        more: Id and label of further buttons.
    """
    with gr.Row():
        started = [gr.Button(label, variant="primary", elem_id=f"{task}-go")]
        started += [gr.Button(text, elem_id=name) for name, text in more]
        return [*started, gr.Button("Stop", variant="stop", elem_id=f"{task}-stop", interactive=False)]


def while_running(buttons: Sequence[Any], stop: Any, *starts: tuple[Any, Any, list[Any], list[Any]]) -> None:
    """Connects the buttons of a tab: while something runs, only the last of them, *Stop*, can be clicked.

    Args:
        buttons: Buttons of `run_and_stop`.
        stop: State with the function that stops the work.
        starts: Events, handler, inputs and outputs of what may run.
    """

    def running() -> list[Any]:
        return [*(gr.update(interactive=False) for _ in buttons[1:]), gr.update(interactive=True)]

    def resting() -> list[Any]:
        return [*(gr.update(interactive=True) for _ in buttons[1:]), gr.update(interactive=False)]

    work = []
    for events, handler, inputs, outputs in starts:
        begun = gr.on(events, running, None, list(buttons), **UNQUEUED)
        work.append(begun.then(handler, inputs, outputs, **QUEUED))
        work[-1].then(resting, None, list(buttons), **UNQUEUED)
    halt = buttons[-1]
    halt.click(stop_task, stop, **UNQUEUED).then(resting, None, list(buttons), **UNQUEUED)
    halt.click(None, cancels=work)  # requests that wait leave the queue


def stop_task(stop: Callable[[], object] | None) -> None:
    """Stops the work of a tab, if there is any."""
    if stop is not None:
        stop()


def busy_buttons() -> list[Any]:
    """The buttons of the conversation while a reply is generated: *Stop* alone, and *New*."""
    return [gr.update(interactive=name in ("stop", "new")) for name in CHAT_BUTTONS]


def usable_buttons(session: Session | None) -> list[Any]:
    """The buttons of the conversation otherwise: those that have something to work on."""
    turns = () if session is None else session.turns
    replied = bool(turns) and turns[-1].role == "assistant"
    drawn = any(turn.role == "assistant" and turn.pictures for turn in turns)
    usable = {"more": replied, "new": bool(turns), "save": bool(turns), "look": drawn}
    return [gr.update(interactive=usable.get(name, False)) for name in CHAT_BUTTONS]
