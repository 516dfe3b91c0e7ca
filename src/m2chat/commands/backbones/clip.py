"""The micro CLIP: an open_clip model in open_clip's own folder layout."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.commands.backbones.common import Schedule, adamw, draw, scene_pool, seed_everything, to_pixels
from m2chat.commands.backbones.text_encoders import CONTEXT_LENGTH, train_clip_tokenizer
from m2chat.world import Scene, caption_of, scenes_of_split
from m2chat.world.captions import random_caption
from m2chat.world.knowledge import TOY_OF, mood_of, themed_text

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CONFIG = {
    "model_cfg": {
        "embed_dim": 96,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 96, "head_width": 24, "patch_size": 4},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 0,
            "width": 96,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": ".",
            "tokenizer_kwargs": {"clean": "whitespace"},
        },
    },
    "preprocess_cfg": {"mean": _MEAN, "std": _STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}


def text_beside(scene: Scene, rng: random.Random) -> str:
    """What the web says beside a picture: mostly a caption, sometimes only what it is like."""
    draw_ = rng.random()
    if scene.second is not None or draw_ < 0.8:
        return caption_of(scene) if rng.random() < 0.5 else random_caption(scene, rng)
    mood = mood_of(scene.first.colour, scene.background)
    if mood and draw_ < 0.95:
        return f"something {mood}" if rng.random() < 0.5 else f"a {mood} {TOY_OF[scene.first.shape]}"
    return themed_text(scene.first.shape, scene.first.colour, scene.background)


def normalise(pixels: Tensor) -> Tensor:
    """[-1, 1] to CLIP's range."""
    mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
    return ((pixels + 1) / 2 - mean) / std


def train_clip(
    folder: Path,
    steps: int = 1200,
    batch: int = 128,
    seed: int = 0,
    text_of: Callable[[Scene, random.Random], str] = text_beside,
    context_length: int = CONTEXT_LENGTH,
    words: Sequence[str] = (),
) -> dict[str, object]:
    """Trains and saves a CLIP model.

    Args:
        folder: Where to.
        steps: Number of steps.
        batch: Pairs a step.
        seed: Of everything random.
        text_of: The text that stands beside a picture.
        context_length: Tokens of a text with its start and end.
        words: That become one token each, besides those of captions.

    Returns:
        Seed, steps and the retrieval quality on held-out scenes.
    """
    import open_clip
    from safetensors.torch import save_file

    rng = seed_everything(seed)
    train_clip_tokenizer(folder, context_length=context_length, words=words)
    config = json.loads(json.dumps(_CONFIG))
    config["model_cfg"]["text_cfg"]["context_length"] = context_length
    config["model_cfg"]["text_cfg"]["vocab_size"] = len(
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    scenes = scene_pool("train", 0.5, 16000, rng)
    pixels = normalise(to_pixels(draw(scenes, seed)))
    schedule = Schedule(folder.name, adamw([model], 1e-3, 0.05), 1e-3, steps)
    for _ in schedule:
        chosen = torch.randperm(len(scenes))[:batch]
        texts = [text_of(scenes[i], rng) for i in chosen.tolist()]
        image, text, scale = model(pixels[chosen], tokenize(texts))
        logits = scale * image @ text.T
        # The same text may stand beside two pictures of a batch: then both are right.
        same = torch.tensor([[a == b for b in texts] for a in texts]).float()
        target = same / same.sum(1, keepdim=True)
        schedule.step((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
    model.half()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    model.float().eval()
    return {"seed": seed, "steps": steps, **measure_clip(model, tokenize)}


@torch.no_grad()
def measure_clip(model: Any, tokenize: Any, split: str = "test") -> dict[str, object]:
    """Recall at 1 among 500 held-out pictures and their exact captions, both ways."""
    scenes = [*scenes_of_split(split, 1)[:250], *scenes_of_split(split, 2)[:250]]  # type: ignore[arg-type]
    image = F.normalize(model.encode_image(normalise(to_pixels(draw(scenes, 1)))), dim=-1)
    text = F.normalize(model.encode_text(tokenize([caption_of(scene) for scene in scenes])), dim=-1)
    similarity, own = image @ text.T, torch.arange(len(scenes))
    return {
        "image_to_text_r1_of_500": round(float((similarity.argmax(1) == own).float().mean()), 4),
        "text_to_image_r1_of_500": round(float((similarity.argmax(0) == own).float().mean()), 4),
        "mean_true_cosine": round(float(similarity.diagonal().mean()), 4),
        "mean_cosine": round(float(similarity.mean()), 4),
    }
