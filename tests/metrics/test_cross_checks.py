"""Our CLIP score beside torchmetrics' and transformers', on weights that all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m2chat.metrics.clip_score import clip_score, cosines
from m2chat.metrics.encoders import OpenClipEncoder
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import render, scenes_of_split

MICRO = Path(__file__).parents[2] / "data" / "micro" / "metric_clip"
SCENES = scenes_of_split("test", 1)[:6]
PICTURES: list[NDArray[np.uint8]] = [render(scene) for scene in SCENES]
CAPTIONS = [caption_of(scene) for scene in (*SCENES[:3], *SCENES[:3])]
LONG = "there is a picture of a red circle and of a blue ring " * 12


def test_the_score_is_that_of_torchmetrics() -> None:
    from torchmetrics.multimodal.clip_score import CLIPScore

    encoder = OpenClipEncoder(str(MICRO))

    class Adapter:
        """What torchmetrics wants of a model, answered by our encoder's network."""

        config = type("Config", (), {"text_config": type("Text", (), {"max_position_embeddings": 77})})

        def __init__(self) -> None:
            self.network = encoder._load()[0]

        def to(self, _: Any) -> Adapter:
            return self

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.encode_image(pixels)  # type: ignore[operator,no-any-return]

        def get_text_features(self, ids: torch.Tensor, _: Any) -> torch.Tensor:
            return self.network.encode_text(ids)  # type: ignore[operator,no-any-return]

    def processor(text: list[str] | None = None, images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        from PIL import Image

        _, transform, tokenize = encoder._load()
        if text is not None:
            ids = tokenize(text)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows = [Image.fromarray(image.permute(1, 2, 0).byte().numpy()) for image in images]
        return {"pixel_values": torch.stack([transform(row) for row in rows])}

    theirs = CLIPScore(model_name_or_path=lambda: (Adapter(), processor))
    with torch.no_grad():
        theirs.update([torch.from_numpy(p).permute(2, 0, 1) for p in PICTURES], CAPTIONS)
    ours = cosines(encoder.encode_image(PICTURES), encoder.encode_text(CAPTIONS))
    assert clip_score(ours) == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert ours.min() < 0 < clip_score(ours)  # per-sample clamping would show


def test_a_caption_of_more_than_77_tokens_keeps_its_end_as_transformers_does() -> None:
    import open_clip
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    network, _, tokenize = OpenClipEncoder(str(MICRO))._load()
    length = int(network.context_length)  # type: ignore[arg-type]
    own = tokenize([LONG])[0]
    backend = Tokenizer.from_file(str(MICRO / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    whole = backend.encode(LONG).ids
    assert len(whole) > length == len(own)
    assert own.tolist() == [*whole[: length - 1], whole[-1]]  # cut, and its end token kept

    # The tokenizer of the published CLIPs: 77 tokens, and transformers' truncation is the yardstick.
    published = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    vocabulary, merges = published.encoder, list(published.bpe_ranks)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    theirs = CLIPTokenizer(vocab={names.get(k, k): v for k, v in vocabulary.items()}, merges=merges)
    ids = theirs([LONG], truncation=True, max_length=77, padding="max_length", return_tensors="pt").input_ids[0]
    mine = published([LONG])[0]
    assert len(theirs(LONG).input_ids) > 77 and int(mine[-1]) == theirs.eos_token_id
    assert mine.tolist() == ids.tolist()
