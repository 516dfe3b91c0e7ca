"""Short names of the backbones' contents: trained weights are useless on any others.

A component is one network: the language model, its adapter, the vision encoder, each text encoder, UNet, VAE; and the
scheduler's settings. Its fingerprint is of names, shapes and values of tensors, so that notes beside them, the place of
a folder and the form of a file (shards, one file, SDXL's single file) change nothing. Values are samples: see
`m2chat.models.weights.sampled`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from m2chat.errors import UserError
from m2chat.integrity import not_verified
from m2chat.models.config import NEW, BackboneConfig
from m2chat.models.file_fingerprints import name_of_files, names_of_files
from m2chat.models.weights.sampled import tensor_fingerprint

READER = ("language_model", "adapter", "vision_encoder", "channel_order")
"""Components whose outputs a trained connector reads."""
TEXT_SPACE = ("text_encoder", "text_encoder_2")
"""Components in whose output space a trained connector writes (Eq. 2). UNets and VAEs may be swapped."""
_NOTES = (
    "_diffusers_version", "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache",
)  # fmt: skip
"""Entries of a network's description that change nothing of what it computes here."""


class Fingerprints:
    """Fingerprints of the backbones of a model, each computed when it is first asked for.

    Args:
        backbone: Paths of the backbones; empty ones are left out.
        draws: Whether the image decoder takes part; where it does not, as in stage 0, it need not be there.
    """

    def __init__(self, backbone: BackboneConfig, draws: bool = True) -> None:
        self.backbone, self.draws = backbone, draws

    @cached_property
    def components(self) -> dict[str, str]:
        """Fingerprint of each component.

        Raises:
            UserError: If a backbone is missing or broken.
        """
        with not_verified():  # a comparison of checksums reads every byte; loading does it
            return {**_reader(self.backbone), **(decoder_fingerprints(self.backbone) if self.draws else {})}

    @cached_property
    def outputs(self) -> dict[str, str]:
        """Fingerprint of what each component computes: of its tensors and of its description, as `components`.

        The same tensors give other outputs with another number of heads, base of the rotations or scale of latents.

        Raises:
            UserError: If a backbone is missing or broken.
        """
        with not_verified():
            described = _descriptions(self.backbone, self.draws)
        return {
            name: _short(f"{value} {json.dumps(described[name], sort_keys=True, default=str)}")
            if name in described
            else value
            for name, value in self.components.items()
        }

    @cached_property
    def name(self) -> str:
        """One short name of what a connector depends on: all but UNet, VAE and scheduler."""
        return _joined({name: self.components[name] for name in (*READER, *TEXT_SPACE) if name in self.components})

    @cached_property
    def legacy(self) -> str:
        """Name by files, as versions before components computed it."""
        return name_of_files(self.backbone)

    @cached_property
    def legacy_parts(self) -> dict[str, str]:
        """The same of each setting."""
        return names_of_files(self.backbone)

    def differing(self, recorded: Mapping[str, Any], trained_on: BackboneConfig | None = None) -> list[str]:
        """Components on which weights depend and that are others than those of their training.

        Args:
            recorded: ``fingerprint`` and ``fingerprints`` as a checkpoint's header or a manifest has them. Weights of
                earlier versions have fingerprints of files: of all together, or by setting.
            trained_on: Paths of the backbones of the training. Files and components cannot be compared, so where the
                files are others now (another decoder with the same text encoders), those of the training must still
                be there.

        Returns:
            Names of components, or of settings where only files can be compared; empty if everything fits.
        """
        theirs: Mapping[str, str] = recorded.get("fingerprints") or {}
        if theirs and "image_decoder" not in theirs:
            return _different(theirs, self.components)
        if theirs:
            changed = [name for name, value in self.legacy_parts.items() if theirs.get(name, value) != value]
        else:
            changed = [] if recorded["fingerprint"] == self.legacy else ["backbone"]
        if not changed or trained_on is None or trained_on == self.backbone:
            return changed
        return self._since(recorded, theirs, trained_on, changed)

    def _since(
        self, recorded: Mapping[str, Any], theirs: Mapping[str, str], trained_on: BackboneConfig, changed: list[str]
    ) -> list[str]:
        """What differs from the backbones of the training, if these are still what they were."""
        before = Fingerprints(trained_on, self.draws)
        try:
            if theirs:
                same = all(before.legacy_parts.get(name) == theirs.get(name) for name in changed)
            else:
                same = before.legacy == recorded["fingerprint"]
            return _different(before.components, self.components) if same else changed
        except UserError:  # they are no longer there
            return changed


