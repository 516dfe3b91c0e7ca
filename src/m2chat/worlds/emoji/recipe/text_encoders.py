"""The pocket SDXL text encoders and their tokenizer: trained first, then frozen.

They learn by contrast with the pictures, and by painting them through a throw-away head that reads their states as a
UNet's cross-attention does. Contrast alone leaves the states with some 15 directions of any size: enough to tell
pictures apart, too few to say what they look like, which a UNet then learns by heart, at a hundred times the cost.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.worlds.emoji.captions import Caption, draw_caption
from m2chat.worlds.emoji.recipe.course import Course, Plan, save_half
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.scenes import HAIRS, SIZE, STYLES, TONES, Pictures, Scene
from m2chat.worlds.small_sdxl import build_text_encoders, text_states, to_pixels, write_clip_tokenizer

CONTEXT_LENGTH = 24
"""Tokens of a caption with its start and end."""
WIDTHS = (128, 160)
PLAN = Plan(steps=3000, lr=1e-3, decay=1000, weight_decay=0.05)
_JOINT = 128
"""Width in which texts and pictures are compared; nothing of it is kept."""
_WORD_SCALE = 0.5
"""Standard deviation of the words' vectors at first. CLIP's 0.02 vanishes beside what the layers add, so that all words
end in the same few directions."""
_GRID, _SMALL = 8, 16
"""Patches of a side that the painter paints, as many as a latent has places; side of what the pooled state paints."""
_PAINTED = 4.0
"""Weight of the painter's squared error beside the contrast."""


def words_of(pictures: Pictures) -> list[str]:
    """Every word of every name and keyword, held-out pictures' too: a tokenizer knows words, not pictures."""
    words: set[str] = set()
    for scene in pictures.scenes:
        for text in (scene.label, scene.concept, *scene.keywords, scene.tone):
            words.update(re.findall(r"[a-z]+|[0-9]+", text.lower()))
    frame = "a an the in style of with and skin tone hair picture emoji drawing icon small something about clock at "
    frame += "sign is are"
    return sorted(words | set(frame.split()) | {name.lower() for name in STYLES.values()} | {*HAIRS, *TONES} - {""})


