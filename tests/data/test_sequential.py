"""Whole shards in sequence: the same samples as by an index, and the same order whenever and wherever a run goes on."""

from __future__ import annotations

import gc
import gzip
import io
import pickle
import runpy
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from m2chat.data import opening, tar_samples
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.images import save_png
from m2chat.data.order import ShardOrder
from m2chat.data.sequential import LEAKED, SequentialSource
from m2chat.data.shards import write_groups
from m2chat.data.stream import ShardStream
from m2chat.data.tar_files import REST
from m2chat.errors import UserError

Server = tuple[str, type[Any]]
PNG = save_png(np.zeros((4, 4, 3), np.uint8))


def sequential(
    path: Path | str, cache: Path, name: str = "captions", window: int = 7, **options: Any
) -> SequentialSource:
    config = SourceConfig(name, str(path), stream="sequential", shuffle_buffer=window, **options)
    return SequentialSource(config, cache=cache)


def drawn(source: SequentialSource, start: int, stop: int, lane: int = 0, lanes: int = 1, seed: int = 3) -> list[str]:
    reader = source.lane(lane, lanes, seed)
    return [reader(draw).key for draw in range(start, stop)]


def missed(stream: ShardStream) -> Counter[str]:
    return Counter(reason for batch in stream for item in batch for _, reason in item.missed)


def test_a_round_has_every_sample_once_as_an_index_has_it(shards: Path, tmp_path: Path) -> None:
    source, indexed = (
        sequential(shards / "captions", tmp_path),
        Source(SourceConfig("captions", str(shards / "captions"))),
    )
    expected = {
        sample.id: sample
        for k, kept in enumerate(indexed.kept)
        for sample in (indexed.read(k, index) for index in range(len(kept)))
    }
    reader = source.lane(0, 1, 3)
    rounds = [[source.read(reader(draw)) for draw in range(37 * k, 37 * (k + 1))] for k in range(3)]
    for samples in rounds:
        assert {sample.id for sample in samples} == set(expected)
    for sample in rounds[0]:
        wanted = expected[sample.id]
        assert (sample.images[0].pixels == wanted.images[0].pixels).all()
        assert (sample.turns, sample.images[0].original_size) == (wanted.turns, wanted.images[0].original_size)
    orders = [[sample.id for sample in samples] for samples in rounds]
    assert orders[0] != orders[1] != orders[2]
    assert drawn(source, 0, 37, seed=4) != drawn(source, 0, 37, seed=3)
    # Two lanes share the four shards, and each has its part of a round before anything comes again.
    halves = [drawn(source, 0, 20, lane, 2) for lane in range(2)]
    order = ShardOrder(4, 2, 3, "captions")
    sizes = [sum(len(indexed.kept[order(lane, turn)]) for turn in range(2)) for lane in range(2)]
    assert sum(sizes) == 37
    assert {*halves[0][: sizes[0]], *halves[1][: sizes[1]]} == {name.partition("/")[2] for name in expected}


@pytest.mark.parametrize("window", [1, 5, 12, 100])
def test_any_place_is_found_again(shards: Path, tmp_path: Path, window: int) -> None:
    whole = drawn(sequential(shards / "captions", tmp_path / "a", window=window), 0, 120)
    for start in (0, 1, 9, 36, 37, 38, 74, 90):
        warm = sequential(shards / "captions", tmp_path / "a", window=window)
        assert drawn(warm, start, 120) == whole[start:]
        cold = sequential(shards / "captions", tmp_path / f"{start}", window=window)
        assert drawn(cold, start, 120) == whole[start:]
    reader = sequential(shards / "captions", tmp_path / "a", window=window).lane(0, 1, 3)
    assert [reader(draw).key for draw in (5, 70, 3, 3, 119)] == [whole[draw] for draw in (5, 70, 3, 3, 119)]


