from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from m2chat.data import images
from m2chat.data.augment import Augmentation, CropFlip, may_be_mirrored
from m2chat.data.collate import Collator
from m2chat.data.images import load_image, resize_crop
from m2chat.data.items import Item
from m2chat.data.network_inputs import VisionInput
from m2chat.data.sources import caption_sample
from m2chat.schema import Image, Sample, Turn
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pair(caption: str, height: int = 24, width: int = 48, crop: tuple[int, int] = (0, 0)) -> Sample:
    return caption_sample("a", "cc", Image(pixels(height, width), caption, (240, 480), crop), {})


@pytest.mark.parametrize("caption", ["a cat LEFT of a dog", "on the right .", "turn it clockwise", "left-handed"])
def test_sides_are_never_swapped(caption: str) -> None:
    assert not may_be_mirrored(pair(caption))
    always = Augmentation(flip=1.0)
    assert not any(always.draw(pair(caption), str(lot)).mirrored for lot in range(50))


def test_only_pictures_that_stand_alone_are_mirrored() -> None:
    plain = pair("an upright bright leaf")
    assert may_be_mirrored(plain)
    assert not may_be_mirrored(pair("a leaf", crop=(0, 3)))
    for kind in ("dialogue", "edit", "story"):
        assert not may_be_mirrored(Sample("a", plain.turns, plain.images, kind=kind, source="x"))  # type: ignore[arg-type]
    asked = (Turn("user", ("what stands to the left ?",)), Turn("assistant", (0,)))
    assert not may_be_mirrored(Sample("a", asked, plain.images, kind="instruct", source="x"))
    assert not may_be_mirrored(Sample("a", plain.turns, plain.images * 2, kind="instruct", source="x"))


def test_chance_depends_on_the_lot_alone() -> None:
    both = Augmentation(random_crop=True, flip=0.5)
    looks = [both.draw(pair("a leaf"), f"0/0/{lot}") for lot in range(400)]
    assert looks == [both.draw(pair("a leaf"), f"0/0/{lot}") for lot in range(400)]
    assert 160 < sum(look.mirrored for look in looks) < 240
    assert len({look.at for look in looks}) == 400
    assert both.draw(pair("a leaf"), "") == CropFlip() == Augmentation().draw(pair("a leaf"), "0/0/1")


@pytest.fixture(scope="module")
def collator(backbones: Path) -> Collator:
    layout = Layout(M2ChatTokenizer(backbones), num_image_tokens=4, max_tokens=300)
    vision = VisionInput.of(str(backbones))
    return Collator(layout, CaptionTokens(backbones), vision, 24, Augmentation(random_crop=True, flip=0.5))


def test_micro_conditioning_says_what_was_done(collator: Collator) -> None:
    """The crop is found in the picture, or in the mirrored picture, where the conditioning says."""
    sample = pair("a leaf")  # (24, 48), and squares of 24: nothing is resized
    seen = set()
    for lot in range(60):
        batch = collator([Item(sample, 1, 0, lot, f"0/0/{lot}")])
        height, width, top, left, *target = batch.time_ids[0].int().tolist()
        mirrored = collator.augmentation.draw(sample, f"0/0/{lot}").mirrored
        assert (height, width, top, target) == (240, 480, 0, [24, 24]) and 0 <= left <= 24
        whole = sample.images[0].pixels[:, ::-1] if mirrored else sample.images[0].pixels
        shown = ((batch.target_pixels[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        np.testing.assert_array_equal(shown, whole[:, left : left + 24])
        seen.add((mirrored, left))
    assert len(seen) > 25


def test_evaluation_and_defaults_take_the_middle(collator: Collator) -> None:
    sample = pair("a leaf")
    middle = collator([(sample, 1, 0)])
    assert middle.time_ids[0].tolist() == [240, 480, 0, 12, 24, 24]
    plain = Collator(collator.layout, collator.captions, collator.vision, 24)
    assert torch.equal(plain([Item(sample, 1, 0, 5, "0/0/5")]).target_pixels, middle.target_pixels)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (300, 301), (100, 90)])
def test_resizing_is_within_a_grey_level_of_pillow(shape: tuple[int, int]) -> None:
    # Noise of the size of a few pixels, as pictures have it.
    whole = np.asarray(PIL.fromarray(pixels(60, 80)).resize(shape[::-1], PIL.Resampling.BICUBIC))
    square, (top, left) = resize_crop(whole.copy(), 256)
    side = min(shape)
    box = ((shape[1] - side) // 2, (shape[0] - side) // 2)
    truth = PIL.fromarray(whole).crop((*box, box[0] + side, box[1] + side)).resize((256, 256), PIL.Resampling.BICUBIC)
    difference = np.abs(square.astype(int) - np.asarray(truth).astype(int))
    assert difference.max() <= 1 and difference.mean() < 0.05
    assert (top, left) == tuple(round(place * 256 / side) for place in reversed(box))


def test_both_decoders_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed: pip install 'm2chat[fast]'")
    import io

    files = []
    smooth = PIL.fromarray(pixels(30, 40)).resize((333, 251), PIL.Resampling.BICUBIC)
    for mode in ("RGB", "L", "CMYK"):
        for options in ({"quality": 85}, {"quality": 30, "progressive": True}, {"subsampling": 0}):
            buffer = io.BytesIO()
            smooth.convert(mode).save(buffer, "JPEG", **options)
            files.append(buffer.getvalue())
    fast = [load_image(data) for data in files]
    monkeypatch.setattr(images, "simplejpeg", None)
    for data, found in zip(files, fast, strict=True):
        assert np.abs(load_image(data).astype(int) - found.astype(int)).max() <= 2
