"""What a world pretrains and ships: its parts, what each writes and rests on, how it is trained and measured.

Nothing here imports torch before a part is made, so that the command line can name the parts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.world import world_names

Facts = dict[str, object]
"""Seed, steps and quality, as the recipes return them."""


@dataclass(frozen=True)
class Part:
    """One recipe.

    Args:
        paths: Folders and files that it writes, relative to the root.
        train: Trains it below the root and saves it; returns seed, steps and quality.
        needs: Parts that must be there before.
        measure: Measures the saved part again; None where only training measures it.
    """

    paths: tuple[str, ...]
    train: Callable[[Path], Facts]
    needs: tuple[str, ...] = ()
    measure: Callable[[Path], Facts] | None = None


@dataclass(frozen=True)
class Recipe:
    """A function of a module, imported when it is called; processes can be sent it.

    Args:
        function: Module and name, such as ``m2chat.worlds.shapes.recipe.vae.train_vae``; it takes a folder and returns
            facts.
        folder: The folder, relative to the root.
        settings: What else the function is called with.
    """

    function: str
    folder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, root: Path) -> Facts:
        """Runs it below the root."""
        module, _, name = self.function.rpartition(".")
        facts: Facts = getattr(import_module(module), name)(root / self.folder, **self.settings)
        return facts


@dataclass(frozen=True)
class Backbones:
    """The backbones of a world.

    Args:
        root: Where they are shipped.
        parts: Recipes by name, in the order in which they start: what others rest on before them.
        limit: Most bytes that may be shipped.
        further: What else is listed in the manifest, by its name: folders and files relative to the root.
        not_shipped: Names directly below the root that the manifest leaves out.
        at_once: Parts that are made at a time, each in a process of its own with one thread; 1 makes them in this
            process, where those that can be stopped and resumed hear the signal to stop.
    """

    root: Path
    parts: Mapping[str, Part]
    limit: int
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_shipped: tuple[str, ...] = ()
    at_once: int = 2


def backbones_of(world: str, setting: str = "--world") -> Backbones:
    """The backbones of a world by its name.

    Args:
        world: Name of its folder under ``m2chat/worlds/``.
        setting: Name of the setting, for the error.

    Raises:
        UserError: If there is no such world, or it has none.
    """
    package = import_module("m2chat.worlds")
    folders = [Path(path) / name for path in package.__path__ for name in world_names()]
    known = sorted(folder.name for folder in folders if (folder / "recipe" / "parts.py").is_file())
    if world not in known:
        raise UserError(f"{setting} {world}: there is no such world with backbones; choose of {', '.join(known)}")
    found: Backbones = import_module(f"m2chat.worlds.{world}.recipe.parts").BACKBONES
    return found
