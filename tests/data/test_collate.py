from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2chat.data.collate import Collator
from m2chat.data.network_inputs import VisionInput
from m2chat.data.sources import caption_sample
from m2chat.errors import UserError
from m2chat.schema import Image, Sample
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer


@pytest.fixture(scope="module")
def collator(backbones: Path) -> Collator:
    layout = Layout(M2ChatTokenizer(backbones), num_image_tokens=4, max_tokens=300)
    return Collator(layout, CaptionTokens(backbones), VisionInput.of(str(backbones)), image_size=12)


def test_shapes_masks_and_padding(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    talk = make_dialogue(0)
    pair = caption_sample("a", "cc", replace(talk.images[1], pixels=talk.images[0].pixels[:6]), {})
    batch = collator([(talk, 1, None), (talk, 3, 0), (pair, 1, None)])
    rows, length = batch.input_ids.shape
    assert rows == len(batch) == 3
    for name in ("attention_mask", "answer_mask", "caption_mask", "image_mask"):
        assert getattr(batch, name).shape == (3, length) and getattr(batch, name).dtype == torch.bool
    assert batch.labels.shape == (3, length) and batch.labels.dtype == torch.long
    assert batch.context_pixels.shape == (3, 3, 16, 16) and batch.target_pixels.shape == (3, 3, 12, 12)
    assert batch.caption_ids.shape == batch.caption_ids_2.shape == (3, 16)

    padded = ~batch.attention_mask
    assert padded.any() and (batch.input_ids[padded] == 0).all() and (batch.labels[padded] == -100).all()
    assert batch.has_context.tolist() == [True, True, False] and batch.has_target.tolist() == [False, True, True]
    assert batch.image_mask.sum(1).tolist() == [0, 4, 4]
    assert batch.answer_mask.any(1).tolist() == [True, True, False]
    assert not batch.caption_mask[0].any() and not batch.target_pixels[0].any() and not batch.context_pixels[2].any()
    decode = collator.layout.tokenizer.decode
    assert decode(batch.input_ids[1][batch.caption_mask[1]].tolist()) == "a cat"
    assert decode(batch.input_ids[1][batch.answer_mask[1]].tolist()) == "here it is"
    assert batch.turns == [1, 3, 1] and batch.samples[2] is pair and batch.cut_tokens == [0, 0, 0]


def test_batches_travel_as_bytes_and_get_ready_once(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    pair = caption_sample("p/1", "p", make_dialogue(1).images[0], {})
    items = [(make_dialogue(0), 1, None), (pair, 1, None), (make_dialogue(0), 3, 0)]
    compact = collator.compact(items)
    assert compact.context_pixels.dtype == compact.target_pixels.dtype == torch.uint8
    assert compact.has_context.tolist() == [True, False, True] and compact.has_target.tolist() == [False, True, True]
    ready = compact.ready()
    assert torch.equal(compact.to("cpu").context_pixels, ready.context_pixels)
    assert not collator.compact(items[1:2]).ready().context_pixels.any(), "nothing is seen where nothing is shown"
    assert ready.ready() is ready and torch.equal(ready.target_pixels, collator(items).target_pixels)
    assert not ready.context_pixels[1].any() and not ready.target_pixels[0].any()
    torch.testing.assert_close(ready.target_pixels[1:], compact.target_pixels[1:] / 127.5 - 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (collator.vision.mean, collator.vision.std))
    torch.testing.assert_close(ready.context_pixels[::2], (compact.context_pixels[::2] / 255 - mean) / std)
    assert torch.equal(compact.select([2]).ready().context_pixels, ready.context_pixels[2:])


def test_pictures_are_those_of_the_view(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    talk = make_dialogue(0)
    batch = collator([(talk, 3, 0)])
    shown, drawn = batch.context_pixels[0], batch.target_pixels[0]
    assert -1 <= drawn.min() and drawn.max() <= 1
    # Same means after resizing: the context is picture 0, the target picture 1.
    for tensor, image in ((shown, talk.images[0]), (drawn, talk.images[1])):
        truth = torch.from_numpy(image.pixels).float().mean((0, 1)) / 127.5 - 1
        torch.testing.assert_close(tensor.mean((1, 2)), truth, atol=0.05, rtol=0)


def test_the_target_of_alignment_is_the_full_caption(
    collator: Collator, make_dialogue: Callable[[int], Sample]
) -> None:
    talk = make_dialogue(0)
    target = talk.turns[3].pictures[0]
    images = list(talk.images)
    images[target] = replace(images[target], full_caption="a cat in red")
    full = collator([(replace(talk, images=tuple(images)), 3, None)])
    plain = collator([(talk, 3, None)])
    assert torch.equal(full.input_ids, plain.input_ids), "what is said is the caption"
    assert torch.equal(full.caption_ids, collator.captions(["a cat in red"])[0])
    assert torch.equal(plain.caption_ids, collator.captions([talk.images[target].caption])[0])


def test_time_ids_tell_the_truth(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    pixels = make_dialogue(0).images[0].pixels[:4]  # (4, 8): resized to (12, 24), cut 6 from the left
    known = caption_sample("a", "cc", Image(pixels, "a cat", original_size=(300, 600), crop=(2, 0)), {})
    unknown = caption_sample("b", "cc", Image(pixels, "a cat"), {})
    batch = collator([(known, 1, 0), (unknown, 1, 0)])
    assert batch.time_ids.tolist() == [[300, 600, 6, 6, 12, 12], [4, 8, 0, 6, 12, 12]]


def test_typed_special_tokens_stay_plain(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    image = replace(make_dialogue(0).images[0], caption="<|img|> </s> <|IC|> <|endoftext|> a")
    batch = collator([(caption_sample("a", "cc", image, {}), 1, 0)])
    tokens, ids = collator.layout.tokenizer, batch.input_ids[0].tolist()
    assert ids.count(tokens.img_id) == 4 and ids.count(tokens.ic_id) == 1 and ids.count(tokens.eos_id) == 1
    tokenizer = collator.captions._tokenizers()[0]
    long = tokenizer.eos_token_id
    plain = collator.captions(["<|endoftext|>"])[0][0]
    assert (plain == long).int().argmax() > 5, "a typed end token must not end the caption"


def test_captions_are_tokenised_as_transformers_does(collator: Collator) -> None:
    words = ["", "a cat", "<|endoftext|> a", "a long one " * 20, "caf\u00e9 \U0001f431"]
    for found, tokenizer in zip(collator.captions(words), collator.captions._tokenizers(), strict=True):
        theirs = tokenizer(words, padding="max_length", truncation=True, split_special_tokens=True, return_tensors="pt")
        assert torch.equal(found, theirs["input_ids"])


def test_it_travels_to_workers(collator: Collator, make_dialogue: Callable[[int], Sample]) -> None:
    again = pickle.loads(pickle.dumps(collator))
    items = [(make_dialogue(0), 3, 0)]
    assert torch.equal(again(items).input_ids, collator(items).input_ids)


def test_without_a_second_text_encoder_its_ids_are_zero(backbones: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(backbones / "tokenizer")
    first, second = CaptionTokens(tmp_path)(["a cat", ""])
    assert first.shape == second.shape == (2, 16) and first.any() and not second.any()


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_decoder="):
        CaptionTokens(tmp_path)
    with pytest.raises(UserError, match="vision_encoder='ViT-X'"):
        VisionInput.of("ViT-X")
    assert VisionInput.of("ViT-L-14-quickgelu") == VisionInput(224)
    assert VisionInput.of("ViT-L-14-336-quickgelu:/weights/ViT-L-14-336px.pt") == VisionInput(336)
    with pytest.raises(UserError, match=r"a file stands behind its architecture, as in 'ViT-L-14-quickgelu:/weights"):
        VisionInput.of("/weights/ViT-L-14.pt")
