"""The micro language model with its vision encoder, as pretraining uses it, and the quality of what it reads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.schema import Segment
from m2chat.text import DESCRIBE, Request
from m2chat.text.layout import IGNORE, Layout
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.worlds.shapes.captions import caption_of, parse_caption
from m2chat.worlds.shapes.recipe.common import draw, scene_pool
from m2chat.worlds.shapes.recipe.corpus import Lesson
from m2chat.worlds.shapes.scenes import Scene
from m2chat.worlds.small_sdxl import to_pixels

CONTEXT_LENGTH = 512


class Reader(nn.Module):
    """The language model with its vision encoder, while it is pretrained."""

    def __init__(self, clip: Any, tokenizer: M2ChatTokenizer) -> None:
        from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM
        from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder

        super().__init__()
        config = AdapterLlamaConfig(
            vocab_size=tokenizer.base_vocab_size,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            rms_norm_eps=1e-6,
            bos_token_id=1,
            eos_token_id=2,
            adapter_len=10,
            adapter_layers=3,
        )
        self.llama = AdapterLlamaForCausalLM(config)
        self.clip = ClipTokens(clip.visual)
        self.visual_query = VisualQueryEncoder(96, 128, prompts=10, depth=2, heads=2)
        self.tokenizer = tokenizer
        self.layout = Layout(tokenizer, 0, CONTEXT_LENGTH)
        # Gates that start at zero would leave the pictures unread for the first thousand steps of co-training.
        for layer in self.llama.model.layers:
            nn.init.constant_(layer.self_attn.adapter_gate, 0.5)

    def encode(self, lessons: list[Lesson]) -> tuple[Tensor, Tensor]:
        """Right-padded tokens and labels."""
        rows = [self.layout.encode(item.request, (Segment(item.answer),)) for item in lessons]
        length = max(map(len, rows))
        ids = torch.tensor([row.input_ids + [0] * (length - len(row)) for row in rows])
        return ids, torch.tensor([row.labels + [IGNORE] * (length - len(row)) for row in rows])

    def look(self, lessons: list[Lesson], pixels: Tensor) -> Tensor:
        """Visual queries; a lesson without a picture sees an all-zero one."""
        seen = torch.tensor([item.scene is not None for item in lessons])[:, None, None, None]
        return self.visual_query(self.clip(torch.where(seen, pixels, 0.0)))  # type: ignore[no-any-return]

    def loss(self, lessons: list[Lesson], visual_query: Tensor | None) -> Tensor:
        """Cross-entropy of the answers."""
        ids, labels = self.encode(lessons)
        hidden = self.llama.model(ids, attention_mask=ids != 0, visual_query=visual_query).last_hidden_state
        scored = labels[:, 1:] != IGNORE  # the vocabulary's logits are only worth computing where they count
        return F.cross_entropy(self.llama.lm_head(hidden[:, :-1][scored]), labels[:, 1:][scored])


def picture_pixels(lessons: list[Lesson], seed: int) -> Tensor:
    """The lessons' pictures, normalised for CLIP: (B, 3, 32, 32); a lesson without one gets any."""
    from m2chat.worlds.small_clip import normalise

    blank = scene_pool("train", 0.0, 1, random.Random(0))[0]
    return normalise(to_pixels(draw([item.scene or blank for item in lessons], seed)))


def new_reader(root: Path) -> Reader:
    """A reader with random weights over the trained ``clip/`` and tokenizer."""
    import open_clip

    clip: Any = open_clip.create_model(f"local-dir:{root / 'clip'}").float().eval()
    return Reader(clip, M2ChatTokenizer(root / "llama"))


