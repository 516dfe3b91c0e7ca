"""What is missing or belongs to something else is refused before a network is built, which may take gigabytes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from m2chat.errors import UserError
from m2chat.pipeline import M2ChatPipeline
from m2chat.training import m2chat_module


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a network would have been built")

    monkeypatch.setattr(m2chat_module, "build_m2chat", build)
    monkeypatch.setattr("m2chat.pipeline.weights.build_m2chat", build)


@pytest.fixture
def without_unet(micro: Any, tmp_path: Path) -> str:
    """SDXL without its UNet's weights."""
    folder = Path(shutil.copytree(micro.backbone().image_decoder, tmp_path / "sdxl"))
    next((folder / "unet").glob("*.safetensors")).unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("image_decoder", None, r"unet has no weights"),
        ("vision_encoder", "ViT-L-14-quickgelu:opanai", r"'opanai' is neither a file nor weights"),
        ("vision_encoder", "ViT-L-14:openai", r"use the architecture 'ViT-L-14-quickgelu'"),
        ("language_model", "nowhere", r"backbone\.language_model='nowhere'"),
        ("adapter", "nowhere.pth", r"backbone\.adapter: there is no nowhere\.pth"),
    ],
)
def test_training(micro: Any, without_unet: str, setting: str, value: str | None, message: str) -> None:
    backbone = replace(micro.backbone(), **{setting: value or without_unet})
    module = micro.module("align")
    other = type(module)(backbone=backbone, m3adapter=module.m3adapter, optim=module.optim)
    with pytest.raises(UserError, match=message):
        other.configure_model()


def test_drawing(micro: Any, without_unet: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unet has no weights"):
        M2ChatPipeline.from_pretrained(image_decoder=without_unet)
    folder = Path(shutil.copytree(micro.backbone().language_model, tmp_path / "llama"))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100_000:] = bytes(100_000)
    path.write_bytes(data)
    (folder / "m2chat.sha256").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"trained on (another backbone\.language_model|other backbones)"):
        M2ChatPipeline.from_pretrained(backbone=replace(micro.backbone(), language_model=str(folder)))
