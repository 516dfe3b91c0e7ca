from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torch.utils.data import DataLoader

from m2chat.data import remote
from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.remote import Url, stamp
from m2chat.data.shards import find_shards
from m2chat.data.stream import ShardStream
from m2chat.errors import UserError


@pytest.fixture
def memory(shards: Path) -> str:
    system = fsspec.filesystem("memory")
    for path in shards.rglob("*.tar"):
        system.pipe_file(f"/bucket/{path.relative_to(shards)}", path.read_bytes())
    return "memory://bucket"


def names(source: Source, workers: int = 0) -> list[str]:
    loader: DataLoader[Any] = DataLoader(
        ShardStream([source], 4, seed=3), batch_size=None, collate_fn=list, num_workers=workers
    )
    return [item.sample.id for batch in loader for item in batch]


def test_shards_are_read_by_http(server: tuple[str, type[Any]], shards: Path, tmp_path: Path) -> None:
    address, handler = server
    local = Source(SourceConfig("captions", str(shards / "captions")))
    config = SourceConfig("captions", address + "/captions/cc-00000{0..3}.tar")
    source = Source(config, cache=str(tmp_path))
    assert names(source) == names(local)
    # The index is kept; a sample is one request.
    again = Source(config, cache=str(tmp_path))
    assert all(first.entries == second.entries for first, second in zip(source.shards, again.shards, strict=True))
    assert names(again, workers=2) == names(local)  # in forked processes, whose parent has used the network
    handler.asked.clear()
    names(again)
    assert len(handler.asked) == len(again) == 37


def test_folders_and_patterns_by_http(server: tuple[str, type[Any]], tmp_path: Path) -> None:
    address, _ = server
    assert [str(url) for url in find_shards(f"{address}/talk")] == [f"{address}/talk/talk-00000{k}.tar" for k in (0, 1)]
    assert find_shards(f"{address}/talk/*1.tar") == [Url(f"{address}/talk/talk-000001.tar")]
    assert len(Source(SourceConfig("talk", f"{address}/talk/talk-000000.tar?version=1"), cache=str(tmp_path))) == 5
    for path in ("nothing.tar", "nothing"):
        with pytest.raises(UserError, match="nothing"):
            Source(SourceConfig("talk", f"{address}/{path}"), cache=str(tmp_path))


def test_a_server_may_fail_once(server: tuple[str, type[Any]], tmp_path: Path) -> None:
    address, handler = server
    source = Source(SourceConfig("talk", f"{address}/talk/talk-000000.tar"), cache=str(tmp_path))
    handler.failures = 1  # type: ignore[misc]
    assert source.read(0, 0).id == "talk/0"
    handler.failures = 10  # type: ignore[misc]
    with pytest.raises(OSError, match="503"):
        source.read(0, 0)


def test_a_shard_is_asked_for_again_unless_it_is_not_there(server: tuple[str, type[Any]]) -> None:
    """fsspec says "file not found" for a server that is down, too."""
    address, handler = server
    shard = Url(f"{address}/talk/talk-000000.tar")
    handler.failures = 4  # two tries of HEAD, then GET
    assert stamp(shard, "path")["bytes"] > 0
    handler.failures = 10**6
    with pytest.raises(UserError, match=r"talk-000000.tar' cannot be reached \(.*503.*\): check the address"):
        stamp(shard, "path")
    handler.failures = 0
    handler.asked.clear()
    with pytest.raises(UserError, match=r"404"):
        stamp(Url(f"{address}/talk/nothing.tar"), "path")
    assert handler.asked == ["/talk/nothing.tar"]


def test_a_server_that_refuses_connections_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        with pytest.raises(UserError, match=r"cannot be reached \(ClientConnectorError.*\): check the address"):
            stamp(Url(f"http://127.0.0.1:{taken.getsockname()[1]}/x.tar"), "path")


def test_a_server_without_ranges_is_named(server: tuple[str, type[Any]], tmp_path: Path) -> None:
    address, handler = server
    source = Source(SourceConfig("talk", f"{address}/talk/talk-000000.tar"), cache=str(tmp_path))
    handler.ranges = False  # type: ignore[misc]
    assert source.read(0, 1).id == "talk/1"  # it sends everything: slow, but right


def test_any_file_system_of_fsspec(memory: str, shards: Path, tmp_path: Path) -> None:
    local = Source(SourceConfig("captions", str(shards / "captions")))
    for path in ("captions", "captions/cc-*.tar"):
        source = Source(SourceConfig("captions", f"{memory}/{path}"), cache=str(tmp_path), threads=2)
        assert names(source) == names(local) and source.manifest == local.manifest
    assert len(list((tmp_path / "index").iterdir())) == 4


def test_a_changed_remote_shard_is_indexed_anew(memory: str, shards: Path, tmp_path: Path) -> None:
    path = f"{memory}/talk/talk-000000.tar"
    assert len(Source(SourceConfig("talk", path), cache=str(tmp_path))) == 5
    fsspec.filesystem("memory").pipe_file(path, (shards / "talk" / "talk-000001.tar").read_bytes())
    assert len(Source(SourceConfig("talk", path), cache=str(tmp_path))) == 4


@pytest.mark.parametrize("path", ["gopher://there/a.tar", "memory://bucket/nothing-*.tar", "memory://bucket/no.tar"])
def test_what_is_not_there_is_one_clear_error(memory: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=re.escape(path)):
        Source(SourceConfig("x", path), cache=str(tmp_path))


def test_local_braces(shards: Path) -> None:
    found = find_shards(f"{shards}/captions/cc-00000{{1..2}}.tar")
    assert [place.name for place in found] == ["cc-000001.tar", "cc-000002.tar"]


def test_a_read_only_folder_has_its_index_elsewhere(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2chat.data import index

    path = tmp_path / "a.tar"
    path.write_bytes((shards / "talk" / "talk-000000.tar").read_bytes())
    write = index.write_whole

    def refuse(place: Path, data: bytes) -> None:
        if place.parent == tmp_path:
            raise PermissionError
        write(place, data)

    monkeypatch.setattr(index, "write_whole", refuse)
    first = index.open_shard(path, tmp_path / "cache")
    monkeypatch.setattr(index, "_index", None)
    assert index.open_shard(path, tmp_path / "cache") == first


def test_a_pipe_runs_only_if_it_is_allowed(shards: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    command = f"pipe:touch {canary}; cat {shards}/talk/talk-000000.tar"
    with pytest.raises(UserError, match=r"would run a command.*allow_pipe: true"):
        Source(SourceConfig("talk", command), cache=str(tmp_path))
    assert not canary.exists()
    allowed = SourceConfig("talk", command, allow_pipe=True)
    assert len(Source(allowed, cache=str(tmp_path))) == 5
    canary.unlink()
    assert len(Source(allowed, cache=str(tmp_path))) == 5  # from the cache
    assert not canary.exists()
    with pytest.raises(UserError, match=r"ended with 3: alas"):
        Source(SourceConfig("x", "pipe:echo alas >&2; exit 3", allow_pipe=True), cache=str(tmp_path))
    assert len(list((tmp_path / "pipes").iterdir())) == 2  # the tar and its index; nothing of what failed
