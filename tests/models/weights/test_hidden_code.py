"""Code hidden in any file that weights, statistics or checkpoints are read from is not executed: it is an error."""

from __future__ import annotations

import copyreg
import functools
import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from m2chat.baselines.pipelines.module import DiffusersModule
from m2chat.data.prints import prints_of_shard
from m2chat.data.shards import open_shard, write_shards
from m2chat.errors import UserError
from m2chat.metrics.encoders import OpenClipEncoder
from m2chat.metrics.extractors import InceptionExtractor
from m2chat.metrics.fid import Moments
from m2chat.models.build import load_language
from m2chat.models.checkpoints import HEADER, find_checkpoint, read_checkpoint
from m2chat.models.config import BackboneConfig
from m2chat.models.weights.adapter import open_adapter
from m2chat.models.weights.clip import open_clip_tower
from m2chat.models.weights.diffusion import open_diffusion
from m2chat.models.weights.files import read_folder
from m2chat.models.weights.llama import open_llama
from m2chat.models.weights.script import read_script
from m2chat.schema import Image, Sample, Turn
from m2chat.training.atomic_io import AtomicCheckpointIO
from m2chat.training.consolidate import consolidate
from m2chat.training.shares import read_metadata
from toys import named_backbones

MICRO = Path(__file__).parents[3] / "data" / "micro"
CANARY = "executed"
TOUCH = f"touch {CANARY}"
CODE = f"open({CANARY!r}, 'w').close()"
EXTENSION = 0x7F0001


class Reduced:
    """What most hostile pickles look like.

    Args:
        function: To call.
        arguments: With these.
    """

    def __init__(self, function: Any, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


class Set:
    """An allowed class whose state is set by a call.

    Args:
        made: Called without arguments.
        state: That it gets.
    """

    def __init__(self, made: Any, state: object) -> None:
        self.parts = made, (), state

    def __reduce__(self) -> Any:
        return self.parts


def op(*parts: bytes | str) -> bytes:
    """A pickle from its opcodes."""
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts) + b"."


def text(value: str) -> bytes:
    """Pushes a string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def inner(payload: object) -> bytes:
    """What a storage of an old file holds: a pickle within a pickle."""
    buffer = io.BytesIO()
    torch.save(payload, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def dumps(payload: object, protocol: int = 2) -> bytes:
    return pickle.dumps(payload, protocol)


SYSTEM = Reduced(os.system, TOUCH)
MAP = b"cbuiltins\nmap\n(cos\nsystem\n](" + text(TOUCH) + b"et\x81"
WAYS: dict[str, bytes] = {
    "reduce": dumps(SYSTEM),
    "reduce, protocol 0": dumps(SYSTEM, 0),
    "stack global": dumps(SYSTEM, 4),
    "global of os": op("cos\nsystem\n(", text(TOUCH), "tR"),
    "eval": dumps(Reduced(eval, CODE)),
    "exec": dumps(Reduced(exec, CODE)),
    "getattr of an import": op(
        "cbuiltins\ngetattr\n(c__builtin__\n__import__\n(", text("os"), "tR", text("system"), "tR(", text(TOUCH), "tR"
    ),
    "dotted name": op(b"\x80\x04", text("torch"), text("serialization.os.system"), b"\x93(", text(TOUCH), "tR"),
    "inst": op("(", text(TOUCH), "ios\nsystem\n"),
    "obj": op("(cos\nsystem\n", text(TOUCH), "o"),
    "newobj": op(b"\x80\x02cbuiltins\ntuple\n(", MAP, b"t\x81"),
    "newobj with keywords": op(b"\x80\x04cbuiltins\ntuple\n(", MAP, b"t}\x92"),
    "nested in an optimiser": dumps({"optimizer_states": [{"state": {0: {"exp_avg": SYSTEM}}}]}),
    "key of a table": dumps({Reduced(os.system, TOUCH): 1}),
    "state of an allowed class": dumps(Set(OrderedDict, {"more": SYSTEM})),
    "extension registry": op(b"\x80\x02\x84", struct.pack("<i", EXTENSION), "(", text(TOUCH), "tR"),
    "reconstructor": dumps(Reduced(copyreg._reconstructor, Reduced(type, "T", (), {}), object, SYSTEM)),  # type: ignore[attr-defined]
    "apply by map": dumps(Reduced(list, Reduced(map, os.system, [TOUCH]))),
    "module that is run": dumps(Reduced(__import__("runpy").run_path, "hidden.py")),
    "loader within": dumps(Reduced(torch.storage._load_from_bytes, inner(SYSTEM))),
    "torch.load": dumps(Reduced(functools.partial(torch.load, "hidden.pt", weights_only=False))),
    "parameter with state": dumps(Reduced(torch._utils._rebuild_parameter_with_state, SYSTEM, True, {}, {})),
    "numpy object": dumps(np.array([SYSTEM], object)),
    "persistent id": op(dumps(SYSTEM)[:-1], "Q"),
}
"""Pickles that touch a file when they are loaded."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the canary would appear, checked after the test."""
    monkeypatch.chdir(tmp_path)
    Path("hidden.py").write_text(CODE)
    Path("hidden.pt").write_bytes(inner(SYSTEM))
    copyreg.add_extension("os", "system", EXTENSION)
    yield tmp_path
    copyreg.remove_extension("os", "system", EXTENSION)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("way", WAYS)
