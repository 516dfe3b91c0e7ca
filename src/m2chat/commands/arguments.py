"""Arguments of the commands: checked where they are parsed, before anything that takes time is imported."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from m2chat.errors import UserError
from m2chat.ranges import RANGES
from m2chat.shipped import MODELS

CONFIG = "name a configuration such as configs/stage1.yaml"
DEVICES = re.compile(r"cpu|mps|xpu(:\d+)?|cuda(:\d+)?")


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the argument, its value, and what it can be.

    Long options are written in full: an abbreviation would mean something else once there is another option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Refuses the arguments.

        Raises:
            UserError: With the message.
        """
        text = re.sub(r"^argument (\S+): (?=')", r"\1 ", message)
        text = re.sub(r"^argument (\S+): ", r"\1: ", text)
        raise UserError(f"{text} (`{self.prog} --help` lists the arguments)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{str(value)!r}: choose one of {', '.join(names)}{suggestion(str(value), names)}"
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and refuses what is left over, except for commands that pass the rest on (``rest``)."""
        options, rest = super().parse_known_args(args, namespace)
        if rest and not getattr(options, "rest", False):
            known = [name for action in self._actions for name in action.option_strings]
            word = next((item for item in rest if item.startswith("-")), rest[0])
            self.error(f"{word!r} is no argument here{suggestion(word.partition('=')[0], known)}")
        return options, rest


def suggestion(word: str, choices: Iterable[str]) -> str:
    """A question whether the most similar choice is meant; empty if none is similar."""
    ordered = sorted(choices)
    meant = get_close_matches(word, ordered, n=1) or [name for name in ordered if word and name.startswith(word)]
    return f". Did you mean {meant[0]!r}?" if meant else ""


def in_range(kind: str) -> Callable[[str], Any]:
    """The type of a number.

    Args:
        kind: Name of its range in `RANGES`.
    """
    wanted = RANGES[kind]

    def parse(text: str) -> Any:
        value: float | None
        try:
            value = int(text) if wanted.whole else float(text)
        except ValueError:
            value = None
        if not wanted.has(value):
            raise argparse.ArgumentTypeError(f"{text!r}: choose {wanted}")
        return value

    return parse


def words(text: str) -> str:
    """The type of a text that must not be blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: the text is empty, write something between the quotes")
    return text


def device(text: str) -> str:
    """The type of a device's name; whether there is one is seen once torch is imported."""
    if not DEVICES.fullmatch(text):
        meant = ". Did you mean 'cuda'?" if text in ("gpu", "nvidia", "CUDA", "GPU") else ""
        raise argparse.ArgumentTypeError(f"{text!r}: choose cpu, cuda, cuda:N (the N-th GPU) or mps{meant}")
    return text


def device_or_auto(text: str) -> str:
    """The type of a device's name, or ``auto``."""
    return text if text == "auto" else device(text)


def existing(kind: str = "file or folder", remedy: str = "name one that is there") -> Callable[[str], Path]:
    """The type of a path that must be there.

    Args:
        kind: ``file``, ``folder``, or ``file or folder``.
        remedy: What the error proposes.
    """

    def parse(text: str) -> Path:
        path = Path(text).expanduser()
        if not path.exists():
            near = get_close_matches(path.name, _names(path.parent), n=1, cutoff=0.8)
            meant = f". Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
            raise argparse.ArgumentTypeError(f"{text!r}: there is no such {kind}, {remedy}{meant}")
        if (kind == "file" and path.is_dir()) or (kind == "folder" and not path.is_dir()):
            raise argparse.ArgumentTypeError(f"{text!r}: is {_what(path)}, {remedy}")
        return path

    return parse


def model_or_path(text: str) -> str | Path:
    """The type of a model: the name of one that comes with the project, else a path that must be there."""
    if text in MODELS:
        return text
    meant = suggestion(text, MODELS)
    return existing("file or folder", f"name one that is there, or a model: {', '.join(MODELS)}{meant}")(text)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file"


def new_folder(text: str) -> Path:
    """The type of a folder to write into, which is made where it is not there."""
    path = Path(text)
    _require_place(text, path)
    return path


def new_file(text: str) -> Path:
    """The type of a file to write, whose folder is made where it is not there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: is a folder, name a file")
    _require_place(text, path.parent)
    return path


def _require_place(text: str, folder: Path) -> None:
    """Makes sure that a folder is there or can be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {there} is a file, name a folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r}: {there} cannot be written, name another folder")


def backbone_file(text: str) -> Path:
    """The type of a YAML file of backbones, such as those of ``configs/backbone/``."""
    import yaml

    path = existing("file", "name a YAML file such as configs/backbone/micro.yaml")(text)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(f"{text!r}: is no YAML ({reason}), name configs/backbone/micro.yaml") from None
    if not isinstance(content, dict) or not {"language_model", "image_decoder"} <= content.keys():
        has = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise argparse.ArgumentTypeError(
            f"{text!r}: holds {has[:80]}, and not the backbones (language_model, adapter, vision_encoder, "
            "image_decoder, num_image_tokens): name a file such as configs/backbone/micro.yaml"
        )
    return path
