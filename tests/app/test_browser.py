"""The web page in a browser, as people use it: at a desk and on a telephone."""

# ruff: noqa: E402  (what may be missing is asked for first)
from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs m2chat[serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")

from m2chat.commands.lens import readings
from m2chat.commands.serve import HINTS, hints
from m2chat.data.images import save_png
from m2chat.pipeline import M2ChatPipeline
from m2chat.world import Scene, Shape, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
WIDTHS = (1200, 390)
SHOTS = os.environ.get("M2CHAT_SHOTS")
"""A folder for screenshots, to look at them."""
WAIT = 60_000
"""Milliseconds; long, because the machine may be busy."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from m2chat.app.page import build_page, launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = build_page(M2ChatPipeline.from_pretrained(), hints(), readings)
        yield launch(page, port=0, block=False)
        page.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "square.png"
    scene = Scene(Shape("square", "yellow"), "black", None, "large", "middle")
    path.write_bytes(save_png(render(scene, np.random.default_rng(0))))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as somebody new; in the end nothing was wrong, and nothing went off the machine."""
    wrong: list[str] = []

    def look(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(f"asked for {request.url}")

    contexts = []

    def opened(width: int = 1200) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=False))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", look)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#chat-words textarea")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def settings(page: Any, draw: str = "always", steps: int = 2, most: int = 1) -> None:
    """Unfolds the settings and makes replies quick."""
    page.click("#settings button.label-wrap")
    page.get_by_label(draw, exact=True).check()
    for name, value in (("setting-steps", steps), ("setting-most", most), ("setting-seed", 0)):
        box = page.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.blur()


def say(page: Any, text: str, picture: Path | None = None) -> None:
    if picture is not None:
        page.set_input_files("#chat-words input[type=file]", str(picture))
        page.wait_for_selector("#chat-words .thumbnail-item")
    page.fill("#chat-words textarea", text)
    page.press("#chat-words textarea", "Enter")


def captions(page: Any) -> list[str]:
    return [text for text in page.locator("#chat figcaption").all_inner_texts()]