def drawing_fingerprint(backbone: BackboneConfig) -> str:
    """A short name of everything in the decoder, for what only draws."""
    with not_verified():
        return _joined(decoder_fingerprints(backbone))


def decoder_fingerprints(backbone: BackboneConfig) -> dict[str, str]:
    """Fingerprints of the decoder's components."""
    from m2chat.models.weights.diffusion import open_diffusion, open_with_parts
    from m2chat.models.weights.files import read_safetensors

    if not backbone.image_decoder:
        return {}
    config, what = backbone.decoder, "backbone.decoder"
    source, _ = open_with_parts(Path(backbone.image_decoder), "backbone.image_decoder", config)
    prints = {name: tensor_fingerprint(state) for name, state in source.states.items()}
    for number, lora in enumerate(config.lora):
        state = read_safetensors(Path(lora.path), f"{what}.lora[{number}].path")
        prints["unet"] = _short(f"{prints['unet']} {lora.weight} {tensor_fingerprint(state)}")
    if config.refiner is not None:
        prints["refiner"] = tensor_fingerprint(open_diffusion(Path(config.refiner), f"{what}.refiner").states["unet"])
    settings: Any = {key: value for key, value in source.configs["scheduler"].items() if key != "_diffusers_version"}
    if (changed := (config.effective_scheduler, config.effective_spacing)) != (None, None):
        settings = [settings, *changed]
    return {**prints, "scheduler": _short(json.dumps(settings, sort_keys=True))}


def drawing_settings(backbone: BackboneConfig) -> dict[str, Any]:
    """What changes a picture beside tensors and scheduler: descriptions of networks, the refiner, guidance.

    A tensor does not tell how many heads read it, nor a VAE's tensors how its latents are scaled.
    """
    from m2chat.models.weights.diffusion import open_diffusion, open_with_parts

    config = backbone.decoder
    source, _ = open_with_parts(Path(backbone.image_decoder), "backbone.image_decoder", config)
    described = {name: _described(source.configs[name]) for name in ("unet", "vae")}
    settings: dict[str, Any] = {**described, "zeros": source.zeros, "interval": list(config.interval)}
    if config.refiner is not None:
        refiner = open_diffusion(Path(config.refiner), "backbone.decoder.refiner")
        described = {name: _described(refiner.configs[name]) for name in ("unet", "scheduler")}
        settings["refiner"] = {**described, "zeros": refiner.zeros, "start": config.refiner_start}
    return settings


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOTES}


def _descriptions(backbone: BackboneConfig, draws: bool) -> dict[str, dict[str, Any]]:
    """The description of each network that has one, without what changes none of its outputs."""
    from m2chat.models.weights.clip import local_clip_file, open_clip_tower
    from m2chat.models.weights.diffusion import open_with_parts

    described: dict[str, Mapping[str, Any]] = {}
    if backbone.language_model:
        described["language_model"], _ = _language(Path(backbone.language_model))
    if backbone.adapter and backbone.adapter != NEW:
        described["adapter"] = {"heads": backbone.visual_heads, "blocks": backbone.visual_blocks}
    if (name := backbone.vision_encoder) and (Path(name).is_dir() or local_clip_file(name) is not None):
        described["vision_encoder"] = open_clip_tower(name, "backbone.vision_encoder").settings
    if draws and backbone.image_decoder:
        source, _ = open_with_parts(Path(backbone.image_decoder), "backbone.image_decoder", backbone.decoder)
        described |= {name: config for name, config in source.configs.items() if name != "scheduler"}
    return {name: _described(config) for name, config in described.items()}


