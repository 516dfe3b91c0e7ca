"""Configurations of earlier versions: renamed classes and settings that are gone."""

from __future__ import annotations

import logging

import yaml

MOVED = {
    "m2chat.training.vlm_sd_module.VLMSDModule": "m2chat.baselines.vlm_sd.module.VLMSDModule",
    "m2chat.training.diffusers_module.DiffusersModule": "m2chat.baselines.pipelines.module.DiffusersModule",
}
"""Full names of classes in configurations of earlier versions, and their names today."""
DROPPED = {"VLMSDModule": ("m3adapter", "phi")}
"""Settings that a class accepted in earlier versions and never used."""
_LOG = logging.getLogger(__name__)


def migrate(content: str) -> str:
    """The text of a configuration with today's class names and without settings that were never used.

    Args:
        content: YAML text; returned as it is where nothing needs to change, or where it cannot be read.
    """
    try:
        settings = yaml.safe_load(content)
    except yaml.YAMLError:
        return content  # the parser reports it, with the file's name
    model = settings.get("model") if isinstance(settings, dict) else None
    name = model.get("class_path") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(name, str):
        return content
    arguments = model.get("init_args") or {}
    unused = [key for key in DROPPED.get(name.rpartition(".")[2], ()) if key in arguments]
    if name not in MOVED and not unused:
        return content
    model["class_path"] = MOVED.get(name, name)
    model["init_args"] = {key: value for key, value in arguments.items() if key not in unused}
    without = f", without {' and '.join(unused)}, which it never used" if unused else ""
    _LOG.warning("configuration of an earlier version: %s is read as %s%s", name, model["class_path"], without)
    return yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
