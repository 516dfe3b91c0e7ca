"""LLaMA and its adapter, put together from their files."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.adapter_file import adapter_parameter_names, from_official
from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM
from m2chat.models.mapped import mapped
from m2chat.models.visual_encoder import VisualQueryEncoder
from m2chat.models.weights.adapter import AdapterSource
from m2chat.models.weights.foreign import refuse_foreign
from m2chat.models.weights.llama import LlamaSource
from m2chat.models.weights.loading import KeyReport, compare, fill, on_meta, require
from m2chat.vocabulary import first_added

_STARTS = {"bias": 0.0, "adapter_gate": 0.0, "adapter_new_gate": 1.0, "extra": 0.0}
"""What a parameter that no file holds starts as: each of them then changes nothing."""


def skeletons(source: LlamaSource, adapter: AdapterSource) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    """Both networks on the meta device.

    The biases exist in every variant: where the file has none they are zero, and stage 2 may train them.

    Raises:
        UserError: If the tokenizer in LLaMA's folder does not fit its table.
    """
    shape = adapter.shape
    config = AdapterLlamaConfig(
        adapter_len=shape.prompts,
        adapter_layers=shape.layers,
        adapter_bias=True,
        lora_rank=shape.lora_rank,
        lora_from=shape.lora_from,
        added_from=first_added(source.folder, source.settings["vocab_size"]),
        **source.settings,
    )
    llama = on_meta(lambda: AdapterLlamaForCausalLM(config))
    return llama, on_meta(lambda: shape.visual_query(config.hidden_size))


def own_llama(adapter: AdapterSource) -> LlamaSource:
    """The LLaMA of an adapter, as far as the adapter's tensors show it: to check names and shapes against."""
    from transformers import LlamaConfig, LlamaForCausalLM

    gates = [tensor for name, tensor in adapter.state.items() if name.endswith("attention.gate")]
    heads = gates[0].numel() if gates else 1
    inner = adapter.state.get("llama.layers.0.feed_forward.w1.bias")
    query = adapter.state.get("llama.layers.0.attention.wq.bias")
    head_dim = (adapter.width if query is None else len(query)) // heads
    keys = next((value for name, value in adapter.state.items() if name.endswith("attention.lora_wk_l2.weight")), None)
    settings = {
        "vocab_size": 3,  # the least that has its start and its end
        "hidden_size": adapter.width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if keys is None else len(keys) // head_dim,
        "head_dim": head_dim,
        "num_hidden_layers": len(gates) or adapter.shape.layers,
        "intermediate_size": 1 if inner is None else len(inner),
    }
    network = on_meta(lambda: LlamaForCausalLM(LlamaConfig(**settings, pad_token_id=None)))
    return LlamaSource(settings, network.state_dict(), [], "transformers", Path("its own LLaMA"))


