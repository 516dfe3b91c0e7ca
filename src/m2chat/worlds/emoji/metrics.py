"""The measurements of `m2chat measure --world emoji`: replies to held-out conversations, and what their pictures show.

A right picture takes a right caption, an adapter that loses nothing of it, and a decoder that can draw it. So beside
the rate of the replies' pictures stand those of their captions, and of the decoder by itself: from the true caption,
and from the reply's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from m2chat.schema import Conversation, Picture, Reply, Sample, Segment, Turn
from m2chat.text.view import replies_of
from m2chat.world import Attributes
from m2chat.worlds.emoji.captions import CaptionReader, caption_of
from m2chat.worlds.emoji.judge import PictureJudge
from m2chat.worlds.emoji.phrases import bare
from m2chat.worlds.emoji.recipe.drawing import nearest_scenes, thumbnails
from m2chat.worlds.emoji.scenes import Scene
from m2chat.worlds.talks import Findings, Talks, first_picture

FRAMES = 4
"""Pictures of a story."""
_WHOLE = ("edit", "restyle", "similar")
"""Steps whose picture must keep what the context picture shows: the caption alone does not say what is right."""
_FRESH = ("instruct", "moment", "wish", "described", "occasion")
"""Steps whose picture has nothing to do with what was drawn before."""
_REFUSES = re.compile(r"\b(?:not|never|cannot)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A reply where a picture is due.

    Args:
        sample: Conversation with the reference reply.
        turn: Turn of the reply.
        reply: The model's.
    """

    sample: Sample
    turn: int
    reply: Reply

    @property
    def step(self) -> str:
        """What was asked for, as the conversation's maker calls it."""
        return str(self.sample.meta["steps"][str(self.turn)])

    @property
    def target(self) -> int:
        """Index of the reference picture."""
        return self.sample.turns[self.turn].pictures[0]

    @property
    def scene(self) -> Attributes:
        """What the reference picture shows."""
        return self.sample.meta["scenes"][self.target]  # type: ignore[no-any-return]

    @property
    def before(self) -> Attributes:
        """What the picture before it shows."""
        return self.sample.meta["scenes"][self.target - 1]  # type: ignore[no-any-return]

    @property
    def caption(self) -> str:
        """Caption of the reference picture."""
        return self.sample.images[self.target].caption

    @property
    def drawn(self) -> Segment | None:
        """The first segment with a picture."""
        pairs = zip(self.reply.segments, self.reply.images, strict=True)
        return next((segment for segment, pixels in pairs if pixels is not None), None)

    @property
    def is_determined(self) -> bool:
        """Whether conversation and reference agree on what comes before: the answer to a wish is free."""
        earlier = [step for turn, step in self.sample.meta["steps"].items() if int(turn) < self.turn]
        return self.step in _FRESH or not {"wish", "similar", "described", "occasion"} & set(earlier)


