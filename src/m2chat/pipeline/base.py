"""A model with its tokenizers and settings: the part of the pipeline that sessions and tasks share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from m2chat.data.network_inputs import VisionInput
from m2chat.errors import UserError
from m2chat.models.fingerprints import drawing_name
from m2chat.models.generation import Decoding
from m2chat.models.layouts import lay_out
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import Condition
from m2chat.models.mapped import place
from m2chat.models.memory import MemoryMode, fit_to_memory
from m2chat.models.schedulers import Interval, checked_interval, scheduler_name
from m2chat.pipeline.describer import describe
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.events import Event, finish, in_turns
from m2chat.pipeline.inputs import checked_text, vision_pixels
from m2chat.pipeline.replier import IMAGE_MODES, ImageMode
from m2chat.pipeline.streaming import StreamingReplier
from m2chat.pipeline.weights import Origin
from m2chat.ranges import check_ranges
from m2chat.schema import Conversation, Picture
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer

if TYPE_CHECKING:
    from typing import Self


MAX_NEW_TOKENS = 96
"""Maximum length of an answer, in tokens, where none is given."""


class PipelineBase:
    """Generates replies, captions and pictures with one model; may be used from several threads.

    Args:
        model: Model in evaluation mode.
        origin: Source of its weights.
        max_tokens: Maximum length of a sequence, conversation and reply together; None takes the one of the training.
    """

    def __init__(self, model: M2ChatModel, origin: Origin, max_tokens: int | None = None) -> None:
        if max_tokens is not None:
            check_ranges(max_tokens=max_tokens)
        self.model, self.origin = model, origin
        self.layout = Layout(
            M2ChatTokenizer(origin.backbone.language_model),
            origin.backbone.num_image_tokens,
            max_tokens or origin.max_tokens,
            origin.prompt,
        )
        self.captions = CaptionTokens(origin.backbone.image_decoder)
        self.vision = VisionInput.of(origin.backbone.vision_encoder)
        self.lock = threading.Lock()
        """Held during every piece of computation, released while events are handled."""
        self.listener: Callable[[Event], object] | None = None
        """Called with the events of sessions, and with the denoising steps of tasks, such as to show progress."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model to a device or a dtype, as `torch.nn.Module.to`; buffers keep their precision."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        place(self.model, device or self.device, dtype)
        lay_out(self.model)
        return self

    def fit_to_memory(
        self, mode: MemoryMode, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Prepares the model, instead of `to`, for generation within a device's memory; see `models.memory`.

        Args:
            mode: ``high``, ``balanced`` or ``low``.
            device: Device of the computation.
            dtype: Precision of the weights that stay whole; None takes bf16, or fp32 on a CPU.

        Raises:
            UserError: If the mode is unknown, or needs torchao and that is not installed.
        """
        fit_to_memory(self.model, mode, device, dtype)
        lay_out(self.model)
        return self

    @cached_property
    def _decoder_name(self) -> str:
        return drawing_name(self.origin.backbone)

    @property
    def identity(self) -> dict[str, str]:
        """Weights and image decoder, as a saved session names them: stage and fingerprint, and what draws."""
        scheduler = scheduler_name(type(self.scheduler).__name__, "scheduler")
        try:
            return {**self.origin.identity, "decoder": f"{self._decoder_name} {scheduler}"}
        except UserError:  # its files are no longer where they were
            return self.origin.identity

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.m3adapter.queries.device

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures on which the image decoder was trained."""
        return self.model.decoder.image_size

    @property
    def scheduler(self) -> Any:
        """The scheduler; one of `SCHEDULERS` may replace it: ``Other.from_config(pipe.scheduler.config)``.

        Raises:
            UserError: On another one.
        """
        return self.model.decoder.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        scheduler_name(type(scheduler).__name__, "scheduler")  # raises on one that is not supported
        self.model.decoder.scheduler = scheduler

    def draw_settings(
        self,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: int | None = None,
        preview_every: int = 0,
        height: int | None = None,
        width: int | None = None,
        guidance_interval: Interval | None = None,
        negative_prompt: str | None = None,
    ) -> DrawSettings:
        """Settings of drawing, with the image decoder's values for what is None.

        Args:
            steps: Denoising steps.
            guidance: Scale of classifier-free guidance.
            seed: Seed.
            size: Side of square pictures, in pixels.
            preview_every: Denoising steps between two previews; 0 for none.
            height: Height in pixels, in place of `size`.
            width: Width in pixels, in place of `size`.
            guidance_interval: Two shares of the noise schedule, 0-1, between which guidance acts.
            negative_prompt: Text away from which guidance leads.

        Raises:
            UserError: If a number is out of its range, or a side is not one that VAE and UNet can draw.
        """
        config = self.model.decoder.config
        steps = config.steps if steps is None else steps
        guidance = config.guidance if guidance is None else guidance
        side = self.image_size if size is None else size
        if guidance_interval is not None:
            guidance_interval = checked_interval(guidance_interval, "guidance_interval")
        if negative_prompt is not None:
            negative_prompt = checked_text(negative_prompt, "negative_prompt") if negative_prompt else None
        shape = (side, preview_every, height, width)
        draw = DrawSettings(steps, guidance, seed, *shape, guidance_interval, negative_prompt)
        return self._checked(draw)

    def _checked(self, draw: DrawSettings) -> DrawSettings:
        """The settings, if their numbers are in range and VAE and UNet can draw the sides."""
        check_ranges(steps=draw.steps, guidance=draw.guidance, preview_every=draw.preview_every)
        sides = {"height": draw.height, "width": draw.width}
        of_height, of_width = ("size" if side is None else name for name, side in sides.items())
        self.model.decoder.checked_size(*draw.shape, (of_height, of_width))
        self.model.decoder.checked_steps(draw.steps)
        return draw

    def replier(
        self,
        image: ImageMode = "auto",
        max_images: int = 4,
        draw: DrawSettings | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 0.75,
        max_caption_tokens: int = 64,
    ) -> StreamingReplier:
        """A replier with the given settings.

        Args:
            image: Whether replies have pictures.
            max_images: Maximum number of pictures in a reply, 1 to 16.
            draw: Settings of drawing; None for those of the image decoder.
            max_new_tokens: Maximum length of an answer, in tokens.
            temperature: Temperature of text sampling; 0 decodes greedily.
            top_p: Cumulative probability of nucleus sampling, 0-1.
            max_caption_tokens: Maximum length of a caption, in tokens; a caption that is cut there is not drawn.

        Raises:
            UserError: If a setting is out of its range, or a side is not one that VAE and UNet can draw.
        """
        if image not in IMAGE_MODES:
            raise UserError(f"image={image!r}: choose one of {', '.join(IMAGE_MODES)}")
        draw = self._checked(draw) if draw else self.draw_settings()
        check_ranges(
            max_images=max_images,
            max_new_tokens=max_new_tokens,
            max_caption_tokens=max_caption_tokens,
            temperature=temperature,
            top_p=top_p,
        )
        # Stage 1 has learned neither the two special tokens nor the image branch.
        is_first_stage = self.origin.stage == "align"
        decoding = Decoding(
            layout="forced" if is_first_stage else "free",
            max_text_tokens=max_new_tokens,
            max_caption_tokens=max_caption_tokens,
            max_pictures=0 if image == "never" else max_images,
            min_pictures=1 if image == "force" else 0,
            temperature=temperature,
            top_p=top_p,
        )
        return StreamingReplier(self.model, self.layout, decoding, draw, use_image=not is_first_stage)

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The language model's captions of pictures, RGB (H, W, 3) of 0-255."""
        if not pictures:
            return []
        with self.lock:
            pixels = vision_pixels(pictures, self.vision, self.device)
            return describe(self.model, self.origin.pretrained, pixels, self.layout)

    def captioned(self, conversation: Conversation) -> Conversation:
        """The conversation with a caption of every picture, written by the model where there is none."""
        missing = [k for k, image in enumerate(conversation.images) if not image.caption]
        images = list(conversation.images)
        captions = self.caption([images[k].pixels for k in missing])
        for k, caption in zip(missing, captions, strict=True):
            images[k] = replace(images[k], caption=caption, caption_by="model")
        return replace(conversation, images=tuple(images))

    def encode_captions(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Captions as the image decoder's own text encoders read them: (B, Q, C), and (B, P) of SDXL."""
        ids, ids_2 = (tokens.to(self.device) for tokens in self.captions(list(captions)))
        with self.lock:
            return self.model.decoder.encode_text(ids, ids_2)

    @torch.no_grad()
    def draw_captions(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        draw: DrawSettings | None = None,
        stop: threading.Event | None = None,
    ) -> list[Picture]:
        """Pictures by the image decoder alone, conditioned by its own text encoders, for comparison.

        Args:
            captions: Captions.
            seeds: Seed of each picture's noise.
            draw: Settings of drawing.
            stop: Event that ends the drawing before its next denoising step; may be set from any thread.

        Returns:
            One picture per caption; none if the drawing was stopped.

        Raises:
            UserError: If there are not as many seeds as captions.
        """
        if len(seeds) != len(captions):
            raise UserError(f"seeds: {len(seeds)} seeds for {len(captions)} captions: give one each")
        ones = torch.ones(len(captions), device=self.device)
        painting = self.replier(draw=draw).painting(Condition(*self.encode_captions(captions), ones, ones), seeds)
        return finish(in_turns(painting, self.lock, stop)) or []
