"""What is refused before Lightning is imported and data are read, which takes seconds: backbones, checkpoints, GPUs.

The configuration is read here as far as these need it; the parser reads it again, and reports what is wrong with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2chat.errors import UserError
from m2chat.migration import migrate
from m2chat.shipped import remedy_for

if TYPE_CHECKING:
    from m2chat.models.fingerprints import Fingerprints

PROJECT = Path(__file__).parents[2]
"""Folder of the project that this code is part of; of an installed package it is nothing of the kind."""
_STAGES = {
    "DescribeModule": ("describe", "describe"),
    "AlignModule": ("align", "align"),
    "M3FTModule": ("m3ft", "align"),
}
"""Classes whose backbones are known: their stage, and that of the weights they start from."""
_SPLITS = {"fit": ("train",), "validate": ("val",), "test": ("test",)}
"""Data without which a subcommand has nothing to do."""
LINKS = ("language_model", "vision_encoder", "image_decoder", "num_image_tokens")
"""Settings of `model.init_args.backbone` that the data follow: which tokenizers and sizes to prepare samples for."""
_BACKBONE = "model.init_args.backbone"
_NEW = "new"  # as in `m2chat.models.config`, which is not to be imported for paths


def check_run(arguments: Sequence[str]) -> None:
    """Checks what the command line of a run names, from what costs least.

    Args:
        arguments: Arguments of `lightning`, the subcommand first.

    Raises:
        UserError: If there is no such device, or backbones or checkpoints are missing, broken or of other networks.
    """
    try:
        settings = _settings(arguments)
        stage, wanted = _STAGES[str(settings.get("model.class_path")).rpartition(".")[2]]
        backbone = settings[_BACKBONE]
    except (KeyError, TypeError, AttributeError, OSError, UnicodeError, yaml.YAMLError):
        return  # the parser knows better
    require_accelerator(settings.get("trainer.accelerator"))
    require_linked(settings, backbone)
    require_files(backbone)
    for split in _SPLITS.get(arguments[0], ()):
        require_shards(settings.get(f"data.{split}"), split)
    from m2chat.models.config import BackboneConfig
    from m2chat.models.fingerprints import Fingerprints

    try:
        prints = Fingerprints(BackboneConfig(**backbone), draws=stage != "describe")
    except (TypeError, UserError):
        return
    logging.disable(logging.WARNING)  # what is worth a warning is warned of when it is loaded
    try:
        _check_weights(settings, prints, stage, wanted, fits=arguments[0] == "fit")
    finally:
        logging.disable(logging.NOTSET)


def _check_weights(settings: Mapping[str, Any], prints: Fingerprints, stage: str, wanted: str, fits: bool) -> None:
    """Opens the backbones and the checkpoints of a run, and compares them."""
    from m2chat.models.checkpoints import check_header, read_checkpoint, starting_stage
    from m2chat.text import M2ChatTokenizer
    from m2chat.text.clip_tokenizers import require_tokenizers

    _ = prints.components  # paths, descriptions, tags and headers
    M2ChatTokenizer(prints.backbone.language_model)
    require_tokenizers(Path(prints.backbone.image_decoder))
    named = [(settings.get("ckpt_path"), stage, "--ckpt_path ")]
    if fits:
        named.append((settings.get("model.init_args.init_from"), wanted, ""))
    for path, of, where in named:
        if path and Path(str(path)).is_file():
            payload = read_checkpoint(Path(path))
            check_header(payload, f"{where}{path}", of if where else starting_stage(payload, stage, of), prints)


def require_accelerator(name: Any) -> None:
    """Makes sure that there is an accelerator before Lightning looks for it.

    Raises:
        UserError: If torch cannot use a GPU here.
    """
    if name not in ("gpu", "cuda"):
        return
    import torch

    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise UserError(
            f"trainer.accelerator={name!r}: torch {torch.__version__} sees no GPU here; choose cpu "
            "(--trainer.accelerator cpu --trainer.devices 1), or a micro configuration such as configs/stage1.yaml; "
            "`m2chat plan --config FILE` computes what a configuration needs on GPUs that are not here"
        )


def require_linked(settings: Mapping[str, Any], backbone: Mapping[str, Any]) -> None:
    """Makes sure that no file gives a linked setting another value, whose place the linked one would take silently.

    Args:
        settings: Settings by their full names.
        backbone: Settings of `BackboneConfig`.

    Raises:
        UserError: If one differs.
    """
    linked = {f"data.{name}": (f"{_BACKBONE}.{name}", backbone.get(name)) for name in LINKS}
    seed = ("seed_everything", settings.get("seed_everything", 0))
    linked |= {"data.seed": seed, "model.init_args.seed": seed}
    for name, (source, followed) in linked.items():
        if (given := settings.get(name)) not in (None, followed):
            here = "" if followed is None else f" (here {followed!r})"
            raise UserError(f"{name}={given!r}: it always has the value of {source}{here}: set that instead")


def require_files(backbone: Mapping[str, Any]) -> None:
    """Makes sure that the backbones are there, before data are generated and read.

    Args:
        backbone: Settings of `BackboneConfig`.

    Raises:
        UserError: If a file or folder is missing; it names the folder where it is, if the project has it.
    """
    for name in ("language_model", "adapter", "image_decoder"):
        path = str(backbone.get(name) or "")
        if path and path != _NEW and not Path(path).exists():
            there = PROJECT / path
            remedy = remedy_for(path) or (
                f"paths are relative to the folder of the project, which has it: cd {PROJECT}"
                if not Path(path).is_absolute() and there.exists()
                else "run this in the folder of the project, or set the path; docs/weights.md lists its files"
            )
            raise UserError(f"model.init_args.backbone.{name}={path!r}: there is no such file or folder here; {remedy}")


def require_shards(sources: Any, split: str) -> None:
    """Makes sure that local shards are there, where no world generates them.

    Args:
        sources: Settings of `SourceConfig`, one for each data set.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: If a path names no file.
    """
    for source in sources if isinstance(sources, list) else ():
        path = str(source.get("path") or "") if isinstance(source, Mapping) and not source.get("world") else ""
        if path and not any(mark in path for mark in (":", "*", "?", "[", "{")) and not Path(path).exists():
            from m2chat.data.shards import find_shards

            find_shards(path, f"{split} {source.get('name')!r}: path")


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Settings by their full names, those of the backbone as one mapping; later arguments override earlier ones."""
    found: dict[str, Any] = {}
    for name, value in _pairs(arguments[1:]):
        if name in ("config", "c"):
            file = Path(value)
            _take(found, yaml.safe_load(migrate(file.read_text(encoding="utf-8"))), "", file.parent)
        elif name in ("model", "model.class_path"):
            found["model.class_path"] = value
        else:
            if name.startswith("model.") and not name.startswith("model.init_args."):
                name = f"model.init_args.{name.removeprefix('model.')}"  # jsonargparse allows the short form
            _take(found, yaml.safe_load(value), name, Path())
    return found


def _take(found: dict[str, Any], value: Any, name: str, folder: Path) -> None:
    """Puts a value into settings by full names.

    Args:
        found: Settings, changed.
        value: Value, which may be a mapping of further names.
        name: Name of the value; empty for a whole file.
        folder: Folder that paths in it are relative to.
    """
    if name == _BACKBONE and isinstance(value, str):
        value = yaml.safe_load((folder / value).read_text(encoding="utf-8"))
        found[_BACKBONE] = {}
    if name == _BACKBONE:
        found[_BACKBONE] = _merged(found.get(_BACKBONE), value)
    elif name.startswith(f"{_BACKBONE}."):
        for part in reversed(name.removeprefix(f"{_BACKBONE}.").split(".")):
            value = {part: value}
        found[_BACKBONE] = _merged(found.get(_BACKBONE), value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _take(found, inner, f"{name}.{key}" if name else str(key), folder)
    else:
        found[name] = value


def _merged(old: Any, new: Any) -> Any:
    """A mapping with the values of a later one."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values.

    Raises:
        KeyError: If one has none.
    """
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        value = value if equals else next(rest, "--")
        if value.startswith("--"):
            raise KeyError(name)  # an option without a value, after which nothing is sure
        yield name.lstrip("-"), value
