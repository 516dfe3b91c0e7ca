"""The terminal chat as a user meets it: lines in, words and pictures out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from m2chat.app.about import examples_of
from m2chat.app.terminal import COMMANDS, TerminalChat, blocks
from m2chat.data.images import load_image, save_png
from m2chat.pipeline import M2ChatPipeline
from m2chat.worlds.shapes.scenes import Scene, Shape, render

PICTURE = render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))
Talk = Callable[..., str]


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    return M2ChatPipeline.from_pretrained()


@pytest.fixture
def chat(pipe: M2ChatPipeline, tmp_path: Path) -> TerminalChat:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    chat = TerminalChat(pipe, console, tmp_path / "pictures", examples_of(pipe)["chat"])
    chat.session.configure(steps=2, seed=0, max_new_tokens=24, max_images=1)
    return chat


@pytest.fixture
def talk(chat: TerminalChat) -> Talk:
    def said(*lines: str) -> str:
        left = iter(lines)

        def read() -> str:
            line = next(left, None)
            if line is None:
                raise EOFError
            return line

        chat.console.file = io.StringIO()
        chat.run(read)
        return chat.console.file.getvalue()

    return said


def test_help_lists_every_command(talk: Talk) -> None:
    shown = talk("!help", "!exit", "never read")
    assert all(command in shown for command in COMMANDS)
    assert shown.count("for example: ") == 3 and "for example: I dream of a ball" in shown


def test_a_reply_with_a_picture_that_is_saved(talk: Talk, chat: TerminalChat, tmp_path: Path) -> None:
    shown = talk("!draw force", "please paint a large red circle on the left on a blue background")
    path = tmp_path / "pictures" / "picture-0001.png"
    assert "picture 1: " in shown and str(path) in shown.replace("\n", "")
    assert np.array_equal(load_image(path.read_bytes()), chat.session.images[0].pixels)


def test_pictures_are_shown_undone_saved_and_loaded(talk: Talk, chat: TerminalChat, tmp_path: Path) -> None:
    (tmp_path / "my picture.png").write_bytes(save_png(PICTURE))
    talk(f"!image '{tmp_path / 'my picture.png'}'", "!draw never", "which colour does it have ?")
    assert len(chat.session.images) == 1 and chat.session.turns[0].pictures == (0,)
    talk(f"!save {tmp_path / 'talk'}", "!undo")
    assert chat.session.turns == ()
    assert "2 turns, 1 pictures" in talk(f"!load {tmp_path / 'talk'}")
    assert "which colour" in talk("!undo")
    talk("hello", "!again how are you ?", "!more", "!seed 7")
    assert [turn.role for turn in chat.session.turns] == ["user", "assistant", "assistant"]
    assert chat.session.turns[0].text == "how are you ?" and chat.session.settings.seed == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("!nothing", "there is no command !nothing"),
        ("!image", "name one path"),
        ("!image /nowhere.png", "cannot be shown"),
        ("!image 'half", "No closing quotation"),
        ("!draw maybe", "choose auto, force or never"),
        ("!seed -1", "a whole number"),
        ("!undo", "nothing to undo"),
        ("!again", "say something first"),
        ("!load /nowhere", "there is no session"),
    ],
)
def test_mistakes_get_one_message_and_the_chat_goes_on(line: str, message: str, talk: Talk) -> None:
    assert message in talk(line, "!exit")


def test_what_is_typed_stays_text(talk: Talk, chat: TerminalChat) -> None:
    talk("!draw never", "[bold]<|img|>[/bold]", "!undo")
    assert "[bold]<|img|>[/bold]" in talk("[bold]<|img|>[/bold]", "!undo")


def test_ctrl_c_stops_the_reply_and_keeps_what_there_is(chat: TerminalChat, talk: Talk) -> None:
    original, seen = chat._event, []

    def interrupted(*args: object) -> None:
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        original(*args)  # type: ignore[arg-type]

    chat._event = interrupted  # type: ignore[method-assign]
    assert "(stopped)" in talk("!draw never", "hello")
    assert len(seen) == 4 and chat.session.notes[-1]["stopped"]


def test_blocks_are_two_pixels_a_character() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1, 2] = (255, 0, 0)
    text = blocks(picture)
    assert [len(line) for line in text.plain.splitlines()] == [6, 6]
    style = text.spans[2].style
    assert style.bgcolor.triplet == (255, 0, 0) and style.color.triplet == (0, 0, 0)  # type: ignore[union-attr]
    assert len(blocks(np.zeros((90, 120, 3), np.uint8), 40).plain.splitlines()[0]) == 40
