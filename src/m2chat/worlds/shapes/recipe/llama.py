"""The micro language model, its tokenizer, and the micro twin of LLaMA-Adapter's BIAS-7B file.

The base model first learns to copy: without a dense warm-up it never would. Then it reads the mixed corpus, the
pictures through an adapter's prompts, so that it can be reached through prompts at all. A second round adds the words
of conversations: a frozen model hardly learns to write a word that it has never read. A third makes it converse in
sentences that stage 2 does not teach, and write the caption of a request when it is asked to: a real LLaMA knows what
"in front of snow" means. That adapter is thrown away: the file is that of stage 0, which trains a new one on the
frozen base, as for any language model.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.errors import UserError
from m2chat.text import DESCRIBE, Request
from m2chat.text.layout import alpaca
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.recipe.attributes import AttributeHeads
from m2chat.worlds.shapes.recipe.common import Schedule, adamw, save_half, scene_pool, seed_everything
from m2chat.worlds.shapes.recipe.corpus import Lesson, lesson
from m2chat.worlds.shapes.recipe.reader import (
    Reader,
    measure_saved,
    new_reader,
    picture_pixels,
)
from m2chat.worlds.shapes.recipe.requests import request

VOCABULARY = 640


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
    texts = []
    for scene in scene_pool("train", 0.4, 3000, rng):
        item = lesson(scene, rng)
        texts += [item.request.instruction, *item.request.history, item.answer]
    texts += alpaca("x", "y").split("\n") * 60 + alpaca("x").split("\n") * 60
    return [*texts, *talk]


def _copy_batch(vocabulary: int, batch: int) -> Tensor:
    """Random sequences, each repeated once."""
    length = int(torch.randint(6, 20, ()))
    once = torch.randint(259, vocabulary, (batch, length))
    return torch.cat([torch.ones(batch, 1, dtype=torch.long), once, once], 1)


@dataclass(frozen=True)
class Round:
    """One round of pretraining.

    Args:
        visual: Steps in which the visual encoder learns to name attributes straight from its prompts.
        reading: Steps of base and visual encoder together.
        practise: Whether the words of conversations are practised.
        requests: Share of replies to conversations among the lessons.
    """

    visual: int
    reading: int
    practise: bool = False
    requests: float = 0.0


ROUNDS = (
    Round(0, 3500),
    Round(0, 1500, practise=True),
    Round(0, 1400, practise=True, requests=0.5),
    Round(700, 800, practise=True, requests=0.4),
    Round(0, 1500, practise=True, requests=0.6),
    Round(0, 1500, practise=True, requests=0.7),
    Round(0, 1000, practise=True, requests=0.8),
)
STAGE_0 = Path("configs", "stage0.yaml")


def train_language(
    root: Path, copy_steps: int = 1300, rounds: Sequence[Round] = ROUNDS, batch: int = 24, seed: int = 0
) -> dict[str, object]:
    """Trains the base model and the adapter and saves both: ``llama/`` and ``adapter/BIAS-micro.pth``.

    Args:
        root: Folder that already has ``clip/`` and the tokenizers in ``sdxl/``.
        copy_steps: Steps of the dense copy warm-up.
        rounds: Rounds of pretraining, in which the base model reads, pictures through an adapter's prompts.
        batch: Lessons a step.
        seed: Seed of everything random.

    Returns:
        Seed, steps and the quality on held-out scenes.
    """
    rng = seed_everything(seed)
    words = _prepare_tokenizer(root, rng, seed)
    reader = new_reader(root)
    _learn_to_copy(reader, copy_steps)
    for number, now in enumerate(rounds):
        curriculum = _Curriculum(
            rng, ConversationMaker("train", seed + number), words if now.practise else (), now.requests, batch
        )
        _train_visual(reader, now.visual, curriculum)
        _read(reader, root, now.reading, curriculum)
    train_adapter(root)
    steps: dict[str, object] = {"copy": copy_steps, "adapter": str(STAGE_0)}
    steps |= {name: [getattr(item, name) for item in rounds] for name in ("visual", "reading")}
    return {"seed": seed, "steps": steps, **measure_saved(root)}


def train_adapter(root: Path, *overrides: str) -> None:
    """Trains an adapter for the base model below a folder by stage 0, as it is trained for any language model.

    Args:
        root: Folder with ``llama/``, ``clip/`` and ``sdxl/``; ``adapter/BIAS-micro.pth`` is written there.
        overrides: More arguments of the command.

    Raises:
        UserError: If the current folder has no configuration of stage 0, or the command fails.
    """
    if not STAGE_0.is_file():
        raise UserError(f"there is no {STAGE_0} here: run the recipe in a clone of the project")
    parts = {"language_model": "llama", "vision_encoder": "clip", "image_decoder": "sdxl"}
    file = f"--model.init_args.adapter_file={root / 'adapter' / 'BIAS-micro.pth'}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "m2chat.cli", "fit", "--config", str(STAGE_0), file]
        for name, part in parts.items():  # copies, since the folder's manifest is still that of the files before
            shutil.copytree(root / part, Path(folder, part))
            command.append(f"--model.init_args.backbone.{name}={Path(folder, part)}")
        command += [f"--trainer.default_root_dir={folder}", *overrides]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"stage 0 failed: {' '.join(command)}")


@dataclass
class _Curriculum:
    """Where the lessons of a round come from."""

    rng: random.Random
    maker: ConversationMaker
    words: Sequence[str]
    requests: float
    batch: int

    def lessons(self, pictures: float) -> list[Lesson]:
        """A batch of lessons; `pictures` is the share with a picture among those about scenes, 0 for none at all."""
        scenes = scene_pool("train", 0.35, self.batch, self.rng)
        return [
            request(self.maker)
            if pictures and self.rng.random() < self.requests
            else lesson(scene, self.rng, pictures, self.words)
            for scene in scenes
        ]


def _prepare_tokenizer(root: Path, rng: random.Random, seed: int) -> list[str]:
    """Writes the tokenizer if there is none, and returns the words of conversations."""
    maker = ConversationMaker("train", seed)
    makers = (maker.edit, maker.dialogue, maker.story, maker.instruct)
    talk = [turn.text for i in range(1200) for turn in makers[i % 4]().turns]
    if not (root / "llama" / "tokenizer.model").is_file():
        train_llama_tokenizer(root / "llama", tokenizer_corpus(rng, talk))
    return talk_words(talk)


def _learn_to_copy(reader: Reader, steps: int) -> None:
    """The dense warm-up: random sequences repeated once, the loss on the second half."""
    _train_only(reader, _base_names(reader))
    schedule = Schedule("copy", adamw([reader.llama], 1.5e-3), 1.5e-3, steps)
    for _ in schedule:
        ids = _copy_batch(reader.tokenizer.base_vocab_size, 24)
        half = ids.shape[1] // 2
        logits = reader.llama(input_ids=ids).logits[:, half:-1]
        schedule.step(F.cross_entropy(logits.flatten(0, 1), ids[:, half + 1 :].flatten()))


def _train_visual(reader: Reader, steps: int, curriculum: _Curriculum, lr: float = 3e-3) -> None:
    """The visual encoder alone, by heads that are thrown away: from words it learns positions slowly."""
    _train_only(reader, {f"visual_query.{name}" for name, _ in reader.visual_query.named_parameters()})
    heads = AttributeHeads(reader.llama.config.hidden_size)
    schedule = Schedule("visual", adamw([reader.visual_query, heads], lr), lr, steps)
    for _ in schedule:
        scenes = scene_pool("train", 0.4, 64, curriculum.rng)
        lessons = [Lesson(Request(DESCRIBE), "", scene) for scene in scenes]
        prompts = reader.look(lessons, picture_pixels(lessons, curriculum.rng.randrange(2**31)))
        schedule.step(heads.loss(scenes, prompts))


def _read(reader: Reader, root: Path, steps: int, curriculum: _Curriculum, lr: float = 2e-3) -> None:
    """The mixed corpus, base and visual path together; biases stay zero, so that the base is a plain LLaMA."""
    _train_only(reader, _base_names(reader) | {f"visual_query.{n}" for n, _ in reader.visual_query.named_parameters()})
    schedule = Schedule("reading", adamw([reader.llama, reader.visual_query], lr), lr, steps)
    for step in schedule:
        text_only = step % 5 == 4  # the base must also work with the prompts off
        lessons = curriculum.lessons(0.0 if text_only else 0.7)
        query = None if text_only else reader.look(lessons, picture_pixels(lessons, curriculum.rng.randrange(2**31)))
        schedule.step(reader.loss(lessons, query))
    _save_base(reader, root / "llama")


def _base_names(reader: Reader) -> set[str]:
    """The base model's parameters and the prompts that it learns to read; no biases, no added tokens."""
    names = {name for name, _ in reader.named_parameters() if name.startswith("llama.")}
    return {name for name in names if not name.endswith(("_proj.bias", ".extra"))}


def _train_only(reader: Reader, names: set[str]) -> None:
    for name, parameter in reader.named_parameters():
        parameter.requires_grad_(name in names)


def _save_base(reader: Reader, folder: Path) -> None:
    """Saves the plain LLaMA inside, rounded to fp16, and gives the reader the rounded numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = reader.llama.config
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    state = reader.llama.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    save_half(plain, folder)
    reader.llama.load_state_dict(plain.state_dict(), strict=False)
