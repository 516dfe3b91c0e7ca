"""`M2ChatPipeline`: a model and its tokenizers behind one call, in the manner of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.denoising import Denoising
from m2chat.models.m2chat import M2ChatModel
from m2chat.pipeline.base import MAX_NEW_TOKENS, PipelineBase
from m2chat.pipeline.events import finish
from m2chat.pipeline.inputs import as_pixels, waiting
from m2chat.pipeline.outputs import OUTPUT_TYPES, OutputType, PipelineOutput, output_of
from m2chat.pipeline.replier import Given, ImageMode
from m2chat.pipeline.session import Session
from m2chat.pipeline.weights import Origin, load_weights, save_weights
from m2chat.ranges import check_ranges
from m2chat.schema import Conversation, Image, Segment, Turn

OnStepEnd = Callable[["M2ChatPipeline", int, int, dict[str, Any]], dict[str, Any]]
"""As in diffusers: gets the pipeline, the step from 0, the timestep and ``{"latents": ...}``; returns the latter,
changed or not."""


class M2ChatPipeline(PipelineBase):
    """Replies with text and pictures. Sessions share one pipeline; it may be used from several threads.

    Args:
        model: Model in evaluation mode.
        origin: Source of its weights.
        max_tokens: Maximum length of a sequence, conversation and reply together; None takes the one of the training.
    """

    def __init__(self, model: M2ChatModel, origin: Origin, max_tokens: int | None = None) -> None:
        super().__init__(model, origin, max_tokens)
        self._progress: dict[str, Any] = {}
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path | None = None,
        *,
        backbone: BackboneConfig | None = None,
        m3adapter: M3AdapterConfig | None = None,
        image_decoder: str | Path | None = None,
        decoder: DecoderConfig | Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype = torch.float32,
        max_tokens: int | None = None,
    ) -> M2ChatPipeline:
        """Loads a model.

        Args:
            pretrained: Name of a model that comes with the project, ``pocket`` or ``micro``; a checkpoint file; a
                folder of `save_pretrained`; or None for ``micro``.
            backbone: Backbones; None takes those of the training.
            m3adapter: Configuration of the M³Adapter; None takes that of the training.
            image_decoder: Another image decoder with the text encoders of the training's: a diffusers folder, SDXL in
                one file, a UNet, a LoRA, or a YAML file of settings; None takes that of the backbones.
            decoder: What replaces parts of the image decoder, and how it draws; some settings by name change those of
                the training, None takes all of them.
            torch_dtype: Data type of the whole model.
            max_tokens: Maximum length of a sequence; None takes the one of the training.

        Raises:
            UserError: If something is missing, broken or does not belong together.
        """
        model, origin = load_weights(pretrained, backbone, m3adapter, image_decoder, decoder)
        return cls(model, origin, max_tokens).to(torch_dtype)

    def __repr__(self) -> str:
        origin = self.origin
        return f"{type(self).__name__}({origin.path!r}, stage={origin.stage!r}, {self.image_size} px, {self.device})"

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the trained weights into a folder that `from_pretrained` reads."""
        save_weights(folder, self.model, self.origin)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Settings of the progress bar, those of tqdm; ``disable=True`` hides it."""
        self._progress = kwargs

    def session(self, **kwargs: Any) -> Session:
        """A new conversation; arguments as for `Session`."""
        return Session(self, **kwargs)

    @overload
    def __call__(self, prompt: str, image: Any = None, **kwargs: Any) -> PipelineOutput: ...
    @overload
    def __call__(self, prompt: Sequence[str], image: Any = None, **kwargs: Any) -> list[PipelineOutput]: ...
    def __call__(  # type: ignore[misc]
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        size: int | None = None,
        image_mode: ImageMode = "auto",
        max_images: int = 4,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_caption_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 0.75,
        given: Given = "nothing",
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
    ) -> PipelineOutput | list[PipelineOutput]:
        """Replies to one prompt, or to several as one batch.

        Args:
            prompt: Text of the user.
            image: Picture of the user: a Pillow picture or RGB uint8 (H, W, 3); for several prompts a list, with None
                where there is none.
            num_inference_steps: Denoising steps; None for those of the image decoder's preset, or 25.
            guidance_scale: Scale of classifier-free guidance; None for that of the preset, or 5.
            generator: Generator of the pictures' noise; one for all, or one per prompt. None draws a new seed.
            output_type: ``pil``, ``np`` (float, 0-1) or ``pt`` (float, 0-1, (3, H, W)).
            callback_on_step_end: Function that is called after every denoising step; setting ``pipe._interrupt`` in it
                ends the drawing.
            size: Side of the pictures in pixels; None for the model's.
            image_mode: Whether replies have pictures.
            max_images: Maximum number of pictures in a reply.
            max_new_tokens: Maximum length of an answer, in tokens.
            max_caption_tokens: Maximum length of a caption, in tokens; a caption that is cut there is not drawn.
            temperature: Temperature of text sampling; 0 decodes greedily.
            top_p: Cumulative probability of nucleus sampling, 0-1.
            given: ``caption`` draws the prompt as it is: text-to-image.
            height: Height of the pictures in pixels, in place of `size`.
            width: Width of the pictures in pixels, in place of `size`.
            negative_prompt: Text away from which guidance leads, such as "a blue background".
            num_images_per_prompt: Replies to each prompt, each with a noise of its own; with one generator per prompt
                its replies have its successive seeds.

        Returns:
            One output for a string, a list of them for several prompts or several replies to each.

        Raises:
            UserError: If arguments do not fit together, or are out of their ranges.
        """
        names = {"steps": "num_inference_steps", "guidance": "guidance_scale", "count": "num_images_per_prompt"}
        numbers = {"steps": num_inference_steps, "guidance": guidance_scale, "count": num_images_per_prompt}
        check_ranges(names, **{name: value for name, value in numbers.items() if value is not None})
        prompts = _prompts(prompt)
        if not isinstance(prompt, str) and image is not None and not isinstance(image, list | tuple):
            raise UserError(
                f"image: one picture for {len(prompts)} prompts: give a list with a picture for each prompt, or None "
                "where there is none"
            )
        shown = [image] if isinstance(prompt, str) else list(image or [None] * len(prompts))
        if not prompts or len(shown) != len(prompts):
            raise UserError(f"image: {len(shown)} pictures for {len(prompts)} prompts: give one per prompt, or None")
        for text, picture in zip(prompts, shown, strict=True):
            if not text.strip() and (picture is None or given == "caption"):
                raise UserError("prompt: a text is empty: say something, or show a picture")
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if given not in ("nothing", "caption"):
            raise UserError(f"given={given!r}: choose nothing or caption, which draws the prompt as it is")
        _check_callback(callback_on_step_end)
        generators: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator]
        for each in generators:
            if each is not None and not isinstance(each, torch.Generator):
                raise UserError(f"generator={each!r}: give a torch.Generator, such as torch.Generator().manual_seed(0)")
            if each is not None and each.device.type != "cpu":
                raise UserError(
                    f"generator: one of device {each.device}: give one of the CPU, such as "
                    "torch.Generator().manual_seed(0); a seed then gives the same noise on every device"
                )
        if len(generators) not in (1, len(prompts)):
            raise UserError(
                f"generator: {len(generators)} generators for {len(prompts)} prompts: give one, or one each"
            )
        count = num_images_per_prompt
        prompts = [text for text in prompts for _ in range(count)]
        shown = [picture for picture in shown for _ in range(count)]
        draws = [generators[i // count % len(generators)] for i in range(len(prompts))]
        seeds = [int(torch.randint(2**62, (), generator=each)) for each in draws]
        replier = self.replier(
            image_mode,
            max_images,
            self.draw_settings(
                num_inference_steps,
                guidance_scale,
                size=size,
                height=height,
                width=width,
                negative_prompt=negative_prompt,
            ),
            max_new_tokens,
            temperature,
            top_p,
            max_caption_tokens,
        )
        conversations = self._conversations(prompts, shown, given)
        sampling = torch.Generator().manual_seed(seeds[0])
        inputs, bar = waiting(conversations, self.vision, self.device), _ProgressBar(self, callback_on_step_end)
        pieces = replier.pieces(inputs, given, seeds, bar.step, sampling)  # tokenises without the lock
        with self.lock, bar:
            replies, notes = finish(pieces)
        outputs = [output_of(reply, note, output_type) for reply, note in zip(replies, notes, strict=True)]
        return outputs[0] if isinstance(prompt, str) and count == 1 else outputs

    def _conversations(self, prompts: Sequence[str], shown: Sequence[Any], given: Given) -> list[Conversation]:
        """Conversations of one request each; shown pictures get captions, by which the prompt names them."""
        pictures = [None if item is None else as_pixels(item) for item in shown]
        captions = iter(self.caption([pixels for pixels in pictures if pixels is not None]))
        conversations = []
        for prompt, pixels in zip(prompts, pictures, strict=True):
            images = () if pixels is None else (Image(pixels, next(captions), caption_by="model"),)
            asked = Turn("user", (*range(len(images)), prompt))
            to_draw = (Segment("", prompt),) if given == "caption" else ()
            conversations.append(Conversation("pipeline", (asked,), images, to_draw))
        return conversations


def _prompts(prompt: object) -> list[str]:
    """The texts of one prompt or several.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(prompt, str):
        return [prompt]
    # A text of bytes would be taken for numbers, an object for the names of its fields.
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes | bytearray | Mapping):
        raise UserError(f"prompt: {type(prompt).__name__} is no text: give a text, or a list of texts")
    prompts = list(prompt)
    for number, text in enumerate(prompts):
        if not isinstance(text, str):
            raise UserError(f"prompt[{number}]: {type(text).__name__} is no text: give a list of texts")
    return prompts


