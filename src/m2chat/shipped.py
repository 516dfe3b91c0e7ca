"""The models that come with the project: where their weights lie, what they lack, and which one answers by default."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from m2chat.errors import UserError


@dataclass(frozen=True)
class ShippedModel:
    """A model whose trained weights come with the project, in ``data/NAME``.

    Args:
        world: Generated world that it was trained in, which states what it knows.
        fetched: Language model that does not come with it, by its name in ``m2chat weights fetch``; it belongs into
            ``data/FETCHED``.
    """

    world: str
    fetched: str = ""


MODELS = {"pocket": ShippedModel("emoji", fetched="smollm2"), "micro": ShippedModel("shapes")}
"""By name; the first that is complete answers where none is named."""
MADE = {"data/pocket/training/weights/visual_query.pth": "python -m m2chat.worlds.emoji visual_query"}
"""Networks of configurations that do not come with the project, and the command that trains each."""
ROOTS = (Path(), Path(__file__).parents[2], Path(sysconfig.get_path("data"), "share", "m2chat"))
"""Folders that may have ``data/``: the current one, the project that this code is part of, and where a wheel puts
it."""
WEIGHTS = Path("m2chat", "m3ft.ckpt")
"""Weights of stage 2 in the folder of a model; ``align.ckpt``, of stage 1, lies beside them."""


def folder_of(name: str) -> Path:
    """The folder of a model, such as ``data/micro``, below the first of `ROOTS` that has its weights.

    Raises:
        UserError: If none has them.
    """
    if (folder := _folder(name)) is not None:
        return folder
    raise UserError(
        f"the shipped {name} weights are not here: there is no data/{name}/{WEIGHTS} in this folder, nor with the "
        f"installed package ({ROOTS[-1]}). Go into a clone of the project, install m2chat anew, or name a checkpoint "
        "and its backbone"
    )


def _folder(name: str) -> Path | None:
    folders = (root / "data" / name for root in ROOTS)
    return next((folder for folder in folders if (folder / WEIGHTS).is_file()), None)


def default_model() -> tuple[str, str]:
    """The model that answers where none is named.

    Returns:
        Its name, and what a model before it in `MODELS` lacks; empty if nothing.
    """
    lacks = ""
    for name in MODELS:
        if _folder(name) is not None:
            try:
                require_complete(name)
                return name, lacks
            except UserError as error:
                lacks = lacks or str(error)
    return "micro", lacks


def require_complete(name: str) -> None:
    """Makes sure that a model can answer, before anything heavy is imported.

    Raises:
        UserError: If its weights are not here, or a command has yet to bring its language model.
    """
    folder_of(name)
    fetched = MODELS[name].fetched
    if fetched and not Path(anchored(f"data/{fetched}")).is_dir():
        raise UserError(f"the {name} model needs a language model that is not here: {fetching(fetched)}")


def anchored(path: str) -> str:
    """A path of a shipped model that holds in any folder; other paths, and one that is there, are left as they are.

    Raises:
        UserError: If it is of a model whose weights are not here.
    """
    parts = Path(path).parts
    if len(parts) < 2 or parts[0] != "data" or Path(path).exists():
        return path
    if parts[1] in MODELS:
        return str(folder_of(parts[1]).parents[1] / path)
    if parts[1:] in [(model.fetched,) for model in MODELS.values()]:
        return next((str(root / path) for root in ROOTS if (root / path).exists()), path)
    return path


def fetching(name: str) -> str:
    """The commands that bring a language model which does not come with the project."""
    return f"`make {name}` in a clone of the project, or `m2chat weights fetch {name} data/{name}`, brings it"


def remedy_for(path: str) -> str:
    """How to bring a missing network; empty for one that no command brings."""
    if path in MADE:
        return f"`{MADE[path]}` makes it"
    name = Path(path).name
    return fetching(name) if path == f"data/{name}" and name in {model.fetched for model in MODELS.values()} else ""
