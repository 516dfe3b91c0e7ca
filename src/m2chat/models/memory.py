"""Making a built model fit: the language model's weights in fewer bits, parts that wait outside, tiles of pictures.

Weights that `build_m2chat` has left in their files go to the device from there, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.mapped import lift, place, put, see_as

MemoryMode = Literal["low", "balanced", "high"]
INT4_GROUPS = (128, 64, 32, 16, 8)
"""Sizes of a group of int4 weights that share a scale; the largest that divides a row is taken."""


@dataclass(frozen=True)
class MemoryOptions:
    """Settings of a mode.

    Args:
        bits: Bits of each weight of the language model's layers: 16, 8 or 4. Everything else stays as it is.
        offload: Whether a part stays on the device only while it works.
        tiling: Whether pictures are decoded in tiles of half their side, whose blended seams differ slightly.
    """

    bits: int
    offload: bool
    tiling: bool


MODES: dict[MemoryMode, MemoryOptions] = {
    "high": MemoryOptions(bits=16, offload=False, tiling=False),
    "balanced": MemoryOptions(bits=8, offload=False, tiling=False),
    "low": MemoryOptions(bits=4, offload=True, tiling=True),
}
"""From the fastest and exact to the smallest."""


def fit_to_memory(
    model: M2ChatModel, mode: MemoryMode, device: torch.device | str, dtype: torch.dtype | None = None
) -> M2ChatModel:
    """Prepares a model for generation within a device's memory; it cannot be trained afterwards.

    Args:
        model: Model as `build_m2chat` returns it, on the CPU.
        mode: ``high``: all of it on the device; ``balanced``: the language model in int8; ``low``: the language
            model in int4, one part on the device at a time, pictures decoded in tiles. All of them decode the
            pictures of a batch one by one. On a CPU ``high`` gives every weight memory in fp32, and ``low`` leaves
            the large ones in their files and quantises nothing: its numbers are exact.
        device: Device of the computation.
        dtype: Precision of the weights; None takes bf16, or fp32 on a CPU, where bf16 is about ten times slower.

    Returns:
        The same model, frozen, in evaluation mode.

    Raises:
        UserError: If the mode is unknown, or needs torchao and that is not installed.
    """
    options, target = options_of(mode, device), torch.device(device)
    model.requires_grad_(False).eval()
    see_as(model, dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16))
    if target.type == "cpu" and mode == "high":
        lift(model)
    if options.bits < 16:
        quantize_language(model, options.bits, target)
    vae = model.decoder.vae
    vae.enable_slicing()
    if options.tiling and hasattr(vae, "quant_conv"):  # AutoencoderTiny needs no tiles
        # diffusers would cut only what is larger than the pictures that the VAE was made for.
        vae.tile_sample_min_size = int(vae.config.sample_size) // 2
        vae.tile_latent_min_size = vae.tile_sample_min_size // model.decoder.vae_factor
        vae.enable_tiling()
    if options.offload:
        place(model.m3adapter, target)
        Offload(offload_parts(model), target)
    else:
        place(model, target)
    return model


def options_of(mode: str, device: torch.device | str) -> MemoryOptions:
    """What a mode does on a device; nothing has to be loaded to refuse it.

    Args:
        mode: ``high``, ``balanced`` or ``low``.
        device: Device of the computation.

    Raises:
        UserError: If the mode is unknown, or needs torchao and that is not installed.
    """
    if mode not in MODES:
        raise UserError(f"--memory {mode}: choose one of {', '.join(MODES)}")
    on_cpu = torch.device(device).type == "cpu"
    if mode == "low" and on_cpu:  # nothing is smaller than what stays in its file
        return MemoryOptions(bits=16, offload=False, tiling=True)
    if MODES[mode].bits < 16:
        _quantizer(on_cpu)
    return MODES[mode]


def _quantizer(on_cpu: bool) -> Any:
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        instead = "low, which needs none of it on a CPU, or high" if on_cpu else "high"
        raise UserError(
            "this memory mode stores the language model in fewer bits with torchao, which is not installed: "
            f"pip install 'm2chat[memory]', or choose --memory {instead}"
        ) from error
    return quantize_


def lower_parameters(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Changes the precision of parameters in place.

    Buffers stay: LLaMA's table of rotations, which `Module.to` would lower too, must be exact to within a position.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def quantized_linears(model: M2ChatModel) -> dict[str, nn.Linear]:
    """The maps that a mode may store in fewer bits, by name: those of the language model's layers, not its tables."""
    layers = model.llama.model.layers
    return {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear)}


def int4_group(width: int) -> int:
    """How many weights of a row that is so wide share a scale; 0 if none of the sizes divides it."""
    return next((size for size in INT4_GROUPS if width % size == 0), 0)


