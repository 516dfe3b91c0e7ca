"""Trained weights from and to files.

`M2ChatPipeline` calls `load_weights` and `save_weights` and nothing else that touches a file of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.integrity import verify_listed
from m2chat.models.build import build_m2chat, fingerprint, part_fingerprints
from m2chat.models.checkpoints import HEADER, load_trained, read_checkpoint
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import Stage, trainable_names
from m2chat.models.weights.exported import check_backbones, export_model, is_exported, read_manifest
from m2chat.models.weights.exported import load_weights as load_exported
from m2chat.pipeline.describer import pretrained_tensors
from m2chat.text.layout import MAX_TOKENS
from m2chat.text.prompts import EARLIER, PromptFormat, resolved

_SHIPPED = Path("data", "micro", "m2chat")
"""Folder of the shipped weights and their configuration."""
_ROOTS = (Path(), Path(__file__).parents[3])
"""Folders that may have ``data/micro``: the current one, and the project that this code is part of."""
_REQUIRED = {
    "backbone": {"language_model", "adapter", "vision_encoder", "image_decoder", "num_image_tokens"},
    "m3adapter": {"width", "heads"},
}
"""Settings without a default."""


@dataclass(frozen=True)
class Origin:
    """Source of a model's trained weights, and what they are.

    Args:
        path: Checkpoint file or exported folder.
        stage: Stage that trained them.
        backbone: Backbones.
        m3adapter: Configuration of the M³Adapter.
        fingerprint: Fingerprint of the backbones.
        tasks: Kinds of samples that they were trained on.
        max_tokens: Maximum length of a sequence in training.
        pretrained: Tensors of the language model before stage 2, with which pictures are described.
        prompt: Format of the prompts in training.
    """

    path: str
    stage: Stage
    backbone: BackboneConfig
    m3adapter: M3AdapterConfig
    fingerprint: str
    tasks: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    pretrained: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    prompt: PromptFormat = EARLIER


def micro_root() -> Path:
    """The folder with ``data/micro``: the current one, else the project that this code is part of.

    Raises:
        UserError: If neither has it.
    """
    for root in _ROOTS:
        if (root / "data" / "micro" / "manifest.json").is_file():
            return root
    raise UserError(
        "the shipped micro weights are not here: there is no data/micro in this folder, nor beside the installed code. "
        "Go into a clone of the project, or name a checkpoint and its backbone"
    )


def _anchored(config: BackboneConfig) -> BackboneConfig:
    """The same backbones with paths of the shipped ones that hold in any folder; other paths are left as they are."""
    paths = asdict(config)
    for name, value in paths.items():
        if str(value).startswith("data/micro/") and not Path(value).exists():
            paths[name] = str(micro_root() / value)
    return BackboneConfig(**paths)


def load_weights(
    source: str | Path | None = None, backbone: BackboneConfig | None = None, m3adapter: M3AdapterConfig | None = None
) -> tuple[M2ChatModel, Origin]:
    """Builds the model and fills in trained weights.

    Args:
        source: Checkpoint of a run, with the run's ``config.yaml`` beside or above it; a folder that `save_weights`
            wrote; or None for the shipped micro weights of stage 2.
        backbone: Backbones; None takes those of the source.
        m3adapter: Configuration of the M³Adapter; None takes that of the source.

    Returns:
        The model in fp32 and evaluation mode, and the source of its weights.

    Raises:
        UserError: If the source is missing, broken, or was trained on other backbones.
    """
    path = micro_root() / _SHIPPED / "m3ft.ckpt" if source is None else Path(source)
    if path.is_dir():
        return _load_exported(path, backbone, m3adapter)
    payload = read_checkpoint(path)
    if payload[HEADER]["stage"] == "describe":
        raise UserError(
            f"{path} is a checkpoint of stage 0, whose result is an adapter file: set backbone.adapter to the "
            "adapter.pth in the folder of its run (or `m2chat weights convert` the checkpoint), and train stages 1 and "
            "2 with it"
        )
    stage: Stage = payload[HEADER]["stage"]
    config = _run_config(path)
    backbone = _anchored(backbone or BackboneConfig(**_settings(config, "backbone")))
    m3adapter = m3adapter or _m3adapter(_settings(config, "m3adapter"))
    layout = (payload.get("config") or {}).get("layout") or config.get("data") or {}
    fingerprint_ = fingerprint(backbone)
    model = build_m2chat(backbone, m3adapter)
    pretrained = pretrained_tensors(model) if stage == "m3ft" else {}
    names = {f"model.{name}" for name in trainable_names(model, stage)}
    load_trained(nn.ModuleDict({"model": model}), path, names, stage=None, fingerprint=fingerprint_)
    model.eval().requires_grad_(False)
    tasks, max_tokens = tuple(payload.get("tasks", ())), layout.get("max_tokens", MAX_TOKENS)
    prompt = layout.get("prompt", EARLIER)
    return model, Origin(str(path), stage, backbone, m3adapter, fingerprint_, tasks, max_tokens, pretrained, prompt)


def _load_exported(
    folder: Path, backbone: BackboneConfig | None, m3adapter: M3AdapterConfig | None
) -> tuple[M2ChatModel, Origin]:
    """The same from exported weights."""
    if not is_exported(folder):
        raise UserError(
            f"{folder} is no folder of weights: it needs manifest.json and model.safetensors, as `save_pretrained` and "
            "`m2chat weights convert` write them; of a training run name the .ckpt file itself"
        )
    manifest = read_manifest(folder)
    backbone, m3adapter = _anchored(backbone or manifest.backbone), m3adapter or manifest.m3adapter
    check_backbones(manifest, part_fingerprints(backbone), folder)  # before gigabytes are read
    model = build_m2chat(backbone, m3adapter)
    stage: Stage = "m3ft" if manifest.stage == "m3ft" else "align"
    pretrained = pretrained_tensors(model) if stage == "m3ft" else {}
    load_exported(model, folder)
    model.eval().requires_grad_(False)
    max_tokens = manifest.layout.get("max_tokens", MAX_TOKENS)
    prompt = manifest.layout.get("prompt", EARLIER)
    tasks = tuple(manifest.tasks)
    origin = Origin(
        str(folder), stage, backbone, m3adapter, manifest.fingerprint, tasks, max_tokens, pretrained, prompt
    )
    return model, origin


def save_weights(folder: str | Path, model: M2ChatModel, origin: Origin) -> None:
    """Exports the trained tensors. The frozen backbones stay where they are; the manifest has their absolute paths.

    Args:
        folder: Folder to make; exported weights that are already there are replaced.
        model: Model with the tensors.
        origin: Source of the weights.

    Raises:
        UserError: If the folder has other contents.
    """
    backbone = asdict(origin.backbone)
    for name, value in backbone.items():
        if isinstance(value, str) and Path(value).exists():
            backbone[name] = str(Path(value).resolve())
    layout = {
        "max_tokens": origin.max_tokens,
        "num_image_tokens": origin.backbone.num_image_tokens,
        "prompt": resolved(origin.prompt, origin.backbone.language_model),
    }
    export_model(model, origin.stage, BackboneConfig(**backbone), Path(folder), tasks=origin.tasks, layout=layout)


def _m3adapter(settings: Mapping[str, Any]) -> M3AdapterConfig:
    """The configuration of the M³Adapter in a run's settings."""
    values = {**settings, "gate": GateConfig(**(settings.get("gate") or {}))}
    return M3AdapterConfig(**{**values, "layers": tuple(values.get("layers", (-1,)))})


def _run_config(checkpoint: Path) -> dict[str, Any]:
    """The ``config.yaml`` of the run that wrote a checkpoint: in its folder or the one above, else the shipped one."""
    for folder in (*list(checkpoint.resolve().parents)[:2], *(root / _SHIPPED for root in _ROOTS)):
        if (folder / "config.yaml").is_file():
            return read_config(folder / "config.yaml")
    return {}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        UserError: If it is one of the shipped files and damaged.
    """
    verify_listed([path])
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a part of the model in a run's configuration.

    Args:
        config: Contents of a ``config.yaml``.
        name: ``backbone`` or ``m3adapter``.

    Raises:
        UserError: If required settings are missing, and the shipped weights, whose settings replace them, as well.
    """
    given = dict(((config.get("model") or {}).get("init_args") or {}).get(name) or {})
    if _REQUIRED[name] <= given.keys():
        return given
    # A hand-written configuration may leave out settings that are those of the micro scale.
    return {**_settings(read_config(micro_root() / _SHIPPED / "config.yaml"), name), **given}
