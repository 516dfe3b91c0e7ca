"""Miniature official files: the key sets, orders and layouts of the real ones, with small random tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

MICRO = Path(__file__).parents[3] / "data" / "micro"
Variant = Literal["bias", "lora-bias", "caption"]


@dataclass(frozen=True)
class Sizes:
    """Numbers of the miniature: everything is different, so that nothing can stand for something else."""

    vocab: int = 640  # that of the micro tokenizer
    width: int = 64
    heads: int = 4
    layers: int = 3
    inner: int = 96
    prompts: int = 3
    with_prompts: int = 2
    clip_width: int = 96
    visual_depth: int = 2
    rank: int = 5
    tower_width: int = 128
    tower_layers: int = 2
    patch: int = 8
    image: int = 32
    eps: float = 1e-4


SIZES = Sizes()


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Matrices that keep the size of what they map, norms about one, everything else small but never zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if ("norm" in name or "ln_" in name) and name.endswith("weight"):
            value = 1 + 0.2 * value
        elif "new_gate" in name:
            value = 1 + 0.3 * value
        elif len(shape) > 1 and "gate" not in name and "query" not in name and "embed" not in name:
            value = value / torch.Size(shape[1:]).numel() ** 0.5
        else:
            value = 0.5 * value
        tensors[name] = value
    return tensors


def llama_tensors() -> dict[str, Tensor]:
    """``consolidated.00.pth``, with the tables that can be computed."""
    s = SIZES
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (s.vocab, s.width), "norm.weight": (s.width,), "output.weight": (s.vocab, s.width),
    }  # fmt: skip
    for layer in range(s.layers):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.w{kind}.weight": (s.width, s.width) for kind in "qkvo"}
        shapes |= {f"{at}feed_forward.w{kind}.weight": (s.inner, s.width) for kind in (1, 3)}
        shapes |= {f"{at}feed_forward.w2.weight": (s.width, s.inner)}
        shapes |= {f"{at}{kind}_norm.weight": (s.width,) for kind in ("attention", "ffn")}
    tensors = random_tensors(shapes, 0)
    for layer in range(s.layers):
        tensors[f"layers.{layer}.attention.inner_attention.rope.freqs"] = torch.zeros(s.width // s.heads // 2)
    return tensors


def adapter_tensors(variant: Variant) -> dict[str, Tensor]:
    """The ``model`` of a released adapter file."""
    s = SIZES
    shapes: dict[str, tuple[int, ...]] = {
        "adapter_query.weight": (s.with_prompts * s.prompts, s.width),
        "visual_query.weight": (s.prompts, s.clip_width),
        "clip_proj.weight": (s.clip_width, s.clip_width), "clip_proj.bias": (s.clip_width,),
        "clip_proj_norm.weight": (s.clip_width,), "clip_proj_norm.bias": (s.clip_width,),
        "visual_proj.weight": (s.width, s.clip_width), "visual_proj.bias": (s.width,),
        "visual_proj_norm.weight": (s.width,), "visual_proj_norm.bias": (s.width,),
    }  # fmt: skip
    for block in range(s.visual_depth):
        at, w = f"visual_blocks.{block}.", s.clip_width
        for part, shape in (("attn.qkv", (3 * w, w)), ("attn.proj", (w, w)), ("mlp.fc1", (4 * w, w)),
                            ("mlp.fc2", (w, 4 * w)), ("norm1", (w,)), ("norm2", (w,))):  # fmt: skip
            shapes |= {f"{at}{part}.weight": shape, f"{at}{part}.bias": shape[:1]}
    for layer in range(s.layers):
        at = f"llama.layers.{layer}."
        shapes[f"{at}attention.gate"] = (1, s.heads, 1, 1)
        if variant == "caption":
            continue
        shapes |= {f"{at}attention.w{kind}.bias": (s.width,) for kind in "qo"}
        shapes |= {f"{at}feed_forward.w{kind}.bias": (s.inner,) for kind in (1, 3)}
        shapes |= {f"{at}feed_forward.w2.bias": (s.width,)}
        shapes |= {f"{at}{kind}_norm.weight": (s.width,) for kind in ("attention", "ffn")}
        if variant == "lora-bias":
            shapes[f"{at}attention.new_gate"] = (1, 1, 1, 1)
            for name, out, into in (*((f"attention.lora_w{kind}", s.width, s.width) for kind in "qkvo"),
                                    ("feed_forward.lora_w1", s.inner, s.width),
                                    ("feed_forward.lora_w2", s.width, s.inner),
                                    ("feed_forward.lora_w3", s.inner, s.width)):  # fmt: skip
                shapes |= {f"{at}{name}_l1.weight": (s.rank, into), f"{at}{name}_l2.weight": (out, s.rank)}
    if variant != "caption":
        shapes["llama.norm.weight"] = (s.width,)
    tensors, base = random_tensors(shapes, 1), llama_tensors()
    for name in tensors:  # norms go on from the language model's
        if name.startswith("llama.") and name.endswith("norm.weight"):
            tensors[name] = base[name.removeprefix("llama.")] + 0.1 * (tensors[name] - 1)
    return tensors


def clip_tensors() -> dict[str, Tensor]:
    """A CLIP by OpenAI's names: the vision tower, and a little of the text tower."""
    s = SIZES
    w, tokens = s.tower_width, 1 + (s.image // s.patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (w,), "visual.positional_embedding": (tokens, w), "visual.proj": (w, s.clip_width),
        "visual.conv1.weight": (w, 3, s.patch, s.patch), "text_projection": (8, 8), "logit_scale": (1,),
    }  # fmt: skip
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.weight": (w,), f"visual.{name}.bias": (w,)}
    for layer in range(s.tower_layers):
        at = f"visual.transformer.resblocks.{layer}."
        shapes |= {f"{at}attn.in_proj_weight": (3 * w, w), f"{at}attn.in_proj_bias": (3 * w,)}
        for part, shape in (("attn.out_proj", (w, w)), ("mlp.c_fc", (4 * w, w)), ("mlp.c_proj", (w, 4 * w)),
                            ("ln_1", (w,)), ("ln_2", (w,))):  # fmt: skip
            shapes |= {f"{at}{part}.weight": shape, f"{at}{part}.bias": shape[:1]}
    return random_tensors(shapes, 2)