def reports(
    llama: AdapterLlamaForCausalLM,
    visual_query: VisualQueryEncoder,
    source: LlamaSource,
    adapter: AdapterSource,
    where: str,
) -> tuple[KeyReport, KeyReport, dict[str, Tensor]]:
    """What becomes of the names of a LLaMA and of an adapter.

    Args:
        llama: Language model of `skeletons`.
        visual_query: Encoder of visual queries of `skeletons`.
        source: LLaMA.
        adapter: The adapter.
        where: Name of the adapter in messages.

    Returns:
        The report of LLaMA's tensors, that of the adapter's, and the adapter's tensors by our names.

    Raises:
        UserError: If the adapter was trained for another language model.
    """
    config = llama.config
    if adapter.width != config.hidden_size or adapter.shape.layers > config.num_hidden_layers:
        raise UserError(
            f"{where} does not fit the language model in {source.folder}: it was trained for width {adapter.width} and "
            f"at least {adapter.shape.layers} layers, and this one has width {config.hidden_size} and "
            f"{config.num_hidden_layers} layers. Released adapters are for LLaMA 7B (width 4096, 32 layers)"
        )
    try:
        ours = from_official(
            adapter.state, config.num_attention_heads, config.num_hidden_layers, config.num_key_value_heads
        )
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]}; expected are those of BIAS-7B and its like") from None
    wanted = adapter_parameter_names(llama, visual_query)
    base = {f"llama.{name}" for name in source.state}
    names = {f"llama.{name}" for name in llama.state_dict()}
    optional = {name for name in wanted if name.rsplit(".", 1)[-1] in _STARTS and name.startswith("llama.")} | base
    optional -= _gaps(optional - base, ours.keys())
    added = {name for name in names if name.endswith(".extra")}
    shapes = {f"llama.{name}": tensor for name, tensor in llama.state_dict().items()}
    shapes |= {f"visual_query.{name}": tensor for name, tensor in visual_query.state_dict().items()}
    report = KeyReport(
        used=sorted(set(ours) & wanted),
        missing=sorted(wanted - set(ours) - optional),
        unexpected=sorted(set(ours) - wanted),
        ignored=adapter.ignored,
        misshapen=compare(ours, {name: shapes[name] for name in ours if name in shapes}).misshapen,
    )
    plain = KeyReport(
        used=sorted(source.state.keys() & {name.removeprefix("llama.") for name in names}),
        missing=sorted(name.removeprefix("llama.") for name in names - base - added - wanted),
        unexpected=sorted(name.removeprefix("llama.") for name in base - names),
        ignored=source.ignored,
    )
    norms = [f"llama.{name}" for name in llama.state_dict() if name.endswith("norm.weight")]
    plain.missing += sorted(name.removeprefix("llama.") for name in norms if name not in base | ours.keys())
    return plain, report, ours


def _gaps(names: Set[str], given: Set[str]) -> set[str]:
    """Names that are missing although the same tensor of another layer is given: such a file is not whole."""
    of_kind = {name: re.sub(r"\.layers\.\d+\.", ".layers.*.", name) for name in names}
    there = {kind for name, kind in of_kind.items() if name in given}
    return {name for name, kind in of_kind.items() if kind in there and name not in given}


def assemble(
    source: LlamaSource,
    adapter: AdapterSource,
    where: str,
    frozen_dtype: torch.dtype,
    allow_foreign: bool = False,
) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    """Builds the language model with its adapter.

    Args:
        source: LLaMA; its tensors are given up on the way.
        adapter: The adapter.
        where: Name of the adapter in messages.
        frozen_dtype: Precision of LLaMA itself, which stays mapped to its file; the adapter's weights are fp32.
        allow_foreign: Whether an adapter of another language model of the same sizes is accepted, with a warning.

    Raises:
        UserError: If the two do not fit, or a tensor is missing or too much.
    """
    llama, visual_query = skeletons(source, adapter)
    plain, report, ours = reports(llama, visual_query, source, adapter, where)
    require(plain, f"backbone.language_model={str(source.folder)!r}", "Is it a whole LLaMA, and nothing else?")
    require(report, f"{where} does not fit the language model in {source.folder}", "Is it the adapter of this LLaMA?")
    refuse_foreign(source, adapter, where, allow_foreign)
    language, vision = (
        {name.removeprefix(part): value for name, value in ours.items() if name.startswith(part)}
        for part in ("llama.", "visual_query.")
    )
    for name, parameter in llama.named_parameters():
        if name not in language and name not in source.state:
            language[name] = torch.full(parameter.shape, _STARTS[name.rsplit(".", 1)[-1]])
        elif name in source.state and name.endswith("norm.weight"):
            language.setdefault(name, source.state[name])  # a norm may be trained, whichever file it comes from
    state = {name: value.to(torch.float32, copy=True) for name, value in language.items()}
    if llama.config.tie_word_embeddings:
        source.state.pop("lm_head.weight")  # the table itself: it is not to be converted twice
    for name in list(source.state):
        value = source.state.pop(name)
        state.setdefault(name, mapped(value, frozen_dtype))
    if llama.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    fill(llama, state, where)
    llama.tie_tables()
    llama.init_extra_tokens()
    fill(visual_query, vision, where, torch.float32, copy=True)
    return llama, visual_query