def drawing_name(backbone: BackboneConfig) -> str:
    """A short name of everything that decides how a condition and a seed become a picture."""
    how = {"steps": backbone.decoder.steps, "guidance": backbone.decoder.guidance}
    with not_verified():
        everything = {**decoder_fingerprints(backbone), **drawing_settings(backbone), **how}
    return _short(json.dumps(everything, sort_keys=True, default=str))


def _reader(backbone: BackboneConfig) -> dict[str, str]:
    from m2chat.models.weights.adapter import open_adapter
    from m2chat.models.weights.clip import local_clip_file, named_weights, open_clip_tower

    prints = {}
    if backbone.language_model:
        prints["language_model"] = tensor_fingerprint(_language(Path(backbone.language_model))[1])
    if backbone.adapter == NEW:
        prints["adapter"] = _short(repr(backbone.new_adapter))
    elif backbone.adapter:
        sizes = backbone.visual_heads, backbone.visual_blocks
        prints["adapter"] = tensor_fingerprint(open_adapter(Path(backbone.adapter), "backbone.adapter", *sizes).state)
    if name := backbone.vision_encoder:
        local = Path(name).is_dir() or local_clip_file(name) is not None
        # open_clip downloads what is known by a tag, and a tag is a name already.
        if not local:
            named_weights(name, "backbone.vision_encoder")  # refuses a tag that does not exist
        prints["vision_encoder"] = (
            tensor_fingerprint(open_clip_tower(name, "backbone.vision_encoder").state) if local else _short(name)
        )
    if prints:
        prints["channel_order"] = backbone.channel_order
    return prints


def _language(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LLaMA's description and tensors as its files have them: to rename Meta's means to re-order gigabytes of rows."""
    from m2chat.models.weights.files import load_json, read_tensors
    from m2chat.models.weights.llama import llama_folder, open_llama

    folder, what = llama_folder(path), "backbone.language_model"
    if not (folder / "params.json").is_file():
        source = open_llama(folder, what)
        return source.settings, source.state
    parts = sorted(folder.glob("consolidated.*.pth")) or [folder / "consolidated.00.pth"]
    state = {f"{path.stem}.{name}": tensor for path in parts for name, tensor in read_tensors(path, what).items()}
    return load_json(folder / "params.json", what), state


def _different(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in (*READER, *TEXT_SPACE) if before.get(name) != now.get(name)]


def _joined(prints: Mapping[str, str]) -> str:
    return _short("\n".join(f"{name} {value}" for name, value in prints.items()))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Messages


def mismatch(
    differing: Collection[str], where: str, backbone: BackboneConfig, trained_on: BackboneConfig | None = None
) -> UserError:
    """The error for weights that meet other backbones than those of their training.

    Args:
        differing: What `Fingerprints.differing` has returned; not empty.
        where: Name of the weights.
        backbone: The backbones that were given.
        trained_on: Paths of the backbones of the training, if they are known.
    """
    if set(differing) <= {*TEXT_SPACE}:
        trained = repr(trained_on.image_decoder) if trained_on else "the decoder of its training"
        return UserError(
            f"backbone.image_decoder={backbone.image_decoder!r} (or --decoder) has another text space than {where} was "
            f"trained for: {' and '.join(sorted(differing))} {'differ' if len(differing) > 1 else 'differs'} from "
            f"those of {trained}. What is trained writes into the output space of the text encoders, so choose a "
            "decoder with the same ones: that of the training, one of its fine-tunes or distillations that left the "
            "text encoders as they are, or the same folder with another UNet or a LoRA; for this one, train stage 1 "
            "again"
        )
    settings = list(dict.fromkeys("image_decoder" if name in TEXT_SPACE else name for name in differing))
    named = [name for name in settings if hasattr(backbone, name)]
    if not named:
        return UserError(
            f"{where} was trained on other backbones than those configured: set model.init_args.backbone as in that "
            "run's config.yaml, or train again"
        )
    given = getattr(backbone, named[0])
    there = f": it was {getattr(trained_on, named[0])!r} there, not {given!r}" if trained_on else f", {given!r}"
    return UserError(
        f"{where} was trained on another backbone.{named[0]} than the one given"
        + (f" (and {', '.join(named[1:])})" if named[1:] else "")
        + f"{there}. Set model.init_args.backbone as in that run's config.yaml, or train again"
    )
