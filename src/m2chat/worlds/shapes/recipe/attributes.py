"""Teaches a network to look: every attribute of a picture, named straight from what the network made of it.

Words and contrast are slow teachers of where a small thing is; these heads are thrown away when they have taught it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "background": tuple(COLOURS),
    "shape_2": SHAPES,
    "colour_2": tuple(COLOURS),
}


class AttributeHeads(nn.Module):
    """One linear head an attribute, each reading another prompt, so that one prompt carries one attribute.

    Args:
        width: Width of a prompt.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in VALUES.items()})

    def loss(self, scenes: Sequence[Scene], prompts: Tensor) -> Tensor:
        """Cross-entropy of each attribute over the scenes that have it, summed over attributes.

        Args:
            scenes: Scenes that the pictures show, B.
            prompts: Visual queries of the pictures, (B, K, width), at least as many as attributes.
        """
        losses = []
        for place, (name, head) in enumerate(self.heads.items()):
            rows = [row for row, scene in enumerate(scenes) if name in scene.attributes]
            if rows:
                labels = torch.tensor([VALUES[name].index(scenes[row].attributes[name]) for row in rows])
                losses.append(F.cross_entropy(head(prompts[rows, place]), labels))
        return torch.stack(losses).sum()
