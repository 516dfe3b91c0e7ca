"""The tabs of the paper's tasks in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2chat.worlds.shapes.phrases import examples

EXAMPLES = examples()


@pytest.mark.parametrize("width", [1200, pytest.param(390, marks=pytest.mark.slow)])
def test_the_tasks(width: int, visit: Callable[..., Any], picture: Path) -> None:
    visitor = visit(width)
    page = visitor.page

    def drawn(name: str, count: int) -> None:
        page.locator(f"#{name}-pictures figure").nth(count - 1).wait_for()
        assert page.locator(f"#{name}-pictures figure").count() == count

    visitor.open_tab("Draw", Denoising_steps=2)
    page.fill("#draw-words textarea", "a small red ring at the top on a white background")
    page.press("#draw-words textarea", "Enter")
    drawn("draw", 1)
    visitor.open_tab("Wish", Denoising_steps=2)
    page.fill("#wish-words textarea", EXAMPLES["wish"][0])
    page.click("#wish-go")
    drawn("wish", 4)
    visitor.shot("wish")
    visitor.open_tab("Edit", Denoising_steps=2)
    page.set_input_files("#edit-words input[type=file]", str(picture))
    page.wait_for_selector("#edit-words .thumbnail-item")
    page.fill("#edit-words textarea", "turn it into a ring\nmake it small")
    page.click("#edit-go")
    drawn("edit", 3)
    visitor.shot("edit")
    visitor.open_tab("Story", Denoising_steps=2)
    page.fill("#story-words textarea", EXAMPLES["story"][0])
    page.click("#story-go")
    drawn("alone", 4)
    drawn("story", 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.shot("story")


def test_draw_is_stopped_within_a_step(visit: Callable[..., Any], drawing: Any) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open_tab("Draw", Denoising_steps=8, Pictures=4)
    page.fill("#draw-words textarea", EXAMPLES["draw"][0])
    drawing.hold_at(11)  # the third step of the second picture
    page.click("#draw-go")
    page.locator("#draw-pictures figure").first.wait_for()
    drawing.wait(page)
    visitor.stop(lambda: page.click("#draw-stop"))
    drawing.go_on()
    drawing.wait_for_the_end(page)
    assert drawing.steps == 11 and page.locator("#draw-pictures figure").count() == 1