class Run:
    """A training on some simulated ranks of a mixture of an indexed source and one that is read in sequence."""

    def __init__(self, shards: Path, cache: Path, batch_size: int, ranks: int, workers: int, size: int = 40) -> None:
        self.workers = workers
        self.streams = [
            ShardStream(
                [
                    sequential(shards / "captions", cache, weight=2.0),
                    Source(SourceConfig("talk", str(shards / "talk"))),
                    sequential(shards / "talk", cache, "again", window=3, kinds=["dialogue"]),
                ],
                batch_size, 7, size, rank, ranks, workers=workers,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def epoch(self, state: dict[str, Any] | None = None) -> list[list[tuple[int, str, int, int | None]]]:
        rows = []
        for stream in self.streams:
            if state:
                names = ("samples_seen", "batches_seen", "before", "group", "lanes")
                stream.start_at(state["epoch"], **{name: state[name] for name in names})
            loader: Any = DataLoader(stream, batch_size=None, collate_fn=list, num_workers=self.workers)
            rows.append([[(i.position, i.sample.id, i.turn, i.target) for i in batch] for batch in loader])
        return [list(chain(*step)) for step in zip_longest(*rows)]


def test_resuming_on_other_ranks_and_workers(shards: Path, tmp_path: Path) -> None:
    def fresh(cache: str, ranks: int = 2, workers: int = 2) -> Run:
        return Run(shards, tmp_path / cache, 8 // ranks, ranks, workers)

    run = fresh("warm")
    first = run.epoch()
    after = run.streams[0].state(len(run.streams[0]))
    assert (after["epoch"], after["before"], after["lanes"]) == (1, 40, [2, 4])  # one source has two shards only
    whole = first + fresh("warm", workers=0).epoch(after)
    assert len({name for step in whole for _, name, _, _ in step}) > 40
    for cache, ranks, workers, cut in (("a", 1, 0, 2), ("warm", 4, 0, 3), ("b", 1, 2, 4), ("warm", 2, 0, 1)):
        state = fresh("warm").streams[0].state(cut)
        again = fresh(cache, ranks, workers)
        rest = again.epoch(state)
        rest += fresh("warm", 8, 0).epoch(again.streams[0].state(len(again.streams[0])))
        assert rest == whole[cut:], (ranks, workers, cut, cache)


def test_every_process_reads_shards_of_its_own(server: Server, shards: Path, tmp_path: Path) -> None:
    address, handler = server
    path = address + "/captions/cc-00000{0..3}.tar"

    def streams(ranks: int, workers: int) -> list[ShardStream]:
        sources = [sequential(path, tmp_path / f"{ranks} {workers}", window=3)]
        return [ShardStream(sources, 2, 3, 24, rank, ranks, workers=workers) for rank in range(ranks)]

    for ranks, workers in ((4, 0), (2, 2)):
        handler.asked.clear()
        for stream in streams(ranks, workers):
            loader: Any = DataLoader(stream, batch_size=None, collate_fn=list, num_workers=workers)
            assert len(list(loader)) == 24 // (2 * ranks)
        assert sorted(handler.asked) == [f"/captions/cc-00000{k}.tar" for k in range(4)]  # a request each
        assert streams(ranks, workers)[0].readings(workers) == 1
    assert streams(2, 2)[0].readings(1) == 1 and streams(2, 0)[0].readings(3) == 3


def test_a_resumed_run_fetches_no_shard_that_is_behind_it(server: Server, tmp_path: Path) -> None:
    address, handler = server
    path = address + "/captions/cc-00000{0..3}.tar"
    whole = drawn(sequential(path, tmp_path), 0, 50)
    handler.asked.clear()
    assert drawn(sequential(path, tmp_path), 33, 34) == whole[33:34]
    assert len(handler.asked) == 1
    handler.asked.clear()
    assert drawn(sequential(path, tmp_path), 5, 35) == whole[5:35]
    assert len(handler.asked) == len(set(handler.asked)) == 4


def test_a_server_that_fails(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2chat.data import shard_file

    address, handler = server
    path = address + "/captions/cc-00000{0..3}.tar"
    whole = drawn(sequential(path, tmp_path / "whole"), 0, 37)
    monkeypatch.setattr(shard_file, "_BLOCK", 5000)
    handler.failures = 2  # type: ignore[misc]
    assert drawn(sequential(path, tmp_path / "blocks"), 0, 37) == whole
    handler.ranges = False  # type: ignore[misc]
    assert drawn(sequential(path, tmp_path / "no ranges"), 0, 37) == whole
    handler.failures = 10**6  # type: ignore[misc]
    with pytest.raises(UserError, match=r"cc-00000\d.tar.*(cannot be reached|cannot be read on)"):
        drawn(sequential(path, tmp_path / "down"), 0, 37)


def test_bad_samples_are_replaced_and_counted_as_by_an_index(tmp_path: Path) -> None:
    good = [(f"{k:04d}", {"png": PNG, "txt": b"words"}) for k in range(20)]
    bad = [
        ("x1", {"png": b"junk", "txt": b"words"}), ("x2", {"txt": b"words"}), ("x3", {"png": PNG}),
        ("x4", {"json": b"{", "png": PNG}), ("x5", {"png": PNG[:36], "txt": b"words"}),
        ("x6", {"png": b"", "txt": b"words"}),
    ]  # fmt: skip
    folder = tmp_path / "shards"
    write_groups([*good[:10], *bad[:3], *good[10:15]], folder, "a", 100)
    write_groups([*good[15:], *bad[3:]], folder, "b", 100)
    write_groups([("one", {"png": PNG, "txt": b"words", "cls": b"7", "npy": b"7"})], folder, "c", 100)
    cut, last = folder / "a-000000.tar", folder / "c-000000.tar"
    (folder / "e.tar").write_bytes(cut.read_bytes()[:-1000] + b"\1" * 1000)
    (folder / "f.tar").write_bytes(b"")
    (folder / "g.tar").write_bytes(gzip.compress(last.read_bytes()))
    (folder / "h.tar").write_bytes(last.read_bytes()[:700])
    indexed = Source(SourceConfig("x", str(folder)))
    stream = ShardStream([sequential(folder, tmp_path, "x", window=4)], 4, 3, 100)
    source = stream.sources[0]
    assert isinstance(source, SequentialSource)
    list(stream)
    total = sum(source.count(shard) or 0 for shard in range(len(source.places)))
    assert total == indexed.samples
    stream = ShardStream([source], 4, 3, total)
    names = Counter(item.sample.id for batch in stream for item in batch)
    assert set(names) == {f"x/{key}" for key, _ in good} | {"x/one"}
    found = missed(ShardStream([source], 4, 3, total))
    assert {reason: found[reason] for reason in indexed.faults} == dict(indexed.faults)
    # Files behind the last sample of a round are counted with the next one.
    files = missed(ShardStream([source], 4, 3, total + 1)) - indexed.faults
    left_out = indexed.files_left_out
    assert left_out - files == Counter() and (files - left_out).total() <= 1, (files, left_out)


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Keeps finalisers from running deep inside of nested JSON, where the stack has no room for them."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_every_kind_of_bad_file_has_the_fate_that_an_index_gives_it(tmp_path: Path) -> None:
    corpus = runpy.run_path(str(Path(__file__).with_name("bad_corpus.py")))["write"](tmp_path)
    indexed, source = Source(SourceConfig("bad", str(tmp_path))), sequential(tmp_path, tmp_path / "cache", "bad", 500)
    items = list(chain(*ShardStream([source], 4, 3, indexed.samples)))
    assert {item.sample.id for item in items} == {f"bad/{key}" for key in corpus.good}
    counts = Counter(reason for item in items for _, reason in item.missed)
    # webdataset passes over links, and does not tell the file in which a tar ends from the rest of it.
    expected = indexed.faults + indexed.files_left_out
    expected[REST] += expected.pop("truncated")
    assert {*(expected - counts)} <= {"link or device"} and not counts - expected


def test_too_many_bad_samples_stop_the_run(backbones: Path, tmp_path: Path) -> None:
    groups = [(f"{k:04d}", {"png": PNG if k % 10 else b"junk", "txt": b"words", "npy": b""}) for k in range(400)]
    write_groups(groups, tmp_path / "x", "x", 100)
    data = module_of(tmp_path / "x", backbones, tmp_path, samples_per_epoch=400)
    with pytest.raises(UserError, match=r"more than max_bad_share=0.05: captions: \d+ x undecodable picture"):
        list(data.train_dataloader())
    assert list(data.skips["train"].missed)[:1] != [] and not data.skips["train"].indexed


def test_nothing_is_executed_and_nothing_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (canary,)

    path = tmp_path / "a.tar"
    files = [
        ("a.png", PNG),
        ("a.txt", b"good"),
        ("a.pyd", pickle.dumps(Bomb())),
        ("../../b.png", PNG),
        ("../../b.txt", b"x"),
    ]
    files += [("large.txt", b"0" * 300_000), ("c.png", PNG), ("c.txt", b"good")]
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = sequential(path, tmp_path / "cache", "x", window=100)
    assert sorted(drawn(source, 0, 4)) == ["a", "b", "c", "large"] and not canary.exists()
    monkeypatch.setattr(tar_samples, "MAX_MEMBER", 1000)
    monkeypatch.setattr(tar_samples, "_SLACK", 2**15)
    source = sequential(path, tmp_path / "other", "x", window=100)
    assert sorted(drawn(source, 0, 2)) == ["a", "b"]
    faults = list(chain(*(source.lane(0, 1, 3)(draw).faults for draw in range(2))))
    faults += source.lane(0, 1, 3)(2).faults or source.lane(0, 1, 3)(3).faults
    assert "unknown suffix" in faults and "file of more than 64 MiB" in faults


def test_pipes_are_read_as_they_come(shards: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    command = f"pipe:touch {canary}; cat {shards}/captions/cc-00000{{0..3}}.tar"
    with pytest.raises(UserError, match=r"would run a command.*allow_pipe: true"):
        sequential(command, tmp_path)
    source = sequential(command, tmp_path, allow_pipe=True)
    assert len(source.places) == 4 and not canary.exists()
    assert sorted(drawn(source, 0, 37)) == [f"{k:05d}" for k in range(37)] and canary.exists()
    reader = source.lane(0, 1, 3)  # it is left in the middle of a command
    reader(0)
    del reader
    assert not (tmp_path / "pipes").exists()
    with pytest.raises(UserError, match=r"exit 3.*failed|failed.*exit 3"):
        drawn(sequential("pipe:exit 3", tmp_path, allow_pipe=True), 0, 1)


def test_without_a_sample_it_does_not_search_for_ever(shards: Path, tmp_path: Path) -> None:
    for _ in range(2):  # with and without known numbers
        with pytest.raises(UserError, match=r"holds no sample of the kinds \['story'\]"):
            drawn(sequential(shards / "captions", tmp_path, kinds=["story"]), 0, 1)


def module_of(path: Path | str, backbones: Path, cache: Path, **options: Any) -> M2ChatDataModule:
    names = str(backbones)
    source = {"stream": "sequential", "shuffle_buffer": 7, **options.pop("source", {})}
    return M2ChatDataModule(
        train=[SourceConfig("captions", str(path), **source)], language_model=names, vision_encoder=names,
        image_decoder=names, num_image_tokens=4, image_size=8, max_tokens=300, cache_dir=str(cache),
        **{"batch_size": 4, "samples_per_epoch": 36, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_epoch": None}, "set data.samples_per_epoch.* or give it stream: random"),
        ({"length_bucketing": 10}, "data.length_bucketing .* set it to 0, or give it stream: random"),
        ({"features": "some/folder"}, "data.features .* leave the setting out"),
        ({"source": {"shuffle_buffer": 0}}, "shuffle_buffer=0: choose a whole number from 1"),
        ({"source": {"kinds": ["poem"]}}, r"kinds=\['poem'\]: choose from"),
    ],
)
def test_what_needs_an_index_is_named(
    shards: Path, backbones: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        module_of(shards / "captions", backbones, tmp_path, **options)._open("train")


def test_remote_shards_are_read_in_sequence_where_they_can_be(
    server: Server, backbones: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(opening, "rank_zero_info", told.append)
    path, auto = server[0] + "/captions/cc-00000{0..3}.tar", {"stream": "auto"}
    (source,) = module_of(path, backbones, tmp_path, source=auto)._open("train")
    assert isinstance(source, SequentialSource)
    (source,) = module_of(path, backbones, tmp_path, source=auto, samples_per_epoch=None)._open("train")
    assert isinstance(source, Source) and len(source) == 37
    assert len(told) == 1 and "set data.samples_per_epoch" in told[0]
    for options, where in (({"source": {"stream": "random"}}, path), ({"source": auto}, shards / "captions")):
        assert isinstance(module_of(where, backbones, tmp_path, **options)._open("train")[0], Source)
    val = [SourceConfig("held out", str(shards / "talk"), stream="sequential")]
    with pytest.raises(UserError, match=r"val source 'held out' .* evaluation takes every reply"):
        module_of(path, backbones, tmp_path, val=val).val_dataloader()


def test_what_evaluation_has_is_not_learned(shards: Path, backbones: Path, tmp_path: Path) -> None:
    (shard, *_) = Source(SourceConfig("captions", str(shards / "captions"))).shards
    write_groups([(f"held-{k}", shard.members(k)) for k in (2, 5)], tmp_path / "val", "val", 10)
    options = {"val": [SourceConfig("val", str(tmp_path / "val"))], "samples_per_epoch": 37, "max_bad_share": 1.0}
    for check, left_out in ((True, {2, 5}), (False, set[int]())):
        data = module_of(shards / "captions", backbones, tmp_path, check_leaks=check, **options)
        names = {sample.id for batch in data.train_dataloader() for sample in batch.samples}
        assert names == {f"captions/{k:05d}" for k in range(37) if k not in left_out}
        assert data.skips["train"].missed == ({("captions", LEAKED): 2} if check else {})
