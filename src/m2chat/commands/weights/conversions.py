"""One function for each conversion; tensors go from file to file, never twice through memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from m2chat.checksums import write_sums
from m2chat.errors import UserError
from m2chat.files import whole_folder
from m2chat.models.config import NEW, BackboneConfig, M3AdapterConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.weights.exported import Manifest, export_weights
from m2chat.models.weights.known import verify_file
from m2chat.pipeline.run_settings import run_settings
from m2chat.pipeline.weights import m3adapter_of

_SHARD = "5GB"


def require_new(target: Path) -> None:
    """Refuses a target that holds something.

    Raises:
        UserError: If it is a file, or a folder that is not empty.
    """
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a new one, or remove it first")


def llama(source: Path, target: Path) -> None:
    """Any LLaMA to a transformers folder with safetensors, in the precision that it has; a GGUF file's is fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from m2chat.models.mapped import lift
    from m2chat.models.weights.gguf import is_gguf, open_gguf, save_tokenizer
    from m2chat.models.weights.llama import open_llama
    from m2chat.models.weights.loading import fill, on_meta
    from m2chat.tokenizer_settings import DESCRIPTIONS
    from m2chat.vocabulary import tokenizer_file

    packed = is_gguf(source)
    opened = open_gguf(source, "weights") if packed else open_llama(source, "weights")
    dtype = next(iter(opened.state.values())).dtype
    network = on_meta(lambda: LlamaForCausalLM(LlamaConfig(**opened.settings, dtype=dtype)))
    lift(fill(network, opened.state, str(source)))  # to be written, rows in another order need memory
    network.tie_weights()
    with whole_folder(target) as part:
        network.save_pretrained(part, max_shard_size=_SHARD)
        if packed:
            save_tokenizer(source, part, "weights")
        elif tokenizer := tokenizer_file(opened.folder):
            beside = [tokenizer.parent / name for name in (*DESCRIPTIONS, "tokenizer.json")]
            for path in (tokenizer, *(path for path in beside if path.is_file() and path.name != "config.json")):
                shutil.copy(path, part / path.name)
        write_sums(part)


def adapter(
    source: Path,
    target: Path,
    channel_order: Literal["rgb", "bgr"] | None,
    language_model: Path | None = None,
    visual_heads: int | None = None,
) -> str:
    """An adapter file or training checkpoint to safetensors, marked with the channel order of its pictures.

    Args:
        source: The adapter.
        target: File to write.
        channel_order: Channel order of the pictures; None takes that of the file's mark.
        language_model: Language model for which it was made, to be named in the new file; None keeps the file's mark.
        visual_heads: Heads of its visual blocks; None if the file states them, or is a published one.

    Returns:
        The channel order.

    Raises:
        UserError: If the order is neither given nor marked, and the file is none of the released ones; or the adapter
            was not made for the language model.
    """
    from m2chat.models.weights.adapter import open_adapter, write_adapter
    from m2chat.models.weights.base import BaseMark
    from m2chat.models.weights.foreign import refuse_foreign
    from m2chat.models.weights.language import reports, skeletons
    from m2chat.models.weights.llama import open_llama
    from m2chat.models.weights.loading import require

    if target.suffix != ".safetensors":
        raise UserError(f"{target}: an adapter becomes one file; let its name end in .safetensors")
    opened = open_adapter(source, "weights", visual_heads)
    base = opened.base
    if language_model is not None:
        llama_source = open_llama(language_model, "--with")
        _, report, _ = reports(*skeletons(llama_source, opened), llama_source, opened, str(source))
        require(report, f"{source} does not fit {language_model}", "Is it the adapter of this LLaMA?")
        refuse_foreign(llama_source, opened, str(source), allowed=False)
        base = BaseMark.of(llama_source)
    released: Literal["bgr"] | None = (
        "bgr" if verify_file(source).reason.startswith("is the published LLaMA-Adapter") else None
    )
    order: Literal["rgb", "bgr"] | None = channel_order or opened.channel_order or released
    if order is None:
        raise UserError(
            f"{source} is none of the released files, and says nothing of the pictures it was trained on: add "
            "--channel-order bgr if LLaMA-Adapter's own code trained it (OpenCV's order), else --channel-order rgb"
        )
    write_adapter(target, opened.state, base, order, opened.shape.visual_heads)
    return order


