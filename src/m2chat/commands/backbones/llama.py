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
from m2chat.commands.backbones.corpus import DESCRIBE, Lesson, lesson
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


def talk_words(talk: Sequence[str]) -> list[str]:
    """The vocabulary of conversations."""
    return sorted({word for text in talk for word in text.split()})


def tokenizer_corpus(rng: random.Random, talk: Sequence[str]) -> list[str]:
    """Lessons of every kind, and words of conversations so that they too are short in tokens."""
    texts, words = [], talk_words(talk)
    for scene in scene_pool("train", 0.4, 3000, rng):
        item = lesson(scene, rng, words)
        texts += [item.request.instruction, *item.request.history, item.answer]
    texts += alpaca("x", "y").split("\n") * 60 + alpaca("x").split("\n") * 60
    return [*texts, *talk]


class _Reader(nn.Module):
    """The language model with its eye, while it learns."""

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


def _pixels(lessons: list[Lesson], seed: int) -> Tensor:
    from m2chat.commands.backbones.clip import normalise
    from m2chat.commands.backbones.common import to_pixels

    blank = scene_pool("train", 0.0, 1, random.Random(0))[0]
    return normalise(to_pixels(draw([item.scene or blank for item in lessons], seed)))


def _copy_batch(vocabulary: int, batch: int) -> Tensor:
    """Random sequences said twice."""
    length = int(torch.randint(6, 20, ()))
    once = torch.randint(259, vocabulary, (batch, length))
    return torch.cat([torch.ones(batch, 1, dtype=torch.long), once, once], 1)


def train_language(
    root: Path, copy_steps: int = 1300, steps: int = 3500, adapter_steps: int = 1200, batch: int = 24, seed: int = 0
) -> dict[str, object]:
    """Trains the base model and the adapter and saves both: ``llama/`` and ``adapter/BIAS-micro.pth``.

    Args:
        root: Folder that already has ``clip/``.
        copy_steps: Steps of the dense copy warm-up.
        steps: Steps of the mixed corpus, base and adapter together.
        adapter_steps: Steps of the adapter alone on the frozen, rounded base.
        batch: Lessons a step.
        seed: Of everything random.

    Returns:
        Seed, steps and the quality on held-out scenes.
    """
    import open_clip

    from m2chat.data.micro_talk import Maker
    from m2chat.models.adapter_file import adapter_parameter_names, to_official

    rng = seed_everything(seed)
    maker = Maker("train", seed)
    makers = (maker.edit, maker.dialogue, maker.story, maker.instruct)
    talk = [turn.text for i in range(1200) for turn in makers[i % 4]().turns]
    words = talk_words(talk)
    train_llama_tokenizer(root / "llama", tokenizer_corpus(rng, talk))
    tokenizer = M2ChatTokenizer(root / "llama")
    clip: Any = open_clip.create_model(f"local-dir:{root / 'clip'}").float().eval()
    reader = _Reader(clip, tokenizer)
    adapter = adapter_parameter_names(reader.llama, reader.visual_query)
    biases = {name for name in adapter if name.endswith("_proj.bias")}
    named = dict(reader.named_parameters())

    reader.requires_grad_(False)
    for name, parameter in named.items():
        parameter.requires_grad_(name.startswith("llama.") and name not in biases and ".extra" not in name)
    schedule = Schedule("copy", adamw([reader.llama], 1.5e-3), 1.5e-3, copy_steps)
    for _ in schedule:
        ids = _copy_batch(tokenizer.base_vocab_size, 24)
        half = ids.shape[1] // 2
        logits = reader.llama(input_ids=ids).logits[:, half:-1]
        schedule.step(F.cross_entropy(logits.flatten(0, 1), ids[:, half + 1 :].flatten()))

    reader.visual_query.requires_grad_(True)
    schedule = Schedule("reading", adamw([reader.llama, reader.visual_query], 2e-3), 2e-3, steps)
    for step in schedule:
        text_only = step % 5 == 4  # the base must also work with the prompts off
        lessons = [lesson(s, rng, words, 0.0 if text_only else 0.65) for s in scene_pool("train", 0.35, batch, rng)]
        query = None if text_only else reader.look(lessons, _pixels(lessons, rng.randrange(2**31)))
        schedule.step(reader.loss(lessons, query))
    _save_base(reader, root / "llama")

    for name, parameter in named.items():
        parameter.requires_grad_(name in adapter)
    schedule = Schedule("adapter", adamw([reader.llama, reader.visual_query], 1e-3), 1e-3, adapter_steps)
    for _ in schedule:
        lessons = [lesson(s, rng, words, 0.65) for s in scene_pool("train", 0.35, batch, rng)]
        schedule.step(reader.loss(lessons, reader.look(lessons, _pixels(lessons, rng.randrange(2**31)))))
    tensors = {name: named[name].detach().half() for name in sorted(adapter)}
    (root / "adapter").mkdir(exist_ok=True)
    file = {
        "model": to_official(tensors, reader.llama.config.num_attention_heads),
        "config": {"w_bias": True, "w_lora": False, "lora_rank": 16},
    }
    torch.save(file, root / "adapter" / "BIAS-micro.pth")
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(tensor)
    return {
        "seed": seed,
        "steps": {"copy": copy_steps, "reading": steps, "adapter": adapter_steps},
        **measure_language(reader),
    }


