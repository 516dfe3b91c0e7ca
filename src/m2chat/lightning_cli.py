"""LightningCLI as we use it: bare names, linked settings, checkpoints that never change the model, short errors."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from m2chat.callbacks.interrupt import InterruptGuard
from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.callbacks.progress import PartsSummary, default_callbacks
from m2chat.config_parser import ShortErrorParser
from m2chat.early_checks import LINKS, require_accelerator, require_files
from m2chat.errors import TrainingDivergedError, UserError
from m2chat.files import is_full, of_full_disk
from m2chat.models.checkpoints import check_header, read_checkpoint
from m2chat.quiet import quiet
from m2chat.ranges import check_number
from m2chat.run_checks import config_files, newest_saved, next_command, require_checkpoint, shortened
from m2chat.run_folder import SaveConfig, run_folder
from m2chat.training.atomic_io import AtomicCheckpointIO
from m2chat.training.strategy import require_safe_reader

_CHOSEN_BY_LIGHTNING = ("best", "last", "hpc", "registry")
"""Values of ``--ckpt_path`` that name no file."""


class M2ChatCLI(LightningCLI):
    """Parses the configuration, builds trainer, model and data, and runs the subcommand.

    Args:
        data_class: The data module.
        kwargs: Arguments of `LightningCLI`.
    """

    def __init__(self, data_class: type[LightningDataModule], **kwargs: Any) -> None:
        super().__init__(
            LightningModule,
            data_class,
            subclass_mode_model=True,
            auto_configure_optimizers=False,  # it would build them before `configure_model` has made the parameters
            seed_everything_default=0,
            parser_class=ShortErrorParser,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what data and model must agree on, and adds the two guards that every run has."""
        parser.add_argument(
            "--row",
            type=dict[str, Any] | None,
            default=None,
            help="row of the results tables that a file describes, for `m2chat eval`; runs ignore it",
        )
        for name in LINKS:
            parser.link_arguments(f"model.init_args.backbone.{name}", f"data.{name}")
        for target in ("model.init_args.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=seed_number)
        parser.add_lightning_class_args(NonFiniteGuard, "nonfinite")
        parser.add_lightning_class_args(InterruptGuard, "interrupt")

    def before_instantiate_classes(self) -> None:
        """Gives the data what they follow of the backbones.

        jsonargparse passes a link over whose source is a separate file (`backbone: ../backbone/paper.yaml`).
        """
        subcommand = self.config.get("subcommand")
        config = self.config[subcommand] if subcommand else self.config
        backbone = config.model.get("init_args.backbone")
        if isinstance(backbone, Namespace):
            for name in LINKS:
                config.data[name] = backbone[name]

    def instantiate_classes(self) -> None:
        """Builds trainer, model and data, once it is sure that GPU and backbones are there."""
        config = self.config[self.config["subcommand"]]
        require_accelerator(config.trainer.get("accelerator"))
        backbone = config.model.get("init_args.backbone")
        if isinstance(backbone, Namespace) and "adapter" in backbone:
            require_files(backbone.as_dict())
        super().instantiate_classes()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's without ``predict``: `m2chat` writes replies to prompts, and `m2chat bench` to files of them."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def _set_seed(self) -> None:
        """Seeds the process's generators.

        Raises:
            UserError: If numpy has no such seed.
        """
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool):
            check_number("seed_everything", seed, "run_seed")
        super()._set_seed()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our checkpoint writer and what we print unless the configuration names others.

        Raises:
            UserError: If a setting of the trainer is wrong, or names devices that this machine lacks.
        """
        settings = self._get(self.config_init, "trainer", default={})
        given = settings.get("callbacks") or []
        callbacks = [*(given if isinstance(given, list) else [given]), *default_callbacks(settings)]
        if any(isinstance(callback, PartsSummary) for callback in callbacks):
            kwargs["enable_model_summary"] = False  # Lightning's own, and its note that there is another
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:  # Lightning's checks of its arguments
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        subcommand = self.config.get("subcommand")
        if subcommand and (path := self.config[subcommand].get("ckpt_path")):
            require_safe_reader(trainer.strategy, path)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs, in a folder that no other run has."""
        model: Any = self.model
        if subcommand == "fit" and hasattr(model, "shortened"):
            model.shortened = shortened(
                sys.argv[1:],
                self.config["fit"],
                lambda files: self.parser.parse_args(["fit", *files], defaults=True)["fit"],
            )
        files = list(config_files(sys.argv[1:]))
        name = Path(files[0]).stem if files and Path(files[0]).is_file() else subcommand
        with run_folder(self.trainer, name, self._continues(subcommand)):
            super()._run_subcommand(subcommand)
        if subcommand == "fit" and self.trainer.is_global_zero and (saved := newest_saved(self.trainer)):
            is_short = bool(getattr(self.model, "shortened", ()))
            print(f"Checkpoint: {saved}")
            if command := next_command(str(getattr(self.model, "stage", "")), saved, files, is_short):
                print(command)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Gives the path of the checkpoint to the trainer, so that the module knows it when it builds its model.

        Else it looks for weights to start from, in vain perhaps, and records them as those that are evaluated.
        """
        settings: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        chosen = settings.get("ckpt_path")
        if chosen not in (None, *_CHOSEN_BY_LIGHTNING):
            self.trainer.ckpt_path = settings.pop("ckpt_path")
        elif chosen in ("best", "last", "hpc"):
            require_checkpoint(self.trainer, chosen)
        return settings

    def _continues(self, subcommand: str) -> list[Path]:
        """What the run goes on with: a training with its checkpoint, an evaluation with its replies."""
        earlier = getattr(getattr(self.model, "evaluation", None), "resume", None)
        checkpoint = self._get(self.config_init, "ckpt_path") if subcommand == "fit" else None
        return [Path(path) for path in (earlier, checkpoint) if path]

    def _parse_ckpt_path(self) -> None:
        """Makes sure that the checkpoint fits the configured model.

        Lightning's version lets the checkpoint replace the model's class and settings silently.
        """
        subcommand = self.config.get("subcommand")
        path = subcommand and self.config[subcommand].get("ckpt_path")
        if not path or path in _CHOSEN_BY_LIGHTNING or Path(path).is_dir():
            return
        model = self.config[subcommand].model
        stage = getattr(pkgutil.resolve_name(model.class_path), "stage", None)
        check_header(read_checkpoint(Path(path)), f"--ckpt_path {path}", stage, None)


class ConfigReader(M2ChatCLI):
    """Reads a configuration as a run would, and builds nothing: the GPUs that it names need not be there."""

    def _set_seed(self) -> None:
        """Leaves the process's generators alone."""

    def instantiate_classes(self) -> None:
        """Builds nothing."""


