"""`M2ChatPipeline`: one model with everything around it that makes it answer, in the manner of diffusers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat._compat import ensure_torchvision
from m2chat.data.images import VisionInput
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.generation import Decoding
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import Condition
from m2chat.models.memory import MemoryMode, fit_to_memory
from m2chat.pipeline.describer import describe
from m2chat.pipeline.inputs import as_pixels, seen, waiting
from m2chat.pipeline.outputs import OUTPUT_TYPES, OutputType, PipelineOutput, output_of
from m2chat.pipeline.plan import IMAGE_MODES, ImageMode
from m2chat.pipeline.replier import DrawSettings, Given
from m2chat.pipeline.streaming import StreamingReplier
from m2chat.pipeline.turns import finish, in_turns
from m2chat.pipeline.watch import OnStepEnd, Watch
from m2chat.pipeline.weights import Origin, load_weights, save_weights
from m2chat.schema import Image, Sample, Turn
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer

if TYPE_CHECKING:
    from m2chat.pipeline.session import Session


class M2ChatPipeline:
    """Replies with text and pictures. Sessions share one pipeline; it may be used from several threads.

    Args:
        model: In evaluation mode.
        origin: Where its weights come from.
        max_tokens: Longest sequence, conversation and reply together.
    """

    def __init__(self, model: M2ChatModel, origin: Origin, max_tokens: int = 320) -> None:
        self.model, self.origin = model, origin
        self.layout = Layout(
            M2ChatTokenizer(origin.backbone.language_model), origin.backbone.num_image_tokens, max_tokens
        )
        self.captions = CaptionTokens(origin.backbone.image_decoder)
        self.vision = VisionInput.of(origin.backbone.vision_encoder)
        self.lock = threading.Lock()
        """Held for every piece of computing, and never while anybody waits for a listener."""
        self._progress: dict[str, Any] = {}
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path | None = None,
        *,
        backbone: BackboneConfig | None = None,
        m3adapter: M3AdapterConfig | None = None,
        torch_dtype: torch.dtype = torch.float32,
        max_tokens: int | None = None,
    ) -> M2ChatPipeline:
        """Loads a model.

        Args:
            pretrained: A checkpoint file, a folder of `save_pretrained`, or None for the shipped micro weights.
            backbone: Instead of the networks that the source names.
            m3adapter: Instead of the connector that it names.
            torch_dtype: Of the whole model.
            max_tokens: Longest sequence; None takes 320 for the micro model and 512 for larger ones, as in training.

        Raises:
            UserError: If something is missing, broken or does not belong together.
        """
        ensure_torchvision()
        model, origin = load_weights(pretrained, backbone, m3adapter)
        limit = 512 if int(model.llama.config.max_position_embeddings) > 512 else 320
        return cls(model, origin, max_tokens or limit).to(torch_dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the trained weights into a folder that `from_pretrained` reads."""
        save_weights(folder, self.model, self.origin)

    def to(self, *args: Any, **kwargs: Any) -> M2ChatPipeline:
        """Moves the model to a device or a dtype, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        return self

    def fit_to_memory(self, mode: MemoryMode, device: torch.device | str = "cpu") -> M2ChatPipeline:
        """Prepares the model, instead of `to`, for generation within a device's memory; see `models.memory`.

        Args:
            mode: ``high``, ``balanced`` or ``low``.
            device: Where it computes.

        Raises:
            UserError: If the mode is unknown, or needs torchao and that is not installed.
        """
        fit_to_memory(self.model, mode, device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.m3adapter.queries.device

    @property
    def image_size(self) -> int:
        """Side of the pictures that it was made for, in pixels."""
        return self.model.decoder.image_size

    @property
    def scheduler(self) -> Any:
        """The noise scheduler; any of diffusers' may take its place: ``Other.from_config(pipe.scheduler.config)``."""
        return self.model.decoder.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.model.decoder.scheduler = scheduler

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Settings of the progress bar, those of tqdm; ``disable=True`` silences it."""
        self._progress = kwargs

    def session(self, **kwargs: Any) -> Session:
        """A new conversation; arguments as for `Session`."""
        from m2chat.pipeline.session import Session

        return Session(self, **kwargs)

    def replier(
        self,
        image: ImageMode = "auto",
        max_images: int = 4,
        draw: DrawSettings | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 0.75,
    ) -> StreamingReplier:
        """Makes replies by some settings.

        Args:
            image: Whether there will be pictures.
            max_images: Most pictures of a reply.
            draw: How pictures are drawn.
            max_new_tokens: Longest answer and longest caption.
            temperature: Of the words; 0 takes the likeliest.
            top_p: Share of the likelihood to sample from.
        """
        if image not in IMAGE_MODES:
            raise UserError(f"image={image!r}: choose one of {', '.join(IMAGE_MODES)}")
        if not 1 <= max_images <= 16:
            raise UserError(f"max_images={max_images}: choose 1 to 16, or image='never'")
        first = self.origin.stage == "align"
        decoding = Decoding(
            layout="forced" if first else "free",
            max_text_tokens=max_new_tokens,
            max_pictures=0 if image == "never" else max_images,
            min_pictures=1 if image == "force" else 0,
            temperature=temperature,
            top_p=top_p,
        )
        draw = draw or DrawSettings(size=self.image_size)
        return StreamingReplier(self.model, self.layout, decoding, draw, use_image=not first)

    @overload
    def __call__(self, prompt: str, image: Any = None, **kwargs: Any) -> PipelineOutput: ...
    @overload
    def __call__(self, prompt: Sequence[str], image: Any = None, **kwargs: Any) -> list[PipelineOutput]: ...
    def __call__(  # type: ignore[misc]
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 5.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        size: int | None = None,
        image_mode: ImageMode = "auto",
        max_images: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 0.75,
        given: Given = "nothing",
    ) -> PipelineOutput | list[PipelineOutput]:
        """Replies to one prompt or to several together.

        Args:
            prompt: What the user says.
            image: What the user shows: a Pillow picture or RGB uint8 (H, W, 3); for several prompts a list, with
                None where nothing is shown.
            num_inference_steps: Denoising steps.
            guidance_scale: Weight of classifier-free guidance.
            generator: Of the pictures' noise; one for all, or one a prompt. None: another picture each time.
            output_type: ``pil``, ``np`` (float, 0-1) or ``pt`` (float, 0-1, (3, H, W)).
            callback_on_step_end: Called after every denoising step; setting ``pipe._interrupt`` ends the drawing.
            size: Side of the pictures in pixels; None for what the model was made for.
            image_mode: Whether there will be pictures.
            max_images: Most pictures of a reply.
            max_new_tokens: Longest answer and longest caption.
            temperature: Of the words; 0 takes the likeliest.
            top_p: Share of the likelihood to sample from.
            given: ``caption`` draws the prompt itself, as it is: text-to-image.

        Returns:
            One output for a string, a list of them for several.

        Raises:
            UserError: If arguments do not fit together.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        shown = [image] if isinstance(prompt, str) else list(image or [None] * len(prompts))
        if not prompts or len(shown) != len(prompts):
            raise UserError(f"image: {len(shown)} pictures for {len(prompts)} prompts: give one a prompt, or None")
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        side = size or self.image_size
        if side % self.model.decoder.vae_factor:
            raise UserError(f"size={side}: must be a multiple of {self.model.decoder.vae_factor}")
        # Shown pictures are captioned, so that the prompt can name them, as in training.
        told = self.caption([as_pixels(item) for item in shown if item is not None])
        samples = _asked(prompts, shown, iter(told), given)
        generators = [generator] if isinstance(generator, torch.Generator) or generator is None else list(generator)
        if len(generators) not in (1, len(prompts)):
            raise UserError(
                f"generator: {len(generators)} generators for {len(prompts)} prompts: give one, or one each"
            )
        draws = [generators[i % len(generators)] for i in range(len(prompts))]
        seeds = [int(torch.randint(2**62, (), generator=each)) for each in draws]
        replier = self.replier(
            image_mode,
            max_images,
            DrawSettings(num_inference_steps, guidance_scale, size=side),
            max_new_tokens,
            temperature,
            top_p,
        )
        words = torch.Generator().manual_seed(seeds[0])
        turns = [1] * len(samples)
        with self.lock, Watch(self, callback_on_step_end) as on_step:
            batch = waiting(samples, self.vision, self.device, turns)
            replies, notes = replier.reply(batch, given, seeds, on_step, words)
        outputs = [output_of(reply, note, output_type) for reply, note in zip(replies, notes, strict=True)]
        return outputs[0] if isinstance(prompt, str) else outputs

    def caption(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
        """What the language model sees in pictures: RGB (H, W, 3) of 0-255."""
        if not pictures:
            return []
        with self.lock:
            return describe(self.model, self.origin.released, seen(pictures, self.vision, self.device), self.layout)

    def encode_captions(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the image decoder's own text encoders say of captions: (B, Q, C), and of SDXL (B, P)."""
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
    ) -> list[NDArray[np.uint8]]:
        """Pictures by the image decoder alone, from its own text encoders: what it does without us, to compare.

        Args:
            captions: What to draw.
            seeds: Of each picture's noise.
            draw: How.
            stop: Set from any thread, it ends the drawing before its next denoising step; then there is no picture.
        """
        ones = torch.ones(len(captions), device=self.device)
        painting = self.replier(draw=draw).painting(Condition(*self.encode_captions(captions), ones, ones), seeds)
        return finish(in_turns(painting, self.lock, stop)) or []


def _asked(prompts: Sequence[str], shown: Sequence[Any], captions: Any, given: Given) -> list[Sample]:
    """Conversations of one request each; with ``given="caption"`` the reply is known: a picture of the prompt."""
    samples = []
    for prompt, item in zip(prompts, shown, strict=True):
        images = [] if item is None else [Image(as_pixels(item), next(captions), caption_by="model")]
        asked = Turn("user", (*range(len(images)), prompt))
        turns: tuple[Turn, ...] = (asked,)
        if given == "caption":
            images = [*images, Image(np.zeros((0, 0, 3), np.uint8), prompt)]
            turns = (asked, Turn("assistant", (len(images) - 1,)))
        samples.append(Sample("pipeline", "dialogue", "pipeline", turns, tuple(images)))
    return samples
