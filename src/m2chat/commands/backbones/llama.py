"""The micro language model, its tokenizer, and the micro twin of LLaMA-Adapter's BIAS-7B file.

Three phases. The base model first learns to copy: without a dense warm-up it never would. Then it reads the mixed
corpus, the pictures through the adapter's prompts. Last the base is frozen and only what an adapter file holds
learns on, so that base folder and adapter file come apart as the real ones do.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.commands.backbones.common import Schedule, adamw, draw, save_half, scene_pool, seed_everything
from m2chat.commands.backbones.corpus import DESCRIBE, Lesson, copy, describe, lesson
from m2chat.schema import Segment
from m2chat.text.layout import IGNORE, Layout, alpaca
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.text.view import Request
from m2chat.world import caption_of, parse_caption

VOCABULARY = 640
CONTEXT_LENGTH = 512


def train_llama_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """Writes `tokenizer.model`: sentencepiece BPE with byte fallback, settings as LLaMA's."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def tokenizer_corpus(rng: random.Random, talk: Sequence[str]) -> list[str]:
    """Lessons of every kind, and words of conversations so that they too are short in tokens."""
    texts = []
    for scene in scene_pool("train", 0.4, 3000, rng):
        item = lesson(scene, rng)
        texts += [item.request.instruction, *item.request.history, item.answer]
    texts += alpaca("x", "y").split("\n") * 60 + alpaca("x").split("\n") * 60
    return [*texts, *talk]
