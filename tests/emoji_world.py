"""A world of flat pictures, each of a colour of its own, in which every kind of conversation can be held."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from m2chat.worlds.emoji.families import families, poses, roles, stories
from m2chat.worlds.emoji.scenes import GENDERS, SIZE, STYLES, TONES, Pictures, Scene


@cache
def everything() -> Pictures:
    """A picture for every concept that families and stories name, and people in all their kinds."""
    things = {c: f.noun for f in families() for c in f.members.values()} | {
        concept: "story" for story in stories() for concept, _ in story.frames
    }
    scenes = [
        Scene(name, style, label=name, keywords=("one word", "another", "a third"), group="objects", subgroup=kind)
        for style in STYLES
        for name, kind in things.items()
    ]
    scenes += [
        Scene(name, style, tone, "", gender, f"{gender} {name}".strip(), (), "people-body", "person-role")
        for style in STYLES
        for name in (*poses(), *roles())
        for tone in TONES
        for gender in GENDERS[:3]
        if name not in things
    ]
    scenes = [replace(scene, file=str(number)) for number, scene in enumerate(scenes)]
    pixels = np.zeros((len(scenes), SIZE, SIZE, 3), np.uint8)
    numbers = np.arange(len(scenes))
    colours = np.stack([numbers % 64 * 4, numbers // 64 * 4, np.full_like(numbers, 60)], 1)  # never white
    return Pictures(tuple(scenes), pixels + colours.astype(np.uint8)[:, None, None])
