"""Checkpoints that hold trained tensors only: finding one, and loading one with every name accounted for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.integrity import has_checksum, not_verified
from m2chat.models.adapter_file import LOW_RANK
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import Fingerprints, mismatch
from m2chat.models.weights.exported import is_exported, read_exported
from m2chat.models.weights.files import read_pickled

_LOG = logging.getLogger(__name__)

HEADER = "m2chat"
"""Key of a checkpoint's header."""
VERSION = 1
"""Version of the layout of our checkpoints; a reader refuses higher ones."""
_NOTED: set[Path] = set()
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


class Header(TypedDict):
    """Identification of a checkpoint.

    Args:
        stage: `stage` of the module that wrote it.
        fingerprint: Fingerprint of the frozen backbones on which the tensors were trained.
        version: Version of the layout.
        fingerprints: Fingerprint of each component of them; earlier versions had none.
    """

    stage: str
    fingerprint: str
    version: int
    fingerprints: NotRequired[dict[str, str]]


def plain_name(name: str) -> str:
    """A parameter's name without what compilation, activation checkpointing and sharding put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def trainable_names(module: nn.Module) -> set[str]:
    """Plain names of the parameters that are trained."""
    return {plain_name(name) for name, parameter in module.named_parameters() if parameter.requires_grad}


def trainable_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by plain name; they share memory with the module."""
    return {
        plain_name(name): parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad
    }


def trained_digest(module: nn.Module) -> str:
    """A short hash of the trained parameters: which weights an evaluation used, from whichever file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainable_state_dict(module).items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of ours after comparing its checksum; tensors stay on disk until they are used.

    Nothing in it is executed. Every use of a checkpoint goes through here: resuming, `init_from`, evaluation, chat,
    conversion. A file without a checksum, as other versions wrote it, is read too, with a note in the log.

    Args:
        path: A file that ends in ``.ckpt``, or a folder of exported weights, which is read as one without optimiser.

    Raises:
        UserError: If there is no such file, or it is damaged or not a checkpoint of M2Chat.
    """
    if is_exported(path):
        manifest, tensors = read_exported(path)
        header = Header(stage=manifest.stage, fingerprint=manifest.fingerprint, version=VERSION)
        if manifest.fingerprints:
            header["fingerprints"] = manifest.fingerprints
        state = {f"model.{name}": tensor for name, tensor in tensors.items()}
        config = {"backbone": asdict(manifest.backbone)}
        return {HEADER: header, "state_dict": state, "tasks": manifest.tasks, "config": config}
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {path}")
    payload = read_pickled(path, "checkpoint")
    if not isinstance(payload, dict) or HEADER not in payload or "state_dict" not in payload:
        raise UserError(f"{path} is not a checkpoint of M2Chat: it has no '{HEADER}' entry")
    if path not in _NOTED and has_checksum(path) is False:
        _NOTED.add(path)
        _LOG.warning("%s has no checksum: whether it is damaged cannot be told", path)
    return payload


def check_header(
    payload: Mapping[str, Any],
    where: str,
    stage: str | None,
    backbones: Fingerprints | None,
    trained_on: BackboneConfig | None = None,
) -> None:
    """Compares a checkpoint's header with what is wanted.

    Args:
        payload: The checkpoint: its header, and the paths of its training's backbones in ``config``.
        where: Name of the checkpoint in messages.
        stage: The stage that must have written it; None accepts any.
        backbones: The backbones that it meets; None accepts any.
        trained_on: Paths of its training's backbones; by default those that it has recorded.

    Raises:
        UserError: If one of them differs, or the layout is newer than this version can read.
    """
    header = payload.get(HEADER) or Header(stage="unknown", fingerprint="unknown", version=0)
    if header["version"] > VERSION:
        raise UserError(
            f"{where} has checkpoint layout {header['version']}, this version reads up to {VERSION}: update m2chat"
        )
    if stage is not None and header["stage"] != stage:
        raise UserError(
            f"{where} is a checkpoint of stage '{header['stage']}', but stage '{stage}' is wanted here. "
            "--ckpt_path resumes or evaluates the stage that wrote the file; to start stage 2 from stage 1 use "
            "--model.init_args.init_from instead"
        )
    if backbones is not None:
        if trained_on is None and (recorded := (payload.get("config") or {}).get("backbone")):
            trained_on = BackboneConfig(**recorded)
        if differing := backbones.differing(header, trained_on):
            raise mismatch(differing, where, backbones.backbone, trained_on)