class Eyes:
    """What pictures show, by the judge and by the nearest true picture; and what is right.

    Args:
        judge: The judge with all true pictures.
    """

    def __init__(self, judge: PictureJudge) -> None:
        self.judge, self.pictures = judge, judge.pictures
        self.reader = CaptionReader(self.pictures.scenes)
        self.small = thumbnails(self.pictures.pixels)
        self.words: dict[str, set[str]] = {}
        self.scenes: dict[tuple[str, ...], Scene] = {}
        for scene in self.pictures.scenes:
            self.scenes[tuple(scene.attributes.values())] = scene
            self.words.setdefault(scene.concept, set()).update((scene.concept, scene.label, *scene.keywords))
        self.words = {concept: {bare(word) for word in words} for concept, words in self.words.items()}
        self.kinds = {scene.concept: scene.subgroup for scene in self.pictures.scenes}

    def scene(self, attributes: Attributes) -> Scene:
        """The scene with these attributes."""
        return self.scenes[tuple(attributes.values())]

    def seen(self, pictures: Sequence[Picture | None]) -> tuple[list[Attributes], list[Attributes]]:
        """Attributes of each picture by the judge, and by pixels; none where it is missing."""
        there = [picture for picture in pictures if picture is not None]
        if not there:
            return [{} for _ in pictures], [{} for _ in pictures]
        stack = np.stack(there)
        judged = iter(self.judge.read(stack))
        near = iter(nearest_scenes(stack, self.pictures, self.small))
        by_judge: list[Attributes] = [{} if picture is None else next(judged).seen for picture in pictures]
        return by_judge, [{} if picture is None else next(near)[0].attributes for picture in pictures]

    def is_right(self, case: Case, seen: Attributes, of_caption: bool = False) -> bool:
        """Whether what a picture shows, or a caption names, is what was asked for."""
        if case.step == "wish":
            keywords = case.sample.meta["keywords"][str(case.turn)]
            return {bare(word) for word in keywords} <= self.words[seen["concept"]]
        if case.step == "similar":
            last, concept = case.before, seen["concept"]
            is_kept = seen.get("style", last["style"]) == last["style"]
            return is_kept and concept != last["concept"] and self.kinds[concept] == self.kinds[last["concept"]]
        wanted = case.scene if case.step in _WHOLE and not of_caption else self.reader.read(case.caption)
        return bool(wanted) and all(seen.get(name) == value for name, value in wanted.items())

    def caption(self, case: Case) -> str:
        """The true caption, with everything that the picture must show: the decoder sees no context picture."""
        return caption_of(self.scene(case.scene)) if case.step in _WHOLE else case.caption

    def add(
        self,
        findings: Findings,
        measure: str,
        pictures: Sequence[Picture | None],
        tests: Sequence[Callable[[Attributes], bool]],
    ) -> None:
        """Adds whether each picture passes its test, by the judge and by pixels."""
        for to, shown in zip((findings.cases, findings.by_pixels), self.seen(pictures), strict=True):
            to.setdefault(measure, []).extend(
                bool(seen) and test(seen) for seen, test in zip(shown, tests, strict=True)
            )

    def names(self, text: str, scene: Attributes) -> bool:
        """Whether a text has the name or a keyword of a scene, in singular or plural."""
        shown = self.scene(scene)
        words = {bare(word) for word in (shown.concept, shown.label, *shown.keywords)}
        return any(f" {word} " in f" {bare(text)} " for word in words if len(word) > 2)


def shows(attribute: str, value: str, seen: Attributes) -> bool:
    """Whether an attribute that is seen has a value."""
    return seen.get(attribute) == value


def measure_replies(talks: Talks, eyes: Eyes, samples: Sequence[Sample], findings: Findings) -> list[Case]:
    """Whether a picture comes where one is due and no other, whether shown emoji are named, what is not known refused.

    Returns:
        The replies where a picture is due; of stories only the decision counts here.
    """
    replies = talks.converse([sample for sample in samples if sample.source != "story"])
    undrawn = [(sample, turn) for sample in samples if sample.source == "story" for turn in replies_of(sample)]
    replies |= {(s.id, k): reply for (s, k), reply in zip(undrawn, talks.reply(undrawn, steps=1), strict=True)}
    cases, asked = list[Case](), dict[str, list[tuple[Attributes, str]]]()
    for sample, turn in [(item, turn) for item in samples for turn in replies_of(item)]:
        reply, reference = replies[sample.id, turn], sample.turns[turn]
        is_due, text = bool(reference.pictures), " ".join(reply.texts)
        name = "decision: a picture where one is due" if is_due else "decision: none where none is due"
        for row in (name, f"{name}: {sample.source}"):
            findings.add(row, [bool(reply.pictures) == is_due])
        case = Case(sample, turn, reply)
        if is_due and sample.source != "story":
            cases.append(case)
        elif case.step == "unknown":
            findings.add("unknown: nothing drawn, and said so", [not reply.pictures and bool(_REFUSES.search(text))])
        elif case.step.startswith("ask") and (shown := sample.turns[turn - 1].pictures):
            asked.setdefault(case.step, []).append((sample.meta["scenes"][shown[-1]], text))
    _measure_answers(eyes, asked, findings)
    return cases