def quantize_language(model: M2ChatModel, bits: int, device: torch.device) -> None:
    """Stores the weights of the language model's layers in 8 or 4 bits (torchao, weights only), layer by layer.

    Args:
        model: Model, changed in place.
        bits: 8 or 4. torchao packs int4 for CUDA only: on a CPU the numbers are those of int4, in a byte each.
        device: Device on which the layers are quantised, one at a time, so that it never holds more than one of them
            whole.

    Raises:
        UserError: If torchao is not installed.
    """
    quantize_ = _quantizer(device.type == "cpu")
    for layer in model.llama.model.layers:
        place(layer, device)
        lift(layer)
        for group in (0,) if bits == 8 else INT4_GROUPS:

            def chosen(module: nn.Module, _: str, group: int = group) -> bool:
                return isinstance(module, nn.Linear) and (not group or int4_group(module.in_features) == group)

            quantize_(layer, _quantization(bits, group, device), filter_fn=chosen)


def _quantization(bits: int, group: int, device: torch.device) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if bits == 8:
        return Int8WeightOnlyConfig()
    if device.type == "cuda" and group >= 32:
        return Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d")
    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))  # type: ignore[attr-defined]


OffloadGroup = tuple[list[nn.Module], list[nn.Module]]
"""Modules that move together, and those among them whose call means that the part is needed."""


def offload_parts(model: M2ChatModel) -> dict[str, OffloadGroup]:
    """The parts that take turns on the device. The M³Adapter is none of them: it is small, and stays."""
    decoder = model.decoder
    parts: dict[str, OffloadGroup] = {
        "vision": ([model.clip, model.visual_query], [model.clip, model.visual_query]),
        # `M2ChatModel.read` calls the inner model, decoding the whole one.
        "language": ([model.llama], [model.llama, model.llama.model, model.llama.lm_head]),
        "unet": ([decoder.unet], [decoder.unet]),
        # The VAE itself is never called, only its two directions.
        "vae": ([decoder.vae], [m for m in decoder.vae.children() if isinstance(m, nn.Module)]),
        "text": ([decoder.text_encoder], [decoder.text_encoder]),
    }
    if decoder.refiner is not None:
        parts["refiner"] = ([decoder.refiner.unet], [decoder.refiner.unet])
    if decoder.preview_vae is not None:
        parts["preview"] = ([decoder.preview_vae], list(decoder.preview_vae.children()))
    if decoder.text_encoder_2 is not None:
        both = [decoder.text_encoder, decoder.text_encoder_2]
        parts["text"] = (both, both)
    return parts


class Offload:
    """Lets parts take turns on a device: a part that is called is copied there, and the copy of the one before dropped.

    The CPU keeps what it has of every part, in memory or in a file; only parameters that were replaced on the device,
    as the descriptions of pictures do for a while, are copied back.

    Args:
        parts: Parts by name, as `offload_parts` returns them.
        device: Device on which they compute.
    """

    def __init__(self, parts: Mapping[str, OffloadGroup], device: torch.device) -> None:
        self.device = device
        self.resident: str | None = None
        self._parts = {name: modules for name, (modules, _) in parts.items()}
        self._waiting: list[tuple[nn.Module, str, nn.Parameter, Tensor, Tensor]] = []
        for name, (modules, entries) in parts.items():
            for module in modules:
                place(module, "cpu")
            for entry in entries:
                entry.register_forward_pre_hook(lambda *_, name=name: self.bring(name))

    def bring(self, name: str) -> None:
        """Makes a part the one on the device."""
        if name == self.resident:
            return
        self._drop()
        self.resident = name
        if self.device.type == "cpu":
            return
        places = [(part, key) for module in self._parts[name] for part in module.modules() for key in part._parameters]
        copies: dict[int, nn.Parameter] = {}
        for part, key in places:
            if (parameter := part._parameters[key]) is None or parameter.device == self.device:
                continue
            host = parameter.data
            if id(parameter) not in copies:
                copy = host.to(self.device)
                copies[id(parameter)] = parameter if put(parameter, copy) else nn.Parameter(copy, requires_grad=False)
            part._parameters[key] = copies[id(parameter)]
            self._waiting.append((part, key, parameter, host, copies[id(parameter)].data))
        for module in self._parts[name]:
            for part in module.modules():
                for key, buffer in part._buffers.items():
                    part._buffers[key] = None if buffer is None else buffer.to(self.device)

    def _drop(self) -> None:
        """Gives the parameters of the resident part back what the CPU has of them."""
        for part, key, parameter, host, copy in self._waiting:
            if part._parameters[key] is not parameter:
                part._parameters[key] = parameter
            else:
                same = parameter.data.data_ptr() == copy.data_ptr()
                parameter.data = host if same else parameter.data.to("cpu")
        self._waiting.clear()