class PictureNetwork(nn.Module):
    """A small throw-away network: pictures (B, 3, 64, 64) to unit vectors (B, width)."""

    def __init__(self, width: int = _JOINT, channels: Sequence[int] = (24, 48, 96, 192)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        layers += [nn.Conv2d(channels[-1], channels[-1], 3, 1, 1), nn.GroupNorm(8, channels[-1]), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * 16, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors of pictures."""
        return F.normalize(self.head(self.layers(pixels).flatten(1)), dim=-1)


class StateHeads(nn.Module):
    """Throw-away heads from each state that a UNet reads to the joint space, and the scale of the comparison."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, _JOINT)) for w in widths)
        self.log_scale = nn.Parameter(torch.tensor([2.65]))

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Unit vectors of each kind of state."""
        return [F.normalize(head(state), dim=-1) for head, state in zip(self.heads, states, strict=True)]


class Painter(nn.Module):
    """A throw-away head that paints the picture from what a UNet reads: (B, T, C) states and a pooled one, (B, P).

    Args:
        sequence: Width C of the states.
        pooled: Width P of the pooled state.
        width: Width of its own states, one for each patch.
        heads: Heads of its attention.
    """

    def __init__(self, sequence: int, pooled: int, width: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(_GRID**2, width) * 0.1)
        self.pooled = nn.Linear(pooled, width)
        self.attention = nn.MultiheadAttention(width, heads, kdim=sequence, vdim=sequence, batch_first=True)
        side = 3 * (SIZE // _GRID) ** 2
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 384), nn.GELU(), nn.Linear(384, side))
        self.small = nn.Linear(pooled, 3 * _SMALL**2)

    def forward(self, states: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The picture, (B, 3, 64, 64), and from the pooled state alone a small one, (B, 3, 16, 16); both in [-1, 1]."""
        places = self.places + self.pooled(pooled)[:, None]
        patches = self.patch(places + self.attention(places, states, states, need_weights=False)[0])
        picture = F.fold(patches.transpose(1, 2), SIZE, SIZE // _GRID, stride=SIZE // _GRID)
        return picture, self.small(pooled).unflatten(1, (3, _SMALL, _SMALL))


def tokenise(tokenizer: Any, captions: list[str]) -> Tensor:
    """(B, T) token numbers, only as long as the longest caption: states do not see what follows them."""
    encoded = tokenizer(captions, padding="longest", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids)


def matches(captions: Sequence[Caption], scenes: Sequence[Scene], others: Sequence[Scene]) -> Tensor:
    """Which captions are true of which pictures: (B, N) booleans. A caption without a style fits every style."""
    same = [
        [a.combination == b.combination and (a.style == b.style or not caption.names_style) for b in others]
        for caption, a in zip(captions, scenes, strict=True)
    ]
    return torch.tensor(same)


def contrast(texts: Tensor, pictures: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """CLIP's loss where a text may be true of several pictures of the batch: the mean over both directions."""
    logits = scale * texts @ pictures.T
    to_picture = match / match.sum(1, keepdim=True)
    to_text = match / match.sum(0, keepdim=True)
    return -(to_picture * logits.log_softmax(1)).sum(1).mean() / 2 - (to_text * logits.log_softmax(0)).sum(0).mean() / 2


class Batches:
    """Draws scenes so that a batch is hard: half of it are pairs that differ in style or attributes alone."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.by_concept: dict[str, list[int]] = {}
        for index, scene in enumerate(scenes):
            self.by_concept.setdefault(scene.concept, []).append(index)
        # Concepts with many combinations of attributes need more visits than an apple.
        self.concepts = list(self.by_concept)
        self.weights = [len(self.by_concept[concept]) ** 0.5 for concept in self.concepts]

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """Indices of a batch."""
        chosen: list[int] = []
        while len(chosen) < count:
            scenes = self.by_concept[rng.choices(self.concepts, self.weights)[0]]
            chosen += rng.sample(scenes, min(len(scenes), 2 if rng.random() < 0.33 else 1))
        return chosen[:count]


def train_text_encoders(
    pictures: Pictures, out: Path, plan: Plan = PLAN, batch: int = 128, seed: int = 0, device: str = "auto"
) -> bool:
    """Trains both text encoders and saves them with their tokenizers into ``<out>/weights/sdxl``.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pairs a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Whether the plan's end was reached.
    """
    from transformers import CLIPTokenizer

    torch.manual_seed(seed)
    root, where = out / "weights" / "sdxl", device_of(device)
    if not (root / "tokenizer_2").is_dir():  # a training that goes on keeps the tokens that it has begun with
        words = words_of(pictures)
        write_clip_tokenizer(root / "tokenizer", words, 20000, CONTEXT_LENGTH)
        write_clip_tokenizer(
            root / "tokenizer_2", words, 20000, CONTEXT_LENGTH, pad_token="!"
        )  # as the real second tokenizer pads
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
    first, second = (encoder.to(where) for encoder in build_text_encoders(tokenizer, WIDTHS))
    for encoder in (first, second):
        nn.init.normal_(encoder.get_input_embeddings().weight, std=_WORD_SCALE)
    network, reader = PictureNetwork().to(where), StateHeads((WIDTHS[0],) * 2 + (WIDTHS[1],) * 2).to(where)
    painter = Painter(sum(WIDTHS), WIDTHS[1]).to(where)
    parts = {"first": first, "second": second, "network": network, "reader": reader, "painter": painter}
    course = Course(out / "text_encoders", parts, plan, seed, {"widths": list(WIDTHS), "tokens": len(tokenizer)})
    seen = pictures.of("train")
    batches = Batches(seen.scenes)

    def read(captions: list[str]) -> tuple[list[Tensor], Tensor]:
        """States at the end of captions, and those of all tokens, (B, T, C)."""
        ids = tokenise(tokenizer, captions).to(where)
        return text_states((first, second), ids, tokenizer.eos_token_id)

    def embed(captions: list[str]) -> list[Tensor]:
        vectors: list[Tensor] = reader(read(captions)[0])
        return vectors

    def loss_of(rng: random.Random) -> Tensor:
        chosen = batches.draw(batch, rng)
        scenes = [seen.scenes[i] for i in chosen]
        captions = [draw_caption(scene, rng) for scene in scenes]
        match = matches(captions, scenes, scenes).float().to(where)
        with precision(where):
            pixels = to_pixels(seen.pixels[chosen]).to(where)
            shown = network(pixels)
            scale = reader.log_scale.clamp(max=4.6).exp()
            ends, states = read([caption.text for caption in captions])
            losses = [contrast(text, shown, scale, match) for text in reader(ends)]
            picture, small = painter(states, ends[-1])
            error = F.mse_loss(picture, pixels) + F.mse_loss(small, F.avg_pool2d(pixels, SIZE // _SMALL))
        return torch.stack(losses).mean() + _PAINTED * error

    def measure() -> dict[str, object]:
        return measure_text_encoders(network, embed, pictures, where)

    finished = course.run(loss_of, measure, every=50, measure_every=250)
    with course.averaged():
        print(json.dumps(measure()), flush=True)
        save_half(first, root / "text_encoder")
        save_half(second, root / "text_encoder_2")
    return finished


@torch.no_grad()
def measure_text_encoders(network: nn.Module, embed: Any, pictures: Pictures, where: torch.device) -> dict[str, object]:
    """Retrieval by name: the share of captions whose nearest picture shows what they say.

    Among the plain pictures of the training set, one of each concept and style; and of held-out (concept, style)
    pairs among the same and themselves.
    """
    result: dict[str, object] = {}
    rng = random.Random(1)
    seen, unseen = pictures.of("train"), pictures.of("pair")
    # The plain picture of each concept and style, or what comes first if there is none.
    plain = {(s.concept, s.style): i for i, s in reversed(list(enumerate(seen.scenes))) if s.is_plain}
    gallery = seen.take(sorted(plain.values()))
    held = unseen.take([i for i, scene in enumerate(unseen.scenes) if scene.is_plain])
    shown = [
        torch.cat([network(to_pixels(p.pixels[i : i + 256]).to(where)) for i in range(0, len(p), 256)])
        for p in (gallery, held)
    ]
    everything, scenes = torch.cat(shown), (*gallery.scenes, *held.scenes)
    for name, of in (("r1_seen", gallery.scenes[::4]), ("r1_unseen_pairs", held.scenes)):
        captions = [draw_caption(scene, rng, style=True) for scene in of]
        texts: list[Tensor] = [
            torch.cat(parts)
            for parts in zip(
                *(embed([c.text for c in captions[i : i + 256]]) for i in range(0, len(of), 256)), strict=True
            )
        ]
        for state, text in zip(("first", "first_pooled", "second", "second_pooled"), texts, strict=True):
            if state in ("first", "second_pooled"):
                nearest = (text @ everything.T).argmax(1).tolist()
                right = [scenes[n].concept == scene.concept for n, scene in zip(nearest, of, strict=True)]
                exact = [r and scenes[n].style == scene.style for r, n, scene in zip(right, nearest, of, strict=True)]
                result[f"{name}_{state}"] = round(sum(right) / len(of), 4)
                result[f"{name}_{state}_style"] = round(sum(exact) / len(of), 4)
    result["gallery"] = len(scenes)
    return result