def _measure_answers(eyes: Eyes, asked: Mapping[str, Sequence[tuple[Attributes, str]]], findings: Findings) -> None:
    """Whether answers name what is shown; beside it how often they would name another picture, by chance."""
    for step, answers in asked.items():
        for k, (scene, text) in enumerate(answers):
            if step == "ask_style":
                findings.add("asked: its style", [scene["style"] in text.lower()])
            elif step == "ask_keyword":
                findings.add("asked: a keyword of what is shown", [eyes.names(text, scene)])
            else:
                findings.add("asked: what is shown", [eyes.names(text, scene)])
                other = answers[(k + 1) % len(answers)][0]
                findings.add("asked: what another picture shows, by chance", [eyes.names(text, other)])


def measure_captions(eyes: Eyes, samples: Sequence[Sample], findings: Findings) -> None:
    """Whether the model's captions of the pictures that users show name what is there."""
    for sample in samples:
        for k in [k for turn in sample.turns if turn.role == "user" for k in turn.pictures]:
            named, scene = eyes.reader.read(sample.images[k].caption), sample.meta["scenes"][k]
            for name in ("concept", "style", *(["tone"] if scene["tone"] else [])):
                findings.add(f"described: {name}", [named.get(name) == scene[name]])


def measure_pictures(
    talks: Talks, eyes: Eyes, name: str, cases: Sequence[Case], findings: Findings, is_forced: bool = False
) -> dict[str, list[Picture | None]]:
    """Rates of captions, of the decoder from the true and from the reply's caption, and of the replies' pictures.

    Args:
        talks: Draws.
        eyes: Judges.
        name: Name of these cases.
        cases: Replies where a picture is due.
        findings: Takes the rows.
        is_forced: Whether the true captions are drawn through language model and adapter too.

    Returns:
        Pictures by row.
    """
    if not cases:
        return {}
    places = [(case.sample, case.turn) for case in cases]
    true = [eyes.caption(case) for case in cases]
    written = [None if case.drawn is None else case.drawn.caption for case in cases]
    named = [eyes.reader.read(caption or "") for caption in written]
    measured = [bool(seen) and eyes.is_right(case, seen, True) for case, seen in zip(cases, named, strict=True)]
    findings.add(f"caption right: {name}", measured)
    rows: dict[str, list[Picture | None]] = {f"decoder right: {name}": list(talks.decoder_alone(places, true))}
    there = [(place, caption) for place, caption in zip(places, written, strict=True) if caption is not None]
    alone = iter(talks.decoder_alone([place for place, _ in there], [caption for _, caption in there]))
    pictures = [None if caption is None else next(alone) for caption in written]
    rows[f"decoder right, from the reply's caption: {name}"] = pictures
    if is_forced:
        talk = [
            (Conversation(f"{sample.id}#{turn}", (Turn("user", (caption,)),)), Segment("", caption))
            for (sample, turn), caption in zip(places, true, strict=True)
        ]
        rows[f"forced right: {name}"] = list(talks.drawn_of(talk, "caption"))
    rows[f"right: {name}"] = [first_picture(case.reply) for case in cases]
    for row, drawn in rows.items():
        eyes.add(findings, row, drawn, [partial(eyes.is_right, case) for case in cases])
    return rows


def measure_stories(talks: Talks, eyes: Eyes, samples: Sequence[Sample], findings: Findings) -> list[Case]:
    """Stories continued from their first line, each frame in view of the generated ones before it.

    Returns:
        Every frame.
    """
    stories = [replace(sample, turns=sample.turns[:1], images=()) for sample in samples]
    frames: list[list[Case]] = [[] for _ in samples]
    for turn in range(1, FRAMES + 1):
        replies = talks.reply([(story, turn) for story in stories], image="force")
        for k, reply in enumerate(replies):
            frames[k].append(Case(samples[k], turn, reply))
            stories[k] = stories[k].with_reply(reply)
    cases = [case for of_story in frames for case in of_story]
    rows = measure_pictures(talks, eyes, "frames of stories", cases, findings)
    for whose in ("", "decoder "):
        seen, _ = eyes.seen(rows[f"{whose}right: frames of stories"])
        for start in range(0, len(seen), FRAMES):
            styles = [attributes.get("style") for attributes in seen[start : start + FRAMES]]
            findings.add(f"{whose}kept: style of stories", [style == styles[0] is not None for style in styles[1:]])
    return cases