def write_meta(root: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """Meta's root folder with a 7B in it; the weights in fp16, as released."""
    folder = root / "7B"
    folder.mkdir(parents=True)
    s = SIZES
    params = {"dim": s.width, "multiple_of": 32, "n_heads": s.heads, "n_layers": s.layers, "norm_eps": s.eps,
              "vocab_size": -1}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    torch.save({name: t.half() for name, t in (tensors or llama_tensors()).items()}, folder / "consolidated.00.pth")
    shutil.copy(MICRO / "llama" / "tokenizer.model", root / "tokenizer.model")
    return folder


def write_adapter(path: Path, variant: Variant) -> Path:
    """A released adapter file; its ``config`` lies, since the keys must be believed."""
    torch.save({"model": adapter_tensors(variant), "config": {"w_bias": False, "w_lora": False, "lora_rank": 99}}, path)
    return path


@dataclass(frozen=True)
class Official:
    """Everything above, for tests."""

    sizes: Sizes
    llama: Callable[[], dict[str, Tensor]]
    adapter: Callable[[Variant], dict[str, Tensor]]
    clip: Callable[[], dict[str, Tensor]]
    write_meta: Callable[..., Path]
    write_adapter: Callable[[Path, Variant], Path]


@pytest.fixture(scope="session")
def official() -> Official:
    return Official(SIZES, llama_tensors, adapter_tensors, clip_tensors, write_meta, write_adapter)
