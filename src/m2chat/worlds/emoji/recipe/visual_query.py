"""Prepares the visual query before stage 0: its prompts learn which words the captions of a picture have.

Stage 0 has to open gates to prompts that mean nothing yet, with a pass of the language model for every caption. Here
none runs: the prompts of a picture move towards the language model's embeddings of the captions' words, from cached
CLIP tokens. The result is an adapter file with closed gates, under which the language model still speaks as before.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.batch import normalised
from m2chat.data.network_inputs import VisionInput
from m2chat.errors import UserError
from m2chat.models.config import NewAdapterConfig
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.models.weights.adapter import write_adapter
from m2chat.models.weights.clip import load_tower
from m2chat.models.weights.llama import open_llama
from m2chat.models.weights.new_adapter import new_adapter
from m2chat.shipped import fetching
from m2chat.text import M2ChatTokenizer
from m2chat.worlds.emoji.captions import caption_of, draw_caption
from m2chat.worlds.emoji.recipe.course import Course, Plan
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.scenes import Pictures

PLAN = Plan(steps=4500, lr=1.7e-3, warmup=50, decay=4450, ema=0.99, betas=(0.9, 0.98))
LANGUAGE_MODEL = Path("data/smollm2")
SIZES = NewAdapterConfig(prompts=10, layers=29, visual_blocks=2, visual_heads=2)
"""LLaMA-Adapter V2's proportions: prompts in all layers but the first."""


