"""The measurements of `m2chat measure`: conversations of the micro world's test split, replied to and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m2chat.pipeline.drawing import noise_seed
from m2chat.pipeline.tasks import WISH_GUIDANCE, wish
from m2chat.schema import KINDS, Picture, Reply, Sample
from m2chat.text import view_of
from m2chat.text.view import replies_of, stands_alone
from m2chat.worlds.shapes.builder import HIDDEN
from m2chat.worlds.shapes.captions import caption_of, parse_caption
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.judge import asks_openly, kept, right, seen_in, shows
from m2chat.worlds.shapes.scenes import Scene, first_change, render
from m2chat.worlds.talks import Findings, Talks, first_picture


@dataclass
class ShapeTalks(Talks):
    """The same, with conversations of the shapes world.

    Args:
        pipe: Replies.
        seed: Seed of the conversations and of the pictures.
        steps: Denoising steps.
        size: Replies at once.
        model_captions: Whether the model captions the pictures that are shown, as in a chat.
    """

    def __post_init__(self) -> None:
        self.maker = ConversationMaker("test", self.seed)

    def make(self, name: str, count: int) -> list[Sample]:
        """Held-out conversations; the name is that of a method of the maker."""
        kind = next((kind for kind in KINDS if kind == name), "dialogue")
        return self.captioned([getattr(self.maker, name)().sample(kind, f"measure-{name}", k) for k in range(count)])


def measure_replies(talks: ShapeTalks, samples: Sequence[Sample], findings: Findings) -> dict[tuple[str, int], Reply]:
    """Whether a picture comes where one is due, and no other; and whether those of the replies are right.

    Returns:
        The replies, by the sample's id and the turn.
    """
    # Of stories only the decision counts here, their frames are drawn by `measure_stories`.
    replies = talks.converse([sample for sample in samples if sample.kind != "story"])
    undrawn = [(sample, turn) for sample in samples if sample.kind == "story" for turn in replies_of(sample)]
    replies |= {(s.id, k): reply for (s, k), reply in zip(undrawn, talks.reply(undrawn, steps=1), strict=True)}
    due: dict[str, list[tuple[tuple[Sample, int], Picture | None, str]]] = {}
    for sample, turn in [(item, turn) for item in samples for turn in replies_of(item)]:
        view, reply = view_of(sample, turn), replies[sample.id, turn]
        caption = view.reply[0].caption
        comes = bool(reply.pictures)
        if caption is None:
            findings.add("decision: none where none is due", [not comes])
            continue
        openly = asks_openly(view.request.instruction)
        findings.add("decision: a picture where one is due", [comes])
        findings.add(f"decision: a picture, asked for {'with' if openly else 'without'} words like draw", [comes])
        if sample.kind in ("instruct", "dialogue"):
            name = "pictures of replies" if stands_alone(sample, turn) else "frames of stories inside dialogues"
            due.setdefault(name, []).append(((sample, turn), first_picture(reply), caption))
    for name, cases in due.items():
        wanted = [parse_caption(caption) for _, _, caption in cases]
        findings.add(f"right: {name}", right([picture for _, picture, _ in cases], wanted))
        alone = talks.decoder_alone([place for place, _, _ in cases], [caption for _, _, caption in cases])
        findings.add(f"decoder right: {name}", right(list(alone), wanted))
    return replies


def measure_edits(
    talks: ShapeTalks, samples: Sequence[Sample], edits: dict[tuple[str, int], Reply], findings: Findings
) -> None:
    """Whether the named attribute changes and the others stay; and whether the reply follows another first picture."""
    for name, turn in (("edits", 1), ("second rounds of edits", 3)):
        asked = [(sample, turn) for sample in samples if turn < len(sample.turns)]
        targets = [sample.turns[turn].pictures[0] for sample, _ in asked]
        after = [dict(sample.meta["scenes"][k]) for (sample, _), k in zip(asked, targets, strict=True)]
        findings.add(f"right: {name}", right([first_picture(edits[sample.id, turn]) for sample, _ in asked], after))
        # The decoder sees no context picture: its caption must name what is to be kept.
        whole = [caption_of(Scene.from_attributes(scene)) for scene in after]
        findings.add(f"decoder right: {name}", right(list(talks.decoder_alone(asked, whole)), after))
        given = [sample.images[k].caption for (sample, _), k in zip(asked, targets, strict=True)]
        findings.add(f"decoder, the data's own caption: {name}", right(list(talks.decoder_alone(asked, given)), after))
    replies = [edits[sample.id, 1] for sample in samples]
    others = [_replaced(talks.maker, sample) for sample in samples]
    changed = [(sample, scene) for sample, scene in zip(samples, others, strict=True) if scene is not None]
    swapped = talks.captioned([_with_picture(talks.maker, sample, scene) for sample, scene in changed])
    new = seen_in([first_picture(reply) for reply in talks.reply([(sample, 1) for sample in swapped])])
    old = seen_in([first_picture(reply) for reply, scene in zip(replies, others, strict=True) if scene is not None])
    findings.add("another picture in turn 1 changes turn 2", [a != b for a, b in zip(old, new, strict=True)])
    ground = [scene.background for _, scene in changed]
    findings.add(
        "its background is taken over",
        [seen.get("background") == value for seen, value in zip(new, ground, strict=True)],
    )


def measure_descriptions(talks: ShapeTalks, samples: Sequence[Sample], findings: Findings) -> None:
    """Whether the model's captions of shown pictures name each attribute right."""
    captions = talks.pipe.caption([sample.images[0].pixels for sample in samples])
    for sample, caption in zip(samples, captions, strict=True):
        named = parse_caption(caption)
        for name, value in sample.meta["scenes"][0].items():
            findings.add(f"described: {name.removesuffix('_2')}", [named.get(name) == value])


