"""A reply an event at a time: the same as whole, by the same functions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal

import torch

from m2chat.models.generation import TokenSegment, stream_replies
from m2chat.pipeline.events import Drawn, Notice, Progress, Usage, Words
from m2chat.pipeline.replier import Given, Replier, to_pictures
from m2chat.schema import Batch
from m2chat.text import view_of


class StreamingReplier(Replier):
    """A `Replier` that can be listened to while it replies to one conversation."""

    @torch.no_grad()
    def stream(
        self, batch: Batch, given: Given = "nothing", seed: int = 0, generator: torch.Generator | None = None
    ) -> Generator[Notice | Words | Progress | Drawn | Usage, None, None]:
        """The reply to the one conversation of a batch, as it comes into being.

        A picture is drawn as soon as its tokens are there, before the words behind it.

        Args:
            batch: Of one conversation.
            given: What is given of the true reply.
            seed: Of the pictures.
            generator: Of the words, if the temperature is above 0.

        Yields:
            At least one event after every pass of the language model, and one after every denoising step; in the end
            what it was made of.
        """
        view = view_of(batch.samples[0], batch.turns[0])
        if given == "nothing":
            prompts, (cut,) = self._prompts([view])
            replies = stream_replies(self.model, prompts, batch.context_pixels, self.special, self.decoding, generator)
        else:
            prompts, (cut,), told = self._told([view], given)
            replies = iter([[[*told[0], TokenSegment()]]])
        if cut:
            yield Notice(f"What did not fit is left out, the oldest turns first ({cut} tokens).", cut)
        said: dict[tuple[int, str], str] = {}
        done = 0
        segments: list[TokenSegment] = []
        for (segments,) in replies:
            # A segment with another behind it is whole: its slots are filled.
            while done < len(segments) - 1:
                yield from self._finish(prompts, segments, done, said, batch, seed)
                done += 1
            yield from self._words(segments, done, said)
        yield from self._finish(prompts, segments, done, said, batch, seed)
        texts = [segment.answer for segment in segments], [segment.caption for segment in segments]
        whole = self.layout.assemble(prompts[0], *texts, target=0).input_ids
        yield Usage(len(prompts[0]), len(whole) - len(prompts[0]))

    def _words(
        self, segments: list[TokenSegment], index: int, said: dict[tuple[int, str], str], whole: bool = False
    ) -> Iterator[Words]:
        """What is new in the texts of a segment; bytes of an unfinished character wait, unless nothing can follow."""
        segment = self._segment(segments[index])
        texts: dict[Literal["answer", "caption"], str] = {"answer": segment.answer}
        if segment.caption is not None:
            texts["caption"] = segment.caption
        for of, text in texts.items():
            old = said.get((index, of), "")
            new = text[len(old) :] if whole or not text.endswith("\ufffd") else ""
            said[index, of] = old + new
            is_current = of == "caption" or segment.caption is None
            if new or (is_current and not whole):
                yield Words(index, new, of)

    def _finish(
        self,
        prompts: list[list[int]],
        segments: list[TokenSegment],
        index: int,
        said: dict[tuple[int, str], str],
        batch: Batch,
        seed: int,
    ) -> Iterator[Words | Progress | Drawn]:
        """The last words of a whole segment, and its picture if it has one."""
        yield from self._words(segments, index, said, whole=True)
        segment = segments[index]
        if segment.caption is None:
            return
        place, decoder, every = [(0, index)], self.model.decoder, self.draw.preview_every
        condition = self._condition(place, prompts, [segments[: index + 1]], batch)
        latents = condition.h_align
        for state in self.denoise(condition, self._seeds(place, batch, [seed])):
            latents = state.latents
            due = every and state.step % every == 0 and state.step < state.steps
            shown = to_pictures(decoder.decode_latents(state.estimate))[0] if due else None
            yield Progress(index, state.step, state.steps, shown)
        (picture,) = to_pictures(decoder.decode_latents(latents))
        caption = self.layout.tokenizer.decode(segment.caption)
        yield Drawn(index, picture, caption, float(condition.gate[0]), float(condition.cosine[0]))
