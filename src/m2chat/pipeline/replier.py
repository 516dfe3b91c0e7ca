"""From conversations to replies: the one place where evaluation and chat generate, whole or an event at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.generation import Decoding, SpecialTokens, TokenSegment, finished, stream_replies
from m2chat.models.image_decoder import Denoising, OnStep
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import Condition
from m2chat.pipeline.turns import finish
from m2chat.schema import Batch, Reply, Segment
from m2chat.text import Layout, View, view_of

Given = Literal["nothing", "caption", "reply"]
"""What generation is given of the true reply: ``caption`` is text-to-image (caption = prompt, no answer), ``reply``
forces the true answer and caption and only draws."""
Conditioner = Literal["m3adapter", "text_encoder"]
"""Who tells the image decoder what to draw: ours, or for comparison its own text encoders, from the true caption."""
Replies: TypeAlias = tuple[list[Reply], list[dict[str, Any]]]
"""Replies, and beside each what happened: ``gate`` and ``cosine`` of each picture, ``cut_tokens``."""
Place: TypeAlias = tuple[int, int]
"""Of a picture: its reply in the batch, and its segment there."""
Drawings: TypeAlias = tuple[dict[Place, NDArray[np.uint8]], dict[Place, tuple[float, float]]]
"""Pictures, and gate and cosine of each."""


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn.

    Args:
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        seed: Together with a picture's name it decides its noise.
        size: Side of the pictures in pixels.
        preview_every: While a reply is streamed, denoising steps between two looks at a picture; 0 for none.
    """

    steps: int = 25
    guidance: float = 5.0
    seed: int = 0
    size: int = 32
    preview_every: int = 0