def _replaced(maker: ConversationMaker, sample: Sample) -> Scene | None:
    """Another scene in place of the first picture: the same, before another ground; None where the edit is that."""
    before, after = (dict(scene) for scene in sample.meta["scenes"][:2])
    if before["background"] != after["background"]:
        return None
    taken = {value for scene in (before, after) for name, value in scene.items() if name.startswith("colour")}
    grounds = [
        value for value in ("white", "cyan", "pink", "black", "green") if value not in taken | {before["background"]}
    ]
    return Scene.from_attributes({**before, "background": maker.rng.choice(grounds)})


def _with_picture(maker: ConversationMaker, sample: Sample, scene: Scene) -> Sample:
    first = replace(sample.images[0], pixels=render(scene, maker.noise))
    named = parse_caption(first.caption)
    first = replace(first, caption=caption_of(scene, omit=[name for name in HIDDEN if name not in named]))
    return replace(sample, images=(first, *sample.images[1:]))


def measure_stories(talks: ShapeTalks, samples: Sequence[Sample], findings: Findings) -> None:
    """Stories continued from their first line, each frame in view of the generated ones before it."""
    frames = max(len(sample.turns) for sample in samples) - 1
    stories = [replace(sample, turns=sample.turns[:1], images=()) for sample in samples]
    drawn: list[list[Picture | None]] = [[] for _ in samples]
    for _ in range(frames):
        asked = [(sample, len(sample.turns)) for sample in stories]
        for k, reply in enumerate(talks.reply(asked, image="force")):
            drawn[k].append(first_picture(reply))
            stories[k] = stories[k].with_reply(reply)
    places = [(sample, turn) for sample in samples for turn in range(1, frames + 1)]
    alone = talks.decoder_alone(places, [view_of(*place).reply[0].caption or "" for place in places])
    for k, sample in enumerate(samples):
        scenes = [dict(scene) for scene in sample.meta["scenes"]]
        changing = first_change(*scenes[:2])
        ours, theirs = drawn[k], alone[k * frames : (k + 1) * frames]
        findings.add("kept: subject of stories", kept(ours, changing))
        findings.add("decoder kept: subject of stories", kept(list(theirs), changing))
        findings.add("right: frames of stories", right(ours, scenes))
        findings.add("decoder right: frames of stories", right(list(theirs), scenes))


def measure_wishes(talks: ShapeTalks, count: int, findings: Findings) -> None:
    """Whether four seeds of a vague wish all satisfy it, and differ in something that it leaves open."""
    draw = replace(talks.draw_settings(), guidance=WISH_GUIDANCE)
    seeds = range(4)
    for _ in range(count):
        talk = talks.maker.wish()
        scene = talk.scenes[-1].attributes
        wanted = {name: scene[name] for name in ("shape", "colour", "background")}
        outputs = wish(talks.pipe, talk.turns[0].text, seeds, steps=talks.steps)
        noise = [noise_seed(seed, "wish#1/0") for seed in seeds]  # that of `wish`'s pictures
        alone = talks.pipe.draw_captions([talk.images[-1].caption or ""] * len(seeds), noise, draw)
        ours: list[Any] = [np.asarray(output.images[0]) if output.images else None for output in outputs]
        for whose, pictures in (("", ours), ("decoder ", list(alone))):
            seen = seen_in(pictures)
            findings.add(f"{whose}wishes: all four seeds satisfy it", [all(shows(values, wanted) for values in seen)])
            open_ = {(values.get("size"), values.get("position")) for values in seen}
            findings.add(f"{whose}wishes: two of them differ in what it leaves open", [len(open_) > 1])