def _save_base(reader: _Reader, folder: Path) -> None:
    """Saves the plain LLaMA inside, rounded to fp16, and gives the reader the rounded numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = reader.llama.config
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=own.vocab_size,
            hidden_size=own.hidden_size,
            intermediate_size=own.intermediate_size,
            num_hidden_layers=own.num_hidden_layers,
            num_attention_heads=own.num_attention_heads,
            max_position_embeddings=own.max_position_embeddings,
            rms_norm_eps=own.rms_norm_eps,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    state = reader.llama.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    save_half(plain, folder)
    reader.llama.load_state_dict(plain.state_dict(), strict=False)


def load_reader(root: Path) -> _Reader:
    """The trained language model with its eye, as ``llama/``, ``adapter/`` and ``clip/`` hold them."""
    import open_clip

    from m2chat.models.build import load_language
    from m2chat.models.config import BackboneConfig

    clip: Any = open_clip.create_model(f"local-dir:{root / 'clip'}").float().eval()
    reader = _Reader(clip, M2ChatTokenizer(root / "llama"))
    files = BackboneConfig(str(root / "llama"), str(root / "adapter" / "BIAS-micro.pth"))
    reader.llama, reader.visual_query = load_language(files)
    return reader.eval()


@torch.no_grad()
def measure_language(reader: _Reader, split: str = "test", count: int = 300) -> dict[str, object]:
    """Exact copies of held-out captions, and what is right in descriptions of held-out pictures."""
    rng = random.Random(1)
    singles, mixed = scene_pool(split, 0.0, count, rng), scene_pool(split, 0.5, count, rng)
    copies = [Lesson(Request("Repeat the words", (caption_of(s),)), caption_of(s)) for s in mixed]
    copied = _answers(reader, copies)
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
        "copies_exactly": sum(a == c.answer for a, c in zip(copied, copies, strict=True)) / count,
        "describes": {name: round(value, 4) for name, value in right.items()},
        "describes_colour_and_shape": round(sum(both) / count, 4),
        "describes_pair_exactly": round(
            sum(a == s.attributes for a, s in zip(two, pairs, strict=True)) / len(pairs), 4
        ),
    }


def _answers(reader: _Reader, lessons: list[Lesson]) -> list[str]:
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
            visual_query=reader.look(chosen, _pixels(chosen, 1)),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
        )
        for (index, ids), row in zip(group, output.tolist(), strict=True):
            reply = row[len(ids) :]
            reply = reply[: reply.index(2)] if 2 in reply else reply
            answers[index] = reader.tokenizer.decode(reply)
    return answers
