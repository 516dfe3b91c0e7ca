"""Which parameters each stage trains: chosen by module, never by a search in names."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.reading import ReadingModel

Stage = Literal["align", "m3ft"]
"""Training stages of M³FT."""
AnyStage = Literal["describe", "align", "m3ft"]
"""These, and stage 0 before them."""


def trainable_names(model: M2ChatModel, stage: Stage) -> set[str]:
    """Names of the parameters that a stage trains.

    Stage ``align`` (Eq. 6): the M³Adapter without image branch and gate. Stage ``m3ft`` (Eq. 7): the whole
    M³Adapter, exactly the tensors of a LLaMA-Adapter file, and the rows of the two added tokens. A gate that its
    mode does not use stays frozen in both.

    Raises:
        ValueError: If the stage is neither of the two.
    """
    if stage not in ("align", "m3ft"):
        raise ValueError(f"unknown stage {stage!r}: choose align or m3ft")
    adapter = model.m3adapter
    idle = {id(p) for p in adapter.gate.parameters()} if adapter.config.gate.mode != "learnable" else set()
    if stage == "align" or adapter.config.gate.mode == "off":
        idle |= {id(p) for module in adapter.image_branch() for p in module.parameters()}
    names = {f"m3adapter.{name}" for name, parameter in adapter.named_parameters() if id(parameter) not in idle}
    if stage == "m3ft":
        names |= adapter_parameter_names(model.llama, model.visual_query)
        names |= {"llama.model.embed_tokens.extra", "llama.lm_head.extra"}
    return names


def adapter_names(model: ReadingModel, biases: bool = True) -> set[str]:
    """Names of the parameters that stage 0 trains: exactly the tensors of a LLaMA-Adapter file.

    Args:
        model: Model.
        biases: Whether the file has biases and norms, as BIAS-7B; CAPTION-7B has none.
    """
    names = adapter_parameter_names(model.llama, model.visual_query)
    if biases:
        return names
    return {
        name for name in names if name.startswith("visual_query.") or not name.endswith(("_proj.bias", "norm.weight"))
    }


def freeze_first_layers(model: Any, count: int) -> None:
    """Lets nothing go back through a model's first language model layers; a model without these has none."""
    for layer in model.llama.model.layers[:count] if count else ():
        layer.is_frozen = True


def set_trainable(model: nn.Module, names: set[str]) -> None:
    """Freezes everything but the parameters of these names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
