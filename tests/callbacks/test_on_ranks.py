"""Every metric says the same on one, two and four processes, with the real micro encoders."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from m2chat.callbacks.base import MetricCallback
from m2chat.callbacks.clip_score import CLIPScore
from m2chat.callbacks.edit import EditScores
from m2chat.callbacks.fid import FID
from m2chat.callbacks.inter_rel import InterRel
from m2chat.callbacks.judge import Judge
from m2chat.callbacks.story import StoryConsistency
from m2chat.callbacks.text_overlap import TextOverlap
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.encoders import OpenClipEncoder
from m2chat.metrics.extractors import MicroExtractor
from m2chat.schema import Prediction, Reply, Segment
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import render, scenes_of_split

MICRO = Path(__file__).parents[2] / "data" / "micro"
SCENES = scenes_of_split("test", 1)


def predictions(count: int) -> list[Prediction]:
    """Parts of stories whose pictures are sometimes wrong, sometimes missing, sometimes too many."""
    made = []
    for index in range(count):
        scene, other = SCENES[index], SCENES[index + 50]
        truth = Reply((Segment(f"part {index} of it", caption_of(scene)),), (render(scene),))
        drawn = [render(scene if index % 3 else other)]
        segments = [Segment(f"part {index % 4} of it", caption_of(scene))]
        if index % 5 == 4:
            drawn.append(render(other))
            segments.append(Segment("", caption_of(other)))
        images = tuple(None if index % 7 == 6 else picture for picture in drawn)
        meta = {"scene": scene.attributes, "omitted": ["size"], "context_caption": caption_of(other)}
        generated = Reply(tuple(segments), images)
        id_ = f"story/{index // 4}#{1 + index % 4}"
        made.append(Prediction(id_, "story", "test", "go on", truth, generated, render(other), meta))
    return made


def metrics() -> list[MetricCallback]:
    def encoder() -> OpenClipEncoder:
        return OpenClipEncoder(str(MICRO / "metric_clip"), batch_size=3)

    return [
        CLIPScore(encoder()), FID(MicroExtractor(str(MICRO / "fid"))), InterRel(encoder()), TextOverlap(), Judge(),
        StoryConsistency(encoder()), EditScores(encoder()),
    ]  # fmt: skip


def evaluate(own: Sequence[Prediction], batch: int) -> dict[str, float]:
    store, found = EvalStore(), {}
    for metric in metrics():
        for start in range(0, len(own), batch):
            part = own[start : start + batch]
            metric.update(store, part)
        results = metric.results(full=True)
        found |= {name: item.value for name, item in results.items()}
        found |= {f"{name} low": item.low for name, item in results.items()}
    return found


def on_ranks(size: int, folder: Path, share: Callable[[int], Sequence[Prediction]]) -> list[dict[str, float]]:
    """What each of some forked processes finds in its share."""
    children = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                store = distributed.FileStore(str(folder / f"meet{size}"), size)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
                torch.save(evaluate(share(rank), 2), folder / f"{size}_{rank}.pt")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * size
    return [torch.load(folder / f"{size}_{rank}.pt", weights_only=True) for rank in range(size)]


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), name


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return evaluate(predictions(11), 11)


def test_the_case_is_worth_testing(expected: dict[str, float]) -> None:
    assert expected["pictures_missing"] == 1 and expected["fid_micro"] > 1
    for name in ("clip_score", "inter_rel", "bleu_1", "story_consistency", "edit_direction", "all_right"):
        assert 0 < expected[name] < 100, name


@pytest.mark.parametrize("size", [2, 4])
def test_processes_see_what_one_sees(size: int, tmp_path: Path, expected: dict[str, float]) -> None:
    whole = predictions(11)

    def share(rank: int) -> list[Prediction]:
        """As a sampler hands them out that pads, so that all ranks have equally many."""
        return [whole[index % 11] for index in range(rank, size * -(-11 // size), size)]

    for found in on_ranks(size, tmp_path, share):
        same(found, expected)


def test_a_rank_may_have_nothing(tmp_path: Path, expected: dict[str, float]) -> None:
    whole = predictions(11)
    for found in on_ranks(2, tmp_path, lambda rank: [] if rank == 0 else whole[::-1]):
        same(found, expected)


def test_moments_of_many_pictures_are_summed(tmp_path: Path) -> None:
    whole = [*predictions(70)]
    metric = FID(MicroExtractor(str(MICRO / "fid")))

    def distance(own: Sequence[Prediction]) -> float:
        store = EvalStore()
        metric.update(store, own)
        return metric.results(full=False)["fid_micro"].value

    alone = distance(whole)
    assert metric.extractor.num_features == 64 < len(whole)
    code = 1
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            try:
                store = distributed.FileStore(str(tmp_path / "meet"), 2)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
                code = 0 if np.isclose(distance(whole[rank::2]), alone, rtol=1e-6) else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
