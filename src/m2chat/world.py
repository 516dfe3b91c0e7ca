"""Generated worlds: what a folder under ``m2chat/worlds/`` offers, and how it is found by its name.

A world makes its pictures and conversations itself, so it knows what each picture shows, and can read that back from
pixels. Everything outside ``worlds/`` knows a world through `World` alone: a new one is a new folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from m2chat.errors import UserError
from m2chat.schema import Picture

Attributes = Mapping[str, str]
"""What a picture shows: attribute name to value."""
Example = str | tuple[str, Picture]
"""A request that the world's models understand; with the picture that is shown with it, if any."""


@dataclass(frozen=True)
class Target:
    """A picture of the reference reply, and the generated one in its place.

    Args:
        caption: Caption of the reference picture.
        truth: The reference picture, if it is known.
        generated: The generated picture in the same place; None if too few were drawn.
        attributes: Attributes of the whole reference picture, where they are known.
        omitted: Names of the attributes that only the context picture shows.
    """

    caption: str
    truth: Picture | None
    generated: Picture | None
    attributes: Attributes | None
    omitted: tuple[str, ...]


@dataclass
class Judged:
    """Verdicts on the pictures of a reply; each list has one truth value a picture or attribute.

    Args:
        all_right: Of generated pictures: whether every attribute that the reference caption names is there.
        scene_right: Of generated pictures: whether every attribute of the reference picture is there.
        omitted_right: Of the attributes that only the context picture shows: whether it is there.
        oracle: `all_right` of the reference pictures.
        attributes: Of each attribute that captions name: whether it is there.
        seen: Key of the scene that each generated picture was taken for.
    """

    all_right: list[bool] = field(default_factory=list)
    scene_right: list[bool] = field(default_factory=list)
    omitted_right: list[bool] = field(default_factory=list)
    oracle: list[bool] = field(default_factory=list)
    attributes: dict[str, list[bool]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)


class World(Protocol):
    """A generated world. ``m2chat/worlds/NAME/__init__.py`` holds one as ``WORLD``."""

    name: str
    """Name of its folder under ``m2chat/worlds/``."""
    image_size: int
    """Side of its pictures, in pixels."""
    attributes: tuple[str, ...]
    """Names of the attributes that pictures may have."""
    licence: str
    """Licence of its pictures and texts."""
    shards: Path
    """Where its shards lie by default; below, a folder for each data set and split: ``cc3m/train``."""
    max_error: float
    """Largest error at which the judge still takes a picture for something of this world; part of the protocol that
    results files record."""

    def write_shards(self, root: Path) -> None:
        """Generates every data set below a folder, unless this version of them is there already."""

    def named_in(self, caption: str) -> Attributes:
        """Attributes that a caption names; empty for a caption from outside the world."""

    def seen_in(self, pictures: Sequence[Picture | None]) -> list[Attributes]:
        """Attributes that the judge reads from pixels; empty where a picture is missing or shows nothing known."""

    def judge(self, targets: Sequence[Target]) -> Judged:
        """Verdicts on the generated pictures of a reply and, as a check of the judge, on the reference ones."""

    def examples(self) -> Mapping[str, Sequence[Example]]:
        """Requests to try, by task: ``chat``, ``draw``, ``wish``, ``edit``, ``story``."""

    def measure(self, pipeline: Any, **settings: Any) -> list[dict[str, Any]]:
        """Rows of ``m2chat measure``: how well a pipeline converses in this world."""


def world_names() -> list[str]:
    """Names of the worlds that are installed."""
    package = importlib.import_module("m2chat.worlds")
    return sorted(item.name for item in pkgutil.iter_modules(package.__path__) if item.ispkg)


def find_world(name: str, setting: str = "world") -> World:
    """A world by its name.

    Args:
        name: Name of its folder under ``m2chat/worlds/``.
        setting: Name of the setting, for the error.

    Raises:
        UserError: If there is no such world, or it is not finished.
    """
    if name not in (known := world_names()):
        raise UserError(f"{setting}={name!r} is no generated world: choose one of {', '.join(known)}")
    world: World | None = getattr(importlib.import_module(f"m2chat.worlds.{name}"), "WORLD", None)
    if world is None:
        raise UserError(f"{setting}={name!r} cannot be used yet: m2chat/worlds/{name}/__init__.py holds no WORLD")
    return world
