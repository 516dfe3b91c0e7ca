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
        self._go, self._there = threading.Event(), threading.Event()

    def hold_at(self, step: int) -> None:
        """The step of that number will wait."""
        self._at = step
        self._go.clear()
        self._there.clear()

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._there.set()
            self._go.wait(WAIT)

    def wait(self, page: Any) -> None:
        """Waits until a step waits."""
        end = time.monotonic() + WAIT
        while not self._there.is_set():
            assert time.monotonic() < end
            page.wait_for_timeout(50)

    def go_on(self) -> None:
        self._go.set()


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawing]:
    seen, denoise = Drawing(), ImageDecoder.denoise

    def watched(self: ImageDecoder, *args: Any) -> Iterator[Any]:
        for state in denoise(self, *args):
            seen.step()
            yield state

    monkeypatch.setattr(ImageDecoder, "denoise", watched)
    yield seen
    seen.go_on()
