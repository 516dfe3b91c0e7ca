"""An adapter of one's own: its initial tensors, for networks of any sizes, and its file once it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.models.adapter_file import LINEAR, AdapterShape, read_shape, to_official
from m2chat.models.config import NEW, BackboneConfig, NewAdapterConfig, NewLoraConfig
from m2chat.models.visual_encoder import VisualQueryEncoder
from m2chat.models.weights.adapter import AdapterSource, open_adapter, write_adapter
from m2chat.models.weights.base import BaseMark
from m2chat.models.weights.llama import LlamaSource, open_llama


def new_adapter(source: LlamaSource, sizes: NewAdapterConfig, clip_width: int) -> AdapterSource:
    """The initial tensors of an adapter, by the official names.

    Gates are zero, so that the language model speaks as before: with open ones it is wrecked before the prompts mean
    anything. Biases and norms are left to the language model, zero and its own.

    Args:
        source: Language model.
        sizes: Sizes of the adapter.
        clip_width: W, width of the vision encoder's tokens.

    Returns:
        The adapter; the same for the same arguments, whatever else is drawn at random.

    Raises:
        UserError: If the sizes do not fit the networks.
    """
    width, depth = int(source.settings["hidden_size"]), int(source.settings["num_hidden_layers"])
    if sizes.layers > depth:
        raise UserError(
            f"backbone.new_adapter.layers={sizes.layers}: the language model in {source.folder} has {depth} layers; "
            f"choose from 1 to {depth}, LLaMA-Adapter V2 has prompts in all but the first"
        )
    if clip_width % sizes.visual_heads:
        raise UserError(
            f"backbone.new_adapter.visual_heads={sizes.visual_heads} does not divide {clip_width}, the width of the "
            "vision encoder's tokens: choose a divisor"
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(sizes.seed)
        encoder = VisualQueryEncoder(clip_width, width, sizes.prompts, sizes.visual_blocks, sizes.visual_heads)
        nn.init.normal_(encoder.visual_query.weight, std=0.02)
        state: dict[str, Tensor] = {name: tensor.detach() for name, tensor in encoder.state_dict().items()}
        state["adapter_query.weight"] = 0.02 * torch.randn(sizes.layers * sizes.prompts, width)
        for layer in range(depth):
            state[f"llama.layers.{layer}.attention.gate"] = torch.zeros(1, source.settings["num_attention_heads"], 1, 1)
            if sizes.lora_rank:
                state |= _low_rank(source, layer, sizes.lora_rank)
    heads = sizes.visual_heads
    return AdapterSource(state, read_shape(state, heads), None, False, [], BaseMark.of(source))


def with_updates(shape: AdapterShape, sizes: NewLoraConfig, depth: int, where: str) -> AdapterShape:
    """Sizes of an adapter with low-rank updates in its last layers.

    Args:
        shape: Sizes without them.
        sizes: Rank and layers of the updates.
        depth: Number of the language model's layers.
        where: Name of the adapter in messages.

    Raises:
        UserError: If it has some already, or the language model has fewer layers.
    """
    if shape.lora_rank:
        raise UserError(f"{where} has low-rank updates of rank {shape.lora_rank} itself: leave backbone.new_lora out")
    layers = depth if sizes.layers is None else sizes.layers
    if layers > depth:
        raise UserError(
            f"backbone.new_lora.layers={layers}: the language model has {depth} layers; choose from 1 to {depth}"
        )
    return replace(shape, lora_rank=sizes.rank, lora_from=depth - layers)


def with_new_lora(source: LlamaSource, adapter: AdapterSource, sizes: NewLoraConfig, where: str) -> AdapterSource:
    """An adapter with low-rank updates in its last layers that change nothing yet; see `with_updates`."""
    depth = int(source.settings["num_hidden_layers"])
    shape, state = with_updates(adapter.shape, sizes, depth, where), dict(adapter.state)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(sizes.seed)
        for layer in range(shape.lora_from, depth):
            state |= _low_rank(source, layer, sizes.rank)
    return replace(adapter, state=state, shape=shape)


def _low_rank(source: LlamaSource, layer: int, rank: int) -> dict[str, Tensor]:
    """Low-rank updates of a layer that change nothing yet, and the gate beside them."""
    at = f"llama.layers.{layer}."
    tensors = {f"{at}attention.new_gate": torch.ones(1, 1, 1, 1)}
    for official, ours in LINEAR.items():
        name = f"model.layers.{layer}.{ours}.weight"
        if name not in source.state:
            raise UserError(f"the language model in {source.folder} lacks {name}: is it a whole LLaMA?")
        rows, columns = source.state[name].shape
        group, _, short = official.partition(".")
        tensors[f"{at}{group}.lora_{short}_l1.weight"] = down = torch.empty(rank, columns)
        nn.init.kaiming_uniform_(down, a=5**0.5)
        tensors[f"{at}{group}.lora_{short}_l2.weight"] = torch.zeros(rows, rank)
    return tensors


def save_adapter(path: Path, tensors: Mapping[str, Tensor], backbone: BackboneConfig) -> None:
    """Writes the tensors that stage 0 has trained as an adapter file, marked with its language model.

    Args:
        path: File to write, ``.pth`` or ``.safetensors``.
        tensors: Tensors by their names in the model.
        backbone: Backbones of the training.

    Raises:
        UserError: If a tensor holds a number that is not finite, or the backbones are not there any more.
    """
    source = open_llama(Path(backbone.language_model), "backbone.language_model")
    base, order = BaseMark.of(source), backbone.channel_order
    if backbone.adapter == NEW:
        assert backbone.new_adapter is not None  # BackboneConfig refuses that
        heads = backbone.new_adapter.visual_heads
    else:
        start = open_adapter(Path(backbone.adapter), "backbone.adapter", backbone.visual_heads, backbone.visual_blocks)
        heads, order = start.shape.visual_heads, start.channel_order or order
    write_adapter(path, to_official(tensors, base.heads, base.kv_heads), base, order, heads)
