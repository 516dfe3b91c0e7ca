from __future__ import annotations

import pickle
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.eval_stream import EvalStream
from m2chat.data.images import save_png
from m2chat.data.items import Item
from m2chat.data.order import Mixture, Shuffle, batches_of
from m2chat.data.shards import write_groups
from m2chat.data.stream import ShardStream
from m2chat.errors import UserError


def sources_of(shards: Path, **weights: float) -> list[Source]:
    return [Source(SourceConfig(name, str(shards / name), weight)) for name, weight in weights.items()]


def seen(stream: ShardStream | EvalStream, workers: int = 0) -> list[list[tuple[int, str, int, int | None]]]:
    loader: DataLoader[list[Item]] = DataLoader(stream, batch_size=None, collate_fn=list, num_workers=workers)
    return [[(item.position, item.sample.id, item.turn, item.target) for item in batch] for batch in loader]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.25], [3.0, 2.0, 1e-9]])
def test_a_mixture_keeps_its_weights_and_its_counts(weights: list[float]) -> None:
    mixture = Mixture(weights)
    drawn: Counter[int] = Counter()
    for draw in range(20_050):
        source, before = mixture(draw)
        assert before == drawn[source]
        drawn[source] += 1
    for source, weight in enumerate(weights):
        assert drawn[source] >= 1
        assert abs(drawn[source] / 20_050 - weight / sum(weights)) < 0.001


