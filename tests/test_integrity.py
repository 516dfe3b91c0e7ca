"""No flipped bit in a file that is written or shipped here goes unnoticed by the reader that uses it."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

from m2chat import checksums, integrity
from m2chat.checksums import SUMS, sha256, stated, write_sums
from m2chat.commands import main
from m2chat.data.faults import check
from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import INDEX, FeatureView, Form, Index
from m2chat.data.manifest import Listed, write_manifest
from m2chat.data.shards import write_shards
from m2chat.data.sources import caption_sample
from m2chat.errors import UserError
from m2chat.integrity import not_verified, verify, verify_folder
from m2chat.metrics.encoders import OpenClipEncoder
from m2chat.metrics.feature_net import FeatureNet
from m2chat.metrics.fid import Moments
from m2chat.models.checkpoints import HEADER, find_checkpoint, read_checkpoint
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig
from m2chat.models.weights.adapter import open_adapter
from m2chat.models.weights.clip import open_clip_tower
from m2chat.models.weights.diffusion import load_diffusion, open_diffusion, open_with_parts
from m2chat.models.weights.exported import Manifest, export_weights, read_exported
from m2chat.models.weights.files import read_safetensors
from m2chat.models.weights.llama import open_llama
from m2chat.pipeline.run_settings import read_settings
from m2chat.schema import Image
from m2chat.text import M2ChatTokenizer
from m2chat.text.clip_tokenizers import clip_tokenizers
from m2chat.training.atomic_io import AtomicCheckpointIO
from m2chat.training.consolidate import consolidate
from m2chat.training.shares import write_checksums
from toys import named_backbones

MICRO = Path(__file__).parents[1] / "data" / "micro"
NOWHERE = BackboneConfig("", "", "", "", 8)
FLIPS = 500
Reader = Callable[[], Any]


def checkpoint(path: Path, fingerprint: str = "abc") -> Path:
    state = {"w": torch.arange(300.0)}
    header = {"stage": "align", "fingerprint": fingerprint, "version": 1}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, HEADER: header}, path)
    return path


def in_shares(folder: Path) -> Path:
    state = {
        "state_dict": {"w": torch.arange(6.0).view(2, 3)},
        "optimizer_0": {"state": {"w": {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]},
    }
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({HEADER: {"stage": "align", "fingerprint": "abc", "version": 1}}, folder / "meta.pt")
    write_checksums(folder, 0, 1)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Reader]:
    return files_written(tmp_path_factory.mktemp("written"))


def files_written(root: Path) -> dict[Path, Reader]:
    """Every file that is written here, with what reads it."""
    readers: dict[Path, Reader] = {}
    ckpt = checkpoint(root / "a.ckpt")
    readers[ckpt] = lambda: read_checkpoint(ckpt)
    shares = in_shares(root / "shares.ckpt")
    readers |= {path: lambda: consolidate(shares, root / "whole.ckpt") for path in shares.iterdir()}
    exported = root / "exported"
    export_weights(
        {"w": torch.arange(50.0)},
        Manifest("align", 3, "abc", NOWHERE, M3AdapterConfig(48, 4), {"adapter": "x"}, ["caption"]), exported,
    )  # fmt: skip
    readers |= {path: lambda: read_exported(exported) for path in exported.iterdir() if path.name != "README.md"}
    adapter = root / "adapter.safetensors"
    source = MICRO / "adapter" / "BIAS-micro.pth"
    assert main(["weights", "convert", str(source), str(adapter), "--channel-order", "rgb"]) == 0
    readers[adapter] = lambda: open_adapter(adapter, "x")
    llama = root / "llama"
    assert main(["weights", "convert", str(MICRO / "llama"), str(llama)]) == 0
    readers |= {llama / name: lambda: open_llama(llama, "x") for name in ("config.json", "model.safetensors", SUMS)}
    moments = root / "moments.npz"
    Moments.of(np.random.default_rng(0).normal(size=(9, 4))).save(moments, "x")
    readers[moments] = lambda: Moments.load(moments, "x")
    readers |= cached_features(root / "features")
    shards, noise = root / "shards", np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    pairs = (caption_sample(f"{number}", "x", Image(noise, f"picture {number}"), {}) for number in range(4))
    paths = write_shards(pairs, shards, per_shard=2)
    write_manifest(shards, [Listed.of(path, 2) for path in paths], {"caption": 4})
    readers |= {path: lambda: require_sound(shards) for path in paths}
    return readers


def cached_features(folder: Path) -> dict[Path, Reader]:
    """A small cache of features."""
    form, generator = Form("float32", True, 2, 8, 4, 8, 8, (1, 4, 4)), np.random.default_rng(0)
    folder.mkdir()
    Index.of([(f"{number}", "caption", [FeatureView(1, 0, 3)]) for number in range(4)]).write(folder / INDEX)
    part = FeaturePart(folder, form, 2)
    for chunk in part.chunks:
        records, rows = np.zeros(2, form.record), np.zeros(6, form.row)
        form.put(rows, "values", generator.normal(size=(6, 2, 8)).astype(np.float32))
        part.write(chunk, records, rows)
    return {path: lambda: [FeaturePart(folder, form, 2).read(record) for record in range(4)]
            for path in folder.iterdir()}  # fmt: skip


def require_sound(shards: Path) -> None:
    """As `m2chat data validate`."""
    if faults := check(shards).faults:
        raise UserError(str(faults[0]))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Reader]:
    return files_shipped(tmp_path_factory.mktemp("shipped") / "micro")


def files_shipped(root: Path) -> dict[Path, Reader]:
    """Every file that is shipped, with what reads it."""
    shutil.copytree(MICRO, root, ignore=shutil.ignore_patterns("shards*"))
    of: dict[str, Reader] = {
        "llama": lambda: open_llama(root / "llama", "x"),
        "llama/tokenizer.model": lambda: M2ChatTokenizer(root / "llama"),
        "adapter": lambda: open_adapter(root / "adapter" / "BIAS-micro.pth", "x"),
        "clip": lambda: open_clip_tower(str(root / "clip"), "x"),
        "metric_clip": lambda: OpenClipEncoder(str(root / "metric_clip"))._load(),
        "fid": lambda: FeatureNet.load(root / "fid"),
        "m2chat/align.ckpt": lambda: read_checkpoint(root / "m2chat" / "align.ckpt"),
        "m2chat/config.yaml": lambda: read_settings(root / "m2chat" / "config.yaml"),
        "m2chat/m3ft.ckpt": lambda: read_checkpoint(root / "m2chat" / "m3ft.ckpt"),
    }
    for name in ("sdxl", "sd15"):
        of[name] = lambda name=name: open_diffusion(root / name, "x")  # type: ignore[misc]
        for part in ("tokenizer", "tokenizer_2"):
            of[f"{name}/{part}"] = lambda name=name: clip_tokenizers(root / name)  # type: ignore[misc]
    unet = DecoderConfig(unet=str(root / "decoders" / "unet_small"))
    of["decoders/unet_small"] = lambda: open_with_parts(root / "sdxl", "x", unet)
    lora = DecoderConfig(lora=[LoraConfig(str(root / "decoders" / "lcm_lora" / "pytorch_lora_weights.safetensors"))])
    of["decoders/lcm_lora"] = lambda: load_diffusion(root / "sdxl", "x", config=lora)
    # Read by training recipes only, through the libraries.
    others = {
        "llama/generation_config.json": "llama",
        "clip/tokenizer.json": "clip",
        "clip/tokenizer_config.json": "clip",
    }
    of |= {name: lambda folder=folder: verify_folder(root / folder) for name, folder in others.items()}  # type: ignore[misc]
    readers: dict[Path, Reader] = {root / "manifest.json": of["llama"]}
    listed = checksums.read_listing(root / "manifest.json")
    for name in listed:
        best = max((prefix for prefix in of if f"{name}/".startswith(f"{prefix}/")), key=len)
        readers[root / name] = of[best]
    assert len(readers) == len(listed) + 1 > 35
    return readers


def flipped(path: Path, place: int) -> bytes:
    """Flips a bit as a disk does: size and time stay."""
    whole, stat = path.read_bytes(), path.stat()
    changed = bytearray(whole)
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return whole


def read_anew(reader: Reader) -> bool:
    """Whether a reader notices, in a process that has read nothing yet."""
    integrity._compared.clear()
    try:
        reader()
    except UserError:
        return True
    return False


def meaningless(path: Path, before: bytes) -> bool:
    """Whether a flip changed the spelling of a JSON file only, such as a letter of an escape."""
    if path.suffix != ".json":
        return False
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(before))
    except ValueError:
        return False


def unnoticed(readers: dict[Path, Reader], flips: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    paths, missed = sorted(readers), []
    for turn in range(flips):
        path = paths[turn % len(paths)]
        place = draw.randrange(8 * path.stat().st_size)
        before, stat = flipped(path, place), path.stat()
        if not read_anew(readers[path]) and not meaningless(path, before):
            missed.append(f"{path.name}, bit {place}")
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not any(read_anew(reader) for reader in readers.values()), "unchanged files are read"
    return missed


def kinds_of(*every: dict[Path, Reader]) -> dict[Path, dict[Path, Reader]]:
    """The files by the file or folder of which they are part."""
    kinds: dict[Path, dict[Path, Reader]] = {}
    for readers in every:
        root = Path(os.path.commonpath(readers))
        for path, reader in readers.items():
            kinds.setdefault(root / path.relative_to(root).parts[0], {})[path] = reader
    assert len(kinds) > 14
    return kinds


@pytest.mark.filterwarnings("ignore")
def test_no_flip_in_what_is_written_is_missed(written: dict[Path, Reader]) -> None:
    assert not unnoticed(written, FLIPS // 2, 0)


@pytest.mark.filterwarnings("ignore")
def test_no_flip_in_what_is_shipped_is_missed(shipped: dict[Path, Reader]) -> None:
    assert not unnoticed(shipped, FLIPS // 4, 1)


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    written: dict[Path, Reader], shipped: dict[Path, Reader]
) -> None:
    refused = 0
    for path, reader in (written | shipped).items():
        hidden = path.with_name(".hidden")
        path.rename(hidden)
        os.mkfifo(path)
        refused += read_anew(reader)
        hidden.replace(path)
    assert refused > 40  # some files may be missing


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_five_hundred_flips_in_each_kind(written: dict[Path, Reader], shipped: dict[Path, Reader]) -> None:
    for kind, readers in kinds_of(written, shipped).items():
        assert not unnoticed(readers, FLIPS, 2), kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.ckpt", "adapter.safetensors", "moments.npz", SUMS])
def test_every_bit_of_the_checksum_itself_counts(written: dict[Path, Reader], name: str) -> None:
    """Where the marks lie: the end of an archive, the strings of safetensors, the lines of a list."""
    path = next(path for path in written if path.name == name)
    size = path.stat().st_size
    start, stop = (size - 93, size) if path.suffix in (".ckpt", ".npz") else (0, min(size, 400))
    if path.suffix == ".safetensors":
        place = path.read_bytes().index(b"m2chat.se")
        start, stop = place - 4, place + 130
    for place in range(8 * start, 8 * stop, 3):
        before = flipped(path, place)
        assert read_anew(written[path]), place
        path.write_bytes(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.ckpt", "adapter.safetensors", "moments.npz"])
def test_every_truncation_is_noticed(written: dict[Path, Reader], name: str) -> None:
    path = next(path for path in written if path.name == name)
    whole = path.read_bytes()
    for lost in (1, 2, 20, 64, 70, 71, 72, 73, 74, 80, 92, 93, 94, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:-lost])
        assert read_anew(written[path]), lost
    path.write_bytes(whole)
    assert not read_anew(written[path])


def test_a_damaged_checkpoint_is_never_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = checkpoint(tmp_path / "old.ckpt"), checkpoint(tmp_path / "new.ckpt")
    other = checkpoint(tmp_path / "other.ckpt", "xyz")
    for order, path in enumerate((old, new, other)):
        os.utime(path, ns=(order * 10**9, order * 10**9))
    assert find_checkpoint(tmp_path, "align", named_backbones()) == new
    flipped(new, 8 * (new.read_bytes().index(np.arange(300.0, dtype=np.float32).tobytes()) + 50))
    integrity._compared.clear()
    assert find_checkpoint(tmp_path, "align", named_backbones()) == old
    assert f"passed over: {new} is damaged" in caplog.text and "other.ckpt" not in caplog.text


def test_each_file_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = checkpoint(tmp_path / "a.ckpt"), []
    os.utime(path, ns=(10**9, 10**9))
    real = checksums._zip_digest
    monkeypatch.setattr(checksums, "_zip_digest", lambda file, size: [reads.append(size), real(file, size)][1])
    for _ in range(3):
        find_checkpoint(tmp_path, "align", named_backbones())
        read_checkpoint(path)
    assert len(reads) == 1
    path.write_bytes(path.read_bytes())
    read_checkpoint(path)
    assert len(reads) == 2, "a file that was written again is another"


def test_files_without_a_checksum_are_read_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = {"stage": "align", "fingerprint": "abc", "version": 1}
    torch.save({"state_dict": {"w": torch.ones(2)}, HEADER: header}, tmp_path / "old.ckpt")
    for _ in range(2):
        assert torch.equal(read_checkpoint(tmp_path / "old.ckpt")["state_dict"]["w"], torch.ones(2))
    assert caplog.text.count("has no checksum: whether it is damaged cannot be told") == 1
    manifest = Manifest("align", 3, "abc", NOWHERE, M3AdapterConfig(48, 4))
    export_weights({"w": torch.arange(50.0)}, manifest, tmp_path / "exported")
    (tmp_path / "exported" / SUMS).unlink()
    assert torch.equal(read_exported(tmp_path / "exported")[1]["w"], torch.arange(50.0))
    flipped(tmp_path / "exported" / "model.safetensors", 8 * 300)
    integrity._compared.clear()
    with pytest.raises(UserError, match=r"its SHA-256 differs from that in .*manifest\.json"):
        read_exported(tmp_path / "exported")
    assert read_exported(tmp_path / "exported", verify=False)[0].stage == "align"


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A file of which nothing is stated."""
    path = tmp_path / "theirs.safetensors"
    save_file({"w": torch.arange(300.0)}, path)
    yield path