def noise_seed(seed: int, name: str) -> int:
    """The seed of one picture's noise: it depends on its name, never on its batch or rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


class Replier:
    """Generates replies.

    Args:
        model: In evaluation mode.
        layout: Builds token sequences.
        decoding: How text is decoded.
        draw: How pictures are drawn.
        use_image: Whether the image branch takes part: not in a model of stage 1.
        conditioner: Who conditions the image decoder.
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
        self.layout, self.draw, self.use_image = layout, draw, use_image
        self.conditioner = conditioner
        self.decoding = replace(decoding, num_image_tokens=layout.num_image_tokens)
        tokens = layout.tokenizer
        self.special = SpecialTokens(tokens.ic_id, tokens.img_id, tokens.eos_id, tokens.pad_id)

    def reply(
        self,
        batch: Batch,
        given: Given = "nothing",
        seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        generator: torch.Generator | None = None,
    ) -> Replies:
        """Replies to the conversations of a batch; arguments as for `pieces`."""
        return finish(self.pieces(batch, given, seeds, on_step, generator))

    @torch.no_grad()
    def pieces(
        self,
        batch: Batch,
        given: Given = "nothing",
        seeds: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        generator: torch.Generator | None = None,
    ) -> Generator[None, None, Replies]:
        """Replies to the conversations of a batch, a bounded piece of work at a time.

        Args:
            batch: Its `samples`, `turns`, context pictures and, where something is given, the true replies count.
            given: What is given of the true reply.
            seeds: Of each conversation's pictures; None takes the settings' one for all.
            on_step: Looks at every denoising step; true ends the drawing where it stands.
            generator: Of the words, if the temperature is above 0.

        Yields:
            After every pass of the language model and every denoising step.

        Returns:
            The replies, and what happened.
        """
        views = [view_of(sample, turn) for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        if given == "nothing":
            prompts, cut = self._prompts(views)
            looks, said = batch.context_pixels, []
            for said in stream_replies(self.model, prompts, looks, self.special, self.decoding, generator):  # noqa: B007
                yield
            tokens = [finished(own) for own in said]
        else:
            prompts, cut, tokens = self._told(views, given)
        seeds = seeds or [self.draw.seed] * len(batch.samples)
        pictures, gates = yield from self._draw(prompts, tokens, batch, seeds, on_step)
        replies, notes = [], []
        for index, segments in enumerate(tokens):
            own = [self._segment(segment) for segment in segments]
            replies.append(Reply(tuple(own), tuple(pictures.get((index, k)) for k in range(len(own)))))
            drawn = [gates[index, k] for k in range(len(own)) if (index, k) in gates]
            notes.append(
                {
                    "gate": [gate for gate, _ in drawn],
                    "cosine": [cosine for _, cosine in drawn],
                    "cut_tokens": cut[index],
                }
            )
        return replies, notes

    def _response_room(self) -> int:
        """Tokens kept free for the reply: two texts, one picture, three special tokens."""
        return min(2 * self.decoding.max_text_tokens, self.layout.max_tokens // 3) + self.layout.num_image_tokens + 3

    def _segment(self, segment: TokenSegment) -> Segment:
        decode = self.layout.tokenizer.decode
        return Segment(decode(segment.answer), None if segment.caption is None else decode(segment.caption))

    def _prompts(self, views: list[View]) -> tuple[list[list[int]], list[int]]:
        """Prompts with room for a reply, and how much of each did not fit."""
        room = self.layout.max_tokens - self._response_room()
        fitted = [self.layout.prompt(view.request, room) for view in views]
        return [ids for ids, _ in fitted], [cut for _, cut in fitted]

    def _told(self, views: list[View], given: Given) -> tuple[list[list[int]], list[int], list[list[TokenSegment]]]:
        """The same with the true replies, or their captions alone, fitted exactly as in training."""
        prompts, cut, replies = [], [], []
        for view in views:
            segments = view.reply
            if given == "caption":
                segments = tuple(Segment("", segment.caption) for segment in segments if segment.caption is not None)
            fitted = self.layout.fit(view.request, segments)
            prompts.append(fitted.prompt)
            cut.append(fitted.cut_tokens)
            replies.append([TokenSegment(*texts) for texts in zip(fitted.answers, fitted.captions, strict=True)])
        return prompts, cut, replies

    def _draw(
        self,
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        batch: Batch,
        seeds: Sequence[int],
        on_step: OnStep | None,
    ) -> Generator[None, None, Drawings]:
        """Every picture of every reply in one go."""
        places = drawn_places(replies)
        if not places:
            return {}, {}
        condition = self._condition(places, prompts, replies, batch)
        pixels = yield from self.painting(condition, self._seeds(places, batch, seeds), on_step)
        gates = zip(condition.gate.tolist(), condition.cosine.tolist(), strict=True)
        return dict(zip(places, pixels, strict=True)), dict(zip(places, gates, strict=True))

    def _condition(
        self, places: list[Place], prompts: list[list[int]], replies: list[list[TokenSegment]], batch: Batch
    ) -> Condition:
        """What the image decoder is told of each picture."""
        rows = self._pictures_batch(places, prompts, replies, batch)
        condition: Condition = self.model.look_and_condition(rows, self.use_image)
        if self.conditioner == "text_encoder":
            condition.h_align, condition.h_palign = self._encoded_captions(places, batch)
        return condition

    @staticmethod
    def _seeds(places: list[Place], batch: Batch, seeds: Sequence[int]) -> list[int]:
        """Of each picture's noise, by the name of its reply and its place there."""
        return [noise_seed(seeds[i], f"{batch.samples[i].id}#{batch.turns[i]}/{k}") for i, k in places]

    def _time_ids(self, condition: Condition) -> Tensor:
        """SDXL's micro-conditioning of each picture, (B, 6)."""
        size = self.draw.size
        return condition.h_align.new_tensor([[size, size, 0, 0, size, size]]).expand(len(condition.h_align), -1)

    def paint(self, condition: Condition, seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Pictures from conditions; arguments as for `painting`."""
        return finish(self.painting(condition, seeds))

    @torch.no_grad()
    def painting(
        self, condition: Condition, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> Generator[None, None, list[NDArray[np.uint8]]]:
        """Pictures from conditions, a denoising step at a time.

        Args:
            condition: Of B pictures.
            seeds: Of each picture's noise.
            on_step: Looks at every step; true ends the drawing where it stands.

        Yields:
            After every step.

        Returns:
            RGB (H, W, 3) of 0-255 each.
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
        """The image decoder's denoising by our settings; arguments as for `painting`."""
        told = condition.h_align, condition.h_palign, self._time_ids(condition)
        states: Iterator[Denoising] = self.model.decoder.denoise(*told, seeds, self.draw.steps, self.draw.guidance)
        return states

    def _encoded_captions(self, places: list[Place], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the decoder's own text encoders say of the true captions."""
        if any(k for _, k in places) or not all(bool(batch.has_target[i]) for i, _ in places):
            raise UserError(
                "conditioner='text_encoder' draws one true caption a reply: set evaluation.given to 'caption' or "
                "'reply' and test on replies of one picture"
            )
        chosen = [i for i, _ in places]
        encoded: tuple[Tensor, Tensor | None] = self.model.decoder.encode_text(
            batch.caption_ids[chosen], batch.caption_ids_2[chosen]
        )
        return encoded

    def _pictures_batch(
        self, places: list[Place], prompts: list[list[int]], replies: list[list[TokenSegment]], batch: Batch
    ) -> Batch:
        """The sequences again, a row a picture, laid out by the function that training uses."""
        rows = [
            self.layout.assemble(prompts[i], [s.answer for s in replies[i]], [s.caption for s in replies[i]], k)
            for i, k in places
        ]
        longest, device = max(map(len, rows)), batch.context_pixels.device
        pad = self.layout.tokenizer.pad_id

        def padded(name: str, fill: int | bool) -> Tensor:
            values = [getattr(row, name) for row in rows]
            return torch.tensor([value + [fill] * (longest - len(value)) for value in values], device=device)

        chosen = torch.tensor([i for i, _ in places], device=device)
        return replace(
            batch,
            input_ids=padded("input_ids", pad),
            answer_mask=padded("answer", False),
            caption_mask=padded("caption", False),
            image_mask=padded("image", False),
            context_pixels=batch.context_pixels[chosen],
            has_context=batch.has_context[chosen],
        )


def drawn_places(replies: Sequence[Sequence[TokenSegment]]) -> list[Place]:
    """Reply and segment of every picture to draw."""
    return [(i, k) for i, reply in enumerate(replies) for k, s in enumerate(reply) if s.caption is not None]


def to_pictures(pixels: Tensor) -> list[NDArray[np.uint8]]:
    """(B, 3, H, W) in [-1, 1] to RGB pictures (H, W, 3) of 0-255."""
    grey = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [np.asarray(picture) for picture in grey]
