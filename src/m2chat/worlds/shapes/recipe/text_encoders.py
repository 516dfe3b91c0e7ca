"""The micro SDXL text encoders and the tokenizer that they share with CLIP.

As in the real SDXL the text encoders come first and stay frozen while the UNet trains. They learn to make every
attribute of a caption readable from the states that SDXL looks at.
"""

from __future__ import annotations

import itertools
import json
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
from m2chat.worlds.shapes.recipe.common import Schedule, adamw, save_half, scene_pool, seed_everything
from m2chat.worlds.shapes.scenes import ATTRIBUTES, COLOURS, POSITIONS, SHAPES, SIZES, scenes_of_split

CONTEXT_LENGTH = 20
"""Tokens of a caption with its start and end: the longest caption of the world has 15."""
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "shape_2": SHAPES,
    "colour_2": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "background": tuple(COLOURS),
}


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
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    scenes = itertools.chain(scenes_of_split("train", 1)[:1500], scenes_of_split("train", 2)[:1500])
    texts = [text for scene in scenes for text in (alt_text(scene), *paraphrases(scene))]
    texts += [*COLOUR_OF, *SHAPE_OF, *MOODS, "something like the", *words] * 50
    # The trainer sees bytes as printable characters, as CLIP's vocabulary writes them.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = alphabet + [character + "</w>" for character in alphabet]
    pieces += dict.fromkeys(left + right for left, right in merges)
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=context_length)
    tokenizer.save_pretrained(folder)


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


def _states(encoders: list[Any], input_ids: Tensor, end: int) -> list[Tensor]:
    """The states that SDXL reads: penultimate ones at the end of the text, and the pooled output."""
    at_end = (input_ids == end).int().argmax(1)
    rows = torch.arange(len(input_ids))
    states = []
    for encoder in encoders:
        output = encoder(input_ids, output_hidden_states=True)
        states.append(output.hidden_states[-2][rows, at_end])
        pooled = getattr(output, "text_embeds", None)
        states.append(pooled if pooled is not None else output.pooler_output)
    return states


def train_text_encoders(root: Path, steps: int = 2200, batch: int = 64, seed: int = 0) -> dict[str, object]:
    """Trains and saves both text encoders with their tokenizers into a diffusers folder.

    Returns:
        Seed, steps and the share of held-out captions whose every attribute is readable from every state.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    rng = seed_everything(seed)
    train_clip_tokenizer(root / "tokenizer")
    train_clip_tokenizer(root / "tokenizer_2", pad_token="!")  # as the real second tokenizer pads
    tokenizers = [CLIPTokenizer.from_pretrained(root / name) for name in ("tokenizer", "tokenizer_2")]
    end = tokenizers[0].eos_token_id
    shared = dict(
        vocab_size=len(tokenizers[0]),
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizers[0].bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    first = CLIPTextModel(CLIPTextConfig(hidden_size=64, intermediate_size=256, projection_dim=64, **shared))
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=96, intermediate_size=384, projection_dim=96, hidden_act="gelu", **shared)
    )
    heads = nn.ModuleList(_Heads(width) for width in (64, 64, 96, 96))
    schedule = Schedule("text encoders", adamw([first, second, heads], 2e-3), 2e-3, steps)
    for _ in schedule:
        captions = [random_caption(scene, rng) for scene in scene_pool("train", 0.5, batch, rng)]
        targets = _targets(captions)
        ids = _tokenise(tokenizers[0], captions)
        states = _states([first, second], ids, end)
        losses = [
            F.cross_entropy(logits, targets[:, index])
            for head, state in zip(heads, states, strict=True)
            for index, logits in enumerate(head(state))
        ]
        schedule.step(torch.stack(losses).mean())
    scenes = scene_pool("test", 0.5, 500, random.Random(1))
    captions = [random_caption(scene, rng) for scene in scenes]
    with torch.no_grad():
        states = _states([first.eval(), second.eval()], _tokenise(tokenizers[0], captions), end)
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