def starting_stage(payload: Mapping[str, Any], stage: str, before: str) -> str:
    """The stage that a checkpoint must be of for a training to start from it.

    Args:
        payload: The checkpoint.
        stage: The training's stage, whose checkpoints it goes on from with new data or settings.
        before: The stage before it.

    Returns:
        `stage` if the checkpoint is of it, else `before`.
    """
    return stage if (payload.get(HEADER) or {}).get("stage") == stage else before


def check_names(actual: Iterable[str], expected: Collection[str], where: str) -> None:
    """Makes sure that exactly the expected tensors are there.

    Raises:
        UserError: That counts and names what is missing or too many.
    """
    actual, expected = set(actual), set(expected)
    faults = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", expected - actual), ("unexpected", actual - expected))
        if names
    ]
    if faults:
        hint = ""
        if all(name.endswith(LOW_RANK) for name in actual ^ expected):
            wanted = "as in the config.yaml of the run that wrote it" if actual - expected else "to null"
            hint = f"; low-rank updates: set backbone.new_lora {wanted}"
        raise UserError(
            f"{where} does not hold the {len(expected)} tensors that are trained here: {'; '.join(faults)}{hint}"
        )


def check_shapes(state: Mapping[str, Tensor], parameters: Mapping[str, Tensor], where: str) -> None:
    """Makes sure that tensors have the shapes of a model's.

    Args:
        state: Tensors of a checkpoint.
        parameters: Those of the model, by the same names.
        where: Name of the checkpoint in messages.

    Raises:
        UserError: That names the first that has not.
    """
    for name, tensor in state.items():
        if parameters[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, the model wants {tuple(parameters[name].shape)}; "
                "set model.init_args as in the config.yaml of the run that wrote it"
            )


def find_checkpoint(
    root: Path,
    stage: str,
    backbones: Fingerprints,
    is_wanted: Callable[[Path, Mapping[str, Any]], bool] = lambda path, payload: True,
    taken: list[Mapping[str, Any]] | None = None,
) -> Path | None:
    """The newest checkpoint of a stage on the same backbones.

    Damaged and unreadable files, and folders of sharded checkpoints, are passed over, with the reason in the log.

    Args:
        root: Folder to look in, at any depth; it need not exist.
        stage: The stage that must have written it.
        backbones: The backbones that it must fit.
        is_wanted: Further condition on path and contents of one that fits.
        taken: List to which the contents of the one that is taken are added.
    """
    dated = [(path.stat().st_mtime_ns, str(path), path) for path in root.rglob("*.ckpt") if path.is_file()]
    for _, _, path in sorted(dated, reverse=True):
        try:
            with not_verified():  # a checksum costs more than a header that does not fit
                payload = read_checkpoint(path)
        except UserError as reason:
            _LOG.warning("passed over: %s", reason)
            continue
        try:
            check_header(payload, str(path), stage, backbones)
        except UserError as reason:
            _LOG.info("passed over: %s", reason)
            continue
        if not is_wanted(path, payload):
            continue
        try:
            read_checkpoint(path)
        except UserError as reason:
            _LOG.warning("passed over: %s", reason)
        else:
            if taken is not None:
                taken.append(payload)
            return path
    return None


def load_trained(
    module: nn.Module,
    path: Path,
    expected_names: Collection[str],
    *,
    stage: str | None,
    backbones: Fingerprints | None,
    trained_on: BackboneConfig | None = None,
    optional_names: Collection[str] = (),
) -> Header:
    """Loads trained tensors into a module and leaves everything else as it is.

    Args:
        module: Has a parameter of each expected name.
        path: Checkpoint file.
        expected_names: Plain names of the tensors that the checkpoint must hold, no more and no fewer.
        stage: The stage that must have written it; None accepts any.
        backbones: The backbones that it must fit; None accepts any.
        trained_on: See `check_header`.
        optional_names: Those of the expected names that it may lack, all of them; these tensors then stay as they are.

    Returns:
        The checkpoint's header.

    Raises:
        UserError: If the file is missing or broken, of another stage, of other backbones, or holds other tensors
            or shapes.
    """
    payload = read_checkpoint(path)
    header: Header = payload[HEADER]
    check_header(payload, str(path), stage, backbones, trained_on)
    state: dict[str, Tensor] = payload["state_dict"]
    if state.keys().isdisjoint(optional_names):
        expected_names = set(expected_names) - set(optional_names)
    check_names(state, expected_names, str(path))
    parameters = {plain_name(name): parameter for name, parameter in module.named_parameters()}
    check_names((name for name in state if name in parameters), expected_names, f"{type(module).__name__}")
    check_shapes(state, parameters, str(path))
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    return header