class CaptionWords(nn.Module):
    """How well prompts say which words of a vocabulary belong to a picture.

    A word's score is the logsumexp over the prompts of their scaled cosines with the word's centred embedding, so that
    one prompt near a word is enough. Shapes: B pictures, K prompts, D width, V words.

    Args:
        table: The language model's embedding table.
        words: Ids of the vocabulary's tokens.
    """

    directions: Tensor

    def __init__(self, table: Tensor, words: list[int]) -> None:
        super().__init__()
        table = table.float()
        self.register_buffer("directions", F.normalize(table[words] - table.mean(0), dim=1), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.bias = nn.Parameter(torch.zeros(len(words)))

    def forward(self, prompts: Tensor) -> Tensor:
        """Scores of every word, (B, V), from prompts (B, K, D)."""
        cosines = F.normalize(prompts, dim=-1) @ self.directions.T
        scores: Tensor = torch.logsumexp(cosines * self.log_scale.exp(), 1) + self.bias
        return scores


def train_visual_query(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 64,
    seed: int = 0,
    device: str = "auto",
    language_model: Path = LANGUAGE_MODEL,
    clip: Path = Path("data/pocket/clip"),
    sizes: NewAdapterConfig = SIZES,
) -> bool:
    """Trains the visual query and saves an adapter for stage 0 as ``<out>/weights/visual_query.pth``.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        language_model: Folder of the language model whose embeddings the prompts learn.
        clip: Folder of the vision encoder.
        sizes: Sizes of the adapter.

    Returns:
        Whether the plan's end was reached.

    Raises:
        UserError: If the language model or the vision encoder is not there.
    """
    where, seen = device_of(device), pictures.of("train")
    if not (language_model / "config.json").is_file():
        raise UserError(f"there is no language model in {language_model}: {fetching(LANGUAGE_MODEL.name)}")
    source = open_llama(language_model, "language_model")
    tower = ClipTokens(load_tower(str(clip), "clip", torch.float32)).to(where).eval()
    initial = new_adapter(source, sizes, tower.width)
    encoder = VisualQueryEncoder(
        tower.width, int(source.settings["hidden_size"]), sizes.prompts, sizes.visual_blocks, sizes.visual_heads
    )
    encoder.load_state_dict({name: initial.state[name] for name in encoder.state_dict()})
    f_img = tokens_of(tower, str(clip), seen, where)
    tokenizer = M2ChatTokenizer(language_model)
    vocabulary = words_of(seen, tokenizer, seed)
    row_of = {word: row for row, word in enumerate(vocabulary)}
    scores = CaptionWords(source.state["model.embed_tokens.weight"], vocabulary)
    modules = {"visual_query": encoder.to(where), "scores": scores.to(where)}
    course = Course(out / "visual_query", modules, plan, seed, {"words": len(vocabulary)})
    # Two thirds of a batch have no attributes: what people show most, and less than half of the pictures.
    plain = [index for index, scene in enumerate(seen.scenes) if scene.is_plain]
    detailed = [index for index, scene in enumerate(seen.scenes) if not scene.is_plain]
    few = min(2 * batch // 3, len(plain))

    def loss_of(rng: random.Random) -> Tensor:
        chosen = rng.sample(plain, few) + rng.sample(detailed, min(batch - few, len(detailed)))
        wanted = torch.zeros(len(chosen), len(vocabulary))
        for row, index in enumerate(chosen):
            words = _token_ids(tokenizer, draw_caption(seen.scenes[index], rng).text)
            wanted[row, [row_of[word] for word in words if word in row_of]] = 1
        wanted = (wanted / wanted.sum(1, keepdim=True).clamp(min=1)).to(where)
        with precision(where):
            logits = scores(encoder(f_img[chosen]))
        loss: Tensor = -(wanted * logits.float().log_softmax(1)).sum(1).mean()
        return loss

    def measure() -> dict[str, object]:
        return {"names_found": round(names_found(encoder, scores, f_img, seen, tokenizer, row_of), 4)}

    finished = course.run(loss_of, measure, every=50, measure_every=500)
    with course.averaged():
        print(json.dumps(measure()), flush=True)
        trained = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
        write_adapter(
            out / "weights" / "visual_query.pth", {**initial.state, **trained}, initial.base, "rgb", sizes.visual_heads
        )
    return finished


def _token_ids(tokenizer: M2ChatTokenizer, text: str) -> list[int]:
    """Token ids of a text in the middle of a sentence: at the start of a text a word has another id."""
    return tokenizer.encode(f" {text}")


def words_of(pictures: Pictures, tokenizer: M2ChatTokenizer, seed: int, draws: int = 6) -> list[int]:
    """Tokens of exact captions and of some drawn ones, in order of their ids."""
    rng = random.Random(seed)
    texts = [caption_of(scene) for scene in pictures.scenes]
    texts += [draw_caption(scene, rng).text for scene in pictures.scenes for _ in range(draws)]
    return sorted({token for text in texts for token in _token_ids(tokenizer, text)})


@torch.no_grad()
def tokens_of(tower: ClipTokens, clip: str, pictures: Pictures, where: torch.device, batch: int = 128) -> Tensor:
    """CLIP tokens of every picture, (B, I, W)."""
    vision = VisionInput.of(clip)
    parts = []
    for start in range(0, len(pictures), batch):
        pixels = torch.from_numpy(pictures.pixels[start : start + batch]).permute(0, 3, 1, 2).contiguous()
        parts.append(tower(normalised(pixels.to(where), vision.mean, vision.std)))
    return torch.cat(parts)


def names_found(
    encoder: VisualQueryEncoder,
    scores: CaptionWords,
    f_img: Tensor,
    pictures: Pictures,
    tokenizer: M2ChatTokenizer,
    row_of: Mapping[int, int],
    count: int = 512,
) -> float:
    """Share of pictures all of whose name's words are among the best: a dozen more than the name has."""
    chosen = random.Random(1).sample(range(len(pictures)), min(count, len(pictures)))
    logits = scores(encoder(f_img[chosen]))
    found = 0
    for row, index in zip(logits, chosen, strict=True):
        name = {row_of[token] for token in _token_ids(tokenizer, pictures.scenes[index].label) if token in row_of}
        found += name <= set(row.topk(min(len(name) + 12, len(row))).indices.tolist())
    return found / len(chosen)
