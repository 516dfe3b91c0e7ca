"""The pocket CLIP, an open_clip model: the vision encoder that the language model looks through.

Contrast alone makes the class token distinguish pictures and leaves the others, which language model and M³Adapter
read, with little. So a throw-away reader of all tokens names concept, style and attributes from the first step on, with
the full weight: at a quarter of it, a reader of 3,000 steps named 55 % of the pictures, and the text 35 %.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.worlds.emoji.captions import Caption, caption_of, draw_caption
from m2chat.worlds.emoji.judge import VALUES
from m2chat.worlds.emoji.recipe.course import Course, Plan
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.recipe.judge import augmented
from m2chat.worlds.emoji.recipe.text_encoders import CONTEXT_LENGTH, Batches, contrast, matches, words_of
from m2chat.worlds.emoji.scenes import SIZE, Pictures, Scene, core_concepts
from m2chat.worlds.small_clip import LOG_SCALE, normalise, open_clip_folder, save_clip, write_clip_config
from m2chat.worlds.small_sdxl import to_pixels, write_clip_tokenizer

PLAN = Plan(steps=4000, lr=1e-3, warmup=200, decay=1500, ema=0.998, weight_decay=0.05)
_TOKENS = 20000
_STRENGTH = 0.4
"""Of the judge's augmentations: what is shown is a true picture or a drawn one, never a turned one."""


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a CLIP.

    Args:
        width: Width of the joint space and of the text transformer.
        layers: Number of layers of the vision transformer.
        vision_width: Width of the vision transformer.
        context_length: Tokens of a text with its start and end.
        words: That become one token each, besides those of names and keywords.
    """

    width: int = 128
    layers: int = 4
    vision_width: int = 128
    context_length: int = CONTEXT_LENGTH
    words: Sequence[str] = field(default=())

    @property
    def vision(self) -> dict[str, int]:
        """The vision transformer of open_clip's configuration."""
        return {
            "image_size": SIZE,
            "layers": self.layers,
            "width": self.vision_width,
            "head_width": 32,
            "patch_size": 8,
        }


SHAPE = ClipShape()


