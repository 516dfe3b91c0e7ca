"""The micro SDXL text encoders and the tokenizer that they share with CLIP.

As in the real SDXL the text encoders come first and stay frozen while the UNet trains. They learn to make every
attribute of a caption readable from the states that SDXL looks at.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.worlds.shapes.captions import (
    COLOUR_OF,
    MOODS,
    SHAPE_OF,
    alt_text,
    paraphrases,
    parse_caption,
    random_caption,
)
from m2chat.worlds.shapes.recipe.attributes import VALUES
from m2chat.worlds.shapes.recipe.common import Schedule, adamw, save_half, scene_pool, seed_everything
from m2chat.worlds.shapes.scenes import ATTRIBUTES, scenes_of_split
from m2chat.worlds.small_sdxl import build_text_encoders, text_states, write_clip_tokenizer

CONTEXT_LENGTH = 20
"""Tokens of a caption with its start and end: the longest caption of the world has 15."""


def train_clip_tokenizer(
    folder: Path,
    pad_token: str = "<|endoftext|>",
    context_length: int = CONTEXT_LENGTH,
    words: Sequence[str] = (),
) -> None:
    """Writes a `CLIPTokenizer` folder: byte-level BPE whose merges make each word of the world one token.

    Args:
        folder: Folder to write.
        pad_token: Token that pads a text.
        context_length: Longest text in tokens.
        words: That become one token each, besides those of captions.
    """
    scenes = itertools.chain(scenes_of_split("train", 1)[:1500], scenes_of_split("train", 2)[:1500])
    texts = [text for scene in scenes for text in (alt_text(scene), *paraphrases(scene))]
    texts += [*COLOUR_OF, *SHAPE_OF, *MOODS, "something like the", *words] * 50
    write_clip_tokenizer(folder, texts, 4000, context_length, pad_token)


def classes(named: Mapping[str, str]) -> list[int]:
    """Class of each attribute, its number of values where it is absent."""
    return [VALUES[a].index(named[a]) if a in named else len(VALUES[a]) for a in ATTRIBUTES]


def _targets(captions: list[str]) -> Tensor:
    """Classes of the attributes that captions name: (B, attributes)."""
    return torch.tensor([classes(parse_caption(caption)) for caption in captions])


class _Heads(nn.Module):
    """Throw-away readers of every attribute from one state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, len(VALUES[name]) + 1) for name in ATTRIBUTES)

    def forward(self, state: Tensor) -> list[Tensor]:
        state = self.norm(state)
        return [head(state) for head in self.heads]


def train_text_encoders(root: Path, steps: int = 2200, batch: int = 64, seed: int = 0) -> dict[str, object]:
    """Trains and saves both text encoders with their tokenizers into a diffusers folder.

    Returns:
        Seed, steps and the share of held-out captions whose every attribute is readable from every state.
    """
    from transformers import CLIPTokenizer

    rng = seed_everything(seed)
    train_clip_tokenizer(root / "tokenizer")
    train_clip_tokenizer(root / "tokenizer_2", pad_token="!")  # as the real second tokenizer pads
    tokenizers = [CLIPTokenizer.from_pretrained(root / name) for name in ("tokenizer", "tokenizer_2")]
    end = tokenizers[0].eos_token_id
    first, second = build_text_encoders(tokenizers[0], (64, 96))
    heads = nn.ModuleList(_Heads(width) for width in (64, 64, 96, 96))
    schedule = Schedule("text encoders", adamw([first, second, heads], 2e-3), 2e-3, steps)
    for _ in schedule:
        captions = [random_caption(scene, rng) for scene in scene_pool("train", 0.5, batch, rng)]
        targets = _targets(captions)
        ids = _tokenise(tokenizers[0], captions)
        states, _ = text_states([first, second], ids, end)
        losses = [
            F.cross_entropy(logits, targets[:, index])
            for head, state in zip(heads, states, strict=True)
            for index, logits in enumerate(head(state))
        ]
        schedule.step(torch.stack(losses).mean())
    scenes = scene_pool("test", 0.5, 500, random.Random(1))
    captions = [random_caption(scene, rng) for scene in scenes]
    with torch.no_grad():
        states, _ = text_states([first.eval(), second.eval()], _tokenise(tokenizers[0], captions), end)
        read = [
            torch.stack([logits.argmax(1) for logits in head(state)], 1)
            for head, state in zip(heads, states, strict=True)
        ]
        right = torch.stack([(r == _targets(captions)).all(1) for r in read]).all(0)
    save_half(first, root / "text_encoder")
    save_half(second, root / "text_encoder_2")
    return {"seed": seed, "steps": steps, "attributes_readable": round(float(right.float().mean()), 4)}


def _tokenise(tokenizer: Any, captions: list[str]) -> Tensor:
    encoded = tokenizer(captions, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids)
