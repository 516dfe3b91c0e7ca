"""The CLIP of the metrics: trained on sentences too, as a real one is, and never used as the model's vision encoder.

A metric that only knows captions cannot relate "The ball takes its place ." to a picture. Its sentences
are words about a picture mixed with unrelated ones, without grammar: it learns which words describe the picture, and
no reply of a conversation by heart.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from m2chat.worlds.shapes.captions import COLOUR_OF, MOODS, SHAPE_OF, THING_OF, TOY_OF, mood_of, with_article
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.recipe.clip import text_beside, train_clip
from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene

CONTEXT_LENGTH = 40
"""Tokens of a text with its start and end: the longest reply of a conversation has fewer than 20 words."""


@cache
def idle_words() -> tuple[str, ...]:
    """Words of conversations that describe no picture."""
    maker = ConversationMaker("train", 0)
    makers = (maker.edit, maker.dialogue, maker.story, maker.instruct)
    words = {word for i in range(600) for turn in makers[i % 4]().turns for word in turn.text.split()}
    return tuple(sorted(words - {*COLOURS, *SHAPES, *SIZES, *POSITIONS, *COLOUR_OF, *SHAPE_OF, *MOODS}))


def facts(scene: Scene) -> list[str]:
    """Short phrases that describe a picture."""
    first, second = scene.first, scene.second
    toy, thing, ground = TOY_OF[first.shape], THING_OF[first.colour], scene.background
    if second is not None:
        return [
            f"the left one {first.colour}",
            f"the right one {second.colour}",
            f"{with_article(first.colour)} {first.shape}",
            f"{with_article(second.colour)} {second.shape}",
            f"behind it {ground}",
        ]
    mood = mood_of(first.colour, ground)
    return [
        *(f"{article} {toy}" for article in ("the", "a", "this", "your")),
        f"{with_article(first.shape)}",
        f"it {first.colour}",
        f"{first.colour}",
        f"like the {thing}",
        f"in front of {THING_OF[ground]}",
        f"behind it {ground}",
        f"{ground} behind it",
        f"{scene.size}",
        f"on the {scene.position}",
        f"to the {scene.position}",
        *([mood, f"{mood} {toy}"] if mood else []),
    ]


def sentence_about(scene: Scene, rng: random.Random) -> str:
    """One to three facts about a picture among idle words."""
    parts = rng.sample(facts(scene), rng.randint(1, 3))
    parts += [rng.choice(idle_words()) for _ in range(rng.randint(0, 6))]
    rng.shuffle(parts)
    return " ".join(parts)


def text_for_metric(scene: Scene, rng: random.Random) -> str:
    """Captions of every style, and sentences."""
    return text_beside(scene, rng) if rng.random() < 0.6 else sentence_about(scene, rng)


def train_metric_clip(folder: Path, steps: int = 1500, seed: int = 0) -> dict[str, object]:
    """Trains and saves the CLIP of CLIP score and InterRel.

    Returns:
        Seed, steps and the retrieval quality on held-out scenes.
    """
    return train_clip(
        folder, steps, seed=seed, text_of=text_for_metric, context_length=CONTEXT_LENGTH, words=idle_words()
    )
