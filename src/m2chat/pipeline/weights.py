"""Trained weights from and to files.

`M2ChatPipeline` calls `load_weights` and `save_weights` and nothing else that touches a file of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.models.build import build_m2chat
from m2chat.models.checkpoints import HEADER, check_header, load_trained, read_checkpoint
from m2chat.models.choosing import RUN
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig, with_paths
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.swap import changed, with_decoder
from m2chat.models.trainable import Stage, trainable_names
from m2chat.models.weights.exported import check_backbones, export_model, is_exported, read_manifest
from m2chat.models.weights.exported import load_weights as load_exported
from m2chat.pipeline.describer import pretrained_tensors
from m2chat.pipeline.run_settings import read_settings, run_settings
from m2chat.shipped import MODELS, WEIGHTS, anchored, folder_of, remedy_for
from m2chat.text import M2ChatTokenizer
from m2chat.text.clip_tokenizers import require_tokenizers
from m2chat.text.layout import MAX_TOKENS
from m2chat.text.prompts import EARLIER, PromptFormat, resolved

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
        fingerprint: Fingerprint of the backbones of the training.
        tasks: Kinds of samples that they were trained on.
        max_tokens: Maximum length of a sequence in training.
        pretrained: Tensors of the language model before stage 2, with which pictures are described.
        prompt: Format of the prompts in training.
        model: Name of the model, if it comes with the project.
        worlds: Generated worlds that it was trained in, as far as it is recorded; an empty name stands for other data.
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
    model: str = ""
    worlds: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """Stage and fingerprint, as a saved session names its weights."""
        return {"stage": self.stage, "fingerprint": self.fingerprint}

    def is_known_as(self, identity: Mapping[str, str]) -> bool:
        """Whether an identity is that of these weights; earlier versions named backbones by their files."""
        if identity == self.identity:
            return True
        prints = Fingerprints(self.backbone)
        return identity.get("stage") == self.stage and identity.get("fingerprint") in (prints.name, prints.legacy)


_Change: TypeAlias = Callable[[BackboneConfig], BackboneConfig]
_Opened: TypeAlias = tuple[Origin, Callable[[M2ChatModel], object]]


def load_weights(
    source: str | Path | None = None,
    backbone: BackboneConfig | None = None,
    m3adapter: M3AdapterConfig | None = None,
    image_decoder: str | Path | None = None,
    decoder: DecoderConfig | Mapping[str, Any] | None = None,
) -> tuple[M2ChatModel, Origin]:
    """Builds the model and fills in trained weights.

    Args:
        source: Name of a model that comes with the project, of `m2chat.shipped.MODELS`, or None for ``micro``; a
            checkpoint of a run, which holds its settings (one of an earlier version needs the run's ``config.yaml``
            beside or above it); or a folder that `save_weights` wrote.
        backbone: Backbones; None takes those of the source.
        m3adapter: Configuration of the M³Adapter; None takes that of the source.
        image_decoder: Another image decoder in place of that of the backbones; see `with_decoder`.
        decoder: What replaces parts of the image decoder, and how it draws; some settings by name change those of the
            source, None takes all of them.

    Returns:
        The model in fp32 and evaluation mode, and the source of its weights.

    Raises:
        UserError: If the source is missing, broken, or was trained on other backbones.
    """
    source = "micro" if source is None else source
    shipped = source if isinstance(source, str) and source in MODELS else ""
    path = folder_of(shipped) / WEIGHTS if shipped else Path(source)
    opened = _exported if path.is_dir() else _checkpoint
    origin, fill = opened(path, backbone, m3adapter, lambda given: _drawn_by(given, image_decoder, decoder))
    if shipped:
        origin = replace(origin, model=shipped, worlds=(MODELS[shipped].world,))
    M2ChatTokenizer(origin.backbone.language_model)  # what lacks one is refused before gigabytes are read
    require_tokenizers(Path(origin.backbone.image_decoder))
    model = build_m2chat(origin.backbone, origin.m3adapter)
    if origin.stage == "m3ft":
        origin = replace(origin, pretrained=pretrained_tensors(model))
    fill(model)
    model.eval().requires_grad_(False)
    return model, origin


def _checkpoint(
    path: Path, backbone: BackboneConfig | None, m3adapter: M3AdapterConfig | None, drawn_by: _Change
) -> _Opened:
    """What a checkpoint holds, and the function that fills it in."""
    payload = read_checkpoint(path)
    if payload[HEADER]["stage"] == "describe":
        raise UserError(
            f"{path} is a checkpoint of stage 0, whose result is an adapter file: set backbone.adapter to the "
            "adapter.pth in the folder of its run (or `m2chat weights convert` the checkpoint), and train stages 1 and "
            "2 with it"
        )
    stage: Stage = payload[HEADER]["stage"]
    settings = run_settings(path, payload)
    if settings is None:
        with suppress(UserError):  # the shipped ones may not be here
            settings = _micro_settings()
    settings = settings or {}
    trained_on = _recorded(settings)
    backbone = _anchored(drawn_by(backbone or BackboneConfig(**_complete(settings, "backbone"))))
    m3adapter = m3adapter or m3adapter_of(_complete(settings, "m3adapter"))
    layout = settings.get("layout") or {}
    origin = Origin(
        str(path),
        stage,
        backbone,
        m3adapter,
        payload[HEADER]["fingerprint"],
        tuple(payload.get("tasks", ())),
        layout.get("max_tokens", MAX_TOKENS),
        prompt=layout.get("prompt", EARLIER),
        worlds=tuple((payload.get(RUN) or {}).get("worlds", ())),
    )

    prints = Fingerprints(backbone)
    _ = prints.components  # what is missing or broken is named, before gigabytes are read
    check_header(payload, str(path), None, prints, trained_on)

    def fill(model: M2ChatModel) -> None:
        names = {f"model.{name}" for name in trainable_names(model, stage)}
        module = nn.ModuleDict({"model": model})
        load_trained(module, path, names, stage=None, backbones=prints, trained_on=trained_on)

    return origin, fill


def _anchored(config: BackboneConfig) -> BackboneConfig:
    """The same backbones with paths of the shipped ones that hold in any folder; other paths are left as they are.

    Raises:
        UserError: If a command has yet to bring their language model.
    """
    config = with_paths(config, anchored)
    if (remedy := remedy_for(config.language_model)) and not Path(config.language_model).exists():
        raise UserError(f"the language model {config.language_model} is not here: {remedy}")
    return config


def _recorded(settings: Mapping[str, Any]) -> BackboneConfig | None:
    """The backbones of a training in its settings; None if they are not complete."""
    given = settings.get("backbone") or {}
    if not _REQUIRED["backbone"] <= given.keys():
        return None
    backbone = BackboneConfig(**given)
    with suppress(UserError):  # the shipped ones may not be here
        backbone = _anchored(backbone)
    return backbone


def _drawn_by(
    backbone: BackboneConfig, image_decoder: str | Path | None, decoder: DecoderConfig | Mapping[str, Any] | None
) -> BackboneConfig:
    """The backbones with another image decoder, and with other settings of it: all, or those that a mapping names."""
    if image_decoder is not None:
        backbone = with_decoder(backbone, image_decoder)
    if decoder is None:
        return backbone
    if isinstance(decoder, Mapping):
        decoder = changed(backbone.decoder, decoder)
    return replace(backbone, decoder=decoder)


def _exported(
    folder: Path, backbone: BackboneConfig | None, m3adapter: M3AdapterConfig | None, drawn_by: _Change
) -> _Opened:
    """The same of exported weights."""
    if not is_exported(folder):
        raise UserError(
            f"{folder} is no folder of weights: it needs manifest.json and model.safetensors, as `save_pretrained` and "
            "`m2chat weights convert` write them; of a training run name the .ckpt file itself"
        )
    manifest = read_manifest(folder)
    backbone = _anchored(drawn_by(backbone or manifest.backbone))
    m3adapter = m3adapter or manifest.m3adapter
    prints = Fingerprints(backbone)
    _ = prints.components  # what is missing or broken is named, before gigabytes are read
    check_backbones(manifest, prints, folder)
    stage: Stage = "m3ft" if manifest.stage == "m3ft" else "align"
    max_tokens = manifest.layout.get("max_tokens", MAX_TOKENS)
    prompt, tasks = manifest.layout.get("prompt", EARLIER), tuple(manifest.tasks)
    origin = Origin(str(folder), stage, backbone, m3adapter, manifest.fingerprint, tasks, max_tokens, prompt=prompt)
    return origin, lambda model: load_exported(model, folder)


def save_weights(folder: str | Path, model: M2ChatModel, origin: Origin) -> None:
    """Exports the trained tensors. The frozen backbones stay where they are; the manifest has their absolute paths.

    Args:
        folder: Folder to make; exported weights that are already there are replaced.
        model: Model with the tensors.
        origin: Source of the weights.

    Raises:
        UserError: If the folder has other contents.
    """
    backbone = with_paths(origin.backbone, lambda path: str(Path(path).resolve()) if Path(path).exists() else path)
    layout = {
        "max_tokens": origin.max_tokens,
        "num_image_tokens": origin.backbone.num_image_tokens,
        "prompt": resolved(origin.prompt, origin.backbone.language_model),
    }
    export_model(model, origin.stage, backbone, Path(folder), tasks=origin.tasks, layout=layout)


def m3adapter_of(settings: Mapping[str, Any]) -> M3AdapterConfig:
    """The configuration of the M³Adapter in a run's settings."""
    values = {**settings, "gate": GateConfig(**(settings.get("gate") or {}))}
    return M3AdapterConfig(**{**values, "layers": tuple(values.get("layers", (-1,)))})


def _complete(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a part, completed by those of the shipped weights where required ones are missing.

    Args:
        settings: Settings of the model.
        name: ``backbone`` or ``m3adapter``.

    Raises:
        UserError: If required settings are missing, and the shipped weights, whose settings replace them, as well.
    """
    given = dict(settings.get(name) or {})
    if _REQUIRED[name] <= given.keys():
        return given
    # A hand-written configuration may leave out settings that are those of the micro scale.
    return {**_micro_settings()[name], **given}


def _micro_settings() -> dict[str, Any]:
    """Settings of the shipped micro weights."""
    return read_settings(folder_of("micro") / WEIGHTS.with_name("config.yaml"))
