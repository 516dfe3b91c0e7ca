"""M²Chat's weights as a folder: the tensors that a stage trained.

``model.safetensors`` holds the tensors, ``manifest.json`` describes them and the backbones of their training,
``m2chat.sha256`` has the checksums of both, ``README.md`` is the model card. The backbones are not in it: they have
their own files and licences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.checksums import sha256, write_sums
from m2chat.errors import UserError
from m2chat.files import whole_folder
from m2chat.integrity import not_verified
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig
from m2chat.models.fingerprints import Fingerprints, mismatch
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import Stage, trainable_names
from m2chat.models.weights.card import model_card
from m2chat.models.weights.files import load_json, read_safetensors
from m2chat.models.weights.loading import compare, require

FORMAT = 1
"""Version of the layout; a reader refuses higher ones."""
TENSORS, MANIFEST, CARD = "model.safetensors", "manifest.json", "README.md"


@dataclass
class Manifest:
    """Description of exported weights.

    Args:
        stage: ``align`` or ``m3ft``.
        step: Optimiser steps behind the weights; None if it is not known.
        fingerprint: Fingerprint of all backbones together, as in checkpoints.
        fingerprints: Fingerprint of each component of the backbones; in older exports, of each setting's files.
        backbone: Paths of the backbones at export; a reader replaces those that differ.
        m3adapter: Sizes and gate of the connector.
        tasks: Kinds of samples that were trained on.
        sha256: Checksum of ``model.safetensors``.
        numbers: Count of the numbers in it.
        format: Version of the layout.
        layout: ``max_tokens``, ``num_image_tokens`` and ``prompt`` (format of the prompts) of the training; older
            exports lack the last or all.
    """

    stage: str
    step: int | None
    fingerprint: str
    backbone: BackboneConfig
    m3adapter: M3AdapterConfig
    fingerprints: dict[str, str] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    sha256: str = ""
    numbers: int = 0
    format: int = FORMAT
    layout: dict[str, Any] = field(default_factory=dict)


def export_weights(state: Mapping[str, Tensor], manifest: Manifest, folder: Path) -> Manifest:
    """Writes weights as a folder; it appears only when it is whole.

    Args:
        state: The trained tensors, by their names in `M2ChatModel`; saved in the precision that they have.
        manifest: Description; its checksum and its count are filled in.
        folder: Folder to make; earlier exported weights there give way.

    Returns:
        The manifest as written.

    Raises:
        UserError: If the folder has something else in it, or a tensor holds a number that is not finite.
    """
    from safetensors.torch import save_file

    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(f"{bad[0]} holds numbers that are not finite: these weights are of no use")
    with whole_folder(folder, replace=is_exported(folder)) as part:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(state.items())}
        save_file(tensors, part / TENSORS, metadata={"format": "pt", "m2chat": manifest.stage})
        manifest.numbers = sum(tensor.numel() for tensor in tensors.values())
        manifest.sha256 = sha256(part / TENSORS)
        (part / MANIFEST).write_text(json.dumps({"m2chat": asdict(manifest)}, indent=2) + "\n", encoding="utf-8")
        (part / CARD).write_text(model_card(asdict(manifest), (part / TENSORS).stat().st_size), encoding="utf-8")
        write_sums(part)
    return manifest


def is_exported(path: Path) -> bool:
    """Whether a folder is one that `export_weights` writes."""
    return (path / MANIFEST).is_file() and (path / TENSORS).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of exported weights.

    Raises:
        UserError: If the folder is missing, something else, or of a newer version.
    """
    data = load_json(folder / MANIFEST, "weights").get("m2chat")
    known = {item.name for item in fields(Manifest)}
    if not isinstance(data, dict) or not {"stage", "fingerprint", "backbone", "m3adapter", "sha256"} <= data.keys():
        raise UserError(f"{folder / MANIFEST} is not a manifest of M2Chat's weights: name a folder written by export")
    if data.get("format", 0) > FORMAT:
        raise UserError(f"{folder} has layout {data['format']}, this version reads up to {FORMAT}: update m2chat")
    try:
        connector = {**data["m3adapter"], "layers": tuple(data["m3adapter"]["layers"])}
        connector["gate"] = GateConfig(**connector["gate"])
        settings = {name: value for name, value in data.items() if name in known}
        settings |= {"backbone": BackboneConfig(**data["backbone"]), "m3adapter": M3AdapterConfig(**connector)}
        return Manifest(**settings)
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be understood ({error}): export the weights again") from error