def test_each_way_would_work_on_a_plain_unpickler(way: str) -> None:
    """Else the tests below would prove nothing."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

    try:
        Unpickler(io.BytesIO(WAYS[way])).load()
    except (TypeError, AttributeError, pickle.UnpicklingError):
        pass  # it has been executed before
    assert Path(CANARY).exists()
    Path(CANARY).unlink()


def archive(path: Path, data: bytes, like: object = None) -> Path:
    """A file as torch saves it, with another pickle."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)} if like is None else like, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("/data.pkl") else old.read(name))
    return path


def legacy(path: Path, data: bytes) -> Path:
    """A file as torch saved it before 1.6."""
    magic, protocol, system = (dumps(part) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(magic + protocol + system + data + dumps([]))
    return path


def llama_folder(data: bytes, name: str) -> Path:
    folder = Path("llama")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "params.json").unlink(missing_ok=True)
    if name.startswith("consolidated"):
        (folder / "params.json").write_text("{}")
    archive(folder / name, data)
    return folder


def clip_folder(data: bytes) -> Path:
    folder = Path("clip")
    shutil.copytree(MICRO / "metric_clip", folder, dirs_exist_ok=True)
    (folder / "open_clip_model.safetensors").unlink()
    archive(folder / "open_clip_pytorch_model.bin", data)
    return folder