def wait_for(page: Any, text: str) -> None:
    page.locator("#chat").get_by_text(text).first.wait_for()


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(500)
        page.screenshot(path=f"{SHOTS}/{name}-{page.viewport_size['width']}.png", full_page=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_conversation(width: int, visit: Callable[..., Any], picture: Path, tmp_path: Path) -> None:
    page = visit(width)
    shot(page, "start")
    settings(page)
    say(page, "<b>please</b> <img src=x onerror=alert(1)> paint a *large* red circle <|img|>")
    wait_for(page, "Picture 1: ")
    asked = page.locator("#chat .user-row").first
    assert "<b>please</b> <img src=x onerror=alert(1)> paint a *large* red circle <|img|>" in asked.inner_text()
    assert asked.locator("b, em, img").count() == 0
    say(page, "turn it into a ring", picture)
    wait_for(page, "Picture 3: ")
    alt = page.locator("#chat .bot-row img").last.get_attribute("alt")
    assert alt == captions(page)[-1] and "gate" in alt
    # The line below a picture may come before the browser has fetched it.
    page.wait_for_function("[...document.querySelectorAll('#chat img')].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, "chat")
    kept = captions(page)
    with page.expect_download() as saved:
        page.click("#chat-save")
    saved.value.save_as(tmp_path / "talk.zip")
    page.click("#chat-undo")
    page.wait_for_function("document.querySelectorAll('#chat figcaption').length === 1")
    assert page.input_value("#chat-words textarea") == "turn it into a ring"
    page.click("#chat-new")
    page.wait_for_function("document.querySelectorAll('#chat figcaption').length === 0")
    with page.expect_file_chooser() as chooser:
        page.click("#chat-load")
    chooser.value.set_files(str(tmp_path / "talk.zip"))
    wait_for(page, "Picture 3: ")
    assert captions(page) == kept
    page.click("#chat-more")
    wait_for(page, "Picture 4: ")
    page.click("#inside button.label-wrap")
    page.click("#inside-look")
    page.locator("#inside-plots img").nth(3).wait_for()
    images = page.locator("#inside-layers img, #inside-plots img")
    assert images.evaluate_all("images => images.every(image => image.clientWidth <= innerWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, "inside")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tasks(width: int, visit: Callable[..., Any], picture: Path) -> None:
    page = visit(width)

    def open_tab(name: str) -> None:
        page.get_by_role("tab", name=name).locator("visible=true").click()
        panel = page.locator(f"#tab-{name.lower()}")
        panel.locator("button.label-wrap", has_text="Settings").click()
        steps = panel.get_by_label("Denoising steps").first
        steps.fill("2")
        steps.blur()

    def drawn(name: str, count: int) -> None:
        page.locator(f"#{name}-pictures figure").nth(count - 1).wait_for()
        assert page.locator(f"#{name}-pictures figure").count() == count

    open_tab("Draw")
    page.fill("#draw-words textarea", "a small red ring at the top on a white background")
    page.press("#draw-words textarea", "Enter")
    drawn("draw", 1)
    open_tab("Wish")
    page.fill("#wish-words textarea", HINTS["wish"][0])
    page.click("#wish-go")
    drawn("wish", 4)
    shot(page, "wish")
    open_tab("Edit")
    page.set_input_files("#edit-words input[type=file]", str(picture))
    page.wait_for_selector("#edit-words .thumbnail-item")
    page.fill("#edit-words textarea", "turn it into a ring\nmake it small")
    page.click("#edit-go")
    drawn("edit", 3)
    shot(page, "edit")
    open_tab("Story")
    page.fill("#story-words textarea", HINTS["story"][0])
    page.click("#story-go")
    drawn("alone", 4)
    drawn("story", 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot(page, "story")


def test_a_reply_is_stopped_by_button_and_by_key(visit: Callable[..., Any], drawing: Any) -> None:
    page = visit()
    settings(page, steps=50, most=8)
    for stop in (lambda: page.click("#chat-stop"), lambda: page.keyboard.press("Escape")):
        drawing.hold_at(drawing.steps + 3)
        say(page, "please paint a large red circle on the left on a blue background")
        page.locator("#chat .bot-row").get_by_text("Drawing, step").last.wait_for()
        stop()
        page.wait_for_timeout(500)
        drawing.go_on()
        # What was there stays, with a remark; if there was nothing, the words return into the box.
        page.wait_for_function(
            """document.querySelector("#chat-words textarea").value.startsWith("please")
            || [...document.querySelectorAll("#chat .remark")].some(line => line.textContent === "stopped")"""
        )
        assert page.locator("#chat").get_by_text("Drawing, step").count() == 0
        page.click("#chat-new")
        page.wait_for_function("document.querySelectorAll('#chat .bot-row').length === 0")


def test_users_do_not_see_each_other(visit: Callable[..., Any]) -> None:
    first, second = visit(), visit()
    settings(first)
    say(first, "please paint a large red circle on the left on a blue background")
    wait_for(first, "Picture 1: ")
    second.click("#chat-more")
    second.get_by_text("say something first").wait_for()
    settings(second)
    say(second, "hello")
    wait_for(second, "Picture 1: ")
    assert "red circle" not in second.locator("#chat").inner_text()
    second.reload()
    second.wait_for_selector("#chat-words textarea")
    assert captions(second) == []


def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    page = visit()
    settings(page)
    assert page.get_by_role("tab", name="Chat").count() > 0
    page.focus("#chat-words textarea")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    wait_for(page, "Picture 1: ")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]').id"))
    assert {"chat-stop", "chat-again", "chat-more", "chat-undo", "chat-new"} <= reached


def test_what_is_no_picture_is_refused_in_words(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    path = tmp_path / "page.png"
    path.write_text("<script>alert(1)</script>")
    say(page, "look", path)
    page.get_by_text("that is no picture").wait_for()
    assert page.input_value("#chat-words textarea") == "look"


def test_an_example_is_said_with_a_click(visit: Callable[..., Any]) -> None:
    page = visit()
    settings(page)
    page.get_by_role("button", name=HINTS["chat"][0]).click()
    wait_for(page, "Picture 1: ")
    assert HINTS["chat"][0] in page.locator("#chat .user-row").inner_text()


def test_examples_with_a_picture_show_it(visit: Callable[..., Any]) -> None:
    page = visit(390)
    settings(page)
    example = page.get_by_role("button", name="turn it into a ring")
    assert example.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    shot(page, "examples")
    example.click()
    wait_for(page, "Picture 2: ")
    assert len(captions(page)) == 2 and page.locator("#chat .user-row img").count() == 1
    page.get_by_role("tab", name="Edit").locator("visible=true").click()
    panel = page.locator("#tab-edit")
    panel.locator("button.label-wrap", has_text="Settings").click()
    panel.get_by_label("Denoising steps").first.fill("2")
    panel.get_by_label("Denoising steps").first.blur()
    shot(page, "edit-example")
    panel.locator(".gallery-item, tr.tr-body, .table tbody tr").first.click()
    page.wait_for_selector("#edit-words .thumbnail-item")
    page.click("#edit-go")
    page.locator("#edit-pictures figure").nth(3).wait_for()
    shot(page, "edit-example-done")


def test_draw_is_stopped_within_a_step(visit: Callable[..., Any], drawing: Any) -> None:
    page = visit()
    page.get_by_role("tab", name="Draw").locator("visible=true").click()
    page.locator("#tab-draw").locator("button.label-wrap", has_text="Settings").click()
    for name, value in (("Denoising steps", "8"), ("Pictures", "4")):
        box = page.locator("#tab-draw").get_by_label(name).first
        box.fill(value)
        box.blur()
    page.fill("#draw-words textarea", HINTS["draw"][0])
    drawing.hold_at(11)  # the third step of the second picture
    page.click("#draw-go")
    page.locator("#draw-pictures figure").first.wait_for()
    drawing.wait(page)
    page.click("#draw-stop")
    page.wait_for_timeout(1000)
    drawing.go_on()
    page.wait_for_timeout(2000)
    assert drawing.steps == 11 and page.locator("#draw-pictures figure").count() == 1