def test_a_shuffle_takes_everything_once_then_in_another_order() -> None:
    shuffle = Shuffle([4, 0, 9, 1], seed=0, window=5)
    rounds = [[shuffle(draw) for draw in range(14 * cycle, 14 * (cycle + 1))] for cycle in range(3)]
    everything = {(shard, index) for shard, size in enumerate([4, 0, 9, 1]) for index in range(size)}
    assert all(set(places) == everything and len(places) == 14 for places in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [Shuffle([4, 0, 9, 1], seed=1, window=5)(draw) for draw in range(14)] != rounds[0]


@pytest.mark.parametrize(
    ("start", "stop", "batch", "ranks"), [(0, 40, 4, 1), (8, 41, 4, 2), (0, 3, 4, 2), (0, 7, 1, 4)]
)
def test_ranks_share_positions_without_a_gap(start: int, stop: int, batch: int, ranks: int) -> None:
    shares = [batches_of(start, stop, batch, rank, ranks, even=False) for rank in range(ranks)]
    assert sorted(chain(*chain(*shares))) == list(range(start, stop))
    shares = [batches_of(start, stop, batch, rank, ranks, even=True) for rank in range(ranks)]
    assert all([len(batch) for batch in share] == [len(batch) for batch in shares[0]] for share in shares)
    left_out = set(range(start, stop)) - set(chain(*chain(*shares)))
    assert len(left_out) < ranks


def test_an_epoch_sees_every_sample_once(shards: Path) -> None:
    stream = ShardStream(sources_of(shards, captions=1), batch_size=4, seed=3)
    epochs = []
    for epoch in range(2):
        stream.start_at(epoch)
        batches = seen(stream)
        assert len(batches) == len(stream) == 10 and [len(batch) for batch in batches] == [4] * 9 + [1]
        epochs.append([name for batch in batches for _, name, _, _ in batch])
        assert sorted(epochs[-1]) == [f"captions/{i:05d}" for i in range(37)]
    assert epochs[0] != epochs[1]


def test_short_epochs_go_through_the_whole_source(shards: Path) -> None:
    stream = ShardStream(sources_of(shards, captions=1), batch_size=4, samples_per_epoch=8)
    names: list[str] = []
    for epoch in range(4):
        stream.start_at(epoch)
        names += [name for batch in seen(stream) for _, name, _, _ in batch]
    assert len(set(names)) == 32


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_resuming_goes_on_exactly(shards: Path, cut: int, workers: int) -> None:
    def fresh() -> ShardStream:
        stream = ShardStream(sources_of(shards, captions=2, talk=1), 4, seed=1, samples_per_epoch=40)
        stream.start_at(2)
        return stream

    whole = seen(fresh())
    state = fresh().state(cut)
    assert state["samples_seen"] == 4 * cut and state["epoch"] == 2
    stream = fresh()
    stream.start_at(state["epoch"], state["samples_seen"], state["batches_seen"])
    assert len(stream) == 10
    assert seen(stream, workers) == whole[cut:]


def test_the_end_of_an_epoch_is_the_start_of_the_next(shards: Path) -> None:
    stream = ShardStream(sources_of(shards, captions=1), 4)
    place = stream.state(len(stream))
    assert (place["epoch"], place["samples_seen"], place["batches_seen"]) == (1, 0, 0)


def test_one_rank_and_two_see_the_same_steps(shards: Path) -> None:
    sources = sources_of(shards, captions=2, talk=1)
    one = seen(ShardStream(sources, 4, seed=1, samples_per_epoch=40))
    two = [seen(ShardStream(sources, 2, seed=1, samples_per_epoch=40, rank=rank, ranks=2)) for rank in range(2)]
    assert [left + right for left, right in zip(*two, strict=True)] == one
    # Half of the epoch on one rank, the rest on two.
    state = ShardStream(sources, 4, seed=1, samples_per_epoch=40).state(5)
    rest = []
    for rank in range(2):
        stream = ShardStream(sources, 2, seed=1, samples_per_epoch=40, rank=rank, ranks=2)
        stream.start_at(state["epoch"], state["samples_seen"], state["batches_seen"])
        rest.append(seen(stream))
    assert [left + right for left, right in zip(*rest, strict=True)] == one[5:]


def test_choices_are_made_by_position(shards: Path) -> None:
    stream = ShardStream(sources_of(shards, talk=1), 3, samples_per_epoch=60)
    items = [item for batch in seen(stream) for item in batch]
    assert {(turn, target) for _, _, turn, target in items} == {(1, None), (3, 0)}
    assert seen(pickle.loads(pickle.dumps(stream)))[0] == items[:3]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_reply_once(shards: Path, ranks: int) -> None:
    sources = sources_of(shards, talk=1, captions=1)
    streams = [EvalStream(sources, 5, rank=rank, ranks=ranks) for rank in range(ranks)]
    items = [(name, turn) for stream in streams for batch in seen(stream) for _, name, turn, _ in batch]
    assert sorted(items) == sorted(
        [(f"talk/{i}", turn) for i in range(9) for turn in (1, 3)] + [(f"captions/{i:05d}", 1) for i in range(37)]
    )
    assert max(map(len, streams)) - min(map(len, streams)) <= 1


def test_a_limited_evaluation_covers_all_sources_in_order(shards: Path) -> None:
    (batch,) = seen(EvalStream(sources_of(shards, talk=1, captions=1), 50, limit=11))
    names = [name for _, name, _, _ in batch]
    assert len(names) == 11 and names[0] == "talk/0" and names[-1].startswith("captions/0003")


def spoilt(tmp_path: Path, bad: int, good: int) -> list[Source]:
    groups = [(f"{i:05d}", {"jpg": b"junk", "txt": b"words"}) for i in range(bad)]
    groups += [(f"{bad + i:05d}", {"png": save_png(_pixels(i)), "txt": b"words"}) for i in range(good)]
    write_groups(groups, tmp_path, "x", 1000)
    return [Source(SourceConfig("x", str(tmp_path)))]


def _pixels(seed: int):  # noqa: ANN202
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)


def test_weights_of_zero_leave_a_source_out(shards: Path) -> None:
    names = {name for batch in seen(ShardStream(sources_of(shards, talk=0, captions=1), 4)) for _, name, _, _ in batch}
    assert all(name.startswith("captions") for name in names)
    with pytest.raises(UserError, match="weight above 0"):
        ShardStream(sources_of(shards, talk=0), 4)


def test_evaluation_draws_by_lot_where_a_seed_says_so(shards: Path) -> None:
    def ids(draw: int | None) -> list[str]:
        stream = EvalStream(sources_of(shards, talk=1, captions=1), 50, limit=11, draw=draw)
        return [f"{item.sample.id}#{item.turn}" for batch in [*stream] for item in batch]

    assert ids(3) == ids(3) and len(set(ids(3))) == 11
    assert ids(3) != ids(4) and ids(3) != ids(None)
