"""The web page in a browser, as people use it: at a desk and on a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2chat.worlds.shapes.phrases import examples

EXAMPLES = examples()
RETRY, UNDO = (f"#chat button[aria-label='{name}']" for name in ("Retry", "Undo"))


@pytest.mark.parametrize("width", [390, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_conversation(width: int, visit: Callable[..., Any], picture: Path, tmp_path: Path) -> None:
    visitor = visit(width)
    page = visitor.page
    visitor.shot("start")
    visitor.settings()
    visitor.say("<b>please</b> <img src=x onerror=alert(1)> paint a *large* red circle <|img|>")
    visitor.wait_for("Picture 1: ")
    asked = page.locator("#chat .user-row").first
    assert "<b>please</b> <img src=x onerror=alert(1)> paint a *large* red circle <|img|>" in asked.inner_text()
    assert asked.locator("b, em, img").count() == 0
    visitor.say("turn it into a ring", picture)
    visitor.wait_for("Picture 3: ")
    alt = page.locator("#chat .bot-row img").last.get_attribute("alt")
    assert alt == visitor.captions()[-1] and "gate" in alt
    # The line below a picture may come before the browser has fetched it.
    page.wait_for_function("[...document.querySelectorAll('#chat img')].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.shot("chat")
    kept = visitor.captions()
    with page.expect_download() as saved:
        page.click("#chat-save")
    saved.value.save_as(tmp_path / "talk.zip")
    page.click(UNDO)
    page.wait_for_function("document.querySelectorAll('#chat figcaption').length === 1")
    assert page.input_value("#chat-words textarea") == "turn it into a ring"
    page.click("#chat-new")
    page.wait_for_function("document.querySelectorAll('#chat figcaption').length === 0")
    with page.expect_file_chooser() as chooser:
        page.click("#chat-load")
    chooser.value.set_files(str(tmp_path / "talk.zip"))
    visitor.wait_for("Picture 3: ")
    assert visitor.captions() == kept
    page.click("#chat-more")
    visitor.wait_for("Picture 4: ")
    page.click("#inside button.label-wrap")
    assert page.locator("#inside textarea").count() == 0, "an empty box before there is anything in it"
    page.click("#inside-look")
    page.locator("#inside-plots img").nth(3).wait_for()
    images = page.locator("#inside-layers img, #inside-plots img")
    assert images.evaluate_all("images => images.every(image => image.clientWidth <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.shot("inside")


def test_a_reply_is_stopped_by_button_and_by_key(visit: Callable[..., Any], drawing: Any) -> None:
    visitor = visit()
    page = visitor.page
    visitor.settings(steps=50, most=8)
    for stop in (lambda: page.click("#chat-stop"), lambda: page.keyboard.press("Escape")):
        drawing.hold_at(drawing.steps + 3)
        visitor.say("please paint a large red circle on the left on a blue background")
        page.locator("#chat .bot-row").get_by_text("Drawing, step").last.wait_for()
        visitor.stop(stop)
        drawing.go_on()
        # What was there stays, with a remark; if there was nothing, the words return into the box.
        page.wait_for_function(
            """document.querySelector("#chat-words textarea").value.startsWith("please")
            || [...document.querySelectorAll("#chat .remark")].some(line => line.textContent === "stopped")"""
        )
        assert page.locator("#chat").get_by_text("Drawing, step").count() == 0
        page.wait_for_function("document.querySelector('#chat-stop').disabled")
        if page.locator("#chat-new").is_enabled():  # there is a conversation to leave
            page.click("#chat-new")
        page.wait_for_function("document.querySelectorAll('#chat .bot-row').length === 0")


BUTTONS = ("stop", "more", "new", "save")


def usable(page: Any) -> set[str]:
    """The buttons of the conversation that can be clicked."""
    return {name for name in BUTTONS if page.locator(f"#chat-{name}").is_enabled()}


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1200, "light"),
        (390, "dark"),
        pytest.param(1200, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_it_can_be_read_and_follows_the_conversation(width: int, scheme: str, visit: Callable[..., Any]) -> None:
    visitor = visit(width, scheme)
    page = visitor.page
    assert usable(page) == set()
    assert page.locator("#chat .example").last.bounding_box()["y"] < 844, "examples are seen without scrolling"
    assert visitor.faint() == []
    visitor.settings()
    for number in (1, 2, 3):
        visitor.say("please paint a large red circle on the left on a blue background")
        visitor.wait_for(f"Picture {number}: ")
        page.wait_for_function("!document.querySelector('#chat-more').disabled")
        assert usable(page) == set(BUTTONS) - {"stop"}
        # The last picture, whole, within the part of the conversation that is seen.
        page.wait_for_function(
            """() => { const picture = [...document.querySelectorAll("#chat img")].at(-1).getBoundingClientRect(),
            seen = document.querySelector("#chat").getBoundingClientRect();
            return picture.height > 100 && picture.top >= seen.top && picture.bottom <= seen.bottom; }"""
        )
    page.click("#inside button.label-wrap")
    page.wait_for_timeout(300)  # it unfolds
    assert visitor.faint() == []
    visitor.shot(f"read-{scheme}")


def test_users_do_not_see_each_other(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    first.settings()
    first.say("please paint a large red circle on the left on a blue background")
    first.wait_for("Picture 1: ")
    assert second.page.locator("#chat-more").is_disabled()
    second.settings()
    second.say("hello")
    second.wait_for("Picture 1: ")
    assert "red circle" not in second.page.locator("#chat").inner_text()
    second.rest()
    second.page.reload()
    second.page.wait_for_selector("#chat-words textarea")
    assert second.captions() == []


def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    visitor = visit()
    page = visitor.page
    visitor.settings()
    assert page.get_by_role("tab", name="Chat").count() > 0
    page.focus("#chat-words textarea")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    visitor.wait_for("Picture 1: ")
    # A button that is still disabled cannot be reached: they come back after the reply's last words.
    page.wait_for_function("!document.querySelector('#chat-more').disabled")
    reached = set()
    for number in range(18):
        if number == 12:  # what belongs to the last message stands before the box
            page.focus("#chat-words textarea")
        page.keyboard.press("Tab" if number < 12 else "Shift+Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.closest('[id]').id"))
    assert {"Retry", "Undo", "chat-more", "chat-new"} <= reached


def test_what_is_no_picture_is_refused_in_words(visit: Callable[..., Any], tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.page
    path = tmp_path / "page.png"
    path.write_text("<script>alert(1)</script>")
    visitor.say("look", path)
    page.get_by_text("that is no picture").wait_for()
    assert page.input_value("#chat-words textarea") == "look"


def test_an_example_is_said_with_a_click(visit: Callable[..., Any]) -> None:
    visitor = visit()
    page = visitor.page
    visitor.settings()
    page.get_by_role("button", name=EXAMPLES["chat"][0]).click()
    visitor.wait_for("Picture 1: ")
    assert EXAMPLES["chat"][0] in page.locator("#chat .user-row").inner_text()


def test_examples_with_a_picture_show_it(visit: Callable[..., Any]) -> None:
    visitor = visit(390)
    page = visitor.page
    visitor.settings()
    example = page.get_by_role("button", name="turn it into a ring")
    assert example.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    visitor.shot("examples")
    example.click()
    visitor.wait_for("Picture 2: ")
    assert len(visitor.captions()) == 2 and page.locator("#chat .user-row img").count() == 1
    panel = visitor.open_tab("Edit", Denoising_steps=2)
    visitor.shot("edit-example")
    panel.locator(".gallery-item, tr.tr-body, .table tbody tr").first.click()
    page.wait_for_selector("#edit-words .thumbnail-item")
    page.click("#edit-go")
    page.locator("#edit-pictures figure").nth(3).wait_for()
    visitor.shot("edit-example-done")
