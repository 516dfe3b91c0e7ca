"""The parser of configurations: reads those of earlier versions, and says in one short line what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning import Callback, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from m2chat.errors import UserError
from m2chat.migration import migrate


class ShortErrorParser(LightningArgumentParser):
    """An argument parser with short errors that reads configurations of earlier versions too.

    Options are written in full: ``trainer.max_step`` is a mistake, and no abbreviation of ``trainer.max_steps``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parses the text of a configuration file; jsonargparse calls this for every file."""
        return super().parse_string(migrate(content), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuses the arguments. jsonargparse calls this for the settings of a class too, and quotes it in the whole.

        Raises:
            UserError: With the shortened message.
        """
        parsers = [self, *getattr(getattr(self, "_subcommands_action", None), "_name_parser_map", {}).values()]
        raise UserError(explain(message, {action.dest for parser in parsers for action in parser._actions})) from ex


_NOT_A_KEY = re.compile(r"(?:accept o|O)ption '([^']+)'|unrecognized arguments: --([^\s=]+)")
_NOT_A_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_ADVICE = re.compile(r"Did you mean|lists every setting|is no class that is known")
_LINKED = re.compile(r"argument (?P<source>\S+) --> (?P<target>[^\s:]+): .* is not callable")
_LINKED_TOO = re.compile(r'Linked "(?P<target>[^"]+)" must be given via "(?P<source>[^"]+)"')
_KEY = re.compile(r'Parser key "([^"]+)":')
_VALUE = re.compile(r"(?:Given value|Got value):\s?(.*)")
_CLASSES = re.compile(r"<class '[\w.]*?(\w+)'>")
_NESTED = re.compile(r"NestedArg\(key='([^']+)', val=(.*)\)")
_EXPECTED = re.compile(r"Expected (?:a (?=<class|typing))?(.*?)(?:\. Got value: .*)?$")
_OWN_ERROR = re.compile(r"Not of type \w+: (?!Parser key|Expected)(.*)")
"""What a class says about its settings by itself."""
_EXPLAINED = re.compile(r"[\w.]+=.*: expected ")
"""Begin of a line that says which setting has a wrong value."""
_TYPES = {
    "<class 'bool'>": "true or false",
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'str'>": "a text",
    "<class 'list'>": "a list",
    "<class 'NoneType'>": "null",
}


def explain(message: str, keys: Iterable[str]) -> str:
    """Shortens a message of jsonargparse and adds what was probably meant.

    Args:
        message: Message of jsonargparse: the cause, or a list of what was wrong with each type that was tried.
        keys: Settings that exist where the message comes from.
    """
    if linked := _LINKED.search(message) or _LINKED_TOO.search(message):
        return f"{linked['target']} always has the value of {linked['source']}: set that instead"
    lines = [line.strip(" -") for line in message.splitlines()]
    if len(lines) == 1 and _EXPLAINED.match(message):
        return message
    where = _KEY.match(message)
    inside = f"{where[1]}." if where else ""
    if deeper := next((line for line in lines if _EXPLAINED.match(line)), None):  # by the parser of a class
        return inside + deeper
    causes = [line for line in lines if any(kind.search(line) for kind in (_NOT_A_KEY, _NOT_A_CLASS, _ADVICE))]
    if not causes and (value := _wrong_value(lines)):
        return value
    if len(lines) == 1 or not causes:
        text = " ".join(lines)
    else:
        text = (f"{where[1]}: " if where else "") + "; ".join(dict.fromkeys(causes))
    if _ADVICE.search(text):  # by the parser of the setting itself
        return text
    if wrong := _NOT_A_CLASS.search(text):
        text = text.replace(wrong[0], f"'{wrong[1]}' is no class that is known here; write its name or full path")
        return text + _suggestion(wrong[1], _class_names())
    if missing := re.search(r"arguments are required: (\w+)\.model", text):
        return f"{text}: name a configuration, such as `lightning {missing[1]} --config configs/stage1.yaml`"
    wrong = _NOT_A_KEY.search(text)
    if not wrong:
        return text
    return text + (_suggestion(wrong[1] or wrong[2], keys) or "; `lightning fit --help` lists every setting")


def _wrong_value(lines: Sequence[str]) -> str | None:
    """The setting of the innermost value that was refused, the value, and what it may be; None if none was."""
    path, choices, classes = list[str](), list[str](), list[str]()
    for line in lines:
        if line.startswith("Subtypes: "):
            classes = [f"settings of {name}" for name in _CLASSES.findall(line) if name != "NoneType"]
        if key := _KEY.search(line):
            path.append(key[1])
        if own := _OWN_ERROR.match(line):
            return f"{'.'.join(path)}: {own[1]}"
        if expected := _EXPECTED.search(line):
            choices.append(_TYPES.get(expected[1], expected[1].removeprefix("typing.Literal").strip("[]")))
        if value := _VALUE.search(line):
            if not path or not choices:
                return None
            if choices == ["null"]:  # what is wrong with the settings of a class is no such line
                choices = [*classes, "null"]
            given = value[1]
            if given.startswith("Namespace("):  # as a class was given too few settings
                return (
                    f"{'.'.join(path)}=(some settings): expected all {' or '.join(classes)}. A configuration that "
                    "gives some of them stands behind one that gives the others: --config configs/eval_coco.yaml "
                    "--config configs/rows/sd15.yaml"
                )
            if nested := _NESTED.fullmatch(given):
                path.append(nested[1])
                given = nested[2]
            return f"{'.'.join(path)}={given.strip(chr(39))!r}: expected {' or '.join(choices)}"
    return None


def _suggestion(word: str, choices: Iterable[str]) -> str:
    ordered = sorted(choices)
    meant = (
        get_close_matches(word, ordered, n=1)
        or [choice for choice in ordered if choice.startswith(word)]
        or get_close_matches(word.split(".")[0], ordered, n=1)
    )
    return f". Did you mean '{meant[0]}'?" if meant else ""


def _class_names() -> set[str]:
    """Names of the classes that a configuration can name without their modules."""
    classes: set[type] = set()
    waiting: list[type] = [LightningModule, Callback, Strategy, Logger]
    while waiting:
        fresh: set[type] = set(waiting.pop().__subclasses__()) - classes
        waiting += fresh
        classes |= fresh
    return {kind.__name__ for kind in classes}
