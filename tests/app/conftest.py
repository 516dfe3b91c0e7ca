"""What tests of talking share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from m2chat.models.image_decoder import ImageDecoder

WAIT = 60
"""Seconds; long, because the machine may be busy."""


class Drawing:
    """Counts denoising steps, and can halt one: a busy machine may draw a whole picture between two looks."""

    def __init__(self) -> None:
        self.steps, self._at = 0, 0
        self._go, self._there, self._over = threading.Event(), threading.Event(), threading.Event()

    def hold_at(self, step: int) -> None:
        """The step of that number will wait."""
        self._at = step
        self._go.clear()
        self._there.clear()

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._over.clear()
            self._there.set()
            self._go.wait(WAIT)

    def end(self) -> None:
        self._over.set()

    def wait(self, page: Any) -> None:
        """Waits until a step waits."""
        self._until(self._there, page)

    def wait_for_the_end(self, page: Any) -> None:
        """Waits until the picture whose step has waited is drawn, or drawn no further."""
        self._until(self._over, page)

    def _until(self, event: threading.Event, page: Any) -> None:
        end = time.monotonic() + WAIT
        while not event.is_set():
            assert time.monotonic() < end
            page.wait_for_timeout(50)

    def go_on(self) -> None:
        self._go.set()


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawing]:
    seen, denoise = Drawing(), ImageDecoder.denoise

    def watched(self: ImageDecoder, *args: Any) -> Iterator[Any]:
        try:
            for state in denoise(self, *args):
                seen.step()
                yield state
        finally:
            seen.end()

    monkeypatch.setattr(ImageDecoder, "denoise", watched)
    yield seen
    seen.go_on()
