"""The web page: a conversation, a tab for each of the paper's tasks, and views inside a reply."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from m2chat import __version__
from m2chat.app.about import about
from m2chat.app.api import invalid, refusal
from m2chat.app.buttons import busy_buttons, usable_buttons
from m2chat.app.chat import ChatHandlers, LensReader, stop
from m2chat.app.entrance import NamedHosts
from m2chat.app.tabs import TaskHandlers, add_tabs
from m2chat.app.uploads import MAX_BYTES
from m2chat.app.widgets import AT_ONCE, QUEUED, UNQUEUED, WAITING, as_examples, message_box, picture_cache, size_sliders
from m2chat.pipeline import M2ChatPipeline, SessionSettings
from m2chat.world import Example

STYLE = Path(__file__).with_name("page.css")
ESCAPE_STOPS = """() => document.addEventListener("keydown", event => {
    if (event.key === "Escape") document.querySelector("#chat-stop")?.click();
})"""
_HEAD = "<h1>M²Chat</h1><p>{about}</p>"
_INSIDE = """\
How the last picture came to be (paper, Fig. 5).

- **Pictures**: what each layer of the language model would have drawn; the M³Adapter reads the last one. g is the gate,
the share of the words: 1 follows them alone, 0 the picture before alone.
- **Plots**: how many attributes the pictures share with the picture before and with the last layer's; the gate of each
reply; which words of the caption, and which parts of the picture before, the M³Adapter's queries attend to (bright:
much)."""
_FONTS = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")
_DAY = 24 * 3600
_INK = {
    "body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300",
    "block_title_text_color": "*neutral_700", "block_title_text_color_dark": "*neutral_200",
    "block_label_text_color": "*neutral_700", "block_label_text_color_dark": "*neutral_200",
    "input_placeholder_color": "*neutral_500", "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700", "button_primary_background_fill_hover_dark": "*primary_800",
    "checkbox_label_background_fill_selected": "*primary_700",
    "checkbox_label_background_fill_selected_dark": "*primary_700",
    "button_secondary_background_fill_hover_dark": "*neutral_600",
    "block_title_background_fill": "none", "block_title_background_fill_dark": "none",
    "block_title_padding": "0",
}  # fmt: skip
"""Colours of text, each with a contrast of at least 4.5 : 1."""


def build_page(
    pipe: M2ChatPipeline,
    examples: Mapping[str, Sequence[Example]] | None = None,
    readings: LensReader | None = None,
) -> gr.Blocks:
    """Builds the page.

    Args:
        pipe: Pipeline.
        examples: Example messages by task: ``chat``, ``draw``, ``wish``, ``edit``, ``story``; texts, or a text and a
            picture.
        readings: Judge of a lens' pictures; None where no judge knows the pictures.

    Returns:
        The page, ready for `launch`.
    """
    # Files are deleted when they are older than a day, all of them when the server ends.
    page: gr.Blocks = gr.Blocks(title="M²Chat", analytics_enabled=False, delete_cache=(3600, _DAY), fill_width=False)
    with page:
        tiny = ["tiny-pictures"] if pipe.image_size <= 32 else []
        head = gr.HTML(_HEAD.format(about=escape(about(pipe))), elem_id="head", elem_classes=tiny)
        cache = picture_cache(head)
        shown = as_examples(examples or {}, cache, head)
        with gr.Tab("Chat", elem_id="tab-chat"):
            _add_chat(ChatHandlers(pipe, cache, readings, shown.get("chat", ())))
        add_tabs(TaskHandlers(pipe, cache), shown)
        page.load(None, js=ESCAPE_STOPS)
    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    return page


def _add_chat(handlers: ChatHandlers) -> None:
    """The conversation."""
    session = gr.State(None, time_to_live=_DAY, delete_callback=stop)
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        height="60vh",
        render_markdown=False,  # text of users and of the model is never markup
        allow_tags=False,
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        placeholder="Send a message, or try one of these",
        examples=[
            {"text": example["text"], **({"icon": example["files"][0]} if example["files"] else {})}
            for example in handlers.examples
        ],
        elem_id="chat",
    )
    box = message_box("chat-words", "Enter sends, Escape stops", autofocus=True)
    with gr.Row(elem_id="chat-buttons"):
        idle: dict[str, Any] = {"size": "sm", "min_width": 60, "interactive": False}
        halt = gr.Button("Stop", variant="stop", elem_id="chat-stop", **idle)
        more = gr.Button("Continue", elem_id="chat-more", **idle)
        new = gr.Button("New", elem_id="chat-new", **idle)
        save = gr.DownloadButton("Save", elem_id="chat-save", **idle)
        load = gr.UploadButton("Load", size="sm", file_types=[".zip"], elem_id="chat-load", min_width=60)
    settings = _settings(handlers.pipe)
    with gr.Accordion("See inside", open=False, elem_id="inside"):
        gr.Markdown(_INSIDE)
        look = gr.Button("Look into the last picture", elem_id="inside-look", interactive=False)
        result = gr.Textbox(show_label=False, label="Result", interactive=False, visible=False, lines=1, max_lines=9)
        layers = gr.HTML(elem_id="inside-layers", elem_classes="pictures", padding=False)
        plots = gr.HTML(elem_id="inside-plots", elem_classes="plots", padding=False)
    shown = [session, chat, box]
    buttons = [halt, more, new, save, look]
    # The last reply has a button each to regenerate it and to undo it, of which gradio takes care.
    send = ((box.submit, handlers.send, [session, box, *settings]),
            (chat.retry, handlers.regenerate, [session, *settings]),
            (more.click, handlers.go_on, [session, *settings]))  # fmt: skip
    for event, handler, inputs in send:
        begun = event(busy_buttons, None, buttons, **UNQUEUED)
        begun.then(handler, inputs, shown, **QUEUED).then(usable_buttons, session, buttons, **UNQUEUED)
    # The number of the example is known to the first handler of its event alone.
    chat.example_select(busy_buttons, None, buttons, **UNQUEUED)
    chosen = chat.example_select(handlers.send_example, [session, *settings], shown, **QUEUED)
    looked = look.click(handlers.look, session, [layers, plots, result], **{**QUEUED, "show_progress": "minimal"})
    halt.click(stop, session, **UNQUEUED)
    undone = chat.undo(handlers.undo, session, shown, **UNQUEUED)
    renewed = gr.on([new.click, chat.clear], handlers.new, session, shown, **UNQUEUED)
    loaded = load.upload(handlers.load, [session, load], shown, **QUEUED)
    for done in (chosen, looked, undone, renewed, loaded):
        done.then(usable_buttons, session, buttons, **UNQUEUED)
    # A download button's file is fixed when it is clicked: "Save" writes the file and then clicks a second, hidden one.
    ready = gr.DownloadButton(visible="hidden", elem_id="chat-save-ready")
    save.click(handlers.save, session, ready, **UNQUEUED).success(None, js=_DOWNLOAD, api_visibility="private")


_DOWNLOAD = """() => setTimeout(() => document.querySelector("#chat-save-ready")?.click(), 100)"""


def _settings(pipe: M2ChatPipeline) -> list[Any]:
    """Settings of the next replies, collapsed; in the order of `ChatHandlers.configured`."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            image = gr.Radio(
                [("auto", "auto"), ("always", "force"), ("never", "never")], value="auto", label="Pictures",
                elem_id="setting-draw",
            )  # fmt: skip
            most = gr.Slider(1, 8, 4, step=1, label="Max pictures", elem_id="setting-most")
        with gr.Row():
            usual = pipe.draw_settings()
            steps = gr.Slider(1, 50, usual.steps, step=1, label="Denoising steps", elem_id="setting-steps")
            guidance = gr.Slider(1, 15, usual.guidance, step=0.5, label="Guidance scale")
        with gr.Row():
            height, width = size_sliders(pipe)
        with gr.Row():
            seed = gr.Number(-1, label="Seed (-1: random)", precision=0, minimum=-1, maximum=2**31 - 1,
                             elem_id="setting-seed")  # fmt: skip
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature")
            length = gr.Slider(8, 128, SessionSettings.max_new_tokens, step=8, label="Max new tokens")
    return [image, most, steps, guidance, seed, temperature, length, height, width]


def launch(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    port: int = 7860,
    block: bool = True,
    allowed_hosts: Collection[str] | None = None,
    opens: bool = False,
) -> str:
    """Serves a page.

    Args:
        page: Page from `build_page`.
        host: Address to listen on.
        port: Port, 0-65535; 0 takes a free one.
        block: Whether to return only when the server is interrupted.
        allowed_hosts: Names by which the page may be addressed, besides ``localhost`` and numbers; None for any.
        opens: Whether a browser is opened on it.

    Returns:
        URL of the page.
    """
    theme = gr.themes.Soft(primary_hue="teal", secondary_hue="teal", font=_FONTS, font_mono=_MONO).set(**_INK)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        inbrowser=opens,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_BYTES,
        theme=theme,
        css_paths=STYLE,
        show_error=False,
        app_kwargs={
            "exception_handlers": {RequestValidationError: invalid},  # FastAPI's would echo the request
            "middleware": [Middleware(NamedHosts, refuse=refusal, hosts=allowed_hosts)],
        },
    )
    print(f"M²Chat {__version__} at {address} (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return str(address)
