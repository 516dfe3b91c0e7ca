"""The official adapter file: its names, its order of query and key rows, and the way to ours and back.

The file is ``{"model": {...}, "config": {"w_bias", "w_lora", "lora_rank"}}``. LLaMA's original code rotates
interleaved pairs of channels and transformers rotates halves, so the rows of q and k are permuted on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from m2chat.models.visual_encoder import VisualQueryEncoder

LINEAR = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
NORM = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
PERMUTED = ("attention.wq", "attention.wk")
LOW_RANK = (".lora_A", ".lora_B", ".adapter_new_gate")
"""Ends of our names of low-rank updates and of the gate that comes with them: new ones change nothing."""
_LAYER = re.compile(r"^llama\.layers\.(\d+)\.(.+)$")
_LORA = re.compile(r"^(attention|feed_forward)\.lora_(w[qkvo123])_l([12])\.weight$")
_VISUAL = ("clip_proj", "clip_proj_norm", "visual_query", "visual_blocks", "visual_proj", "visual_proj_norm")


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter file holds, read off its tensors.

    Args:
        prompts: K.
        layers: Layers that have prompts.
        visual_depth: Blocks of the visual query encoder.
        visual_width: Width of these blocks.
        visual_hidden: Width inside their feed-forwards.
        visual_heads: Heads of these blocks, which no tensor shows.
        clip_width: W, width of the CLIP tokens.
        bias: Whether there are biases.
        lora_rank: Rank of the low-rank updates, 0 for none.
        lora_from: First layer that has them, counted from 0.
    """

    prompts: int
    layers: int
    visual_depth: int
    visual_width: int
    visual_hidden: int
    visual_heads: int
    clip_width: int
    bias: bool
    lora_rank: int
    lora_from: int = 0

    def visual_query(self, width: int) -> VisualQueryEncoder:
        """A visual query encoder of these sizes, whose tensors are still random.

        Args:
            width: D, width of the language model.
        """
        return VisualQueryEncoder(
            self.clip_width,
            width,
            self.prompts,
            self.visual_depth,
            self.visual_heads,
            self.visual_width,
            self.visual_hidden,
        )


def read_shape(official: Mapping[str, Tensor], visual_heads: int) -> AdapterShape:
    """Derives the sizes from the tensors, since the config in the file is optional.

    Args:
        official: The file's ``model``.
        visual_heads: Heads of the visual blocks.

    Raises:
        ValueError: If the tensors contradict each other, or the heads do not divide the blocks' width.
    """
    prompts = len(official["visual_query.weight"])
    visual_width, clip_width = official["clip_proj.weight"].shape
    rows = len(official["adapter_query.weight"])
    if rows % prompts:
        raise ValueError(f"adapter_query has {rows} rows, which are no multiple of the {prompts} of visual_query")
    if visual_heads < 1 or visual_width % visual_heads:
        raise ValueError(f"its visual blocks are {visual_width} wide, which {visual_heads} heads do not divide")
    blocks = {int(key.split(".")[1]) for key in official if key.startswith("visual_blocks.")}
    if blocks != set(range(len(blocks))):
        lost = min(set(range(max(blocks))) - blocks)
        raise ValueError(f"its visual blocks end at number {max(blocks)}, and number {lost} is missing")
    hidden = official.get("visual_blocks.0.mlp.fc1.weight")
    inside = {key: match for key in official if (match := _LAYER.match(key)) is not None}
    ranks = {
        int(match.group(1)): official[key].shape[0]
        for key, match in inside.items()
        if (lora := _LORA.match(match.group(2))) and lora.group(3) == "1"
    }
    return AdapterShape(
        prompts=prompts,
        layers=rows // prompts,
        visual_depth=len(blocks),
        visual_width=visual_width,
        visual_hidden=4 * visual_width if hidden is None else len(hidden),
        visual_heads=visual_heads,
        clip_width=clip_width,
        bias=any(key.endswith(".wq.bias") for key in official),
        lora_rank=max(ranks.values(), default=0),
        lora_from=min(ranks, default=0),
    )


def permute(rows: Tensor, heads: int, inverse: bool = False) -> Tensor:
    """Re-orders the output rows of q or k from interleaved pairs to halves, or back.

    Args:
        rows: (D, ...) with D = heads * head width.
        heads: Number of heads.
        inverse: Whether to convert from halves to pairs instead.
    """
    return in_halves(rows, heads, inverse).reshape(rows.shape)


def in_halves(rows: Tensor, heads: int, inverse: bool = False) -> Tensor:
    """The view that `permute` makes a tensor of, (heads, 2, half of a head's width, ...); arguments as there."""
    half = rows.shape[0] // heads // 2
    shaped = rows.reshape(heads, *((2, half) if inverse else (half, 2)), -1)
    return shaped.transpose(1, 2)