def read_exported(folder: Path, verify: bool = True) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest and the tensors, which stay on disk until they are used.

    Args:
        folder: Written by `export_weights`.
        verify: Whether the checksums are compared.

    Raises:
        UserError: If something is missing, broken, or not as the manifest states.
    """
    with nullcontext() if verify else not_verified():
        return read_manifest(folder), read_safetensors(folder / TENSORS, "weights")


def load_weights(
    model: nn.Module, folder: Path, backbones: Fingerprints | None = None, verify: bool = True
) -> Manifest:
    """Puts exported weights into a model and leaves everything else as it is.

    Args:
        model: An `M2ChatModel` built with the manifest's numbers (`read_manifest`).
        folder: Written by `export_weights`.
        backbones: Fingerprints of the model's backbones; None accepts any.
        verify: Whether the tensors' checksum is compared.

    Returns:
        The manifest.

    Raises:
        UserError: If the folder is broken, the model has no place for a tensor, or its backbones are others.
    """
    manifest, state = read_exported(folder, verify)
    if backbones is not None:
        check_backbones(manifest, backbones, folder)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in state if name in parameters}
    require(
        compare(state, wanted), str(folder), "Build the model with the numbers in manifest.json, backbone.new_lora too"
    )
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    return manifest


def check_backbones(manifest: Manifest, backbones: Fingerprints, folder: Path) -> None:
    """Makes sure that weights meet the backbones that they were trained on.

    Raises:
        UserError: That names the setting whose files differ.
    """
    if manifest.fingerprints and (differing := backbones.differing(asdict(manifest), manifest.backbone)):
        raise mismatch(differing, str(folder), backbones.backbone, manifest.backbone)


def export_model(
    model: M2ChatModel,
    stage: Stage,
    backbone: BackboneConfig,
    folder: Path,
    step: int | None = None,
    tasks: Iterable[str] = (),
    layout: Mapping[str, Any] | None = None,
) -> Manifest:
    """Exports what a stage trains of a model.

    Args:
        model: The model.
        stage: ``align`` or ``m3ft``.
        backbone: Paths of its backbones.
        folder: Folder to make.
        step: Optimiser steps behind the weights.
        tasks: Kinds of samples that were trained on.
        layout: ``max_tokens``, ``num_image_tokens`` and ``prompt`` of the training.

    Returns:
        The manifest as written.

    Raises:
        UserError: As `export_weights`.
    """
    names, prints = trainable_names(model, stage), Fingerprints(backbone)
    state = {name: parameter for name, parameter in model.named_parameters() if name in names}
    manifest = Manifest(
        stage=stage,
        step=step,
        fingerprint=prints.name,
        fingerprints=prints.components,
        backbone=backbone,
        m3adapter=model.m3adapter.config,
        tasks=sorted(tasks),
        layout=dict(layout or {}),
    )
    return export_weights(state, manifest, folder)


def load_model(
    folder: Path,
    backbone: BackboneConfig | None = None,
    frozen_dtype: torch.dtype = torch.float32,
    verify: bool = True,
) -> tuple[M2ChatModel, Manifest]:
    """Builds the model of exported weights.

    Args:
        folder: Written by `export_model` or `m2chat weights convert`.
        backbone: Paths of the backbones; None for those of the manifest.
        frozen_dtype: Precision of the frozen networks.
        verify: Whether the checksum of the weights is compared.

    Returns:
        The model in evaluation mode, and the manifest.

    Raises:
        UserError: If something is missing or broken, or a backbone is another than the weights were trained on.
    """
    manifest = read_manifest(folder)
    backbone = backbone or manifest.backbone
    check_backbones(manifest, Fingerprints(backbone), folder)  # before gigabytes are read
    model = build_m2chat(backbone, manifest.m3adapter, frozen_dtype)
    load_weights(model, folder, verify=verify)
    return model.eval(), manifest