def load_reader(root: Path, with_adapter: bool = True) -> Reader:
    """The trained language model with its vision encoder, as ``llama/``, ``adapter/`` and ``clip/`` hold them.

    Args:
        root: Folder of the backbones.
        with_adapter: Whether the adapter is that of the file; else its gates are closed, and the base speaks alone.
    """
    from m2chat.models.build import load_language
    from m2chat.models.config import NEW, BackboneConfig, NewAdapterConfig

    reader = new_reader(root)
    files = BackboneConfig(
        language_model=str(root / "llama"),
        adapter=str(root / "adapter" / "BIAS-micro.pth") if with_adapter else NEW,
        vision_encoder=str(root / "clip"),
        image_decoder=str(root / "sdxl"),
        num_image_tokens=0,  # a reader draws nothing
        new_adapter=NewAdapterConfig(prompts=10, layers=3, visual_blocks=2, visual_heads=2),
    )
    reader.llama, reader.visual_query = load_language(files)
    return reader.eval()


@torch.no_grad()
def measure_language(reader: Reader, split: str = "test", count: int = 300) -> dict[str, object]:
    """Exact copies of held-out captions, and what is right in descriptions of held-out pictures."""
    singles, mixed = _scenes(split, count)
    looks = [Lesson(Request(DESCRIBE), caption_of(scene), scene) for scene in singles]
    described = [parse_caption(text) for text in _answers(reader, looks)]
    right = {
        name: sum(seen.get(name) == scene.attributes[name] for seen, scene in zip(described, singles, strict=True))
        / count
        for name in ("shape", "colour", "size", "position", "background")
    }
    both = [
        all(seen.get(n) == scene.attributes[n] for n in ("shape", "colour"))
        for seen, scene in zip(described, singles, strict=True)
    ]
    pairs = [s for s in mixed if s.second is not None]
    two = [parse_caption(t) for t in _answers(reader, [Lesson(Request(DESCRIBE), "", s) for s in pairs])]
    return {
        "copies_exactly": measure_copies(reader, split, count),
        "describes": {name: round(value, 4) for name, value in right.items()},
        "describes_colour_and_shape": round(sum(both) / count, 4),
        "describes_pair_exactly": round(
            sum(a == s.attributes for a, s in zip(two, pairs, strict=True)) / len(pairs), 4
        ),
    }


@torch.no_grad()
def measure_copies(reader: Reader, split: str = "test", count: int = 300) -> float:
    """Share of exact copies among held-out captions that stand in the request, 0-1."""
    _, mixed = _scenes(split, count)
    copies = [Lesson(Request("Repeat the words", (caption_of(s),)), caption_of(s)) for s in mixed]
    copied = _answers(reader, copies)
    return sum(answer == item.answer for answer, item in zip(copied, copies, strict=True)) / count


def _scenes(split: str, count: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes of one object, and scenes of which half have two."""
    rng = random.Random(1)
    return scene_pool(split, 0.0, count, rng), scene_pool(split, 0.5, count, rng)


def _answers(reader: Reader, lessons: list[Lesson]) -> list[str]:
    """Greedy answers, in groups of prompts of one length so that nothing is padded."""
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for index, item in enumerate(lessons):
        ids, _ = reader.layout.prompt(item.request, CONTEXT_LENGTH)
        groups.setdefault(len(ids), []).append((index, ids))
    answers = [""] * len(lessons)
    for group in groups.values():
        chosen = [lessons[index] for index, _ in group]
        output = reader.llama.generate(
            torch.tensor([ids for _, ids in group]),
            visual_query=reader.look(chosen, picture_pixels(chosen, 1)),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
        )
        for (index, ids), row in zip(group, output.tolist(), strict=True):
            reply = row[len(ids) :]
            reply = reply[: reply.index(2)] if 2 in reply else reply
            answers[index] = reader.tokenizer.decode(reply)
    return answers


def measure_saved(root: Path) -> dict[str, object]:
    """Measures the language model alone, and with the adapter, below a root."""
    alone = measure_copies(load_reader(root, with_adapter=False))
    return {"base_copies_exactly": alone, **measure_language(load_reader(root))}
