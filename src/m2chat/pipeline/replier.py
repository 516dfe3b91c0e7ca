"""From conversations to replies: the one place where evaluation and chat generate, whole or an event at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from m2chat.batch import Batch
from m2chat.models.denoising import Denoising, OnStep, size_ids
from m2chat.models.generation import Decoding, SpecialTokens, TokenSegment, finished, stream_replies
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import Condition
from m2chat.models.sequence_reader import SequenceReader
from m2chat.pipeline.conditions import Conditioner, PictureConditions, Place, drawn_places
from m2chat.pipeline.drawing import DrawSettings, noise_seed, to_pictures
from m2chat.pipeline.events import finish
from m2chat.pipeline.inputs import ReplyInputs
from m2chat.schema import Picture, Reply, Segment
from m2chat.text import Layout, View

Given = Literal["nothing", "caption", "reply"]
"""Part of the reply that is given instead of generated: ``caption`` is text-to-image (the caption is the prompt, there
is no answer), ``reply`` is answer and caption, so that only the picture is generated."""
ImageMode = Literal["auto", "force", "never"]
"""Whether a reply has pictures: as the model decides, at least one, or none."""
IMAGE_MODES: tuple[ImageMode, ...] = ("auto", "force", "never")
Replies: TypeAlias = tuple[list[Reply], list[dict[str, Any]]]
"""Replies, and a note for each: ``gate`` and ``cosine`` of each picture, ``cut_tokens``; only where a limit has cut an
answer or a caption, ``finish_reason``, which is ``length``."""
Drawings: TypeAlias = tuple[dict[Place, Picture], dict[Place, tuple[float, float]]]
"""Pictures, and gate and cosine of each."""


@dataclass(frozen=True)
class Start:
    """Replies before they are generated.

    Args:
        prompts: Tokens of each prompt.
        cut: Number of tokens of each that did not fit.
        given: The replies where they are given.
    """

    prompts: list[list[int]]
    cut: list[int]
    given: list[list[TokenSegment]] | None = None


class Replier:
    """Generates replies.

    Args:
        model: Model in evaluation mode.
        layout: Layout of token sequences.
        decoding: Settings of text decoding.
        draw: Settings of drawing.
        use_image: Whether the image branch takes part; False for a model of stage 1.
        conditioner: Source of the image decoder's condition.
    """

    def __init__(
        self,
        model: M2ChatModel,
        layout: Layout,
        decoding: Decoding,
        draw: DrawSettings,
        use_image: bool = True,
        conditioner: Conditioner = "m3adapter",
    ) -> None:
        self.model: Any = model
        self.layout, self.draw = layout, draw
        self.conditions = PictureConditions(model, layout, use_image, conditioner)
        self.decoding = replace(decoding, num_image_tokens=layout.num_image_tokens)
        tokens = layout.tokenizer
        self.special = SpecialTokens(tokens.ic_id, tokens.img_id, layout.end_id, tokens.pad_id)

    def reply(
        self,
        batch: Batch | ReplyInputs,
        given: Given = "nothing",
        seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        generator: torch.Generator | None = None,
    ) -> Replies:
        """Replies to conversations; arguments as for `pieces`."""
        return finish(self.pieces(batch, given, seeds, on_step, generator))

    def pieces(
        self,
        batch: Batch | ReplyInputs,
        given: Given = "nothing",
        seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        generator: torch.Generator | None = None,
    ) -> Generator[None, None, Replies]:
        """Replies to conversations, a bounded piece of work at a time.

        The prompts are tokenised before this returns, so that a caller needs no lock for that.

        Args:
            batch: Conversations, from a data set or from `waiting`.
            given: Part of the reply that is given.
            seeds: Seed of each conversation's pictures; None takes `DrawSettings.seed` for all.
            on_step: Function that is called after every denoising step; if it returns True, the drawing ends there.
            generator: Generator of text sampling, used if the temperature is above 0.

        Yields:
            Nothing; after every pass of the language model and every denoising step.

        Returns:
            The replies, and a note for each.
        """
        inputs = batch if isinstance(batch, ReplyInputs) else ReplyInputs.of_batch(batch)
        seeds = seeds or [self.draw.seed] * len(inputs.names)
        return self._pieces(inputs, self._start(inputs.views, given), seeds, on_step, generator)

    @torch.no_grad()
    def _pieces(
        self,
        inputs: ReplyInputs,
        start: Start,
        seeds: Sequence[int],
        on_step: OnStep | None,
        generator: torch.Generator | None,
    ) -> Generator[None, None, Replies]:
        """The replies after tokenisation."""
        prompts, cut = start.prompts, start.cut
        tokens = start.given
        ends = ["" for _ in prompts]
        reader = None
        if tokens is None:
            reader = self._reader(prompts, inputs)
            generated: list[list[TokenSegment]] = []
            # Each item holds all replies so far; the last one is complete.
            for generated in stream_replies(  # noqa: B007
                self.model, prompts, inputs.context_pixels, self.special, self.decoding, generator, reader
            ):
                yield
            ends = ["length" if any(segment.cut for segment in segments) else "" for segments in generated]
            tokens = [finished(segments) for segments in generated]
        pictures, gates = yield from self._draw(prompts, tokens, inputs, seeds, on_step, reader)
        replies, notes = [], []
        for index, token_segments in enumerate(tokens):
            segments = tuple(self._segment(segment) for segment in token_segments)
            replies.append(Reply(segments, tuple(pictures.get((index, k)) for k in range(len(segments)))))
            drawn = [gates[index, k] for k in range(len(segments)) if (index, k) in gates]
            notes.append(
                {
                    "gate": [gate for gate, _ in drawn],
                    "cosine": [cosine for _, cosine in drawn],
                    "cut_tokens": cut[index],
                    **({"finish_reason": ends[index]} if ends[index] else {}),
                }
            )
        return replies, notes

    def _reader(self, prompts: list[list[int]], inputs: ReplyInputs) -> SequenceReader:
        """Reader of the prompts that keeps the states on which pictures depend."""
        return SequenceReader(
            self.model, prompts, inputs.context_pixels, self.special.pad, layers=self.model.read_layers
        )

    def _response_room(self) -> int:
        """Tokens that are kept free for the reply: two texts, one picture, three special tokens."""
        texts = self.decoding.max_text_tokens + self.decoding.caption_limit
        return min(texts, self.layout.max_tokens // 3) + self.layout.num_image_tokens + 3

    def _segment(self, segment: TokenSegment) -> Segment:
        decode = self.layout.tokenizer.decode
        return Segment(decode(segment.answer), None if segment.caption is None else decode(segment.caption))

    def _start(self, views: list[View], given: Given, is_stopped: Callable[[], bool] | None = None) -> Start:
        """Prompts that leave room for a reply; with a given reply they are fitted exactly as in training.

        Args:
            views: Views of the conversations.
            given: Part of the reply that is given.
            is_stopped: Function that ends the tokenisation, as for `Layout.prompt`.

        Raises:
            StoppedError: If it was ended.
        """
        if given == "nothing":
            room = self.layout.max_tokens - self._response_room()
            fits = [self.layout.prompt(view.request, room, is_stopped) for view in views]
            return Start([ids for ids, _ in fits], [cut for _, cut in fits])
        prompts, cut, replies = [], [], []
        for view in views:
            segments = view.reply
            if given == "caption":
                segments = tuple(Segment("", segment.caption) for segment in segments if segment.caption is not None)
            fitted = self.layout.fit(view.request, segments)
            prompts.append(fitted.prompt)
            cut.append(fitted.cut_tokens)
            replies.append([TokenSegment(*texts) for texts in zip(fitted.answers, fitted.captions, strict=True)])
        return Start(prompts, cut, replies)

    def _draw(
        self,
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        inputs: ReplyInputs,
        seeds: Sequence[int],
        on_step: OnStep | None,
        reader: SequenceReader | None,
    ) -> Generator[None, None, Drawings]:
        """All pictures of all replies as one batch."""
        places = drawn_places(replies)
        if not places:
            return {}, {}
        condition = self.conditions.read(places, prompts, replies, inputs, reader)
        pixels = yield from self.painting(condition, self._seeds(places, inputs, seeds), on_step)
        gates = zip(condition.gate.tolist(), condition.cosine.tolist(), strict=True)
        return dict(zip(places, pixels, strict=True)), dict(zip(places, gates, strict=True))

    @staticmethod
    def _seeds(places: list[Place], inputs: ReplyInputs, seeds: Sequence[int]) -> list[int]:
        """Seed of each picture's noise, from the name of its reply and its segment there."""
        return [noise_seed(seeds[i], f"{inputs.names[i]}/{k}") for i, k in places]

    def paint(self, condition: Condition, seeds: Sequence[int]) -> list[Picture]:
        """Pictures from conditions; arguments as for `painting`."""
        return finish(self.painting(condition, seeds))

    @torch.no_grad()
    def painting(
        self, condition: Condition, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> Generator[None, None, list[Picture]]:
        """Pictures from conditions, a denoising step at a time.

        Args:
            condition: Condition of B pictures.
            seeds: Seed of each picture's noise.
            on_step: Function that is called after every step; if it returns True, the drawing ends there.

        Yields:
            Nothing; after every step.

        Returns:
            B pictures, RGB (H, W, 3) of 0-255.
        """
        latents = condition.h_align
        for state in self.denoise(condition, seeds):
            ended = on_step is not None and on_step(state)
            latents = state.latents
            if ended:
                break
            yield
        return to_pictures(self.model.decoder.decode_latents(latents))

    def denoise(self, condition: Condition, seeds: Sequence[int]) -> Iterator[Denoising]:
        """The image decoder's denoising with the settings of drawing; arguments as for `painting`."""
        (height, width), count = self.draw.shape, len(condition.h_align)
        ids = size_ids(height, width, count)
        how = self.draw.steps, self.draw.guidance, self.draw.guidance_interval, self.draw.negative_prompt
        states: Iterator[Denoising] = self.model.decoder.denoise(
            condition.h_align, condition.h_palign, ids, seeds, *how
        )
        return states