def test_a_foreign_file_is_held_against_what_it_was(foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_safetensors(foreign, "x")
    before = flipped(foreign, 8 * 800)
    integrity._compared.clear()
    with pytest.raises(UserError, match="have changed since it was first read here, its size and time have not"):
        read_safetensors(foreign, "x")
    foreign.write_bytes(before)
    save_file({"w": torch.ones(300)}, foreign)
    os.utime(foreign, ns=(10**9, 10**9))
    read_safetensors(foreign, "x")
    assert "is another file than the one that was first read here" in caplog.text


def test_a_large_file_is_read_once_and_checked_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(integrity, "LARGE", 1000)
    shutil.copytree(MICRO / "llama", tmp_path / "llama")
    weights = tmp_path / "llama" / "model.safetensors"
    open_llama(tmp_path / "llama", "x")
    integrity._compared.clear()
    monkeypatch.setattr(integrity, "sha256", lambda path: pytest.fail("read again"))
    open_llama(tmp_path / "llama", "x")
    monkeypatch.undo()
    flipped(weights, 8 * 10**6)
    assert main(["weights", "check", str(tmp_path / "llama")]) == 1
    assert "model.safetensors: has changed since it was first read here" in capsys.readouterr().out


def test_a_published_name_with_other_contents_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(MICRO / "adapter" / "BIAS-micro.pth", tmp_path / "BIAS-7B.pth")
    open_adapter(tmp_path / "BIAS-7B.pth", "x")
    assert "BIAS-7B.pth is not the published LLaMA-Adapter V2 BIAS-7B, whose name it has" in caplog.text


def test_a_read_only_cache_costs_nothing(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(foreign))  # a file: no folder can be made in it
    assert not verify(foreign) and integrity.seen(foreign) is None


def test_a_list_is_one_that_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a b.txt", "sub/c.txt", "README.md"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    run = ["sha256sum", "--check", "--strict", SUMS]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "a b.txt: OK\nsub/c.txt: OK\n"
    assert stated(tmp_path / "sub" / "c.txt") == (sha256(tmp_path / "sub" / "c.txt"), str(tmp_path / SUMS))
    assert stated(tmp_path / "README.md") is None, "people change model cards"


def test_other_people_s_lists_are_left_alone(foreign: Path) -> None:
    for content in ("{", "[]", "{}", '{"parts": 3}', '{"m2chat": 3}', '{"m2chat": {"sha256": 3}}', "\udc80"):
        (foreign.parent / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert stated(foreign) is None


def test_nothing_is_compared_where_a_damaged_file_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    flipped(path, 8 * (path.read_bytes().index(np.arange(300.0, dtype=np.float32).tobytes()) + 50))
    with not_verified(), caplog.at_level(logging.INFO):
        read_checkpoint(path)
    assert not caplog.text
    assert main(["weights", "check", str(path)]) == 1
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(path)
