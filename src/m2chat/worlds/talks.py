"""What the worlds share in `m2chat measure`: rows of rates, and conversations that are replied to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from m2chat.evaluation.statistics import estimate
from m2chat.pipeline import DrawSettings, M2ChatPipeline
from m2chat.pipeline.drawing import noise_seed
from m2chat.pipeline.inputs import waiting
from m2chat.pipeline.replier import Given, ImageMode
from m2chat.schema import Conversation, Picture, Reply, Sample, Segment, Turn
from m2chat.text.view import replies_of


@dataclass
class Findings:
    """Truth values by measure.

    Args:
        cases: Name of each measure to one truth value a case.
        bars: Name of a measure to the percentage that it must reach.
        by_pixels: Name of a measure to the same cases, judged by the nearest true picture instead of a network.
    """

    cases: dict[str, list[bool]] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    by_pixels: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, measure: str, values: list[bool]) -> None:
        """Adds cases."""
        self.cases.setdefault(measure, []).extend(values)

    def rate(self, measure: str) -> float:
        """Percentage of the true ones."""
        values = self.cases[measure]
        return 100 * sum(values) / len(values)

    def rows(self) -> list[dict[str, Any]]:
        """Every measure with its interval and whether it holds."""
        rows = []
        for name, values in self.cases.items():
            share, bar, near = estimate(values), self.bars.get(name), self.by_pixels.get(name)
            rows.append(
                {
                    "measure": name, "percent": round(100 * share.value, 1), "n": len(values),
                    "low": round(100 * share.low, 1), "high": round(100 * share.high, 1),
                    "bar": None if bar is None else round(bar, 1),
                    "holds": None if bar is None else 100 * share.value >= bar,
                    **({} if near is None else {"by_pixels": round(100 * sum(near) / len(near), 1)}),
                }
            )  # fmt: skip
        return rows


@dataclass
class Talks:
    """Has conversations replied to.

    Args:
        pipe: Replies.
        seed: Seed of the pictures.
        steps: Denoising steps.
        size: Replies at once.
        model_captions: Whether the model captions the pictures that are shown, as in a chat.
        gates: Gate and cosine of each picture of the newest reply, by conversation and turn.
    """

    pipe: M2ChatPipeline
    seed: int
    steps: int
    size: int
    model_captions: bool
    gates: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict, init=False)

    def captioned(self, samples: list[Sample]) -> list[Sample]:
        """The same, with the model's captions of the pictures that the user shows."""
        if not self.model_captions:
            return samples
        places = [(i, k) for i, s in enumerate(samples) for t in s.turns if t.role == "user" for k in t.pictures]
        captions = self.pipe.caption([samples[i].images[k].pixels for i, k in places])
        for (i, k), caption in zip(places, captions, strict=True):
            images = list(samples[i].images)
            images[k] = replace(images[k], caption=caption)
            samples[i] = replace(samples[i], images=tuple(images))
        return samples

    def reply(
        self, asked: Sequence[tuple[Sample, int]], image: ImageMode = "auto", steps: int | None = None
    ) -> list[Reply]:
        """Replies to turns of conversations, in the words and pictures of the model."""
        draw = self.draw_settings()
        replier = self.pipe.replier(image, 1, draw if steps is None else replace(draw, steps=steps))
        replies: list[Reply] = []
        for start in range(0, len(asked), self.size):
            part = asked[start : start + self.size]
            samples, turns = [sample for sample, _ in part], [turn for _, turn in part]
            with self.pipe.lock:
                batch = waiting(samples, self.pipe.vision, self.pipe.device, turns)
                made, notes = replier.reply(batch, seeds=[self.seed] * len(part))
            replies += made
            for (sample, turn), note in zip(part, notes, strict=True):
                self.gates[sample.id, turn] = list(zip(note["gate"], note["cosine"], strict=True))
        return replies

    def converse(self, samples: Sequence[Sample]) -> dict[tuple[str, int], Reply]:
        """Replies to every request of conversations, by the sample's id and the turn.

        With the model's captions each reply follows the model's earlier replies, as in a chat; with the data's captions
        it follows the reference ones.
        """
        if not self.model_captions:
            asked = [(item, turn) for item in samples for turn in replies_of(item)]
            return {(s.id, turn): reply for (s, turn), reply in zip(asked, self.reply(asked), strict=True)}
        talks = {sample.id: replace(sample, turns=(), images=()) for sample in samples}
        replies: dict[tuple[str, int], Reply] = {}
        for turn in range(max(len(sample.turns) for sample in samples)):
            there = [sample for sample in samples if turn < len(sample.turns)]
            for sample in there:
                if sample.turns[turn].role == "user":
                    talks[sample.id] = with_user_turn(talks[sample.id], sample, sample.turns[turn])
            asked = [(talks[sample.id], turn) for sample in there if sample.turns[turn].role == "assistant"]
            for (talk, _), reply in zip(asked, self.reply(asked), strict=True):
                replies[talk.id, turn] = reply
                talks[talk.id] = talk.with_reply(reply)
        return replies

    def decoder_alone(self, asked: Sequence[tuple[Sample, int]], captions: Sequence[str]) -> list[Picture]:
        """What the image decoder draws of captions by itself, from the same noise as the replies' pictures."""
        seeds = [noise_seed(self.seed, f"{sample.id}#{turn}/0") for sample, turn in asked]
        pictures: list[Picture] = []
        for start in range(0, len(captions), self.size):
            part = slice(start, start + self.size)
            pictures += self.pipe.draw_captions(captions[part], seeds[part], self.draw_settings())
        return pictures

    def drawn_of(
        self, asked: Sequence[tuple[Conversation, Segment]], given: Given, seeds: Sequence[int] | None = None
    ) -> list[Picture]:
        """Pictures of given segments, through language model and adapter.

        Args:
            asked: Conversations that wait for a reply, and what is drawn there.
            given: ``caption`` draws the caption as a prompt of its own, ``reply`` behind the segment's answer.
            seeds: Seed of each picture; the same for all if None.
        """
        replier = self.pipe.replier(draw=self.draw_settings())
        pictures: list[Picture] = []
        for start in range(0, len(asked), self.size):
            part = slice(start, start + self.size)
            talks = [replace(talk, to_draw=(segment,)) for talk, segment in asked[part]]
            with self.pipe.lock:
                batch = waiting(talks, self.pipe.vision, self.pipe.device)
                made, _ = replier.reply(batch, given, seeds[part] if seeds else [self.seed] * len(talks))
            pictures += [reply.pictures[0] for reply in made]
        return pictures

    def draw_settings(self) -> DrawSettings:
        """How all pictures but those of wishes are drawn."""
        return self.pipe.draw_settings(self.steps)


def with_user_turn(talk: Sample, sample: Sample, turn: Turn) -> Sample:
    """A conversation, continued by a user turn of another one, with its pictures."""
    shown = {picture: len(talk.images) + place for place, picture in enumerate(turn.pictures)}
    parts = tuple(shown[part] if isinstance(part, int) else part for part in turn.parts)
    images = (*talk.images, *(sample.images[picture] for picture in turn.pictures))
    return replace(talk, turns=(*talk.turns, replace(turn, parts=parts)), images=images)


def first_picture(reply: Reply) -> Picture | None:
    """The first picture of a reply, if there is one."""
    return next(iter(reply.pictures), None)
