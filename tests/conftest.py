"""Settings that every test needs (no network, one thread, imports that work on every install) and the micro model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from m2chat._compat import ensure_torchvision

ensure_torchvision()
import lightning.pytorch  # noqa: E402, F401  # its log keeps the stderr of its first import, which must be no test's

from m2chat.commands import common  # noqa: E402

# A command that names no model means the micro one, also where the language model of a larger one is here.
common.default_model = lambda: ("micro", "")

torch.set_num_threads(1)  # tests compare numbers, and some fork

if TYPE_CHECKING:
    from m2chat.models.config import BackboneConfig
    from m2chat.models.m2chat import M2ChatModel

MICRO = Path(__file__).parents[1] / "data" / "micro"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache folder of the tests' own, for their processes too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def backbone() -> BackboneConfig:
    """The shipped micro backbones."""
    from m2chat.models.config import BackboneConfig

    return BackboneConfig(
        *(str(MICRO / name) for name in ("llama", "adapter/BIAS-micro.pth", "clip", "sdxl")), num_image_tokens=8
    )


@pytest.fixture(scope="session")
def micro_model(backbone: BackboneConfig) -> M2ChatModel:
    """A small connector on them, in evaluation mode, every adapter gate open; only for tests that change nothing."""
    from m2chat.models.build import build_m2chat
    from m2chat.models.config import M3AdapterConfig

    torch.manual_seed(0)
    model = build_m2chat(backbone, M3AdapterConfig(width=48, heads=4)).eval().requires_grad_(False)
    for layer in model.llama.model.layers:  # what pictures do to words must not depend on how long anyone trained
        layer.self_attn.adapter_gate.fill_(1.0)
    for block in model.m3adapter.image_blocks:  # which starts silent
        for parameter in block.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model
