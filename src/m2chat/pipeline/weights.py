"""Trained weights from and to files: the one place that knows how they are kept.

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
from m2chat.models.build import build_m2chat, fingerprint, part_fingerprints
from m2chat.models.checkpoints import HEADER, load_trained, read_checkpoint
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import Stage, trainable_names
from m2chat.models.weights.exported import check_backbones, export_model, is_exported, read_manifest
from m2chat.models.weights.exported import load_weights as load_exported
from m2chat.pipeline.describer import released_tensors

MICRO_ADAPTER = M3AdapterConfig(width=192, heads=6, blocks=2)
MICRO_BACKBONE = BackboneConfig(
    "data/micro/llama", "data/micro/adapter/BIAS-micro.pth", "data/micro/clip", "data/micro/sdxl", num_image_tokens=8
)
"""Numbers of the connector of the shipped weights."""


@dataclass(frozen=True)
class Origin:
    """Where a model's trained weights come from and what they are.

    Args:
        path: The file.
        stage: That trained them.
        backbone: The networks beneath.
        m3adapter: Numbers of the connector.
        fingerprint: Of the backbones.
        tasks: Kinds of samples that they were trained on.
        released: Tensors of the language model from before, to describe pictures with.
    """

    path: str
    stage: Stage
    backbone: BackboneConfig
    m3adapter: M3AdapterConfig
    fingerprint: str
    tasks: tuple[str, ...] = ()
    released: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def micro_root() -> Path:
    """The folder with ``data/micro``: where we are, else the project that this code is part of.

    Raises:
        UserError: If neither has it.
    """
    for root in (Path(), Path(__file__).parents[3]):
        if (root / "data" / "micro" / "manifest.json").is_file():
            return root
    raise UserError(
        "the shipped micro weights are not here: there is no data/micro in this folder, nor beside the installed code. "
        "Go into a clone of the project, or name a checkpoint and its backbone"
    )


def _anchored(config: BackboneConfig) -> BackboneConfig:
    """The micro networks are found from anywhere; every other path is as it is written."""
    own = asdict(config)
    for name, value in own.items():
        if str(value).startswith("data/micro/") and not Path(value).exists():
            own[name] = str(micro_root() / value)
    return BackboneConfig(**own)


def load_weights(
    source: str | Path | None = None, backbone: BackboneConfig | None = None, m3adapter: M3AdapterConfig | None = None
) -> tuple[M2ChatModel, Origin]:
    """Builds the model and fills in trained weights.

    Args:
        source: A checkpoint of a run, whose ``config.yaml`` says on which networks it rests; a folder that
            `save_weights` wrote; or None for the shipped micro weights of stage 2.
        backbone: Instead of what the source says.
        m3adapter: The same.

    Returns:
        The model in fp32 and evaluation mode, and where its weights come from.

    Raises:
        UserError: If the source is missing, broken, or was trained on other backbones.
    """
    path = micro_root() / "data" / "micro" / "m2chat" / "m3ft.ckpt" if source is None else Path(source)
    if path.is_dir():
        return _load_exported(path, backbone, m3adapter)
    said = _run_settings(path)
    payload = read_checkpoint(path)
    stage: Stage = payload[HEADER]["stage"]
    backbone, m3adapter = _anchored(backbone or said[0]), m3adapter or said[1]
    name = fingerprint(backbone)
    model = build_m2chat(backbone, m3adapter)
    before = released_tensors(model) if stage == "m3ft" else {}
    names = {f"model.{name}" for name in trainable_names(model, stage)}
    load_trained(nn.ModuleDict({"model": model}), path, names, stage=None, fingerprint=name)
    model.eval().requires_grad_(False)
    return model, Origin(str(path), stage, backbone, m3adapter, name, tuple(payload.get("tasks", ())), before)


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
    before = released_tensors(model) if stage == "m3ft" else {}
    load_exported(model, folder)
    model.eval().requires_grad_(False)
    return model, Origin(str(folder), stage, backbone, m3adapter, manifest.fingerprint, tuple(manifest.tasks), before)


def save_weights(folder: str | Path, model: M2ChatModel, origin: Origin) -> None:
    """Exports the trained tensors; the frozen networks stay where they are, and are named by their whole paths.

    Args:
        folder: To make; earlier exported weights there give way.
        model: Whose tensors.
        origin: What they are.

    Raises:
        UserError: If something else is in the folder.
    """
    backbone = asdict(origin.backbone)
    for name, value in backbone.items():
        if isinstance(value, str) and Path(value).exists():
            backbone[name] = str(Path(value).resolve())
    export_model(model, origin.stage, BackboneConfig(**backbone), Path(folder), tasks=origin.tasks)


def _settings(config: dict[str, Any]) -> tuple[BackboneConfig, M3AdapterConfig]:
    """The two parts of a configuration that make a model."""
    adapter = dict(config.get("m3adapter") or asdict(MICRO_ADAPTER))
    adapter["gate"] = GateConfig(**(adapter.get("gate") or {}))
    adapter["layers"] = tuple(adapter.get("layers", (-1,)))
    return BackboneConfig(**{**asdict(MICRO_BACKBONE), **(config.get("backbone") or {})}), M3AdapterConfig(**adapter)


def _run_settings(checkpoint: Path) -> tuple[BackboneConfig, M3AdapterConfig]:
    """Those of the run that wrote a checkpoint, from the ``config.yaml`` that lies above it; else the micro ones."""
    for folder in list(checkpoint.resolve().parents)[:2]:
        if (folder / "config.yaml").is_file():
            config = yaml.safe_load((folder / "config.yaml").read_text())
            return _settings((config.get("model") or {}).get("init_args") or {})
    return MICRO_BACKBONE, MICRO_ADAPTER
