"""Metrics as any LightningModule would use them: in a MetricCollection, alone and on several ranks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import distributed
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance

from m2chat.metrics.base import CountMetric, SampleCount, SampleMetric
from m2chat.metrics.clip_score import CLIPImageMetric, CLIPScoreMetric, ShuffledCLIPScoreMetric, clip_score, cosines
from m2chat.metrics.fid import FrechetDistanceMetric, Moments, frechet_distance
from m2chat.metrics.inter_rel import Elements, InterRelMetric, MMRelevanceMetric, inter_rel, mm_relevance
from m2chat.metrics.tasks import EditDirectionMetric, StoryConsistencyMetric
from m2chat.metrics.text_overlap import BLEUMetric, ROUGELMetric, bleu, bleu_statistics, rouge_l

TEXTS = ["a red ring", "the sea is blue today", "no", "a large white square at the top", "ring ring"]
OTHERS = ["a red circle", "the sea was blue", "yes", "a small white square at the top", "ring"]
IDS = [f"s{k}" for k in range(5)]
PICTURES = [np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(5)]


class Projection:
    """Embeds texts by letters and pictures by pixels: enough to tell right from wrong arithmetic."""

    name, metric, num_features = "projection", "fid_projection", 6

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[len(text), *(text.count(letter) + 1.0 for letter in "aeiou")] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_image(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = np.stack([picture[:2].reshape(-1)[:6].astype(np.float32) - 100 for picture in pictures])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return self.encode_image(pictures)

    def to(self, device: torch.device) -> None: ...

    def release(self) -> None: ...


def test_a_collection_holds_metrics_of_different_inputs() -> None:
    encoder = Projection()
    collection = MetricCollection(
        {"clip": CLIPScoreMetric(encoder), "clip_i": CLIPImageMetric(encoder), "bleu_1": BLEUMetric(1),
         "bleu_2": BLEUMetric(2), "rouge_l": ROUGELMetric()},
        compute_groups=False,
    )  # fmt: skip
    inputs = {"pictures": PICTURES, "captions": TEXTS, "reference_pictures": PICTURES[::-1], "hypotheses": TEXTS,
              "references": OTHERS, "ids": IDS}  # fmt: skip
    collection.update(**inputs)
    collection.update(**inputs)  # a sample counts once
    images = encoder.encode_image(PICTURES)
    counts = [bleu_statistics(*pair) for pair in zip(TEXTS, OTHERS, strict=True)]
    expected = {
        "clip": clip_score(cosines(images, encoder.encode_text(TEXTS))),
        "clip_i": 100 * cosines(images, images[::-1]).mean(),
        "bleu_1": bleu(counts, 1),
        "bleu_2": bleu(counts, 2),
        "rouge_l": np.mean([rouge_l(*pair) for pair in zip(TEXTS, OTHERS, strict=True)]),
    }
    assert {name: float(value) for name, value in collection.compute().items()} == pytest.approx(expected, rel=1e-9)
    collection.reset()
    assert all(not metric.samples for metric in collection.values())


def test_without_ids_every_value_is_a_sample() -> None:
    metric = ROUGELMetric()
    metric.update(["a b", "a b"], ["a b", "a c"])
    metric.update(["a b"], ["a b"])
    assert float(metric.compute()) == pytest.approx((100 + 50 + 100) / 3)


def test_what_is_left_out_leaves_no_name_to_another_sample() -> None:
    metric = SampleMetric()
    metric.update([float("nan"), 1.0])
    metric.update([2.0])
    metric(values=[3.0])  # forward sets the states aside and merges them
    assert float(metric.compute()) == 2.0


def test_no_values_are_nan_and_not_finite_ones_are_left_out() -> None:
    metric = SampleMetric()
    metric.update([1.0, float("nan"), 3.0], ["a", "b", "c"])
    assert float(metric.compute()) == 2.0
    count = CountMetric()
    count.update([2, 3], ["a", "b"])
    assert float(count.compute()) == 5.0
    empty = SampleMetric()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert np.isnan(float(empty.compute()))


def test_inter_rel_and_relevance_skip_what_is_undefined() -> None:
    x, y = np.eye(2)
    both = Elements(["T", "V"], np.stack([x, y]))
    half = Elements(["T", "V"], np.stack([y, y]))
    text = Elements(["T"], x[None])
    relation, relevance = InterRelMetric(), MMRelevanceMetric()
    for metric in (relation, relevance):
        metric.update(reference_elements=[both, text], generated_elements=[half, text], ids=["a", "b"])
    assert float(relation.compute()) == pytest.approx(inter_rel(both, half).mean)
    values = [mm_relevance(both, half), mm_relevance(text, text)]
    assert float(relevance.compute()) == pytest.approx(np.mean([value.f1 for value in values if value is not None]))


def test_edits_and_stories() -> None:
    metric = EditDirectionMetric(Projection())
    metric.update(PICTURES[:2], PICTURES[2:4], TEXTS[:2], TEXTS[2:4], IDS[:2])
    assert -100 <= float(metric.compute()) <= 100
    frames = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    story = StoryConsistencyMetric()
    story.update([frames, frames[:2]], ["one", "two"])
    expected = [cosines(part[:-1], part[1:]).mean() for part in (frames, frames[:2])]
    assert float(story.compute()) == pytest.approx(100 * np.mean(expected))


def test_frames_that_are_no_neighbours_are_in_no_pair() -> None:
    frames = np.eye(3, dtype=np.float32)
    story = StoryConsistencyMetric()
    for turn, frame in ((1, 0), (5, 0)):  # the reply of turn 3 drew nothing
        columns = {"stories": [7], "turns": [turn], "replies": [turn // 2], "frames": [frame], "frame_counts": [1]}
        story.add(frames[:1], f"x#{turn}", **columns)
    assert len(story.scores(story.gather())) == 0
    story.add(frames[:1], "x#3", stories=[7], turns=[3], replies=[1], frames=[0], frame_counts=[1])
    assert story.scores(story.gather()).tolist() == [100.0]


def test_frechet_distance_equals_the_functions() -> None:
    extractor = Projection()
    metric = FrechetDistanceMetric(6, extractor)  # type: ignore[arg-type]
    real = [np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(20)]
    drawn = [np.random.default_rng(100 + k).integers(0, 256, (8, 8, 3), dtype=np.uint8) for k in range(15)]
    metric.update(real, real=True, ids=[f"r{k}" for k in range(20)])
    metric.update(drawn, real=False)
    expected = frechet_distance(Moments.of(extractor.extract(real)), Moments.of(extractor.extract(drawn)))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)


def test_the_stock_frechet_distance_agrees() -> None:
    features = np.random.default_rng(1).normal(size=(2, 40, 4)).astype(np.float32)

    class Network(torch.nn.Module):
        num_features = 4

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.double().reshape(len(pixels), -1)[:, :4] / 255

    pixels = ((features - features.min()) / np.ptp(features) * 255).astype(np.uint8)
    stock, ours = FrechetInceptionDistance(Network(), normalize=False), FrechetDistanceMetric(4)
    for side, real in ((0, True), (1, False)):
        stock.update(torch.from_numpy(pixels[side]).reshape(40, 1, 2, 2), real=real)
        for k in range(40):
            row = (pixels[side, k].astype(np.float64) / 255).astype(np.float32)
            ours.add(row[None], f"{real}{k}", generated=[int(not real)])
    assert float(ours.compute()) == pytest.approx(float(stock.compute()), rel=1e-4)


def _metrics() -> dict[str, SampleMetric]:
    encoder = Projection()
    return {
        "clip": CLIPScoreMetric(encoder), "shuffled": ShuffledCLIPScoreMetric(), "bleu": BLEUMetric(2),
        "rouge": ROUGELMetric(), "count": CountMetric(), "fid": FrechetDistanceMetric(6, encoder),  # type: ignore[arg-type]
    }  # fmt: skip


def _values(shares: Sequence[int]) -> dict[str, float]:
    """Every metric over some of the five samples of this rank, repeated ones included."""
    metrics: dict[str, Any] = _metrics()
    seen = SampleCount()
    encoder = Projection()
    for k in shares:
        ids = {"ids": [IDS[k]]}
        metrics["clip"].update([PICTURES[k]], [TEXTS[k]], **ids)
        pair = np.concatenate([encoder.encode_text([TEXTS[k]]), encoder.encode_image([PICTURES[k]])], 1)
        metrics["shuffled"].update(pair, **ids)
        metrics["bleu"].update([TEXTS[k]], [OTHERS[k]], **ids)
        metrics["rouge"].update([TEXTS[k]], [OTHERS[k]], **ids)
        metrics["count"].update([k], **ids)
        metrics["fid"].update([PICTURES[k]], real=True, **ids)
        metrics["fid"].update([PICTURES[(k + 1) % 5] // 2], real=False, **ids)
        seen.update(["caption"])
    return {name: float(metric.compute()) for name, metric in metrics.items()}


@pytest.mark.parametrize(
    "shares",
    [[[0, 1, 2], [3, 4, 0]], [[], [0, 1, 2, 3, 4]], [[0], [1, 2], [3, 4, 0, 1], []]],
    ids=["padded", "an empty rank", "four uneven ranks"],
)
def test_ranks_see_what_one_process_sees(shares: list[list[int]], tmp_path: Path) -> None:
    expected = _values(range(5))
    size, children = len(shares), []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                store = distributed.FileStore(str(tmp_path / "rendezvous"), size)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
                assert _values(shares[rank]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * size
