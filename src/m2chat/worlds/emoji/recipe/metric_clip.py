"""The CLIP of the metrics: other sizes, another seed and other texts than the pocket CLIP, and never a vision encoder.

A metric that only knows captions cannot relate "Sounds like it's time to get warm!" to a picture. So a part of its
texts are words about a picture mixed with idle ones, without grammar: it learns which words describe the picture, and
no reply of a conversation by heart.
"""

from __future__ import annotations

import random
from pathlib import Path

from m2chat.worlds.emoji.captions import Caption, draw_caption
from m2chat.worlds.emoji.recipe.clip import ClipShape, train_clip
from m2chat.worlds.emoji.recipe.course import Plan
from m2chat.worlds.emoji.scenes import Pictures, Scene

PLAN = Plan(steps=3000, lr=1e-3, warmup=200, decay=1200, ema=0.998, weight_decay=0.05)
IDLE_WORDS = tuple(
    "the of and a to in is you that it he was for on are with as i his they be at this have from or had by but some "
    "what there we can out other were all your when up use how said each she which do their if will way about many "
    "then them would like so these her make him has look more could go come did my no most who over know than may been "
    "now find any new get made where after back little only me our good very think say great much before right too "
    "mean old same tell does set want well also why went need try again here still such because turn asked because "
    "every between never last let thought hey hello thanks please yes sure okay sorry maybe really today yesterday "
    "tomorrow feel feeling hope wish nice glad show draw picture again".split()
)
"""Words of conversations that describe no picture."""
SHAPE = ClipShape(width=96, layers=3, vision_width=96, context_length=40, words=IDLE_WORDS)


def sentence_about(scene: Scene, rng: random.Random) -> Caption:
    """One to three facts about a picture among idle words."""
    facts = [scene.label, scene.concept, *scene.keywords, *(word for word in (scene.tone, scene.hair) if word)]
    parts = rng.sample(facts, min(len(facts), rng.randint(1, 3)))
    parts += rng.choices(IDLE_WORDS, k=rng.randint(0, 8))
    rng.shuffle(parts)
    return Caption(" ".join(parts), names_style=False)


def text_for_metric(scene: Scene, rng: random.Random) -> Caption:
    """Captions of every kind, and sentences."""
    return draw_caption(scene, rng) if rng.random() < 0.6 else sentence_about(scene, rng)


def train_metric_clip(
    pictures: Pictures, out: Path, plan: Plan = PLAN, batch: int = 64, seed: int = 0, device: str = "auto"
) -> bool:
    """Trains the CLIP of CLIP score and InterRel into ``<out>/weights/metric_clip``; arguments as of `train_clip`."""
    return train_clip(pictures, out, plan, batch, seed + 1, device, "metric_clip", SHAPE, text_for_metric)
