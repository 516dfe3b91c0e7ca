"""Each way in which a file of weights can be wrong is one clear error that names the file and the remedy."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m2chat.checksums import sha256
from m2chat.errors import UserError
from m2chat.files import whole_folder
from m2chat.models.weights.files import (
    load_json,
    read_folder,
    read_pickled,
    read_safetensors,
    read_tensors,
)
from m2chat.models.weights.loading import fill, on_meta
from m2chat.pipeline.run_settings import read_settings, run_settings

TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(3, 4).half()}


def test_a_missing_file_names_the_setting_and_the_remedy(tmp_path: Path) -> None:
    for read in (read_safetensors, read_pickled):
        with pytest.raises(UserError, match=r"backbone\.x: there is no .*nowhere; `make backbones` rebuilds"):
            read(tmp_path / "nowhere", "backbone.x")
        with pytest.raises(UserError, match=r"is a folder; expected is a file of weights"):
            read(tmp_path, "backbone.x")


def test_a_truncated_file_says_how_much_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    expected = rf"model\.safetensors is truncated: {len(whole) - 100:,} of {len(whole):,} bytes.*download it again"
    with pytest.raises(UserError, match=expected):
        read_safetensors(path, "x")
    for bad in (b"", whole[:5], whole[:40], b"\xff" * 200):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"cannot be read as weights.*Copy or download it again"):
            read_safetensors(path, "x")
    torch.save(TENSORS, tmp_path / "model.pth")
    whole = (tmp_path / "model.pth").read_bytes()
    for bad in (b"", whole[:40], whole[: len(whole) // 2], whole[:-30], b"hello"):
        (tmp_path / "model.pth").write_bytes(bad)
        with pytest.raises(UserError, match=r"model\.pth \([\d,]+ bytes\) cannot be read as weights"):
            read_pickled(tmp_path / "model.pth", "x")


class Bomb:
    """What a hostile pickle looks like."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": TENSORS, "args": Bomb()}, "bomb.pth")
    with pytest.raises(UserError, match=r"bomb\.pth holds more than tensors.*could run code, so it is not opened"):
        read_pickled(Path("bomb.pth"), "x")
    assert not Path("exploded").exists()
    torch.save({"model": TENSORS, "args": Namespace(lr=0.1, out=None)}, "whole.pth")
    assert read_pickled(Path("whole.pth"), "x")["args"].lr == 0.1
    torch.save(TENSORS, "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(Path("old.pth"), "x")["a"], TENSORS["a"])


def test_no_refusal_quotes_the_advice_to_switch_the_guard_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TENSORS, tmp_path / "a.pth")
    advice = "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False`"

    def refuse(*_: object, **__: object) -> None:
        raise pickle.UnpicklingError(f"{advice} will likely succeed")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match="something else than tensors") as refused:
        read_pickled(tmp_path / "a.pth", "x")
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("content", ["[1]", "5", "[" * 5000, '"a"', "null"])
def test_a_description_is_an_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"x: .*config\.json (is not JSON|holds no object)"):
        load_json(tmp_path / "config.json", "x")


def test_what_lies_beside_a_checkpoint_neither_hangs_nor_ends_in_a_traceback(tmp_path: Path) -> None:
    beside = tmp_path / "config.yaml"
    os.mkfifo(beside)
    assert run_settings(tmp_path / "a.ckpt", {}) is None
    with pytest.raises(UserError, match="there is no file"):
        read_settings(beside)
    beside.unlink()
    broken = [
        b"a: [", b"\xff\xfe\x00", b"[]", b"model: 5", b"[" * 5000, b"model: {init_args: {backbone: [1]}}",
        b"model: {init_args: {backbone: /dev/zero}}", b"!!python/object/apply:os.system ['touch exploded']",
    ]  # fmt: skip
    for content in broken:
        beside.write_bytes(content)
        with pytest.raises(UserError, match=r"config\.yaml is not the configuration of a training run"):
            run_settings(tmp_path / "a.ckpt", {})


def test_a_pointer_is_not_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"Git LFS pointer, not the weights: run `git lfs pull`"):
        read_safetensors(tmp_path / "model.safetensors", "x")


def test_a_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth holds no named tensors"):
        read_tensors(tmp_path / "list.pth", "x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_json(tmp_path / "config.json", "x")


def test_folders_in_each_layout(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name, key in zip(names, TENSORS, strict=True):
        save_file({key: TENSORS[key]}, tmp_path / name)
    index = {"weight_map": dict(zip(TENSORS, names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_folder(tmp_path, "x").keys() == TENSORS.keys()
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 2 files of weights that .*index\.json names, such as model-2"):
        read_folder(tmp_path, "x")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"has no weights \(\*\.safetensors or \*\.bin\) beside its description"):
        read_folder(tmp_path, "x")
    torch.save({"a": TENSORS["a"]}, tmp_path / "pytorch_model.bin")
    assert read_folder(tmp_path, "x").keys() == {"a"}
    save_file(TENSORS, tmp_path / "model.fp16.safetensors")
    assert read_folder(tmp_path, "x").keys() == TENSORS.keys(), "safetensors come first"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as part:
        (part / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "out") as part:
        (part / "all").write_text("x")
    assert (tmp_path / "out" / "all").is_file() and len(sha256(tmp_path / "out" / "all")) == 64
    with (
        pytest.raises(UserError, match=r"out is there already and has something in it"),
        whole_folder(tmp_path / "out"),
    ):
        pass


def test_filling_uses_the_file_s_own_memory_unless_told_to_copy(tmp_path: Path) -> None:
    """No tensor is allocated twice: in the file's precision it is the file's pages themselves."""
    save_file({"weight": torch.randn(64, 64), "bias": torch.zeros(64)}, tmp_path / "model.safetensors")
    mapped = read_safetensors(tmp_path / "model.safetensors", "x")
    place = mapped["weight"].data_ptr()
    linear = fill(on_meta(lambda: torch.nn.Linear(64, 64)), dict(mapped), "x")
    assert linear.weight.data_ptr() == place and not linear.weight.is_meta
    copied = fill(on_meta(lambda: torch.nn.Linear(64, 64)), dict(mapped), "x", copy=True)
    assert copied.weight.data_ptr() != place and torch.equal(copied.weight, linear.weight)
    halved = fill(on_meta(lambda: torch.nn.Linear(64, 64)), dict(mapped), "x", torch.bfloat16)
    assert halved.weight.dtype == torch.bfloat16 and halved.weight.requires_grad
    with pytest.raises(UserError, match=r"1 missing \(bias\); 1 unexpected \(more\); 1 of another shape \(weight is"):
        fill(on_meta(lambda: torch.nn.Linear(64, 32)), {"weight": mapped["weight"], "more": mapped["bias"]}, "x")
