"""A reply as a stream of events, by the functions that also make whole replies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Literal

import torch

from m2chat.models.generation import TokenSegment, stream_replies
from m2chat.models.sequence_reader import SequenceReader
from m2chat.pipeline.drawing import to_pictures
from m2chat.pipeline.events import Drawn, Notice, Progress, Usage, Words
from m2chat.pipeline.inputs import ReplyInputs
from m2chat.pipeline.replier import Given, Replier, Start


class StreamingReplier(Replier):
    """A `Replier` that can also yield events while it replies to one conversation."""

    def stream(
        self,
        inputs: ReplyInputs,
        given: Given = "nothing",
        seed: int = 0,
        generator: torch.Generator | None = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Generator[Notice | Words | Progress | Drawn | Usage, None, None]:
        """The reply to one conversation as events.

        The prompt is tokenised before this returns, so that a caller needs no lock for that. A picture is drawn as soon
        as its tokens are there, before the text behind it.

        Args:
            inputs: Inputs of one conversation.
            given: Part of the reply that is given.
            seed: Seed of the pictures.
            generator: Generator of text sampling, used if the temperature is above 0.
            is_stopped: Function that ends the tokenisation, as for `Layout.prompt`.

        Yields:
            At least one event after every pass of the language model, one after every denoising step, and `Usage`.

        Raises:
            StoppedError: If the tokenisation was ended.
        """
        return self._events(inputs, self._start(inputs.views, given, is_stopped), seed, generator)

    @torch.no_grad()
    def _events(
        self, inputs: ReplyInputs, start: Start, seed: int, generator: torch.Generator | None
    ) -> Generator[Notice | Words | Progress | Drawn | Usage, None, None]:
        """The events after tokenisation."""
        prompts, (cut,) = start.prompts, start.cut
        reader = None
        if start.given is None:
            reader = self._reader(prompts, inputs)
            replies = stream_replies(
                self.model, prompts, inputs.context_pixels, self.special, self.decoding, generator, reader
            )
        else:
            replies = iter([[[*start.given[0], TokenSegment()]]])
        if cut:
            yield Notice(f"{cut} tokens of the conversation did not fit: the oldest turns are left out.", cut)
        sent: dict[tuple[int, str], str] = {}
        done = 0
        segments: list[TokenSegment] = []
        for (segments,) in replies:
            # A segment with another behind it is complete: all its image tokens are there.
            while done < len(segments) - 1:
                yield from self._finish(prompts, segments, done, sent, inputs, seed, reader)
                done += 1
            yield from self._words(segments, done, sent)
        yield from self._finish(prompts, segments, done, sent, inputs, seed, reader)
        for segment in segments:
            if segment.cut:
                yield self._limit(segment.cut)
        texts = [segment.answer for segment in segments], [segment.caption for segment in segments]
        whole = self.layout.assemble(prompts[0], *texts, target=0).input_ids
        yield Usage(len(prompts[0]), len(whole) - len(prompts[0]))

    def _limit(self, cut: Literal["answer", "caption"]) -> Notice:
        """The message that a text was cut."""
        if cut == "answer":
            text = f"The answer was cut at {self.decoding.max_text_tokens} tokens, its limit (max_new_tokens)."
        else:
            text = (
                f"The caption was cut at {self.decoding.caption_limit} tokens, its limit (max_caption_tokens): its "
                "picture is not drawn."
            )
        return Notice(text, limited=cut)

    def _words(
        self, segments: list[TokenSegment], index: int, sent: dict[tuple[int, str], str], complete: bool = False
    ) -> Iterator[Words]:
        """New text of a segment.

        A character of several bytes spans several tokens, and decodes to U+FFFD before its last one: text that ends so
        is held back until the next token, unless the segment is complete.

        Args:
            segments: Segments of the reply.
            index: Index of the segment.
            sent: Text that was yielded before, by segment and kind of text; is brought up to date.
            complete: Whether the segment gets no more tokens.
        """
        segment = self._segment(segments[index])
        texts: dict[Literal["answer", "caption"], str] = {"answer": segment.answer}
        if segment.caption is not None:
            texts["caption"] = segment.caption
        for of, text in texts.items():
            old = sent.get((index, of), "")
            new = text[len(old) :] if complete or not text.endswith("\ufffd") else ""
            sent[index, of] = old + new
            # Every pass of the language model yields an event, even an empty one, so that a listener can stop it.
            is_current = of == "caption" or segment.caption is None
            if new or (is_current and not complete):
                yield Words(index, new, of)

    def _finish(
        self,
        prompts: list[list[int]],
        segments: list[TokenSegment],
        index: int,
        sent: dict[tuple[int, str], str],
        inputs: ReplyInputs,
        seed: int,
        reader: SequenceReader | None,
    ) -> Iterator[Words | Progress | Drawn]:
        """The rest of the text of a complete segment, and its picture if it has one."""
        yield from self._words(segments, index, sent, complete=True)
        segment = segments[index]
        if segment.caption is None:
            return
        place, decoder, every = [(0, index)], self.model.decoder, self.draw.preview_every
        condition = self.conditions.read(place, prompts, [segments[: index + 1]], inputs, reader)
        latents = condition.h_align
        for state in self.denoise(condition, self._seeds(place, inputs, [seed])):
            latents = state.latents
            due = every and state.step % every == 0 and state.step < state.steps
            preview = to_pictures(decoder.decode_latents(state.estimate, preview=True))[0] if due else None
            yield Progress(index, state.step, state.steps, preview)
        (picture,) = to_pictures(decoder.decode_latents(latents))
        caption = self.layout.tokenizer.decode(segment.caption)
        yield Drawn(index, picture, caption, float(condition.gate[0]), float(condition.cosine[0]))
