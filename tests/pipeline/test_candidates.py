"""The better of several pictures."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from m2chat.errors import UserError
from m2chat.models.denoising import Denoising
from m2chat.models.image_decoder import ImageDecoder
from m2chat.pipeline import M2ChatPipeline, OutputImage, PipelineOutput
from m2chat.pipeline.candidates import best_of, denoising_errors
from m2chat.pipeline.drawing import noise_seed
from m2chat.pipeline.tasks import wish
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import Scene, Shape, render

SCENES = [
    Scene(Shape("ring", "blue"), "white", None, "large", "left"),
    Scene(Shape("square", "yellow"), "black", None, "small", "top"),
    Scene(Shape("triangle", "green"), "pink", None, "large", "middle"),
]
WISH = "I dream of a ball like the sea in front of snow"


def output_of(picture: np.ndarray | None, caption: str) -> PipelineOutput:
    return PipelineOutput([] if picture is None else [OutputImage(Image.fromarray(picture), caption, 1.0, 0.0)])


def broken(picture: np.ndarray) -> np.ndarray:
    """Its shape smeared away."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3)))


def test_the_true_picture_is_predicted_best(pipe: M2ChatPipeline) -> None:
    captions = [caption_of(scene, omit=("size", "position")) for scene in SCENES]
    drawn = [render(scene, np.random.default_rng(0)) for scene in SCENES]
    true = denoising_errors(pipe, drawn, captions)
    smeared = denoising_errors(pipe, [broken(picture) for picture in drawn], captions)
    others = denoising_errors(pipe, drawn[1:] + drawn[:1], captions)
    assert all(a < b for a, b in zip(true, smeared, strict=True)) and all(
        a < b for a, b in zip(true, others, strict=True)
    )
    assert true == denoising_errors(pipe, drawn, captions) and true[:1] == pytest.approx(
        denoising_errors(pipe, drawn[:1], captions[:1]), rel=1e-4
    )


def test_the_best_is_kept_and_a_missing_picture_is_the_worst(pipe: M2ChatPipeline) -> None:
    scene = SCENES[0]
    caption, picture = caption_of(scene), render(scene, np.random.default_rng(0))
    good, bad, none = output_of(picture, caption), output_of(broken(picture), caption), output_of(None, caption)
    assert best_of(pipe, [bad, none, good]) is good and best_of(pipe, [none, bad]) is bad
    assert best_of(pipe, [none]) is none and best_of(pipe, [none, output_of(None, "")]) is none


def test_a_wish_keeps_one_of_its_candidates(pipe: M2ChatPipeline) -> None:
    seeds = (0, 1, 2)
    first = wish(pipe, WISH, seeds, candidates=1, steps=4)
    second = wish(pipe, WISH, [noise_seed(seed, "candidate 1") for seed in seeds], candidates=1, steps=4)
    kept = wish(pipe, WISH, seeds, steps=4)
    assert [output.seed for output in kept] == [0, 1, 2]
    for own, *pair in zip(kept, first, second, strict=True):
        expected = best_of(pipe, pair)
        assert np.array_equal(np.asarray(own.images[0]), np.asarray(expected.images[0]))
    with pytest.raises(UserError, match="candidates=0"):
        wish(pipe, WISH, candidates=0)


def test_a_stop_among_candidates_keeps_the_finished_ones(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, stop, denoise, done = wish(pipe, WISH, (0,), candidates=1, steps=3), Event(), ImageDecoder.denoise, []

    def watched(self: ImageDecoder, *args: Any) -> Iterator[Denoising]:
        for state in denoise(self, *args):
            done.append(state.step)
            if len(done) == 5:
                stop.set()
            yield state

    monkeypatch.setattr(ImageDecoder, "denoise", watched)
    (kept,) = wish(pipe, WISH, (0,), stop, steps=3)
    assert done == [1, 2, 3, 1, 2] and kept.segments[:-1] == first[0].segments[:-1]
    assert np.array_equal(np.asarray(kept.images[0]), np.asarray(first[0].images[0]))
