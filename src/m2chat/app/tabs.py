"""The paper's tasks as tabs of the web page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any, TypeAlias

import gradio as gr

from m2chat.app.buttons import run_and_stop, while_running
from m2chat.app.chat import page_errors, uploaded
from m2chat.app.limits import require_affordable
from m2chat.app.widgets import (
    Examples,
    PictureCache,
    add_examples,
    draw_settings,
    figure_of,
    first_of,
    gallery,
    message_box,
)
from m2chat.errors import UserError
from m2chat.pipeline import M2ChatPipeline, OutputImage, PipelineOutput
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import changes, decoder_alone, edit_rounds, similar, story_parts, text_to_image, wish

Figures: TypeAlias = str
"""HTML of pictures with captions."""
Stop: TypeAlias = Callable[[], object]
"""Stops the current work before its next token or denoising step."""
SIMILAR_PICTURES = 3


class TaskHandlers:
    """Handlers of the tabs.

    Args:
        pipe: Pipeline.
        cache: Cache of pictures.
    """

    def __init__(self, pipe: M2ChatPipeline, cache: PictureCache) -> None:
        self.pipe, self.cache = pipe, cache

    def text_to_image(self, text: str, count: int, seed: float | None, *draw: float) -> Iterator[tuple[Stop, Figures]]:
        """Pictures of a caption."""
        yield from self._at_seeds(text_to_image, text, count, seed, draw)

    def wish(self, text: str, count: int, seed: float | None, *draw: float) -> Iterator[tuple[Stop, Figures]]:
        """Pictures of a vague wish, with a new caption for each seed."""
        yield from self._at_seeds(wish, text, count, seed, draw)

    def edit(self, message: Mapping[str, Any], seed: float | None, *draw: float) -> Iterator[tuple[Stop, Figures]]:
        """Edits of a picture, one per line."""
        with page_errors():
            first = self._picture(message)
            lines = changes((message.get("text") or "").splitlines())
            session = self.pipe.session(seed=int(seed or 0), **self._drawing(draw))
            shown = figure_of(self.cache, first, "as shown")
            yield session.stop, shown
            for line, output in zip(lines, edit_rounds(session, first, lines), strict=False):
                shown += self._figures(output, f"{line} → ")
                yield session.stop, shown

    def similar(
        self, message: Mapping[str, Any], count: int, seed: float | None, *draw: float
    ) -> Iterator[tuple[Stop, Figures]]:
        """Pictures similar to one."""
        with page_errors():
            first = self._picture(message)
        shown = figure_of(self.cache, first, "as shown")
        for stop, figures in self._at_seeds(similar, first, count, seed, draw):
            yield stop, shown + figures

    def story(
        self, opener: str, frames: int, seed: float | None, *draw: float
    ) -> Iterator[tuple[Stop, Figures, Figures]]:
        """A story, part by part, and the image decoder's own pictures of its captions."""
        shown: Figures = ""
        parts: list[PipelineOutput] = []
        with page_errors():
            how = self._drawing(draw)
            session = self.pipe.session(seed=int(seed or 0), image="force", max_images=1, **how)
            yield session.stop, shown, ""
            for part in story_parts(session, opener, int(frames)):
                parts.append(part)
                shown += self._figures(part)
                yield session.stop, shown, ""
        captions = [picture.caption for part in parts for picture in part.pictures]
        compared = decoder_alone(session, parts, int(seed or 0))  # none of a stopped story
        pairs = zip(compared, captions, strict=False)
        yield session.stop, shown, "".join(figure_of(self.cache, *pair) for pair in pairs)

    def _at_seeds(
        self,
        task: Callable[..., list[PipelineOutput]],
        subject: Any,
        count: int,
        seed: float | None,
        draw: Sequence[float],
    ) -> Iterator[tuple[Stop, Figures]]:
        """One picture after another, so that the first is shown early; finished ones are kept if it is stopped."""
        shown: Figures = ""
        stop = Event()
        yield stop.set, shown
        with page_errors():
            if isinstance(subject, str) and not subject.strip():
                raise UserError("write a prompt first")
            how = self._drawing(draw)
            for k in range(int(count)):
                for output in task(self.pipe, subject, (int(seed or 0) + k,), stop, **how):
                    shown += self._figures(output)
                    yield stop.set, shown

    def _drawing(self, draw: Sequence[float]) -> dict[str, int]:
        """Denoising steps, height and width, in the order of `draw_settings`; the sizes may be left out.

        Raises:
            UserError: If the pictures would be too large for a server.
        """
        how = {name: int(value) for name, value in zip(("steps", "height", "width"), draw, strict=False)}
        require_affordable(self.pipe, how.get("height"), how.get("width"))
        return how

    def _picture(self, message: Mapping[str, Any]) -> Any:
        pictures = uploaded(message.get("files"))
        if not pictures:
            raise UserError("there is no picture yet: add one with the paper clip in the message box")
        if len(pictures) > 1:
            raise UserError(f"there are {len(pictures)} pictures: show one alone")
        return pictures[0]

    def _figures(self, output: PipelineOutput, before: str = "") -> Figures:
        """The pictures of a reply, with the text before each and its caption."""
        shown: Figures = ""
        answer = ""
        for part in output.segments:
            if isinstance(part, OutputImage):
                line = f"{before}{answer} [{part.caption}]".strip() if answer else f"{before}{part.caption}"
                shown += figure_of(self.cache, as_pixels(part.image), line)
                answer = ""
            else:
                answer = part
        return shown


