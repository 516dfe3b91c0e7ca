from __future__ import annotations

import random

import torch

from m2chat.worlds.shapes.recipe.attributes import VALUES, AttributeHeads
from m2chat.worlds.shapes.recipe.common import scene_pool
from m2chat.worlds.shapes.scenes import Scene


def right(heads: AttributeHeads, scenes: list[Scene], prompts: torch.Tensor) -> dict[str, float]:
    """Share of the scenes whose attribute is named right, by attribute."""
    found = {}
    for place, (name, head) in enumerate(heads.heads.items()):
        own = [row for row, scene in enumerate(scenes) if name in scene.attributes]
        said = [VALUES[name][k] for k in head(prompts[own, place]).argmax(-1)]
        found[name] = sum(a == scenes[row].attributes[name] for a, row in zip(said, own, strict=True)) / len(own)
    return found


def test_heads_learn_what_stands_in_their_own_prompt() -> None:
    torch.manual_seed(0)
    scenes = scene_pool("train", 0.5, 64, random.Random(0))
    # Prompt k holds attribute k as a one-hot code, and nothing where a scene has no such attribute.
    prompts = torch.zeros(64, 10, 16)
    for row, scene in enumerate(scenes):
        for place, (name, values) in enumerate(VALUES.items()):
            if name in scene.attributes:
                prompts[row, place, values.index(scene.attributes[name])] = 1
    heads = AttributeHeads(16)
    optimizer = torch.optim.Adam(heads.parameters(), 0.1)
    first = heads.loss(scenes, prompts).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = heads.loss(scenes, prompts)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first
    assert set(right(heads, scenes, prompts).values()) == {1.0}
    # Another prompt's place tells a head nothing.
    assert right(heads, scenes, prompts.roll(1, 1))["colour"] < 0.6