def read_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> tuple[Any, Any]:
    """Reads configuration files for a plan.

    Args:
        paths: YAML files; a later one overrides an earlier one.
        overrides: More arguments of the command line, such as ``--data.batch_size=4``.

    Returns:
        The settings with every default filled in, and the module that `model` names, with nothing loaded.

    Raises:
        UserError: If a setting is unknown or has no valid value.
    """
    import_classes()
    from m2chat.data.datamodule import M2ChatDataModule

    arguments = [part for path in paths for part in ("--config", str(path))] + list(overrides)
    before, sys.argv = sys.argv, [sys.argv[0]]
    try:
        cli = ConfigReader(M2ChatDataModule, args=arguments, run=False, save_config_callback=None)
    except ValueError as error:
        raise (_mistake(error) or error) from None
    finally:
        sys.argv = before
    settings = cli.config
    model = settings.model
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    return settings, parser.instantiate_classes(parser.parse_object({"model": model.as_dict()})).model


def import_classes() -> None:
    """Imports the modules whose classes a configuration names without their paths."""
    # A class has a bare name once its module is imported.
    for package in ("m2chat.training", "m2chat.callbacks", "m2chat.baselines"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)


def seed_number(seed_everything: bool | int) -> int:
    """Seed of the project's generators, which always need one: that of the whole run if it has one.

    Args:
        seed_everything: The setting: a number, True for Lightning's choice, or False for none.
    """
    if isinstance(seed_everything, bool):
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed_everything else 0
    return seed_everything


def _mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def run(data_class: type[LightningDataModule] | None = None) -> int:
    """Runs the command with the arguments of the process.

    Args:
        data_class: The data module; None means `M2ChatDataModule`.

    Returns:
        Exit code: 0, 1 when training diverged, 2 for a mistake of the user's.
    """
    import_classes()
    if data_class is None:
        from m2chat.data.datamodule import M2ChatDataModule

        data_class = M2ChatDataModule
    try:
        with quiet():
            M2ChatCLI(data_class, save_config_callback=SaveConfig)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the run had its guard, or behind it
        return 128 + signal.SIGINT
    except ValueError as error:
        if (mistake := _mistake(error)) is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except MisconfigurationException as error:  # Lightning's checks of settings against each other
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {of_full_disk(error)}", file=sys.stderr)
        return 2
    except SIGTERMException:  # outside training, where nothing needs saving; Lightning would exit with code 0
        return 128 + signal.SIGTERM
    return 0