def diffusion_folder(data: bytes) -> Path:
    folder = Path("sd")
    shutil.copytree(MICRO / "sd15", folder, dirs_exist_ok=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    archive(folder / "unet" / "diffusion_pytorch_model.bin", data)
    return folder


def pipeline(folder: Path) -> None:
    DiffusersModule(BackboneConfig("", "", "", str(folder), 8)).configure_model()


def language(path: Path) -> None:
    load_language(BackboneConfig(str(MICRO / "llama"), str(path), "", "", 8))


READERS: dict[str, Callable[[bytes], Any]] = {
    "checkpoint": lambda data: read_checkpoint(archive(Path("a.ckpt"), data)),
    "checkpoint that is resumed": lambda data: AtomicCheckpointIO().load_checkpoint(archive(Path("a.ckpt"), data)),
    "old checkpoint": lambda data: read_checkpoint(legacy(Path("a.ckpt"), data)),
    "checkpoint that is a bare pickle": lambda data: [
        Path("a.ckpt").write_bytes(data),
        read_checkpoint(Path("a.ckpt")),
    ],
    "adapter": lambda data: open_adapter(archive(Path("a.pth"), data), "x"),
    "old adapter": lambda data: language(legacy(Path("a.pth"), data)),
    "Meta's LLaMA": lambda data: open_llama(llama_folder(data, "consolidated.00.pth"), "x"),
    "transformers' LLaMA": lambda data: open_llama(llama_folder(data, "pytorch_model.bin"), "x"),
    "CLIP": lambda data: open_clip_tower(str(archive(Path("clip.pt"), data)), "x"),
    "CLIP's folder": lambda data: open_clip_tower(str(clip_folder(data)), "x"),
    "CLIP as a metric": lambda data: OpenClipEncoder("ViT-B-32-quickgelu", str(archive(Path("clip.pt"), data)))._load(),
    "CLIP's folder as a metric": lambda data: OpenClipEncoder(str(clip_folder(data)))._load(),
    "Inception": lambda data: InceptionExtractor(str(archive(Path("w.pth"), data)))._load(),
    "old Inception": lambda data: InceptionExtractor(str(legacy(Path("w.pth"), data)))._load(),
    "diffusers' folder": lambda data: open_diffusion(diffusion_folder(data), "x"),
    "diffusers' pipeline": lambda data: pipeline(diffusion_folder(data)),
    "moments": lambda data: [Path("m.npz").write_bytes(data), Moments.load(Path("m.npz"), "x")],
}
SLOW = {"CLIP as a metric", "CLIP's folder as a metric", "diffusers' pipeline"}
"""Readers that build a network first: they get a few ways only."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_hidden_code_is_an_error(reader: str) -> None:
    ways = ["reduce", "dotted name", "loader within"] if reader in SLOW else list(WAYS)
    for way in ways:
        with pytest.raises(UserError):
            READERS[reader](WAYS[way])
        assert not Path(CANARY).exists(), way


def test_a_hidden_checkpoint_is_passed_over(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive(here / "runs" / "a.ckpt", WAYS["reduce"])
    assert find_checkpoint(here / "runs", "align", named_backbones()) is None
    assert "passed over" in caplog.text and "could run code" in caplog.text


# Checkpoints in shares


@pytest.fixture
def shares(here: Path) -> Path:
    """A checkpoint in shares as an earlier version wrote it, without checksums."""
    folder = here / "shares.ckpt"
    state = {
        "state_dict": {"w": torch.arange(6.0).view(2, 3)},
        "optimizer_0": {"state": {"w": {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]},
    }
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({HEADER: {"stage": "align", "fingerprint": "abc", "version": 1}}, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_shares_without_code_are_read(shares: Path, here: Path) -> None:
    theirs = pickle.loads((shares / ".metadata").read_bytes())
    ours = read_metadata(shares)
    assert ours.state_dict_metadata == theirs.state_dict_metadata and ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data
    assert consolidate(shares, here / "a.ckpt") == 6
    whole = read_checkpoint(here / "a.ckpt")
    assert torch.equal(whole["state_dict"]["w"], torch.arange(6.0).view(2, 3))
    assert whole["optimizer_states"][0]["param_groups"] == [{"lr": 0.1, "params": [0]}]


def described(**changed: object) -> bytes:
    """A description of shares with other fields."""
    return dumps(Metadata(**{"state_dict_metadata": {}, "planner_data": {}, "storage_data": {}, **changed}), 4)


METADATA: dict[str, bytes] = {
    **WAYS,
    "code in the plan": described(planner_data={"w": SYSTEM}),
    "code in an entry": described(state_dict_metadata={"w": TensorStorageMetadata(SYSTEM, torch.Size([1]), [])}),  # type: ignore[arg-type]
    "a size of code": described(state_dict_metadata={"w": Reduced(torch.Size, Reduced(map, os.system, [TOUCH]))}),
    "an allowed class is called": op(
        "ctorch.distributed.checkpoint.metadata\nMetadata\n(ctorch.serialization\n_get_layout\n", text(TOUCH), "tR"
    ),
    "an allowed class is changed": op(
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}", text("__setstate__"), "cos\nsystem\nstb",
        text(TOUCH), "b",
    ),
    "an allowed class learns to call another": op(
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n(N}", text("__setstate__"),
        "ctorch.distributed.checkpoint.metadata\nStorageMeta\nstb)\x81", text(TOUCH), "b",
    ),
    "a path of another class": op("cpathlib\nPath.home\n)R"),
    "a precision that is none": op("ctorch\nload\n(", text("hidden.pt"), "tR"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", METADATA)
def test_code_in_the_description_of_shares(shares: Path, here: Path, way: str) -> None:
    before = Metadata.__dict__.copy()
    (shares / ".metadata").write_bytes(METADATA[way])
    with pytest.raises(UserError, match=r"\.metadata is missing, damaged or no description of shares"):
        consolidate(shares, here / "a.ckpt")
    with pytest.raises(UserError):
        read_metadata(shares)
    assert Metadata.__dict__ == before and not (here / "a.ckpt").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["value", "tensor", "rest"])
def test_code_in_the_shares_themselves(shares: Path, here: Path, kind: str) -> None:
    described = pickle.loads((shares / ".metadata").read_bytes())
    prefix = {"value": "optimizer_0.param_groups.0.lr", "tensor": "state_dict.w"}.get(kind)
    share = next(shares.glob("*.distcp"))
    whole = share.read_bytes()
    for way in WAYS:
        if prefix is None:
            archive(shares / "meta.pt", WAYS[way])
        else:
            data = archive(here / "part", WAYS[way]).read_bytes()
            for index, info in described.storage_data.items():
                if index.fqn == prefix:
                    info.offset, info.length, info.relative_path = len(whole), len(data), share.name
            (shares / ".metadata").write_bytes(dumps(described, 4))
            share.write_bytes(whole + data)
        with pytest.raises(UserError):
            consolidate(shares, here / "a.ckpt")
        assert not Path(CANARY).exists(), way


@pytest.mark.filterwarnings("ignore")
def test_shares_elsewhere_are_not_opened(shares: Path, here: Path) -> None:
    described = pickle.loads((shares / ".metadata").read_bytes())
    for info in described.storage_data.values():
        info.relative_path = f"../{shares.name}/{info.relative_path}"
    (shares / ".metadata").write_bytes(dumps(described, 4))
    with pytest.raises(UserError, match="a share is called"):
        consolidate(shares, here / "a.ckpt")


def test_a_flipped_number_does_not_take_the_memory(shares: Path, here: Path) -> None:
    """An unpickler in C makes room for every number below that of a memo."""
    evil = op(b"\x80\x02]r", struct.pack("<I", 0xFFFFFF))
    (shares / ".metadata").write_bytes(evil)
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), here / "net.pt")
    with zipfile.ZipFile("net.pt") as old, zipfile.ZipFile("evil.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("net/", "evil/"), evil if name.endswith("/data.pkl") else old.read(name))
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            read_metadata(shares)
        assert read_script(here / "evil.pt", "x") == {}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# TorchScript, object arrays, folders with code


class Script(nn.Module):
    """Writes a file when it is restored: TorchScript may."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = bool(torch.from_file("executed", True, 1).sum() > -1)


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_a_torchscript_archive_is_not_run(here: Path) -> None:
    torch.jit.save(torch.jit.script(Script()), here / "clip.pt")
    torch.jit.load(here / "clip.pt")
    assert Path(CANARY).exists(), "it would run"
    Path(CANARY).unlink()
    for read in (
        lambda: open_clip_tower("clip.pt", "x"),
        lambda: open_clip_tower("ViT-B-32-quickgelu:clip.pt", "x"),
        lambda: OpenClipEncoder("ViT-B-32-quickgelu", "clip.pt")._load(),
        lambda: InceptionExtractor("clip.pt")._load(),
        lambda: open_adapter(Path("clip.pt"), "x"),
        lambda: read_checkpoint(Path("clip.pt")),
    ):
        with pytest.raises(UserError):
            read()
    for way, data in WAYS.items():
        with zipfile.ZipFile("clip.pt") as old, zipfile.ZipFile("evil.pt", "w") as new:
            for name in old.namelist():
                new.writestr(name.replace("clip/", "evil/"), data if name.endswith("/data.pkl") else old.read(name))
        with pytest.raises(UserError, match="nothing in it was executed"):
            open_clip_tower("evil.pt", way)
        assert not Path(CANARY).exists(), way


def test_a_script_s_tensors_are_those_that_torch_reads(here: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 2).half(), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(3, 2)))
    torch.jit.save(torch.jit.script(network), here / "net.pt")
    ours, theirs = read_script(here / "net.pt", "x"), torch.jit.load(here / "net.pt").state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_arrays_of_objects_are_not_read(here: Path) -> None:
    evil = np.array([SYSTEM], object)
    np.savez(here / "m.npz", n=3, total=evil, outer=evil, extractor="x")
    with pytest.raises(UserError, match="cannot be read as moments"):
        Moments.load(here / "m.npz", "x")
    np.save(here / "m.npy", evil, allow_pickle=True)
    with pytest.raises(UserError, match="is a single array"):
        Moments.load(here / "m.npy", "x")
    turns = (Turn("user", ("hello",)), Turn("assistant", ("here", 0)))
    write_shards(
        [Sample("a", turns, (Image(np.zeros((8, 8, 3), np.uint8), "c"),), kind="dialogue", source="b")], here / "talk"
    )
    (path,) = (here / "talk").glob("*.tar")
    right = prints_of_shard(open_shard(path))
    np.savez(path.with_name(f"{path.name}.prints.npz"), stamp=evil, hashes=evil, what=evil, sample=evil)
    assert np.array_equal(prints_of_shard(open_shard(path)).hashes, right.hashes), "they are made anew"


