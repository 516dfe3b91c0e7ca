"""Configurations that earlier versions saved are read, by today's names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from m2chat import lightning_cli, migration

ROOT = Path(__file__).parent.parent
BASELINE = """\
model:
  class_path: m2chat.training.vlm_sd_module.VLMSDModule
  init_args:
    backbone: {language_model: l, adapter: a, vision_encoder: v, image_decoder: i, channel_order: rgb, \
num_image_tokens: 8}
    m3adapter: {width: 192, heads: 6, blocks: 2, layers: [-1], f_img: true, gate: {mode: learnable, value: 0.5}}
    phi: 0.1
    prompt: caption
    evaluation: {given: nothing, max_tokens: 320}
data:
  max_tokens: 320
"""


def read(tmp_path: Path, text: str) -> tuple[Any, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return lightning_cli.read_config([str(path)])


def test_the_baseline_is_read_without_what_it_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings, module = read(tmp_path, BASELINE)
    assert type(module).__name__ == "VLMSDModule" and module.prompt == "caption"
    assert settings.model.class_path == "m2chat.baselines.vlm_sd.module.VLMSDModule"
    assert module.backbone.image_decoder == "i" and settings.data.max_tokens == 320
    assert "VLMSDModule, without m3adapter and phi, which it never used" in caplog.text


def test_the_pipeline_is_read_by_its_name_of_today(tmp_path: Path) -> None:
    config = yaml.safe_load(BASELINE)
    arguments = {"backbone": config["model"]["init_args"]["backbone"], "negative": "zeros"}
    config["model"] = {"class_path": "m2chat.training.diffusers_module.DiffusersModule", "init_args": arguments}
    _, module = read(tmp_path, yaml.safe_dump(config))
    assert type(module).__name__ == "DiffusersModule" and module.negative == "zeros"


@pytest.mark.parametrize("text", ["model: {class_path: M3FTModule, init_args: {phi: 1.0}}", "a: [", "- 1", "model: x"])
def test_anything_else_stays_as_it_is(text: str) -> None:
    assert migration.migrate(text) is text
