"""The micro CLIP: an open_clip model in open_clip's folder layout.

Contrast alone makes the class token distinguish pictures and leaves the others, which language model and M³Adapter
read, with little of where things are. So the conditioning CLIP learns on while a throw-away reader of all its tokens
names every attribute; larger CLIPs come by this through their data, or through a decoder of captions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.worlds.shapes.captions import TOY_OF, caption_of, mood_of, random_caption, themed_text
from m2chat.worlds.shapes.recipe.attributes import AttributeHeads
from m2chat.worlds.shapes.recipe.common import Schedule, adamw, draw, scene_pool, seed_everything
from m2chat.worlds.shapes.recipe.text_encoders import CONTEXT_LENGTH, train_clip_tokenizer
from m2chat.worlds.shapes.scenes import Scene, scenes_of_split
from m2chat.worlds.small_clip import LOG_SCALE, normalise, open_clip_folder, save_clip, write_clip_config
from m2chat.worlds.small_sdxl import to_pixels

WIDTH = 96
_VISION = {"image_size": 32, "layers": 3, "width": 96, "head_width": 24, "patch_size": 4}


def text_beside(scene: Scene, rng: random.Random) -> str:
    """The text beside a picture on the web: mostly a caption, sometimes only a comparison."""
    draw_ = rng.random()
    if scene.second is not None or draw_ < 0.8:
        return caption_of(scene) if rng.random() < 0.5 else random_caption(scene, rng)
    mood = mood_of(scene.first.colour, scene.background)
    if mood and draw_ < 0.95:
        return f"something {mood}" if rng.random() < 0.5 else f"a {mood} {TOY_OF[scene.first.shape]}"
    return themed_text(scene.first.shape, scene.first.colour, scene.background)


def train_clip(
    folder: Path,
    steps: int = 1200,
    batch: int = 128,
    dense_steps: int = 0,
    seed: int = 0,
    text_of: Callable[[Scene, random.Random], str] = text_beside,
    context_length: int = CONTEXT_LENGTH,
    words: Sequence[str] = (),
) -> dict[str, object]:
    """Trains and saves a CLIP model.

    Args:
        folder: Folder to write.
        steps: Number of steps of contrast alone; 0 goes on from the weights in the folder.
        batch: Pairs a step.
        dense_steps: Steps after them in which all tokens are read too.
        seed: Seed of everything random.
        text_of: The text that stands beside a picture.
        context_length: Tokens of a text with its start and end.
        words: That become one token each, besides those of captions.

    Returns:
        Seed, steps and the retrieval quality on held-out scenes.
    """
    rng = seed_everything(seed)
    if steps:
        train_clip_tokenizer(folder, context_length=context_length, words=words)
    write_clip_config(folder, WIDTH, _VISION, context_length)
    model, tokenize = open_clip_folder(folder, load_weights=not steps)
    training = _ClipTraining(model, tokenize, text_of, rng)
    if steps:
        _contrast_alone(training, Schedule(folder.name, adamw([model], 1e-3, 0.05), 1e-3, steps), batch, seed)
    if dense_steps:
        _read_all_tokens(training, dense_steps)
    save_clip(model, folder)
    model.half().float().eval()  # measured as it was saved
    return {"seed": seed, "steps": steps + dense_steps, **measure_clip(model, tokenize)}


@dataclass
class _ClipTraining:
    """What a CLIP learns from."""

    model: Any
    tokenize: Any
    text_of: Callable[[Scene, random.Random], str]
    rng: random.Random

    def pictures(self, count: int, seed: int) -> tuple[list[Scene], Tensor]:
        """Scenes and their pictures, (count, 3, 32, 32)."""
        scenes = scene_pool("train", 0.5, count, self.rng)
        return scenes, normalise(to_pixels(draw(scenes, seed)))

    def contrast(self, scenes: Sequence[Scene], pixels: Tensor) -> Tensor:
        """The contrastive loss of a batch."""
        texts = [self.text_of(scene, self.rng) for scene in scenes]
        image, text, scale = self.model(pixels, self.tokenize(texts))
        logits = scale * image @ text.T
        # The same text may stand beside two pictures of a batch: then both are right.
        same = torch.tensor([[a == b for b in texts] for a in texts]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def keep_scale(self) -> None:
        """CLIP's limit of the scale."""
        self.model.logit_scale.clamp_(0, LOG_SCALE)


def _contrast_alone(training: _ClipTraining, schedule: Schedule, batch: int, seed: int) -> None:
    """Batches of a pool of pictures, each with another text every time."""
    scenes, pixels = training.pictures(16000, seed)
    for _ in schedule:
        chosen = torch.randperm(len(scenes))[:batch]
        schedule.step(training.contrast([scenes[i] for i in chosen.tolist()], pixels[chosen]))
        training.keep_scale()


def _read_all_tokens(training: _ClipTraining, steps: int, batch: int = 80, lr: float = 1e-3) -> None:
    """Contrast goes on, and a reader like LLaMA-Adapter's names every attribute from all tokens.

    Every picture is new: attributes of a pool that comes back are learned by heart.
    """
    vision_encoder = ClipTokens(training.model.visual)
    training.model.visual.requires_grad_(True)
    reader = VisualQueryEncoder(vision_encoder.width, vision_encoder.width, prompts=10, depth=2, heads=2)
    heads = AttributeHeads(vision_encoder.width)
    for _ in (schedule := Schedule("clip, all tokens", adamw([training.model, reader, heads], lr, 0.05), lr, steps)):
        scenes, pixels = training.pictures(batch, training.rng.randrange(2**31))
        schedule.step(training.contrast(scenes, pixels) + heads.loss(scenes, reader(vision_encoder.tokens(pixels))))
        training.keep_scale()


@torch.no_grad()
def measure_clip(model: Any, tokenize: Any, split: str = "test") -> dict[str, object]:
    """Recall at 1 among 500 held-out pictures and their exact captions, both ways."""
    scenes = [*scenes_of_split(split, 1)[:250], *scenes_of_split(split, 2)[:250]]  # type: ignore[arg-type]
    image = F.normalize(model.encode_image(normalise(to_pixels(draw(scenes, 1)))), dim=-1)
    text = F.normalize(model.encode_text(tokenize([caption_of(scene) for scene in scenes])), dim=-1)
    similarity, labels = image @ text.T, torch.arange(len(scenes))
    return {
        "image_to_text_r1_of_500": round(float((similarity.argmax(1) == labels).float().mean()), 4),
        "text_to_image_r1_of_500": round(float((similarity.argmax(0) == labels).float().mean()), 4),
        "mean_true_cosine": round(float(similarity.diagonal().mean()), 4),
        "mean_cosine": round(float(similarity.mean()), 4),
    }


def measure_saved(folder: Path) -> dict[str, object]:
    """Measures the CLIP of a folder."""
    model, tokenize = open_clip_folder(folder)
    return measure_clip(model.eval(), tokenize)
