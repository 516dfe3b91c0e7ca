"""Settings of a trained model, as its run recorded them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m2chat.errors import UserError
from m2chat.integrity import verify_listed


def run_settings(checkpoint: Path, payload: Mapping[str, Any], config: Path | None = None) -> dict[str, Any] | None:
    """Settings of a model: those in its checkpoint, else in the ``config.yaml`` of its run.

    Args:
        checkpoint: File of the checkpoint; ``config.yaml`` is looked for in its folder and the one above.
        payload: Contents of the checkpoint.
        config: Configuration that takes precedence over both.

    Returns:
        ``backbone``, ``m3adapter`` and ``layout``, each as far as it is recorded; None if there are no settings.

    Raises:
        UserError: If the file is not the configuration of a training run, or is a shipped one and damaged.
    """
    recorded: dict[str, Any] = {} if config else dict(payload.get("config") or {})
    if {"backbone", "layout"} <= recorded.keys():
        return recorded
    beside = (folder / "config.yaml" for folder in list(checkpoint.resolve().parents)[:2])
    path = config or next((file for file in beside if file.is_file()), None)
    return {**read_settings(path), **recorded} if path else recorded or None


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of the model in the ``config.yaml`` of a run, or in a file that was trained with.

    Raises:
        UserError: If it is not the configuration of a training run, or is a shipped one and damaged.
    """
    verify_listed([path])
    try:
        whole = _yaml_of(path)
        model = whole["model"]["init_args"]
        settings: dict[str, Any] = {name: model.get(name) or {} for name in ("backbone", "m3adapter")}
        for name, given in settings.items():
            if isinstance(given, str):  # a separate file, named from where the configuration lies
                settings[name] = _yaml_of(path.parent / given)
        data = whole.get("data") or {}
        layout = {name: data[name] for name in ("max_tokens", "prompt") if data.get(name)}
        if not all(isinstance(value, dict) for value in settings.values()):
            raise TypeError("backbone and m3adapter are no groups of settings")
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the configuration of a training run ({str(error)[:300]})") from error
    return settings | ({"layout": layout} if layout else {})


def _yaml_of(path: Path) -> Any:
    """The content of a file.

    Raises:
        FileNotFoundError: If there is none, or only a pipe, which would be waited for without end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
