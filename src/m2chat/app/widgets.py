"""Pieces of the web page that occur more than once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gradio as gr

from m2chat.app.rendering import Shelf
from m2chat.world import Example

Examples: TypeAlias = Mapping[str, Sequence[dict[str, Any]]]
"""The same by task, as a box of words holds them: ``text`` and ``files``."""

AT_ONCE = 4
"""Replies that are made at a time; they take turns, a token or a denoising step each."""
WAITING = 32
"""Requests that may wait; more are turned away."""
QUEUED: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": AT_ONCE,
    "api_visibility": "private",
    "show_progress": "hidden",
}
"""Of events that use the model."""
AT_ONCE_ONLY: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
"""Of events that must not wait behind the model."""


def as_examples(hints: Mapping[str, Sequence[Example]], shelf: Shelf, head: Any) -> Examples:
    """Hints whose pictures are files that stay for as long as the page does.

    Args:
        hints: By task.
        shelf: Where pictures go.
        head: The component among whose files they count.
    """

    def message(hint: Example) -> dict[str, Any]:
        text, picture = (hint, None) if isinstance(hint, str) else hint
        if picture is None:
            return {"text": text, "files": []}
        path = shelf(picture)
        head.keep_in_cache.add(path)
        gr.set_static_paths(path)  # shown from there, instead of from copies that go away after a day
        return {"text": text, "files": [path]}

    return {name: [message(hint) for hint in said] for name, said in hints.items()}


def first_of(examples: Examples, name: str) -> str:
    """The words of a task's first example."""
    return next((str(example["text"]) for example in examples.get(name, ())), "")


def add_examples(examples: Examples, name: str, box: Any) -> None:
    """A task's examples, which fill a box of words, or of words and pictures."""
    with_pictures = isinstance(box, gr.MultimodalTextbox)
    rows = [[example if with_pictures else example["text"]] for example in examples.get(name, ())]
    if rows:
        gr.Examples(rows, [box], label="Examples", cache_examples=False)


def words_box(elem_id: str, placeholder: str, lines: int = 1, autofocus: bool = False) -> Any:
    """A box for words and pictures."""
    return gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        lines=lines,
        placeholder=placeholder,
        show_label=False,
        label="Message",
        elem_id=elem_id,
        autofocus=autofocus,
        max_plain_text_length=100_000,
    )


def go_and_stop(name: str, label: str) -> tuple[Any, Any]:
    """The two buttons of a tab."""
    with gr.Row():
        go = gr.Button(label, variant="primary", elem_id=f"{name}-go")
        return go, gr.Button("Stop", variant="stop", elem_id=f"{name}-stop")


def gallery(label: str, name: str) -> Any:
    """A place for pictures, each with a line under it."""
    gr.HTML(f"<h2>{label}</h2>")
    return gr.HTML(elem_id=f"{name}-pictures", elem_classes="pictures", padding=False, min_height=80)


def seeds() -> tuple[Any, Any]:
    """The settings of a tab, folded away: seed and denoising steps."""
    with gr.Accordion("Settings", open=False):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
        steps = gr.Slider(1, 50, 25, step=1, label="Denoising steps")
    return seed, steps
