"""Takes stock of weights of any kind: facts about them, the use of each of their names, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from m2chat.commands.weights.kinds import Kind, kind_of
from m2chat.errors import UserError
from m2chat.integrity import not_verified
from m2chat.models.weights.files import load_json, read_folder, read_pickled, read_safetensors, weight_files
from m2chat.models.weights.loading import KeyReport, compare, on_meta
from m2chat.vocabulary import first_added, open_vocabulary, tokenizer_file


@dataclass
class Inventory:
    """Contents of a file or folder of weights.

    Args:
        kind: Kind of the weights.
        facts: Names and values to print.
        reports: Use of the names of each part.
        files: The files that hold the weights.
        warnings: Oddities that are no faults.
        foreign: Why an adapter was not made for the language model that it is held against; empty if it was.
    """

    kind: Kind
    facts: dict[str, str] = field(default_factory=dict)
    reports: dict[str, KeyReport] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    foreign: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, too much or of another shape, and an adapter is this language model's."""
        return not self.foreign and not any(r.missing or r.unexpected or r.misshapen for r in self.reports.values())


def examine(path: Path, language_model: Path | None = None, visual_heads: int | None = None) -> Inventory:
    """Takes stock of files as they are: checksums are compared by `m2chat.models.weights.known.verify_file`.

    Args:
        path: A file or a folder.
        language_model: The LLaMA that an adapter is meant for.
        visual_heads: Heads of an adapter's visual blocks, if its file does not state them.

    Raises:
        UserError: If it cannot be read, or is nothing that is known here.
    """
    with not_verified():
        kind = kind_of(path)
        if kind is Kind.ADAPTER:
            return _adapter(path, language_model, visual_heads)
        return {
            Kind.LLAMA: _llama,
            Kind.GGUF: _gguf,
            Kind.CLIP: _clip,
            Kind.DIFFUSION: _diffusion,
            Kind.UNET: _unet,
            Kind.LORA: _lora,
            Kind.CHECKPOINT: _checkpoint,
            Kind.EXPORTED: _exported,
        }[kind](path, language_model)


def numbers(tensors: Iterable[Tensor]) -> str:
    """How many numbers tensors hold, and in which precision."""
    tensors = list(tensors)
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return f"{sum(tensor.numel() for tensor in tensors):,} ({', '.join(kinds)}) in {len(tensors):,} tensors"


def _llama(path: Path, _: Path | None) -> Inventory:
    from transformers import LlamaConfig, LlamaForCausalLM

    from m2chat.models.weights.llama import open_llama

    source = open_llama(path, "weights")
    network = on_meta(lambda: LlamaForCausalLM(LlamaConfig(**source.settings)))
    settings = source.settings
    facts = {
        "form": "Meta's folder" if source.form == "meta" else "transformers folder",
        "numbers": numbers(source.state.values()),
        "width, layers, heads": ", ".join(
            str(settings[name]) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        ),
        "vocabulary": str(settings["vocab_size"]),
    }
    files = (
        weight_files(source.folder, "weights")
        if source.form == "transformers"
        else [source.folder / "consolidated.00.pth"]
    )
    findings = Inventory(
        Kind.LLAMA, facts, {"LLaMA": compare(source.state, network.state_dict(), source.ignored)}, files
    )
    tokenizer, vocabulary = tokenizer_file(source.folder), open_vocabulary(source.folder)
    if tokenizer is None or vocabulary is None:
        findings.warnings.append(
            "there is neither tokenizer.model nor tokenizer.json: training and chat need one in the folder"
        )
        return findings
    files.append(tokenizer)
    facts["tokenizer"] = f"{vocabulary.size} words in {tokenizer.name}"
    try:
        facts["added tokens begin at"] = str(first_added(source.folder, settings["vocab_size"]))
    except UserError as error:
        findings.warnings.append(str(error))
    return findings


