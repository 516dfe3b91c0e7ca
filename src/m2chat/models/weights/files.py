"""Opening files of weights: compared with their checksums, mapped into memory, never executed.

Each way to be wrong is one clear error.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2chat.checksums import is_cut_off
from m2chat.errors import UserError
from m2chat.integrity import verify, verify_listed
from m2chat.models.weights.known import warn_if_not_published
from m2chat.models.weights.script import PICKLE_ERRORS, is_script, read_script, reason_of

_REMEDY = "`make backbones` rebuilds the micro ones, and data/README.md says where the real ones come from"
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
_POINTER = b"version https://git-lfs"


def load_json(path: Path, what: str) -> dict[str, Any]:
    """Reads a folder's description or reports what is missing.

    Args:
        path: The file.
        what: The setting that names it, for messages.

    Raises:
        UserError: With the setting, the path and the remedy.
    """
    if not path.is_file():
        raise UserError(f"{what}: there is no {path}. Point the setting at a complete folder; {_REMEDY}.")
    verify_listed([path])
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: {path} is not JSON ({error}): copy it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{what}: {path} holds no object but {type(data).__name__}: copy it again")
    return data


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file; they stay on disk until they are used.

    Raises:
        UserError: If the file is missing, truncated or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_file(path, what)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, what, str(error), _safetensors_size(path)) from error


def read_safetensors_metadata(path: Path, what: str) -> dict[str, str]:
    """The strings that a safetensors file carries beside its tensors."""
    from safetensors import SafetensorError, safe_open

    _require_file(path, what)
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, what, str(error), _safetensors_size(path)) from error


def read_pickled(path: Path, what: str, mmap: bool = True, map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote, without executing anything in it; tensors stay on disk until they are used.

    An `argparse.Namespace`, which training checkpoints carry, is allowed: it runs no code.

    Args:
        path: The file.
        what: The setting that names it, for messages.
        mmap: Whether tensors stay on disk, where the file's form allows it.
        map_location: Device of the tensors, as in `torch.load`.

    Raises:
        UserError: If the file is missing, truncated, holds objects that would run code, or is something else.
    """
    _require_file(path, what)
    try:
        with torch.serialization.safe_globals([Namespace]):
            # Files from before torch 1.6 are no zip archives, and only those can be mapped.
            mapped = mmap and zipfile.is_zipfile(path)
            return torch.load(path, mmap=mapped, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if any(
            sign in str(error)
            for sign in ("Unsupported global", "Unsupported class", "Unsupported operand", "Trying to", "not allowed")
        ):
            raise UserError(
                f"{what}: {path} holds more than tensors, and opening it could run code, so it is not opened: "
                "get the weights as .safetensors, or save them again as a plain dict of tensors"
            ) from error
        raise _broken(path, what, str(error), None) from error
    except PICKLE_ERRORS as error:
        raise _broken(path, what, str(error), None) from error


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a file of any kind; a pickled one may keep them under ``state_dict`` or ``model``.

    Raises:
        UserError: If the file is missing, broken, or holds no named tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, what)
    _require_file(path, what)
    if is_script(path):
        return read_script(path, what)
    payload = read_pickled(path, what)
    for key in ("state_dict", "model"):
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            payload = payload[key]
    if not isinstance(payload, Mapping) or not any(isinstance(value, Tensor) for value in payload.values()):
        raise UserError(f"{what}: {path} holds no named tensors; expected is a dict of them, as state_dict() gives it")
    return {str(name): value for name, value in payload.items() if isinstance(value, Tensor)}


def weight_files(folder: Path, what: str) -> list[Path]:
    """The files of a network's weights in a folder, as transformers and diffusers save it.

    Safetensors go before pickles, in each full precision before the ``fp16`` variant, and in each a whole file before
    shards. An index of which no shard is there is stale, left by who merged them: it counts only if there is nothing
    else.

    Raises:
        UserError: If there are none, or a shard that the index names is missing.
    """
    stale: UserError | None = None
    for kind in ("safetensors", "bin"):
        for half in (False, True):
            for stem in _STEMS:
                if (path := folder / f"{stem}{'.fp16' if half else ''}.{kind}").is_file():
                    return [path]
            for index in sorted(folder.glob(f"*.{kind}.index*.json")):
                if (".fp16." in index.name) is not half:
                    continue
                names = sorted(set(load_json(index, what)["weight_map"].values()))
                lost = [name for name in names if not (folder / name).is_file()]
                if not lost:
                    return [folder / name for name in names]
                fault = UserError(
                    f"{what}: {folder} lacks {len(lost)} of the {len(names)} files of weights that {index.name} names, "
                    f"such as {lost[0]}: complete the download"
                )
                if len(lost) < len(names):
                    raise fault
                stale = stale or fault
    raise stale or UserError(
        f"{what}: {folder} has no weights (*.safetensors or *.bin) beside its description: complete it; {_REMEDY}."
    )


def read_folder(folder: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a network's folder, from one file or from shards.

    Raises:
        UserError: If a file is missing or broken.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, what):
        state |= read_tensors(path, what)
    return state


def require_no_code(folder: Path, what: str) -> None:
    """Refuses a folder from which a library might import code, before the library sees it.

    Raises:
        UserError: That names the file: a Python file, or a description that names its own classes (``auto_map``).
    """
    code = sorted(folder.rglob("*.py"))
    code += [path for path in sorted(folder.rglob("*config*.json")) if "auto_map" in load_json(path, what)]
    if code:
        raise UserError(
            f"{what}={str(folder)!r} brings code of its own ({code[0].relative_to(folder)}), which is not executed: "
            "use a folder whose parts are all of the libraries"
        )


def _require_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise UserError(f"{what}: {path} is a folder; expected is a file of weights")
    if not path.is_file():
        raise UserError(f"{what}: there is no {path}; {_REMEDY}.")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{what}: {path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if path.suffix == ".safetensors" and (size := _safetensors_size(path) or 0) > path.stat().st_size:
        raise _broken(path, what, "", size)
    if is_cut_off(path):
        raise _broken(path, what, "the end of the archive is missing", None)
    if not verify(path):
        warn_if_not_published(path)


def _safetensors_size(path: Path) -> int | None:
    """Size in bytes that a safetensors file should have, from its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= 1 << 27:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def _broken(path: Path, what: str, reason: str, expected: int | None) -> UserError:
    size = path.stat().st_size
    if expected is not None and expected > size:
        cause = f"is truncated: {size:,} of {expected:,} bytes are there"
    else:
        cause = f"({size:,} bytes) cannot be read as weights, it is truncated, damaged or of another kind: "
        cause += reason_of(reason)
    return UserError(f"{what}: {path} {cause}. Copy or download it again; `m2chat weights check` verifies its SHA-256")
