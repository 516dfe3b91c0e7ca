"""Concepts that one word turns into one another, and stories: ``families.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Family:
    """Concepts of one kind.

    Args:
        noun: Word for the kind, as an instruction uses it: ``heart``.
        members: Word by which an instruction names a member, and the member's concept.
        instruct: Instructions, with a place for the word, or for its name with an article at ``a``.
        answers: Answers of the assistant, with the same places.
    """

    noun: str
    members: Mapping[str, str]
    instruct: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """Four pictures in a row.

    Args:
        openers: First lines, each a wording of the same request.
        frames: Concept of each picture, and sentences that go with it.
    """

    openers: tuple[str, ...]
    frames: tuple[tuple[str, tuple[str, ...]], ...]


@cache
def _contents() -> dict[str, Any]:
    text = files("m2chat.worlds.emoji").joinpath("families.yaml").read_text(encoding="utf-8")
    contents: dict[str, Any] = yaml.safe_load(text)
    return contents


@cache
def families() -> tuple[Family, ...]:
    """Every family."""
    wordings = _contents()["wordings"]

    def words(entry: dict[str, Any], name: str) -> tuple[str, ...]:
        shared = entry["instruct"]  # wordings of the family itself, or the name of some that families share
        return tuple(entry[name] if isinstance(shared, list) else wordings[shared][name])

    return tuple(
        Family(entry["noun"], entry["members"], words(entry, "instruct"), words(entry, "answers"))
        for entry in _contents()["families"]
    )


@cache
def stories() -> tuple[Plot, ...]:
    """Every story."""
    return tuple(
        Plot(tuple(entry["openers"]), tuple((frame["concept"], tuple(frame["words"])) for frame in entry["frames"]))
        for entry in _contents()["stories"]
    )


def poses() -> tuple[str, ...]:
    """Concepts of a person in a pose that another can take, as in the paper's Fig. 6."""
    return tuple(_contents()["poses"].values())


def roles() -> tuple[str, ...]:
    """Concepts of people who can become one another while gender and skin stay."""
    return tuple(_contents()["roles"])