def add_tabs(handlers: TaskHandlers, examples: Examples) -> None:
    """Adds a tab for each task.

    Args:
        handlers: Handlers of the tabs.
        examples: Examples by task: ``draw``, ``wish``, ``edit``, ``story``.
    """
    for title, handler, about in (
        ("Draw", handlers.text_to_image, "Text-to-image: draws a caption as it is."),
        ("Wish", handlers.wish, "Chat-based generation: the model writes captions for a vague wish and draws them."),
    ):
        task = title.lower()
        with gr.Tab(title, elem_id=f"tab-{task}"):
            gr.Markdown(about)
            text = gr.Textbox(label="Prompt", lines=1, placeholder=first_of(examples, task), elem_id=f"{task}-words")
            count = gr.Slider(1, 4, 4 if task == "wish" else 1, step=1, label="Pictures")
            buttons = run_and_stop(task, "Draw")
            shown = gallery("Pictures", task)
            settings = draw_settings(handlers.pipe)
            add_examples(examples, task, text)
            stop = gr.State(None)
            starts = [buttons[0].click, text.submit]
            while_running(buttons, stop, (starts, handler, [text, count, *settings], [stop, shown]))
    with gr.Tab("Edit", elem_id="tab-edit"):
        gr.Markdown("Multi-round editing: add a picture and write one change per line; each edits the picture before.")
        box = message_box("edit-words", first_of(examples, "edit"), lines=3)
        buttons = run_and_stop("edit", "Edit", ("edit-similar", f"{SIMILAR_PICTURES} similar pictures"))
        shown = gallery("Pictures", "edit")
        settings = draw_settings(handlers.pipe)
        add_examples(examples, "edit", box)
        stop, count = gr.State(None), gr.State(SIMILAR_PICTURES)
        run, alike, _ = buttons
        while_running(
            buttons, stop, ([run.click, box.submit], handlers.edit, [box, *settings], [stop, shown]),
            ([alike.click], handlers.similar, [box, count, *settings], [stop, shown]),
        )  # fmt: skip
    with gr.Tab("Story", elem_id="tab-story"):
        gr.Markdown("Storytelling: the model continues a first line; each part has the picture before as context.")
        text = gr.Textbox(label="First line", lines=1, placeholder=first_of(examples, "story"), elem_id="story-words")
        frames = gr.Slider(1, 8, 4, step=1, label="Parts")
        buttons = run_and_stop("story", "Generate")
        shown = gallery("Story", "story")
        beside = gallery("Image decoder alone, same captions, one seed", "alone")
        settings = draw_settings(handlers.pipe)
        add_examples(examples, "story", text)
        stop = gr.State(None)
        starts = [buttons[0].click, text.submit]
        while_running(buttons, stop, (starts, handlers.story, [text, frames, *settings], [stop, shown, beside]))
