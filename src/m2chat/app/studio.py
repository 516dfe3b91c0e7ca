"""The paper's tasks as tabs of the web page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from threading import Event
from typing import Any, TypeAlias

import gradio as gr

from m2chat.app.rendering import Shelf, figure_of
from m2chat.app.talk import complaint, uploaded
from m2chat.app.widgets import (
    AT_ONCE_ONLY,
    QUEUED,
    Examples,
    add_examples,
    first_of,
    gallery,
    go_and_stop,
    seeds,
    words_box,
)
from m2chat.errors import UserError
from m2chat.pipeline import M2ChatPipeline, OutputImage, PipelineOutput
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import changes, decoder_alone, edit_rounds, similar, tell, text_to_image, wish

Figures: TypeAlias = str
"""HTML of pictures with their lines."""
Ender: TypeAlias = Callable[[], object]
"""Ends the work that is under way, before its next token or denoising step."""


class Studio:
    """The handlers of the tabs.

    Args:
        pipe: Draws.
        shelf: Where pictures go for the page to show.
    """

    def __init__(self, pipe: M2ChatPipeline, shelf: Shelf) -> None:
        self.pipe, self.shelf = pipe, shelf

    def text_to_image(self, text: str, count: int, seed: float | None, steps: int) -> Iterator[tuple[Ender, Figures]]:
        """A caption, drawn as it stands."""
        yield from self._at_seeds(text_to_image, text, count, seed, steps)

    def wish(self, text: str, count: int, seed: float | None, steps: int) -> Iterator[tuple[Ender, Figures]]:
        """A vague wish, understood once for each seed."""
        yield from self._at_seeds(wish, text, count, seed, steps)

    def edit(self, message: Mapping[str, Any], seed: float | None, steps: int) -> Iterator[tuple[Ender, Figures]]:
        """A picture and what shall be changed of it, a line each."""
        try:
            first = self._picture(message)
            lines = changes((message.get("text") or "").splitlines())
            session = self.pipe.session(seed=int(seed or 0), steps=int(steps))
            shown = figure_of(self.shelf, first, "as shown")
            yield session.stop, shown
            for line, output in zip(lines, edit_rounds(session, first, lines), strict=False):
                shown += self._drawn(output, f"{line} → ")
                yield session.stop, shown
        except UserError as error:
            raise complaint(error) from error

    def similar(
        self, message: Mapping[str, Any], count: int, seed: float | None, steps: int
    ) -> Iterator[tuple[Ender, Figures]]:
        """Figures like one."""
        try:
            first = self._picture(message)
        except UserError as error:
            raise complaint(error) from error
        shown = figure_of(self.shelf, first, "as shown")
        for ender, drawn in self._at_seeds(similar, first, count, seed, steps):
            yield ender, shown + drawn

    def story(
        self, opener: str, frames: int, seed: float | None, steps: int
    ) -> Iterator[tuple[Ender, Figures, Figures]]:
        """A story, part by part, and beside it the image decoder alone."""
        session = self.pipe.session(seed=int(seed or 0), steps=int(steps), image="force", max_images=1)
        shown: Figures = ""
        parts: list[PipelineOutput] = []
        yield session.stop, shown, ""
        try:
            for part in tell(session, opener, int(frames)):
                parts.append(part)
                shown += self._drawn(part)
                yield session.stop, shown, ""
        except UserError as error:
            raise complaint(error) from error
        captions = [picture.caption for part in parts for picture in part.pictures]
        compared = decoder_alone(session, parts, int(seed or 0))  # none of a stopped story
        pairs = zip(compared, captions, strict=False)
        yield session.stop, shown, "".join(figure_of(self.shelf, *pair) for pair in pairs)

    def _at_seeds(
        self, task: Callable[..., list[PipelineOutput]], what: Any, count: int, seed: float | None, steps: int
    ) -> Iterator[tuple[Ender, Figures]]:
        """A picture after the other, so that the first is there soon; those that are ready stay when it is stopped."""
        shown: Figures = ""
        stop = Event()
        yield stop.set, shown
        try:
            if isinstance(what, str) and not what.strip():
                raise UserError("say what shall be drawn")
            for k in range(int(count)):
                for output in task(self.pipe, what, (int(seed or 0) + k,), stop, steps=int(steps)):
                    shown += self._drawn(output)
                    yield stop.set, shown
        except UserError as error:
            raise complaint(error) from error

    def _picture(self, message: Mapping[str, Any]) -> Any:
        pictures = uploaded(message.get("files"))
        if not pictures:
            raise UserError("there is no picture yet: show one with the clip in the box of words")
        if len(pictures) > 1:
            raise UserError(f"there are {len(pictures)} pictures: show one alone")
        return pictures[0]

    def _drawn(self, output: PipelineOutput, before: str = "") -> Figures:
        """The pictures of a reply, each over what was said and what it was drawn from."""
        shown: Figures = ""
        said = ""
        for part in output.segments:
            if isinstance(part, OutputImage):
                line = f"{before}{said} [{part.caption}]".strip() if said else f"{before}{part.caption}"
                shown += figure_of(self.shelf, as_pixels(part.image), line)
                said = ""
            else:
                said = part
        return shown


def end(ender: Ender | None) -> None:
    """Ends the work of a tab, if there is any."""
    if ender is not None:
        ender()


def add_tabs(studio: Studio, examples: Examples) -> None:
    """Adds a tab for each task.

    Args:
        studio: Its handlers.
        examples: What to say, by task: ``draw``, ``wish``, ``edit``, ``story``.
    """
    for title, task, about in (
        ("Draw", studio.text_to_image, "Draws a caption as it stands."),
        ("Wish", studio.wish, "Say vaguely what you dream of: each picture is another way to understand it."),
    ):
        name = title.lower()
        with gr.Tab(title, elem_id=f"tab-{name}"):
            gr.Markdown(about)
            text = gr.Textbox(label="Words", lines=1, placeholder=first_of(examples, name), elem_id=f"{name}-words")
            count = gr.Slider(1, 4, 4 if name == "wish" else 1, step=1, label="Pictures")
            go, halt = go_and_stop(name, "Draw")
            shown = gallery("Pictures", name)
            seed, steps = seeds()
            add_examples(examples, name, text)
            ender = gr.State(None)
            running = gr.on([go.click, text.submit], task, [text, count, seed, steps], [ender, shown], **QUEUED)
            _stops(halt, ender, running)
    with gr.Tab("Edit", elem_id="tab-edit"):
        gr.Markdown("Show a picture and say what to change, one change a line; each starts from the picture before.")
        box = words_box("edit-words", first_of(examples, "edit"), lines=3)
        with gr.Row():
            go = gr.Button("Change it", variant="primary", elem_id="edit-go")
            alike = gr.Button("Three like it", elem_id="edit-similar")
            halt = gr.Button("Stop", variant="stop", elem_id="edit-stop")
        shown = gallery("Pictures", "edit")
        seed, steps = seeds()
        add_examples(examples, "edit", box)
        ender, three = gr.State(None), gr.State(3)
        changed = gr.on([go.click, box.submit], studio.edit, [box, seed, steps], [ender, shown], **QUEUED)
        likened = alike.click(studio.similar, [box, three, seed, steps], [ender, shown], **QUEUED)
        _stops(halt, ender, changed, likened)
    with gr.Tab("Story", elem_id="tab-story"):
        gr.Markdown("One line begins a story; every part is told and drawn in view of the one before.")
        text = gr.Textbox(label="First line", lines=1, placeholder=first_of(examples, "story"), elem_id="story-words")
        frames = gr.Slider(1, 8, 4, step=1, label="Parts")
        go, halt = go_and_stop("story", "Tell it")
        shown = gallery("The story", "story")
        beside = gallery("The image decoder alone, from the same captions at one seed", "alone")
        seed, steps = seeds()
        add_examples(examples, "story", text)
        ender = gr.State(None)
        told = gr.on([go.click, text.submit], studio.story, [text, frames, seed, steps], [ender, shown, beside],
                     **QUEUED)  # fmt: skip
        _stops(halt, ender, told)


def _stops(button: Any, ender: Any, *running: Any) -> None:
    """What a stop button does: ends the work under way, and takes what still waits out of the queue."""
    button.click(end, ender, **AT_ONCE_ONLY)
    button.click(None, cancels=list(running))