class TokenReader(nn.Module):
    """Names concept, style and attributes, each from another prompt of a reader like LLaMA-Adapter's.

    Args:
        width: Width of the CLIP's tokens.
        concepts: Names of the concepts.
    """

    def __init__(self, width: int, concepts: Sequence[str]) -> None:
        super().__init__()
        self.values: dict[str, Sequence[str]] = {"concept": concepts, **VALUES}
        self.reader = VisualQueryEncoder(width, width, prompts=len(self.values), depth=1, heads=4)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in self.values.items()})
        self.places = {name: {value: i for i, value in enumerate(values)} for name, values in self.values.items()}

    def loss(self, tokens: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Cross-entropy summed over what is named; tokens (B, I, width)."""
        prompts = self.reader(tokens)
        losses = []
        for place, (name, head) in enumerate(self.heads.items()):
            wanted = [self.places[name][scene.attributes[name]] for scene in scenes]
            losses.append(F.cross_entropy(head(prompts[:, place]), torch.tensor(wanted, device=tokens.device)))
        return torch.stack(losses).sum()


def train_clip(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 64,
    seed: int = 0,
    device: str = "auto",
    name: str = "clip",
    shape: ClipShape = SHAPE,
    text_of: Callable[[Scene, random.Random], Caption] = draw_caption,
) -> bool:
    """Trains a CLIP and saves it into ``<out>/weights/<name>``.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pairs a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        name: Name of the part.
        shape: Its sizes.
        text_of: The text that stands beside a picture.

    Returns:
        Whether the plan's end was reached.
    """
    torch.manual_seed(seed)
    folder, where = out / "weights" / name, device_of(device)
    if not (folder / "open_clip_config.json").is_file():  # a training that goes on keeps its tokens
        words = sorted({*words_of(pictures), *shape.words})
        write_clip_tokenizer(folder, words, _TOKENS, shape.context_length)
        write_clip_config(folder, shape.width, shape.vision, shape.context_length)
    model, tokenize = open_clip_folder(folder, load_weights=False)
    model, seen = model.to(where), pictures.of("train")
    vision_encoder = ClipTokens(model.visual)  # freezes what it is given
    model.visual.requires_grad_(True)
    reader, batches = TokenReader(shape.width, pictures.concepts).to(where), Batches(seen.scenes)
    identity = {"width": shape.width, "vision": shape.vision, "concepts": len(pictures.concepts)}
    course = Course(out / name, {"clip": model, "reader": reader}, plan, seed, identity)
    model.train()

    def loss_of(rng: random.Random) -> Tensor:
        chosen = batches.draw(batch, rng)
        scenes = [seen.scenes[i] for i in chosen]
        captions = [text_of(scene, rng) for scene in scenes]
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        pixels = normalise(augmented(to_pixels(seen.pixels[chosen]), generator, _STRENGTH).to(where))
        match = matches(captions, scenes, scenes).float().to(where)
        with precision(where):
            tokens = vision_encoder.tokens(pixels)
            texts = F.normalize(model.encode_text(tokenize([c.text for c in captions]).to(where)), dim=-1)
            scale = model.logit_scale.clamp(max=LOG_SCALE).exp()
            loss = contrast(texts.float(), F.normalize(tokens[:, 0].float(), dim=-1), scale, match)
            return loss + reader.loss(tokens.float(), scenes)

    def measure() -> dict[str, object]:
        save_clip(model, folder)
        return measure_clip(model, tokenize, pictures)

    finished = course.run(loss_of, measure, every=100, measure_every=1000)
    with course.averaged():
        save_clip(model, folder)
    return finished


@torch.no_grad()
def measure_clip(model: Any, tokenize: Any, pictures: Pictures) -> dict[str, object]:
    """How a CLIP names pictures that it has learned from, and held-out (concept, style) pairs.

    Each picture's name is the concept whose caption is nearest, of all concepts: ``named`` over plain pictures,
    ``named_core`` over those of the core list, ``named_unseen_pairs`` over held-out ones. ``mean_true_cosine`` and
    ``mean_cosine`` compare exact captions with their pictures and with others'.
    """
    where = next(model.parameters()).device
    plain = pictures.take([i for i, scene in enumerate(pictures.scenes) if scene.is_plain])
    first = {scene.concept: scene for scene in reversed(pictures.scenes)}
    first |= {scene.concept: scene for scene in plain.scenes}
    names = [caption_of(first[concept], style=False) for concept in pictures.concepts]

    def texts_of(captions: list[str]) -> Tensor:
        parts = [model.encode_text(tokenize(captions[i : i + 256]).to(where)) for i in range(0, len(captions), 256)]
        return F.normalize(torch.cat(parts), dim=-1)

    concepts, result, core = texts_of(names), dict[str, object](), set(core_concepts())
    for name, of in (("", plain.of("train")), ("_unseen_pairs", plain.of("pair"))):
        of = of.take(range(0, len(of), 2 if not name else 1))
        if not len(of):
            continue
        shown = [
            model.encode_image(normalise(to_pixels(of.pixels[i : i + 256]).to(where))) for i in range(0, len(of), 256)
        ]
        images = F.normalize(torch.cat(shown), dim=-1)
        nearest = (images @ concepts.T).argmax(1).tolist()
        right = [pictures.concepts[n] == scene.concept for n, scene in zip(nearest, of.scenes, strict=True)]
        result[f"named{name}"] = round(sum(right) / len(right), 4)
        if not name:
            of_core = [r for r, scene in zip(right, of.scenes, strict=True) if scene.concept in core]
            if of_core:
                result["named_core"] = round(sum(of_core) / len(of_core), 4)
            cosines = images @ texts_of([caption_of(scene) for scene in of.scenes]).T
            result["mean_true_cosine"] = round(float(cosines.diagonal().mean()), 4)
            result["mean_cosine"] = round(float(cosines.mean()), 4)
    return result


def measure_saved(pictures: Pictures, folder: Path) -> dict[str, object]:
    """Measures the CLIP of a folder."""
    model, tokenize = open_clip_folder(folder)
    return measure_clip(model.eval(), tokenize, pictures)
