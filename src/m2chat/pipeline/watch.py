"""What may look on while pictures are drawn: a progress bar, and a callback as diffusers has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from m2chat.models.image_decoder import Denoising, OnStep

if TYPE_CHECKING:
    from m2chat.pipeline.pipeline import M2ChatPipeline

OnStepEnd = Callable[["M2ChatPipeline", int, int, dict[str, Any]], dict[str, Any]]
"""As in diffusers: pipeline, step from 0, timestep, and ``{"latents": ...}``, which it returns, changed or not."""


class Watch:
    """The progress bar and the caller's callback around a drawing.

    Args:
        pipe: Whose drawing.
        callback: Of the caller.
    """

    def __init__(self, pipe: M2ChatPipeline, callback: OnStepEnd | None) -> None:
        self.pipe, self.callback = pipe, callback
        self.bar: Any = None

    def __enter__(self) -> OnStep:
        self.pipe._interrupt = False
        return self._step

    def _step(self, state: Denoising) -> bool:
        if self.bar is None:  # a reply without pictures shows none
            from tqdm.auto import tqdm

            self.bar = tqdm(total=state.steps, **self.pipe._progress)
        self.bar.update()
        if self.callback is not None:
            changed = self.callback(self.pipe, state.step - 1, state.timestep, {"latents": state.latents})
            state.latents = (changed or {}).get("latents", state.latents)
        return self.pipe._interrupt

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
