"""The web page: a conversation, a tab for each of the paper's tasks, and a look inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError

from m2chat import __version__
from m2chat.app.api import invalid
from m2chat.app.studio import Studio, add_tabs
from m2chat.app.talk import Readings, Talk, as_shelf, stop
from m2chat.app.uploads import MAX_BYTES
from m2chat.app.widgets import AT_ONCE, AT_ONCE_ONLY, QUEUED, WAITING, as_examples, words_box
from m2chat.pipeline import M2ChatPipeline
from m2chat.world import Example

STYLE = Path(__file__).with_name("page.css")
ESCAPE_STOPS = """() => document.addEventListener("keydown", event => {
    if (event.key === "Escape") document.querySelector("#chat-stop")?.click();
})"""
_HEAD = "<h1>M²Chat</h1><p>Say something, show pictures, ask for some. Both sides remember them all.</p>"
_FONTS = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")
_DAY = 24 * 3600


def build_page(
    pipe: M2ChatPipeline,
    hints: Mapping[str, Sequence[Example]] | None = None,
    readings: Readings | None = None,
) -> gr.Blocks:
    """Builds the page.

    Args:
        pipe: Replies.
        hints: Examples of what to say, by task: ``chat``, ``draw``, ``wish``, ``edit``, ``story``; words, or
            words and the picture that is shown with them.
        readings: Reads the pictures of a lens; None where no judge knows the pictures.

    Returns:
        It, ready for `launch`.
    """
    # Files older than a day go away, all of them when the server ends.
    page: gr.Blocks = gr.Blocks(title="M²Chat", analytics_enabled=False, delete_cache=(3600, _DAY), fill_width=False)
    with page:
        head = gr.HTML(_HEAD, elem_id="head")
        shelf = as_shelf(head)
        examples = as_examples(hints or {}, shelf, head)
        with gr.Tab("Chat", elem_id="tab-chat"):
            _add_chat(Talk(pipe, shelf, readings, examples.get("chat", ())))
        add_tabs(Studio(pipe, shelf), examples)
        page.load(None, js=ESCAPE_STOPS)
    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    return page


def _add_chat(talk: Talk) -> None:
    """The conversation."""
    session = gr.State(None, time_to_live=_DAY, delete_callback=stop)
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        height="60vh",
        render_markdown=False,  # what anybody says is text, never markup
        allow_tags=False,
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        placeholder="Say something, or try one of these",
        examples=[
            {"text": said["text"], **({"icon": said["files"][0]} if said["files"] else {})} for said in talk.examples
        ],
        elem_id="chat",
    )
    box = words_box("chat-words", "Enter sends, Escape stops", autofocus=True)
    with gr.Row(elem_id="chat-buttons"):
        halt = gr.Button("Stop", variant="stop", size="sm", elem_id="chat-stop", min_width=60)
        again = gr.Button("Again", size="sm", elem_id="chat-again", min_width=60)
        more = gr.Button("Go on", size="sm", elem_id="chat-more", min_width=60)
        undo = gr.Button("Undo", size="sm", elem_id="chat-undo", min_width=60)
        new = gr.Button("New", size="sm", elem_id="chat-new", min_width=60)
        save = gr.DownloadButton("Save", size="sm", elem_id="chat-save", min_width=60)
        load = gr.UploadButton("Load", size="sm", file_types=[".zip"], elem_id="chat-load", min_width=60)
    settings = _settings()
    with gr.Accordion("See inside", open=False, elem_id="inside"):
        gr.Markdown("What each layer of the language model would paint, and where the queries look (paper, Fig. 5).")
        look = gr.Button("Look into the last picture", elem_id="inside-look")
        told = gr.Textbox(
            show_label=False, label="What was seen", interactive=False, visible=True, lines=1, max_lines=4
        )
        layers = gr.HTML(elem_id="inside-layers", elem_classes="pictures", padding=False)
        plots = gr.HTML(elem_id="inside-plots", elem_classes="plots", padding=False)
    shown = [session, chat, box]
    box.submit(talk.say, [session, box, *settings], shown, **QUEUED)
    chat.example_select(talk.example, [session, *settings], shown, **QUEUED)
    again.click(talk.again, [session, *settings], shown, **QUEUED)
    more.click(talk.go_on, [session, *settings], shown, **QUEUED)
    look.click(talk.look, session, [layers, plots, told], **{**QUEUED, "show_progress": "minimal"})
    halt.click(stop, session, **AT_ONCE_ONLY)
    undo.click(talk.undo, session, shown, **AT_ONCE_ONLY)
    gr.on([new.click, chat.clear], talk.new, session, shown, **AT_ONCE_ONLY)
    load.upload(talk.load, [session, load], shown, **AT_ONCE_ONLY)
    # A button's file is fixed when it is clicked: one that waits for the server downloads it with a second click.
    ready = gr.DownloadButton(visible="hidden", elem_id="chat-save-ready")
    save.click(talk.save, session, ready, **AT_ONCE_ONLY).success(None, js=_DOWNLOAD, api_visibility="private")


_DOWNLOAD = """() => setTimeout(() => document.querySelector("#chat-save-ready")?.click(), 100)"""


def _settings() -> list[Any]:
    """What holds for the replies to come, folded away; in the order of `Talk.configured`."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            image = gr.Radio(
                [("as it sees fit", "auto"), ("always", "force"), ("never", "never")], value="auto", label="Draw",
                elem_id="setting-draw",
            )  # fmt: skip
            most = gr.Slider(1, 8, 4, step=1, label="Most pictures of a reply", elem_id="setting-most")
        with gr.Row():
            steps = gr.Slider(1, 50, 25, step=1, label="Denoising steps", elem_id="setting-steps")
            guidance = gr.Slider(1, 15, 5, step=0.5, label="Guidance")
        with gr.Row():
            seed = gr.Number(-1, label="Seed (-1: another each time)", precision=0, minimum=-1, maximum=2**31 - 1,
                             elem_id="setting-seed")  # fmt: skip
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature of the words")
            words = gr.Slider(8, 128, 64, step=8, label="Longest answer, in tokens")
    return [image, most, steps, guidance, seed, temperature, words]


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Serves a page.

    Args:
        page: What `build_page` made.
        host: Where it listens.
        port: Of 0-65535; 0 takes a free one.
        block: Whether to stay until it is interrupted.

    Returns:
        Its address.
    """
    theme = gr.themes.Soft(primary_hue="teal", secondary_hue="teal", font=_FONTS, font_mono=_MONO)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
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
        app_kwargs={"exception_handlers": {RequestValidationError: invalid}},  # FastAPI's own repeats what it was sent
    )
    print(f"M²Chat {__version__} at {address} (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return str(address)