def from_official(
    official: Mapping[str, Tensor], heads: int, num_layers: int, kv_heads: int | None = None
) -> dict[str, Tensor]:
    """Renames an adapter file's tensors.

    Args:
        official: The file's ``model``.
        heads: Attention heads of the language model.
        num_layers: Number of the language model's layers.
        kv_heads: Its heads of keys and values; None for as many as `heads`.

    Returns:
        Names under ``llama.`` (an `AdapterLlamaForCausalLM`) and ``visual_query.`` (a `VisualQueryEncoder`).

    Raises:
        KeyError: If a tensor has a name that the format does not know.
    """
    ours: dict[str, Tensor] = {}
    for key, value in official.items():
        if key.split(".")[0] in _VISUAL:
            ours[f"visual_query.{key}"] = value
        elif key == "adapter_query.weight":
            prompts = official["visual_query.weight"].shape[0]
            for index, chunk in enumerate(value.split(prompts)):
                layer = num_layers - value.shape[0] // prompts + index
                ours[f"llama.model.layers.{layer}.self_attn.adapter_query"] = chunk
        elif key == "llama.norm.weight":
            ours["llama.model.norm.weight"] = value
        elif match := _LAYER.match(key):
            name, tensor = _layer_from_official(match.group(2), value, heads, kv_heads or heads)
            ours[f"llama.model.layers.{match.group(1)}.{name}"] = tensor
        else:
            raise KeyError(f"the adapter file has an unknown tensor {key!r}")
    return {name: tensor.contiguous() for name, tensor in ours.items()}


def _layer_from_official(name: str, value: Tensor, heads: int, kv_heads: int) -> tuple[str, Tensor]:
    if name == "attention.gate":
        return "self_attn.adapter_gate", value.reshape(-1)
    if name == "attention.new_gate":
        return "self_attn.adapter_new_gate", value.reshape(-1)
    if name.removesuffix(".weight") in NORM:
        return f"{NORM[name.removesuffix('.weight')]}.weight", value
    if lora := _LORA.match(name):
        official = f"{lora.group(1)}.{lora.group(2)}"
        is_b = lora.group(3) == "2"
        rows = kv_heads if official == "attention.wk" else heads
        tensor = permute(value, rows) if is_b and official in PERMUTED else value
        return f"{LINEAR[official]}.lora_{'B' if is_b else 'A'}", tensor
    official, _, kind = name.rpartition(".")
    if official in LINEAR:
        return f"{LINEAR[official]}.{kind}", permute(value, heads) if official in PERMUTED else value
    raise KeyError(f"the adapter file has an unknown layer tensor {name!r}")


def to_official(ours: Mapping[str, Tensor], heads: int, kv_heads: int | None = None) -> dict[str, Tensor]:
    """Inverse of `from_official`, for every variant.

    Args:
        ours: Tensors by the names that `from_official` gives them.
        heads: Attention heads of the language model.
        kv_heads: Its heads of keys and values; None for as many as `heads`.

    Raises:
        KeyError: If a tensor is none of an adapter's.
    """
    linear = {new: old for old, new in LINEAR.items()}
    norm = {new: old for old, new in NORM.items()}
    official: dict[str, Tensor] = {}
    queries: dict[int, Tensor] = {}
    for key, value in ours.items():
        if key.startswith("visual_query."):
            official[key.removeprefix("visual_query.")] = value
        elif key == "llama.model.norm.weight":
            official["llama.norm.weight"] = value
        elif match := re.match(r"^llama\.model\.layers\.(\d+)\.(.+)$", key):
            layer, name = int(match.group(1)), match.group(2)
            prefix = f"llama.layers.{layer}."
            stem, _, kind = name.rpartition(".")
            if name == "self_attn.adapter_query":
                queries[layer] = value
            elif name == "self_attn.adapter_gate":
                official[prefix + "attention.gate"] = value.reshape(1, -1, 1, 1)
            elif name == "self_attn.adapter_new_gate":
                official[prefix + "attention.new_gate"] = value.reshape(1, 1, 1, 1)
            elif stem in linear and kind in ("lora_A", "lora_B"):
                group, _, old = linear[stem].partition(".")
                if kind == "lora_B" and linear[stem] in PERMUTED:
                    value = permute(value, (kv_heads or heads) if old == "wk" else heads, inverse=True)
                official[f"{prefix}{group}.lora_{old}_l{1 if kind == 'lora_A' else 2}.weight"] = value
            elif stem in norm:
                official[f"{prefix}{norm[stem]}.weight"] = value
            elif stem in linear:
                old = linear[stem]
                tensor = permute(value, heads, inverse=True) if old in PERMUTED else value
                official[f"{prefix}{old}.{kind}"] = tensor
            else:
                raise KeyError(f"no official name for {key!r}")
        else:
            raise KeyError(f"no official name for {key!r}")
    official["adapter_query.weight"] = torch.cat([queries[layer] for layer in sorted(queries)])
    return {name: tensor.detach().clone().contiguous() for name, tensor in official.items()}


def adapter_parameter_names(llama: torch.nn.Module, visual_query: torch.nn.Module) -> set[str]:
    """Names of exactly the parameters that an adapter file holds, with our prefixes.

    Biases, norms, gates, prompts, low-rank updates where there are any, and the whole visual query encoder:
    63,095,552 numbers at 7B. Chosen by module: a search for ``gate`` in names would catch LLaMA's ``gate_proj``.
    """
    from m2chat.models.llama_adapter import AdapterLinear, AdapterLlamaAttention

    names = {f"visual_query.{name}" for name, _ in visual_query.named_parameters()}
    for path, module in llama.named_modules():
        if isinstance(module, AdapterLinear):
            names |= {
                f"llama.{path}.{name}" for name in ("bias", "lora_A", "lora_B") if getattr(module, name) is not None
            }
        elif isinstance(module, AdapterLlamaAttention):
            added = ("adapter_gate", "adapter_new_gate", "adapter_query")
            names |= {f"llama.{path}.{name}" for name in added if getattr(module, name) is not None}
        elif path.endswith("norm"):
            names.add(f"llama.{path}.weight")
    return names
