"""The web page in a browser: how tests open it, and a visitor's hands and eyes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2chat.data.images import save_png
from m2chat.pipeline import M2ChatPipeline
from m2chat.worlds.shapes.scenes import Scene, Shape, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = os.environ.get("M2CHAT_SHOTS")
"""A folder for screenshots, to look at them."""
STEPS = 25 if SHOTS else 2
"""Denoising steps: few where nobody looks."""
CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8").partition("\n")[2]
WAIT = 60_000
"""Milliseconds; long, because the machine may be busy."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs m2chat[serve]")
    from m2chat.app.about import examples_of, readings_of
    from m2chat.app.page import build_page, launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        pipe = M2ChatPipeline.from_pretrained()
        page = build_page(pipe, examples_of(pipe), partial(readings_of, pipe))
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
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visitor:
    """Somebody new on the page.

    Args:
        page: Playwright's, not yet opened.
        address: Of the web page.
        wrong: What goes wrong is added here: errors of the console, and requests that go off the machine.
    """

    def __init__(self, page: Any, address: str, wrong: list[str]) -> None:
        self.page = page
        self._address, self._wrong = address, wrong
        self._streams: set[Any] = set()
        page.set_default_timeout(WAIT)
        page.on("request", self._asked)
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, lambda request: self._streams.discard(request))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#chat-words textarea")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self._address, "data:", "blob:")):
            self._wrong.append(f"asked for {request.url}")
        if "/queue/data" in request.url:
            self._streams.add(request)

    def rest(self) -> None:
        """Waits until nothing streams in: who leaves earlier breaks a connection off, and the browser says so."""
        end = time.monotonic() + WAIT / 1000
        while self._streams:
            assert time.monotonic() < end, "a stream does not end"
            self.page.wait_for_timeout(50)

    def stop(self, act: Callable[[], None]) -> None:
        """Does what stops the work, and waits until the server has answered that it is to stop."""
        with self.page.expect_response(lambda answer: "/run/" in answer.url):
            act()

    def settings(self, draw: str = "always", steps: int = STEPS, most: int = 1) -> None:
        """Unfolds the settings and makes replies quick."""
        self.page.click("#settings button.label-wrap")
        self.page.get_by_label(draw, exact=True).check()
        for name, value in (("setting-steps", steps), ("setting-most", most), ("setting-seed", 0)):
            box = self.page.locator(f"#{name} input[type=number]")
            self._set(box, value)

    def _set(self, box: Any, value: int) -> None:
        """Types a number, and waits until the page has taken it over: then a slider beside it stands there too."""
        from playwright.sync_api import TimeoutError as Late

        slider = box.locator("xpath=ancestor::*[contains(@class, 'block')][1]").locator("input[type=range]")
        taken = "([slider, value]) => slider.value === value"
        for _ in range(WAIT // 5000):  # a page that is still being set up puts the old number back
            box.fill(str(value))
            box.blur()
            if slider.count() != 1:
                return
            with suppress(Late):
                self.page.wait_for_function(taken, arg=[slider.element_handle(), str(value)], timeout=5000)
                return
        raise AssertionError(f"the page does not take {value} over")

    def say(self, text: str, picture: Path | None = None) -> None:
        """Sends words, and a picture."""
        if picture is not None:
            self.page.set_input_files("#chat-words input[type=file]", str(picture))
            self.page.wait_for_selector("#chat-words .thumbnail-item")
        self.page.fill("#chat-words textarea", text)
        self.page.press("#chat-words textarea", "Enter")

    def captions(self) -> list[str]:
        """The lines below the conversation's pictures."""
        return list(self.page.locator("#chat figcaption").all_inner_texts())

    def wait_for(self, text: str) -> None:
        """Waits until a text stands in the conversation."""
        self.page.locator("#chat").get_by_text(text).first.wait_for()

    def open_tab(self, name: str, **numbers: int) -> Any:
        """Opens the tab of a task, sets numbers by their labels' words with "_" for blanks, and returns it."""
        self.page.get_by_role("tab", name=name).locator("visible=true").click()
        panel = self.page.locator(f"#tab-{name.lower()}")
        panel.locator("button.label-wrap", has_text="Settings").click()
        for label, value in numbers.items():
            box = panel.get_by_label(label.replace("_", " ")).first
            self._set(box, value)
        return panel

    def faint(self) -> list[Any]:
        """Texts that are seen and whose contrast is too low: contrast, text, class."""
        return list(self.page.evaluate(CONTRAST))

    def shot(self, name: str) -> None:
        """Keeps a screenshot, where that is asked for."""
        if SHOTS:
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=f"{SHOTS}/{name}-{self.page.viewport_size['width']}.png", full_page=True)


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Visitor]]:
    """Opens the page as somebody new; in the end nothing was wrong, and nothing went off the machine."""
    wrong: list[str] = []
    contexts = []

    def opened(width: int = 1200, scheme: str = "light") -> Visitor:
        size = {"width": width, "height": 900 if width > 640 else 844}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, offline=False))
        return Visitor(contexts[-1].new_page(), address, wrong)

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