@pytest.mark.parametrize("change", ["class", "part", "file", "map"])
def test_a_pipeline_that_brings_code_is_refused(here: Path, change: str) -> None:
    shutil.copytree(MICRO / "sd15", here / "sd")
    index = json.loads((here / "sd" / "model_index.json").read_text())
    if change == "class":
        index["_class_name"] = ["hidden", "Pipeline"]
    elif change == "part":
        index["vae"] = ["hidden", "Vae"]
    elif change == "file":
        shutil.copy("hidden.py", here / "sd" / "vae" / "diffusers.py")
    else:
        (here / "sd" / "tokenizer" / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": "h.T"}})
        )
    (here / "sd" / "model_index.json").write_text(json.dumps(index))
    if change in ("class", "part"):
        shutil.copy("hidden.py", here / "sd" / "hidden.py")
    with pytest.raises(UserError, match="brings code of its own"):
        pipeline(here / "sd")


def test_an_encoder_that_brings_a_tokenizer_of_its_own_is_refused(here: Path) -> None:
    shutil.copytree(MICRO / "metric_clip", here / "clip")
    settings = {"auto_map": {"AutoTokenizer": ["hidden.T", None]}}
    (here / "clip" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"brings code of its own \(tokenizer_config\.json\)"):
        OpenClipEncoder(str(here / "clip"))._load()


def test_bin_folders_without_code_are_read(here: Path) -> None:
    torch.save({"w": torch.ones(2)}, here / "pytorch_model.bin")
    assert torch.equal(read_folder(here, "x")["w"], torch.ones(2))