def _gguf(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.gguf import read_metadata

    metadata, reader = read_metadata(path, "weights")
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    names = ("embedding_length", "block_count", "attention.head_count")
    facts = {
        "name": str(metadata.get("general.name", "not recorded")),
        "licence": str(metadata.get("general.license", "not recorded")),
        "numbers": f"{count:,} ({', '.join(kinds)}) in {len(reader.tensors)} tensors",
        "width, layers, heads": ", ".join(str(metadata[f"llama.{name}"]) for name in names),
        "vocabulary": str(len(metadata["tokenizer.ggml.tokens"])),
        "chat template": "yes" if "tokenizer.chat_template" in metadata else "no",
    }
    findings = Inventory(Kind.GGUF, facts, {}, [path])
    findings.warnings.append("`m2chat weights convert` makes the folder of it that training and chat read")
    return findings


def _adapter(path: Path, language_model: Path | None, visual_heads: int | None) -> Inventory:
    from m2chat.models.weights.adapter import open_adapter
    from m2chat.models.weights.foreign import why_foreign
    from m2chat.models.weights.language import own_llama, reports, skeletons
    from m2chat.models.weights.llama import open_llama

    adapter = open_adapter(path, "weights", visual_heads)
    source = open_llama(language_model, "--with") if language_model else own_llama(adapter)
    plain, report, _ = reports(*skeletons(source, adapter), source, adapter, str(path))
    shape = adapter.shape
    facts = {
        "variant": adapter.variant + (", in a full training checkpoint" if adapter.is_training_checkpoint else ""),
        "numbers": numbers(adapter.state.values()),
        "prompts": f"{shape.prompts} in each of the last {shape.layers} layers",
        "language model": f"{adapter.width} wide",
        "visual query": f"{shape.visual_depth} blocks {shape.visual_width} wide, {shape.visual_heads} heads",
        "vision encoder": f"tokens {shape.clip_width} wide",
        "LoRA rank": f"{shape.lora_rank}, from layer {shape.lora_from} on" if shape.lora_rank else "none",
        "made for": f"language model {adapter.base.fingerprint}" if adapter.base else "not marked",
        "channel order": adapter.channel_order or "not marked (released files: bgr)",
    }
    findings = Inventory(Kind.ADAPTER, facts, {"adapter": report}, [path])
    if language_model:
        findings.reports["LLaMA"] = plain
        if findings.whole:
            findings.foreign = why_foreign(source, adapter) or ""
    return findings


def _clip(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.clip import open_clip_tower, tower_skeleton

    source = open_clip_tower(str(path), "weights")
    vision: Mapping[str, Any] = source.settings["vision_cfg"]
    facts = {
        "numbers": numbers(source.state.values()),
        "picture, patch": f"{vision.get('image_size', 224)}, {vision.get('patch_size', 16)} pixels",
        "width, layers, tokens' width": f"{vision['width']}, {vision['layers']}, {source.settings['embed_dim']}",
        "activation": "QuickGELU" if source.settings.get("quick_gelu") else "GELU",
    }
    report = compare(source.state, tower_skeleton(source).state_dict(), source.ignored)
    return Inventory(
        Kind.CLIP, facts, {"vision tower": report}, [path] if path.is_file() else weight_files(path, "weights")
    )


def _diffusion(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.diffusion import open_diffusion, part_report

    source = open_diffusion(path, "weights")
    second, first = "text_encoder_2" in source.states, "text_encoder" in source.states
    facts = {
        "form": "single file" if path.is_file() else "diffusers folder",
        "model": ("SDXL" if first else "SDXL refiner") if second else "SD 1.5",
        "predicts": str(source.configs["scheduler"].get("prediction_type")),
    }
    facts |= {name: numbers(state.values()) for name, state in source.states.items()}
    findings = Inventory(Kind.DIFFUSION, facts, {name: part_report(name, source) for name in source.states})
    if path.is_file():
        findings.reports["file"] = source.report
    findings.files = [path] if path.is_file() else [f for n in source.states for f in weight_files(path / n, "weights")]
    return findings


def _unet(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.diffusion import skeleton

    config, state = load_json(path / "config.json", "weights"), read_folder(path, "weights")
    names = ("in_channels", "cross_attention_dim", "block_out_channels")
    facts = {"numbers": numbers(state.values()), **{name: str(config.get(name)) for name in names}}
    report = compare(state, skeleton("unet", config).state_dict())
    facts["draws"] = "in a decoder: --decoder, or backbone.decoder.unet"
    return Inventory(Kind.UNET, facts, {"UNet": report}, weight_files(path, "weights"))


def _lora(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.decoder_parts import require_finite
    from m2chat.models.weights.loras import lora_file

    file = lora_file(path) or path
    state = read_safetensors(file, "weights")
    require_finite(state, str(file))
    matrices = {
        name: value
        for name, value in state.items()
        if value.ndim > 1 and re.search(r"lora[_.](A|down)|_lora\.down", name)
    }
    ups = {_partner(name): name for name in state if re.search(r"lora[_.](B|up)|_lora\.up", name)}
    text = [name for name in state if name.startswith(("text_encoder", "lora_te"))]
    facts = {
        "numbers": numbers(state.values()),
        "changes": f"{len(matrices)} layers" + (", of text encoders too (left out here)" if text else ""),
        "ranks": ", ".join(map(str, sorted({value.shape[0] for value in matrices.values()}))) or "none",
    }
    missing = [f"the other matrix of {name}" for name in matrices if name not in ups]
    missing += [f"the other matrix of {name}" for other, name in ups.items() if other not in matrices]
    report = KeyReport(used=sorted(state), missing=missing)
    facts["draws"] = "added to a UNet: --decoder, --lora, or backbone.decoder.lora; its fit is seen when it is loaded"
    return Inventory(Kind.LORA, facts, {"LoRA": report}, [file])


def _partner(name: str) -> str:
    """Name of the matrix that belongs to an outer one of a LoRA."""
    return re.sub(r"(lora[_.])B", r"\1A", name).replace("lora_up", "lora_down").replace("lora.up", "lora.down")


def _checkpoint(path: Path, _: Path | None) -> Inventory:
    payload = read_pickled(path, "weights")
    header, state = payload["m2chat"], payload["state_dict"]
    facts = {
        "stage": str(header["stage"]),
        "step": str(payload.get("global_step", "not recorded")),
        "backbones' fingerprint": str(header["fingerprint"]),
        "numbers": numbers(state.values()),
        "trained on": ", ".join(payload.get("tasks", [])) or "not recorded",
    }
    return Inventory(Kind.CHECKPOINT, facts, {"trained": KeyReport(used=sorted(state))}, [path])


def _exported(path: Path, _: Path | None) -> Inventory:
    from m2chat.models.weights.exported import MANIFEST, TENSORS, read_exported

    manifest, state = read_exported(path, verify=False)
    facts = {
        "stage": manifest.stage,
        "step": "not recorded" if manifest.step is None else str(manifest.step),
        "backbones' fingerprint": manifest.fingerprint,
        "numbers": numbers(state.values()),
        "trained on": ", ".join(manifest.tasks) or "not recorded",
    }
    findings = Inventory(
        Kind.EXPORTED, facts, {"trained": KeyReport(used=sorted(state))}, [path / TENSORS, path / MANIFEST]
    )
    if manifest.numbers != (held := sum(tensor.numel() for tensor in state.values())):
        findings.reports["trained"].missing.append(f"{manifest.numbers - held:,} of {manifest.numbers:,} numbers")
    return findings
