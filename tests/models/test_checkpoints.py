from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from m2chat.errors import UserError
from m2chat.models.checkpoints import (
    HEADER,
    Header,
    find_checkpoint,
    load_trained,
    plain_name,
    read_checkpoint,
    trainable_names,
    trainable_state_dict,
)
from toys import named_backbones


def toy() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def write(path: Path, stage: str = "align", fingerprint: str = "abc", module: nn.Module | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = Header(stage=stage, fingerprint=fingerprint, version=1)
    torch.save({"state_dict": trainable_state_dict(module or toy()), HEADER: header}, path)
    return path


def test_only_trained_tensors_and_plain_names() -> None:
    module = toy()
    assert trainable_names(module) == {"1.weight", "1.bias"} == set(trainable_state_dict(module))
    assert plain_name("core._orig_mod.blocks.0._checkpoint_wrapped_module.bias") == "core.blocks.0.bias"
    compiled = torch.compile(nn.Linear(1, 1), backend="eager")
    assert set(trainable_state_dict(compiled)) == {"weight", "bias"}


def test_loading_changes_the_trained_tensors_only(tmp_path: Path) -> None:
    source, target = toy(), toy()
    frozen = target[0].weight.clone()
    path = write(tmp_path / "a.ckpt", module=source)
    header = load_trained(target, path, trainable_names(target), stage="align", backbones=named_backbones())
    assert header["stage"] == "align"
    assert torch.equal(target[1].weight, source[1].weight) and torch.equal(target[0].weight, frozen)


def test_newest_matching_checkpoint_is_found(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"version_{n}" / "x.ckpt") for n in range(3)]
    paths.append(write(tmp_path / "other_stage.ckpt", stage="m3ft"))
    paths.append(write(tmp_path / "other_backbone.ckpt", fingerprint="xyz"))
    paths.append(tmp_path / "broken.ckpt")
    paths[-1].write_bytes(b"PK\x03\x04 not a checkpoint")
    for order, index in enumerate([0, 2, 1, 3, 4, 5]):  # 1 is the newest that fits
        os.utime(paths[index], ns=(order * 10**9, order * 10**9))
    assert find_checkpoint(tmp_path, "align", named_backbones()) == paths[1]
    assert find_checkpoint(tmp_path, "align", named_backbones("nobody")) is None
    assert find_checkpoint(tmp_path / "nowhere", "align", named_backbones()) is None


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    module = toy()
    path, names = write(tmp_path / "a.ckpt", module=module), trainable_names(module)
    with pytest.raises(UserError, match=r"stage 'align', but stage 'm3ft' is wanted.*init_from"):
        load_trained(module, path, names, stage="m3ft", backbones=None)
    with pytest.raises(UserError, match=r"trained on other backbones than those configured: set model"):
        load_trained(module, path, names, stage="align", backbones=named_backbones("xyz"))
    with pytest.raises(UserError, match=r"1 missing \(0\.bias\); 1 unexpected \(1\.bias\)"):
        load_trained(module, path, {"0.bias", "1.weight"}, stage=None, backbones=None)
    other = toy()
    other[1] = nn.Linear(4, 3)
    with pytest.raises(UserError, match=r"1\.weight has shape \(2, 4\), the model wants \(3, 4\)"):
        load_trained(other, path, names, stage=None, backbones=None)
    with pytest.raises(UserError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "nothing.ckpt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": {}, HEADER: Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match="could run code, so it is not opened"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "executed").exists()
