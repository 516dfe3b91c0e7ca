from __future__ import annotations

import random

import torch

from m2chat.commands.backbones.attributes import VALUES, AttributeHeads
from m2chat.commands.backbones.common import scene_pool


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
    # Another prompt's place tells a head nothing.
    assert heads.loss(scenes, prompts.roll(1, 1)) > first
