"""What the micro language model reads before anybody tunes it.

Picture descriptions, copying, and the knowledge that conversations need later; none of the replies that stage 2
teaches, or it would have nothing to teach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from m2chat.text import DESCRIBE, Request
from m2chat.worlds.shapes.captions import COLOUR_OF, MOODS, SHAPE_OF, THING_OF, TOY_OF, caption_of, with_article
from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, held_out_keys


@dataclass(frozen=True)
class Lesson:
    """One thing to learn.

    Args:
        request: The prompt.
        answer: The response.
        scene: Scene that the picture shows; None without a picture.
    """

    request: Request
    answer: str
    scene: Scene | None = None


def describe(scene: Scene, rng: random.Random) -> Lesson:
    """Tells what a picture shows, whole or one attribute of it."""
    if rng.random() < 0.6:
        return Lesson(Request(DESCRIBE), caption_of(scene), scene)
    name = rng.choice(sorted(scene.attributes))
    words = name.replace("_2", " on the right")
    return Lesson(Request(f"Name the {words} of this image"), scene.attributes[name], scene)


def copy(scene: Scene, rng: random.Random) -> Lesson:
    """Repeats a caption that stands in the request."""
    omit = rng.sample(("size", "position", "background"), rng.randint(0, 3)) if rng.random() < 0.4 else ()
    caption = caption_of(scene, omit=omit)
    if rng.random() < 0.5:
        return Lesson(Request("Repeat the words", (caption,)), caption)
    return Lesson(Request(f"Draw {caption}"), caption)


def fact(rng: random.Random) -> Lesson:
    """One piece of knowledge."""
    pick = rng.randrange(3)
    if pick == 0:
        thing, colour = rng.choice(sorted(COLOUR_OF.items()))
        return Lesson(Request(f"Name the colour of the {thing}"), colour)
    if pick == 1:
        toy, shape = rng.choice(sorted(SHAPE_OF.items()))
        return Lesson(Request(f"Name the shape of a {toy}"), shape)
    mood, (colour, ground) = rng.choice(sorted(MOODS.items()))
    return Lesson(Request(f"Name the colours of {mood}"), f"{colour} on {with_article(ground)} background")


def compose(scene: Scene, rng: random.Random) -> Lesson:
    """A caption from things that look like it."""
    toy, thing, ground = TOY_OF[scene.first.shape], THING_OF[scene.first.colour], THING_OF[scene.background]
    hints = [f"shape of a {toy}", f"colour of the {thing}"]
    omit = ["size", "position", "background"]
    if rng.random() < 0.6:
        hints.append(f"background of the {ground}")
        omit.remove("background")
    rng.shuffle(hints)
    return Lesson(Request("Write the caption", (" , ".join(hints),)), caption_of(scene, omit=omit))


def change(scene: Scene, rng: random.Random) -> Lesson | None:
    """A caption rewritten with one attribute changed."""
    choices = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "position": POSITIONS, "background": COLOURS}
    name = rng.choice(sorted(scene.attributes))
    value = rng.choice(sorted(choices[name.removesuffix("_2")]))
    after = scene.with_attribute(name, value)
    if not after.is_valid or after.key in held_out_keys():
        return None
    omit: list[str] = []
    if rng.random() < 0.5:
        omit = [hidden for hidden in ("size", "position", "background") if hidden != name]
    before = caption_of(scene, omit=[*omit, *([name] if omit else [])])
    words = name.replace("_2", " on the right")
    return Lesson(Request(f"Change the {words} to {value}", (f"[picture 1: {before}]",)), caption_of(after, omit=omit))


_WHO = (
    "the day", "the night", "summer", "winter", "spring", "autumn", "my dream", "your picture", "the sky", "the light",
    "a painter", "the spell", "everything", "it", "the hole", "this place", "the evening", "a small thing", "the sea",
)  # fmt: skip
_DOES = (
    "is", "was", "looks", "turns", "becomes", "grows", "makes", "takes", "opens", "ends as", "begins as", "comes to",
    "stands by", "lies behind", "waits for", "rests on", "climbs", "moved to", "painted", "has", "likes", "would call",
    "slides down to", "falls on", "folds into", "shall draw", "came to",
)  # fmt: skip
_WHAT = (
    "bright", "ready", "fine", "true", "true and new", "slowly", "there", "now", "more", "sweet", "in my mind",
    "for me", "at last", "first", "then", "only this", "anything else", "the same spot", "what I imagine", "the magic",
    "a place", "welcome", "nothing , thank you", "sure of it", "done", "hello to you", "one more",
)  # fmt: skip


def sentence(rng: random.Random) -> Lesson:
    """Plain English nonsense: the words of later conversations, never their sentences."""
    what = rng.choice(
        (rng.choice(_WHAT), with_article(rng.choice(sorted(COLOURS))), f"the {rng.choice(sorted(TOY_OF))}")
    )
    words = [rng.choice(_WHO), rng.choice(_DOES), what]
    hint = rng.choice(words).split()[-1]
    return Lesson(Request(f"Say something with {hint}"), f"{' '.join(words)} {rng.choice('.!?')}")


def word_list(words: Sequence[str], rng: random.Random) -> Lesson:
    """Repeats words in no order: every word keeps its place in the vocabulary, and no sentence is learned."""
    text = " ".join(rng.choice(words) for _ in range(rng.randint(3, 9)))
    return Lesson(Request("Repeat the words", (text,)), text)


def lesson(scene: Scene, rng: random.Random, pictures: float = 0.6, words: Sequence[str] = ()) -> Lesson:
    """A lesson about a scene, or about words.

    Args:
        scene: Scene of the training split.
        rng: Source of randomness.
        pictures: Share of lessons with a picture.
        words: Vocabulary of later conversations; if given, a third of the other lessons practise it.
    """
    draw = rng.random()
    if draw < pictures:
        return describe(scene, rng)
    draw = (draw - pictures) / (1 - pictures)
    if words and rng.random() < 0.35:
        return word_list(words, rng) if rng.random() < 0.6 else sentence(rng)
    if draw < 0.3:
        return copy(scene, rng)
    if draw < 0.4:
        return fact(rng)
    if draw < 0.7 and scene.second is None:
        return compose(scene, rng)
    return change(scene, rng) or copy(scene, rng)