def _check_callback(callback: object) -> None:
    """Checks that a callback can be called as `OnStepEnd`.

    Raises:
        UserError: If it cannot.
    """
    if callback is None:
        return
    wanted = "give a function of the pipeline, the step, the timestep and a dict of latents"
    if not callable(callback):
        raise UserError(f"callback_on_step_end={callback!r}: {wanted}")
    try:
        signature = inspect.signature(callback)
    except ValueError:  # some functions of C state none
        return
    try:
        signature.bind(None, 0, 0, {})
    except TypeError as error:
        raise UserError(f"callback_on_step_end takes {signature} ({error}): {wanted}") from error


class _ProgressBar:
    """The progress bar of a drawing and the caller's callback, as a context manager.

    Args:
        pipe: Pipeline that draws.
        callback: Callback of the caller.
    """

    def __init__(self, pipe: M2ChatPipeline, callback: OnStepEnd | None) -> None:
        self.pipe, self.callback = pipe, callback
        self.bar: Any = None

    def __enter__(self) -> None:
        self.pipe._interrupt = False

    def step(self, state: Denoising) -> bool:
        """Shows a denoising step, and calls the callback; returns whether the drawing ends there."""
        if self.bar is None:  # made at the first step: a reply without pictures shows no bar
            from tqdm.auto import tqdm

            self.bar = tqdm(total=state.steps, **self.pipe._progress)
        self.bar.update()
        if self.callback is not None:
            changed = self.callback(self.pipe, state.step - 1, state.timestep, {"latents": state.latents})
            if not isinstance(changed, Mapping | None):
                raise UserError(f"callback_on_step_end returned {type(changed).__name__}: return the dict that it gets")
            state.latents = (changed or {}).get("latents", state.latents)
        return self.pipe._interrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
