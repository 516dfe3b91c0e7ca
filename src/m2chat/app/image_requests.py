"""``/v1/images/generations``: text-to-image in OpenAI's form."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from m2chat.app.limits import require_affordable
from m2chat.app.requests import LenientBody
from m2chat.data.images import save_png
from m2chat.pipeline import M2ChatPipeline, OutputImage
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import text_to_image

MAX_PROMPT = 32_000
"""Maximum length of a prompt, as OpenAI's; the text encoders read its first 77 tokens."""


class ImagesRequest(LenientBody):
    """The body of a request: a prompt, which is drawn as it is."""

    harmless = frozenset({"user", "quality", "style", "moderation", "output_compression"})
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {
        "background": ("auto", "opaque"), "output_format": ("png",), "stream": (False,), "partial_images": (0,),
        "negative_prompt": ("",),
    }  # fmt: skip

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str = "m2chat"
    n: int = Field(default=1, ge=1, le=10)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    steps: int | None = Field(default=None, ge=1, le=100)
    guidance: float | None = Field(default=None, ge=0, le=30)

    @field_validator("size")
    @classmethod
    def _sides(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value):
            raise ValueError('must be "auto" for the usual size, or WIDTHxHEIGHT such as "1024x1024"')
        return value

    def outputs(self, pipe: M2ChatPipeline, stop: Event) -> Iterator[dict[str, Any]]:
        """The pictures, one after another, as they stand in ``data``.

        Args:
            pipe: Pipeline.
            stop: Event that ends the work before its next denoising step.

        Raises:
            UserError: If the prompt is empty, or VAE and UNet cannot draw the size.
        """
        width: int | None = None
        height: int | None = None
        if self.size != "auto":
            width, height = map(int, self.size.split("x"))
        require_affordable(pipe, height, width)
        how: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "height": height, "width": width}
        given = {name: value for name, value in how.items() if value is not None}
        first = secrets.randbelow(2**31) if self.seed is None else self.seed
        for number in range(self.n):
            for output in text_to_image(pipe, self.prompt, (first + number,), stop, **given):
                for part in output.segments:
                    if isinstance(part, OutputImage):
                        picture = base64.b64encode(save_png(as_pixels(part.image))).decode("ascii")
                        yield {"b64_json": picture, "revised_prompt": part.caption}
