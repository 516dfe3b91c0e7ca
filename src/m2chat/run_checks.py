"""What is checked before a run begins: files and devices that it needs, and whether it was shortened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from m2chat.errors import UserError
from m2chat.models.config import NEW, BackboneConfig

PROJECT = Path(__file__).parents[2]
"""Folder of the project that this code is part of; of an installed package it is nothing of the kind."""
LENGTHS = (
    "trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.limit_train_batches",
    "trainer.overfit_batches", "trainer.fast_dev_run", "data.samples_per_epoch",
)  # fmt: skip
"""Settings by which the command line may make a training shorter."""


def is_shorter(name: str, given: Any, configured: Any) -> bool:
    """Whether a setting of the command line makes a training shorter than that of the configuration.

    Args:
        name: Name of the setting, one of `LENGTHS`.
        given: Value with the command line.
        configured: Value without it.
    """
    if given == configured:
        return False
    if name in ("trainer.max_steps", "trainer.max_epochs", "data.samples_per_epoch"):
        endless = [math.inf if value in (None, -1) else value for value in (given, configured)]
        return bool(endless[0] < endless[1])
    if name == "trainer.limit_train_batches":
        return given not in (None, 1.0)
    return bool(given)


def config_files(arguments: Sequence[str]) -> Iterator[str]:
    """The files that ``--config`` names."""
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            yield value if equals else "".join(arguments[number + 1 : number + 2])


def require_accelerator(name: Any) -> None:
    """Makes sure that there is an accelerator before Lightning looks for it.

    Raises:
        UserError: If torch cannot use a GPU here.
    """
    if name in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise UserError(
            f"trainer.accelerator={name!r}: torch {torch.__version__} sees no GPU here; choose cpu "
            "(--trainer.accelerator cpu --trainer.devices 1), or a micro configuration such as configs/stage1.yaml; "
            "`m2chat plan --config FILE` computes what a configuration needs on GPUs that are not here"
        )


def require_files(backbone: BackboneConfig) -> None:
    """Makes sure that the backbones are there, before data are generated and read.

    Raises:
        UserError: If a file or folder is missing; it names the folder where it is, if the project has it.
    """
    paths = {"language_model": backbone.language_model, "image_decoder": backbone.image_decoder}
    if backbone.adapter != NEW:
        paths["adapter"] = backbone.adapter
    for name, path in paths.items():
        if not Path(path).exists():
            there = PROJECT / path
            remedy = (
                f"paths are relative to the folder of the project, which has it: cd {PROJECT}"
                if not Path(path).is_absolute() and there.exists()
                else "run this in the folder of the project, or set the path; docs/weights.md says which files are read"
            )
            raise UserError(f"model.init_args.backbone.{name}={path!r}: there is no such file or folder here; {remedy}")
