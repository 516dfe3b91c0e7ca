"""Tokenizer and lengths by which the data commands measure: those of a training run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import CONFIG, existing, in_range
from m2chat.errors import UserError

if TYPE_CHECKING:
    from m2chat.text import Layout

_SETTINGS = ("language_model", "num_image_tokens", "max_tokens", "prompt")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("tokens", "as a training run counts them; the micro scale's by default")
    group.add_argument(
        "--config",
        type=existing("file", CONFIG),
        metavar="FILE",
        help="a run's configuration, such as configs/stage2.yaml",
    )
    group.add_argument(
        "--tokenizer", dest="language_model", metavar="FOLDER", help="folder of the language model, for its tokenizer"
    )
    group.add_argument(
        "--image-tokens",
        dest="num_image_tokens",
        type=in_range("num_image_tokens"),
        metavar="N",
        help="tokens per picture",
    )
    group.add_argument("--max-tokens", type=in_range("max_tokens"), metavar="N", help="longest sequence")
    group.add_argument("--prompt", choices=("auto", "alpaca", "chat"), help="format of the prompt")


def layout_of(options: argparse.Namespace) -> Layout:
    """The layout that the options ask for; what they leave open is the configuration's, else `Layout`'s default.

    Raises:
        UserError: If the configuration or the tokenizer cannot be read.
    """
    from m2chat.text import Layout, M2ChatTokenizer

    settings = _of_config(options.config) if options.config else {}
    settings |= {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    tokenizer = M2ChatTokenizer(settings.pop("language_model", "data/micro/llama"))
    return Layout(tokenizer, format=settings.pop("prompt", "auto"), **settings)


def _of_config(path: Path) -> dict[str, Any]:
    """The settings of a run's configuration; the backbone's take precedence over the data's, as in training."""
    whole = _read(path)
    data = _section(whole, "data", path)
    model = _section(_section(whole, "model", path), "init_args", path)
    backbone = model.get("backbone") or {}
    if isinstance(backbone, str):  # A file, named from where the configuration lies.
        path = path.parent / backbone
        backbone = _read(path)
    settings = {**data, **_section({"backbone": backbone}, "backbone", path)}
    return {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}


def _section(record: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = record.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"--config: `{name}` of {path} is {type(section).__name__}, not a table of settings")
    return section


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config: cannot read {path} ({error}): give a file such as configs/stage1.yaml") from error
    if not isinstance(record, dict):
        raise UserError(f"--config: {path} holds no settings: give a file such as configs/stage1.yaml")
    return record
