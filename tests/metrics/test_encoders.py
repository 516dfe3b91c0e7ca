from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m2chat.errors import UserError
from m2chat.metrics.encoders import OpenClipEncoder

WORDS = "a red blue circle square on the".split()
CONTEXT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained open_clip model of the smallest size, saved in fp16."""
    import open_clip
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {word: index for index, word in enumerate([*WORDS, "<unk>", "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<end>", "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": CONTEXT, "vocab_size": len(vocabulary), "width": 16, "heads": 2, "layers": 1}
    text |= {"hf_tokenizer_name": "."}
    config = {
        "model_cfg": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).half()
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def test_embeddings_are_unit_vectors_in_fp32(folder: Path) -> None:
    encoder = OpenClipEncoder(str(folder))
    texts = encoder.encode_text(["a red circle", ""])
    images = encoder.encode_image([np.full((40, 32, 3), 90, np.uint8)])
    assert texts.shape == (2, 8)
    assert images.shape == (1, 8)
    assert texts.dtype == images.dtype == np.float32
    assert np.linalg.norm(np.concatenate([texts, images]), axis=1) == pytest.approx(1.0, abs=1e-5)


def test_batch_size_and_autocast_do_not_matter(folder: Path) -> None:
    texts = [" ".join(WORDS[: n + 1]) for n in range(4)]
    expected = OpenClipEncoder(str(folder)).encode_text(texts)
    with torch.autocast("cpu", torch.bfloat16):
        found = OpenClipEncoder(str(folder), batch_size=3).encode_text(texts)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_long_text_keeps_its_end_token(folder: Path) -> None:
    encoder = OpenClipEncoder(str(folder))
    long = encoder.encode_text(["a red circle on the blue square", "a red circle on"])
    assert long[0] == pytest.approx(long[1], abs=1e-6)


def test_released_weights_are_loaded_again(folder: Path) -> None:
    encoder = OpenClipEncoder(str(folder))
    before = encoder.encode_text(["a red circle"])
    encoder.release()
    assert encoder.encode_text(["a red circle"]) == pytest.approx(before)


def test_what_cannot_be_loaded_names_the_remedy() -> None:
    with pytest.raises(UserError, match="make backbones"):
        OpenClipEncoder("data/nowhere").encode_text(["a"])
    with pytest.raises(UserError, match="its weights are random"):
        OpenClipEncoder("ViT-B-32-quickgelu").encode_text(["a"])


def test_weights_of_another_activation_are_refused() -> None:
    with pytest.raises(UserError, match="use model='ViT-B-32-quickgelu'"):
        OpenClipEncoder("ViT-B-32", "openai").encode_text(["a"])


def test_weights_that_cannot_be_fetched_name_the_remedy() -> None:
    with pytest.raises(UserError, match="give the weights as a file"):
        OpenClipEncoder("ViT-B-32-quickgelu", "nowhere.pt").encode_text(["a"])