def sdxl(source: Path, target: Path) -> None:
    """SDXL (base or refiner) in one file to a diffusers folder with tokenizers."""
    from diffusers import __version__

    from m2chat.models.weights.diffusion import load_diffusion
    from m2chat.text.clip_tokenizers import openai_tokenizers

    parts = load_diffusion(source, "weights", dtype=None)
    first, second = openai_tokenizers()
    refiner = parts.text_encoder is None
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline" if refiner else "StableDiffusionXLPipeline",
        "_diffusers_version": __version__,
        "force_zeros_for_empty_prompt": not refiner,
        **({"requires_aesthetics_score": True} if refiner else {}),
    }
    saved = {
        "unet": parts.unet,
        "vae": parts.vae,
        "scheduler": parts.scheduler,
        "text_encoder": parts.text_encoder,
        "text_encoder_2": parts.text_encoder_2,
        "tokenizer": None if refiner else first,
        "tokenizer_2": second,
    }
    with whole_folder(target) as part:
        for name, network in saved.items():
            if network is not None:
                network.save_pretrained(part / name)
            library = "transformers" if name.startswith(("text", "tok")) else "diffusers"
            index[name] = [None, None] if network is None else [library, type(network).__name__]
        (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_sums(part)


def checkpoint(source: Path, target: Path, config: Path | None) -> Manifest:
    """A training checkpoint to M²Chat's weights, in the precision that it has, without optimiser and loops.

    Raises:
        UserError: If the run's configuration is not known, or names other backbones than the checkpoint's.
    """
    from m2chat.models.checkpoints import HEADER, check_header, read_checkpoint

    payload = read_checkpoint(source)
    backbone, m3adapter, layout = _configuration(source, payload, config)
    parts = dict(payload[HEADER].get("fingerprints") or {})
    files = ("language_model", *(() if backbone.adapter == NEW else ("adapter",)), "image_decoder")
    if all(Path(getattr(backbone, name)).exists() for name in files):
        prints = Fingerprints(backbone)
        check_header(payload, str(source), None, prints)
        parts = prints.components
    manifest = Manifest(
        stage=payload[HEADER]["stage"],
        step=payload.get("global_step"),
        fingerprint=payload[HEADER]["fingerprint"],
        fingerprints=parts,
        backbone=backbone,
        m3adapter=m3adapter,
        tasks=list(payload.get("tasks", [])),
        layout=layout,
    )
    state = {name.removeprefix("model."): tensor for name, tensor in payload["state_dict"].items()}
    return export_weights(state, manifest, target)


def described(source: Path, target: Path) -> None:
    """A checkpoint of stage 0 to the adapter file that the run writes at its end.

    Raises:
        UserError: If the checkpoint was trained on other backbones than lie there now.
    """
    from m2chat.models.checkpoints import check_header, read_checkpoint
    from m2chat.models.weights.new_adapter import save_adapter

    payload = read_checkpoint(source)
    backbone = BackboneConfig(**payload["config"]["backbone"])
    check_header(payload, str(source), None, Fingerprints(backbone, draws=False))
    tensors = {name.removeprefix("model."): tensor for name, tensor in payload["state_dict"].items()}
    save_adapter(target, tensors, backbone)


def _configuration(
    source: Path, payload: dict[str, Any], config: Path | None
) -> tuple[BackboneConfig, M3AdapterConfig, dict[str, Any]]:
    """Backbones, connector and text layout of the run that wrote a checkpoint.

    They are read from `config`, else from the checkpoint, else from the run's ``config.yaml`` beside it.

    Raises:
        UserError: If none of them has the configuration, or it has settings that are not known here.
    """
    settings = None if config is not None and not config.is_file() else run_settings(source, payload, config)
    if settings is None:
        raise UserError(
            f"{source} does not hold its configuration, and there is no {config or 'config.yaml beside it'}: add "
            "--config with the config.yaml of the run, or with the file that was trained with, such as "
            "configs/stage1.yaml"
        )
    try:
        backbone = BackboneConfig(**(settings.get("backbone") or {}))
        m3adapter = m3adapter_of(settings.get("m3adapter") or {})
    except TypeError as error:
        where = config or source
        raise UserError(f"{where} has settings that this version does not know, or lacks some: {error}") from error
    layout = dict(settings.get("layout") or {})
    return backbone, m3adapter, layout and {"num_image_tokens": backbone.num_image_tokens, **layout}
